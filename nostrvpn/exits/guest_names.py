"""What an exit answers its guests about names: nothing of the provider's own network, nothing blocked.

A guest could otherwise read from the provider's resolver what machines its LAN has, or be led by a
public name to an address of the provider's LAN (DNS rebinding).
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from nostrvpn.exits.policy import is_public

__all__ = ["is_private_name"]

# Spec: RFC 6762, 8375, 9476, 6761, 7686, and what routers call their LANs.
_PRIVATE_TOPS = frozenset(
    (
        *("alt", "corp", "home", "internal", "intranet", "lan", "local", "localdomain"),
        *("localhost", "nvpn", "onion", "private", "test"),
    )
)
_PRIVATE_ENDS = (("home", "arpa"), ("resolver", "arpa"))
_REVERSE_V4, _REVERSE_V6 = ("in-addr", "arpa"), ("ip6", "arpa")


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
