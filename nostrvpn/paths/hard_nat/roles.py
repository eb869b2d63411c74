"""Which part a side takes in the search, and how often a node searches at all."""

from __future__ import annotations

from collections import OrderedDict, deque
from enum import Enum

from nostrvpn.paths.snapshot import Mapping

__all__ = ["PEER_GAP", "PER_PEER", "SEARCHES_PER_HOUR", "Role", "SearchBudget", "role_of"]

# Seconds between two searches with one peer; the guesses' mappings are gone from all tables by then.
PEER_GAP = 600.0
# Searches an hour of one node with all peers: at 1,400 packets each the most is 8,400 small packets.
SEARCHES_PER_HOUR = 6
# So that a few peers that lie do not use them up: two with one peer, the second while two are left for
# others. All six are gone only if four peers want them.
PER_PEER = 2
KEPT_FOR_OTHERS = 2
HOUR = 3600.0
MAX_PEERS = 1024


class Role(Enum):
    """OPEN: hard, and the peer is easy. FOLLOW: the peer of that. FORECAST, ANSWER: both count."""

    OPEN = "open"
    FOLLOW = "follow"
    FORECAST = "forecast"
    ANSWER = "answer"


def role_of(own: Mapping, peer: Mapping, *, controlling: bool) -> Role | str:
    """Return our part, or why there is nothing to search, in words."""
    if not own.is_dependent and not peer.is_dependent:
        return "neither NAT is hard: the ordinary checks are all there is"
    if not peer.is_dependent:
        return Role.OPEN
    if not own.is_dependent:
        return Role.FOLLOW
    if Mapping.RANDOM in (own, peer):
        return "both NATs are hard and one draws its ports: it would take some 100,000 packets"
    return Role.ANSWER if controlling else Role.FORECAST


class SearchBudget:
    """One search at a time a node, few an hour, rarely the same peer: NAT boxes' tables are small."""

    def __init__(self) -> None:
        self._running: str | None = None
        self._started: deque[tuple[float, str]] = deque(maxlen=SEARCHES_PER_HOUR)
        self._last: OrderedDict[str, float] = OrderedDict()

    def start(self, peer: str, now: float, *, asked: bool = False) -> bool:
        """Take the place of the running search for ``peer`` if it is free, and say so.

        ``asked``: the peer's plan came. The two sides' clocks count the gap a little differently.
        """
        gap = PEER_GAP / 2 if asked else PEER_GAP
        recent = self._last.get(peer)
        if self._running is not None or (recent is not None and now - recent < gap):
            return False
        lately = [whose for at, whose in self._started if now - at < HOUR]
        had = lately.count(peer)
        room = SEARCHES_PER_HOUR - (KEPT_FOR_OTHERS if had else 0)
        if had >= PER_PEER or len(lately) >= room:
            return False
        self._running = peer
        self._started.append((now, peer))
        self._last.pop(peer, None)
        self._last[peer] = now
        if len(self._last) > MAX_PEERS:
            self._last.popitem(last=False)
        return True

    def end(self, peer: str) -> None:
        """The search with ``peer`` is over; another one may start."""
        if self._running == peer:
            self._running = None
