"""What the relay's machine is told, and what it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.machine import Tick

__all__ = [
    "AllocateReceived",
    "Channel",
    "ChannelClosed",
    "ChannelOpened",
    "ChannelReceived",
    "CloseChannel",
    "ClosePort",
    "CountersRead",
    "End",
    "Forward",
    "OpenPort",
    "PortOpened",
    "PortReceived",
    "PortRefused",
    "RelayEffect",
    "RelayEvent",
    "SendControl",
    "SendFrom",
    "Source",
    "Unforward",
    "Users",
]


@dataclass(frozen=True, slots=True)
class Channel:
    """One WebSocket of a client, by a number that is never used twice."""

    number: int


Source = Endpoint | Channel


@dataclass(frozen=True, slots=True)
class End:
    """One bound end of a pair; ``local_ip`` is the address of ours that it sends to, if known."""

    source: Source
    local_ip: IPAddress | None


# Events


@dataclass(frozen=True, slots=True)
class Users:
    """The names of all users that were given credentials; pairs of others end at once."""

    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class AllocateReceived:
    """A STUN message with the method Allocate, at WireGuard's port."""

    data: bytes
    source: Endpoint


@dataclass(frozen=True, slots=True)
class PortReceived:
    """A STUN message at a lent port from an address that is not forwarded."""

    port: int
    data: bytes
    source: Endpoint
    local_ip: IPAddress | None


@dataclass(frozen=True, slots=True)
class ChannelOpened:
    """A client at ``ip`` opened a WebSocket."""

    number: int
    ip: IPAddress


@dataclass(frozen=True, slots=True)
class ChannelReceived:
    """A binary frame from a WebSocket that is not forwarded."""

    number: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """A WebSocket is gone."""

    number: int


@dataclass(frozen=True, slots=True)
class PortOpened:
    """OpenPort was done."""

    port: int


@dataclass(frozen=True, slots=True)
class PortRefused:
    """OpenPort failed: somebody else has the port."""

    port: int


@dataclass(frozen=True, slots=True)
class CountersRead:
    """Bytes forwarded since the port was opened, both directions together, of each port."""

    carried: Mapping[int, int]


RelayEvent = (
    Users
    | AllocateReceived
    | PortReceived
    | ChannelOpened
    | ChannelReceived
    | ChannelClosed
    | PortOpened
    | PortRefused
    | CountersRead
    | Tick
)


# Effects


@dataclass(frozen=True, slots=True)
class OpenPort:
    """Take the port, on IPv4 and IPv6, and say PortOpened or PortRefused."""

    port: int


@dataclass(frozen=True, slots=True)
class ClosePort:
    """Give the port back; it forwards nothing any more."""

    port: int


@dataclass(frozen=True, slots=True)
class SendFrom:
    """Send from a lent port, out of ``local_ip`` (the address that was asked) if it is known."""

    port: int
    data: bytes
    destination: Endpoint
    local_ip: IPAddress | None


@dataclass(frozen=True, slots=True)
class SendControl:
    """Answer an Allocate (from WireGuard's port), or whatever came by a WebSocket (by that)."""

    data: bytes
    destination: Source


@dataclass(frozen=True, slots=True)
class CloseChannel:
    """Close a WebSocket; ChannelClosed may follow, and changes nothing."""

    number: int


@dataclass(frozen=True, slots=True)
class Forward:
    """Forward between these two ends of ``port`` from now on, and between no others."""

    port: int
    a: End
    b: End


@dataclass(frozen=True, slots=True)
class Unforward:
    """Forward nothing at ``port``, which stays open."""

    port: int


RelayEffect = OpenPort | ClosePort | SendFrom | SendControl | CloseChannel | Forward | Unforward
