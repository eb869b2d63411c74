"""What comes out of the tunnel and may enter this host, as a value and as the nft table that says so.

One table per interface, beside that of ``firewall.py``, replaced in one transaction. A packet costs one
look-up by its source address, however many members and rules there are: a map leads each source to
the chain of what it may, and sources that may the same share one.

- Replies to what this host began pass, and ICMP errors about it. Everything else is judged packet by
  packet: what a permission allowed ends with it, and conntrack need not be touched.
- A packet is for one of our overlay addresses, or it is dropped: an address of the host's other
  networks is not reached through the tunnel.
- A port that a container publishes (DNAT) is judged like the host's own, by the port that was asked
  for, although its packets are forwarded.
- Everything else that would be forwarded from the tunnel is dropped, except from the sources that may
  reach the networks behind this host, and from guests who may use it as an exit (``exit_filter.py``).
  Into the tunnel only replies to those are forwarded; and, while this host uses an exit, what its
  containers and virtual machines send to the internet, with this host's own address, but not to members.

Extension headers hide nothing (``meta l4proto`` looks behind them), and conntrack puts fragments
together before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import collapse_addresses

from nostrvpn.endpoint import IPAddress
from nostrvpn.host import nft_text
from nostrvpn.host.exit_filter import NO_GUESTS, ExitFilter, exit_chain, to_us_rules
from nostrvpn.host.firewall import table_name
from nostrvpn.host.nft_text import Chain, elements
from nostrvpn.host.state import IPNetwork

__all__ = [
    "ALL_PORTS",
    "EVERYTHING",
    "NOTHING",
    "Access",
    "Inbound",
    "Ports",
    "inbound_marks",
    "inbound_table",
    "render_inbound",
]

Ports = tuple[tuple[int, int], ...]
"""Ranges of ports, both ends included, rising and apart from each other."""

ALL_PORTS: Ports = ((0, 65535),)
_SUFFIX = "_inbound"
_HIDING = "nat hook postrouting priority 100; policy accept;"


@dataclass(frozen=True, slots=True, order=True)
class Access:
    """What one source may send us. ``other`` is what is neither TCP, UDP nor an echo request."""

    ping: bool = False
    tcp: Ports = ()
    udp: Ports = ()
    other: bool = False


NOTHING = Access()
EVERYTHING = Access(True, ALL_PORTS, ALL_PORTS, True)


@dataclass(frozen=True, slots=True)
class Inbound:
    """What may enter. The empty value lets nothing in but replies.

    ``own`` are the overlay addresses of this host, ``sources`` the members' with what each may.
    ``lan_sources`` may be forwarded to ``lan_networks``. ``exit``: who may go through to the internet.
    ``booths``: links that this host itself leads into the tunnel; ``booth.py`` judges them. ``outward``:
    the IP versions of which what this host forwards for others than members leaves through its own
    exit, beside what is for ``overlay``, members and the networks behind them.
    """

    own: frozenset[IPAddress] = frozenset()
    sources: Mapping[IPAddress, Access] = field(default_factory=dict)
    lan_sources: frozenset[IPAddress] = frozenset()
    lan_networks: frozenset[IPNetwork] = frozenset()
    exit: ExitFilter = NO_GUESTS
    booths: frozenset[str] = frozenset()
    outward: frozenset[int] = frozenset()
    overlay: frozenset[IPNetwork] = frozenset()

    @property
    def summary(self) -> str:
        """What is let in, in a few words for a log."""
        kinds = len(set(self.sources.values()))
        words = f"{len(self.sources)} source addresses in {kinds} kinds"
        words += f", {len(self.lan_networks)} networks behind" if self.lan_networks else ""
        guests = len(self.exit.sources)
        return words + (f", {guests} addresses of guests" if guests else "")


def inbound_table(interface: str) -> str:
    """Return the name of the table (family inet) for an interface."""
    return table_name(interface) + _SUFFIX


def render_inbound(inbound: Inbound, interface: str) -> str:
    """Return an nft script that, as one transaction, replaces our table by what is wanted."""
    sets, chains = _sets(inbound), _chains(inbound, interface)
    return nft_text.script(inbound_table(interface), sets, chains, nft_text.digest(sets, chains))


def inbound_marks(inbound: Inbound, interface: str) -> tuple[str, ...]:
    """Return the comments of the rules of a table that is as ``inbound`` wants it."""
    chains = _chains(inbound, interface)
    return nft_text.marks(chains, nft_text.digest(_sets(inbound), chains))


def _kinds(inbound: Inbound) -> list[Access]:
    return sorted(set(inbound.sources.values()))


def _sets(inbound: Inbound) -> list[str]:
    number = {access: index for index, access in enumerate(_kinds(inbound))}
    made = []
    for version in (4, 6):
        kind = f"ipv{version}_addr"
        sources = [(ip, access) for ip, access in inbound.sources.items() if ip.version == version]
        allowed = [f"{ip} : jump access_{number[access]}" for ip, access in sources]
        published = [
            f"{ip} : jump published_{number[access]}"
            for ip, access in sources
            if access.tcp or access.udp
        ]
        own = [str(ip) for ip in inbound.own if ip.version == version]
        lan = [str(ip) for ip in inbound.lan_sources if ip.version == version]
        guests = [str(ip) for ip in inbound.exit.sources if ip.version == version]
        networks = [str(network) for network in inbound.lan_networks if network.version == version]
        made += [
            f"set own{version} {{ type {kind}; {elements(own)}}}",
            f"map sources{version} {{ type {kind} : verdict; {elements(allowed)}}}",
            f"map published{version} {{ type {kind} : verdict; {elements(published)}}}",
            f"set exit{version} {{ type {kind}; {elements(guests)}}}",
            f"set lan_sources{version} {{ type {kind}; {elements(lan)}}}",
            f"set lan_networks{version} {{ type {kind}; flags interval; auto-merge; "
            f"{elements(networks)}}}",
        ]
    return made


def _chains(inbound: Inbound, interface: str) -> list[Chain]:
    """Return the chains in a fixed order."""
    errors = "meta l4proto { icmp, icmpv6 } ct state related accept"
    answers = ["ct direction reply accept", errors]
    kinds = list(enumerate(_kinds(inbound)))
    has_guests = bool(inbound.exit.sources)
    guests = ["ip saddr @exit4 jump exit", "ip6 saddr @exit6 jump exit"] if has_guests else []
    return [
        *([("exit", "", exit_chain(inbound.exit))] if has_guests else []),
        *((f"access_{index}", "", _access(kind)) for index, kind in kinds),
        *((f"published_{i}", "", _published(kind)) for i, kind in kinds if kind.tcp or kind.udp),
        (
            "to_us",
            "",
            [
                *answers,
                "ip daddr @own4 ip saddr vmap @sources4",
                "ip6 daddr @own6 ip6 saddr vmap @sources6",
                *to_us_rules(inbound.exit),
                "drop",
            ],
        ),
        (
            "from_tunnel",
            "",
            [
                *_tunnel_to_tunnel(inbound.exit, interface, errors),
                *answers,
                "ct status dnat ct original ip daddr @own4 ip saddr vmap @published4",
                "ct status dnat ct original ip6 daddr @own6 ip6 saddr vmap @published6",
                "ip saddr @lan_sources4 ip daddr @lan_networks4 accept",
                "ip6 saddr @lan_sources6 ip6 daddr @lan_networks6 accept",
                *guests,
                "drop",
            ],
        ),
        # What hosts behind this one may begin in the mesh would be accepted here. Replies too end with
        # the permission.
        (
            "into_tunnel",
            "",
            [
                *_from_booths(inbound),
                *_answers_to_members(errors),
                *_outward(inbound, "accept"),
                "drop",
            ],
        ),
        (
            "input",
            "filter hook input priority -10; policy accept;",
            [f'iifname "{interface}" jump to_us'],
        ),
        (
            "forward",
            "filter hook forward priority -10; policy accept;",
            [f'iifname "{interface}" jump from_tunnel', f'oifname "{interface}" jump into_tunnel'],
        ),
        *_hiding(inbound, interface),
    ]


def _from_booths(inbound: Inbound) -> list[str]:
    names = ", ".join(f'"{name}"' for name in sorted(inbound.booths))
    return [f"iifname {{ {names} }} accept"] if names else []


def _answers_to_members(errors: str) -> list[str]:
    """Return the rules for what goes into the tunnel from somewhere else."""
    return [
        errors,
        "ct status dnat ct direction reply accept",
        "ct direction reply ip saddr @lan_networks4 ip daddr @lan_sources4 accept",
        "ct direction reply ip6 saddr @lan_networks6 ip6 daddr @lan_sources6 accept",
        "ct direction reply ip daddr @exit4 accept",
        "ct direction reply ip6 daddr @exit6 accept",
    ]


def _hiding(inbound: Inbound, interface: str) -> list[Chain]:
    """Return the chain that gives them our own address: the exit takes nothing else."""
    # What begins here has it already.
    hidden = _outward(inbound, "fib saddr type != local masquerade")
    rules = [f'oifname "{interface}" {rule}' for rule in hidden]
    return [("hiding", _HIDING, rules)] if rules else []


def _outward(inbound: Inbound, verdict: str) -> list[str]:
    """Return the rules for what others on this host send through its exit."""
    rules = []
    for version, word in ((4, "ip"), (6, "ip6")):
        mesh = ", ".join(map(str, _widest(inbound.overlay, version)))
        if version in inbound.outward and mesh:
            away = " ".join(f"{word} {end} != {{ {mesh} }}" for end in ("saddr", "daddr"))
            rules.append(f"{away} {verdict}")
    return rules


def _widest(networks: Iterable[IPNetwork], version: int) -> list[IPNetwork]:
    # nft refuses networks within each other in one set.
    mine = [network for network in networks if network.version == version]
    return list(collapse_addresses(mine))  # type: ignore[type-var]


def _tunnel_to_tunnel(guests: ExitFilter, interface: str, errors: str) -> list[str]:
    """Return the rules for what comes out of the tunnel and would go into it again."""
    if not guests.through:
        return [f'oifname "{interface}" drop']
    return [
        f'oifname "{interface}" ct direction reply ip daddr @exit4 accept',
        f'oifname "{interface}" ct direction reply ip6 daddr @exit6 accept',
        f'oifname "{interface}" {errors}',
        f'oifname "{interface}" ct direction reply drop',
    ]


def _access(access: Access) -> list[str]:
    """Return the rules of one kind of access; what none of them accepts returns and is dropped."""
    if access == EVERYTHING:
        return ["accept"]
    rules = [
        f"{protocol} dport {_ports(ports)} accept"
        for protocol, ports in (("tcp", access.tcp), ("udp", access.udp))
        if ports
    ]
    if access.ping:
        rules += ["icmp type echo-request accept", "icmpv6 type echo-request accept"]
    if access.other:
        rules += [
            "meta l4proto != { tcp, udp, icmp, icmpv6 } accept",
            "icmp type != echo-request accept",
            "icmpv6 type != echo-request accept",
        ]
    return rules


def _published(access: Access) -> list[str]:
    """Return what of an access holds for packets whose destination was replaced on their way.

    A rule for each range: nft 1.0 cannot look the port up in a set before the replacement.
    """
    return [
        f"meta l4proto {protocol} ct original proto-dst {first}-{last} accept"
        for protocol, ports in (("tcp", access.tcp), ("udp", access.udp))
        for first, last in ports
    ]


def _ports(ports: Ports) -> str:
    spans = (str(first) if first == last else f"{first}-{last}" for first, last in ports)
    return f"{{ {', '.join(spans)} }}"
