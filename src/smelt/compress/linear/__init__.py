"""Linear attention: layers of a trained model taught to attend with a state of fixed size, and what that costs."""
