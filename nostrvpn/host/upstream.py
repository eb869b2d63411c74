"""A plain WireGuard provider that this host's guests leave by: a second link of ours, as values.

- What guests send is led there by rules for what comes out of the tunnel, and a table of our own in
  which all else is unreachable: while the provider is down nothing of theirs leaves by the uplink.
- The nft table is the second wall: guests' packets leave by that link or to private networks, or not at
  all; by that link leaves only what guests send, and comes in what belongs to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import collapse_addresses, ip_network

from nostrvpn.host import nft_text
from nostrvpn.host.exit_routing import PRIVATE
from nostrvpn.host.firewall import table_name
from nostrvpn.host.links import UPSTREAM, link_beside
from nostrvpn.host.nft_text import Chain
from nostrvpn.host.state import HostState, IPNetwork

__all__ = [
    "UPSTREAM_RULE_PRIORITIES",
    "Upstream",
    "render_upstream",
    "upstream_interface",
    "upstream_marks",
    "upstream_rules",
    "upstream_table",
]

_SUFFIX = "_upstream"
# Ours: after the rules for the mesh and local networks (4640), before those of an exit in use (4650).
_LAN, _GUESTS, _OWN = 4643, 4645, 4646
UPSTREAM_RULE_PRIORITIES = frozenset({_LAN, _GUESTS, _OWN})
# Ours: the first byte of the tables' numbers; the rest comes from our interface's name.


@dataclass(frozen=True, slots=True)
class Upstream:
    """``host``: the provider's link with its addresses, ``versions``: of IP, that it carries;
    ``overlay``: what guests' addresses are of, ``behind``: networks that members reach beside it."""

    host: HostState
    versions: frozenset[int]
    overlay: frozenset[IPNetwork]
    behind: frozenset[IPNetwork] = frozenset()


def upstream_interface(interface: str) -> str:
    """Return the name of the provider's link, beside ours."""
    return link_beside(interface, UPSTREAM)


def upstream_table(interface: str) -> str:
    """Return the name of the nft table (family inet) for an interface of ours."""
    return table_name(interface) + _SUFFIX


def upstream_rules(interface: str, behind: Iterable[IPNetwork]) -> list[dict[str, object]]:
    """Return the routing rules, by the kernel's names of what they match: (``priority``, ``version``,
    ``iifname`` or ``oifname``, ``to``); with ``to`` they lead to main, without its default."""
    to = {*map(ip_network, PRIVATE), *behind}
    made: list[dict[str, object]] = [
        {"priority": _LAN, "version": n.version, "iifname": interface, "to": str(n)}
        for n in sorted(to, key=str)
        if n.prefixlen
    ]
    for version in (4, 6):
        made.append({"priority": _GUESTS, "version": version, "iifname": interface})
        own = upstream_interface(interface)
        made.append({"priority": _OWN, "version": version, "oifname": own})
    return made


def render_upstream(upstream: Upstream, interface: str) -> str:
    """Return an nft script that, as one transaction, replaces our table by what is wanted."""
    chains = _chains(upstream, interface)
    return nft_text.script(upstream_table(interface), (), chains, nft_text.digest(chains))


def upstream_marks(upstream: Upstream, interface: str) -> tuple[str, ...]:
    """Return the comments of the rules of a table that is as ``upstream`` wants it."""
    chains = _chains(upstream, interface)
    return nft_text.marks(chains, nft_text.digest(chains))


def _chains(upstream: Upstream, interface: str) -> list[Chain]:
    own = upstream.host.interface
    private = {*map(ip_network, PRIVATE), *upstream.behind}
    inward = [
        f'iifname "{own}" ct direction reply accept',
        f'iifname "{own}" meta l4proto {{ icmp, ipv6-icmp }} ct state related accept',
        f'iifname "{own}" drop',
    ]
    leaving = [
        f'iifname "{interface}" oifname != {{ "{interface}", "{own}" }} '
        f"{word} saddr {{ {_set(upstream.overlay, version)} }} "
        f"{word} daddr != {{ {_set(private, version)} }} ct direction original drop"
        for version, word in ((4, "ip"), (6, "ip6"))
        if _set(upstream.overlay, version)
    ]
    return [
        ("input", "filter hook input priority -10; policy accept;", inward),
        (
            "forward",
            "filter hook forward priority -11; policy accept;",
            [*inward, *leaving, f'oifname "{own}" iifname != "{interface}" drop'],
        ),
    ]


def _set(networks: Iterable[IPNetwork], version: int) -> str:
    mine = [network for network in networks if network.version == version]
    return ", ".join(map(str, collapse_addresses(mine)))  # type: ignore[type-var]
