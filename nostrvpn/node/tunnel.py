"""What WireGuard is told of each peer, when, and how closely its counters are watched.

Two nodes that start the WireGuard handshake in the same instant cancel each other out and lose
WireGuard's 5 s retry. So the side that is not to start holds the endpoint back until the other's
handshake arrived (WireGuard then knows the address from it) or ``HOLD_S`` passed.
"""

from __future__ import annotations

from collections.abc import Callable

from nostrvpn.machine import Moment, earliest
from nostrvpn.node.events import NodeEffect, ObserveTunnel, Poke, Reconcile
from nostrvpn.node.peers import Peer
from nostrvpn.paths.events import TunnelObserved, UseEndpoint
from nostrvpn.wireguard.device import ObservedDevice

__all__ = ["Tunnel"]

HOLD_S = 1.5
# While a handshake is awaited its arrival is the news, so the counters are read often, then less;
# with tunnels up they only feed the status and the heartbeat's choice of pace.
_WATCH = ((1.0, 0.02), (5.0, 0.1), (30.0, 1.0))
QUIET_S = 10.0
WATCH_S = 30.0
# A tunnel that already has a session says nothing when its endpoint is set, so something must be sent
# through it to prove the new path; soon, but after the reconciler had its turn.
POKE_AFTER_S = 0.05
POKE_EVERY_S = 1.0


class Tunnel:
    """The tunnel's progress for all peers of one node."""

    def __init__(self, peers: dict[str, Peer], poke: Callable[[str], list[Poke]]) -> None:
        self._peers = peers
        self._poke = poke
        self._observe_at: float | None = None
        self.device: ObservedDevice | None = None

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
        peer.endpoint, peer.endpoint_generation = effect.endpoint, effect.generation
        fresh = peer.handshake_wall is None or moment.wall - peer.handshake_wall > 180
        if effect.endpoint is not None and fresh and not peer.starts_handshake(me):
            peer.held_until = moment.now + HOLD_S
        else:
            peer.held_until = None
        peer.watch_since = moment.now if effect.endpoint is not None else None
        peer.poke_at = None if peer.watch_since is None else moment.now + POKE_AFTER_S
        self._schedule(moment)
        return [Reconcile()]

    def proven(self, public_key: str) -> None:
        """Data flowed over the chosen path: no need to look and poke any more."""
        peer = self._peers.get(public_key)
        if peer is not None:
            peer.watch_since = peer.poke_at = None

    def tick(self, moment: Moment) -> list[NodeEffect]:
        """Release what was held long enough, and look at the counters when it is time."""
        effects: list[NodeEffect] = []
        for peer in self._peers.values():
            if peer.held_until is not None and moment.now >= peer.held_until:
                peer.held_until = None
                effects.append(Reconcile())
            waiting = peer.watch_since is not None and peer.held_until is None
            if waiting and peer.poke_at is not None and moment.now >= peer.poke_at:
                peer.poke_at = moment.now + POKE_EVERY_S
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
        effects: list[NodeEffect] = []
        news = []
        observed = {peer.public_key: peer for peer in device.peers} if device else {}
        for peer in self._peers.values():
            tunnel = observed.get(peer.wireguard_key or "")
            if tunnel is None:
                continue
            arrived = tunnel.last_handshake_wall != peer.handshake_wall
            peer.handshake_wall = tunnel.last_handshake_wall
            peer.wireguard_endpoint = tunnel.endpoint
            peer.rx_bytes, peer.tx_bytes = tunnel.rx_bytes, tunnel.tx_bytes
            if arrived and tunnel.last_handshake_wall and peer.held_until is not None:
                peer.held_until = None
                effects.append(Reconcile())
            age = (
                None
                if tunnel.last_handshake_wall is None
                else max(0.0, moment.wall - tunnel.last_handshake_wall)
            )
            news.append(
                TunnelObserved(
                    peer.public_key, age, tunnel.rx_bytes, tunnel.tx_bytes, tunnel.endpoint
                )
            )
        self._schedule(moment)
        return news, effects

    def _schedule(self, moment: Moment) -> None:
        due = moment.now + QUIET_S
        for peer in self._peers.values():
            if peer.watch_since is None:
                continue
            waited = moment.now - peer.watch_since
            if waited > WATCH_S:
                peer.watch_since = peer.poke_at = None
                continue
            interval = next((step for until, step in _WATCH if waited < until), QUIET_S)
            due = min(due, moment.now + interval)
        self._observe_at = due
