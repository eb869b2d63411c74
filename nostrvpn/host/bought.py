"""Exits that are paid for, each behind a WireGuard link of its own: values, and the nft table of them.

There are two at most: the one in use, and one that is being tried before it is. Nothing is routed into
them but by ``exit_routing.py``. The table is there before a link is:

- In come only answers to what this host began, and only for the link's own addresses; and the seller's
  messages about the lease (TCP, ``CONTROL_PORT``).
- Out goes what has those addresses; what others (containers) send gets them. They leave by nothing else.
- Into a link that is not in use goes what the agent itself sends, which is marked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.host import nft_text
from nostrvpn.host.firewall import CLAMP, table_name
from nostrvpn.host.links import BOUGHT, link_beside
from nostrvpn.host.nft_text import Chain
from nostrvpn.host.sold import CONTROL_PORT, Secret
from nostrvpn.host.state import FWMARK, MARK_MASK, IPInterface

__all__ = [
    "Bought",
    "bought_interface",
    "bought_interfaces",
    "bought_marks",
    "bought_table",
    "render_bought",
]

_SUFFIX = "_bought"
_VERSIONS = ((4, "ip"), (6, "ip6"))
_ERRORS = "meta l4proto { icmp, icmpv6 } ct state related accept"


@dataclass(frozen=True, slots=True)
class Bought:
    """One lease. ``peer_key``: the seller's WireGuard public key (base64), that listens at ``endpoint``;
    ``generation`` counts the endpoints that were told; ``session`` the lives of the seller's end, which
    knows no handshake of before. ``addresses``: the lease's, /32 and /128.
    ``versions``: of IP, that it carries; ``seller``: where the seller is in the tunnel, which is reached
    whether or not the exit is in use. ``keepalive``: seconds, 0 is none. ``used``: it is the exit in
    use. Raises ValueError for an address with a network."""

    link: str
    private_key: Secret
    peer_key: str
    psk: Secret | None
    endpoint: Endpoint
    addresses: frozenset[IPInterface]
    mtu: int
    versions: frozenset[int]
    seller: frozenset[IPAddress] = frozenset()
    generation: int = 0
    keepalive: int = 0
    used: bool = False
    session: int = 0

    def __post_init__(self) -> None:
        if any(one.network.prefixlen != one.max_prefixlen for one in self.addresses):
            raise ValueError("a lease has addresses, and no network")


def bought_interface(interface: str, place: int = 0) -> str:
    """Return the name of a link, beside ours; ``place`` is 0 or 1."""
    return link_beside(interface, BOUGHT[place])


def bought_interfaces(interface: str) -> tuple[str, ...]:
    """Return the names of all of them."""
    return tuple(link_beside(interface, letter) for letter in BOUGHT)


def bought_table(interface: str) -> str:
    """Return the name of the nft table (family inet) for an interface of ours."""
    return table_name(interface) + _SUFFIX


def render_bought(bought: Iterable[Bought], interface: str) -> str:
    """Return an nft script that, as one transaction, replaces our table by what is wanted."""
    chains = _chains(bought)
    return nft_text.script(bought_table(interface), (), chains, nft_text.digest(chains))


def bought_marks(bought: Iterable[Bought]) -> tuple[str, ...]:
    """Return the comments of the rules of a table that is as wanted."""
    chains = _chains(bought)
    return nft_text.marks(chains, nft_text.digest(chains))


def _chains(bought: Iterable[Bought]) -> list[Chain]:
    """Return the chains in a fixed order."""
    links = sorted(bought, key=lambda one: one.link)
    arriving, spoken, inward, forward, output, hide, strayed = (list[str]() for _ in range(7))
    for one in links:
        arriving += _arriving(one)
        strayed += _strayed(one)
        spoken += [
            f'iifname "{one.link}" {ip} saddr {{ {sellers} }} tcp dport {CONTROL_PORT} accept'
            for version, ip in _VERSIONS
            if (sellers := ", ".join(sorted(str(a) for a in one.seller if a.version == version)))
        ]
        inward += [
            f'iifname "{one.link}" ct direction reply accept',
            f'iifname "{one.link}" {_ERRORS}',
            f'iifname "{one.link}" drop',
        ]
        if not one.used:
            forward.append(f'oifname "{one.link}" drop')
            output.append(
                f'oifname "{one.link}" meta mark & {MARK_MASK:#010x} != {FWMARK:#010x} drop'
            )
        hide += [f'oifname "{one.link}" {foreign} masquerade' for foreign in _foreign(one)]
    # Two sellers may have given the same address.
    for word, address, names in _owners(links):
        arriving.append(f"iifname != {{ {names} }} {word} daddr {address} drop")
        strayed.append(f"oifname != {{ {names} }} {word} saddr {address} drop")
    clamps = [f'{way} "{one.link}" {CLAMP}' for one in links for way in ("oifname", "iifname")]
    accept = "priority -12; policy accept;"
    return [
        # Before answers get the destination that they are for.
        ("arriving", "filter hook prerouting priority -300; policy accept;", arriving),
        ("input", f"filter hook input {accept}", [*spoken, *inward]),
        ("forward", f"filter hook forward {accept}", [*inward, *forward]),
        ("output", f"filter hook output {accept}", output),
        ("clamped", "filter hook forward priority mangle; policy accept;", clamps),
        ("hide", "nat hook postrouting priority 100; policy accept;", hide),
        ("strayed", "filter hook postrouting priority 110; policy accept;", strayed),
    ]


def _arriving(one: Bought) -> list[str]:
    """The seller reaches no other address of this host, nor one behind it."""
    return [
        f'iifname "{one.link}" {ip} daddr != {{ {own} }} drop'
        if (own := _own(one, version))
        else f'iifname "{one.link}" meta nfproto ipv{version} drop'
        for version, ip in _VERSIONS
    ]


def _strayed(one: Bought) -> list[str]:
    """What began elsewhere keeps its source: it does not go on here."""
    rules = [f'oifname "{one.link}" {foreign} drop' for foreign in _foreign(one)]
    return rules + [
        f'oifname "{one.link}" meta nfproto ipv{version} drop'
        for version, _ in _VERSIONS
        if not _own(one, version)
    ]


def _owners(links: Iterable[Bought]) -> list[tuple[str, str, str]]:
    """Return (``ip`` or ``ip6``, address, names of links) of where each is: nobody reaches it by another
    one (CVE-2019-14899), and what has it leaves by no other."""
    found: dict[IPAddress, list[str]] = {}
    for one in links:
        for address in one.addresses:
            found.setdefault(address.ip, []).append(f'"{one.link}"')
    return [
        ("ip" if ip.version == 4 else "ip6", str(ip), ", ".join([*names, '"lo"']))
        for ip, names in sorted(found.items(), key=lambda item: str(item[0]))
    ]


def _foreign(one: Bought) -> list[str]:
    """Return what matches packets with a source that is not the lease's."""
    return [f"{ip} saddr != {{ {own} }}" for v, ip in _VERSIONS if (own := _own(one, v))]


def _own(one: Bought, version: int) -> str:
    return ", ".join(sorted(str(own.ip) for own in one.addresses if own.version == version))
