"""Structured pruning (Minitron, Muralidharan et al. 2024, arXiv:2407.14679): score, search a shape, slice.

`scores` watches a model on a calibration set, `importance` ranks what it saw, `shapes` searches widths and depths near
a target, `search` and `trials` measure the best of them, `slice` makes the smaller tensors, `masked` is its slow twin,
`stage` is all of it as a stage of the chain.
"""
