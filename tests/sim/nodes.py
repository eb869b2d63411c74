"""Whole nodes in virtual time: real ``Node`` machines, relays and WireGuard as small models.

The internet between them is plain (public addresses, one delay): NATs are the business of
``tests/sim/network.py``. What is modelled here is everything around paths: relays that store, pass
on, lose and die; disks that remember; clocks that differ; nodes that come and go.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

from nostrvpn.endpoint import Endpoint
from nostrvpn.identity.keys import RootSecret
from nostrvpn.machine import Entropy, Moment, Tick
from nostrvpn.node.desired import TunnelSettings
from nostrvpn.node.events import (
    Command,
    HeardThrough,
    HostChanged,
    Log,
    NodeEffect,
    NodeEvent,
    ObserveTunnel,
    Persist,
    Poke,
    Reconcile,
    Refuse,
    Reply,
    SendThrough,
    ThroughFailed,
    TunnelSeen,
)
from nostrvpn.node.node import Node, NodeSettings
from nostrvpn.node.relaying import RelayRole
from nostrvpn.paths.candidates import LocalAddress
from nostrvpn.paths.events import DatagramReceived, SendDatagram
from nostrvpn.paths.settings import PathSettings
from nostrvpn.signaling.relays import (
    CloseRelay,
    OpenRelay,
    RelayClosed,
    RelayOpened,
    RelayText,
    SendText,
)
from nostrvpn.wireguard.device import ObservedDevice, ObservedPeer, SecretKey

WALL = 1_800_000_000.0
LISTEN_PORT = 40_000


@dataclass
class Relay:
    """A Nostr relay: keeps stored kinds, passes everything on to who subscribed."""

    url: str
    up: bool = True
    lost: float = 0.0
    stored: list[dict[str, object]] = field(default_factory=list)
    subscriptions: dict[tuple[str, str], list[dict[str, object]]] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)


@dataclass
class Host:
    """One machine: its disk (``records``) survives its node."""

    name: str
    secret: RootSecret
    address: Endpoint
    relays: tuple[str, ...]
    skew: float = 0.0
    wireguard_key: str = ""
    records: dict[str, dict[str, object]] = field(default_factory=dict)
    node: Any = None  # a Node while it runs
    run: int = 0
    answers: dict[int, NodeEffect] = field(default_factory=dict)
    handshakes: dict[str, float] = field(default_factory=dict)
    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    poked: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    logs: list[str] = field(default_factory=list)


class World:
    """The event heap. Everything happens at ``now`` plus a delay, decided by one seed."""

    def __init__(self, seed: int = 1, *, delay: float = 0.02) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.now = 100.0
        self.delay = delay
        self.relays: dict[str, Relay] = {}
        self.hosts: dict[str, Host] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._calls = itertools.count(1)

    # -- building ---------------------------------------------------------------------------

    def relay(self, name: str = "wss://relay", **settings: Any) -> Relay:
        relay = self.relays[name] = Relay(name, **settings)
        return relay

    def host(self, name: str, *, skew: float = 0.0) -> Host:
        number = len(self.hosts) + 1
        host = Host(
            name,
            RootSecret((number + 1000 * self.seed).to_bytes(32, "big")),
            Endpoint(IPv4Address((11 << 24) + (number << 8) + 2), LISTEN_PORT),
            tuple(self.relays),
            skew,
        )
        self.hosts[name] = host
        return host

    def start(self, host: Host, relay: RelayRole | None = None) -> None:
        key = SecretKey(host.secret.wireguard_private_key())
        host.wireguard_key = key.public_key
        tunnel = TunnelSettings(
            "nvpn0", "nostrvpn", 1280, key, key.public_key, host.address.port, 25
        )
        settings = NodeSettings(
            host.secret, host.name, tunnel, host.relays, 4, (), PathSettings(), relay
        )
        host.node = self.make(host, settings)
        host.run += 1
        self._perform(host, host.node.start(self.moment(host)))
        address = LocalAddress(host.address.ip, "eth0", 24)
        self.step(host, HostChanged((address,)))

    def make(self, host: Host, settings: NodeSettings) -> Node:
        return Node(settings, host.records, "kernel")

    def stop(self, host: Host) -> None:
        """The node is gone in this instant, as by SIGKILL; its tunnel stays."""
        host.node = None
        for relay in self.relays.values():
            for key in [key for key in relay.subscriptions if key[0] == host.name]:
                del relay.subscriptions[key]

    # -- running ----------------------------------------------------------------------------

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
        return until is None

    def moment(self, host: Host) -> Moment:
        seed = f"{self.seed}/{next(self._order)}".encode()
        return Moment(self.now, WALL + self.now + host.skew, Entropy(seed))

    def step(self, host: Host, event: NodeEvent) -> None:
        if host.node is None:
            return
        self._perform(host, host.node.step(event, self.moment(host)))
        self._arm(host)

    def call(self, host: Host, command: str, **args: object) -> Any:
        """Run a command and the world until it is answered; AssertionError if it is refused."""
        answer = self.ask(host, command, **args)
        assert isinstance(answer, Reply), answer
        assert isinstance(answer.value, dict)
        return json.loads(json.dumps(answer.value))

    def ask(self, host: Host, command: str, **args: object) -> NodeEffect:
        number = next(self._calls)
        self.step(host, Command(number, command, args))
        self.run(10, lambda: number in host.answers)
        return host.answers[number]

    def status(self, host: Host) -> Any:
        return self.call(host, "status")

    def is_connected(self, one: Host, other: Host) -> bool:
        return self._sees(one, other) and self._sees(other, one)

    def _sees(self, one: Host, other: Host) -> bool:
        link = one.node.paths.snapshot(other.secret.public_key) if one.node else None
        return link is not None and link.path == "direct"

    def _arm(self, host: Host) -> None:
        node, run = host.node, host.run
        deadline = None if node is None else node.deadline
        if deadline is None:
            return

        def wake() -> None:
            if host.node is not node or host.run != run:
                return
            late = node.deadline
            if late is not None and late <= self.now + 1e-9:
                self.step(host, Tick())

        self.at(max(deadline, self.now) - self.now, wake)

    # -- effects ----------------------------------------------------------------------------

    def _perform(self, host: Host, effects: list[NodeEffect]) -> None:
        for effect in effects:
            host.sent[type(effect).__name__] += 1
            match effect:
                case Persist(space, key, value):
                    records = host.records.setdefault(space, {})
                    if value is None:
                        records.pop(key, None)
                    else:
                        records[key] = json.loads(json.dumps(value))
                case OpenRelay(url):
                    self._open(host, url)
                case CloseRelay(url):
                    self._later(host, RelayClosed(url, "closed"))
                case SendText(url, text):
                    self._to_relay(host, self.relays[url], text)
                case SendDatagram():
                    self._datagram(host, effect)
                case Reply(call) | Refuse(call):
                    host.answers[call] = effect
                case Poke(address):
                    self._poke(host, str(address))
                case SendThrough():
                    self._through(host, effect)
                case Reconcile():
                    self._watch_tunnels()
                case ObserveTunnel():
                    self._later(host, self._observe(host), 0.001)
                case Log(level, text):
                    host.logs.append(f"{level}: {text}")
                case _:
                    pass

    def _later(self, host: Host, event: NodeEvent, delay: float | None = None) -> None:
        run = host.run

        def deliver() -> None:
            if host.run == run:
                self.step(host, event)

        self.at(self.delay if delay is None else delay, deliver)

    def _datagram(self, host: Host, effect: SendDatagram) -> None:
        receiver = next((h for h in self.hosts.values() if h.address == effect.destination), None)
        if receiver is not None and (effect.ttl is None or effect.ttl > 8):
            event = DatagramReceived(effect.data, host.address, receiver.address.ip)
            self.at(self.delay, lambda: self.step(receiver, event))

    # -- WireGuard: a handshake takes one round trip once one side knows the other's endpoint --

    def _observe(self, host: Host) -> TunnelSeen:
        assert host.node is not None
        peers = tuple(
            ObservedPeer(
                peer.public_key,
                peer.allowed_ips,
                peer.persistent_keepalive,
                host.endpoints.get(peer.public_key),
                self._handshake_wall(host, peer.public_key),
                self._received(host, peer.public_key),
                self._received(host, peer.public_key),
            )
            for peer in host.node.desired(self.now).device.peers
        )
        return TunnelSeen(ObservedDevice(None, host.address.port, 0, peers))

    def _poke(self, host: Host, address: str) -> None:
        """An echo goes through a tunnel that has a handshake, and comes back."""
        assert host.node is not None
        assert host.node.membership.roster is not None
        roster = host.node.membership.roster
        for other in self.hosts.values():
            key = other.secret.public_key
            if key not in roster.members or str(roster.address(key).ipv6) != address:
                continue
            if other.wireguard_key in host.handshakes and other.node is not None:
                host.poked[other.wireguard_key] += 100
                other.poked[host.wireguard_key] += 100

    def _through(self, host: Host, effect: SendThrough) -> None:
        """A message gets through a tunnel that has a handshake, and fails after a while without."""
        assert host.node is not None
        assert host.node.membership.roster is not None
        roster, me = host.node.membership.roster, host.secret.public_key
        for other in self.hosts.values():
            key = other.secret.public_key
            if key not in roster.members or roster.address(key).ipv6 != effect.address:
                continue
            if other.wireguard_key in host.handshakes and other.node is not None:
                heard = HeardThrough(roster.address(me).ipv6, effect.text)
                return self._later(other, heard, 3 * self.delay)
        return self._later(host, ThroughFailed(effect.token), 8.0)

    def _handshake_wall(self, host: Host, key: str) -> float | None:
        wall = host.handshakes.get(key)
        return None if wall is None or wall > WALL + self.now else wall

    def _received(self, host: Host, key: str) -> int:
        """A handshake's bytes, a keepalive's right after it, and one every 25 s."""
        if key not in host.handshakes:
            return 0
        age = WALL + self.now - host.handshakes[key]
        return (
            0 if age < 0 else host.poked[key] + 92 + 32 * (int(age / 25) + (age > 2 * self.delay))
        )

    def _watch_tunnels(self) -> None:
        running = {h.wireguard_key: h for h in self.hosts.values() if h.node is not None}
        told = {
            key: {peer.public_key: peer for peer in host.node.desired(self.now).device.peers}
            for key, host in running.items()
        }
        for own, host in running.items():
            for key, peer in told[own].items():
                other = running.get(key)
                if peer.endpoint is None or other is None or own not in told[key]:
                    continue
                if peer.endpoint == other.address and key not in host.handshakes:
                    wall = WALL + self.now + 2 * self.delay
                    host.handshakes[key] = wall
                    other.handshakes[own] = wall
                    host.endpoints[key] = other.address
                    other.endpoints[own] = host.address

    # -- relays -----------------------------------------------------------------------------

    def _open(self, host: Host, url: str) -> None:
        relay = self.relays.get(url)
        if relay is None or not relay.up:
            self._later(host, RelayClosed(url, "connection refused"))
        else:
            self._later(host, RelayOpened(url))

    def kill(self, relay: Relay) -> None:
        """The relay dies; who was connected notices."""
        relay.up = False
        relay.subscriptions.clear()
        relay.stored.clear()
        for host in self.hosts.values():
            if host.node is not None:
                self._later(host, RelayClosed(relay.url, "connection reset"))

    def _to_relay(self, host: Host, relay: Relay, text: str) -> None:
        if self.rng.random() >= relay.lost or not text.startswith('["EVENT"'):
            self.at(self.delay, lambda: self._relay_gets(host, relay, text))

    def _relay_gets(self, host: Host, relay: Relay, text: str) -> None:
        if not relay.up:
            return
        relay.seen.append(text)
        frame = json.loads(text)
        if frame[0] == "REQ":
            relay.subscriptions[(host.name, frame[1])] = frame[2:]
            for event in reversed(relay.stored):
                if any(_matches(event, wanted) for wanted in frame[2:]):
                    self._relay_sends(host, relay, ["EVENT", frame[1], event])
            self._relay_sends(host, relay, ["EOSE", frame[1]])
        elif frame[0] == "CLOSE":
            relay.subscriptions.pop((host.name, frame[1]), None)
        elif frame[0] == "EVENT":
            self._relay_takes(host, relay, frame[1])

    def _relay_takes(self, host: Host, relay: Relay, event: dict[str, object]) -> None:
        self._relay_sends(host, relay, ["OK", event["id"], True, ""])
        if event["kind"] == 1059:
            relay.stored.append(event)
        for (name, subscription), filters in list(relay.subscriptions.items()):
            wanted = any(_matches(event, one) for one in filters)
            if wanted and self.rng.random() >= relay.lost:
                self._relay_sends(self.hosts[name], relay, ["EVENT", subscription, event])

    def _relay_sends(self, host: Host, relay: Relay, frame: list[object]) -> None:
        self._later(host, RelayText(relay.url, json.dumps(frame)))


def _matches(event: dict[str, object], wanted: dict[str, object]) -> bool:
    kinds, mailboxes = wanted.get("kinds"), wanted.get("#p")
    tags = event["tags"]
    assert isinstance(tags, list)
    return (not isinstance(kinds, list) or event["kind"] in kinds) and (
        not isinstance(mailboxes, list)
        or any(tag[0] == "p" and tag[1] in mailboxes for tag in tags)
    )
