"""What the host needs to know of a tunnel to a seller: a value, made from a lease."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address

from nostrvpn.endpoint import Endpoint, IPAddress, parse_endpoint
from nostrvpn.identity.keys import RootSecret
from nostrvpn.market.bought_lease import BoughtLease

__all__ = ["BoughtLink", "link_of"]


@dataclass(frozen=True, slots=True)
class BoughtLink:
    """A WireGuard tunnel to one seller. ``key``: of the lease; ``slot`` 0 or 1 stays for its life.

    ``private_key``: 32 bytes; ``peer_key`` and ``psk``: base64; ``endpoints``: the best first;
    ``control``: where lease messages go, at ``control_port``; ``carries``: it was tried and paid,
    so routes may lead into it. At most one of a buyer's links carries.
    """

    key: str
    slot: int
    private_key: bytes = field(repr=False)
    peer_key: str
    psk: str = field(repr=False)
    endpoints: tuple[Endpoint, ...]
    addresses: tuple[IPAddress, ...]
    mtu: int
    dns: tuple[IPAddress, ...]
    control: tuple[IPAddress, ...]
    control_port: int
    carries: bool


def link_of(lease: BoughtLease, slot: int, root: RootSecret, carries: bool) -> BoughtLink | None:
    """Return the tunnel of a lease, None while it has none."""
    access = lease.exit_access
    if access is None or not lease.is_live:
        return None
    return BoughtLink(
        lease.key,
        slot,
        root.lease_wireguard_key(lease.number),
        access.key,
        access.psk,
        tuple(parse_endpoint(text) for text in access.endpoints),
        access.addresses,
        access.mtu,
        tuple(ip_address(text) for text in access.dns),
        tuple(ip_address(text) for text in access.control),
        access.port,
        carries,
    )
