"""The control commands about permissions: rules of this node or of the network, shields, questions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from nostrvpn.errors import UsageError, UserError
from nostrvpn.identity.keys import npub
from nostrvpn.machine import Moment
from nostrvpn.mesh.permissions import (
    EVERYBODY,
    PROTOCOLS,
    PortSpan,
    Rule,
    Selector,
    What,
    parse_selector,
    parse_what,
    what_text,
)
from nostrvpn.mesh.policy import LocalPolicy, Question, decide, rule_words
from nostrvpn.node.asked import asked_member, asked_roster, shown_name
from nostrvpn.node.events import Command, NodeEffect, Persist, Reconcile, Refuse, Reply

if TYPE_CHECKING:
    from nostrvpn.node.node import Node

__all__ = ["POLICY_COMMANDS", "run_policy_command"]

_ALL = ("*", "all")
_SEE_RULES = "see `nostrvpn rules`"


def run_policy_command(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    """Carry out one of ``POLICY_COMMANDS``; NostrvpnError refuses it."""
    return POLICY_COMMANDS[command.name](node, command, moment)


def _permit(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    args = command.args
    asked_roster(node)  # outside a network there is nobody to speak of
    network, undo = bool(args["network"]), bool(args["undo"])
    what, ports = parse_what(str(args["what"]))
    source = _selector(node, str(args["who"]))
    target = _selector(node, str(args["at"])) if args["at"] is not None else EVERYBODY
    if target != EVERYBODY and not network:
        raise UsageError(
            "--at is for rules of the network", "a rule of this node is about it alone"
        )
    if not network and source == Selector("member", node.me):
        raise UserError(
            "a rule of this node is about others", "name another member, or add --network"
        )
    rule = Rule(bool(args["allow"]), source, target, what, ports)
    answer = Reply(command.call, _document(node, rule) | {"undone": undo})
    if network:
        return _sign(node, rule, answer, moment, undo=undo)
    return [*_note(node, rule, undo=undo), answer]


def _note(node: Node, rule: Rule, *, undo: bool) -> list[NodeEffect]:
    local = node.permissions.local
    if undo and rule not in local.rules:
        raise UserError("this node has no such rule", _SEE_RULES)
    try:
        changed = local.with_rule(rule, withdraw=undo)
    except ValueError as exc:
        raise UserError(str(exc), _SEE_RULES) from exc
    return _adopt(node, changed)


def _sign(node: Node, rule: Rule, answer: Reply, moment: Moment, *, undo: bool) -> list[NodeEffect]:
    rules = asked_roster(node).rules
    if undo and rule not in rules:
        raise UserError("the network has no such rule", _SEE_RULES)
    opposite = replace(rule, allow=not rule.allow)
    wanted = [(opposite, True)] if not undo and opposite in rules else []
    wanted += [(rule, undo)] if undo or rule not in rules else []
    effects: list[NodeEffect] = []
    for item, withdraw in wanted:
        try:
            signed = node.membership.permit(item, withdraw, moment)
        except UserError as exc:
            # What is signed by now holds, and is stored and told.
            return [*effects, Refuse(answer.call, exc.code, str(exc), exc.hint)]
        effects += node.take_membership(signed, moment)
    return [*effects, answer]


def _shields(node: Node, command: Command, _moment: Moment) -> list[NodeEffect]:
    up = bool(command.args["up"])
    effects = _adopt(node, replace(node.permissions.local, shields_up=up))
    return [*effects, Reply(command.call, {"shields_up": up})]


def _adopt(node: Node, local: LocalPolicy) -> list[NodeEffect]:
    node.permissions.local = local
    return [Persist("policy", "local", local.to_json()), Reconcile()]


def _rules(node: Node, command: Command, _moment: Moment) -> list[NodeEffect]:
    roster, local = asked_roster(node), node.permissions.local
    inbound, same = local.inbound, local.same_owner
    answer = {
        "shields_up": local.shields_up,
        "inbound": roster.settings.inbound if inbound is None else inbound,
        "same_owner": roster.settings.same_owner if same is None else same,
        "local": [_document(node, rule) for rule in local.rules],
        "network": [_document(node, rule) for rule in roster.rules],
    }
    return [Reply(command.call, answer)]


def _test(node: Node, command: Command, moment: Moment) -> list[NodeEffect]:
    roster, args = asked_roster(node), command.args
    source, target = (asked_member(node, str(args[key])) for key in ("source", "target"))
    what, port = _asked(str(args["what"]))
    local = node.permissions.local if target == node.me else LocalPolicy()
    question = Question(source, target, what, port)
    decision = decide(roster, local, question, moment.wall, partial(shown_name, node))
    unknown = target not in (node.me, source)
    rule = decision.rule
    answer = {
        "source": {"npub": npub(source), "name": shown_name(node, source)},
        "target": {"npub": npub(target), "name": shown_name(node, target)},
        "what": what_text(what, () if port is None else (port,)),
        "allowed": decision.allowed,
        "layer": decision.layer,
        "rule": None if rule is None else _document(node, rule),
        "text": decision.text,
        "note": "the rules that the target's own user made are known there only"
        if unknown
        else None,
    }
    return [Reply(command.call, answer)]


def _asked(text: str) -> tuple[What, PortSpan | None]:
    """Return what is asked about: ``tcp/22`` is short for ``inbound:tcp/22``, ``ping`` for its ICMP."""
    text = "icmp" if text == "ping" else text
    word = text.partition("/")[0]
    what, ports = parse_what(f"inbound:{text}" if word in PROTOCOLS else text)
    if len(ports) > 1 or any(port.first != port.last for port in ports):
        raise UsageError("ask about one port at a time", "for example: tcp/22")
    return what, ports[0] if ports else None


def _document(node: Node, rule: Rule) -> dict[str, object]:
    return {
        "allow": rule.allow,
        "who": str(rule.source),
        "at": str(rule.target),
        "what": what_text(rule.what, rule.ports),
        "text": rule_words(rule, partial(shown_name, node)),
    }


def _selector(node: Node, text: str) -> Selector:
    if text in _ALL:
        return EVERYBODY
    if text.startswith("tag:"):
        return parse_selector(text)
    return Selector("member", asked_member(node, text))


POLICY_COMMANDS: dict[str, Callable[[Node, Command, Moment], list[NodeEffect]]] = {
    "permit": _permit,
    "shields_up": _shields,
    "rules": _rules,
    "policy_test": _test,
}
