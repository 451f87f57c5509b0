"""One training loop; optimizer, schedule and data are values handed to it."""
