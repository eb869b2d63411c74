"""Who a buyer is, said to one seller: its lasting key signs the key of one lease.

A buyer has a fresh key for every lease, which nobody can have on a list. Who wants to be known, to a
seller that serves its friends only, shows this with the request for a quote. It is good for this seller,
this lease's key and this request, travels sealed, and no part of it is published.
"""

from __future__ import annotations

import hashlib

from coincurve import PrivateKey, PublicKeyXOnly

from nostrvpn.identity.keys import RootSecret
from nostrvpn.market.bought_lease import BoughtLease
from nostrvpn.market.messages import QuoteRequest
from nostrvpn.market.saying import request_of
from nostrvpn.market.work import with_work
from nostrvpn.nostr.event import public_key

__all__ = ["introduced", "prepare_request"]


def introduced(request: QuoteRequest, buyer: str, seller: str) -> str:
    """Return the lasting key (x-only hex) that vouches for ``buyer``, a lease's key; "" if none does."""
    if not request.who or not request.who_sig:
        return ""
    try:
        key, signature = PublicKeyXOnly(bytes.fromhex(request.who)), bytes.fromhex(request.who_sig)
        is_good = key.verify(signature, _digest(request.key, buyer, seller))
    except ValueError:
        return ""
    return request.who if is_good else ""


def prepare_request(
    lease: BoughtLease, root: RootSecret, relays: tuple[str, ...], *, as_me: bool
) -> None:
    """Put into a lease's record what its request needs: who asks, if that is said, and the work."""
    buyer, seller = public_key(root.lease_key(lease.number)), lease.offer.seller
    if as_me:
        digest = _digest(lease.key, buyer, seller)
        # The same words each time it is said: BIP-340 is good without fresh randomness.
        signature = PrivateKey(root.reveal()).sign_schnorr(digest, bytes(32))
        lease.who, lease.who_sig = root.public_key, signature.hex()
    worked = with_work(request_of(lease, relays), buyer, seller, lease.offer.pow_bits)
    lease.nonce = worked.nonce if worked is not None else 0


def _digest(key: str, buyer: str, seller: str) -> bytes:
    text = "\n".join(("nostrvpn buyer 1", f"seller={seller}", f"buyer={buyer}", f"key={key}"))
    return hashlib.sha256(text.encode()).digest()
