"""Proof of work on a quote request, so that asking for trials a thousand times costs something.

Difficulty is NIP-13's count of leading zero bits, but over a text of our own: it binds the work to
the seller, the buyer's key, one offer event and one request, and needs no event to be built for each
try. An offer is a few minutes old at most, so work cannot be done in advance.
"""

from __future__ import annotations

import hashlib

import msgspec

from nostrvpn.market.messages import QuoteRequest

__all__ = ["MAX_BITS", "has_work", "with_work"]

# A second of one core is about 2**20 tries.
MAX_BITS = 28


def has_work(request: QuoteRequest, buyer: str, seller: str, bits: int) -> bool:
    """Whether the request's nonce has at least ``bits`` of work for this seller (keys x-only hex)."""
    digest = hashlib.sha256(_text(request, buyer, seller) + str(request.nonce).encode()).digest()
    return int.from_bytes(digest, "big") >> (256 - bits) == 0 if bits else True


def with_work(
    request: QuoteRequest, buyer: str, seller: str, bits: int, tries: int = 1 << 32
) -> QuoteRequest | None:
    """Return the request with a nonce that has the work, or None after so many tries.

    About 2**bits hashes: the shell runs it in a thread where bits are many.
    """
    text = hashlib.sha256(_text(request, buyer, seller))
    for nonce in range(tries):
        attempt = text.copy()
        attempt.update(str(nonce).encode())
        if not bits or int.from_bytes(attempt.digest(), "big") >> (256 - bits) == 0:
            return msgspec.structs.replace(request, nonce=nonce)
    return None


def _text(request: QuoteRequest, buyer: str, seller: str) -> bytes:
    parts = ("nostrvpn work 1", seller, buyer, request.offer_event, request.key, "")
    return "\n".join(parts).encode()
