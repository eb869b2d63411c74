"""A mapping that a router gave us, and what the user is told of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum

from nostrvpn.endpoint import Endpoint, IPAddress

__all__ = ["Lease", "PortMapReport", "Protocol", "is_public"]


class Protocol(StrEnum):
    """How a router is asked, the best first: fewest trips, surest to notice a restart."""

    PCP = "pcp"
    NAT_PMP = "nat_pmp"
    UPNP = "upnp"

    @property
    def label(self) -> str:
        """The name people know it by."""
        return {"pcp": "PCP", "nat_pmp": "NAT-PMP", "upnp": "UPnP"}[self.value]


@dataclass(slots=True)
class Lease:
    """A mapping. Times are ``Moment.now``'s; ``expires_at`` is None for one without an end."""

    protocol: Protocol
    external: Endpoint
    made_at: float
    expires_at: float | None
    renew_at: float | None

    @property
    def public(self) -> bool:
        """Whether the internet can reach the external address."""
        return is_public(self.external.ip)


@dataclass(frozen=True, slots=True)
class PortMapReport:
    """What ``netcheck`` tells: who answered, the mapping, and in words why there is none.

    ``public`` is False for an external address that the internet cannot reach, as behind a second
    NAT. ``protocol`` is a value of Protocol.
    """

    pcp: bool
    nat_pmp: bool
    upnp: bool
    protocol: str | None
    external: Endpoint | None
    public: bool
    expires_in_s: float | None
    error: str | None

    def as_json(self) -> dict[str, object]:
        """Return it with plain values."""
        return asdict(self) | {"external": str(self.external) if self.external else None}


def is_public(ip: IPAddress) -> bool:
    """Whether this is an address of the public internet (100.64.0.0/10, RFC 6598, is not)."""
    return ip.is_global and not ip.is_multicast
