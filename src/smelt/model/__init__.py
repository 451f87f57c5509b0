"""The PyTorch decoder: one module for five families, by configuration. Knows no text, file or optimizer."""
