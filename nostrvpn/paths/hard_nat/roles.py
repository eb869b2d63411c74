"""Which part a side takes in the search, and how often a node searches at all."""

from __future__ import annotations

from collections import OrderedDict, deque
from enum import Enum

from nostrvpn.paths.snapshot import Mapping

__all__ = ["PEER_GAP", "PER_PEER", "SEARCHES_PER_HOUR", "Role", "SearchBudget", "role_of"]

# Seconds between two searches with one peer; the guesses' mappings are gone from all tables by then.
PEER_GAP = 600.0
# How much earlier the peer's plan may come: its clock and its part began at other moments than ours.
ASKED_EARLIER = 60.0
# Searches an hour of one node with all peers: at 1,400 packets each the most is 8,400 small packets.
SEARCHES_PER_HOUR = 6
# So that a few peers that lie do not use them up: two with one peer, the second while two are left for
# others; more while nobody else waits for one. As each ends ten minutes after the last at the
# earliest, who comes later waits for no longer than that.
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
        self._unspent: OrderedDict[str, float] = OrderedDict()
        self._waiting: OrderedDict[str, float] = OrderedDict()

    def start(self, peer: str, now: float, *, asked: bool = False) -> bool:
        """Take the place of the running search for ``peer`` if it is free, and say so.

        ``asked``: the peer's plan came.
        """
        gap = PEER_GAP - ASKED_EARLIER if asked else PEER_GAP
        recent = self._last.get(peer)
        waited = asked and peer in self._unspent
        if recent is not None and now - recent < gap and not waited:
            return False
        if self._running is not None or not self._has_room(peer, now):
            _note(self._waiting, peer, now)
            return False
        for times in (self._waiting, self._unspent):
            times.pop(peer, None)
        self._running = peer
        self._started.append((now, peer))
        _note(self._last, peer, now)
        return True

    def free_at(self, peer: str) -> float | None:
        """Return when it is worth asking again for ``peer``, if something is known of that."""
        recent = self._last.get(peer)
        known = [] if recent is None else [recent + PEER_GAP]
        if len(self._started) == SEARCHES_PER_HOUR:
            known.append(self._started[0][0] + HOUR)
        return max(known, default=None)

    def end(self, peer: str, *, spent: bool = True) -> None:
        """The search with ``peer`` is over.

        No packet was ``spent`` if only a plan was waited for: then one may follow when it comes.
        """
        if self._running != peer:
            return
        self._running = None
        if not spent:
            at, _ = self._started.pop()
            _note(self._unspent, peer, at)

    def _has_room(self, peer: str, now: float) -> bool:
        lately = [whose for at, whose in self._started if now - at < HOUR]
        had = lately.count(peer)
        if had < PER_PEER:
            return len(lately) < SEARCHES_PER_HOUR - (KEPT_FOR_OTHERS if had else 0)
        others = any(now - at < HOUR for whose, at in self._waiting.items() if whose != peer)
        return len(lately) < SEARCHES_PER_HOUR and not others


def _note(times: OrderedDict[str, float], peer: str, now: float) -> None:
    times[peer] = now
    times.move_to_end(peer)
    if len(times) > MAX_PEERS:
        times.popitem(last=False)
