"""Everything that goes into the path engine, and everything that comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.machine import Tick
from nostrvpn.paths.candidates import LocalAddress
from nostrvpn.paths.description import CachedSession, Description
from nostrvpn.paths.snapshot import LinkSnapshot

__all__ = [
    "AddPeer",
    "DatagramReceived",
    "Describe",
    "LinkChanged",
    "LocalAddresses",
    "NetworkChanged",
    "PathEffect",
    "PathEvent",
    "Remember",
    "RemoteDescription",
    "RemovePeer",
    "Restart",
    "SendDatagram",
    "StunServers",
    "Trace",
    "TunnelObserved",
    "UseEndpoint",
]


@dataclass(frozen=True, slots=True)
class AddPeer:
    """Find and keep a path to ``peer`` (public key, hex); one side of each pair is controlling."""

    peer: str
    controlling: bool
    cached: CachedSession | None = None


@dataclass(frozen=True, slots=True)
class RemovePeer:
    """Forget ``peer``."""

    peer: str


@dataclass(frozen=True, slots=True)
class LocalAddresses:
    """This host's addresses and WireGuard's port, at start and after each change."""

    addresses: tuple[LocalAddress, ...]
    port: int


@dataclass(frozen=True, slots=True)
class StunServers:
    """The STUN servers, resolved, in order of preference."""

    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class RemoteDescription:
    """``peer`` described itself, by a message that was authenticated as its own."""

    peer: str
    description: Description


@dataclass(frozen=True, slots=True)
class DatagramReceived:
    """A datagram with STUN's cookie reached WireGuard's port at ``destination_ip`` (if known)."""

    data: bytes
    source: Endpoint
    destination_ip: IPAddress | None


@dataclass(frozen=True, slots=True)
class TunnelObserved:
    """WireGuard's view of ``peer``: seconds since the last handshake, counters, its endpoint.

    ``endpoint`` is optional: with it the link notices that WireGuard roamed off the chosen path.
    """

    peer: str
    last_handshake_age: float | None
    rx_bytes: int
    tx_bytes: int
    endpoint: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class NetworkChanged:
    """Routes or links changed, or the host woke up: what was known may be wrong."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Start over with ``peer``; a live tunnel keeps running meanwhile."""

    peer: str


PathEvent = (
    AddPeer
    | RemovePeer
    | LocalAddresses
    | StunServers
    | RemoteDescription
    | DatagramReceived
    | TunnelObserved
    | NetworkChanged
    | Restart
    | Tick
)


@dataclass(frozen=True, slots=True)
class SendDatagram:
    """Send ``data`` from WireGuard's port; ``ttl`` None is the host's default."""

    data: bytes = field(repr=False)
    destination: Endpoint
    ttl: int | None = None
    source_ip: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class Describe:
    """Send ``description`` to ``peer`` by signaling, once: repeating is this engine's business."""

    peer: str
    description: Description


@dataclass(frozen=True, slots=True)
class UseEndpoint:
    """Set WireGuard's endpoint for ``peer``; a new ``generation`` means set it again."""

    peer: str
    endpoint: Endpoint | None
    generation: int


@dataclass(frozen=True, slots=True)
class Remember:
    """Keep this for the next start (AddPeer.cached); it holds credentials."""

    peer: str
    cached: CachedSession


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """State, path or endpoint of ``peer`` changed."""

    peer: str
    snapshot: LinkSnapshot


@dataclass(frozen=True, slots=True)
class Trace:
    """A transition, for the log and for tests."""

    machine: str
    old: str
    event: str
    new: str


PathEffect = SendDatagram | Describe | UseEndpoint | Remember | LinkChanged | Trace
