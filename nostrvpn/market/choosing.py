"""Which sellers a buyer asks: the best that the wish, the wallet and the ceilings allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

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
# The same where it only said no: its offer may be there again in a moment.
TURNED_AWAY_S = 10


class Choice:
    """The offers that are known, and the sellers that failed a moment ago."""

    def __init__(self) -> None:
        self.candidates: tuple[Candidate, ...] = ()
        self._rest: dict[str, tuple[float, int]] = {}

    def failed(self, seller: str, was_paid: bool, now: float) -> None:
        """Leave a seller alone for a while."""
        _, times = self._rest.get(seller, (0.0, 0))
        longest = LONG_REST_S if was_paid else SHORT_REST_S
        self._rest[seller] = (now + min(REST_S * 4 ** min(times, 9), longest), times + 1)

    def turned_away(self, seller: str, now: float) -> None:
        """It wants no more of us just now: ask others first."""
        until, times = self._rest.get(seller, (0.0, 0))
        self._rest[seller] = max(until, now + TURNED_AWAY_S), times

    def served(self, seller: str) -> None:
        """It did what it was paid for: what was before is forgotten."""
        self._rest.pop(seller, None)

    def forgive(self, name: str) -> None:
        """Somebody wants this very offer (``ref`` or ``address``), whatever its seller did before."""
        for one in self.candidates:
            if name in (one.offer.ref, one.offer.address):
                self._rest.pop(one.offer.seller, None)

    def score(self, ref: str) -> float:
        """Return how far the seller of an offer is trusted, 0 if the offer is gone."""
        return next((c.score for c in self.candidates if c.offer.ref == ref), 0.0)

    def best(
        self, pocket: Pocket, in_use: Collection[str], moment: Moment
    ) -> tuple[list[Candidate], str]:
        """Return whom to ask, the best first, and if nobody is left, why (of most offers)."""
        found: list[Candidate] = []
        reasons: Counter[str] = Counter()
        if pocket.wish is None:
            return [], "nothing is wanted"
        for candidate in sorted(self.candidates, key=lambda c: (-c.score, c.offer.ref)):
            why = self._refuse(candidate, pocket, pocket.wish, moment)
            if why is None and candidate.offer.seller in in_use:
                why = "it is in use"
            if why is not None:
                reasons[why] += 1
            elif len(found) < QUOTES:
                found.append(candidate)
        return found, max(reasons, key=lambda why: reasons[why], default="no offer is known")

    def _refuse(
        self, candidate: Candidate, pocket: Pocket, wish: Wish, moment: Moment
    ) -> str | None:
        offer = candidate.offer
        why = wish.refuse(offer)
        if why is not None:
            return why
        if offer.expires_at <= moment.wall:
            return "the offer is over"
        if self._rest.get(offer.seller, (0.0, 0))[0] > moment.now:
            return "the seller failed a moment ago"
        way = way_to_pay(offer, wish, pocket.sat)
        if way is None:
            return "the wallet has nothing at its mints"
        least = least_sat(offer, way[0])
        if least > min(offer.terms.max_slice_sat, wish.ceilings.slice_sat):
            return "its least invoice is more than a slice may be"
        if pocket.allowed(way[1], moment) < least + fee_room(least):
            return pocket.why_short(way[1], moment)
        return None
