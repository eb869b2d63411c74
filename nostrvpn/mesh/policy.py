"""Who may do what: the network's rules and one node's own, joined to a decision in words.

The receiver decides, in this order; the first that has something to say wins:

1. who is no active member may nothing
2. the daemons' own channel is open between members
3. shields up: nothing is let in
4. the node's own rules
5. the network's rules (signed by its admins)
6. devices of one owner may everything with each other
7. the default: nothing, ping or everything

Within 4 and 5 a rule about a member beats one about a tag, which beats one about everybody; first
by source, then by target. Among equals *deny* wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.mesh.members import Member, NetworkSettings
from nostrvpn.mesh.permissions import (
    PortSpan,
    Rule,
    Selector,
    What,
    parse_rule,
    rule_to_json,
    what_text,
)

__all__ = [
    "CHANNEL_PORT",
    "INBOUND_DEFAULTS",
    "PING",
    "Decision",
    "Law",
    "LocalPolicy",
    "Question",
    "decide",
    "may_inbound",
    "may_otherwise",
    "means",
    "rule_words",
    "rules_about",
]

# TCP, inside the tunnel: where the daemons of members talk to each other.
CHANNEL_PORT = 4116
MAX_LOCAL_RULES = 500
INBOUND_DEFAULTS = {
    "none": "nothing is let in",
    "ping": "only ping is let in",
    "all": "members may everything",
}
PING = PortSpan("icmp")

_RANK = {"all": 0, "tag": 1, "member": 2}
_CHANNEL = PortSpan("tcp", CHANNEL_PORT, CHANNEL_PORT)


class Law(Protocol):
    """What a decision asks of a roster."""

    @property
    def members(self) -> Mapping[str, Member]: ...
    @property
    def rules(self) -> Sequence[Rule]: ...
    @property
    def settings(self) -> NetworkSettings: ...


@dataclass(frozen=True, slots=True)
class LocalPolicy:
    """What the user of one node decided; None leaves it to the network.

    ``inbound`` and ``same_owner`` come from the configuration, the rest from commands. A rule's
    target is this node, whatever it says.
    """

    shields_up: bool = False
    rules: tuple[Rule, ...] = ()
    inbound: str | None = None
    same_owner: bool | None = None

    def with_rule(self, rule: Rule, *, withdraw: bool = False) -> LocalPolicy:
        """Return the policy with (or without) a rule; its opposite goes in any case.

        Raises ValueError if there are too many.
        """
        kept = tuple(one for one in self.rules if one not in (rule, _opposite(rule)))
        if withdraw:
            return replace(self, rules=kept)
        if len(kept) >= MAX_LOCAL_RULES:
            raise ValueError(f"a node has at most {MAX_LOCAL_RULES} rules of its own")
        return replace(self, rules=(*kept, rule))

    def to_json(self) -> dict[str, object]:
        """Return what is stored: what commands decided."""
        return {"shields_up": self.shields_up, "rules": [rule_to_json(rule) for rule in self.rules]}

    def restored(self, stored: object) -> LocalPolicy:
        """Return this policy with what was stored; PeerMisbehaved if that is damaged."""
        fields = stored if isinstance(stored, Mapping) else {}
        up, rules = fields.get("shields_up"), fields.get("rules")
        if not isinstance(up, bool) or not isinstance(rules, list | tuple):
            raise PeerMisbehaved("bad_record", "not a policy")
        if len(rules) > MAX_LOCAL_RULES:
            raise PeerMisbehaved("bad_record", "too many rules")
        return replace(self, shields_up=up, rules=tuple(parse_rule(rule) for rule in rules))


@dataclass(frozen=True, slots=True)
class Question:
    """May ``source`` do ``what`` at ``target`` (public keys)?

    ``port`` is of ``inbound``: one port, or ping; None asks for what has no port (any other protocol).
    """

    source: str
    target: str
    what: What = What.INBOUND
    port: PortSpan | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer. ``layer`` is what decided; ``text`` says so in words, as half a sentence."""

    allowed: bool
    layer: str
    rule: Rule | None
    text: str


def decide(
    law: Law,
    local: LocalPolicy,
    question: Question,
    wall: float,
    name: Callable[[str], str] | None = None,
) -> Decision:
    """Answer a question at ``wall`` (Unix time). ``local`` is the target's own policy.

    ``name`` says how a public key is called in the text; without it as in the roster.
    """
    called = name or (lambda key: law.members[key].name if key in law.members else key[:8])
    source, target = law.members.get(question.source), law.members.get(question.target)
    for key, member in ((question.source, source), (question.target, target)):
        if member is None or not member.is_active(wall):
            return Decision(False, "members", None, f"{called(key)} is no member of the network")
    assert source is not None
    assert target is not None
    if question.source == question.target:
        return Decision(True, "itself", None, "a node may everything with itself")
    if question.what is What.INBOUND and question.port == _CHANNEL:
        return Decision(True, "channel", None, "the daemons of members talk on this port")
    if local.shields_up:
        return Decision(
            False, "shields-up", None, f"the shields of {called(target.public_key)} are up"
        )
    layers = (
        ("local", "this node", rules_about(local.rules, source, None, question.what)),
        ("network", "the network", rules_about(law.rules, source, target, question.what)),
    )
    for layer, whose, rules in layers:
        rule = _deciding(rules, question.port)
        if rule is not None:
            words = f"a rule of {whose} decides: {rule_words(rule, called)}"
            return Decision(rule.allow, layer, rule, words)
    return _without_rule(law, local, question, source.owner == target.owner)


def _without_rule(law: Law, local: LocalPolicy, question: Question, same_owner: bool) -> Decision:
    if same_owner and _same_owner(law, local):
        return Decision(True, "same-owner", None, "both are devices of the same owner")
    if question.what is not What.INBOUND:
        return Decision(False, "default", None, f"no rule allows {question.what.value}")
    inbound = may_otherwise(law, local, same_owner)
    allowed = inbound == "all" or (inbound == "ping" and question.port == PING)
    text = f"no rule is about it, and by default {INBOUND_DEFAULTS[inbound]}"
    return Decision(allowed, "default", None, text)


def _same_owner(law: Law, local: LocalPolicy) -> bool:
    return law.settings.same_owner if local.same_owner is None else local.same_owner


def may_otherwise(law: Law, local: LocalPolicy, same_owner: bool) -> str:
    """Return what is let in where no rule decides: ``none``, ``ping`` or ``all``."""
    if same_owner and _same_owner(law, local):
        return "all"
    inbound = local.inbound or law.settings.inbound
    # A word of a later version: the cautious reading.
    return inbound if inbound in INBOUND_DEFAULTS else "none"


def may_inbound(
    local: Sequence[Rule], network: Sequence[Rule], otherwise: str, port: PortSpan | None
) -> bool:
    """Whether one port (None: what has none) of a member that may be let in is open to it.

    ``local`` and ``network`` are the rules about that member (:func:`rules_about`), ``otherwise``
    what :func:`may_otherwise` said.
    """
    if port == _CHANNEL:
        return True
    rule = _deciding(local, port) or _deciding(network, port)
    if rule is not None:
        return rule.allow
    return otherwise == "all" or (otherwise == "ping" and port == PING)


def rules_about(
    rules: Iterable[Rule], source: Member, target: Member | None, what: What
) -> tuple[Rule, ...]:
    """Return the rules about ``what`` from ``source`` to ``target`` (None: whatever the target)."""
    return tuple(
        rule
        for rule in rules
        if rule.what is what
        and means(rule.source, source)
        and (target is None or means(rule.target, target))
    )


def rule_words(rule: Rule, name: Callable[[str], str]) -> str:
    """Return a rule as people read it: ``allow laptop inbound:tcp/22``, with ``at …`` if not at all."""
    words = f"{'allow' if rule.allow else 'deny'} {_called(rule.source, name)} "
    words += what_text(rule.what, rule.ports)
    return words if rule.target.kind == "all" else f"{words} at {_called(rule.target, name)}"


def _called(selector: Selector, name: Callable[[str], str]) -> str:
    return name(selector.value) if selector.kind == "member" else str(selector)


def means(selector: Selector, member: Member) -> bool:
    """Whether a rule's selector includes a member."""
    if selector.kind == "member":
        return selector.value == member.public_key
    return selector.kind == "all" or selector.value in member.tags


def _deciding(rules: Iterable[Rule], port: PortSpan | None) -> Rule | None:
    """Return the rule that decides about a port, of rules about one source and one target."""
    return max((rule for rule in rules if _covers(rule, port)), key=_weight, default=None)


def _covers(rule: Rule, port: PortSpan | None) -> bool:
    if not rule.ports:
        return True
    return port is not None and any(span.covers(port) for span in rule.ports)


def _weight(rule: Rule) -> tuple[int, int, bool]:
    return _RANK[rule.source.kind], _RANK[rule.target.kind], not rule.allow


def _opposite(rule: Rule) -> Rule:
    return replace(rule, allow=not rule.allow)
