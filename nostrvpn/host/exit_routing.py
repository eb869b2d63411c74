"""Routing through an exit, as a value: rules and one table of our own; main's default is never touched.

Unmarked packets look the table up; it leads into the tunnel, and where the tunnel is gone or the exit
does not carry a version, to ``unreachable``. Marked ones (FWMARK) take the host's own routes. Of main's
routes only those into the tunnel are followed, and with ``allow_lan`` those to private ranges; whoever
hands out others for public addresses (DHCP option 121, a LAN that claims them) is not heard.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Network, ip_network

from nostrvpn.host.state import IPNetwork

__all__ = [
    "PRIVATE",
    "RULE_PRIORITIES",
    "ExitRouting",
    "ExitRule",
    "exit_rules",
]

# What local networks are made of: RFC 1918, RFC 3927, RFC 4193, RFC 4291; multicast and broadcast.
PRIVATE = (
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "fc00::/7",
    "fe80::/10",
    "ff00::/8",
)
# Ours: before the rules of other VPN programs (Tailscale's begin at 5210), after those of
# ``io/outer_limits.py`` (4600).
_OVERLAY, _BEHIND, _LINK, _LAN, _EXIT = 4630, 4632, 4635, 4640, 4650
RULE_PRIORITIES = frozenset({_OVERLAY, _BEHIND, _LINK, _LAN, _EXIT})
# Ours: the first byte of our tables' numbers; the rest comes from the interface's name.
_LINK_LOCAL = IPv6Network("fe80::/10")
# Spec: RFC 2131 section 4.1, RFC 8415 section 7.2.
_DHCP = {4: (68, 67), 6: (546, 547)}


@dataclass(frozen=True, slots=True)
class ExitRouting:
    """The empty value is no rule and no table.

    ``overlay``: destinations that main routes into the tunnel already. ``versions``: what the exit
    carries; the others are unreachable. ``allow_lan``: private ranges follow main's routes, but for its
    default. ``behind``: networks behind this host, reached from the tunnel. ``diverts``: some go around
    the exit, which is decided after routing: so all versions lead into the tunnel, and the packet filter
    refuses what the exit does not carry. ``beside``: what main routes into the tunnels of this host's
    other networks. ``link``: the one that the exit is behind, if that is not the mesh's own interface;
    the overlay stays on ours.
    """

    active: bool = False
    overlay: frozenset[IPNetwork] = frozenset()
    versions: frozenset[int] = frozenset()
    allow_lan: bool = False
    behind: frozenset[IPNetwork] = frozenset()
    diverts: bool = False
    beside: frozenset[IPNetwork] = frozenset()
    link: str = ""

    @property
    def tunnelled(self) -> frozenset[int]:
        """The versions whose default leads into the tunnel."""
        if not self.active:
            return frozenset()
        return frozenset({4, 6}) if self.diverts else self.versions

    @property
    def summary(self) -> str:
        """What is asked, in a few words for a log."""
        if not self.active:
            return "removed"
        names = [f"IPv{version}" for version in sorted(self.tunnelled)]
        return f"{' and '.join(names) or 'nothing'} into {self.link or 'the tunnel'}"


@dataclass(frozen=True, slots=True, order=True)
class ExitRule:
    """One rule of ours. ``to``: a destination as text, or empty. ``ports``: UDP from and to these.
    ``inside``: only what comes out of the tunnel. Those of the last priority lead what is not marked
    into our table; the others to main, without its default."""

    priority: int
    version: int
    to: str = ""
    ports: tuple[int, int] | None = None
    inside: bool = False

    @property
    def is_exit(self) -> bool:
        """Whether it is the one that leads into our table."""
        return self.priority == _EXIT


def exit_rules(routing: ExitRouting) -> frozenset[ExitRule]:
    """Return the rules that a routing takes."""
    if not routing.active:
        return frozenset()
    inside = routing.overlay | routing.beside
    rules = {ExitRule(_OVERLAY, network.version, str(network)) for network in inside}
    rules |= {
        ExitRule(_BEHIND, network.version, str(network), inside=True)
        for network in routing.behind
        if network.prefixlen
    }
    rules |= {ExitRule(_LINK, version, ports=ports) for version, ports in _DHCP.items()}
    rules.add(ExitRule(_LINK, 6, str(_LINK_LOCAL)))
    if routing.allow_lan:
        networks = [ip_network(text) for text in PRIVATE]
        rules |= {ExitRule(_LAN, n.version, str(n)) for n in networks if n != _LINK_LOCAL}
    return frozenset(rules | {ExitRule(_EXIT, version) for version in (4, 6)})
