"""The C++ core and its typed Python face: one step of a whole model over a flat batch, on a CPU."""
