"""How many requests are looked at, and how many refusals anybody can ask for."""

from __future__ import annotations

from nostrvpn.paths.budgets import Budget

__all__ = ["Limits"]

# A member of a mesh of 30 that meets all at once allocates 29 times and binds 58 times, with a
# challenge each; and a NAT's clients share an address.
REQUESTS_PER_SECOND = 40
REQUESTS_BURST = 240
# A request costs 0.2 ms of Python: this leaves most of a core to everything else.
ALL_REQUESTS_PER_SECOND = 1000
# Refusals without integrity, which anybody can ask for, from whatever address he forges.
BARE_REFUSALS_PER_SECOND = 100


class Limits:
    """Token buckets: per origin (an address, or an IPv6 /64), in total, and of bare refusals."""

    def __init__(self) -> None:
        self._per_origin = Budget(REQUESTS_PER_SECOND, REQUESTS_BURST)
        self._in_total = Budget(ALL_REQUESTS_PER_SECOND, ALL_REQUESTS_PER_SECOND)
        self._bare = Budget(BARE_REFUSALS_PER_SECOND, BARE_REFUSALS_PER_SECOND)

    def refuse_request(self, origin: str, now: float) -> str | None:
        """Return why a request of ``origin`` is not to be looked at, None if it is."""
        if not self._per_origin.spend(origin, now):
            return "limited_source"
        return None if self._in_total.spend("", now) else "limited_total"

    def may_refuse(self, now: float) -> bool:
        """Say whether somebody we do not know may have an answer."""
        return self._bare.spend("", now)
