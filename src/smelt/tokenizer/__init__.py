"""Text to token ids and back: byte-level BPE, with control tokens that no text can spell."""

from smelt.tokenizer.pieces import StreamDecoder
from smelt.tokenizer.tokenizer import Tokenizer
from smelt.tokenizer.train import train_tokenizer

__all__ = ["StreamDecoder", "Tokenizer", "train_tokenizer"]
