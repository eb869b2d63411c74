"""BOLT 11 invoices for tests, by the specification: whoever holds the key is the payee."""

from __future__ import annotations

from hashlib import sha256

from bech32 import CHARSET, bech32_create_checksum, convertbits
from coincurve import PrivateKey

__all__ = ["make_invoice"]

_NODE = PrivateKey(sha256(b"a Lightning node").digest())


def make_invoice(msat: int, payment_hash: str, created_at: int, expiry_s: int) -> str:
    """Return an invoice over ``msat`` (whole tens of picobitcoin, as every msat is)."""
    prefix = f"lnbc{msat * 10}p"
    words = [created_at >> shift & 31 for shift in range(30, -1, -5)]
    words += _field("p", convertbits(bytes.fromhex(payment_hash), 8, 5, True))
    words += _field("x", [expiry_s >> shift & 31 for shift in range(20, -1, -5)])
    data = bytes(convertbits(words, 5, 8, True) or [])
    signature = _NODE.sign_recoverable(prefix.encode() + data)
    words += convertbits(signature, 8, 5, True) or []
    words += bech32_create_checksum(prefix, words)
    return prefix + "1" + "".join(CHARSET[word] for word in words)


def _field(letter: str, value: list[int] | None) -> list[int]:
    assert value is not None
    return [CHARSET.index(letter), len(value) >> 5, len(value) & 31, *value]
