"""Everything that goes into the node, and everything that comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Address, IPv6Network

from nostrvpn.endpoint import Endpoint
from nostrvpn.machine import Tick
from nostrvpn.paths.candidates import LocalAddress
from nostrvpn.paths.events import DatagramReceived, SendDatagram
from nostrvpn.signaling.relays import (
    CloseRelay,
    OpenRelay,
    RelayClosed,
    RelayOpened,
    RelayText,
    SendText,
)
from nostrvpn.wireguard.device import ObservedDevice

__all__ = [
    "Command",
    "HostChanged",
    "Log",
    "NodeEffect",
    "NodeEvent",
    "ObserveTunnel",
    "Persist",
    "Poke",
    "Reconcile",
    "ReconcileFinished",
    "Refuse",
    "Reply",
    "ResolveStun",
    "SendEcho",
    "ShutDown",
    "StunResolved",
    "TunnelSeen",
]


@dataclass(frozen=True, slots=True)
class HostChanged:
    """The host's addresses and routed prefixes, at start and after each change."""

    addresses: tuple[LocalAddress, ...]
    routes: frozenset[IPv4Network | IPv6Network] = frozenset()


@dataclass(frozen=True, slots=True)
class StunResolved:
    """The STUN servers' names were looked up; ``unresolved`` names got no address."""

    endpoints: tuple[Endpoint, ...]
    unresolved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TunnelSeen:
    """What WireGuard says of the device and its peers; None if the device is gone."""

    device: ObservedDevice | None


@dataclass(frozen=True, slots=True)
class ReconcileFinished:
    """The kernel was brought to the desired state, or refused (``error`` says why)."""

    error: str | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """A control command. ``call`` is answered by exactly one Reply, Refuse or SendEcho."""

    call: int
    name: str
    args: dict[str, object] = field(default_factory=dict, repr=False)  # `join` has a link


NodeEvent = (
    RelayOpened
    | RelayClosed
    | RelayText
    | DatagramReceived
    | HostChanged
    | StunResolved
    | TunnelSeen
    | ReconcileFinished
    | Command
    | Tick
)


@dataclass(frozen=True, slots=True)
class Persist:
    """Store ``value`` (None deletes) durably before any effect that follows."""

    space: str
    key: str
    value: object | None = field(repr=False)  # invites and sessions hold secrets


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a command: JSON-able."""

    call: int
    value: object = field(repr=False)  # `invite` answers with a link, `export` with a key


@dataclass(frozen=True, slots=True)
class Refuse:
    """The refusal of a command, in words."""

    call: int
    code: str
    text: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class SendEcho:
    """Send one ICMPv6 echo request through the tunnel; its round trip answers the command."""

    call: int
    address: IPv6Address
    timeout_s: float
    context: dict[str, object]


@dataclass(frozen=True, slots=True)
class Poke:
    """Send something small to a peer through the tunnel, so that WireGuard speaks over a new path."""

    address: IPv6Address


@dataclass(frozen=True, slots=True)
class Reconcile:
    """The desired state changed."""


@dataclass(frozen=True, slots=True)
class ObserveTunnel:
    """Read WireGuard's counters now, and bring them as TunnelSeen."""


@dataclass(frozen=True, slots=True)
class ResolveStun:
    """Look these ``host:port`` names up, and bring them as StunResolved."""

    servers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ShutDown:
    """Take everything down and end the daemon."""


@dataclass(frozen=True, slots=True)
class Log:
    """A line for the log; never holds a secret, a candidate's password or a link."""

    level: str
    text: str


NodeEffect = (
    OpenRelay
    | CloseRelay
    | SendText
    | SendDatagram
    | Persist
    | Reply
    | Refuse
    | SendEcho
    | Poke
    | Reconcile
    | ObserveTunnel
    | ResolveStun
    | ShutDown
    | Log
)
