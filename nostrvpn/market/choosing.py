"""Which sellers a buyer asks: the best that the wish, the wallet and the ceilings allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace

from nostrvpn.machine import Moment
from nostrvpn.market.deal import least_sat, way_to_pay
from nostrvpn.market.paying import Pocket, fee_room
from nostrvpn.market.wish import Candidate, Wish

__all__ = ["QUOTES", "TURNED_AWAY", "Choice"]

TURNED_AWAY = ("it refuses", "it ended the lease")
"""How the words begin for a seller that wants to go on no more: no offence, but it is left alone."""

# How many sellers are asked at a time.
QUOTES = 3
# How long a seller that failed is left alone (seconds): four times longer each time, up to the first
# limit if it cost nothing, to the second if it was paid.
REST_S, SHORT_REST_S, LONG_REST_S = 60, 600, 6 * 3600
# Where nobody else could be asked, it is left alone so long first, then as above; not so if it was paid
# and did not serve.
ALONE_S = (5, 15)
# The same where it only said no: its offer may be there again in a moment.
TURNED_AWAY_S = 10
# How soon it is looked again, if nothing can be bought or the one in use should be left (seconds).
LOOK_S = 30

_RESTS = "the seller failed a moment ago"


@dataclass(frozen=True, slots=True)
class _Rest:
    """How long a seller is left alone, and if nobody else can be asked; ``times`` that it failed."""

    until: float = 0.0
    alone_until: float = 0.0
    times: int = 0
    kept_money: bool = False


class Choice:
    """The offers that are known, and the sellers that failed a moment ago."""

    def __init__(self) -> None:
        self.candidates: tuple[Candidate, ...] = ()
        self._rest: dict[str, _Rest] = {}

    def failed(self, seller: str, paid_msat: int, served_msat: int, now: float) -> None:
        """Leave a seller alone for a while: it was paid so much, and what it served costs so much."""
        before = self._rest.get(seller, _Rest())
        times, longest = before.times, LONG_REST_S if paid_msat else SHORT_REST_S
        rest = alone = min(REST_S * 4 ** min(times, 9), longest)
        # Half of it: the last slice of a good lease is hardly used when it breaks off.
        kept_money = before.kept_money or 2 * served_msat < paid_msat
        if not kept_money:
            later = times - len(ALONE_S)
            alone = ALONE_S[times] if later < 0 else min(REST_S * 4 ** min(later, 9), longest)
        self._rest[seller] = _Rest(now + rest, now + alone, times + 1, kept_money)

    def turned_away(self, seller: str, now: float) -> None:
        """It wants no more of us just now: ask others first."""
        before, soon = self._rest.get(seller, _Rest()), now + TURNED_AWAY_S
        until, alone = max(before.until, soon), max(before.alone_until, soon)
        self._rest[seller] = replace(before, until=until, alone_until=alone)

    def served(self, seller: str) -> None:
        """It did what it was paid for: what was before is forgotten."""
        self._rest.pop(seller, None)

    def forgive(self, name: str) -> None:
        """Somebody wants this very offer (``ref`` or ``address``), whatever its seller did before."""
        for one in self.candidates:
            if name in (one.offer.ref, one.offer.address):
                self._rest.pop(one.offer.seller, None)

    def look_at(self, now: float) -> float:
        """Return when to look again, if nothing comes of what is asked now."""
        soon = (rest.alone_until for rest in self._rest.values() if rest.alone_until < rest.until)
        return min((at for at in soon if now < at < now + LOOK_S), default=now + LOOK_S)

    def score(self, ref: str) -> float:
        """Return how far the seller of an offer is trusted, 0 if the offer is gone."""
        return next((c.score for c in self.candidates if c.offer.ref == ref), 0.0)

    def best(
        self, pocket: Pocket, in_use: Collection[str], moment: Moment
    ) -> tuple[list[Candidate], str]:
        """Return whom to ask, the best first, and if nobody is left, why (of most offers)."""
        found: list[Candidate] = []
        alone: list[Candidate] = []
        reasons: Counter[str] = Counter()
        if pocket.wish is None:
            return [], "nothing is wanted"
        for candidate in sorted(self.candidates, key=lambda c: (-c.score, c.offer.ref)):
            why = self._refuse(candidate, pocket, pocket.wish, moment)
            if why is None and candidate.offer.seller in in_use:
                why = "it is in use"
            if why is not None:
                reasons[why] += 1
            else:
                found.append(candidate)
            if why == _RESTS and self._rest[candidate.offer.seller].alone_until <= moment.now:
                alone.append(candidate)
        if not found and not in_use:
            found = alone
        most = max(reasons, key=lambda why: reasons[why], default="no offer is known")
        return found[:QUOTES], most

    def _refuse(
        self, candidate: Candidate, pocket: Pocket, wish: Wish, moment: Moment
    ) -> str | None:
        offer = candidate.offer
        why = wish.refuse(offer)
        if why is not None:
            return why
        if offer.expires_at <= moment.wall:
            return "the offer is over"
        way = way_to_pay(offer, wish, pocket.sat)
        if way is None:
            return "the wallet has nothing at its mints"
        least = least_sat(offer, way[0])
        if least > min(offer.terms.max_slice_sat, wish.ceilings.slice_sat):
            return "its least invoice is more than a slice may be"
        if pocket.allowed(way[1], moment) < least + fee_room(least):
            return pocket.why_short(way[1], moment)
        return _RESTS if self._rest.get(offer.seller, _Rest()).until > moment.now else None
