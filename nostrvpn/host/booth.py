"""Booths: the network namespaces of single commands, each led into the tunnel by a veth pair; as values.

A booth's only way is the tunnel. Rules for what comes in by its link look up a table of ours, which
leads into the tunnel or nowhere; the packet filter drops whatever would leave by another interface, and
gives the rest this host's address of the overlay. The host's own routing is not touched.

- Into the tunnel goes what the exit carries, but to ports 53 and 853 only of the resolvers, and nothing
  for the overlay beside that: a command in a booth is on the internet, not in the mesh.
- Into a booth come answers and errors about what began there, out of the tunnel only. They are marked,
  so that the kill switch's table of a host that uses the same exit lets them through.
- Booth and host do not see each other, but to find each other as neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_interface

from nostrvpn.endpoint import IPAddress
from nostrvpn.host import nft_text
from nostrvpn.host.firewall import table_name
from nostrvpn.host.nft_text import Chain
from nostrvpn.host.state import ALIAS_MARK, MARK_MASK, RELAY_MARK, IPInterface, IPNetwork

__all__ = [
    "BOOTH_NETWORKS",
    "BOOTH_RULE_PRIORITIES",
    "MAX_BOOTHS",
    "Booth",
    "BoothRule",
    "BoothWay",
    "booth_alias",
    "booth_marks",
    "booth_number",
    "booth_rules",
    "booth_table",
    "render_booths",
]

# Ours. IPv4: a part of 192.0.0.0/24 (RFC 6890 section 2.1: never on the internet) that is assigned to
# nothing, and no link-local one, which programs take for a sign that there is no network. IPv6: a unique
# local prefix (RFC 4193) drawn at random once. Both are seen between a booth and its host only.
_V4 = IPv4Network("192.0.0.128/26")
_V6 = IPv6Network("fd9c:27e4:5b1d:ec::/122")
BOOTH_NETWORKS: tuple[IPNetwork, ...] = (_V4, _V6)
# Each takes two addresses (RFC 3021, RFC 6164).
MAX_BOOTHS = 32
_PREFIX = "nvxec"
# Ours: before the rules of an exit of the whole host (4630 and on, ``exit_routing.py``).
_TO_BOOTH, _TO_NO_BOOTH, _FROM_BOOTH = 4618, 4619, 4620
BOOTH_RULE_PRIORITIES = frozenset({_TO_BOOTH, _TO_NO_BOOTH, _FROM_BOOTH})
# Ours: the first byte of the tables' numbers, next to those of ``outer_limits.py`` (0x9D) and of exits
# (0x9E); the rest comes from the tunnel's name.
_SUFFIX = "_exec"
_VERSIONS = ((4, "ip", _V4), (6, "ip6", _V6))
_DNS = "meta l4proto { tcp, udp } th dport { 53, 853 }"
_REFUSE = "reject with icmpx admin-prohibited"
_MARK = f"meta mark set meta mark & {0xFFFFFFFF ^ MARK_MASK:#010x} | {RELAY_MARK:#010x}"
_NEIGHBOURS = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept"


@dataclass(frozen=True, slots=True, order=True)
class Booth:
    """One of ``MAX_BOOTHS``, by its number; ValueError for another number."""

    number: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < MAX_BOOTHS:
            raise ValueError(f"no booth has the number {self.number}")

    @property
    def link(self) -> str:
        """The name of the veth's end in the host."""
        return f"{_PREFIX}{self.number}"

    @property
    def outside(self) -> tuple[IPInterface, ...]:
        """The addresses of the host's end, one of each IP version."""
        return tuple(ip_interface((n[2 * self.number], n.max_prefixlen - 1)) for n in (_V4, _V6))

    @property
    def inside(self) -> tuple[IPInterface, ...]:
        """The addresses of the command's end."""
        return tuple(
            ip_interface((n[2 * self.number + 1], n.max_prefixlen - 1)) for n in (_V4, _V6)
        )


@dataclass(frozen=True, slots=True)
class BoothWay:
    """What the booths of one tunnel get; the empty value is no table and no rule.

    ``versions``: what the exit carries. ``resolvers``: whom DNS may go to. ``overlay``: what else goes
    into the tunnel, and not from a booth.
    """

    booths: frozenset[Booth] = frozenset()
    versions: frozenset[int] = frozenset()
    resolvers: frozenset[IPAddress] = frozenset()
    overlay: frozenset[IPNetwork] = frozenset()

    @property
    def is_empty(self) -> bool:
        """Whether there is no booth."""
        return not self.booths

    @property
    def links(self) -> frozenset[str]:
        """The names of the host's ends."""
        return frozenset(booth.link for booth in self.booths)


@dataclass(frozen=True, slots=True, order=True)
class BoothRule:
    """One rule of ours. ``link``: what comes in there looks up our table. Without: what is for a booth
    looks up main without its default, and is unreachable if it is not there (``is_end``)."""

    priority: int
    version: int
    link: str = ""
    is_end: bool = False


def booth_number(link: str) -> int | None:
    """Return the number of the booth whose end in the host has this name; None for another link."""
    digits = link.removeprefix(_PREFIX)
    if digits == link or not digits.isdecimal() or not digits.isascii():
        return None
    return int(digits) if int(digits) < MAX_BOOTHS and digits == str(int(digits)) else None


def booth_alias(interface: str) -> str:
    """Return the alias of a booth's link in the host, which says whose tunnel it is led into."""
    return f"{ALIAS_MARK} exec {interface}"


def booth_rules(way: BoothWay) -> frozenset[BoothRule]:
    """Return the rules that booths take; all IP versions, also those that the exit does not carry."""
    if way.is_empty:
        return frozenset()
    rules = set()
    for version, _, _ in _VERSIONS:
        rules |= {
            BoothRule(_TO_BOOTH, version),
            BoothRule(_TO_NO_BOOTH, version, is_end=True),
            *(BoothRule(_FROM_BOOTH, version, link) for link in way.links),
        }
    return frozenset(rules)


def booth_table(interface: str) -> str:
    """Return the name of the nft table (family inet) for a tunnel."""
    return table_name(interface) + _SUFFIX


def render_booths(way: BoothWay, interface: str) -> str:
    """Return an nft script that, as one transaction, replaces our table by what is wanted."""
    chains = _chains(way, interface)
    return nft_text.script(booth_table(interface), (), chains, nft_text.digest(chains))


def booth_marks(way: BoothWay, interface: str) -> tuple[str, ...]:
    """Return the comments of the rules of a table that is as ``way`` wants it."""
    chains = _chains(way, interface)
    return nft_text.marks(chains, nft_text.digest(chains))


def _chains(way: BoothWay, interface: str) -> list[Chain]:
    """Return the chains in a fixed order."""
    names = ", ".join(f'"{link}"' for link in sorted(way.links))
    errors = (
        "icmp type { destination-unreachable, time-exceeded, parameter-problem }",
        "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }",
    )
    return [
        ("from_booth", "", _from_booth(way, interface)),
        (
            "to_booth",
            "",
            [
                f'iifname != "{interface}" drop',
                f"ct direction reply {_MARK} accept",
                f"meta l4proto {{ icmp, icmpv6 }} ct state related {_MARK} accept",
                "drop",
            ],
        ),
        (
            "forward",
            "filter hook forward priority -20; policy accept;",
            [f"iifname {{ {names} }} goto from_booth", f"oifname {{ {names} }} goto to_booth"],
        ),
        (
            "input",
            "filter hook input priority -20; policy accept;",
            [f"iifname {{ {names} }} {_NEIGHBOURS}", f"iifname {{ {names} }} drop"],
        ),
        (
            "output",
            "filter hook output priority -20; policy accept;",
            [
                f"oifname {{ {names} }} {_NEIGHBOURS}",
                *(f"oifname {{ {names} }} {error} {_MARK} accept" for error in errors),
                f"oifname {{ {names} }} drop",
            ],
        ),
        (
            "postrouting",
            "nat hook postrouting priority 100; policy accept;",
            [
                f'oifname "{interface}" {word} saddr {network} masquerade'
                for _, word, network in _VERSIONS
            ],
        ),
    ]


def _from_booth(way: BoothWay, interface: str) -> list[str]:
    """Return the rules for what a command sends."""
    rules = [f'oifname != "{interface}" drop']
    rules += [f"{word} saddr != {network} drop" for _, word, network in _VERSIONS]
    rules += [
        f"{'ip' if ip.version == 4 else 'ip6'} daddr {ip} {_DNS} accept"
        for ip in sorted(way.resolvers, key=str)
        if ip.version in way.versions
    ]
    rules.append(f"{_DNS} {_REFUSE}")
    rules += [
        f"{'ip' if network.version == 4 else 'ip6'} daddr {network} {_REFUSE}"
        for network in sorted(way.overlay, key=str)
    ]
    rules += [f"meta nfproto ipv{version} accept" for version in sorted(way.versions)]
    return [*rules, _REFUSE]
