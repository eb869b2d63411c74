"""Usage and receipts as the seller's word, which the buyer can show to somebody else.

The signature is BIP-340 by the seller's market key over the SHA-256 of a canonical text: a first line
that names the form, then the fields in the order of the message, one a line as ``name=value``. Nothing
in it tells where the traffic went, and no token is part of it.
"""

from __future__ import annotations

import hashlib
from typing import TypeVar

import msgspec
from coincurve import PrivateKey, PublicKeyXOnly

from nostrvpn.market.messages import Receipt, Usage

__all__ = ["canonical_text", "is_signed_by", "receipt_id", "signed"]

Statement = TypeVar("Statement", Usage, Receipt)


def canonical_text(statement: Usage | Receipt, seller: str) -> str:
    """Return the text that ``seller`` (x-only key, hex) signs."""
    kind = "usage" if isinstance(statement, Usage) else "receipt"
    fields = [
        f"{name}={getattr(statement, name)}"
        for name in statement.__struct_fields__
        if name not in ("token", "sig")
    ]
    return "\n".join([f"nostrvpn {kind} 1", f"seller={seller}", *fields])


def signed(statement: Statement, secret: bytes, aux: bytes) -> Statement:
    """Return the statement with the seller's signature; ``aux`` is 32 fresh random bytes."""
    key = PrivateKey(secret)
    seller = key.public_key.format(compressed=True)[1:].hex()
    signature = key.sign_schnorr(_digest(statement, seller), aux).hex()
    return msgspec.structs.replace(statement, sig=signature)


def is_signed_by(statement: Usage | Receipt, seller: str) -> bool:
    """Whether ``seller`` (x-only key, hex) signed it."""
    if not statement.sig:
        return False
    try:
        key = PublicKeyXOnly(bytes.fromhex(seller))
        return bool(key.verify(bytes.fromhex(statement.sig), _digest(statement, seller)))
    except ValueError:
        return False


def receipt_id(receipt: Receipt, seller: str) -> str:
    """Return the hash by which a rating names a receipt (64 hex digits)."""
    return _digest(receipt, seller).hex()


def _digest(statement: Usage | Receipt, seller: str) -> bytes:
    return hashlib.sha256(canonical_text(statement, seller).encode()).digest()
