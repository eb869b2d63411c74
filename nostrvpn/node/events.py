"""Everything that goes into the node, and everything that comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Address, IPv6Network

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.exits.limits import Volume
from nostrvpn.machine import Tick
from nostrvpn.paths.candidates import LocalAddress
from nostrvpn.paths.events import (
    ChannelAnswered,
    ChannelClosed,
    ChannelOpened,
    CloseChannel,
    DatagramReceived,
    MappedAddresses,
    OpenChannel,
    SendDatagram,
    TurnAllocated,
    TurnHeard,
    TurnLost,
    Wake,
)
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
    "ExitProbed",
    "ExitUsed",
    "HeardThrough",
    "HostChanged",
    "LendTo",
    "Log",
    "NodeEffect",
    "NodeEvent",
    "ObserveTunnel",
    "Persist",
    "Poke",
    "Purchase",
    "PurchaseChanged",
    "Reconcile",
    "ReconcileFinished",
    "Refuse",
    "Reply",
    "ResolveStun",
    "Resumed",
    "SendEcho",
    "SendThrough",
    "ShutDown",
    "StunResolved",
    "ThroughFailed",
    "TunnelSeen",
]


@dataclass(frozen=True, slots=True)
class HostChanged:
    """The host's addresses and routed prefixes, at start and after each change.

    ``sources`` are the addresses that the default routes lead out by: with two interfaces up, a
    default route that moves changes nothing else. ``interrupted``: addresses were gone in between,
    so whatever lived on them may be dead, although they are back. ``network``: the one that the host is
    in, by its default gateway, ``MAC PREFIX``; empty while that is not known.
    """

    addresses: tuple[LocalAddress, ...]
    routes: frozenset[IPv4Network | IPv6Network] = frozenset()
    sources: frozenset[IPAddress] = frozenset()
    interrupted: bool = False
    network: str = ""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The machine slept for so many seconds: connections and NAT mappings are likely gone."""

    slept_s: float


@dataclass(frozen=True, slots=True)
class HeardThrough:
    """A message came through the tunnel, from this overlay address."""

    address: IPv6Address
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ThroughFailed:
    """The message with this token did not get through the tunnel."""

    token: str


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
    """The kernel was brought to the desired state, or refused (``error`` says why).

    ``firewall_error``: only the packet filter was refused, and everything else stands.
    ``inbound_error``: permissions are not enforced; ``obstacle``: another firewall (its chain, and the
    command that helps) drops what members may send. ``gateway_error`` and ``forward_obstacle`` are
    the same for what this host would forward into networks behind it. ``shield_error``: why what may
    leave beside an exit, or the way to it, is not as desired. ``meter_error``: why no
    guest is let through. ``exit_rival``: the interface of another network of this host that uses an
    exit, so that this one cannot. ``booths``: the links of booths that
    there are; None if that is not known. ``exit_changes``: ``ExitUse.changes`` when the run began.
    """

    error: str | None = None
    firewall_error: str | None = None
    inbound_error: str | None = None
    obstacle: tuple[str, str] | None = None
    gateway_error: str | None = None
    forward_obstacle: tuple[str, str] | None = None
    shield_error: str | None = None
    meter_error: str | None = None
    exit_rival: str | None = None
    booths: frozenset[str] | None = None
    exit_changes: int | None = None


@dataclass(frozen=True, slots=True)
class ExitProbed:
    """An echo to an exit (its public key) came back after ``rtt_ms``, or (None) stayed away."""

    peer_key: str
    rtt_ms: float | None


@dataclass(frozen=True, slots=True)
class ExitUsed:
    """What this host's guests had, by address, since the counters began. ``provider``: what went by the
    link to the WireGuard provider that they leave by (received, sent; bytes); None without one."""

    usage: Mapping[IPAddress, Volume]
    provider: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Purchase:
    """An exit that is paid for, as the market has it. ``link``: the one that it is behind;
    ``versions``: of IP, that it carries; ``resolvers``: who answers for names through it, the best
    first. ``possible``: one can be had; ``carries``: this one does, as a probe through it has shown.
    ``label``: its name."""

    link: str = ""
    versions: frozenset[int] = frozenset()
    resolvers: tuple[IPAddress, ...] = ()
    carries: bool = False
    possible: bool = False
    label: str = ""


@dataclass(frozen=True, slots=True)
class PurchaseChanged:
    """The market has another exit, or none (None: it does not say yet)."""

    purchase: Purchase | None


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
    | MappedAddresses
    | ChannelOpened
    | ChannelAnswered
    | ChannelClosed
    | TurnAllocated
    | TurnHeard
    | TurnLost
    | Wake
    | HeardThrough
    | ThroughFailed
    | HostChanged
    | Resumed
    | StunResolved
    | TunnelSeen
    | ReconcileFinished
    | ExitProbed
    | ExitUsed
    | PurchaseChanged
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
class SendThrough:
    """Send a message through the tunnel to this overlay address; ThroughFailed if it is not taken."""

    address: IPv6Address
    text: str = field(repr=False)
    token: str


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
class LendTo:
    """Relay for these users from now on (names of credentials that their offers gave them)."""

    users: frozenset[str]


@dataclass(frozen=True, slots=True)
class ShutDown:
    """Take everything down and end the daemon; ``restart``: begin anew, as it was started."""

    restart: bool = False


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
    | OpenChannel
    | CloseChannel
    | LendTo
    | Persist
    | Reply
    | Refuse
    | SendEcho
    | SendThrough
    | Poke
    | Reconcile
    | ObserveTunnel
    | ResolveStun
    | ShutDown
    | Log
)
