"""Everything that goes into the port mapper, and everything that comes out of it.

The requests of UPnP take several exchanges over TCP, so they are one effect each, answered by one
event that carries the effect's ``serial``. PCP and NAT-PMP are datagrams.
"""

from __future__ import annotations

from dataclasses import dataclass

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.machine import Tick

__all__ = [
    "DatagramReceived",
    "GatewayChanged",
    "GatewayLost",
    "MappedChanged",
    "PortMapEffect",
    "PortMapEvent",
    "SendDatagram",
    "Stop",
    "UpnpCheck",
    "UpnpDone",
    "UpnpFailed",
    "UpnpFind",
    "UpnpMap",
    "UpnpRequest",
    "UpnpUnmap",
]


@dataclass(frozen=True, slots=True)
class GatewayChanged:
    """The default gateway and our address towards it, at start and whenever they may have changed.

    The same values again mean: the network moved, look whether the mapping is still there.
    """

    gateway: IPAddress
    local: IPAddress


@dataclass(frozen=True, slots=True)
class GatewayLost:
    """There is no default gateway any more."""


@dataclass(frozen=True, slots=True)
class DatagramReceived:
    """A datagram came to our socket; ``announced``: to the port of the routers' announcements."""

    data: bytes
    source: Endpoint
    announced: bool = False


@dataclass(frozen=True, slots=True)
class UpnpDone:
    """A UPnP request succeeded; ``external_ip`` only for UpnpMap and UpnpCheck."""

    serial: int
    external_ip: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class UpnpFailed:
    """A UPnP request failed: ``code`` is the router's error, or 0 if it did not answer properly."""

    serial: int
    code: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Stop:
    """Give the mapping back. ``PortMapper.stopped`` tells when that is done."""


@dataclass(frozen=True, slots=True)
class SendDatagram:
    """Send to the gateway's PCP and NAT-PMP port."""

    data: bytes
    destination: Endpoint


@dataclass(frozen=True, slots=True)
class UpnpFind:
    """Look for a UPnP router at ``gateway``, anew."""

    serial: int
    gateway: IPAddress
    local: IPAddress


@dataclass(frozen=True, slots=True)
class UpnpMap:
    """Map the external port to ``internal`` and ask the external address, at the router found.

    ``lease_s`` 0 is a mapping without an end. A port that the router gave to another host is refused
    as UpnpFailed(code=718).
    """

    serial: int
    external_port: int
    internal: Endpoint
    lease_s: int


@dataclass(frozen=True, slots=True)
class UpnpCheck:
    """Ask whether the mapping is still ours (else UpnpFailed 714 or 718), and the external address."""

    serial: int
    external_port: int
    internal: Endpoint


@dataclass(frozen=True, slots=True)
class UpnpUnmap:
    """Remove the mapping if it is still ours."""

    serial: int
    external_port: int
    internal: Endpoint


@dataclass(frozen=True, slots=True)
class MappedChanged:
    """From outside we are reached at these endpoints now; only public addresses."""

    endpoints: tuple[Endpoint, ...]


PortMapEvent = GatewayChanged | GatewayLost | DatagramReceived | UpnpDone | UpnpFailed | Stop | Tick
UpnpRequest = UpnpFind | UpnpMap | UpnpCheck | UpnpUnmap
PortMapEffect = SendDatagram | UpnpRequest | MappedChanged
