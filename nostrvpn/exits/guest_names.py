"""What an exit answers its guests about names: nothing of the provider's own network, nothing blocked.

A guest could otherwise read from the provider's resolver what machines its LAN has, or be led by a
public name to an address of the provider's LAN (DNS rebinding).
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_network

from nostrvpn.exits.policy import LAN_RANGES, PRIVATE_RANGES

__all__ = ["is_private_name", "is_public"]

# Spec: RFC 6762, 8375, 9476, 6761, 7686, and what routers call their LANs.
_PRIVATE_TOPS = frozenset(
    (
        *("alt", "corp", "home", "internal", "intranet", "lan", "local", "localdomain"),
        *("localhost", "nvpn", "onion", "private", "test"),
    )
)
_PRIVATE_ENDS = (("home", "arpa"), ("resolver", "arpa"))
_REVERSE_V4, _REVERSE_V6 = ("in-addr", "arpa"), ("ip6", "arpa")
# What else leads to no host of the internet.
_INSIDE = (*LAN_RANGES, *PRIVATE_RANGES, ip_network("0.0.0.0/8"), ip_network("240.0.0.0/4"))
# RFC 6052: addresses of IPv4 inside IPv6.
_NAT64 = ip_network("64:ff9b::/96")


def is_private_name(labels: tuple[str, ...], searched: Iterable[str]) -> bool:
    """Whether a name (its labels in lower case) is not one of the internet's: no guest is answered.

    ``searched``: the domains of the provider's own network. Single labels are names of a LAN; the root
    itself is not, and resolvers ask for it.
    """
    if not labels:
        return False
    own = {tuple(domain.lower().strip(".").split(".")) for domain in searched}
    ends = {labels[at:] for at in range(len(labels))}
    return (
        len(labels) == 1
        or labels[-1] in _PRIVATE_TOPS
        or any(end in ends for end in _PRIVATE_ENDS)
        or bool(ends & own)
        or _is_private_reverse(labels)
    )


def is_public(ip: IPv4Address | IPv6Address) -> bool:
    """Whether an address is one of the internet's, also by what it stands for."""
    if isinstance(ip, IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = IPv4Address(int(ip) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(inner)
    special = ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified
    inside = any(ip.version == network.version and ip in network for network in _INSIDE)
    return not (special or inside)


def _is_private_reverse(labels: tuple[str, ...]) -> bool:
    """Whether it asks for the name of an address that is not the internet's, or of several such."""
    if labels[-2:] == _REVERSE_V4:
        parts, version = labels[-3::-1], 4
    elif labels[-2:] == _REVERSE_V6:
        parts, version = labels[-3::-1], 6
    else:
        return False
    try:
        if version == 4:
            octets = [int(part) for part in parts[:4]]
            whole = bytes(octets + [1] * (4 - len(octets)))
            return not is_public(IPv4Address(whole)) if octets else False
        digits = "".join(parts[:32])
        return not is_public(IPv6Address(bytes.fromhex(digits.ljust(32, "1")))) if digits else False
    except ValueError:
        return True
