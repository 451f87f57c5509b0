"""Checkpoint in, smaller checkpoint out: prune, share, linearise, quantize; the chain of such stages and its report."""
