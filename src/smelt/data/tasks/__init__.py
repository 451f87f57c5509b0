"""Generators of synthetic tasks: each makes conversations whose last turn is the one right answer."""
