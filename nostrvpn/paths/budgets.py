"""Limits per address: how often we answer, how often we probe the unproven; and the latter per link."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

__all__ = ["ANSWERS_PER_SECOND", "PROBES_PER_MINUTE", "Budget", "LinkProbes"]

# An honest peer sends at most one burst of checks and then 20 a second (a check each 50 ms).
ANSWERS_PER_SECOND = 20
# A round sends at most ten probes to one endpoint; an address with three ports may be tried twice
# in a minute. More would make us a tool against whoever owns the address a peer named.
PROBES_PER_MINUTE = 60
# Of one link, to whatever addresses its peer names: two rounds at 32 endpoints with ten probes each,
# and 240 a minute. Else a peer that names others all the time would have us search through networks.
LINK_PROBES = 640
LINK_PROBES_PER_SECOND = 4
# Addresses remembered; far above what a mesh of a hundred nodes tries in a minute. When full, the
# least recently used is forgotten: it has been silent longest.
MAX_KEYS = 1024


class Budget:
    """A token bucket per key: ``rate`` a second with at most ``burst`` saved up."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def spend(self, key: Hashable, now: float) -> bool:
        """Take one token of ``key`` if it has one, and say so."""
        level, at = self._buckets.pop(key, (float(self._burst), now))
        level = min(self._burst, level + max(0.0, now - at) * self._rate)
        spent = level >= 1
        self._buckets[key] = (level - 1 if spent else level, now)
        if len(self._buckets) > MAX_KEYS:
            self._buckets.popitem(last=False)
        return spent


class LinkProbes(Budget):
    """What one link may probe: of ``shared``, which counts per address, and not too much in all."""

    def __init__(self, shared: Budget) -> None:
        super().__init__(LINK_PROBES_PER_SECOND, LINK_PROBES)
        self._shared = shared

    def spend(self, key: Hashable, now: float) -> bool:
        """Take one token of the link and one of ``key``, if there are both."""
        return super().spend("", now) and self._shared.spend(key, now)
