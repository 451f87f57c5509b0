"""Training data: sources, generators of tasks, mixing and packing."""
