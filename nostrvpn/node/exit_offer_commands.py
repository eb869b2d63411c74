"""The control commands about being an exit: offer it, end that, see who uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nostrvpn.errors import UserError
from nostrvpn.exits.limits import DEFAULT_CONNECTIONS, ExitLimits, Volume
from nostrvpn.exits.offer import OfferSettings, parse_country
from nostrvpn.exits.policy import ExitPolicy, parse_word
from nostrvpn.identity.keys import npub
from nostrvpn.identity.reference import find_peer
from nostrvpn.machine import Moment
from nostrvpn.mesh.permissions import EVERYBODY, Rule, Selector, What, parse_selector
from nostrvpn.mesh.policy import rule_words
from nostrvpn.mesh.roster import Roster
from nostrvpn.node.events import Command, NodeEffect, Persist, Reconcile, Reply
from nostrvpn.node.exit_status import down_words
from nostrvpn.wireguard.provider import Provider

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["EXIT_OFFER_COMMANDS", "clients_document", "run_exit_offer_command"]

_MEMBERS = ("members", "all", "*")
# Mbit/s and GB as providers say them: decimal.
_MBIT, _GB = 125_000, 1_000_000_000
_Json = dict[str, Any]


def run_exit_offer_command(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    """Carry out one of ``EXIT_OFFER_COMMANDS``; NostrvpnError refuses it."""
    return EXIT_OFFER_COMMANDS[command.name](node, command, moment)


def _offer(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    args: _Json = command.args
    roster = _roster(node)
    sources = [_selector(node, roster, text) for text in args["to"]]
    connections = args["connections"]
    limits = ExitLimits(
        int(args["client_rate"] * _MBIT),
        int(args["bandwidth"] * _MBIT),
        DEFAULT_CONNECTIONS if connections is None else connections,
        int(args["budget"] * _GB),
    )
    allow, deny = (tuple(parse_word(text) for text in args[key]) for key in ("allow", "deny"))
    country = parse_country(args["country"]) if args["country"] else ""
    policy = ExitPolicy(args["policy"], allow, deny, args["allow_lan"])
    given = args.get("upstream")
    upstream = None if given is None else Provider.from_json(given)
    local = node.permissions.local
    for source in sources:
        try:
            local = local.with_rule(Rule(True, source, EVERYBODY, What.EXIT))
        except ValueError as exc:
            raise UserError(str(exc), "see `nostrvpn rules`") from exc
    effects: list[NodeEffect] = []
    if local is not node.permissions.local:
        node.permissions.local = local
        effects.append(Persist("policy", "local", local.to_json()))
    effects += node.exit_offer.adopt(OfferSettings(policy, limits, country, args["ipv6"]), upstream)
    effects += node.exit_offer.review(node, moment)
    return [*effects, Reply(command.call, clients_document(node))]


def _stop(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    effects = node.exit_offer.adopt(None)
    effects += node.exit_offer.review(node, moment)
    return [*effects, Reconcile(), Reply(command.call, clients_document(node))]


def _clients(node: Node, command: Command, _moment: Moment) -> list[NodeEffect]:
    return [Reply(command.call, clients_document(node))]


def clients_document(node: Node) -> _Json:
    """Return what this node offers, how that stands, and what each guest had.

    ``state``: ``stopped``, ``offered``, ``no_guests``, ``no_way_out``, ``failed``, ``blocked`` or
    ``spent``. Amounts are bytes, rates bytes a second.
    """
    offering, settings = node.exit_offer, node.exit_offer.settings
    state, text, hint = _standing(node)
    versions = offering.versions(node)
    clients = [_client(node, key) for key in node.peers if _is_shown(node, key)]
    document: _Json = {
        "state": state,
        "text": text,
        "hint": hint,
        "v4": 4 in versions,
        "v6": 6 in versions,
        "dns": offering.answers_dns,
        "load": offering.load,
        "month": offering.ledger.month,
        "month_bytes": offering.ledger.used,
        "rate": offering.rate,
        "to": _rules(node),
        "clients": sorted(clients, key=lambda one: (-one["up"] - one["down"], one["name"])),
        "offer": None,
    }
    if settings is not None:
        document["offer"] = {
            "policy": settings.policy.name,
            "allow": [word.text for word in settings.policy.allow],
            "deny": [word.text for word in settings.policy.deny],
            "allow_lan": settings.policy.lan,
            "country": settings.country or None,
            "ipv6": settings.ipv6,
            "upstream": _upstream(offering.provider),
            **settings.limits.to_json(),
        }
    return document


def _upstream(provider: Provider | None) -> _Json | None:
    """Return what may be shown of a provider: no key but its public one."""
    if provider is None:
        return None
    return {
        "endpoint": str(provider.peer.endpoint),
        "public_key": provider.peer.public_key,
        "addresses": [str(one.ip) for one in provider.addresses],
        "dns": [str(ip) for ip in provider.dns],
    }


def _standing(node: Node) -> tuple[str, str, str]:
    """Return a code, words, and what helps."""
    offering = node.exit_offer
    if offering.settings is None:
        return "stopped", "this node is no exit", ""
    if offering.is_spent:
        return "spent", "the budget of this month is used up; it goes on in the next one", ""
    if not offering.versions(node):
        return "no_way_out", down_words("this host itself", offering.down(node)), ""
    if offering.error is not None:
        return "failed", offering.error, ""
    if offering.forward_obstacle is not None:
        where, remedy = offering.forward_obstacle
        text = f"the firewall chain {where} drops what would be forwarded"
        return "blocked", text, remedy
    if not offering.guests:
        hint = "nostrvpn exit offer --to members, or --to NAME"
        return "no_guests", "offered, but nobody may use it yet", hint
    return "offered", "offered to whom it is allowed", ""


def _is_shown(node: Node, key: str) -> bool:
    return key in node.exit_offer.guests or _volume(node, key).total > 0


def _client(node: Node, key: str) -> _Json:
    volume, rate = _volume(node, key), Volume()
    for ip in _addresses(node, key):
        rate += node.exit_offer.ledger.rates.get(ip, Volume())
    link = node.paths.snapshot(key)
    return {
        "npub": npub(key),
        "name": node.peer_name(key),
        "allowed": key in node.exit_offer.guests,
        "path": link.path if link is not None else "none",
        "uses": rate.total > 0,
        "up": volume.up,
        "down": volume.down,
        "rate_up": rate.up,
        "rate_down": rate.down,
    }


def _volume(node: Node, key: str) -> Volume:
    found = Volume()
    for ip in _addresses(node, key):
        found += node.exit_offer.ledger.volumes.get(ip, Volume())
    return found


def _addresses(node: Node, key: str) -> tuple[Any, ...]:
    roster = node.membership.roster
    if roster is None or key not in roster.members:
        return ()
    address = roster.address(key)
    return address.ipv4, address.ipv6


def _rules(node: Node) -> list[str]:
    """Return the rules about exits of this node and of the network, in words."""
    roster = node.membership.roster
    rules = [*node.permissions.local.rules, *(roster.rules if roster is not None else ())]
    return [rule_words(rule, node.peer_name) for rule in rules if rule.what is What.EXIT]


def _selector(node: Node, roster: Roster, text: str) -> Selector:
    if text in _MEMBERS:
        return EVERYBODY
    if text.startswith("tag:"):
        return parse_selector(text)
    names = {key: node.peer_name(key) for key in roster.members if key != node.me}
    return Selector("member", find_peer(text, names))


def _roster(node: Node) -> Roster:
    roster = node.membership.roster
    if roster is None or node.me not in roster.members:
        raise UserError("this node is in no network yet", "see `nostrvpn status`")
    return roster


EXIT_OFFER_COMMANDS: dict[str, Callable[[Node, Command, Moment], list[NodeEffect]]] = {
    "exit_offer": _offer,
    "exit_offer_stop": _stop,
    "exit_clients": _clients,
}
