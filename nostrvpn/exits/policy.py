"""What the guests of an exit may reach: a named policy, own words beside it, and the rules they make.

The first rule that fits a packet decides; what none fits is dropped:

1. what nobody reaches through an exit (``never``: members, the host itself, what leads nowhere)
2. what the provider forbids (``deny``)
3. networks that the provider opens (``allow`` with a network), private ones too
4. the provider's side (private ranges, the metadata services, the networks the host is in) is closed
5. ports that the provider opens, and those of the named policy
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any

from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import PeerMisbehaved, UsageError, one_line

__all__ = [
    "ALL_PORTS",
    "DEFAULT_POLICY",
    "LAN_RANGES",
    "MAX_WORDS",
    "POLICIES",
    "PRIVATE_RANGES",
    "ExitPolicy",
    "ExitRule",
    "IPNetwork",
    "Ports",
    "Word",
    "is_public",
    "parse_word",
]

IPNetwork = IPv4Network | IPv6Network
Ports = tuple[tuple[int, int], ...]
"""Ranges of ports, both ends included, rising and apart from each other."""

ALL_PORTS: Ports = ((1, 65535),)
# By hand nobody writes more, and each may be a rule that every new packet passes.
MAX_WORDS = 64
_MAX_PORT = 65535
_MAX_SPANS = 32

# Spec: Tor, src/core/or/policies.c, DEFAULT_EXIT_POLICY (0.4.8): what it rejects.
_TOR_REJECTS: Ports = (
    *((25, 25), (119, 119), (135, 139), (445, 445), (563, 563), (1214, 1214), (4661, 4666)),
    *((6346, 6429), (6699, 6699), (6881, 6999)),
)
# Spec: the same file, REDUCED_EXIT_POLICY: what it accepts. It is of TCP; Tor carries nothing else.
_TOR_REDUCED: Ports = (
    *((20, 23), (43, 43), (53, 53), (79, 81), (88, 88), (110, 110), (143, 143), (194, 194)),
    *((220, 220), (389, 389), (443, 443), (464, 465), (531, 531), (543, 544), (554, 554)),
    *((563, 563), (587, 587), (636, 636), (706, 706), (749, 749), (873, 873), (902, 904)),
    *((981, 981), (989, 995), (1194, 1194), (1220, 1220), (1293, 1293), (1500, 1500)),
    *((1533, 1533), (1677, 1677), (1723, 1723), (1755, 1755), (1863, 1863), (2082, 2083)),
    *((2086, 2087), (2095, 2096), (2102, 2104), (3128, 3128), (3389, 3389), (3690, 3690)),
    *((4321, 4321), (4643, 4643), (5050, 5050), (5190, 5190), (5222, 5223), (5228, 5228)),
    *((5900, 5900), (6660, 6669), (6679, 6679), (6697, 6697), (8000, 8000), (8008, 8008)),
    *((8074, 8074), (8080, 8080), (8082, 8082), (8087, 8088), (8232, 8233), (8332, 8333)),
    *((8443, 8443), (8888, 8888), (9418, 9418), (9999, 10000), (11371, 11371)),
    *((19294, 19294), (19638, 19638), (50002, 50002), (64738, 64738)),
)
# The web, and the names that it needs (RFC 1035, RFC 7858; RFC 9114 is UDP).
_WEB_TCP: Ports = ((53, 53), (80, 80), (443, 443), (853, 853))
_WEB_UDP: Ports = ((53, 53), (443, 443), (853, 853))
# Beside those, for what in UDP is as common as Tor's ports are in TCP: NTP, VPNs (IPsec, OpenVPN,
# WireGuard), calls (STUN, TURN), Mumble.
_REDUCED_UDP: Ports = (
    *((53, 53), (123, 123), (443, 443), (500, 500), (853, 853), (1194, 1194), (3478, 3481)),
    *((4500, 4500), (19302, 19309), (51820, 51820), (64738, 64738)),
)

# Spec: RFC 6890 and the IANA special-purpose registries; what a home, an office, a data centre uses.
LAN_RANGES: tuple[IPNetwork, ...] = tuple(
    map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))
)
# Never a home network: carrier's NAT (and Alibaba's metadata service), link-local (and everybody
# else's, 169.254.169.254), what measurements and tunnels use (RFC 2544), Amazon's by IPv6, what
# translates to IPv4 behind our back.
PRIVATE_RANGES: tuple[IPNetwork, ...] = tuple(
    map(
        ip_network,
        (
            *("100.64.0.0/10", "169.254.0.0/16", "192.0.0.0/24", "192.88.99.0/24"),
            "198.18.0.0/15",
            *("fd00:ec2::254/128", "fec0::/10", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64"),
            *("2001::/32", "2002::/16", "::/96", "::ffff:0:0/96"),
        ),
    )
)
# Spec: RFC 6890; leads to no host, to the host itself, or to all around it.
_NOWHERE: tuple[IPNetwork, ...] = tuple(
    map(
        ip_network,
        (
            *("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4"),
            *("::/127", "fe80::/10", "ff00::/8"),
        ),
    )
)
# RFC 6052: addresses of IPv4 inside IPv6.
_NAT64 = ip_network("64:ff9b::/96")
_SPAN = re.compile(r"(?:(tcp|udp)(?:/|\Z))?(?:([0-9]{1,5})(?:-([0-9]{1,5}))?)?\Z")
_EXAMPLE = "for example: 22, tcp/8000-8100, icmp, 198.51.100.0/24, or 192.168.5.4/32,tcp/80"


@dataclass(frozen=True, slots=True)
class ExitRule:
    """One rule. ``networks``: where it is about, empty for anywhere. ``ping``: ICMP's echo request;
    ``other``: what is neither TCP, UDP nor that."""

    allow: bool
    networks: tuple[IPNetwork, ...] = ()
    tcp: Ports = ()
    udp: Ports = ()
    ping: bool = False
    other: bool = False


@dataclass(frozen=True, slots=True)
class Word:
    """What one ``--allow`` or ``--deny`` says. ``networks``: one, or none for anywhere."""

    text: str
    networks: tuple[IPNetwork, ...] = ()
    tcp: Ports = ()
    udp: Ports = ()
    ping: bool = False
    other: bool = False

    def rule(self, *, allow: bool) -> ExitRule:
        """Return the rule that it makes."""
        return ExitRule(allow, self.networks, self.tcp, self.udp, self.ping, self.other)


def _without(ports: Ports) -> Ports:
    edges = [1, *(edge for first, last in ports for edge in (first - 1, last + 1)), _MAX_PORT]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return tuple((first, last) for first, last in pairs if first <= last)


_TOR_DEFAULT = _without(_TOR_REJECTS)
POLICIES: Mapping[str, ExitRule] = {
    "web": ExitRule(True, (), _WEB_TCP, _WEB_UDP, True),
    "reduced": ExitRule(True, (), _TOR_REDUCED, _REDUCED_UDP, True),
    "tor-default": ExitRule(True, (), _TOR_DEFAULT, _TOR_DEFAULT, True),
    "open": ExitRule(True, (), ALL_PORTS, ALL_PORTS, True, True),
}
"""What each named policy lets through."""

# No mail to strangers' port 25, none of what brings a provider its first complaints.
DEFAULT_POLICY = "tor-default"


@dataclass(frozen=True, slots=True)
class ExitPolicy:
    """``name``: one of ``POLICIES``. ``lan``: private ranges too, and the networks the host is in."""

    name: str = DEFAULT_POLICY
    allow: tuple[Word, ...] = ()
    deny: tuple[Word, ...] = ()
    lan: bool = False

    @property
    def opened(self) -> frozenset[IPNetwork]:
        """The networks on the provider's side of which guests may reach something."""
        named = {network for word in self.allow for network in word.networks}
        return frozenset(named | set(LAN_RANGES if self.lan else ()))

    def compile(
        self, never: Iterable[IPNetwork], around: Iterable[IPNetwork]
    ) -> tuple[ExitRule, ...]:
        """Return the rules in their order.

        ``never``: the members' addresses and the host's own; ``around``: the networks the host is in.
        """
        closed = () if self.lan else (*LAN_RANGES, *around)
        rules = [
            _closed((*_NOWHERE, *never)),
            *(word.rule(allow=False) for word in self.deny),
            *(word.rule(allow=True) for word in self.allow if word.networks),
            _closed((*PRIVATE_RANGES, *closed)),
            *(word.rule(allow=True) for word in self.allow if not word.networks),
            POLICIES[self.name],
        ]
        return tuple(rules)

    def to_json(self) -> dict[str, object]:
        """Return what is stored."""
        return {
            "name": self.name,
            "allow": [word.text for word in self.allow],
            "deny": [word.text for word in self.deny],
            "lan": self.lan,
        }

    @classmethod
    def from_json(cls, stored: object) -> ExitPolicy:
        """Rebuild from :meth:`to_json`; PeerMisbehaved if the record is damaged."""
        values: Mapping[str, Any] = stored if isinstance(stored, Mapping) else {}
        lists = [values.get(key) for key in ("allow", "deny")]
        if values.get("name") not in POLICIES or not isinstance(values.get("lan"), bool):
            raise PeerMisbehaved("bad_record", "not an exit's policy")
        if not all(isinstance(words, list) and len(words) <= MAX_WORDS for words in lists):
            raise PeerMisbehaved("bad_record", "not an exit's policy")
        try:
            allow, deny = (tuple(parse_word(text) for text in words or ()) for words in lists)
        except UsageError as exc:
            raise PeerMisbehaved("bad_record", str(exc)) from exc
        return cls(values["name"], allow, deny, values["lan"])


def is_public(address: IPAddress) -> bool:
    """Whether an address is a host's on the internet: of no private range, not this host, not many.

    Where a stranger says what this host is to connect to, or a guest what it wants to know of, only
    those are. An IPv4 address in IPv6 is what it stands for: a network with NAT64 has the internet so.
    """
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(inner)
    ranges = (*LAN_RANGES, *PRIVATE_RANGES, *_NOWHERE)
    return not any(address in network for network in ranges)


def parse_word(text: object) -> Word:
    """Return what a word of ``--allow`` or ``--deny`` means: ``[CIDR,]SPAN,…`` or ``CIDR``.

    A span is ``80``, ``80-90`` (TCP and UDP), ``tcp``, ``tcp/22``, ``udp/53-60`` or ``icmp``. UsageError
    says what is wrong.
    """
    parts = (
        text.lower().replace(" ", "").split(",", _MAX_SPANS + 1) if isinstance(text, str) else []
    )
    if not parts or not all(parts) or len(parts) > _MAX_SPANS:
        raise UsageError(f"{one_line(str(text))!r} names no ports and no network", _EXAMPLE)
    networks: tuple[IPNetwork, ...] = ()
    if "." in parts[0] or ":" in parts[0]:
        networks = (_network(parts.pop(0)),)
        if not parts:
            return Word(str(networks[0]), networks, ALL_PORTS, ALL_PORTS, True, True)
    ports: dict[str, list[tuple[int, int]]] = {"tcp": [], "udp": []}
    for part in parts:
        if part == "icmp":
            continue
        for protocol, span in _spans(part):
            ports[protocol].append(span)
    tcp, udp = (_merged(ports[protocol]) for protocol in ("tcp", "udp"))
    shown = ",".join([*map(str, networks), *parts])
    return Word(shown, networks, tcp, udp, "icmp" in parts)


def _closed(networks: Iterable[IPNetwork]) -> ExitRule:
    unique = tuple(sorted(set(networks), key=lambda n: (n.version, n.network_address, n.prefixlen)))
    return ExitRule(False, unique, ALL_PORTS, ALL_PORTS, True, True)


def _network(text: str) -> IPNetwork:
    try:
        found = ip_network(text)
    except ValueError as exc:
        raise UsageError(f"{one_line(text)!r} is no network", _EXAMPLE) from exc
    if found.prefixlen == 0:
        raise UsageError(f"{found} is everything", "choose a policy: --policy open")
    return found


def _spans(text: str) -> list[tuple[str, tuple[int, int]]]:
    match = _SPAN.match(text)
    if match is None or not (match[1] or match[2]) or text.endswith("/"):
        raise UsageError(f"{one_line(text)!r} is no port and no protocol", _EXAMPLE)
    first, last = int(match[2] or 1), int(match[3] or match[2] or _MAX_PORT)
    if not 0 < first <= last <= _MAX_PORT:
        raise UsageError(f"{text!r}: ports are 1 to {_MAX_PORT}, and a range rises", _EXAMPLE)
    protocols = (match[1],) if match[1] else ("tcp", "udp")
    return [(protocol, (first, last)) for protocol in protocols]


def _merged(spans: Iterable[tuple[int, int]]) -> Ports:
    found: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(last, found[-1][1])
        else:
            found.append((first, last))
    return tuple(found)
