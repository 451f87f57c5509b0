"""Weight sharing: layers of a trained model joined to compute with one set of matrices, or run more than once."""
