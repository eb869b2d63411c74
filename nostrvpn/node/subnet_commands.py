"""The control commands about networks behind members: share, approve, accept, list."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from nostrvpn.errors import UserError
from nostrvpn.identity.keys import npub
from nostrvpn.machine import Moment
from nostrvpn.mesh.subnets import (
    Choice,
    IPNetwork,
    SubnetSettings,
    covering_route,
    objection,
    parse_subnet,
)
from nostrvpn.node.asked import asked_member, asked_roster, shown_name
from nostrvpn.node.events import Command, NodeEffect, Persist, Reconcile, Reply
from nostrvpn.node.subnets import Offer, endpoint_within, offers_of, overlay_of

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["SUBNET_COMMANDS", "routes_document", "run_subnet_command"]

# Beyond, so many messages would cost more than the wait for the one that all can read.
MAX_TOLD = 32
_ALL = ("all", "*")
_Json = dict[str, Any]


def run_subnet_command(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    """Carry out one of ``SUBNET_COMMANDS``; NostrvpnError refuses it."""
    return SUBNET_COMMANDS[command.name](node, command, moment)


def _list(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    return [Reply(command.call, routes_document(node, moment.wall))]


def _advertise(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    args: _Json = command.args
    roster, settings = asked_roster(node, as_member=True), node.subnets.settings
    networks = _networks(args["networks"], () if args["withdraw"] else overlay_of(roster))
    if args["snat"] is not None:
        settings = SubnetSettings(settings.advertised, args["snat"], settings.choices)
    settings = settings.advertising(networks, withdraw=args["withdraw"])
    effects = _adopt(node, settings)
    texts = tuple(map(str, settings.advertised))
    if texts != node.outbox.advertised:
        node.outbox.advertised = texts
        node.presence.changed(moment)
        # Presence waits for what else changes; whoever may be using it now hears at once.
        links = {key: node.paths.snapshot(key) for key in node.peers}
        met = [key for key, link in links.items() if link is not None and link.path != "none"]
        for peer in met[:MAX_TOLD]:
            node.outbox.tell(peer)
    return [*effects, Reply(command.call, routes_document(node, moment.wall))]


def _approve(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    args: _Json = command.args
    roster = asked_roster(node, as_member=True)
    who = asked_member(node, args["peer"])
    peer, withdraw = node.peers.get(who), args["withdraw"]
    given = set(_networks(args["networks"], () if withdraw else overlay_of(roster)))
    approved = set(roster.members[who].routes)
    if not given:
        shared = node.subnets.settings.advertised if peer is None else peer.advertised
        given = (
            approved if withdraw else {n for n in shared if not objection(n, overlay_of(roster))}
        )
        if not given:
            raise UserError(
                f"{shown_name(node, who)} has no network to {'withdraw' if withdraw else 'approve'}",
                "name the networks, or let that node run `nostrvpn routes advertise` first",
            )
    wanted = approved - given if withdraw else approved | given
    effects: list[NodeEffect] = []
    if wanted != approved:
        effects = node.take_membership(node.membership.approve_routes(who, wanted, moment), moment)
    return [*effects, Reply(command.call, routes_document(node, moment.wall))]


def _accept(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    args: _Json = command.args
    asked_roster(node, as_member=True)
    settings = node.subnets.settings
    who = "" if args["who"] in _ALL else asked_member(node, args["who"])
    if who == node.me:
        raise UserError("this node's own networks are no routes to it", "name another member")
    networks: list[IPNetwork | None] = list(_networks(args["networks"])) or [None]
    for network in networks:
        settings = settings.choosing(Choice(who, network, args["accept"], args["force"]))
    effects = _adopt(node, settings)
    # As it will be at the end of this step.
    effects += node.subnets.review(node, moment)
    return [*effects, Reply(command.call, routes_document(node, moment.wall))]


def _adopt(node: Node, settings: SubnetSettings) -> list[NodeEffect]:
    node.subnets.settings = settings
    return [Persist("policy", "subnets", settings.to_json()), Reconcile()]


def _networks(texts: Iterable[str], overlay: Iterable[IPNetwork] = ()) -> list[IPNetwork]:
    found = [parse_subnet(text) for text in texts]
    for network in found:
        reason = objection(network, overlay)
        if reason is not None:
            hint = (
                "see `nostrvpn --help` for exits" if network.prefixlen == 0 else "share its parts"
            )
            raise UserError(f"{network} cannot be shared: {reason}", hint)
    return found


# -- the answer -----------------------------------------------------------------------------


def routes_document(node: Node, wall: float) -> _Json:
    """Return every network behind a member, this node's own too, and how each stands in words."""
    settings = node.subnets.settings
    return {
        "snat": settings.snat,
        "shared": [_shared(node, network) for network in settings.advertised],
        "routes": [_route(node, offer) for offer in offers_of(node, wall)],
        "choices": [
            {
                "who": npub(choice.who) if choice.who else "all",
                "name": shown_name(node, choice.who) if choice.who else None,
                "network": None if choice.network is None else str(choice.network),
                "accept": choice.accept,
                "force": choice.force,
            }
            for choice in settings.choices
        ],
    }


def _shared(node: Node, network: IPNetwork) -> _Json:
    roster = node.membership.roster
    member = roster.members.get(node.me) if roster is not None else None
    approved = member is not None and network in member.routes
    if not approved:
        state, text = "not_approved", "no admin approved it"
    elif node.subnets.gateway_error is not None:
        state, text = "failed", node.subnets.gateway_error
    elif node.subnets.forward_obstacle is not None:
        where, _ = node.subnets.forward_obstacle
        state, text = "blocked", f"the firewall chain {where} drops what would be forwarded"
    elif covering_route(network, node.routes) is None and not any(
        route.version == network.version and route.prefixlen and route.subnet_of(network)  # type: ignore[arg-type]
        for route in node.routes
    ):
        state, text = "shared", "shared, but this host itself has no route to it"
    else:
        state, text = "shared", "shared; whom `lan` is allowed here reaches it"
    return {"network": str(network), "approved": approved, "state": state, "text": text}


def _route(node: Node, offer: Offer) -> _Json:
    via = node.subnets.used.get(offer.network)
    state, text = _standing(node, offer, via)
    return {
        "network": str(offer.network),
        "router": npub(offer.router),
        "name": node.peer_name(offer.router),
        "advertised": offer.advertised,
        "approved": offer.approved,
        "accepted": offer.accepted,
        "in_use": via == offer.router,
        "via": None if via is None else node.peer_name(via),
        "state": state,
        "text": text,
    }


def _standing(node: Node, offer: Offer, via: str | None) -> tuple[str, str]:
    if offer.obstacle is not None:
        return offer.obstacle
    link = node.paths.snapshot(offer.router)
    has_path = link is not None and (link.path != "none" or link.asleep)
    if via == offer.router:
        return "in_use", "in use" if has_path else "in use, but there is no path to the router"
    if via is not None:
        why = "the other one is used" if has_path else "there is no path to this one"
        return "standby", f"stands by for {node.peer_name(via)}: {why}"
    near = endpoint_within(node, offer.network)
    if near is not None:
        return "outside", f"{near} is reached at an address in it, outside the tunnel"
    return "unknown", "this host's own networks are not known yet"


SUBNET_COMMANDS: dict[str, Callable[[Node, Command, Moment], list[NodeEffect]]] = {
    "routes": _list,
    "routes_advertise": _advertise,
    "routes_approve": _approve,
    "routes_accept": _accept,
}
