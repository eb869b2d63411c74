"""Overlay addresses are derived from (network, member), never announced.

IPv6: a unique local /48 (RFC 4193: ``fd`` and a 40-bit global id hashed from the network id), in it a
/128 per member whose last 80 bits are hashed from network id and public key. IPv4: one of the 64 /16
prefixes of 10.64.0.0/10 picked by the network id, in it a host number hashed likewise; the roster
resolves collisions in the order of admission, so every node computes the same answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

__all__ = [
    "OverlayAddress",
    "host_networks",
    "ipv4_host",
    "ipv4_prefix",
    "ipv6_address",
    "ipv6_prefix",
    "overlay_address",
]

# 10.64.0.0/10: inside RFC 1918, rarely used by home routers, and outside 100.64.0.0/10, which hosts
# that run another mesh VPN often drop.
_IPV4_POOL = IPv4Network("10.64.0.0/10")
_HOSTS = (1 << 16) - 2  # without the all-zeros and the all-ones host of a /16
# Asked for with each look at the kernel, of every member: answers that are remembered, some bytes each.
_REMEMBERED = 2048


@dataclass(frozen=True, slots=True)
class OverlayAddress:
    """A member's two addresses in one network."""

    ipv6: IPv6Address
    ipv4: IPv4Address


@lru_cache(_REMEMBERED)
def host_networks(address: OverlayAddress) -> tuple[IPv6Network, IPv4Network]:
    """Return a member's addresses as networks of one: what WireGuard routes to it."""
    return IPv6Network(address.ipv6), IPv4Network(address.ipv4)


def _digest(label: str, network_id: str, public_key: str = "") -> bytes:
    material = f"nostrvpn/{label}/v1".encode() + bytes.fromhex(network_id)
    return hashlib.sha256(material + bytes.fromhex(public_key)).digest()


@lru_cache(64)
def ipv6_prefix(network_id: str) -> IPv6Network:
    """Return the network's /48 (``network_id``: 64 hex digits)."""
    packed = b"\xfd" + _digest("ula", network_id)[:5] + bytes(10)
    return IPv6Network((packed, 48))


@lru_cache(64)
def ipv4_prefix(network_id: str) -> IPv4Network:
    """Return the network's /16 inside 10.64.0.0/10."""
    index = _digest("ipv4-prefix", network_id)[0] % 64
    return IPv4Network((int(_IPV4_POOL.network_address) + (index << 16), 16))


def ipv6_address(network_id: str, public_key: str) -> IPv6Address:
    """Return the member's address inside :func:`ipv6_prefix`."""
    prefix = ipv6_prefix(network_id).network_address.packed[:6]
    return IPv6Address(prefix + _digest("ipv6-host", network_id, public_key)[:10])


def ipv4_host(network_id: str, public_key: str, taken: Container[int]) -> int:
    """Return the host number for a member admitted now: hashed, or the next one that is not taken.

    Numbers of removed members stay taken, so an address never changes hands.
    """
    host = int.from_bytes(_digest("ipv4-host", network_id, public_key)[:8], "big") % _HOSTS
    while host in taken:
        host = (host + 1) % _HOSTS
    return host


@lru_cache(_REMEMBERED)
def overlay_address(network_id: str, public_key: str, host: int) -> OverlayAddress:
    """Return both addresses of a member whose IPv4 host number is ``host``."""
    base = int(ipv4_prefix(network_id).network_address)
    return OverlayAddress(ipv6_address(network_id, public_key), IPv4Address(base + 1 + host))
