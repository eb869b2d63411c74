"""What a buyer wants, and what its machine is told beside what both sides of a lease share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import msgspec

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.market.ceilings import Ceilings
from nostrvpn.market.effects import MarketEvent
from nostrvpn.market.offer import Offer
from nostrvpn.market.terms import PayMode

__all__ = ["AUTO", "BuyerEvent", "Candidate", "Disputed", "Funds", "Ranked", "Wanted", "Wish"]

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Wish:
    """An exit that the user wants until he says otherwise.

    ``choice``: "auto" for the best, or an offer's ``ref`` or ``address`` for that one only; ``country``:
    ISO 3166-1 or empty; ``versions``: of IP, all needed; ``mints``: money of these only, empty for any
    that the wallet has; ``modes``: ways to pay that are agreeable, the best first;
    ``max_rtt_ms``: a tunnel slower than this three times in a row is left, 0 for any; ``as_me``: sellers
    are told who we are; ``arbiters``: whom money may be in escrow with (64 hex), the best first.
    """

    choice: str = AUTO
    ceilings: Ceilings = field(default_factory=Ceilings)
    country: str = ""
    versions: tuple[int, ...] = (4,)
    mints: tuple[str, ...] = ()
    modes: tuple[PayMode, ...] = (PayMode.LOCKED, PayMode.PLAIN)
    max_rtt_ms: int = 0
    as_me: bool = False
    arbiters: tuple[str, ...] = ()

    def refuse(self, offer: Offer) -> str | None:
        """Return why an offer is not what is wanted, None if it is."""
        if self.choice not in (AUTO, offer.ref, offer.address):
            return "another offer is wanted"
        if self.country and offer.country != self.country:
            return f"it is in {offer.country or 'no stated country'}"
        if not set(self.versions) <= set(offer.versions):
            return "it lacks an IP version"
        if not set(self.modes) & set(offer.terms.pay):
            return "no common way to pay"
        by_escrow = set(self.modes) == {PayMode.ESCROW}
        if by_escrow and not set(self.arbiters) & set(offer.escrow):
            return "no common arbiter"
        by_invoice = any(m.by_invoice for m in self.modes if m in offer.terms.pay)
        if self.mints and not (by_invoice or set(self.mints) & set(offer.terms.mints)):
            return "no common mint"
        return self.ceilings.refuse_price(offer.terms.price)

    def to_json(self) -> dict[str, object]:
        """Return what is stored."""
        return {**asdict(self), "modes": [mode.value for mode in self.modes]}

    @classmethod
    def from_json(cls, stored: object) -> Wish:
        """Rebuild from :meth:`to_json`; PeerMisbehaved if the record is damaged."""
        try:
            return msgspec.convert(stored, cls)
        except msgspec.ValidationError as exc:
            raise PeerMisbehaved("bad_record", f"not a wish: {exc}") from exc


@dataclass(frozen=True, slots=True)
class Candidate:
    """An offer and how far its seller is trusted, 0 … 1 (``trust.py``)."""

    offer: Offer
    score: float


# What the machine is told


@dataclass(frozen=True, slots=True)
class Wanted:
    """The user wants this, or with None nothing more; money that is out comes home in any case."""

    wish: Wish | None


@dataclass(frozen=True, slots=True)
class Ranked:
    """All offers that are known and not denied; the machine picks those that the wish allows."""

    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Funds:
    """What the wallet can spend, in sat by the URL of the mint; without those that do not answer."""

    sat: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Disputed:
    """The user wants the arbiter of a lease (by its key) to decide, and tells him why."""

    key: str
    text: str


BuyerEvent = MarketEvent | Wanted | Ranked | Funds | Disputed
