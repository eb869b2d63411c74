"""The control commands about using an exit: which one, what goes around it, where none is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nostrvpn.errors import UserError
from nostrvpn.exits.kill_switch import KillSwitch
from nostrvpn.exits.settings import (
    AUTO,
    BOUGHT,
    MAX_BYPASS,
    MAX_TRUSTED,
    ExitSettings,
    parse_bypass,
    parse_network_word,
    parse_resolver,
)
from nostrvpn.host.exit_routing import PRIVATE
from nostrvpn.host.state import IPNetwork
from nostrvpn.identity.reference import find_peer
from nostrvpn.machine import Moment
from nostrvpn.mesh.roster import Roster
from nostrvpn.node.events import Command, NodeEffect, Persist, Reconcile, Reply
from nostrvpn.node.exit_status import (
    exit_document,
    exit_list_document,
    exit_name,
    kill_switch_words,
)
from nostrvpn.node.exits import ExitUse, leads_back, offer_of, overlay_networks

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["EXIT_COMMANDS", "run_exit_command"]

_Json = dict[str, Any]


def run_exit_command(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    """Carry out one of ``EXIT_COMMANDS``; NostrvpnError refuses it."""
    return EXIT_COMMANDS[command.name](node, command, moment)


def _list(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    return [Reply(command.call, exit_list_document(node, moment))]


def _status(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    return [Reply(command.call, exit_document(node, moment))]


def _use(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    args: _Json = command.args
    wanted = _chosen(node, str(args["peer"]), moment)
    settings = _with_options(node.exits.settings, args)
    settings = replace(settings, exit=wanted)
    busy = node.booths.exit
    if busy is not None and wanted not in (AUTO, busy):
        raise UserError(
            f"a command runs through {node.peer_name(busy)}, and there is one exit at a time",
            "end it, or wait until it has ended: it was started with `nostrvpn exec`",
        )
    if args["dry_run"]:
        return [Reply(command.call, _plan(node, settings, moment))]
    return _decide(node, command, settings, moment)


def _off(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    settings = _with_options(node.exits.settings, command.args)
    return _decide(node, command, replace(settings, exit=""), moment)


def _bypass(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    settings, words = _sound(node.exits), []
    for given in _words_of(command):
        word = parse_bypass(given)
        for own in overlay_networks(node):
            if word.network is not None and _overlap(word.network, own):
                text = f"{word.network} overlaps {own}, which is reached through the mesh"
                raise UserError(text, "members need no way around the exit")
        words.append(str(word))
    changed = _edited(settings.bypass, words, command, MAX_BYPASS)
    return _decide(node, command, replace(settings, bypass=changed), moment)


def _trust(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    settings, here = _sound(node.exits), node.exits.network
    words = [parse_network_word(word) for word in _words_of(command)]
    if command.args["action"] != "list" and not words:
        if not here:
            raise UserError(
                "the network that this host is in is not known: its default gateway has not answered",
                "try again in a moment, or name it: MAC PREFIX",
            )
        words = [here]
    changed = _edited(settings.trusted, words, command, MAX_TRUSTED)
    return _decide(node, command, replace(settings, trusted=changed), moment)


def _exec_begin(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    key = _chosen(node, str(command.args["peer"]), moment)
    if key == AUTO:
        if node.exits.used is None:
            raise UserError("this host uses no exit, so auto says nothing", "name it: --exit PEER")
        key = node.exits.used
    taken: Any = command.args["taken"]
    booth = node.booths.begin(node, key, taken, moment)
    effects = node.booths.review(node, moment)
    way = node.booths.way
    answer = {
        "link": booth.link,
        "outside": [str(address) for address in booth.outside],
        "inside": [str(address) for address in booth.inside],
        "exit": node.peer_name(key),
        "tunnel": node.settings.tunnel.interface,
        "versions": sorted(way.versions),
        "resolvers": sorted(str(address) for address in way.resolvers),
    }
    return [*effects, Reply(command.call, answer)]


def _exec_ready(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    node.booths.made(str(command.args["link"]))
    return [Reconcile(), Reply(command.call, {})]


def _exec_end(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    node.booths.end(str(command.args["link"]))
    return [*node.booths.review(node, moment), Reply(command.call, {})]


def _decide(
    node: Node, command: Command, settings: ExitSettings, moment: Moment
) -> list[NodeEffect]:
    """Let ``settings`` hold from now on, and answer with how things stand then."""
    exits = node.exits
    effects: list[NodeEffect] = []
    if settings != exits.settings or exits.damage is not None:
        exits.settings, exits.damage = settings, None
        stored = None if settings.is_default else settings.to_json()
        effects = [Persist("policy", "exit", stored), Reconcile()]
    # As it will be at the end of this step.
    effects += exits.review(node, moment)
    return [*effects, Reply(command.call, exit_document(node, moment))]


def _chosen(node: Node, reference: str, moment: Moment) -> str:
    """Return the exit that is meant: a public key that may be used, or ``AUTO``."""
    if reference == BOUGHT:
        return BOUGHT
    roster = _roster(node)
    if reference == AUTO:
        return AUTO
    names = {key: node.peer_name(key) for key in roster.members if key != node.me}
    key = find_peer(reference, names)
    offer = offer_of(node, key, moment.wall)
    if offer is None:
        name = node.peer_name(key)
        raise UserError(
            f"{name} does not offer this node to be its exit",
            f"see `nostrvpn exit list`; {name} has to run `nostrvpn exit offer`",
        )
    if leads_back(node, offer):
        name = node.peer_name(key)
        raise UserError(
            f"{name} itself leaves through this node: packets would go in a circle",
            f"on {name}: `nostrvpn exit off`, or another exit; or choose another one here",
        )
    return key


def _with_options(settings: ExitSettings, args: _Json) -> ExitSettings:
    if args.get("kill_switch") is not None:
        settings = replace(settings, kill_switch=KillSwitch(args["kill_switch"]))
    if args.get("allow_lan") is not None:
        settings = replace(settings, allow_lan=args["allow_lan"])
    if args.get("resolver") is not None:
        given = str(args["resolver"])
        settings = replace(settings, resolver=parse_resolver(given) if given != "exit" else "")
    return settings


def _sound(exits: ExitUse) -> ExitSettings:
    if exits.damage is not None:
        raise UserError(
            f"what was decided about exits is damaged ({exits.damage}), so nothing leaves",
            "decide anew: `nostrvpn exit use PEER`, or `nostrvpn exit off`",
        )
    return exits.settings


def _words_of(command: Command) -> list[str]:
    words: Any = command.args["words"]
    return [str(word) for word in words]


def _edited(
    known: tuple[str, ...], words: list[str], command: Command, most: int
) -> tuple[str, ...]:
    if command.args["action"] == "add":
        changed = tuple(dict.fromkeys([*known, *words]))
        if len(changed) > most:
            raise UserError(f"there can be at most {most}", "remove what is not needed any more")
        return changed
    if command.args["action"] == "remove":
        missing = [word for word in words if word not in known]
        if missing:
            kind = command.name.removeprefix("exit_")
            raise UserError(f"{missing[0]} is not among them", f"see `nostrvpn exit {kind} list`")
        return tuple(word for word in known if word not in words)
    return known


def _overlap(one: IPNetwork, other: IPNetwork) -> bool:
    return one.version == other.version and one.overlaps(other)


def _roster(node: Node) -> Roster:
    roster = node.membership.roster
    if roster is None or node.me not in roster.members:
        raise UserError("this node is in no network yet", "see `nostrvpn status`")
    return roster


# -- the plan -------------------------------------------------------------------------------


def _plan(node: Node, settings: ExitSettings, moment: Moment) -> _Json:
    """Return what `exit_use` would change, in words and as networks that stay reached as now."""
    words = [parse_bypass(word) for word in settings.bypass]
    around = [str(word.network) for word in words if word.network is not None]
    overlay = sorted(map(str, overlay_networks(node)))
    offer = None if settings.exit == AUTO else offer_of(node, settings.exit, moment.wall)
    if offer is not None and offer.down:
        offer = None  # what it will carry is not known
    lines = [f"everything goes through {exit_name(node, settings.exit)}, or nowhere"]
    if offer is not None and not offer.v6:
        lines.append("IPv6 to the internet is blocked: this exit carries IPv4 only")
    if offer is not None and not offer.v4:
        lines.append("IPv4 to the internet is blocked: this exit carries IPv6 only")
    lines.append(
        "the local network stays reachable"
        if settings.allow_lan
        else "the local network is cut off"
    )
    lines.append(kill_switch_words(settings.kill_switch))
    asked = settings.resolver or "the exit itself, if it answers"
    lines.append(f"DNS questions go to {asked}; others (ports 53 and 853) are held back")
    if settings.bypass:
        lines.append(f"around the exit: {', '.join(settings.bypass)}")
    kept = "the mesh and the local network" if settings.allow_lan else "the mesh"
    lines.append(f"connections that came in from outside {kept} are cut, SSH among them")
    return {
        "wanted": settings.exit if settings.exit == AUTO else node.peer_name(settings.exit),
        "lines": lines,
        "kept": [*overlay, *around, *(PRIVATE if settings.allow_lan else ())],
        "allow_lan": settings.allow_lan,
    }


EXIT_COMMANDS: dict[str, Callable[[Node, Command, Moment], list[NodeEffect]]] = {
    "exit_list": _list,
    "exit_status": _status,
    "exit_use": _use,
    "exit_off": _off,
    "exit_bypass": _bypass,
    "exit_trust": _trust,
    "exec_begin": _exec_begin,
    "exec_ready": _exec_ready,
    "exec_end": _exec_end,
}
