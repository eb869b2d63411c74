"""What the path engine asks for, as the node carries it out."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from nostrvpn.machine import Moment
from nostrvpn.node.events import Log, NodeEffect, Persist, Poke, Reconcile
from nostrvpn.node.waking import wake_relays
from nostrvpn.paths.description import cached_session_to_json
from nostrvpn.paths.events import (
    CloseChannel,
    Describe,
    Guard,
    LinkChanged,
    OpenChannel,
    PathEffect,
    PathMtu,
    Pin,
    Remember,
    SendDatagram,
    Trace,
    Unguard,
    Unpin,
    UseEndpoint,
)
from nostrvpn.signaling.relays import RetryNow

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["poke", "take_path"]


def take_path(node: Node, effect: PathEffect, moment: Moment) -> list[NodeEffect]:
    """Carry out one effect of the path engine."""
    match effect:
        case SendDatagram() if node.subnets.carries(effect.destination.ip):
            # A path through the tunnel would die with it, or lead into itself.
            node.dropped["into_tunnel"] += 1
            return []
        case SendDatagram() | OpenChannel() | CloseChannel():
            return [effect]
        case Describe():
            if effect.peer in node.peers:
                node.peers[effect.peer].told = effect.description
            node.outbox.describe(effect.peer, effect.description)
            return []
        case UseEndpoint():
            return node.tunnel.use_endpoint(effect, node.me, moment)
        case Guard() | Unguard() | Pin() | Unpin() | PathMtu():
            return _note(node, effect)
        case Remember():
            return _remember(node, effect)
        case LinkChanged():
            return _link_changed(node, effect, moment)
        case Trace():
            return [Log("debug", str(effect))]
        case _:
            assert_never(effect)


def _note(node: Node, effect: Guard | Unguard | Pin | Unpin | PathMtu) -> list[NodeEffect]:
    """Take up what the firewall and the routes of one peer shall be."""
    peer = node.peers.get(effect.peer)
    if peer is None:
        return []
    match effect:
        case Guard():
            peer.guard = (effect.old, effect.new)
        case Unguard():
            peer.guard = None
        case Pin():
            peer.pin = (effect.local_port, effect.remote)
        case Unpin():
            peer.pin = None
        case PathMtu():
            peer.mtu = effect.mtu
        case _:
            assert_never(effect)
    return [Reconcile()]


def _remember(node: Node, effect: Remember) -> list[NodeEffect]:
    value = cached_session_to_json(effect.cached)
    node.sessions[effect.peer] = value
    stored: list[NodeEffect] = [Persist("session", effect.peer, value)]
    if effect.peer in node.peers:  # with it what makes older news known as such
        record = node.peers[effect.peer].to_json()
        stored.append(Persist("peer", effect.peer, record))
    return stored


def _link_changed(node: Node, effect: LinkChanged, moment: Moment) -> list[NodeEffect]:
    state = f"{effect.snapshot.state}, path {effect.snapshot.path}"
    effects: list[NodeEffect] = [
        Log("info", f"peer {node.peer_name(effect.peer)}: {state}"),
    ]
    if effect.snapshot.crossed:
        node.tunnel.proven(effect.peer)
        # Without its welcome the peer had no tunnel.
        node.membership.heard(effect.peer)
        effects += node.post.tunnel_up(effect.peer, moment)
    if effect.snapshot.state == "failed":
        effects += wake_relays(node, moment)
    if effect.snapshot.state == "degraded":
        # What took the path (a router that forgot its mappings) may have taken our relays too.
        effects += node.post.relay_event(RetryNow(), moment)
    return effects


def poke(node: Node, peer: str) -> list[Poke]:
    """Send something small to ``peer`` through the tunnel."""
    roster = node.membership.roster
    # A path may be proven while parts of the welcome are missing: no tunnel is there yet.
    if roster is None or peer not in roster.members:
        return []
    return [Poke(roster.address(peer).ipv6)]
