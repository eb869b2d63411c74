"""An internet in virtual time: an event heap, hosts behind NATs, loss, delay, jitter, signaling.

Each host runs the real ``Paths`` machine and a model of WireGuard: handshakes every 5 s until one
is answered, keepalives, roaming to the source of whatever is authentic.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address

from aioice import stun

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.machine import Entropy, Moment, Tick
from nostrvpn.paths.agent import Paths
from nostrvpn.paths.candidates import LocalAddress, PathKind
from nostrvpn.paths.description import (
    CachedSession,
    cached_session_to_json,
    description_to_json,
    parse_cached_session,
    parse_description,
)
from nostrvpn.paths.events import (
    AddPeer,
    CloseChannel,
    DatagramReceived,
    Describe,
    Guard,
    LinkChanged,
    LocalAddresses,
    OpenChannel,
    PathEffect,
    PathEvent,
    Pin,
    RelayOffers,
    Remember,
    RemoteDescription,
    SendDatagram,
    Trace,
    TunnelObserved,
    Unguard,
    Unpin,
    UseEndpoint,
)
from nostrvpn.paths.guards import passes_on
from nostrvpn.paths.hard_nat.search import SOURCE_PORTS
from nostrvpn.paths.link import Link
from nostrvpn.paths.settings import PathSettings
from nostrvpn.paths.snapshot import LinkSnapshot
from tests.sim.nats import ConeNat, Firewall, HardNat, LinuxNat, Nat, SymmetricNat
from tests.sim.relays import Carriers, Channel, Relay

CORE_HOPS = 8
HANDSHAKE_RETRY = 5.0
KEEPALIVE = 25.0
PIN_TIME = 0.2


@dataclass
class Conditions:
    """Of the internet: one-way delays in seconds, shares of packets lost."""

    delay: float = 0.02
    jitter: float = 0.0
    loss: float = 0.0
    signal_delay: float = 0.04
    signal_jitter: float = 0.0
    signal_loss: float = 0.0
    lan_delay: float = 0.0005


def drawn_conditions(rng: random.Random, loss: float, *, longest_delay: float) -> Conditions:
    """Draw the conditions of a bad network."""
    return Conditions(
        delay=rng.uniform(0.002, longest_delay),
        jitter=rng.uniform(0, 0.05),
        loss=loss,
        signal_delay=rng.uniform(0.01, 0.4),
        signal_jitter=rng.uniform(0, 0.3),
        signal_loss=loss,
    )


@dataclass
class Tunnel:
    """One peer in the model of WireGuard."""

    endpoint: Endpoint | None = None
    handshake_at: float | None = None
    rx: int = 0
    tx: int = 0
    observed_at: float = 0.0


@dataclass
class Host:
    name: str
    key: str
    address: Endpoint
    nat: Nat | None
    lan: str | None
    paths: Paths
    v6: Endpoint | None = None
    online: bool = True
    signaling: bool = True
    skew: float = 0.0
    tunnels: dict[str, Tunnel] = field(default_factory=dict)
    added_at: dict[str, float] = field(default_factory=dict)
    validated_at: dict[str, float] = field(default_factory=dict)
    connected_at: dict[str, float] = field(default_factory=dict)
    memories: dict[str, CachedSession] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    wakeups: int = 0
    traces: list[tuple[float, Trace]] = field(default_factory=list)
    scheduled: float | None = None
    has_v4: bool = True
    udp: bool = True
    keepalive: bool = True
    channels: dict[int, Channel] = field(default_factory=dict)
    guards: dict[str, tuple[Endpoint, Endpoint]] = field(default_factory=dict)
    arrivals: list[float] = field(default_factory=list)
    told: list[tuple[float, Endpoint | None]] = field(default_factory=list)
    pins: dict[str, Pin] = field(default_factory=dict)

    def endpoints(self) -> list[Endpoint]:
        return [*([self.address] if self.has_v4 else []), *([self.v6] if self.v6 else [])]


class Simulation:
    def __init__(self, seed: int, conditions: Conditions | None = None) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.now = 1000.0
        self.conditions = conditions or Conditions()
        self.hosts: dict[str, Host] = {}
        self.nats: dict[IPAddress, Nat] = {}
        self.servers: tuple[Endpoint, ...] = (
            Endpoint(IPv4Address("11.0.200.1"), 3478),
            Endpoint(IPv4Address("11.0.201.1"), 3479),
        )
        self.servers_up = True
        self.blocked: Callable[[Host, Host], bool] = lambda sender, receiver: False
        self.on_datagram: Callable[[Host, SendDatagram], None] = lambda host, effect: None
        self.carriers = Carriers(self)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._entropy = itertools.count()

    # --- building ---------------------------------------------------------------------------

    def nat(self, kind: str, number: int, *, hairpin: bool = False) -> Nat | None:
        ip = ip_address(f"11.0.{number}.2")
        rng = random.Random(self.rng.random())
        made: Nat
        if kind == "open":
            return None
        if kind in ("full-cone", "address-restricted", "port-restricted"):
            filtering = {"f": "none", "a": "address", "p": "port"}[kind[0]]
            made = ConeNat(ip, rng, hairpin, filtering=filtering)
        elif kind == "symmetric":
            made = SymmetricNat(ip, rng, hairpin)
        elif kind in ("counts", "draws"):
            made = HardNat(ip, rng, hairpin, step=1 if kind == "counts" else None)
        elif kind in ("linux", "accept-input"):
            made = LinuxNat(ip, rng, hairpin, accept_input=kind == "accept-input")
        elif kind == "firewall":
            made = Firewall(ip, rng)
        else:
            raise AssertionError(kind)
        self.nats[ip] = made
        return made

    def host(
        self,
        name: str,
        kind: str,
        *,
        behind: Host | None = None,
        skew: float = 0.0,
        v6: bool = False,
        v4: bool = True,
        stun: bool = True,
        settings: PathSettings | None = None,
    ) -> Host:
        number = len(self.hosts) + 1
        nat = behind.nat if behind else self.nat(kind, number)
        lan = None if nat is None or not nat.maps else f"lan{number if not behind else behind.lan}"
        if behind:
            lan = behind.lan
        port = self.rng.randrange(20000, 60000)
        public = nat is None or not nat.maps
        ip = ip_address(f"11.0.{number}.2" if public else f"192.168.1.{number}")
        host = Host(
            name=name,
            key=f"{number:064x}",
            address=Endpoint(ip, port),
            nat=nat,
            lan=lan,
            paths=Paths(
                stun_servers=self.servers if stun else (),
                settings=settings or PathSettings(hard_nat_search=False),
            ),
            v6=Endpoint(IPv6Address(f"2d00::{number:x}:1"), port) if v6 else None,
            skew=skew,
            has_v4=v4,
        )
        self.hosts[name] = host
        return host

    def relay(self, *, websocket: bool = False, delay: float = 0.0) -> Relay:
        """Add a relay; ``delay`` is what it is farther away than the rest, one way."""
        return self.carriers.relay(websocket=websocket, delay=delay)

    def offer(self, *hosts: Host, relays: list[Relay] | None = None) -> None:
        """Tell hosts of relays: of all, or of these."""
        for host in hosts:
            known = self.carriers.relays if relays is None else relays
            self.step(host, RelayOffers(tuple(relay.offer(host) for relay in known)))

    def boot(self, host: Host) -> None:
        self.step(host, self.local_addresses(host))

    def local_addresses(self, host: Host) -> LocalAddresses:
        return LocalAddresses(
            tuple(
                LocalAddress(e.ip, "eth0", 24 if e.ip.version == 4 else 112)
                for e in host.endpoints()
            ),
            host.address.port,
        )

    def add(self, host: Host, peer: Host, *, cached: CachedSession | None = None) -> None:
        host.tunnels.setdefault(peer.key, Tunnel())
        host.added_at[peer.key] = self.now
        self.step(host, AddPeer(peer.key, host.key < peer.key, cached))
        self._observe(host, peer.key)

    def pair(self, first: Host, second: Host, *, gap: float = 0.0) -> None:
        self.add(first, second)
        self.at(gap, lambda: self.add(second, first))

    # --- running ----------------------------------------------------------------------------

    def at(self, delay: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + delay, next(self._order), call))

    def run(self, duration: float, until: Callable[[], bool] | None = None) -> bool:
        end = self.now + duration
        while self._heap and self._heap[0][0] <= end:
            self.now, _, call = heapq.heappop(self._heap)
            call()
            if until is not None and until():
                return True
        self.now = end
        return until is not None and until()

    def moment(self, host: Host) -> Moment:
        return self.moment_at(host.skew)

    def moment_at(self, skew: float) -> Moment:
        seed = f"{self.seed}/{next(self._entropy)}".encode()
        return Moment(self.now + skew, 1.7e9 + self.now + skew * 3, Entropy(seed))

    def step(self, host: Host, event: PathEvent) -> None:
        if host.online:
            host.wakeups += 1
            self._perform(host, host.paths.step(event, self.moment(host)))
        self._schedule(host)

    def _schedule(self, host: Host) -> None:
        deadline = host.paths.deadline
        if deadline is None or not host.online:
            host.scheduled = None
            return
        # A microsecond late, as real timers are: rounding must not make a wake-up come early.
        due = max(deadline - host.skew, self.now) + 1e-6
        if host.scheduled is not None and self.now < host.scheduled <= due:
            return
        host.scheduled = due

        def wake() -> None:
            if host.scheduled == due:
                host.scheduled = None
                late = host.paths.deadline
                if late is not None and late - host.skew <= self.now + 1e-9:
                    self.step(host, Tick())
                else:
                    self._schedule(host)

        self.at(due - self.now, wake)

    def _perform(self, host: Host, effects: list[PathEffect]) -> None:
        for effect in effects:
            host.counts[type(effect).__name__] += 1
            match effect:
                case SendDatagram():
                    self.on_datagram(host, effect)
                    self._send(
                        host, effect.data, effect.destination, effect.ttl, effect.source_port
                    )
                case Describe(peer, description):
                    self._signal(host, peer, json.dumps(description_to_json(description)))
                case UseEndpoint(peer, endpoint, _):
                    host.validated_at.setdefault(peer, self.now)
                    tunnel = host.tunnels[peer]
                    host.told.append((self.now, endpoint))
                    tunnel.endpoint = endpoint
                    if tunnel.handshake_at is None:
                        self._handshake(host, peer)
                    else:  # as the node does: something must prove the new path
                        for delay in (0.05, 1.05):
                            self.at(delay, partial(self._wg_send, host, peer, "poke", 100))
                case Remember(peer, cached):
                    text = json.dumps(cached_session_to_json(cached))
                    host.memories[peer] = parse_cached_session(json.loads(text))
                case LinkChanged(peer, snapshot):
                    if snapshot.path != "none":
                        host.connected_at.setdefault(peer, self.now)
                case OpenChannel():
                    self.carriers.open(host, effect)
                case CloseChannel(channel):
                    self.carriers.close(host, channel)
                case Guard(peer, old, new):
                    assert old != new
                    host.guards[peer] = (old, new)
                case Unguard(peer):
                    del host.guards[peer]
                case Pin(peer):  # the packet filter takes a moment
                    self.at(PIN_TIME, partial(host.pins.__setitem__, peer, effect))
                case Unpin(peer):
                    host.pins.pop(peer, None)
                case Trace():
                    host.traces.append((self.now, effect))

    def _signal(self, host: Host, peer: str, text: str) -> None:
        if self.rng.random() < self.conditions.signal_loss or not host.signaling:
            return
        c = self.conditions
        receiver = next(h for h in self.hosts.values() if h.key == peer)
        description = parse_description(json.loads(text))

        def deliver() -> None:
            if receiver.signaling:
                self.step(receiver, RemoteDescription(host.key, description))

        self.at(c.signal_delay + self.rng.random() * c.signal_jitter, deliver)

    # --- packets ----------------------------------------------------------------------------

    def _send(
        self,
        host: Host,
        data: bytes,
        to: Endpoint,
        ttl: int | None = None,
        port: int | None = None,
    ) -> None:
        if to.ip.is_loopback:
            self.carriers.send(host, data, to)
            return
        source = host.address if to.ip.version == 4 else host.v6
        if source is None or source not in host.endpoints() or not host.online or not host.udp:
            return
        pinned = [pin.local_port for pin in host.pins.values() if pin.remote == to]
        if port or pinned:
            source = replace(source, port=port or pinned[0])
        neighbour = next(
            (o for o in self.hosts.values() if o.lan == host.lan and o.address == to), None
        )
        if host.lan is not None and neighbour is not None and neighbour is not host:
            self.at(self.conditions.lan_delay, lambda: self.arrive(neighbour, data, source))
            return
        outer: Endpoint | None = source
        if host.nat is not None and (to.ip.version == 4 or isinstance(host.nat, Firewall)):
            outer = host.nat.outbound(source, to, self.now)
        if outer is None or (ttl is not None and ttl < CORE_HOPS):
            return
        if host.nat is not None and to.ip == host.nat.ip and not host.nat.hairpin:
            return
        c = self.conditions
        if self.rng.random() < c.loss:
            return
        delay = c.delay + self.rng.random() * c.jitter
        self.at(delay, lambda: self._cross(host, data, outer, to))

    def _cross(self, host: Host, data: bytes, source: Endpoint, to: Endpoint) -> None:
        if to in self.servers and self.servers_up:
            self._stun_answer(data, source, to)
            return
        relay = next((relay for relay in self.carriers.relays if relay.owns(to)), None)
        if relay is not None:
            self.at(relay.delay, lambda: relay.take(data, source, to))
            return
        if to in self.carriers.turn.relayed:
            self.carriers.turn.take(data, source, to)
            return
        self.deliver(host, data, source, to)

    def deliver(self, host: Host | None, data: bytes, source: Endpoint, to: Endpoint) -> None:
        """A packet reaches the network that ``to`` is in; ``host`` None: not from a host."""
        if to in self.carriers.turn.relayed:
            self.carriers.turn.take(data, source, to)
            return
        nat = self.nats.get(to.ip)
        owners = [h for h in self.hosts.values() if to in h.endpoints() or (nat and h.nat is nat)]
        if host is not None and owners and all(self.blocked(host, owner) for owner in owners):
            return
        inner: Endpoint | None = to
        if nat is not None and nat.maps:
            inner = nat.inbound(to.port, source, self.now)
        port = inner.port if inner is not None and inner.port in SOURCE_PORTS else None
        for receiver in self.hosts.values():
            if port is not None and inner is not None:
                inner = replace(inner, port=receiver.address.port)
            if inner not in receiver.endpoints() or (nat is not None and receiver.nat is not nat):
                continue
            if nat is None and receiver.nat is not None and to.ip.version == 4:
                continue
            wall = receiver.nat
            if isinstance(wall, Firewall) and not wall.admits(to, source, self.now):
                continue
            if receiver.udp and (host is None or not self.blocked(host, receiver)):
                self.arrive(receiver, data, source, port)

    def _stun_answer(self, data: bytes, source: Endpoint, server: Endpoint) -> None:
        request = stun.parse_message(data)
        response = stun.Message(stun.Method.BINDING, stun.Class.RESPONSE, request.transaction_id)
        response.attributes["XOR-MAPPED-ADDRESS"] = (str(source.ip), source.port)
        answer = bytes(response)
        if self.rng.random() >= self.conditions.loss:
            self.at(self.conditions.delay, lambda: self.deliver(None, answer, server, source))

    def arrive(self, host: Host, data: bytes, source: Endpoint, port: int | None = None) -> None:
        """``port``: the one it comes to, if that is not WireGuard's."""
        if not host.online:
            return
        if any(pin.remote == source and pin.local_port == port for pin in host.pins.values()):
            port = None
        if data[:2] != b"WG":
            self.step(host, DatagramReceived(data, source, host.address.ip, port))
        elif port is None:
            self._wireguard(host, data, source)

    # --- WireGuard --------------------------------------------------------------------------

    def _wg_send(self, host: Host, peer: str, kind: str, size: int) -> None:
        tunnel = host.tunnels.get(peer)
        if tunnel is None or tunnel.endpoint is None:
            return
        tunnel.tx += size
        self._send(host, f"WG {kind} {host.key} {size}".encode(), tunnel.endpoint)

    def _handshake(self, host: Host, peer: str) -> None:
        tunnel = host.tunnels.get(peer)
        if tunnel is None or tunnel.handshake_at is not None:
            return
        self._wg_send(host, peer, "init", 148)
        self.at(HANDSHAKE_RETRY, lambda: self._handshake(host, peer))

    def _wireguard(self, host: Host, data: bytes, source: Endpoint) -> None:
        _, kind, peer, size = data.decode().split()
        tunnel = host.tunnels.get(peer)
        if tunnel is None:
            return
        old, new = host.guards.get(peer, (None, source))
        if source == old:
            if not passes_on(source, new):
                return
            source = new
        tunnel.rx += int(size)
        tunnel.endpoint = source
        fresh = tunnel.handshake_at is None
        if kind == "init":
            self._wg_send(host, peer, "resp", 92)
        elif kind == "poke":
            self._wg_send(host, peer, "data", 100)
        elif kind == "resp":
            tunnel.handshake_at = self.now
            self._wg_send(host, peer, "data", 32)
        elif fresh:
            tunnel.handshake_at = self.now
        if kind != "init" and fresh:
            self.at(KEEPALIVE, lambda: self._keepalive(host, peer))
        if kind == "flow":
            host.arrivals.append(self.now)
        if kind != "flow" or self.now - tunnel.observed_at > 1.0:
            self._observe_once(host, peer)

    def _keepalive(self, host: Host, peer: str) -> None:
        if host.keepalive:
            self._wg_send(host, peer, "data", 32)
        self.at(KEEPALIVE, lambda: self._keepalive(host, peer))

    def _observe(self, host: Host, peer: str) -> None:
        self._observe_once(host, peer)
        young = self.now - host.added_at[peer] < 30
        self.at(0.5 if young else 5.0, lambda: self._observe(host, peer))

    def _observe_once(self, host: Host, peer: str) -> None:
        tunnel = host.tunnels.get(peer)
        if tunnel is None or not host.online:
            return
        tunnel.observed_at = self.now
        age = None if tunnel.handshake_at is None else self.now - tunnel.handshake_at
        seen = TunnelObserved(peer, age, tunnel.rx, tunnel.tx, tunnel.endpoint)
        self._perform(host, host.paths.step(seen, self.moment(host)))
        self._schedule(host)

    def flow(self, first: Host, second: Host, duration: float, *, every: float = 0.02) -> None:
        """Let both send packets through the tunnel from now on, and note what arrives."""
        end = self.now + duration

        def send() -> None:
            for host, peer in ((first, second), (second, first)):
                self._wg_send(host, peer.key, "flow", 200)
            if self.now + every < end:
                self.at(every, send)

        send()

    def longest_gap(self, host: Host, since: float, until: float) -> float:
        """Return the longest time in which nothing of the flow arrived."""
        times = [since, *(at for at in host.arrivals if since <= at <= until), until]
        return max(after - before for before, after in itertools.pairwise(times))

    # --- questions --------------------------------------------------------------------------

    def link(self, host: Host, peer: Host) -> LinkSnapshot:
        snapshot = host.paths.snapshot(peer.key)
        assert snapshot is not None
        return snapshot

    def state(self, host: Host, peer: Host) -> str:
        return self.look(host, peer).state.value

    def look(self, host: Host, peer: Host) -> Link:
        """Return the link itself: what is asked after each event had better cost no snapshot."""
        return host.paths._links[peer.key]

    def are_direct(self, first: Host, second: Host) -> bool:
        return self._both(first, second, PathKind.DIRECT)

    def are_relayed(self, first: Host, second: Host) -> bool:
        return self._both(first, second, PathKind.RELAYED)

    def _both(self, first: Host, second: Host, kind: PathKind) -> bool:
        return self.look(first, second).path is kind is self.look(second, first).path

    def are_connected(self, first: Host, second: Host) -> bool:
        """Whether both are connected over whatever path."""
        return self.state(first, second) == "connected" == self.state(second, first)

    def data_flows(self, first: Host, second: Host) -> bool:
        """Send data both ways over the endpoints in use, and see it arrive."""
        before = (first.tunnels[second.key].rx, second.tunnels[first.key].rx)
        for _ in range(20):
            self._wg_send(first, second.key, "data", 1000)
            self._wg_send(second, first.key, "data", 1000)
            self.run(0.1)
        self.run(2.0)
        after = (first.tunnels[second.key].rx, second.tunnels[first.key].rx)
        return after[0] >= before[0] + 1000 and after[1] >= before[1] + 1000


def two_hosts(
    kinds: tuple[str, str], seed: int, conditions: Conditions | None = None
) -> tuple[Simulation, Host, Host]:
    """Make an internet with two hosts behind these kinds of NAT, which do not run yet."""
    sim = Simulation(seed, conditions)
    rng = random.Random(seed)
    first = sim.host("first", kinds[0], skew=rng.uniform(0, 5000))
    second = sim.host("second", kinds[1], skew=rng.uniform(0, 5000))
    return sim, first, second
