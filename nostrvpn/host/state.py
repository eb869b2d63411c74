"""The state of one interface on the host, and the marks that make it ours."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

from nostrvpn.endpoint import IPAddress

__all__ = [
    "ALIAS_MARK",
    "BYPASS_MARK",
    "FWMARK",
    "IPV6_MIN_MTU",
    "MARK_MASK",
    "MAX_INTERFACE_NAME",
    "MIN_MTU",
    "RELAY_MARK",
    "ROUTE_PROTOCOL",
    "HostState",
    "IPInterface",
    "IPNetwork",
    "OuterLimit",
    "RouteLimit",
    "is_interface_name",
    "is_marked",
]

IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network

# Ours: every link we make carries an alias that starts with this, so that it is found without
# state.
ALIAS_MARK = "nostrvpn"

# Ours: the "protocol" of every route we make. Free in iproute2's rt_protos; 157 has no user we
# know.
ROUTE_PROTOCOL = 157

# In the third byte, away from the marks other VPN programs use (Tailscale 0x40000 and 0x80000,
# NetBird 0x1BD00, Mullvad 0x6d6f6c65). WireGuard's own packets and every probe carry it.
FWMARK = 0x00A50000
# Whatever carries it in these bits takes the host's own routes and may leave beside an exit.
MARK_MASK = 0x00FF0000
# Who goes around the exit, and what our relay forwards for others: not for the rules that concern only
# WireGuard's own packets (``OuterLimit``).
BYPASS_MARK = FWMARK | 2
RELAY_MARK = FWMARK | 4

# Spec: IFNAMSIZ is 16 with the closing zero.
MAX_INTERFACE_NAME = 15

# Spec: IFALIASZ is 256 with the closing zero.
MAX_ALIAS = 255

# Spec: the least that IPv4 asks of a link (RFC 791), and IPv6 (RFC 8200 section 5), and the most a
# length field can say.
MIN_MTU = 576
IPV6_MIN_MTU = 1280
MAX_MTU = 65535


def is_interface_name(name: str) -> bool:
    """Whether the kernel would take this as a link's name, and it is safe in a path and in argv."""
    return (
        0 < len(name) <= MAX_INTERFACE_NAME
        and name.isascii()
        and all(char.isalnum() or char in "._-" for char in name)
        and name[0].isalnum()
    )


def is_marked(alias: str) -> bool:
    """Whether a link with this alias is ours."""
    return alias.startswith(ALIAS_MARK)


def home_of(alias: str) -> str:
    """Return whose network's link has this alias: a node's state directory; else "".

    What a node has besides its network (an exit it buys, the tunnel it sells through) carries the mark
    alone.
    """
    return alias.removeprefix(ALIAS_MARK).strip() if is_marked(alias) else ""


@dataclass(frozen=True, slots=True)
class RouteLimit:
    """The metrics of one route into the tunnel, in bytes: the largest packet, and TCP's MSS.

    ``mss`` None leaves it to follow from the MTU. It is there for IPv6, where the kernel takes no
    MTU below 1280 (RFC 8200 section 5) but TCP may well send less.
    """

    network: IPNetwork
    mtu: int
    mss: int | None = None


@dataclass(frozen=True, slots=True)
class OuterLimit:
    """WireGuard's own packets to ``ip`` leave this host in fragments of at most ``mtu`` bytes.

    For paths too small for the least packet that the tunnel must carry: without it such packets
    vanish where the path is narrow. Only marked packets (FWMARK) are concerned.
    """

    ip: IPAddress
    mtu: int


@dataclass(frozen=True, slots=True)
class HostState:
    """A link with its addresses, the routes of ours that point to it, and what they may carry.

    Observed routes are only those with our protocol number in the main table; observed addresses
    are all of the link's. ``route_limits`` are of routes in ``routes``. An observed outer limit that
    no longer leads where the host's routes lead has MTU 0. Raises ValueError for what no kernel
    would take.
    """

    interface: str
    mtu: int
    addresses: frozenset[IPInterface] = frozenset()
    routes: frozenset[IPNetwork] = frozenset()
    alias: str = ALIAS_MARK
    up: bool = True
    route_limits: frozenset[RouteLimit] = frozenset()
    outer_limits: frozenset[OuterLimit] = frozenset()

    def __post_init__(self) -> None:
        if not is_interface_name(self.interface):
            raise ValueError(f"not an interface name: {self.interface!r}")
        if len(self.alias.encode()) > MAX_ALIAS:
            raise ValueError(f"an alias has at most {MAX_ALIAS} bytes")
        limited = {limit.network for limit in self.route_limits}
        if len(limited) != len(self.route_limits) or not limited <= self.routes:
            raise ValueError("a limit for no route, or two for one")
        if len({limit.ip for limit in self.outer_limits}) != len(self.outer_limits):
            raise ValueError("two outer limits for one address")
