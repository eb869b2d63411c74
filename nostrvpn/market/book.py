"""The offers that this host knows of: bounded, however many are published and by whomever.

Room is given in this order: sellers that something is known of, then those seen for days, then a draw
among strangers that nobody outside can predict. A relay vouches for at most its share of strangers, so
that one relay full of made-up sellers leaves room for what the others bring.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from nostrvpn.errors import UserError, one_line
from nostrvpn.identity.keys import BadKey, parse_npub
from nostrvpn.market.foreign import ForeignOffer
from nostrvpn.market.offer import Offer

__all__ = ["MAX_OFFERS", "MAX_PER_RELAY", "MAX_PER_SELLER", "AnyOffer", "Book", "Shelved"]

AnyOffer = Offer | ForeignOffer

MAX_OFFERS: Final = 600
MAX_PER_RELAY: Final = 200
MAX_PER_SELLER: Final = 4
# When each seller was first seen: kept while its offers come and go.
_MAX_SEEN: Final = 4000
_DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Shelved:
    """An offer, and the relays that brought it."""

    offer: AnyOffer
    relays: frozenset[str]


@dataclass(slots=True)
class Book:
    """``salt``: 16 bytes or more that nobody else knows. ``first_seen``: by seller, Unix time."""

    salt: bytes = field(repr=False)
    first_seen: dict[str, int] = field(default_factory=dict)
    counters: Counter[str] = field(default_factory=Counter)
    _shelf: dict[str, Shelved] = field(default_factory=dict)

    def add(
        self, brought: Iterable[tuple[AnyOffer, Collection[str]]], known: Collection[str], now: int
    ) -> None:
        """Take offers with the relays that brought each; ``known``: sellers that are no strangers."""
        for offer, relays in brought:
            if isinstance(offer, ForeignOffer) and offer.mirror_of:
                continue  # the offer itself comes too
            before = self._shelf.get(offer.address)
            if before is not None and before.offer.created_at > offer.created_at:
                continue
            same = before is not None and before.offer.created_at == offer.created_at
            also = before.relays if before is not None and same else frozenset()
            self._shelf[offer.address] = Shelved(offer, also | frozenset(relays))
            self.first_seen.setdefault(offer.seller, now)
        self._prune(known, now)

    def keep_only(self, present: Collection[str], complete: Collection[str]) -> None:
        """Forget offers that were taken back: none of their relays has them any more.

        ``present``: addresses that were found just now; ``complete``: relays that said all they have.
        """
        for address, one in list(self._shelf.items()):
            if address not in present and one.relays <= frozenset(complete):
                del self._shelf[address]
                self.counters["taken_back"] += 1

    def oldest(self, most: int) -> tuple[str, ...]:
        """Return the sellers that were seen first."""
        return tuple(sorted(self.first_seen, key=lambda key: self.first_seen[key])[:most])

    def offers(self, now: int) -> tuple[Shelved, ...]:
        """Return the offers that have not expired."""
        return tuple(one for one in self._shelf.values() if one.offer.expires_at > now)

    def find(self, ref: str, now: int) -> AnyOffer:
        """Return the one offer that a reference means; UserError if none or several.

        A reference is an address (``31900:SELLER:ID``), or a seller (npub, or the first 8 hex digits or
        more of its key), with ``/ID`` behind it where it has several offers.
        """
        text = ref.strip()
        there = [one.offer for one in self.offers(now)]
        found = [offer for offer in there if offer.address == text]
        if not found:
            seller, _, offer_id = text.partition("/")
            key = _key(seller)
            found = [
                offer
                for offer in there
                if key and offer.seller.startswith(key) and offer_id in ("", offer.offer_id)
            ]
        if len(found) == 1:
            return found[0]
        what = "no offer is" if not found else f"{len(found)} offers are"
        raise UserError(f"{what} called {one_line(text)!r}", "see: nostrvpn market list")

    def _prune(self, known: Collection[str], now: int) -> None:
        strangers: Counter[str] = Counter()  # by relay
        sellers: Counter[str] = Counter()
        kept: dict[str, Shelved] = {}
        ordered = sorted(self._shelf.items(), key=lambda item: self._place(item[1], known, now))
        for address, one in ordered:
            seller = one.offer.seller
            if one.offer.expires_at <= now:
                self.counters["expired"] += 1
                continue
            # Who is brought by several relays is charged to the emptiest of them.
            relay = min(one.relays, key=lambda url: (strangers[url], url), default="")
            is_full = seller not in known and strangers[relay] >= MAX_PER_RELAY
            if len(kept) >= MAX_OFFERS or sellers[seller] >= MAX_PER_SELLER or is_full:
                self.counters["no_room"] += 1
                continue
            kept[address] = one
            sellers[seller] += 1
            strangers[relay] += seller not in known
        self._shelf = kept
        self._forget(known)

    def _place(self, one: Shelved, known: Collection[str], now: int) -> tuple[int, int, bytes, int]:
        seller = one.offer.seller
        days = max(0, now - self.first_seen.get(seller, now)) // _DAY_S
        is_stranger = seller not in known
        return is_stranger, -days, self._draw(seller), -one.offer.created_at

    def _draw(self, seller: str) -> bytes:
        return hashlib.sha256(self.salt + seller.encode()).digest()

    def _forget(self, known: Collection[str]) -> None:
        if len(self.first_seen) <= _MAX_SEEN:
            return
        here = {one.offer.seller for one in self._shelf.values()} | set(known)
        rank = sorted(self.first_seen, key=lambda key: (key not in here, self.first_seen[key]))
        self.first_seen = {key: self.first_seen[key] for key in rank[:_MAX_SEEN]}


def _key(text: str) -> str:
    """Return the beginning of a key that a reference means, or nothing."""
    if text.startswith("npub1"):
        try:
            return parse_npub(text)
        except BadKey:
            return ""
    is_hex = len(text) >= 8 and all(char in "0123456789abcdef" for char in text)
    return text if is_hex else ""
