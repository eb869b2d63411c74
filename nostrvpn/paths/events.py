"""Everything that goes into the path engine, and everything that comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.machine import Tick
from nostrvpn.paths.candidates import LocalAddress
from nostrvpn.paths.description import CachedSession, Description
from nostrvpn.paths.relay_offers import RelayOffer
from nostrvpn.paths.snapshot import LinkSnapshot

__all__ = [
    "AddPeer",
    "ChannelAnswered",
    "ChannelClosed",
    "ChannelOpened",
    "CloseChannel",
    "DatagramReceived",
    "Describe",
    "Guard",
    "LinkChanged",
    "LocalAddresses",
    "MappedAddresses",
    "NetworkChanged",
    "OpenChannel",
    "PathEffect",
    "PathEvent",
    "PathMtu",
    "Pin",
    "RelayOffers",
    "Remember",
    "RemoteDescription",
    "RemovePeer",
    "Restart",
    "SendDatagram",
    "StunServers",
    "Trace",
    "TunnelObserved",
    "TurnAllocated",
    "TurnHeard",
    "TurnLost",
    "TurnTarget",
    "Unguard",
    "Unpin",
    "UseEndpoint",
    "Wake",
    "WebSocketTarget",
]


@dataclass(frozen=True, slots=True)
class AddPeer:
    """Find and keep a path to ``peer`` (public key, hex); one side of each pair is controlling.

    ``asleep``: only once somebody wants one.
    """

    peer: str
    controlling: bool
    cached: CachedSession | None = None
    asleep: bool = False


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
    """A datagram with STUN's cookie reached us at ``destination_ip`` (if known).

    ``destination_port`` None is WireGuard's port; another one is listened on while a path through a
    NAT with unpredictable ports is searched.
    """

    data: bytes
    source: Endpoint
    destination_ip: IPAddress | None
    destination_port: int | None = None


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
    """Routes or links changed, or the host ``slept``: what was known may be wrong."""

    slept: bool = False


@dataclass(frozen=True, slots=True)
class Restart:
    """Start over with ``peer``; a live tunnel keeps running meanwhile."""

    peer: str


@dataclass(frozen=True, slots=True)
class RelayOffers:
    """The relays that we may use, all of them."""

    offers: tuple[RelayOffer, ...]


@dataclass(frozen=True, slots=True)
class MappedAddresses:
    """Endpoints at which our router forwards to WireGuard's port, all of them."""

    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class ChannelOpened:
    """What WireGuard and we send to ``endpoint``, a loopback address, goes into the channel now."""

    channel: int
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class ChannelAnswered:
    """The first frame that came back through a WebSocket channel: the answer to its hello."""

    channel: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """The channel ended, or never came about; its number is not used again."""

    channel: int
    reason: str


@dataclass(frozen=True, slots=True)
class TurnAllocated:
    """The TURN server named ``server`` lends us the address ``relayed``."""

    server: str
    relayed: Endpoint


@dataclass(frozen=True, slots=True)
class TurnHeard:
    """Something came to our address at ``server`` from ``remote``, for which there is no channel.

    The server lets in whoever shares the IP address of a peer we sent to, and a NAT may have given
    the peer another port towards the server than the one it described. ``ufrag`` is ours, by what
    it said: several peers may have one IP address, that of the server or of a carrier's NAT.
    """

    server: str
    remote: Endpoint
    ufrag: str


@dataclass(frozen=True, slots=True)
class TurnLost:
    """The allocation at ``server`` is gone."""

    server: str
    reason: str


@dataclass(frozen=True, slots=True)
class Wake:
    """Traffic for ``peer``, whose link sleeps."""

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
    | RelayOffers
    | MappedAddresses
    | ChannelOpened
    | ChannelAnswered
    | ChannelClosed
    | TurnAllocated
    | TurnHeard
    | TurnLost
    | Wake
    | Tick
)


@dataclass(frozen=True, slots=True)
class SendDatagram:
    """Send ``data``; ``ttl`` None is the host's default, ``source_port`` None is WireGuard's port."""

    data: bytes = field(repr=False)
    destination: Endpoint
    ttl: int | None = None
    source_ip: IPAddress | None = None
    source_port: int | None = None
    dont_fragment: bool = False


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


@dataclass(frozen=True, slots=True)
class WebSocketTarget:
    """A relay's WebSocket; ``hello`` is the first frame to send, and asks for an answer."""

    url: str
    hello: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class TurnTarget:
    """``remote``, by way of our allocation at the TURN server ``server``."""

    server: str
    remote: Endpoint


@dataclass(frozen=True, slots=True)
class OpenChannel:
    """Make a loopback endpoint that stands for ``target``: ChannelOpened tells it."""

    channel: int
    peer: str
    target: WebSocketTarget | TurnTarget


@dataclass(frozen=True, slots=True)
class CloseChannel:
    """The channel is not needed any more. Unknown numbers are none of an error."""

    channel: int


@dataclass(frozen=True, slots=True)
class Guard:
    """Late packets of ``peer`` from ``old`` count as coming from ``new``: WireGuard must not roam back.

    At most one a peer: it replaces the one before. It comes before the UseEndpoint it belongs to.
    """

    peer: str
    old: Endpoint
    new: Endpoint


@dataclass(frozen=True, slots=True)
class Unguard:
    """The old path of ``peer`` is quiet, or is used again."""

    peer: str


@dataclass(frozen=True, slots=True)
class Pin:
    """WireGuard's packets to and from ``remote`` use ``local_port`` on the wire. One a peer."""

    peer: str
    local_port: int
    remote: Endpoint


@dataclass(frozen=True, slots=True)
class Unpin:
    """WireGuard's own port serves ``peer`` again."""

    peer: str


@dataclass(frozen=True, slots=True)
class PathMtu:
    """The path to ``peer`` passes outer IP packets of ``mtu`` bytes; None: nothing is known."""

    peer: str
    mtu: int | None


PathEffect = (
    SendDatagram
    | Describe
    | UseEndpoint
    | OpenChannel
    | CloseChannel
    | Guard
    | Unguard
    | Pin
    | Unpin
    | PathMtu
    | Remember
    | LinkChanged
    | Trace
)
