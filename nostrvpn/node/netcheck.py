"""Node -> the document behind ``netcheck``: what this network lets through. Unknown is null."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nostrvpn.identity.keys import npub
from nostrvpn.node.services import Services, relay_name, services
from nostrvpn.node.status import relays_document, rounded, tunnel_messages
from nostrvpn.paths.snapshot import LinkSnapshot, NatReport

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["netcheck_document"]

_PROTOCOLS = ("pcp", "nat_pmp", "upnp")


def netcheck_document(node: Node) -> dict[str, object]:
    """Return NAT, UDP, port mapping, MTU, Nostr relays, relays of the mesh, TURN, our own relay."""
    nat, told = node.paths.nat(), services(node)
    links = {peer: node.paths.snapshot(peer) for peer in node.peers}
    known = {peer: link for peer, link in links.items() if link is not None}
    return {
        "nat": _nat(nat),
        "udp": nat.reflexive_v4 is not None or nat.reflexive_v6 is not None,
        "udp_v4": nat.udp_v4,
        "udp_v6": nat.udp_v6,
        "listen_port": node.settings.tunnel.listen_port,
        "port_mapping": _port_mapping(told),
        "mtu": _mtu(node, known),
        "stun": [
            {
                "server": str(report.server),
                "mapped": str(report.mapped) if report.mapped else None,
                "rtt_ms": rounded(report.rtt_ms),
            }
            for report in nat.servers
        ],
        "unresolved_stun": list(node.stun_lookup.unresolved),
        "relays": relays_document(node),
        "tunnel_messages": tunnel_messages(node),
        "mesh_relays": _mesh_relays(node, told, known),
        "turn": [{"server": name, "state": state} for name, state in told.turn_states.items()],
        "relay_service": None if told.relay_snapshot is None else dict(told.relay_snapshot),
    }


def _nat(nat: NatReport) -> dict[str, object]:
    return {
        "mapping": nat.mapping,
        "step": nat.step,
        "filtering": None if nat.filtering == "unknown" else nat.filtering,
        "hairpin": nat.hairpin,
        "reflexive_v4": str(nat.reflexive_v4) if nat.reflexive_v4 else None,
        "reflexive_v6": str(nat.reflexive_v6) if nat.reflexive_v6 else None,
    }


def _port_mapping(told: Services) -> dict[str, object] | None:
    """Who answered, and the address at which the router forwards to us; None: nobody looked."""
    found = told.port_mapping
    if not found:
        return None
    external = found.get("external")
    document = {name: found.get(name) for name in (*_PROTOCOLS, "protocol")}
    document["external"] = None if external is None else str(external)
    return document | {name: found.get(name) for name in ("public", "expires_in_s", "error")}


def _mtu(node: Node, links: dict[str, LinkSnapshot]) -> dict[str, object]:
    """The tunnel's own, and the largest outer packet that is known to reach each peer."""
    known = {node.peer_name(peer): link.mtu for peer, link in links.items() if link.mtu is not None}
    return {
        "interface": node.settings.tunnel.mtu,
        "largest": max(known.values(), default=None),
        "peers": known,
    }


def _mesh_relays(
    node: Node, told: Services, links: dict[str, LinkSnapshot]
) -> list[dict[str, object]]:
    """Members that relay for us: how far, and for whom they carry our packets now."""
    results = [relay for link in links.values() for relay in link.relays]
    document: list[dict[str, object]] = []
    for offer in told.relay_offers:
        times = [r.rtt_ms for r in results if r.relay == offer.relay and r.rtt_ms is not None]
        carried = [node.peer_name(peer) for peer, link in links.items() if link.via == offer.relay]
        document.append(
            {
                "npub": npub(offer.relay),
                "name": relay_name(node, offer.relay),
                "endpoints": [str(endpoint) for endpoint in offer.endpoints],
                "websocket": offer.websocket is not None,
                "rtt_ms": rounded(min(times, default=None)),
                "carries": carried,
            }
        )
    return document
