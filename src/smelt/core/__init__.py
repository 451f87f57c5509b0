"""The vocabulary every room shares. Standard library only; importing it does nothing."""
