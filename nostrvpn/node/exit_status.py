"""What is shown of exits: the one in use, those that could be, and what is wrong with them, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nostrvpn.exits.kill_switch import ExitState, KillSwitch
from nostrvpn.exits.offer import ExitOffer
from nostrvpn.exits.settings import AUTO, BOUGHT
from nostrvpn.identity.keys import npub
from nostrvpn.machine import Moment
from nostrvpn.mesh.permissions import What
from nostrvpn.mesh.policy import LocalPolicy, Question, decide
from nostrvpn.node.exits import leads_back, offer_of
from nostrvpn.node.problems import Problem, problem

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = [
    "down_words",
    "exit_document",
    "exit_list_document",
    "exit_name",
    "exit_problems",
    "kill_switch_words",
]

# A first echo, and a failover, are done with in less; then it is a problem.
PATIENCE_S = 6.0

_Json = dict[str, Any]


def exit_document(node: Node, moment: Moment) -> _Json:
    """Return how this node leaves for the internet now, and what its user decided."""
    exits = node.exits
    settings, used = exits.settings, exits.used
    return {
        "state": _state(node).value,
        "text": _words(node, moment),
        "since_s": _age(exits.state_since, moment) if exits.state is not ExitState.OFF else None,
        "wanted": _reference(settings.exit),
        "exit": None if used is None else _exit(node, used, moment),
        "kill_switch": settings.kill_switch.value,
        "allow_lan": settings.allow_lan,
        "resolver": settings.resolver or None,
        "resolvers": [str(address) for address in exits.resolvers(node)],
        "bypass": list(settings.bypass),
        "trusted": list(settings.trusted),
        "network": exits.network or None,
        "is_trusted": exits.is_trusted,
        "damage": exits.damage,
        "rival": exits.rival,
        "shield_error": exits.shield_error,
        "dns_error": exits.dns_error,
    }


def _state(node: Node) -> ExitState:
    """Return the state as far as the kernel has it: until then an exit is still being connected to."""
    state = node.exits.state
    if state is ExitState.CONNECTED and not node.exits.is_in_force:
        return ExitState.CONNECTING
    return state


def exit_list_document(node: Node, moment: Moment) -> _Json:
    """Return every member that offers this node to be its exit."""
    found = [key for key in node.peers if offer_of(node, key, moment.wall) is not None]
    return {"exits": [_exit(node, key, moment) for key in sorted(found, key=node.peer_name)]}


def _exit(node: Node, key: str, moment: Moment) -> _Json:
    offer = offer_of(node, key, moment.wall) or ExitOffer(v4=False)
    link, choice = node.paths.snapshot(key), node.exits.choice
    path_rtt = link.rtt_ms if link is not None else None
    rtt = choice.rtt_ms(key)
    in_use = key == node.exits.used
    state = _standing(node, key)
    return {
        "npub": npub(key),
        "name": node.peer_name(key),
        "in_use": in_use,
        "since_s": _age(choice.since, moment) if in_use and choice.since is not None else None,
        "state": state,
        "country": offer.country,
        "country_observed": node.exits.countries.get(key),
        "rtt_ms": _rounded(path_rtt if rtt is None else rtt),
        "load": offer.load,
        "v4": offer.v4,
        "v6": offer.v6,
        "dns": offer.dns,
        "policy": offer.policy,
        "path": link.path if link is not None else "none",
        "through": [node.peer_name(hop) for hop in offer.through],
    }


def _standing(node: Node, key: str) -> str:
    """Say in one word how an exit does: ``answers``, ``silent``, ``reachable``, ``unreachable``,
    ``loops``, ``down`` (it says that it has no way out itself)."""
    offer = node.peers[key].exit
    if offer is not None and leads_back(node, offer):
        return "loops"
    if offer is not None and offer.down:
        return "down"
    choice, link = node.exits.choice, node.paths.snapshot(key)
    if key in node.exits.candidates:
        if choice.is_alive(key):
            return "answers"
        if choice.silent_since(key) is not None:
            return "silent"
    has_path = link is not None and (link.path != "none" or link.asleep)
    return "reachable" if has_path else "unreachable"


def exit_name(node: Node, wanted: str) -> str:
    """Return what the user calls the exit that is wanted."""
    if wanted == AUTO:
        return "the best exit"
    if wanted == BOUGHT:
        purchase = node.exits.purchase
        return (purchase.label if purchase is not None else "") or "an exit that is paid for"
    return node.peer_name(wanted) if wanted else "no exit"


def kill_switch_words(kill_switch: KillSwitch) -> str:
    """Return what a kill switch does, as half a sentence."""
    return {
        KillSwitch.OFF: "kill switch off: without the daemon everything leaves by the host's own routes",
        KillSwitch.ON: "kill switch on: nothing leaves outside until exit off",
        KillSwitch.LOCKDOWN: "lockdown: nothing leaves outside, over restarts, until exit off "
        "--kill-switch off",
    }[kill_switch]


def down_words(name: str, down: str) -> str:
    """Return why an exit carries nothing, as a sentence without its stop."""
    why = {
        "provider": ": its WireGuard provider does not answer",
        "exit": ": the exit that it leaves by itself does not carry",
    }.get(down, "")
    return f"{name} has no way to the internet now{why}"


def _words(node: Node, moment: Moment) -> str:
    exits = node.exits
    settings, used = exits.settings, exits.used
    switch = kill_switch_words(settings.kill_switch)
    match _state(node):
        case ExitState.OFF:
            if exits.rival is not None and settings.exit:
                return f"no exit is used: another network of this host, {exits.rival}, uses one"
            if exits.is_trusted and settings.exit:
                return (
                    f"no exit in this trusted network; elsewhere {exit_name(node, settings.exit)}"
                )
            return "no exit is used"
        case ExitState.LOCKDOWN:
            return "lockdown: no exit is used, and nothing leaves outside the mesh"
        case ExitState.BLOCKED:
            return f"nothing leaves outside the mesh: {_why_blocked(node, moment)}"
        case ExitState.CONNECTING:
            name = exit_name(node, used or settings.exit)
            if exits.state is ExitState.CONNECTED:
                return f"{name} answers; the kernel is being told ({switch})"
            return f"waiting for {name}; nothing leaves meanwhile ({switch})"
        case ExitState.CONNECTED:
            versions = sorted(exits.versions(node))
            spoken = " and ".join(f"IPv{version}" for version in versions) or "nothing"
            country = _country(node, used or "", moment)
            name = exit_name(node, used or settings.exit)
            chosen = ", chosen automatically" if settings.exit == AUTO else ""
            return f"{spoken} through {name}{country}{chosen} ({switch})"


def _country(node: Node, key: str, moment: Moment) -> str:
    offer, observed = offer_of(node, key, moment.wall), node.exits.countries.get(key)
    claimed = offer.country if offer is not None else None
    if observed is not None and claimed is not None and observed != claimed:
        return f" in {observed} (it says {claimed})"
    if observed is not None:
        return f" in {observed}"
    return f" in {claimed}, as it says" if claimed is not None else ""


def _why_blocked(node: Node, moment: Moment) -> str:
    exits, roster = node.exits, node.membership.roster
    if exits.damage is not None:
        return f"what was decided about exits is damaged ({exits.damage})"
    wanted = exits.settings.exit
    if wanted == BOUGHT:
        return "no exit can be bought: see `nostrvpn market list`"
    if roster is None or node.me not in roster.members:
        return "this node is in no network"
    if wanted == AUTO:
        offers = {key: offer_of(node, key, moment.wall) for key in sorted(node.peers)}
        down = [
            down_words(node.peer_name(key), offer.down)
            for key, offer in offers.items()
            if offer is not None and offer.down
        ]
        return "; ".join(down[:3]) or "no member offers to be an exit for this node"
    name = node.peer_name(wanted)
    if wanted not in roster.members:
        return f"{name} is not a member any more"
    offer = offer_of(node, wanted, moment.wall)
    if offer is not None and leads_back(node, offer):
        return f"{name} itself leaves through this node, so packets would go in a circle"
    if offer is not None and offer.down:
        return down_words(name, offer.down)
    # Its own rules are not known here: what it offers nobody, and what it denies, look the same.
    question = Question(node.me, wanted, What.EXIT)
    decision = decide(roster, LocalPolicy(), question, moment.wall, node.peer_name)
    allowed = "" if decision.allowed else f" ({decision.text}, unless its own rules say so)"
    return f"{name} does not offer this node to be its exit{allowed}"


# -- what is wrong --------------------------------------------------------------------------


def exit_problems(node: Node, moment: Moment) -> list[Problem]:
    """Return what is wrong with leaving through an exit."""
    exits, found = node.exits, []
    if exits.shield_error is not None:
        found.append(problem("exit_shield_failed", reason=exits.shield_error))
    found += _offer_problems(node)
    if exits.rival is not None and exits.settings.exit:
        found.append(problem("exit_rival", interface=exits.rival))
    match exits.state:
        case ExitState.BLOCKED if exits.damage is None and exits.settings.exit not in (
            AUTO,
            BOUGHT,
        ):
            found.append(problem("exit_not_permitted", reason=_why_blocked(node, moment)))
        case ExitState.BLOCKED:
            found.append(problem("exit_blocked", reason=_why_blocked(node, moment)))
        case ExitState.CONNECTING if _age(exits.state_since, moment) >= PATIENCE_S:
            name = exit_name(node, exits.used or exits.settings.exit)
            found.append(problem("exit_unreachable", name=name))
        case ExitState.LOCKDOWN:
            found.append(problem("exit_lockdown"))
        case ExitState.CONNECTED:
            found += _connected_problems(node)
        case _:
            pass
    return found


def _offer_problems(node: Node) -> list[Problem]:
    """Return why guests of this node are not let through, if it is an exit."""
    offering = node.exit_offer
    if offering.settings is None:
        return []
    if offering.error is not None:
        return [problem("exit_offer_failed", reason=offering.error)]
    if down := offering.down(node):
        return [problem("exit_offer_down", reason=down_words("this host itself", down))]
    if offering.forward_obstacle is not None:
        where, remedy = offering.forward_obstacle
        return [problem("exit_offer_blocked", where=where, remedy=remedy)]
    return []


def _connected_problems(node: Node) -> list[Problem]:
    exits, found = node.exits, []
    versions, name = exits.versions(node), exit_name(node, exits.used or exits.settings.exit)
    if 4 not in versions:
        found.append(problem("exit_no_v4", name=name))
    if 6 not in versions:
        found.append(problem("exit_no_v6", name=name))
    if exits.dns_error is not None:
        found.append(problem("exit_dns", reason=exits.dns_error))
    elif not exits.resolvers(node):
        found.append(problem("exit_dns", reason=f"{name} answers no DNS"))
    return found


def _reference(wanted: str) -> str | None:
    if wanted in (AUTO, BOUGHT):
        return wanted
    return npub(wanted) if wanted else None


def _age(since: float, moment: Moment) -> float:
    return round(max(0.0, moment.now - since), 1)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
