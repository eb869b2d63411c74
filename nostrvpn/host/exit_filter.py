"""What guests of this host may reach through it, as a value and as rules of the table in ``inbound.py``.

Guests' packets are judged one by one: what was allowed ends with the permission, and conntrack need not
be touched. Guests are elements of two sets, so a packet costs the same with one and with a thousand.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import Protocol

from nostrvpn.endpoint import IPAddress
from nostrvpn.host.state import IPNetwork

__all__ = ["NO_GUESTS", "ExitFilter", "Passage", "exit_chain", "to_us_rules"]

Ports = tuple[tuple[int, int], ...]
_EVERY_PORT: Ports = ((1, 65535),)
# Programs fail at once instead of waiting.
_REFUSE = "reject with icmpx admin-prohibited"


class Passage(Protocol):
    """One rule. ``networks``: destinations it is about, empty for any; ``other``: what is neither TCP,
    UDP nor an echo request."""

    @property
    def allow(self) -> bool: ...
    @property
    def networks(self) -> tuple[IPNetwork, ...]: ...
    @property
    def tcp(self) -> Ports: ...
    @property
    def udp(self) -> Ports: ...
    @property
    def ping(self) -> bool: ...
    @property
    def other(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class ExitFilter:
    """The empty value has no guests. ``sources``: their addresses; ``rules``: what they may reach, the
    first that fits decides, and nothing else; ``dns``: port 53 of our own address. ``through``: this
    host leaves through another exit, so guests' packets may go into the tunnel again."""

    sources: frozenset[IPAddress] = frozenset()
    rules: tuple[Passage, ...] = ()
    dns: bool = False
    through: bool = False


NO_GUESTS = ExitFilter()


def exit_chain(guests: ExitFilter) -> list[str]:
    """Return the rules for what guests send into the internet."""
    return [
        # What somebody's rule led elsewhere: a port that a container publishes, for one.
        "ct status dnat drop",
        # Where it goes in the end is said in there, and not in the destination that is judged.
        "exthdr rt exists drop",
        "ip option lsrr exists drop",
        "ip option ssrr exists drop",
        *(text for rule in guests.rules for text in _passage(rule)),
        _REFUSE,
    ]


def to_us_rules(guests: ExitFilter) -> list[str]:
    """Return the rules for what guests send to this host itself: echoes, and questions of names."""
    if not guests.sources:
        return []
    rules = [
        "ip daddr @own4 ip saddr @exit4 icmp type echo-request accept",
        "ip6 daddr @own6 ip6 saddr @exit6 icmpv6 type echo-request accept",
    ]
    if guests.dns:
        rules += [
            f"{ip} daddr @own{v} {ip} saddr @exit{v} meta l4proto {{ tcp, udp }} th dport 53 accept"
            for v, ip in ((4, "ip"), (6, "ip6"))
        ]
    return rules


def _passage(rule: Passage) -> list[str]:
    verdict = "accept" if rule.allow else _REFUSE
    everything = rule.tcp == rule.udp == _EVERY_PORT and rule.ping and rule.other
    texts: list[str] = []
    for version, target in _targets(rule.networks):
        if everything:
            texts.append(f"{target}{verdict}")
            continue
        texts += [
            f"{target}{protocol} dport {_spans(ports)} {verdict}"
            for protocol, ports in (("tcp", rule.tcp), ("udp", rule.udp))
            if ports
        ]
        kinds = [k for k, v in (("icmp", 4), ("icmpv6", 6)) if version in (0, v)]
        if rule.ping:
            texts += [f"{target}{kind} type echo-request {verdict}" for kind in kinds]
    return texts


def _targets(networks: Iterable[IPNetwork]) -> list[tuple[int, str]]:
    """Return (IP version, or 0 for both; the match on the destination, with a space at its end)."""
    listed = list(networks)
    if not listed:
        return [(0, "")]
    four = collapse_addresses(n for n in listed if isinstance(n, IPv4Network))
    six = collapse_addresses(n for n in listed if isinstance(n, IPv6Network))
    return [
        (version, f"{word} daddr {{ {', '.join(texts)} }} ")
        for version, word, texts in ((4, "ip", [*map(str, four)]), (6, "ip6", [*map(str, six)]))
        if texts
    ]


def _spans(ports: Ports) -> str:
    texts = (str(first) if first == last else f"{first}-{last}" for first, last in ports)
    return f"{{ {', '.join(texts)} }}"
