"""A model in other programs' forms, read back by them and compared before it counts."""
