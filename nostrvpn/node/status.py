"""Node -> the documents that ``status``, ``id`` and ``peers`` show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nostrvpn.identity.keys import npub
from nostrvpn.machine import Moment
from nostrvpn.mesh.addressing import ipv4_prefix
from nostrvpn.mesh.effects import JoinState
from nostrvpn.node.exit_status import exit_document, exit_problems
from nostrvpn.node.problems import Problem, problem, refusal_words
from nostrvpn.node.roster_sync import has_network_key
from nostrvpn.node.services import services, via_name
from nostrvpn.node.situation import is_hard, is_stun_silent, situation_of, udp_works
from nostrvpn.node.subnets import offers_of
from nostrvpn.node.why import first_reason

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = [
    "identity_document",
    "peers_document",
    "relays_document",
    "rounded",
    "status_document",
    "tunnel_messages",
]

# A refused applicant is news for a day.
REFUSAL_SHOWN_S = 86_400
# Whoever has an invite may send with a wrong date; a few say enough.
MAX_SKEWED_SHOWN = 3


def identity_document(node: Node) -> dict[str, object]:
    """Who this node is."""
    return {
        "npub": node.settings.secret.npub,
        "name": node.membership.name,
        "wireguard_public_key": node.settings.tunnel.public_key,
        "addresses": _addresses(node),
        "network": node.membership.roster.network_id if node.membership.roster else None,
    }


def _addresses(node: Node) -> list[str]:
    roster = node.membership.roster
    if roster is None or node.me not in roster.members:
        return []
    own = roster.address(node.me)
    return [str(own.ipv6)] if node.overlap else [str(own.ipv6), str(own.ipv4)]


def status_document(node: Node, moment: Moment) -> dict[str, object]:
    """Everything about the node that a user may ask."""
    drops = {**node.post.dropped, **node.dropped}
    return identity_document(node) | {
        "interface": node.settings.tunnel.interface,
        "backend": node.backend,
        "listen_port": node.settings.tunnel.listen_port,
        "relays": relays_document(node),
        "peers": peers_document(node, moment),
        "joining": _joining(node),
        "dns": node.dns,
        "exit": exit_document(node, moment),
        "dropped_messages": drops,
        "tunnel_messages": tunnel_messages(node),
        "dropped_datagrams": dict(node.paths.counters) | node.tap_counters,
        "problems": [item.to_json() for item in _problems(node, moment)],
    }


def tunnel_messages(node: Node) -> dict[str, int]:
    """Messages through tunnels: how many were sent, how many of them failed, and how many came."""
    return {name: node.tunnel_post.counters[name] for name in ("sent", "failed", "heard")}


def relays_document(node: Node) -> list[dict[str, object]]:
    """Every Nostr relay: in what state, how far, and whether it carries our messages."""
    return [
        {
            "url": relay.url,
            "state": relay.state,
            "rtt_ms": None if relay.rtt_ms is None else round(relay.rtt_ms, 1),
            "fitness": relay.fitness,
            "reason": relay.reason,
            "counters": dict(relay.counters),
        }
        for relay in node.post.pool.snapshot()
    ]


def _joining(node: Node) -> dict[str, object] | None:
    joining = node.membership.joining
    if joining is None or joining.state is JoinState.JOINED:
        return None
    return {
        "inviter": npub(joining.inviter) if joining.inviter is not None else None,
        "state": joining.state.value,
        "reason": joining.reason,
        "attempts": joining.attempts,
    }


def peers_document(node: Node, moment: Moment) -> list[dict[str, object]]:
    """Every peer with its path and traffic; the inviter we wait for is one too."""
    roster = node.membership.roster
    document: list[dict[str, object]] = []
    for peer in node.peers.values():
        link = node.paths.snapshot(peer.public_key)
        member = roster is not None and peer.public_key in roster.members
        age = node.tunnel.handshake_age(peer, moment)
        endpoint = link.endpoint if link is not None else None
        addresses = []
        if roster is not None and member:
            address = roster.address(peer.public_key)
            addresses = [str(address.ipv6), str(address.ipv4)]
        document.append(
            {
                "npub": npub(peer.public_key),
                "name": node.peer_name(peer.public_key),
                "addresses": addresses,
                "routes": sorted(
                    str(network)
                    for network, router in node.subnets.used.items()
                    if router == peer.public_key
                ),
                "state": (link.state if link is not None else "idle") if member else "joining",
                "path": link.path if link is not None else "none",
                "via": via_name(node, link)
                if link is not None and link.path == "relayed"
                else None,
                "carrier": link.carrier if link is not None and link.path != "none" else None,
                "asleep": link is not None and link.asleep,
                "mtu": link.mtu if link is not None else None,
                "endpoint": str(endpoint or peer.wireguard_endpoint or "") or None,
                "rtt_ms": rounded(link.rtt_ms if link is not None else None),
                "rx_bytes": peer.rx_bytes,
                "tx_bytes": peer.tx_bytes,
                "last_handshake_age_s": rounded(age),
                "connected_in_ms": rounded(link.connected_in_ms if link is not None else None),
                "stages_ms": {k: rounded(v) for k, v in link.stages.items()} if link else {},
            }
        )
    return document


def rounded(value: float | None) -> float | None:
    """Return a measured value as it is shown."""
    return None if value is None else round(value, 1)


def _problems(node: Node, moment: Moment) -> list[Problem]:
    found = [problem(code, text=text) for code, text in node.notes]
    if node.reconcile_error:
        found.append(problem("tunnel_refused", reason=node.reconcile_error))
    if node.storage_error:
        found.append(problem("not_saved", reason=node.storage_error))
    datagrams = node.paths.counters["inbox_full"] + node.tap_counters.get("overflowed", 0)
    messages = sum(r.counters.get("queue_overflow", 0) for r in node.post.pool.snapshot())
    if datagrams or messages:
        found.append(problem("queue_full", datagrams=datagrams, messages=messages))
    if node.backup_error:
        found.append(problem("no_backup", reason=node.backup_error))
    if node.tap_error:
        found.append(problem("tap_failed", reason=node.tap_error))
    found += _membership_problems(node, moment)
    found += _relay_problems(node)
    found += _path_problems(node, moment)
    found += _service_problems(node)
    found += _subnet_problems(node, moment)
    found += exit_problems(node, moment)
    for sender, offset in list(node.post.clock_offsets.items())[-MAX_SKEWED_SHOWN:]:
        minutes = round(abs(offset) / 60)
        found.append(problem("clock_skew", name=node.peer_name(sender), minutes=minutes))
    return found


def _membership_problems(node: Node, moment: Moment) -> list[Problem]:
    membership, found = node.membership, []
    joining = membership.joining
    if joining is not None and joining.state is JoinState.ASKING:
        found.append(
            problem(
                "join_waiting",
                name=node.peer_name(joining.inviter or "") if joining.inviter else "a member",
            )
        )
    elif joining is not None and joining.state in (JoinState.REFUSED, JoinState.EXPIRED):
        npub_text = node.settings.secret.npub
        reason = refusal_words(joining.reason)
        found.append(problem("join_refused", reason=reason, npub=npub_text))
    elif membership.roster is None:
        found.append(problem("no_network"))
    if membership.roster is not None and not membership.is_member:
        is_replaced = membership.roster.is_rotated(node.me)
        found.append(problem("key_replaced" if is_replaced else "removed"))
    elif membership.roster is not None:
        if not membership.roster.members[node.me].is_active(moment.wall):
            found.append(problem("membership_ended"))
        if not has_network_key(node):
            found.append(problem("network_key_missing"))
    for wall, applicant, reason in membership.refusals:
        if moment.wall - wall < REFUSAL_SHOWN_S:
            words = refusal_words(reason)
            found.append(problem("applicant_refused", name=npub(applicant), reason=words))
    roster, overlap = membership.roster, node.overlap
    if roster is not None and overlap is not None:
        prefix = ipv4_prefix(roster.network_id)
        found.append(problem("ipv4_overlap", prefix=prefix, route=overlap))
    return found


def _relay_problems(node: Node) -> list[Problem]:
    relays = node.post.pool.snapshot()
    found = [
        problem("relay_unfit", url=relay.url, reason=relay.reason)
        for relay in relays
        if relay.fitness == "unfit"
    ]
    if not any(relay.state == "connected" for relay in relays):
        reasons = sorted({relay.reason for relay in relays if relay.reason})
        about_proxy = [reason for reason in reasons if reason.startswith("the proxy ")]
        if about_proxy:
            found.append(problem("proxy_down", reason=about_proxy[0]))
        else:
            found.append(problem("relays_down", reason="; ".join(reasons[:2]) or "connecting"))
    return found


def _path_problems(node: Node, moment: Moment) -> list[Problem]:
    found, nat = [], node.paths.nat()
    links = {peer: node.paths.snapshot(peer) for peer in node.peers}
    if node.stun_lookup.unresolved:
        found.append(problem("stun_unresolved", names=", ".join(node.stun_lookup.unresolved)))
    if is_stun_silent(nat):
        connected = any(relay.state == "connected" for relay in node.post.pool.snapshot())
        found.append(problem("udp_blocked" if connected and not udp_works(node) else "stun_silent"))
    if is_hard(nat.mapping):
        found.append(problem("hard_nat", port=node.settings.tunnel.listen_port))
    for peer, link in links.items():
        if link is None or link.path != "none" or link.asleep:
            continue
        if link.state in ("failed", "degraded"):
            reason = first_reason(situation_of(node, peer, moment)) or "no address of it answered"
            name = node.peer_name(peer)
            found.append(problem("peer_unreachable", name=name, reason=reason))
    return found


def _service_problems(node: Node) -> list[Problem]:
    told, found = services(node), []
    if told.relay_error:
        found.append(problem("relay_refused", reason=told.relay_error))
    found += _own_relay_problems(told.relay_snapshot or {}, saves=node.storage_error is None)
    if node.dns.get("failure"):
        found.append(problem("names_failed", reason=node.dns["failure"]))
    found += _permission_problems(node)
    if told.firewall_error:
        found.append(problem("guard_missing", reason=told.firewall_error))
    for server, reason in told.failed_turn.items():
        found.append(problem("turn_failed", server=server, reason=reason))
    mapping = told.port_mapping
    if mapping.get("required") and mapping.get("error") and not mapping.get("external"):
        port = node.settings.tunnel.listen_port
        found.append(problem("port_mapping_failed", reason=mapping["error"], port=port))
    return found


def _subnet_problems(node: Node, moment: Moment) -> list[Problem]:
    found, subnets = [], node.subnets
    # An exit forwards too; what hinders that is said of it (exit_problems).
    shares = bool(subnets.gateway(node.membership.roster, node.me).networks)
    if shares and subnets.gateway_error is not None:
        found.append(problem("routes_refused", reason=subnets.gateway_error))
    if shares and subnets.forward_obstacle is not None:
        where, remedy = subnets.forward_obstacle
        found.append(problem("routes_blocked", where=where, remedy=remedy))
    accepts = any(choice.accept for choice in subnets.settings.choices)
    for offer in offers_of(node, moment.wall) if accepts else ():
        if offer.obstacle is not None and offer.obstacle[0] == "hides":
            name = node.peer_name(offer.router)
            reason, network = offer.obstacle[1], str(offer.network)
            found.append(problem("route_overlap", network=network, name=name, reason=reason))
    return found


def _permission_problems(node: Node) -> list[Problem]:
    found = []
    # Where they must be enforced, the tunnel itself was refused, and that is said already.
    if node.inbound_error and not node.reconcile_error:
        found.append(problem("not_enforced", reason=node.inbound_error))
    if node.obstacle is not None:
        where, remedy = node.obstacle
        found.append(problem("firewall_drops", where=where, remedy=remedy))
    if node.permissions.local.shields_up:
        found.append(problem("shields_up"))
    return found


def _own_relay_problems(relay: Mapping[str, object], *, saves: bool) -> list[Problem]:
    found = []
    if relay.get("slow"):
        pairs = relay.get("forward_dropped")
        count = f" ({pairs} {'pair' if pairs == 1 else 'pairs'} so far)" if pairs else ""
        found.append(problem("relay_slow", reason=f"{relay['slow']}{count}"))
    if relay.get("unsaved") and saves:  # else the same disk is a problem already
        found.append(problem("relay_not_saved", reason=relay["unsaved"]))
    if relay.get("failures"):
        found.append(problem("relay_failed", count=relay["failures"], reason=relay["failure"]))
    return found
