"""An exit as a service on sale: who has which address in the strangers' tunnel, and who is let out."""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.host.sold import CONTROL_PORT, SoldLease
from nostrvpn.machine import Entropy
from nostrvpn.market.effects import Counted, Counters
from nostrvpn.market.exit_access import ExitAccess
from nostrvpn.market.service import Access, Allowance
from nostrvpn.wireguard.device import SecretKey, is_peer_key

__all__ = ["ExitPlace", "ExitService"]


@dataclass(frozen=True, slots=True)
class ExitPlace:
    """Where this host is as an exit: ``endpoints`` of the strangers' WireGuard from outside, its public
    ``key``, the own addresses in their tunnel with its networks (no ``ipv6``: none is sold).
    """

    endpoints: tuple[Endpoint, ...]
    key: str
    ipv4: IPv4Interface
    ipv6: IPv6Interface | None = None
    mtu: int = 1420
    dns: bool = True
    port: int = CONTROL_PORT


class ExitService:
    """All buyers of this host's exit. ``place`` is set by the shell; None: not reachable now.

    ``is_open``: whether more of them are taken; who has paid is served in any case."""

    kind = "exit"

    def __init__(self, max_sessions: int, place: ExitPlace | None = None) -> None:
        self.max_sessions = max_sessions
        self.place = place
        self.is_open = True
        self._leases: dict[str, SoldLease] = {}
        self._access: dict[str, Access] = {}
        self._by_address: dict[IPAddress, str] = {}
        self._next = 1

    def sold_leases(self) -> tuple[SoldLease, ...]:
        """Return what the host's filter and WireGuard should have."""
        return tuple(self._leases.values())

    def admit(self, key: str) -> str | None:
        """Refuse whoever comes while it is closed or full, a key that is here already, or none."""
        return self._refusal(key) if self.is_open else "closed"

    def _refusal(self, key: str) -> str | None:
        if self.place is None or len(self._leases) >= self.max_sessions:
            return "too-busy"
        if not is_peer_key(key, self.place.key):
            return "policy-denied"
        return "policy-denied" if any(one.key == key for one in self._leases.values()) else None

    def activate(
        self, lease_id: str, key: str, allowance: Allowance, entropy: Entropy
    ) -> Access | None:
        """Give the next free addresses and a preshared key."""
        if lease_id in self._leases:
            return self._access[lease_id]
        ipv4 = self._free() if self.place is not None else None
        if self.place is None or ipv4 is None or self._refusal(key) is not None:
            return None
        place, ipv6 = self.place, None
        if place.ipv6 is not None:
            network = place.ipv6.network
            ipv6 = network[int(ipv4) - int(place.ipv4.network.network_address)]
        psk = entropy.take(32)
        own = [str(i.ip) for i in (place.ipv6, place.ipv4) if i is not None]
        access = ExitAccess(
            endpoints=tuple(str(endpoint) for endpoint in place.endpoints),
            key=place.key,
            psk=b64encode(psk).decode(),
            ipv4=str(ipv4),
            ipv6=str(ipv6) if ipv6 else "",
            control=tuple(own),
            port=place.port,
            dns=tuple(own) if place.dns else (),
            mtu=place.mtu,
        ).to_json()
        self._add(SoldLease(lease_id, key, SecretKey(psk), ipv4, ipv6, False, 0), access)
        self.resume(lease_id, allowance)
        return access

    def restore(self, lease_id: str, key: str, access: Access) -> None:
        """Take a lease of an earlier run at the addresses it has; PeerMisbehaved if damaged."""
        found = ExitAccess.parse(access)
        psk, ipv6 = SecretKey(b64decode(found.psk)), found.ipv6
        six = IPv6Address(ipv6) if ipv6 else None
        self._add(SoldLease(lease_id, key, psk, IPv4Address(found.ipv4), six, False, 0), access)

    def meter(self, lease_id: str, counted: Counted) -> Counters | None:
        """Return what WireGuard counted for the lease's key."""
        lease = self._leases.get(lease_id)
        return counted.by_key.get(lease.key) if lease is not None else None

    def address(self, lease_id: str) -> IPAddress | None:
        """Return the buyer's address in the tunnel, IPv6 if it has one."""
        lease = self._leases.get(lease_id)
        return lease.addresses[-1] if lease is not None else None

    def owns(self, lease_id: str, address: IPAddress) -> bool:
        """Whether an address in the tunnel is this lease's."""
        return self._by_address.get(address) == lease_id

    def suspend(self, lease_id: str) -> bool:
        """Let nothing out any more."""
        lease = self._leases.get(lease_id)
        if lease is None or not lease.serves:
            return False
        self._leases[lease_id] = replace(lease, serves=False)
        return True

    def resume(self, lease_id: str, allowance: Allowance) -> bool:
        """Let out what is allowed, counted anew from now."""
        lease = self._leases.get(lease_id)
        if lease is None:
            return False
        # The kernel counts from when a number first appeared: the same number would not begin anew.
        quota, seconds = allowance.quota_bytes, allowance.seconds_left
        quota -= quota > 0 and lease.quota_bytes == quota
        if seconds and lease.seconds_left == seconds:
            seconds -= 0.001
        self._leases[lease_id] = replace(
            lease, serves=True, quota_bytes=quota, seconds_left=seconds
        )
        return True

    def teardown(self, lease_id: str) -> bool:
        """Take peer and addresses away."""
        lease = self._leases.pop(lease_id, None)
        if lease is None:
            return False
        del self._access[lease_id]
        for address in lease.addresses:
            self._by_address.pop(address, None)
        return True

    def _add(self, lease: SoldLease, access: Access) -> None:
        self._leases[lease.lease_id], self._access[lease.lease_id] = lease, access
        self._by_address.update(dict.fromkeys(lease.addresses, lease.lease_id))

    def _free(self) -> IPv4Address | None:
        assert self.place is not None
        network = self.place.ipv4.network
        first, size = int(network.network_address) + 1, network.num_addresses - 2
        for step in range(min(len(self._by_address) + 2, size)):
            # One after the other: who had an address just now may still be spoken to there.
            at = (self._next + step) % size
            address = IPv4Address(first + at)
            if address not in self._by_address and address != self.place.ipv4.ip:
                self._next = at + 1
                return address
        return None
