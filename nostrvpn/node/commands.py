"""The control commands: each is an event with exactly one answer.

Arguments arrive already checked for type and bounds (``control/schema.py``); what is decided here is
whether the node can do it. ``docs/protocol/control.md`` describes the results.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import NostrvpnError, UserError
from nostrvpn.identity.keys import npub
from nostrvpn.identity.reference import find_peer
from nostrvpn.machine import Moment
from nostrvpn.mesh.effects import JoinState
from nostrvpn.node.events import (
    Command,
    NodeEffect,
    Persist,
    Refuse,
    Reply,
    SendEcho,
)
from nostrvpn.node.exit_commands import EXIT_COMMANDS, run_exit_command
from nostrvpn.node.exit_offer_commands import EXIT_OFFER_COMMANDS, run_exit_offer_command
from nostrvpn.node.names import resolve_document
from nostrvpn.node.netcheck import netcheck_document
from nostrvpn.node.policy_commands import POLICY_COMMANDS, run_policy_command
from nostrvpn.node.problems import refusal_words
from nostrvpn.node.roster_commands import ROSTER_COMMANDS, run_roster_command, stop_node
from nostrvpn.node.roster_sync import has_network_key
from nostrvpn.node.services import via_name
from nostrvpn.node.situation import situation_of
from nostrvpn.node.status import (
    identity_document,
    peers_document,
    status_document,
)
from nostrvpn.node.subnet_commands import SUBNET_COMMANDS, run_subnet_command
from nostrvpn.node.why import why_document

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["answer_joins", "run_command"]

# How long `join` waits for the inviter's answer before it says that it goes on in the background.
JOIN_WAIT_S = 8.0
MAX_WAITING_JOINS = 16


def run_command(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    """Carry out one command; its refusal is an effect like its answer."""
    try:
        return _run(node, command, moment)
    except NostrvpnError as exc:
        return [Refuse(command.call, exc.code, str(exc), exc.hint)]


def _run(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    call, args = command.call, command.args
    match command.name:
        case "status":
            return [Reply(call, status_document(node, moment))]
        case "id":
            return [Reply(call, identity_document(node))]
        case "peers":
            return [Reply(call, {"peers": peers_document(node, moment)})]
        case "netcheck":
            return [Reply(call, netcheck_document(node))]
        case "why":
            peer = _peer(node, args)
            document = why_document(situation_of(node, peer, moment))
            return [Reply(call, {"peer": npub(peer)} | document)]
        case "resolve":
            return [Reply(call, resolve_document(node, str(args["name"])))]
        case "join":
            return _join(node, command, moment)
        case "peer_remove":
            peer = _peer(node, args, also=node.membership.peers)
            name = node.peer_name(peer)
            effects = node.take_membership(node.membership.remove(peer, moment), moment)
            return [*effects, Reply(call, {"npub": npub(peer), "name": name})]
        case "peer_rename":
            record = node.peers[_peer(node, args)]
            record.alias = str(args["name"])
            stored = Persist("peer", record.public_key, record.to_json())
            answer = {"npub": npub(record.public_key), "name": node.peer_name(record.public_key)}
            return [stored, Reply(call, answer)]
        case "ping":
            return _ping(node, command, moment)
        case "export":
            return [Reply(call, _export(node, moment))]
        case "stop":
            return stop_node(node, command, moment)
        case name if name in POLICY_COMMANDS:
            return run_policy_command(node, command, moment)
        case name if name in ROSTER_COMMANDS:
            return run_roster_command(node, command, moment)
        case name if name in SUBNET_COMMANDS:
            return run_subnet_command(node, command, moment)
        case name if name in EXIT_COMMANDS:
            return run_exit_command(node, command, moment)
        case name if name in EXIT_OFFER_COMMANDS:
            return run_exit_offer_command(node, command, moment)
        case _:
            raise UserError(f"unknown command {command.name!r}", "see `nostrvpn --help`")


def _peer(node: Node, args: dict[str, object], also: Iterable[str] = ()) -> str:
    """Return the peer that is meant; ``also`` members that are not followed, since theirs has ended."""
    known = {peer: node.peer_name(peer) for peer in (*node.peers, *also)}
    return find_peer(str(args["peer"]), known)


def _join(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    if len(node.awaiting_join) >= MAX_WAITING_JOINS:
        raise UserError("too many join commands are waiting already", "see `nostrvpn status`")
    link, has_key = str(command.args["link"]), has_network_key(node)
    asked = node.membership.join(link, moment, has_key=has_key)
    # Waited for from now on, so that the members' change below already finds it.
    node.awaiting_join[command.call] = moment.now + JOIN_WAIT_S
    return node.take_membership(asked, moment)


def answer_joins(node: Node, moment: Moment) -> list[NodeEffect]:
    """Answer waiting ``join`` commands once the outcome is known, or after ``JOIN_WAIT_S``."""
    joining = node.membership.joining
    if not node.awaiting_join:
        return []
    calls = list(node.awaiting_join)
    if joining is not None and joining.state is JoinState.ASKING:
        calls = [call for call, until in node.awaiting_join.items() if moment.now >= until]
    for call in calls:
        del node.awaiting_join[call]
    return [_join_answer(node, call) for call in calls]


def _join_answer(node: Node, call: int) -> NodeEffect:
    joining, roster = node.membership.joining, node.membership.roster
    if joining is not None and joining.state in (JoinState.REFUSED, JoinState.EXPIRED):
        hint = f"ask for a new invite for {node.settings.secret.npub}"
        text = f"the invite was refused: {refusal_words(joining.reason)}"
        return Refuse(call, "join_refused", text, hint)
    inviter = joining.inviter if joining is not None else roster.owner if roster else node.me
    network = (
        joining.link.network_id if joining is not None else roster.network_id if roster else ""
    )
    state = joining.state if joining is not None else JoinState.JOINED
    answer = {
        "network": network,
        "inviter": npub(inviter) if inviter is not None else None,
        "state": "waiting" if state is JoinState.ASKING else "joined",
    }
    return Reply(call, answer)


def _ping(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    peer, roster = _peer(node, command.args), node.membership.roster
    if roster is None or peer not in roster.members:
        raise UserError(f"{node.peer_name(peer)} is not a member yet", "see `nostrvpn status`")
    timeout = command.args.get("timeout_s", 5.0)
    assert isinstance(timeout, float | int)
    link = node.paths.snapshot(peer)
    context: dict[str, object] = {
        "peer": npub(peer),
        "name": node.peer_name(peer),
        "address": str(roster.address(peer).ipv6),
        "path": link.path if link is not None else "none",
        "via": via_name(node, link),
        "carrier": link.carrier if link is not None and link.path != "none" else None,
        "asleep": link is not None and link.asleep,
        "endpoint": str(link.endpoint) if link is not None and link.endpoint else None,
    }
    return [SendEcho(command.call, roster.address(peer).ipv6, float(timeout), context)]


def _export(node: Node, moment: Moment) -> dict[str, object]:
    """Everything a wg-quick file needs; holds the private key, so it is for admins only."""
    desired = node.desired(moment.now, complete=True)
    observed = {peer.wireguard_key: peer.wireguard_endpoint for peer in node.peers.values()}
    peers: Sequence[dict[str, object]] = [
        {
            "public_key": peer.public_key,
            "allowed_ips": sorted(str(prefix) for prefix in peer.allowed_ips),
            "endpoint": _outside(peer.endpoint) or _outside(observed[peer.public_key]),
            "persistent_keepalive": node.settings.tunnel.keepalive,
        }
        for peer in desired.device.peers
        if peer.public_key in observed
    ]
    return {
        "private_key": base64.b64encode(desired.device.private_key.raw).decode(),
        "listen_port": desired.device.listen_port,
        "fwmark": desired.device.fwmark,
        "mtu": desired.host.mtu,
        "addresses": sorted(str(address) for address in desired.host.addresses),
        "peers": peers,
    }


def _outside(endpoint: Endpoint | None) -> str | None:
    """Return an endpoint as text; None for what has a meaning on this host only."""
    return None if endpoint is None or endpoint.ip.is_loopback else str(endpoint)
