"""GGUF, the file llama.cpp reads: one file with shape, weights and vocabulary. Written, not read.

The container is the `gguf` library's; what is ours is which of our decoders that format can say, and how.
"""

from smelt.checkpoint.gguf.header import Header, header_of
from smelt.checkpoint.gguf.packed import FORMATS, Format, PackedTensors
from smelt.checkpoint.gguf.vocabulary import Vocabulary
from smelt.checkpoint.gguf.writer import Written, write_gguf

__all__ = ["FORMATS", "Format", "Header", "PackedTensors", "Vocabulary", "Written", "header_of", "write_gguf"]
