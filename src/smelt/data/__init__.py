"""What models learn from: sources, generators of synthetic tasks with graders' references, batches in a fixed order."""
