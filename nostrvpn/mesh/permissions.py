"""Who may do what at whose node: rules as values, and their forms as text and as JSON.

A rule is a sentence: *allow|deny* a source (everybody, a member, a tag) *what* at a target. The same
form serves a network's admins (``permit`` operations of the roster) and each node's own user
(``mesh/policy.py`` joins the two and decides).

``inbound`` without ports is everything that the source may send to the target, echoes included;
``inbound:icmp`` is the echo of ``ping`` alone. ``lan`` is forwarding into the networks behind the
target, ``exit`` using it as the way to the internet, ``files`` sending it files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from nostrvpn.errors import PeerMisbehaved, UsageError, one_line
from nostrvpn.identity.keys import BadKey, npub, parse_npub

__all__ = [
    "EVERYBODY",
    "MAX_PORT",
    "PROTOCOLS",
    "PortSpan",
    "Rule",
    "Selector",
    "What",
    "is_tag",
    "parse_port_span",
    "parse_rule",
    "parse_selector",
    "parse_what",
    "rule_to_json",
    "what_text",
]

MAX_PORT = 65535
# A rule stays one short line of a signed operation.
MAX_SPANS = 32
# The IP protocols that a rule can name; "icmp" is the echo request of ICMP and ICMPv6.
PROTOCOLS = ("tcp", "udp", "icmp")

_TAG = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_HEX_KEY = re.compile(r"[0-9a-f]{64}")
_SPAN = re.compile(r"(tcp|udp)(?:/([0-9]{1,5})(?:-([0-9]{1,5}))?)?")
_EXAMPLE = "for example: inbound, inbound:tcp/22,udp/53-60,icmp, lan, exit, files"


class What(Enum):
    """What a rule is about."""

    INBOUND = "inbound"
    EXIT = "exit"
    LAN = "lan"
    FILES = "files"


@dataclass(frozen=True, slots=True, order=True)
class PortSpan:
    """Ports ``first`` to ``last`` (both included) of ``tcp`` or ``udp``; of ``icmp`` both are 0."""

    protocol: str
    first: int = 0
    last: int = 0

    def __str__(self) -> str:
        if self.protocol == "icmp" or (self.first, self.last) == (0, MAX_PORT):
            return self.protocol
        span = f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"
        return f"{self.protocol}/{span}"

    def covers(self, other: PortSpan) -> bool:
        """Whether all of ``other`` lies within this one."""
        same = self.protocol == other.protocol
        return same and self.first <= other.first and other.last <= self.last


@dataclass(frozen=True, slots=True)
class Selector:
    """Whom a rule means. ``kind`` is ``all``, ``member`` (64 hex digits) or ``tag`` (its name)."""

    kind: str
    value: str = ""

    def __str__(self) -> str:
        if self.kind == "all":
            return "*"
        return f"tag:{self.value}" if self.kind == "tag" else npub(self.value)


EVERYBODY = Selector("all")


@dataclass(frozen=True, slots=True)
class Rule:
    """One sentence. ``ports`` (of ``inbound`` only): sorted, without repetition; empty: everything."""

    allow: bool
    source: Selector
    target: Selector
    what: What
    ports: tuple[PortSpan, ...] = ()

    def __str__(self) -> str:
        words = "allow" if self.allow else "deny"
        return f"{words} {self.source} {what_text(self.what, self.ports)} at {self.target}"


def rule_to_json(rule: Rule) -> dict[str, object]:
    """Return a rule as :func:`parse_rule` takes it."""
    return {
        "allow": rule.allow,
        "from": _key_text(rule.source),
        "to": _key_text(rule.target),
        "what": what_text(rule.what, rule.ports),
    }


def parse_rule(value: object) -> Rule:
    """Parse ``{"allow": bool, "from": selector, "to": selector, "what": text}``, no other key.

    PeerMisbehaved ``bad_rule`` for anything else.
    """
    if not isinstance(value, Mapping) or set(value) != {"allow", "from", "to", "what"}:
        raise PeerMisbehaved("bad_rule", "a rule has the fields allow, from, to and what")
    allow, texts = value["allow"], [value[key] for key in ("from", "to", "what")]
    if not isinstance(allow, bool) or not all(isinstance(text, str) for text in texts):
        raise PeerMisbehaved("bad_rule", "a rule with a mistyped field")
    try:
        what, ports = parse_what(texts[2])
        return Rule(allow, parse_selector(texts[0]), parse_selector(texts[1]), what, ports)
    except UsageError as exc:
        raise PeerMisbehaved("bad_rule", str(exc)) from exc


def is_tag(text: str) -> bool:
    """Whether this may be the name of a tag: a-z, 0-9 and inner hyphens, at most 63."""
    return _TAG.fullmatch(text) is not None


def parse_selector(text: str) -> Selector:
    """Parse ``*``, ``tag:NAME``, an npub or 64 hex digits; UsageError for anything else."""
    if text == "*":
        return EVERYBODY
    if text.startswith("tag:") and is_tag(text[4:]):
        return Selector("tag", text[4:])
    if _HEX_KEY.fullmatch(text):
        return Selector("member", text)
    try:
        return Selector("member", parse_npub(text))
    except BadKey as exc:
        raise UsageError(
            f"{one_line(text)!r} names nobody", "write *, tag:NAME, or a member"
        ) from exc


def parse_what(text: str) -> tuple[What, tuple[PortSpan, ...]]:
    """Parse ``inbound[:SPAN,…]``, ``exit``, ``lan`` or ``files``; UsageError says what is wrong."""
    word, colon, spans = text.partition(":")
    try:
        what = What(word)
    except ValueError as exc:
        raise UsageError(f"{one_line(word)!r} is nothing to allow", _EXAMPLE) from exc
    if not colon:
        return what, ()
    if what is not What.INBOUND:
        raise UsageError(f"{word} takes no ports", _EXAMPLE)
    parts = spans.split(",", MAX_SPANS)
    if len(parts) > MAX_SPANS:
        raise UsageError(f"a rule has at most {MAX_SPANS} ports and ranges", "write two rules")
    return what, tuple(sorted({parse_port_span(part) for part in parts}))


def parse_port_span(text: str) -> PortSpan:
    """Parse ``tcp``, ``tcp/22``, ``udp/53-60`` or ``icmp``; UsageError says what is wrong."""
    if text == "icmp":
        return PortSpan("icmp")
    match = _SPAN.fullmatch(text)
    if match is None:
        raise UsageError(f"{one_line(text)!r} is no port", "for example: tcp/22, udp/53-60, icmp")
    if match[2] is None:
        return PortSpan(match[1], 0, MAX_PORT)
    first, last = int(match[2]), int(match[3] or match[2])
    if not 0 < first <= last <= MAX_PORT:
        raise UsageError(f"{text!r}: ports are 1 to {MAX_PORT}, and a range rises", _EXAMPLE)
    return PortSpan(match[1], first, last)


def what_text(what: What, ports: tuple[PortSpan, ...] = ()) -> str:
    """Return what :func:`parse_what` takes."""
    return f"{what.value}:{','.join(map(str, ports))}" if ports else what.value


def _key_text(selector: Selector) -> str:
    return selector.value if selector.kind == "member" else str(selector)
