"""Single weights set to zero: which, how the rest makes up for it, retraining with a mask, and what it truly saves."""
