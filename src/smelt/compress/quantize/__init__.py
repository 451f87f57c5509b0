"""Few bits a number: one grid, and the ways to choose codes on it: rounding, GPTQ, AWQ, training."""
