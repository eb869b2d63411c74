"""NIP-19 text for 32-byte keys: ``npub1…`` and ``nsec1…``."""

from __future__ import annotations

from bech32 import bech32_decode, bech32_encode, convertbits

__all__ = ["decode_key", "encode_key"]

# 4 letters of prefix, the separator, 52 letters of data, 6 of checksum: longer is not ours.
_MAX_TEXT = 128


def encode_key(prefix: str, key: bytes) -> str:
    """Return 32 bytes as bech32 text under a prefix (NIP-19)."""
    words = convertbits(key, 8, 5, True)
    if len(key) != 32 or words is None:
        raise ValueError("a key is 32 bytes")
    return str(bech32_encode(prefix, words))


def decode_key(prefix: str, text: str) -> bytes:
    """Return the 32 bytes of bech32 text; raise ValueError naming what is wrong with it (NIP-19).

    The message never repeats the text: it may be a secret.
    """
    if len(text) > _MAX_TEXT:
        raise ValueError("it is too long")
    found, words = bech32_decode(text)
    if found is None or words is None:
        raise ValueError("its checksum is wrong, so a character was mistyped or lost")
    if found != prefix:
        raise ValueError(f"it starts with {found}1, expected {prefix}1")
    data = convertbits(words, 5, 8, False)
    if data is None or len(data) != 32:
        raise ValueError("it does not hold 32 bytes")
    return bytes(data)
