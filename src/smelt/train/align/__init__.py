"""Preference tuning: the loss over pairs, reference log-probabilities kept, pairs the model makes itself."""
