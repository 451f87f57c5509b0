"""Byte-level BPE: train, encode, decode, streaming decode; text never becomes a control id."""
