"""Large meshes in virtual time: who connects at a start, who wakes whom, and what sleep costs."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from functools import cache
from hashlib import sha256
from ipaddress import IPv4Address

import pytest

from nostrvpn.endpoint import Endpoint, parse_endpoint
from nostrvpn.machine import Entropy, Moment, Tick
from nostrvpn.node.events import TunnelSeen
from nostrvpn.node.node import Node, NodeSettings
from nostrvpn.node.peers import Peer
from nostrvpn.node.relaying import RelayRole
from nostrvpn.node.waking import AWAKE_PEERS
from nostrvpn.nostr.event import event_json, public_key
from nostrvpn.paths.agent import Paths
from nostrvpn.paths.candidates import LocalAddress
from nostrvpn.paths.events import AddPeer, LocalAddresses, NetworkChanged, StunServers, Wake
from nostrvpn.paths.settings import PathSettings
from nostrvpn.signaling import courier
from nostrvpn.signaling.board import PRESENCE_EXPIRES_S
from nostrvpn.signaling.network_key import make_key
from nostrvpn.wireguard.device import ObservedDevice, ObservedPeer
from tests.networks import admit, network_of
from tests.sim.nodes import WALL, Host, Relay, World

SLEEP_AFTER = 900.0
TODAY = int(WALL // 86_400)
SEALED = (1059, 21_059)
START_S = 6.0
ECHO_BYTES = 128
"""Of WireGuard, for a packet of 84."""


class Mesh(World):
    """``size`` members of one network, none of which runs yet; idle paths are let go.

    ``said`` counts the sealed messages that each published, ``presence`` those for everybody;
    ``echoed`` is what programs sent through each tunnel, both ways, in bytes.
    """

    def __init__(self, seed: int, size: int) -> None:
        super().__init__(seed)
        self.said: Counter[str] = Counter()
        self.presence: Counter[str] = Counter()
        self.roles: dict[str, RelayRole] = {}
        self._looks = False
        self.echoed = 0
        self.relay()
        self.all = [self.host(f"n{i}") for i in range(size)]
        self.by_key = {host.secret.public_key: host for host in self.all}
        owner = self.all[0].secret
        roster = network_of(owner, "n0", wall=WALL - 9)
        for host in self.all[1:]:
            key = host.secret.public_key
            roster = admit(roster, owner, key, host.name, wall=WALL)
        network_key = make_key(roster.key_id, WALL, Entropy(b"key"))
        log: dict[str, object] = {event.id: event_json(event) for event in roster.log}
        for host in self.all:
            host.records["network"] = dict(log)
            host.records["keys"] = {"ring": [network_key.to_json()]}

    def have_used(self, one: Host, other: Host, day: int) -> None:
        """Both had a path to each other on that day, in an earlier run."""
        for host, peer in ((one, other), (other, one)):
            record = Peer(peer.secret.public_key, used_day=day).to_json()
            host.records.setdefault("peer", {})[peer.secret.public_key] = record

    def make(self, host: Host, settings: NodeSettings) -> Node:
        paths = PathSettings(sleep_after=SLEEP_AFTER)
        settings = replace(settings, paths=paths, relay=self.roles.get(host.name))
        node = Node(settings, host.records, "kernel")
        keys = [other.secret.public_key for other in self.all]
        first = int(IPv4Address("127.78.0.1"))
        node.tunnel.doorbell = lambda key: Endpoint(IPv4Address(first + keys.index(key)), 9)
        return node

    def start_all(self) -> None:
        for host in self.all:
            self.start(host)
        self.run(START_S)

    def wake(self, host: Host, peer: Host) -> None:
        self.step(host, Wake(peer.secret.public_key))

    def state(self, host: Host, peer: Host) -> str:
        link = host.node.paths.snapshot(peer.secret.public_key)
        return str(link.state)

    def states(self, host: Host) -> Counter[str]:
        return Counter(self.state(host, peer) for peer in self.all if peer is not host)

    # WireGuard as in World, but without asking all for all at each change.

    def _watch_tunnels(self) -> None:
        if not self._looks:
            self._looks = True
            self.at(0.005, self._look)

    def _look(self) -> None:
        self._looks = False
        for host in self.all:
            for peer in host.node.peers.values() if host.node is not None else ():
                other = self.by_key[peer.public_key]
                if peer.endpoint != other.address or peer.held_until or other.node is None:
                    continue
                key = other.wireguard_key
                if peer.wireguard_key != key or key in host.handshakes:
                    continue
                wall = WALL + self.now + 2 * self.delay
                host.handshakes[key] = other.handshakes[host.wireguard_key] = wall
                host.endpoints[key] = other.address
                other.endpoints[host.wireguard_key] = host.address

    def _observe(self, host: Host) -> TunnelSeen:
        found = tuple(
            ObservedPeer(
                key,
                endpoint=host.endpoints.get(key),
                last_handshake_wall=self._handshake_wall(host, key),
                rx_bytes=self._received(host, key) + self.echoed,
                tx_bytes=self._received(host, key) + self.echoed,
            )
            for key in host.handshakes
        )
        return TunnelSeen(ObservedDevice(None, host.address.port, 0, found))

    def _to_relay(self, host: Host, relay: Relay, text: str) -> None:
        frame = json.loads(text)
        if frame[0] == "EVENT" and frame[1]["kind"] in SEALED:
            stands = dict(frame[1]["tags"]).get("expiration")
            left = int(stands) - frame[1]["created_at"] if stands is not None else None
            # Presence is one message for all, however many there are; the rest is counted.
            counter = self.presence if left == PRESENCE_EXPIRES_S else self.said
            counter[host.name] += 1
        super()._to_relay(host, relay, text)


def test_a_hundred_nodes_that_start_at_once_make_no_storm(monkeypatch: pytest.MonkeyPatch):
    # The pairs' keys are as many as the mailboxes: 10,000 multiplications of points, 2 ms each.
    own = cache(public_key)

    def shared(secret: bytes, peer: str) -> bytes:
        return sha256("".join(sorted((own(secret), peer))).encode()).digest()

    monkeypatch.setattr(courier, "conversation_key", shared)
    mesh = Mesh(1, 100)
    inviter, *others = mesh.all
    for host in others:
        mesh.have_used(inviter, host, TODAY)
    mesh.start_all()
    assert all(mesh.is_connected(inviter, host) for host in others)
    assert max(mesh.said[host.name] for host in others) <= 4
    assert mesh.said[inviter.name] <= 2 * len(others) + 4
    assert mesh.states(others[0]) == {"asleep": 98, "connected": 1}


def test_small_meshes_connect_at_once_and_large_ones_as_they_were_used():
    for size, awake in ((AWAKE_PEERS + 1, AWAKE_PEERS), (AWAKE_PEERS + 2, 2)):
        mesh = Mesh(2, size)
        first, yesterday, today, long_ago = mesh.all[:4]
        mesh.have_used(first, yesterday, TODAY - 1)
        mesh.have_used(first, today, TODAY)
        mesh.have_used(first, long_ago, TODAY - 2)
        mesh.start_all()
        assert mesh.states(first)["connected"] == awake


def test_peers_that_never_met_wake_each_other_and_nobody_else():
    mesh = Mesh(3, 12)
    mesh.start_all()
    assert sum(mesh.said.values()) <= 2 * len(mesh.all)  # what relays are tested with
    before = mesh.said.copy()
    one, other = mesh.all[3:5]
    device = one.node.desired(mesh.now).device
    assert len(device.peers) == 11
    assert {peer.persistent_keepalive for peer in device.peers} == {0}
    assert all(peer.endpoint in IPv4_BELLS for peer in device.peers)
    # Both at once: two offers, two answers.
    mesh.wake(one, other)
    mesh.wake(other, one)
    assert mesh.run(2, lambda: mesh.is_connected(one, other))
    mesh.run(60)
    more = mesh.said - before
    assert set(more) == {one.name, other.name}
    assert max(more.values()) <= 3
    keys = {peer.public_key for peer in one.node.desired(mesh.now).device.peers}
    assert other.wireguard_key in keys
    # It stays known as in use, and so the next start connects the two.
    for host in (one, other):
        mesh.stop(host)
        mesh.start(host)
    assert mesh.run(5, lambda: mesh.is_connected(one, other))
    assert mesh.states(one)["asleep"] == 10


class _Bells:
    def __contains__(self, endpoint: object) -> bool:
        return isinstance(endpoint, Endpoint) and str(endpoint.ip).startswith("127.78.")


IPv4_BELLS = _Bells()


def test_a_peer_that_comes_and_goes_costs_only_those_who_use_it():
    mesh = Mesh(4, 12)
    mesh.start_all()
    user, flapping = mesh.all[1:3]
    mesh.wake(user, flapping)
    assert mesh.run(5, lambda: mesh.is_connected(user, flapping))
    before = mesh.said.copy()
    for _ in range(10):
        mesh.stop(flapping)
        mesh.run(3)
        mesh.start(flapping)
        assert mesh.run(10, lambda: mesh.is_connected(user, flapping))
    more = mesh.said - before
    assert set(more) <= {user.name, flapping.name}
    assert max(more.values()) <= 10 * 4
    for host in mesh.all:
        if host is not user and host is not flapping:
            assert mesh.state(host, flapping) == "asleep"


def test_who_falls_asleep_awaits_no_answer_any_more():
    mesh = Mesh(5, 12)
    mesh.start_all()
    host, idle = mesh.all[1:3]
    link = host.node.paths._links[idle.secret.public_key]
    mesh.wake(host, idle)
    assert mesh.run(10, lambda: mesh.is_connected(host, idle))
    mesh.stop(idle)
    assert mesh.run(SLEEP_AFTER, lambda: bool(link.checks._open._sent))
    assert mesh.run(2 * SLEEP_AFTER, lambda: mesh.state(host, idle) == "asleep")
    assert not link.checks._open._sent


def test_after_an_echo_wireguard_has_said_all_before_the_tunnel_sleeps():
    mesh = Mesh(7, 12)
    mesh.start_all()
    host, peer = mesh.all[1:3]
    mesh.wake(host, peer)
    assert mesh.run(10, lambda: mesh.is_connected(host, peer))
    mesh.run(SLEEP_AFTER - 30)
    # Of these few no use is seen; but each starts what WireGuard does for 15 s (section 6).
    for _ in range(4):
        assert mesh.state(host, peer) == "connected"
        mesh.echoed += ECHO_BYTES
        mesh.run(12)
    assert mesh.state(host, peer) == "connected"
    assert mesh.run(30, lambda: mesh.state(host, peer) == "asleep")


def test_who_is_woken_in_vain_goes_to_sleep_again():
    mesh = Mesh(5, 12)
    mesh.start_all()
    host, gone = mesh.all[1:3]
    mesh.stop(gone)
    mesh.wake(host, gone)
    mesh.run(SLEEP_AFTER - 10)
    assert mesh.state(host, gone) != "asleep"
    mesh.run(400)
    assert mesh.state(host, gone) == "asleep"
    before = mesh.said.copy()
    mesh.run(3600)
    assert mesh.said == before
    # One at the start, and in 80 minutes two more in the mean, at random.
    assert mesh.presence.total() <= 4.5 * len(mesh.all)
    assert mesh.status(host)["problems"] == []
    mesh.start(gone)
    mesh.run(5)
    mesh.wake(host, gone)
    assert mesh.run(5, lambda: mesh.is_connected(host, gone))


def test_relays_introduce_themselves_to_all():
    mesh = Mesh(6, 12)
    relay = mesh.all[4]
    mesh.roles[relay.name] = RelayRole(b"r" * 32, relay.address.port)
    mesh.start_all()
    for host in mesh.all:
        if host is not relay:
            assert host.node.peers[relay.secret.public_key].relay_offer is not None
            assert mesh.said[host.name] <= 4


def test_a_thousand_sleeping_peers_wake_nobody_up():
    paths = Paths(settings=PathSettings(sleep_after=SLEEP_AFTER))
    now = 1000.0

    def moment() -> Moment:
        return Moment(now, WALL + now, Entropy(f"{now}".encode()))

    paths.step(StunServers((parse_endpoint("192.0.2.1:3478"),)), moment())
    for number in range(1000):
        paths.step(AddPeer(f"{number:064x}", controlling=True, asleep=True), moment())
    home = LocalAddress(IPv4Address("192.0.2.9"), "eth0", 24)
    paths.step(LocalAddresses((home,), 40_000), moment())
    while paths.deadline is not None:
        assert paths.deadline < 1060.0  # the servers are silent; then nothing is due any more
        now = max(now, paths.deadline)
        paths.step(Tick(), moment())
    now += 3600.0
    began = time.process_time()
    sent = paths.step(NetworkChanged(), moment())
    assert time.process_time() - began < 0.5
    assert len(sent) <= 3
