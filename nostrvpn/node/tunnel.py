"""What WireGuard is told of each peer, when, and how closely its counters are watched.

Two nodes that start the WireGuard handshake in the same instant cancel each other out and lose
WireGuard's 5 s retry. So the side that is not to start holds the endpoint back until the other's
handshake arrived (WireGuard then knows the address from it) or ``HOLD_S`` passed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nostrvpn.endpoint import Endpoint
from nostrvpn.machine import Moment, earliest
from nostrvpn.node.events import NodeEffect, ObserveTunnel, Persist, Poke, Reconcile
from nostrvpn.node.peers import Peer
from nostrvpn.paths.events import TunnelObserved, UseEndpoint
from nostrvpn.wireguard.device import ObservedDevice

__all__ = ["Tunnel"]

HOLD_S = 1.5
# WireGuard rejects a session after this time (REJECT_AFTER_TIME).
SESSION_S = 180.0
DAY_S = 86_400
# How far two readings of one clock may seem to run backwards.
CLOCK_NOISE_S = 1.0
# While a handshake is awaited its arrival is the news, so the counters are read often, then less;
# with tunnels up they only feed the status and the heartbeat's choice of pace.
_WATCH = ((1.0, 0.02), (5.0, 0.1), (30.0, 1.0))
QUIET_S = 10.0
WATCH_S = 30.0
# A tunnel that already has a session says nothing when its endpoint is set, so something must be sent
# through it to prove the new path; soon, but after the reconciler had its turn.
POKE_AFTER_S = 0.05
# Gaps between pokes: the peer's NAT lets the first one through that comes after the peer's own check,
# a moment that this side does not hear of.
_POKE_EVERY = ((1.5, 0.25), (WATCH_S, 1.0))


@dataclass(slots=True)
class _Progress:
    """What is known of one peer's tunnel beside what ``Peer`` holds. Times are Moment.now."""

    is_unpoked: bool = False
    """The endpoint was set, and nothing was sent over it yet."""
    has_moved: bool = False
    """The network changed, and nothing came over the present one yet."""
    rx_before: int | None = None
    """What had been received at the first look after that."""
    handshake_wall: float | None = None
    handshake_at: float | None = None
    """When that handshake was; None also if it claims to be of the future."""
    seen_at: float | None = None


class Tunnel:
    """The tunnel's progress for all peers of one node.

    WireGuard tells the wall time of a handshake. Wall clocks jump, so from the first sight of a
    handshake its age is counted on ``Moment.now``.
    """

    def __init__(self, peers: dict[str, Peer], poke: Callable[[str], list[Poke]]) -> None:
        self._peers = peers
        self._poke = poke
        self._observe_at: float | None = None
        self._progress: dict[str, _Progress] = {}
        self.device: ObservedDevice | None = None
        self.doorbell: Callable[[str], Endpoint] | None = None
        """Gives a sleeping peer (public key) the endpoint at which WireGuard rings for it."""

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` is due."""
        held = (peer.held_until for peer in self._peers.values())
        pokes = (p.poke_at for p in self._peers.values() if p.held_until is None)
        return earliest(self._observe_at, *held, *pokes)

    def use_endpoint(self, effect: UseEndpoint, me: str, moment: Moment) -> list[NodeEffect]:
        """The path engine decided: tell WireGuard now, or hold it until the other side began."""
        peer = self._peers.get(effect.peer)
        if peer is None:
            return []
        peer.endpoint = effect.endpoint
        if effect.endpoint is None and self.doorbell is not None:
            peer.doorbell = self.doorbell(peer.public_key)
        # Not the engine's number: it does not count our own renewals.
        peer.endpoint_generation += 1
        age = self.handshake_age(peer, moment)
        fresh = age is None or age > SESSION_S
        if effect.endpoint is not None and fresh and not peer.starts_handshake(me):
            peer.held_until = moment.now + HOLD_S
        else:
            peer.held_until = None
            if effect.endpoint is not None:
                peer.doorbell = None
        self._watch(peer, moment)
        return [Reconcile()]

    def renew(self, moment: Moment) -> list[NodeEffect]:
        """The network changed: write the endpoints again, and speak over them at once.

        WireGuard remembers with an endpoint which of our addresses it was reached from, and goes on
        using one that is gone (wireguard-go: for 15 s). What the peer receives from our new address
        also leads it there.
        """
        set_again = [peer for peer in self._peers.values() if peer.endpoint and not peer.held_until]
        for peer in set_again:
            peer.endpoint_generation += 1
            self._of(peer).has_moved, self._of(peer).rx_before = True, None
            self._watch(peer, moment)
        return [Reconcile()] if set_again else []

    def proven(self, public_key: str) -> None:
        """Data flowed over the chosen path: no need to look and poke any more (after a first time)."""
        peer = self._peers.get(public_key)
        if peer is not None and not self._of(peer).has_moved:
            self._rest(peer)

    def tick(self, moment: Moment) -> list[NodeEffect]:
        """Release what was held long enough, and look at the counters when it is time."""
        effects: list[NodeEffect] = []
        for peer in self._peers.values():
            if peer.held_until is not None and moment.now >= peer.held_until:
                peer.held_until = peer.doorbell = None
                effects.append(Reconcile())
            if peer.held_until is None and peer.poke_at is not None and moment.now >= peer.poke_at:
                peer.poke_at = self._next_poke(peer, moment)
                self._of(peer).is_unpoked = False
                effects += self._poke(peer.public_key)
        if self._observe_at is not None and moment.now >= self._observe_at:
            self._observe_at = None  # until the answer comes
            effects.append(ObserveTunnel())
        return effects

    def seen(
        self, device: ObservedDevice | None, moment: Moment
    ) -> tuple[list[TunnelObserved], list[NodeEffect]]:
        """Take up what WireGuard says; return the news for the path engine, and effects."""
        self.device = device
        for gone in self._progress.keys() - self._peers.keys():
            del self._progress[gone]
        effects: list[NodeEffect] = []
        news = []
        observed = {peer.public_key: peer for peer in device.peers} if device else {}
        for peer in self._peers.values():
            tunnel = observed.get(peer.wireguard_key or "")
            if tunnel is None:
                continue
            arrived = tunnel.last_handshake_wall != peer.handshake_wall
            peer.handshake_wall = tunnel.last_handshake_wall
            rung = tunnel.endpoint is not None and tunnel.endpoint == peer.doorbell
            peer.wireguard_endpoint = None if rung else tunnel.endpoint
            peer.rx_bytes, peer.tx_bytes = tunnel.rx_bytes, tunnel.tx_bytes
            if arrived and tunnel.last_handshake_wall and peer.held_until is not None:
                peer.held_until = peer.doorbell = None
                effects.append(Reconcile())
            effects += _note_use(peer, tunnel.last_handshake_wall, moment)
            progress = self._of(peer)
            if progress.has_moved and progress.rx_before is None:
                progress.rx_before = tunnel.rx_bytes
            elif progress.has_moved and tunnel.rx_bytes != progress.rx_before:
                progress.has_moved = False
                self._rest(peer)
            age = self.handshake_age(peer, moment)
            progress.seen_at = moment.now
            news.append(
                TunnelObserved(
                    peer.public_key, age, tunnel.rx_bytes, tunnel.tx_bytes, tunnel.endpoint
                )
            )
        self._schedule(moment)
        return news, effects

    def _watch(self, peer: Peer, moment: Moment) -> None:
        peer.watch_since = moment.now if peer.endpoint is not None else None
        peer.poke_at = None if peer.watch_since is None else moment.now + POKE_AFTER_S
        if peer.poke_at is not None:
            self._of(peer).is_unpoked = True
        self._schedule(moment)

    def _next_poke(self, peer: Peer, moment: Moment) -> float | None:
        if peer.watch_since is None:
            return None
        waited = moment.now - peer.watch_since
        return next((moment.now + gap for until, gap in _POKE_EVERY if waited < until), None)

    def _rest(self, peer: Peer) -> None:
        peer.watch_since = None
        if not self._of(peer).is_unpoked:
            peer.poke_at = None

    def handshake_age(self, peer: Peer, moment: Moment) -> float | None:
        """Return how many seconds ago the last handshake was; None without one, or if unknown."""
        wall, known = peer.handshake_wall, self._of(peer)
        if wall is None:
            return None
        if known.handshake_wall != wall:
            at = moment.now - max(0.0, moment.wall - wall)
            known.handshake_wall, known.handshake_at = wall, at
            if known.seen_at is not None:
                # It was not there when we looked last.
                known.handshake_at = max(at, known.seen_at)
            elif wall > moment.wall + CLOCK_NOISE_S:
                known.handshake_at = None
        return None if known.handshake_at is None else moment.now - known.handshake_at

    def _of(self, peer: Peer) -> _Progress:
        return self._progress.setdefault(peer.public_key, _Progress())

    def _schedule(self, moment: Moment) -> None:
        if not any(peer.endpoint for peer in self._peers.values()):
            self._observe_at = None  # all sleep: whoever wants one of them rings
            return
        due = moment.now + QUIET_S
        for peer in self._peers.values():
            if peer.watch_since is None:
                continue
            waited = moment.now - peer.watch_since
            if waited > WATCH_S:
                self._of(peer).has_moved = False
                self._rest(peer)
                continue
            interval = next((step for until, step in _WATCH if waited < until), QUIET_S)
            due = min(due, moment.now + interval)
        self._observe_at = due


def _note_use(peer: Peer, handshake_wall: float | None, moment: Moment) -> list[NodeEffect]:
    """Once a day, keep in mind that the peer is in use: it has a path, and nobody let it sleep."""
    today = int(moment.wall // DAY_S)
    if peer.endpoint is None or handshake_wall is None or peer.used_day == today:
        return []
    peer.used_day = today
    return [Persist("peer", peer.public_key, peer.to_json())]
