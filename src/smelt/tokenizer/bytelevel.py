"""The byte-level alphabet: one printable character for each of the 256 bytes (Radford et al. 2019, GPT-2).

Bytes that print as themselves in Latin-1 stand for themselves; the other 68 are moved to U+0100 and up.
"""

from __future__ import annotations

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]


def _alphabet() -> str:
    moved = iter(range(0x100, 0x200))
    printable = set(_PRINTABLE)
    return "".join(chr(byte) if byte in printable else chr(next(moved)) for byte in range(256))


ALPHABET: str = _alphabet()  # ALPHABET[byte] is the byte's character
_TO_BYTE = {char: byte for byte, char in enumerate(ALPHABET)}
_TO_CHAR = dict(enumerate(ALPHABET))


def to_chars(data: bytes) -> str:
    """Bytes as they are written in a byte-level vocabulary."""
    return data.decode("latin-1").translate(_TO_CHAR)


def to_bytes(token: str) -> bytes | None:
    """The bytes of a byte-level vocabulary entry; None when a character is outside the alphabet."""
    try:
        return bytes(_TO_BYTE[char] for char in token)
    except KeyError:
        return None
