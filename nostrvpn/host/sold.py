"""Strangers who pay are let through this host to the internet: the values, and the nft table of it.

They come in by a WireGuard link of their own and reach nothing but what the policy opens, by this host's
uplinks: no other guest, no member, nothing of this host but the control port and names. A packet costs
the same with one lease and with a thousand: whoever pays is an element of sets and maps.

The kernel alone ends a lease, whatever becomes of the daemon: its bytes are a quota, its time is the
timeout of an element, and ``alive`` has to be renewed within ``ALIVE_S``, or nobody gets anything.
``sold_leases.py`` has what changes with each lease; it never takes the table to be made anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from nostrvpn.endpoint import IPAddress
from nostrvpn.host import nft_text
from nostrvpn.host.exit_filter import ExitFilter, Passage, exit_chain
from nostrvpn.host.firewall import CLAMP, table_name
from nostrvpn.host.links import SOLD, link_beside, own_links
from nostrvpn.host.nft_text import Chain, elements
from nostrvpn.host.state import IPInterface, IPNetwork
from nostrvpn.host.subnet_gateway import guest_ports

__all__ = [
    "ALIVE_S",
    "CONTROL_PORT",
    "Secret",
    "Sold",
    "SoldLease",
    "render_sold",
    "sold_interface",
    "sold_marks",
    "sold_table",
]

ALIVE_S = 60
"""Seconds that the kernel serves on its own."""
CONTROL_PORT = 7117
"""Where guests speak with the seller, at its addresses in the tunnel (TCP)."""

_SUFFIX = "_sold"
_VERSIONS = ((4, "ip"), (6, "ip6"))
# As many leases as the IPv4 network of a seller has addresses, and more.
_SIZE = 65535
# Questions for names and new connections to this host, a second, of each: a page asks for dozens.
_ASKED, _ASKED_BURST = 50, 200
_ERRORS = "meta l4proto { icmp, icmpv6 } ct state related accept"


class Secret(Protocol):
    """A secret key, as ``wireguard.device`` has it."""

    @property
    def raw(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class SoldLease:
    """What one buyer has. ``key``: its WireGuard public key (base64); ``ipv4`` and ``ipv6``: its
    addresses in the tunnel. ``serves``: its packets are let through; else its peer (with all its
    counters) and the control port stay. ``quota_bytes``: what it may still move, both ways together,
    counted from when this number was first applied. ``seconds_left``: the same of time, None is no end.
    ``mbit``: 10^6 bits a second each way, None is what ``Sold.rate`` says."""

    lease_id: str
    key: str
    psk: Secret | None
    ipv4: IPv4Address
    ipv6: IPv6Address | None
    serves: bool
    quota_bytes: int
    seconds_left: float | None = None
    mbit: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether anything of it is let through."""
        ends = self.seconds_left is not None and self.seconds_left <= 0
        return self.serves and self.quota_bytes > 0 and not ends

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """Its addresses in the tunnel."""
        return (self.ipv4,) if self.ipv6 is None else (self.ipv4, self.ipv6)


@dataclass(frozen=True, slots=True)
class Sold:
    """All that is sold. ``link``: of the strangers, which ``addresses`` (the seller's, with the networks
    that leases are of) are on. ``rules``: what they may reach (``ExitPolicy.compile``); ``versions``: of
    IP. ``dns``: names are answered at the addresses. ``rate``: bytes a second each way of whoever has no
    ``mbit``, 0 is no limit; ``connections``: new ones of each a second, ``open_connections``: at once.
    ``reserved``: UDP ports that guests' packets never leave by. Raises ValueError for two leases with
    one address or key."""

    link: str
    listen_port: int
    private_key: Secret
    addresses: frozenset[IPInterface]
    mtu: int
    rules: tuple[Passage, ...]
    versions: frozenset[int]
    leases: tuple[SoldLease, ...] = ()
    control_port: int = CONTROL_PORT
    dns: bool = False
    rate: int = 0
    connections: int = 50
    open_connections: int = 2000
    reserved: frozenset[int] = field(default=frozenset())

    def __post_init__(self) -> None:
        taken = [ip for lease in self.leases for ip in lease.addresses]
        if len(set(taken)) != len(taken) or len({one.key for one in self.leases}) != len(
            self.leases
        ):
            raise ValueError("two leases have one address or key")

    @property
    def networks(self) -> frozenset[IPNetwork]:
        """The networks that leases are of."""
        return frozenset(address.network for address in self.addresses)

    @property
    def summary(self) -> str:
        """What is asked, in a few words for a log."""
        served = sum(lease.is_open for lease in self.leases)
        return f"{len(self.leases)} leases sold, {served} of them served"


def sold_interface(interface: str) -> str:
    """Return the name of the strangers' link, beside ours."""
    return link_beside(interface, SOLD)


def sold_table(interface: str) -> str:
    """Return the name of the nft table (family inet) for an interface of ours."""
    return table_name(interface) + _SUFFIX


def render_sold(
    sold: Sold,
    interface: str,
    remembered: tuple[Iterable[str], Iterable[str], Iterable[str]] = ((), (), ()),
) -> str:
    """Return an nft script that, as one transaction, replaces our table by one without any lease.

    ``remembered``: names of interfaces that did not forward IPv4, and IPv6, before, and whose
    ``accept_ra`` was 1.
    """
    chains = _chains(sold, interface)
    sets = _sets()
    mark = nft_text.digest(sets, chains)
    before = [list(names) for names in remembered]
    for label, names in zip(("routed4", "routed6", "advertised"), before, strict=True):
        quoted = [f'"{name}"' for name in names]
        sets.append(f"set {label} {{ type ifname; {elements(quoted)}}}")
    opened = elements(["ipv6"] if before[1] else ())
    sets.append(f"set opened {{ type nf_proto; {opened}}}")
    return nft_text.script(sold_table(interface), sets, chains, mark)


def sold_marks(sold: Sold, interface: str) -> tuple[str, ...]:
    """Return the comments of the rules of a table that is as ``sold`` wants it, but for leases."""
    chains = _chains(sold, interface)
    return nft_text.marks(chains, nft_text.digest(_sets(), chains))


def _sets() -> list[str]:
    made = ["set alive { type nf_proto; flags timeout; }"]
    for version, _ in _VERSIONS:
        kind = f"type ipv{version}_addr"
        made += [
            f"set paid{version} {{ {kind}; flags timeout; }}",
            f"map quota{version} {{ {kind} : quota; }}",
            f"map rate_up{version} {{ {kind} : limit; }}",
            f"map rate_down{version} {{ {kind} : limit; }}",
            f"set open{version} {{ {kind}; size {_SIZE}; flags dynamic; }}",
        ]
        made += [
            f"set {label}{version} {{ {kind}; size {_SIZE}; flags dynamic,timeout; timeout 1m; }}"
            for label in ("conns", "asked")
        ]
    return made


def _chains(sold: Sold, interface: str) -> list[Chain]:
    """Return the chains in a fixed order."""
    link = sold.link
    ours = ", ".join(f'"{name}"' for name in dict.fromkeys([*own_links(interface), link]))
    unpaid = "meta nfproto != @alive drop"
    from_guests = [
        f"oifname {{ {ours} }} drop",
        unpaid,
        *(f"{ip} saddr != @paid{v} drop" for v, ip in _VERSIONS),
        _ERRORS,
        "goto outward",
    ]
    to_guests = [
        unpaid,
        *(f"{ip} daddr != @paid{v} drop" for v, ip in _VERSIONS),
        "ct direction reply accept",
        _ERRORS,
        "drop",
    ]
    return [
        ("outward", "", exit_chain(ExitFilter(rules=sold.rules))),
        ("from_guests", "", from_guests),
        ("to_guests", "", to_guests),
        ("charge_up", "", [*_begun(sold), *_charged("up", "saddr")]),
        ("charge_down", "", _charged("down", "daddr")),
        ("to_us", "", _to_us(sold)),
        ("arriving", "filter hook prerouting priority -300; policy accept;", _arriving(sold)),
        (
            "input",
            "filter hook input priority -12; policy accept;",
            [f'iifname "{link}" jump to_us'],
        ),
        (
            "judge",
            "filter hook forward priority -12; policy accept;",
            [f'iifname "{link}" jump from_guests', f'oifname "{link}" jump to_guests'],
        ),
        # Only what may pass is charged.
        (
            "charge",
            "filter hook forward priority -11; policy accept;",
            [f'iifname "{link}" jump charge_up', f'oifname "{link}" jump charge_down'],
        ),
        ("others", "filter hook forward priority -5; policy accept;", _others(ours)),
        (
            "clamped",
            "filter hook forward priority mangle; policy accept;",
            [f'{way} "{link}" {CLAMP}' for way in ("oifname", "iifname")],
        ),
        ("hide", "nat hook postrouting priority 100; policy accept;", _hide(sold)),
    ]


def _others(ours: str) -> list[str]:
    """Where forwarding was off before, the host becomes no router for anything else."""
    return [
        f"iifname {{ {ours} }} accept",
        f"oifname {{ {ours} }} accept",
        "ct direction reply accept",
        "ct status dnat accept",
        "ct state untracked accept",
        "meta nfproto ipv4 iifname @routed4 drop",
        "meta nfproto @opened drop",
    ]


def _begun(sold: Sold) -> list[str]:
    """Return what holds back more new connections than a lease may have."""
    # UDP is new until it is answered; only the first packet is not confirmed yet.
    most = f"limit rate over {sold.connections}/second burst {sold.connections} packets"
    return [
        rule
        for v, ip in _VERSIONS
        for rule in (
            f"ct state new ct status ! confirmed update @conns{v} {{ {ip} saddr {most} }} drop",
            f"ct state new add @open{v} {{ {ip} saddr ct count over {sold.open_connections} }} drop",
        )
    ]


def _charged(way: str, address: str) -> list[str]:
    """Return what holds back more than a lease's rate, and takes what passes from its quota."""
    return [
        f"{kind} name {ip} {address} map @{label}{v} drop"
        for kind, label in (("limit", f"rate_{way}"), ("quota", "quota"))
        for v, ip in _VERSIONS
    ]


def _arriving(sold: Sold) -> list[str]:
    """Nobody but guests reaches the addresses in the tunnel (CVE-2019-14899)."""
    return [
        f'iifname != {{ "{sold.link}", "lo" }} {ip} daddr {{ {own} }} fib daddr type local drop'
        for v, ip in _VERSIONS
        if (own := _own(sold, v))
    ]


def _to_us(sold: Sold) -> list[str]:
    """Return what guests may send to this host: to the control port, for names, and echo requests."""
    ports = [str(sold.control_port), *(["53"] if sold.dns else [])]
    tcp = f"tcp dport {{ {', '.join(ports)} }}"
    here = [f"{ip} daddr {{ {own} }}" for v, ip in _VERSIONS if (own := _own(sold, v))]
    most = f"limit rate over {_ASKED}/second burst {_ASKED_BURST} packets"
    return [
        "ct direction reply accept",
        _ERRORS,
        *(f"{to} ct state established {tcp} accept" for to in here),
        *(f"update @asked{v} {{ {ip} saddr {most} }} drop" for v, ip in _VERSIONS),
        *(f"{to} {tcp} accept" for to in here),
        *(f"{to} udp dport 53 accept" for to in here if sold.dns),
        *(
            f"{to} {kind} type echo-request accept"
            for to in here
            for kind in ("icmp" if to.startswith("ip ") else "icmpv6",)
        ),
        "drop",
    ]


def _hide(sold: Sold) -> list[str]:
    """Return the rules that give guests' packets this host's address, with ports drawn at random."""
    low, high = guest_ports({sold.listen_port, *sold.reserved})
    rules = []
    for network in sorted(sold.networks, key=str):
        ip = "ip" if network.version == 4 else "ip6"
        own = _own(sold, network.version)
        source = f'oifname != "{sold.link}" {ip} saddr {network} {ip} saddr != {{ {own} }}'
        rules += [
            f"{source} meta l4proto {{ tcp, udp }} masquerade to :{low}-{high} fully-random",
            f"{source} masquerade fully-random",
        ]
    return rules


def _own(sold: Sold, version: int) -> str:
    return ", ".join(sorted(str(one.ip) for one in sold.addresses if one.version == version))
