"""The state of one interface on the host, and the marks that make it ours."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

__all__ = [
    "ALIAS_MARK",
    "MAX_INTERFACE_NAME",
    "ROUTE_PROTOCOL",
    "HostState",
    "IPInterface",
    "IPNetwork",
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

# Spec: IFNAMSIZ is 16 with the closing zero.
MAX_INTERFACE_NAME = 15

# Spec: IFALIASZ is 256 with the closing zero.
MAX_ALIAS = 255

# Spec: the least that IPv4 asks of a link (RFC 791), and the most a length field can say.
MIN_MTU = 576
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


@dataclass(frozen=True, slots=True)
class HostState:
    """A link with its addresses and the routes of ours that point to it.

    Observed routes are only those with our protocol number in the main table; observed addresses
    are all of the link's. Raises ValueError for what no kernel would take.
    """

    interface: str
    mtu: int
    addresses: frozenset[IPInterface] = frozenset()
    routes: frozenset[IPNetwork] = frozenset()
    alias: str = ALIAS_MARK
    up: bool = True

    def __post_init__(self) -> None:
        if not is_interface_name(self.interface):
            raise ValueError(f"not an interface name: {self.interface!r}")
        if len(self.alias.encode()) > MAX_ALIAS:
            raise ValueError(f"an alias has at most {MAX_ALIAS} bytes")
