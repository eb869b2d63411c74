"""How a NAT chooses the ports of new mappings, worked out from samples.

A NAT with endpoint-dependent mapping (RFC 4787 section 4.1) takes a new port for each new flow. Many
count: the next flow gets the last port plus a small step, and other hosts behind the same NAT use up
steps in between. The others draw the port, from all of them or from a block that a carrier's NAT
set aside for one customer (RFC 7753).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd

__all__ = ["MIN_SAMPLES", "PORTS", "PortSteps", "likely_range", "port_distance", "steps_of"]

# A rule needs three ports: two distances that are alike by chance are one case in some 100,000.
MIN_SAMPLES = 3
# The largest distance of two samples taken in a burst that still looks like counting: 2 steps of 16,
# or 32 of other hosts' flows in between.
MAX_DISTANCE = 32
# What NATs draw from (RFC 4787 section 4.2: REQ-3a keeps off the well-known ports).
PORTS = range(1024, 65536)


@dataclass(frozen=True, slots=True)
class PortSteps:
    """A NAT that counts: the port after ``last`` is ``last + step``.

    ``sure`` is the share of the distances seen that were exactly one step: 1.0 when no other
    host's traffic came between.
    """

    last: int
    step: int
    sure: float


def port_distance(first: int, second: int) -> int:
    """Return how far ``second`` is after ``first``, counted the short way round 65536."""
    return (second - first + 32768) % 65536 - 32768


def steps_of(ports: Sequence[int]) -> PortSteps | None:
    """Return how ports follow one another, given in the order of their flows; None: by no rule."""
    if len(ports) < MIN_SAMPLES:
        return None
    distances = [port_distance(a, b) for a, b in pairwise(ports)]
    upwards = distances[0] > 0
    if any(not 0 < abs(d) <= MAX_DISTANCE or (d > 0) != upwards for d in distances):
        return None
    step = gcd(*distances) * (1 if upwards else -1)
    return PortSteps(ports[-1], step, distances.count(step) / len(distances))


def likely_range(ports: Sequence[int]) -> range:
    """Return where the ports of a NAT that draws them are, from samples: a block, or all of them.

    The widest of n uniform draws are on average (n-1)/(n+1) of the whole apart; half of the spread
    is added on both sides, because a block that is missed costs more than one that is too wide.
    """
    low, high = min(ports), max(ports)
    margin = max((high - low) // 2, 64)
    if len(ports) < MIN_SAMPLES or high - low + 2 * margin > len(PORTS) // 2:
        return PORTS
    return range(max(PORTS.start, low - margin), min(PORTS.stop, high + margin + 1))
