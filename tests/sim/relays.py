"""Relays and a TURN server of the simulated internet, and the channels that hosts open to them.

A relay is the real RelayServer; what nftables does for it is done here: packets of two bound ends
are exchanged, whatever else comes to a lent port is the server's.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from nostrvpn.endpoint import Endpoint
from nostrvpn.paths.events import (
    ChannelAnswered,
    ChannelClosed,
    ChannelOpened,
    OpenChannel,
    TurnHeard,
    TurnTarget,
    WebSocketTarget,
)
from nostrvpn.paths.relay_offers import RelayOffer
from nostrvpn.relaying import events as relaying
from nostrvpn.relaying.server import RelayServer
from nostrvpn.relaying.settings import RelaySettings
from nostrvpn.stun.binding import looks_like_stun, parse_stun
from nostrvpn.stun.relaying import relay_user

if TYPE_CHECKING:
    from tests.sim.network import Host, Simulation

CONTROL = 24001
COUNT_EVERY = 20.0


@dataclass
class Channel:
    """A host's channel: its loopback endpoint, and what it leads to. ``wire``: its number there."""

    host: Host
    number: int
    wire: int
    endpoint: Endpoint
    target: WebSocketTarget | TurnTarget
    answered: bool = False


class Relay:
    def __init__(self, sim: Simulation, number: int, *, websocket: bool, delay: float) -> None:
        self.sim = sim
        self.name = f"{900 + number:064x}"
        self.delay = delay
        self.v4 = Endpoint(IPv4Address(f"11.0.{150 + number}.1"), CONTROL)
        self.v6 = Endpoint(IPv6Address(f"2d00:{number:x}::5"), CONTROL)
        self.url = f"ws://relay{number}.example/" if websocket else None
        self.alive = self.udp = True
        self.secret = bytes([number]) * 32
        self.channels: dict[int, Channel] = {}
        self.restart()
        self._count()

    def restart(self) -> None:
        """Forget every pair, as a daemon that starts anew."""
        self.server = RelayServer(self.secret, RelaySettings())
        self.ports: set[int] = set()
        self.forwards: dict[tuple[int, object], object] = {}
        self.carried: dict[int, int] = {}
        names = {relay_user(self.secret, host.key).name for host in self.sim.hosts.values()}
        self.users = names
        self.step(relaying.Users(frozenset(names)))

    def offer(self, host: Host) -> RelayOffer:
        user = relay_user(self.secret, host.key)
        if user.name not in self.users:
            self.users.add(user.name)
            self.step(relaying.Users(frozenset(self.users)))
        return RelayOffer(self.name, (self.v4, self.v6), user, self.url)

    def owns(self, to: Endpoint) -> bool:
        return to.ip in (self.v4.ip, self.v6.ip)

    def take(self, data: bytes, source: Endpoint, to: Endpoint) -> None:
        """A datagram came by UDP."""
        if not self.alive or not self.udp:
            return
        if to.port == CONTROL:
            if data[:2] != b"WG":
                self.step(relaying.AllocateReceived(data, source))
        elif (to.port, source) in self.forwards:
            self._pass(to.port, source, data)
        elif to.port in self.ports and data[:2] != b"WG":
            self.step(relaying.PortReceived(to.port, data, source, to.ip))

    def take_frame(self, channel: Channel, data: bytes) -> None:
        """A binary frame came by a WebSocket."""
        if not self.alive:
            return
        source = relaying.Channel(channel.wire)
        for port, end in list(self.forwards):
            if end == source:
                self._pass(port, source, data)
                return
        if data[:2] != b"WG":
            self.step(relaying.ChannelReceived(channel.wire, data))

    def open(self, channel: Channel) -> None:
        if channel.number not in channel.host.channels:
            return
        if not self.alive:
            self.sim.step(channel.host, ChannelClosed(channel.number, "refused"))
            return
        assert isinstance(channel.target, WebSocketTarget)
        self.channels[channel.wire] = channel
        self.step(relaying.ChannelOpened(channel.wire, channel.host.address.ip))
        self.step(relaying.ChannelReceived(channel.wire, channel.target.hello))

    def close(self, number: int) -> None:
        if self.channels.pop(number, None) is not None:
            self.step(relaying.ChannelClosed(number))

    def die(self) -> None:
        self.alive = False
        for wire, channel in list(self.channels.items()):
            del self.channels[wire]
            self.sim.step(channel.host, ChannelClosed(channel.number, "connection reset"))

    def step(self, event: relaying.RelayEvent) -> None:
        for effect in self.server.step(event, self.sim.moment_at(0.0)):
            match effect:
                case relaying.OpenPort(port):
                    self.ports.add(port)
                    self.step(relaying.PortOpened(port))
                case relaying.ClosePort(port):
                    self.ports.discard(port)
                case relaying.SendFrom(port, data, to, _):
                    self._send(data, port, to)
                case relaying.SendControl(data, relaying.Channel(number)):
                    self._frame(number, data)
                case relaying.SendControl(data, Endpoint() as to):
                    self._send(data, CONTROL, to)
                case relaying.CloseChannel(number):
                    self.channels.pop(number, None)
                case relaying.Forward(port, a, b):
                    self._unforward(port)
                    self.forwards |= {(port, a.source): b.source, (port, b.source): a.source}
                case relaying.Unforward(port):
                    self._unforward(port)

    def _unforward(self, port: int) -> None:
        self.forwards = {key: end for key, end in self.forwards.items() if key[0] != port}

    def _pass(self, port: int, source: object, data: bytes) -> None:
        self.carried[port] = self.carried.get(port, 0) + len(data)
        end = self.forwards[(port, source)]
        if isinstance(end, relaying.Channel):
            self._frame(end.number, data)
        elif isinstance(end, Endpoint):
            self._send(data, port, end)

    def _send(self, data: bytes, port: int, to: Endpoint) -> None:
        source = Endpoint((self.v4 if to.ip.version == 4 else self.v6).ip, port)
        if self.sim.rng.random() < self.sim.conditions.loss:
            return
        delay = self.delay + self.sim.conditions.delay
        self.sim.at(delay, lambda: self.sim.deliver(None, data, source, to))

    def _frame(self, number: int, data: bytes) -> None:
        channel = self.channels.get(number)
        if channel is None:
            return
        self.sim.at(self.delay + self.sim.conditions.delay, lambda: self._arrive(channel, data))

    def _arrive(self, channel: Channel, data: bytes) -> None:
        if channel.number not in channel.host.channels:
            return
        if channel.answered:
            self.sim.arrive(channel.host, data, channel.endpoint)
            return
        channel.answered = True
        self.sim.step(channel.host, ChannelAnswered(channel.number, data))
        if channel.number in channel.host.channels:
            self.sim.step(channel.host, ChannelOpened(channel.number, channel.endpoint))

    def _count(self) -> None:
        if self.alive:
            self.step(relaying.CountersRead(dict(self.carried)))
        self.sim.at(COUNT_EVERY, self._count)


@dataclass
class TurnServer:
    """One TURN server: an address for each host that asked, and channels to its peers."""

    sim: Simulation
    name: str = "turn.example"
    relayed: dict[Endpoint, Host] = field(default_factory=dict)
    ip: IPv4Address = field(default_factory=lambda: IPv4Address("11.0.240.1"))

    def allocate(self, host: Host) -> Endpoint:
        endpoint = Endpoint(self.ip, 40000 + len(self.relayed))
        self.relayed[endpoint] = host
        return endpoint

    def send(self, channel: Channel, data: bytes) -> None:
        assert isinstance(channel.target, TurnTarget)
        source = next(at for at, host in self.relayed.items() if host is channel.host)
        remote = channel.target.remote
        # What comes by TCP and stays within the server is not lost.
        if remote not in self.relayed and self.sim.rng.random() < self.sim.conditions.loss:
            return
        self.sim.at(
            2 * self.sim.conditions.delay, lambda: self.sim.deliver(None, data, source, remote)
        )

    def take(self, data: bytes, source: Endpoint, to: Endpoint) -> None:
        host = self.relayed[to]
        remotes = {
            channel.target.remote: channel
            for channel in host.channels.values()
            if isinstance(channel.target, TurnTarget)
        }
        delay = self.sim.conditions.delay
        if source in remotes:
            self.sim.at(delay, lambda: self.sim.arrive(host, data, remotes[source].endpoint))
        elif looks_like_stun(data) and any(remote.ip == source.ip for remote in remotes):
            ufrag = parse_stun(data).username.partition(":")[0]
            self.sim.step(host, TurnHeard(self.name, source, ufrag))


class Carriers:
    """What hosts' channels lead to."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.relays: list[Relay] = []
        self.turn = TurnServer(sim)
        self._loopback = itertools.count(2)

    def relay(self, *, websocket: bool = False, delay: float = 0.0) -> Relay:
        relay = Relay(self.sim, len(self.relays) + 1, websocket=websocket, delay=delay)
        self.relays.append(relay)
        return relay

    def open(self, host: Host, effect: OpenChannel) -> None:
        number = next(self._loopback)
        endpoint = Endpoint(IPv4Address(f"127.20.0.{number % 250 + 1}"), 30000 + number)
        channel = Channel(host, effect.channel, number, endpoint, effect.target)
        if any(c.target == effect.target for c in host.channels.values()):
            # A packet that comes from there could belong to either.
            closed = ChannelClosed(effect.channel, "another channel leads there already")
            self.sim.at(self.sim.conditions.delay, lambda: self.sim.step(host, closed))
            return
        host.channels[effect.channel] = channel
        match effect.target:
            case WebSocketTarget(url, _):
                relay = next(relay for relay in self.relays if relay.url == url)
                connect = 6 * (relay.delay + self.sim.conditions.delay)
                self.sim.at(connect, lambda: relay.open(channel))
            case TurnTarget():
                opened = ChannelOpened(effect.channel, endpoint)
                self.sim.at(self.sim.conditions.delay, lambda: self.sim.step(host, opened))

    def close(self, host: Host, number: int) -> None:
        channel = host.channels.pop(number, None)
        for relay in self.relays:
            if channel is not None:
                relay.close(channel.wire)

    def send(self, host: Host, data: bytes, to: Endpoint) -> None:
        """A host sends to a loopback endpoint of one of its channels."""
        channel = next((c for c in host.channels.values() if c.endpoint == to), None)
        if channel is None:
            return
        if isinstance(channel.target, TurnTarget):
            self.turn.send(channel, data)
            return
        url = channel.target.url
        relay = next(relay for relay in self.relays if relay.url == url)
        delay = relay.delay + self.sim.conditions.delay
        self.sim.at(delay, lambda: relay.take_frame(channel, data))
