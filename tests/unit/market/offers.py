"""Offers for tests: keys that exist, and one offer with everything in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nostrvpn.machine import Entropy, Moment
from nostrvpn.market.offer import Offer
from nostrvpn.market.terms import PayMode, Price, Terms
from nostrvpn.nostr.event import Event, Tags, public_key, sign_event

NOW = 1_800_000_000
MINT = "https://mint.example"
RELAY = "wss://relay.example"


def secret(number: int) -> bytes:
    return number.to_bytes(32, "big")


def key(number: int) -> str:
    return public_key(secret(number))


def moment(now: int = NOW, seed: bytes = b"offers") -> Moment:
    return Moment(0.0, float(now), Entropy(seed))


def offer(number: int = 1, **changes: Any) -> Offer:
    made = Offer(
        seller=key(number),
        offer_id="exit",
        terms=Terms(Price.parse("20sat/GiB", "5sat/h"), (MINT, "https://other.example/path")),
        receiver_pubkey="02" + key(99),
        relays=(RELAY,),
        country="DE",
        versions=(4, 6),
        policies=("tor-default",),
        pow_bits=12,
        max_sessions=50,
        network_class="datacenter",
        contact="abuse@example.org",
        escrow=(key(50), key(51)),
        asn=64500,
        down_bps=10**9,
        up_bps=10**8,
        created_at=NOW,
        expires_at=NOW + 1800,
        event_id=f"{number:064x}",
    )
    return replace(made, **changes)


def priced(number: int, price: str, **changes: Any) -> Offer:
    pay = changes.pop("pay", (PayMode.LOCKED,))
    return offer(number, terms=Terms(Price.parse(price), (MINT,), pay), **changes)


def signed(kind: int, tags: Tags, *, author: int = 1, at: int = NOW, content: str = "") -> Event:
    return sign_event(
        secret(author), kind=kind, tags=tags, content=content, created_at=at, aux=bytes(32)
    )
