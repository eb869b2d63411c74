"""The pair in use: WireGuard's endpoint, its nomination, its heartbeat, and the proof of data."""

from __future__ import annotations

from enum import Enum

from nostrvpn.endpoint import Endpoint
from nostrvpn.machine import earliest
from nostrvpn.paths.candidates import PathKind
from nostrvpn.paths.events import PathEffect, TunnelObserved, UseEndpoint
from nostrvpn.paths.guards import PathGuard, passes_on
from nostrvpn.paths.heartbeat import DIRECT, RELAYED, Heartbeat, Pulse
from nostrvpn.paths.nomination import Nominated, Nominations
from nostrvpn.paths.pair import Pair
from nostrvpn.paths.proof import TunnelProof
from nostrvpn.stun.binding import StunMessage

__all__ = ["Due", "Selection"]

# WireGuard roamed off the chosen endpoint (a late packet of the old path is enough): set it again,
# so long after it was set or left at least, and so often a selection, lest two sides fight for ever.
REASSERT_GAPS = (0.4, 2.0, 2.0)
# Before that the pair has to answer, as the peer may have moved; an answer counts for so long.
ROAM_KNOWN = 3.0
# A doubted pair that answered a check within this time needs no check of its own.
RECENT = 1.0
# A relay is left for a nearer one if that saves this much of the round trip, both shares of it and
# seconds, and not sooner after the last time.
NEARER_SHARE = 0.1
NEARER_BY = 0.01
NEARER_GAP = 600.0


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
        self._guard = PathGuard(peer)
        self._told: Endpoint | None = None
        self._hushed: Endpoint | None = None
        self._generation = 0
        self._nominations = Nominations()
        self._nominated = Nominated()
        self._reasserts = 0
        self._asserted_at = 0.0
        self._moved_nearer_at = float("-inf")
        self._roamed_to: Endpoint | None = None
        self._roamed_at = float("-inf")
        self.pair: Pair | None = None
        self.shown = PathKind.NONE

    @property
    def endpoint(self) -> Endpoint | None:
        """The selected endpoint of the peer."""
        return None if self.pair is None else self.pair.endpoint

    @property
    def deadline(self) -> float | None:
        """When ``tick`` is due next."""
        return earliest(self._heartbeat.deadline, self._nominations.deadline, self._guard.deadline)

    @property
    def kind(self) -> PathKind:
        """What the selected pair is."""
        if self.pair is None:
            return PathKind.NONE
        return PathKind.RELAYED if self.pair.is_relayed else PathKind.DIRECT

    @property
    def active(self) -> bool:
        """Whether the tunnel is in use."""
        return self._heartbeat.active

    def swallows(self, now: float) -> bool:
        """Say whether the path answers checks, and the tunnel over it seems to swallow packets."""
        return self.pair is not None and not self.doubtful and self._proof.swallows(now)

    def unused_for(self, now: float) -> float:
        """Return for how long the tunnel carried nothing but keepalives, in seconds."""
        return self._proof.unused_for(now)

    def still_for(self, now: float) -> float:
        """Return for how long not even a little was seen to cross the tunnel, in seconds."""
        return self._proof.still_for(now)

    @property
    def doubtful(self) -> bool:
        """Whether the selected pair left a check unanswered."""
        return self._heartbeat.doubtful

    @property
    def withdrawn(self) -> bool:
        """Whether the peer does not name the selected pair any more."""
        return self.pair is not None and self.pair.withdrawn

    @property
    def crossed(self) -> bool:
        """Whether WireGuard's packets came in since the endpoint was set."""
        return self.pair is not None and self._proof.crossed

    @property
    def proven(self) -> bool:
        """Whether WireGuard's packets crossed since the path was chosen."""
        return self.pair is not None and self._proof.proven

    def use(self, pair: Pair, now: float, *, keep_proof: bool, wait: bool) -> list[PathEffect]:
        """Choose ``pair``; ``wait``: a better one may come, so nominate a little later."""
        self.pair = pair
        effects: list[PathEffect] = []
        # Where a guard can only drop, it has to wait until the peer uses the pair too: ``observe``.
        if self._told is not None and passes_on(self._told, pair.endpoint):
            effects += self._guard.change(self._told, pair.endpoint, now)
        if not keep_proof:
            self._proof.reset(now)
        self._proof.watch(now)
        self._heartbeat.start(now, RELAYED if pair.is_relayed else DIRECT)
        self._reasserts = 0
        self._roamed_to = self._hushed = None
        if self._controlling:
            self._nominations.choose(now, wait=wait)
        return [*effects, self._set_endpoint(pair.endpoint, now)]

    def release(self, now: float) -> list[PathEffect]:
        """Nobody uses the tunnel: WireGuard is to forget the endpoint."""
        self.drop()
        self._proof.rest()
        self._heartbeat.set_active(active=False, now=now)
        effects = self._guard.lift()
        self._hushed = None
        return [*effects, self._set_endpoint(None, now)]

    def hush(self, now: float) -> list[PathEffect]:
        """Both sides tried and nothing answered: keep WireGuard from sending to the lost path.

        What it sends there keeps alive what stands in the way: a Linux NAT that accepts input has
        an entry of its own for packets that came unasked, and meanwhile gives its host's flow to
        their sender another port. The entry is forgotten after 30 s without packets.
        """
        if self._told is None:
            return []
        lost, effects = self._told, self.release(now)
        self._hushed = lost
        return effects

    def speak(self, now: float) -> list[PathEffect]:
        """Silence did not help: let WireGuard try the lost path by itself, as it does in outages."""
        if self._hushed is None or self._told is not None:
            return []
        return [self._set_endpoint(self._hushed, now)]

    def lift_guard(self, now: float) -> list[PathEffect]:
        """Lift the guard of the last change, if its time is over."""
        return self._guard.tick(now)

    def close(self) -> list[PathEffect]:
        """The link is over."""
        return self._guard.lift()

    def drop(self) -> None:
        """The path is lost; WireGuard keeps its endpoint until another one is proven."""
        self.pair = None
        self._nominations.stop()
        self._heartbeat.stop()

    def wants(self, pair: Pair, now: float) -> bool:
        """Say whether ``pair``, which just answered, should replace the one in use."""
        if self.pair is None:
            return True
        if pair is self.pair:
            self._heartbeat.answered(now, pair.smooth)
            return False
        if self._must_leave(pair) or self._is_nominated(pair):
            return self._nominated.may_change(now)
        if self._controlling and (pair.rank > self.pair.rank or self._is_nearer(pair, now)):
            return True
        if self.pair.succeeded_at is None or now - self.pair.succeeded_at >= RECENT:
            # The peer may have moved there: see whether the old path still answers.
            self._heartbeat.probe(now)
        return False

    def _must_leave(self, pair: Pair) -> bool:
        """Say whether ``pair`` is where the peer is now, and the pair in use where it was."""
        if self.pair is None or pair.withdrawn:
            return False
        if self._roamed_to == pair.endpoint and self._is_given_up:
            return True
        # A direct path that may still work is not left for a relay.
        fair = not pair.is_relayed or self.pair.is_relayed or self._heartbeat.doubtful
        return self.pair.withdrawn and fair

    def _is_nominated(self, pair: Pair) -> bool:
        """Say whether ``pair`` is the one that the peer uses, by what it told last."""
        asked = not self._controlling and pair.endpoint == self._nominated.endpoint
        return asked and not pair.withdrawn

    @property
    def _agreed(self) -> bool:
        """Whether the peer uses the pair too, as far as it said."""
        if self._controlling:
            return self._nominations.deadline is None
        return self._nominated.endpoint in (None, self.endpoint)

    @property
    def _is_given_up(self) -> bool:
        """Whether the pair in use is to be left for where WireGuard saw the peer.

        Who controls has told the peer what to use; if it sends from elsewhere all the same, its host
        may have no choice.
        """
        return self._heartbeat.doubtful or (self._controlling and self._insisted)

    @property
    def _insisted(self) -> bool:
        """Whether the endpoint was set again often enough."""
        return self._reasserts >= len(REASSERT_GAPS)

    @property
    def nomination(self) -> int | None:
        """What checks of the selected pair nominate; None: nothing, that is the peer's part."""
        return self._nominations.number if self._controlling else None

    def nominated(self, number: int) -> None:
        """A check that nominated the choice ``number`` was answered."""
        self._nominations.answered(number)

    def take_nomination(self, pair: Pair, check: StunMessage) -> bool:
        """The peer nominated ``pair``: say whether we follow, at once or when it is proven."""
        return self._nominated.take(pair.endpoint, check) and not pair.refuted

    def heard(self, endpoint: Endpoint, now: float) -> None:
        """An authentic check of the peer came from ``endpoint``."""
        if self.endpoint == endpoint:
            self._heartbeat.heard(now)

    def probe(self, now: float, *, quick: bool = False) -> None:
        """Doubt the path: check it at once, and with little patience if ``quick``."""
        self._heartbeat.probe(now, quick=quick)

    def tick(self, now: float) -> Due:
        """Say what is due: send a check on the selected pair, or count it as lost."""
        self._heartbeat.set_active(self._proof.is_active(now), now)
        pulse = self._heartbeat.pulse(now)
        if pulse is Pulse.LOST:
            return Due.LOST
        if self._nominations.is_due(now):
            if self._nominations.in_vain:
                self._heartbeat.probe(now + RECENT)
            return Due.CHECK
        return Due.CHECK if pulse is Pulse.CHECK else Due.NOTHING

    def observe(self, event: TunnelObserved, now: float) -> list[PathEffect]:
        """Take WireGuard's counters; set the endpoint again if WireGuard roamed off it.

        Both ends may have roamed, each by what the other sent before it knew the pair: then they keep
        each other there, until packets from there count as from the pair.
        """
        off = event.endpoint is not None and event.endpoint != self.endpoint
        self._proof.observe(now, event.last_handshake_age, event.rx_bytes, event.tx_bytes)
        self._heartbeat.set_active(self._proof.is_active(now), now)
        if self._proof.crossed and not off:
            self.shown = self.kind
        if self.pair is None or not off:
            self._roamed_to = None
            return []
        if self._guard.deadline is None and now - self._roamed_at > ROAM_KNOWN:
            self._roamed_at = now
            self._heartbeat.probe(now, quick=True)
        if self._insisted or now - self._asserted_at < REASSERT_GAPS[self._reasserts]:
            return []
        lives = not self._heartbeat.doubtful and (self.pair.succeeded_at or 0.0) > self._roamed_at
        if not lives or not self._agreed:
            return []
        self._reasserts += 1
        guards = self._guard.change(event.endpoint, self.pair.endpoint, now)
        return [*guards, self._set_endpoint(self.pair.endpoint, now)]

    def roamed(self, to: Pair | None, now: float) -> bool:
        """WireGuard's endpoint is not the chosen one: say whether ``to``, where it is, may be right.

        It is not if late packets of a path that was left are to be expected, or of a worse one that
        is not known to be younger.
        """
        if self.pair is None or self._guard.deadline is not None:
            return False
        if to is not None and (to.withdrawn or (to.is_relayed and not self.pair.is_relayed)):
            return False
        lost = self.pair.withdrawn or self._heartbeat.doubtful
        younger = to is None or not to.works or to.alive_at > self.pair.alive_at
        return lost or younger

    def follow(self, endpoint: Endpoint) -> None:
        """Take the path at ``endpoint`` if it answers and the pair in use does not."""
        self._roamed_to = endpoint

    def _is_nearer(self, pair: Pair, now: float) -> bool:
        """Say whether another relay is worth the move."""
        ours, theirs = (None if self.pair is None else self.pair.smooth), pair.smooth
        if self.pair is None or ours is None or theirs is None or pair.rank != self.pair.rank:
            return False
        if not pair.is_relayed or now - self._moved_nearer_at < NEARER_GAP:
            return False
        if ours - theirs < max(NEARER_BY, ours * NEARER_SHARE):
            return False
        self._moved_nearer_at = now
        return True

    def _set_endpoint(self, endpoint: Endpoint | None, now: float) -> UseEndpoint:
        self._generation += 1
        self._asserted_at = now
        self._told = endpoint
        return UseEndpoint(self._peer, endpoint, self._generation)
