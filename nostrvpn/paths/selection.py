"""The pair in use: WireGuard's endpoint, its nomination, its heartbeat, and the proof of data."""

from __future__ import annotations

from enum import Enum

from nostrvpn.endpoint import Endpoint
from nostrvpn.machine import earliest
from nostrvpn.paths.checks import Pair
from nostrvpn.paths.events import TunnelObserved, UseEndpoint
from nostrvpn.paths.heartbeat import Heartbeat, Pulse
from nostrvpn.paths.proof import TunnelProof

__all__ = ["Due", "Selection"]

# How long a working pair waits for a better one before it is nominated.
NOMINATION_GRACE = 0.3
# Gaps between nominating checks until one is answered; after that every heartbeat nominates.
NOMINATION_RETRY = (0.1, 0.2, 0.4, 0.8, 1.6)
# WireGuard roamed off the chosen endpoint (a late packet of the old path is enough): set it again,
# this often at most, and this many times a selection, lest two sides fight for ever.
REASSERT_GAP = 2.0
MAX_REASSERTS = 3
# A doubted pair that answered a check within this time needs no check of its own.
RECENT = 1.0


class Due(Enum):
    """What the selected pair asks for."""

    NOTHING = "nothing"
    CHECK = "check"
    LOST = "lost"


class Selection:
    """At most one pair. The generation grows with each time WireGuard's endpoint must be set."""

    def __init__(self, peer: str, *, controlling: bool) -> None:
        self._peer = peer
        self._controlling = controlling
        self._heartbeat = Heartbeat(controlling=controlling)
        self._proof = TunnelProof()
        self._generation = 0
        self._nominate_at: float | None = None
        self._nominations = 0
        self._reasserts = 0
        self._asserted_at = 0.0
        self.pair: Pair | None = None

    @property
    def endpoint(self) -> Endpoint | None:
        """The selected endpoint of the peer."""
        return None if self.pair is None else self.pair.endpoint

    @property
    def deadline(self) -> float | None:
        """When ``tick`` is due next."""
        return earliest(self._heartbeat.deadline, self._nominate_at)

    @property
    def proven(self) -> bool:
        """Whether WireGuard's packets crossed since the path was chosen."""
        return self.pair is not None and self._proof.proven

    def use(self, pair: Pair, now: float, *, keep_proof: bool, wait: bool) -> UseEndpoint:
        """Choose ``pair``; ``wait``: a better one may come, so nominate a little later."""
        self.pair = pair
        if not keep_proof:
            self._proof.reset(now)
        self._heartbeat.start(now)
        self._reasserts = 0
        self._nominations = 0
        if self._controlling:
            self._nominate_at = now + (NOMINATION_GRACE if wait else 0.0)
        return self._set_endpoint(pair.endpoint, now)

    def drop(self) -> None:
        """The path is lost; WireGuard keeps its endpoint until another one is proven."""
        self.pair, self._nominate_at = None, None
        self._heartbeat.stop()

    def wants(self, pair: Pair, now: float) -> bool:
        """Say whether ``pair``, which just answered, should replace the one in use."""
        if self.pair is None:
            return True
        if pair is self.pair:
            self._heartbeat.answered(now)
            return False
        if pair.rank > self.pair.rank and self._controlling:
            return True
        if pair.nominated and not self._controlling:
            return True
        recent = self.pair.succeeded_at is not None and now - self.pair.succeeded_at < RECENT
        if not recent:
            # The peer may have moved there: see whether the old path still answers.
            self._heartbeat.probe(now)
        return False

    def nominated(self) -> None:
        """A nominating check was answered."""
        self._nominate_at = None

    def heard(self, endpoint: Endpoint, now: float) -> None:
        """An authentic check of the peer came from ``endpoint``."""
        if self.endpoint == endpoint:
            self._heartbeat.heard(now)

    def probe(self, now: float) -> None:
        """Doubt the path: check it at once."""
        self._heartbeat.probe(now)

    def tick(self, now: float) -> Due:
        """Say what is due: send a check on the selected pair, or count it as lost."""
        self._heartbeat.set_active(self._proof.is_active(now), now)
        pulse = self._heartbeat.pulse(now)
        if pulse is Pulse.LOST:
            return Due.LOST
        if self._nominate_at is not None and self._nominate_at <= now:
            step = self._nominations
            self._nominations += 1
            retry = NOMINATION_RETRY[step] if step < len(NOMINATION_RETRY) else None
            self._nominate_at = None if retry is None else now + retry
            return Due.CHECK
        return Due.CHECK if pulse is Pulse.CHECK else Due.NOTHING

    def observe(self, event: TunnelObserved, now: float) -> list[UseEndpoint]:
        """Take WireGuard's counters; set the endpoint again if WireGuard roamed off it."""
        self._proof.observe(now, event.last_handshake_age, event.rx_bytes, event.tx_bytes)
        self._heartbeat.set_active(self._proof.is_active(now), now)
        if self.pair is None or event.endpoint in (None, self.pair.endpoint):
            return []
        if self._reasserts >= MAX_REASSERTS or now - self._asserted_at < REASSERT_GAP:
            return []
        if self._heartbeat.doubtful:
            return []
        self._reasserts += 1
        return [self._set_endpoint(self.pair.endpoint, now)]

    def _set_endpoint(self, endpoint: Endpoint, now: float) -> UseEndpoint:
        self._generation += 1
        self._asserted_at = now
        return UseEndpoint(self._peer, endpoint, self._generation)
