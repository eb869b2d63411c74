"""What WireGuard is told after a change of network, and what its clock is worth."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest

from nostrvpn.endpoint import parse_endpoint
from nostrvpn.machine import Entropy, Moment
from nostrvpn.node.events import Poke, Reconcile
from nostrvpn.node.peers import Peer
from nostrvpn.node.tunnel import Tunnel
from nostrvpn.paths.description import Description
from nostrvpn.paths.events import UseEndpoint
from nostrvpn.wireguard.device import ObservedDevice, ObservedPeer

PEER, KEY = "ab" * 32, "wireguard key"
WALL = 1_800_000_000.0
HOME = parse_endpoint("192.0.2.1:51820")


class Bench:
    """One peer with a tunnel; ``now`` and the wall clock are moved by the test."""

    def __init__(self) -> None:
        self.peer = Peer(PEER, KEY)
        self.tunnel = Tunnel({PEER: self.peer}, lambda _: [Poke(IPv6Address("fd00::1"))])
        self.now, self.wall, self.rx = 1000.0, WALL, 500

    def moment(self) -> Moment:
        return Moment(self.now, self.wall, Entropy(bytes(32)))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds

    def use(self) -> None:
        self.tunnel.use_endpoint(UseEndpoint(PEER, HOME, 1), "00" * 32, self.moment())

    def age(self, handshake_wall: float | None) -> float | None:
        found = ObservedPeer(KEY, frozenset(), 25, HOME, handshake_wall, self.rx, 500)
        device = ObservedDevice(None, 51820, 0, (found,))
        [news], _ = self.tunnel.seen(device, self.moment())
        return news.last_handshake_age

    def is_due(self) -> bool:
        return self.tunnel.deadline is not None

    def is_held(self) -> bool:
        return self.peer.held_until is not None

    def pokes(self, seconds: float) -> list[float]:
        """Let time pass in small steps, counters unchanged; return when pokes were sent."""
        began, sent = self.now, []
        while self.now < began + seconds:
            self.wait(0.01)
            due = self.tunnel.deadline
            if due is not None and due <= self.now:
                effects = self.tunnel.tick(self.moment())
                sent += [
                    round(self.now - began, 2) for effect in effects if isinstance(effect, Poke)
                ]
                self.age(WALL)
        return sent


@pytest.mark.parametrize("jump", [-86_400.0, -30.0, 30.0, 86_400.0])
def test_a_jump_of_the_wall_clock_makes_no_handshake_older_or_younger(jump: float):
    bench = Bench()
    assert bench.age(WALL - 50) == 50
    bench.wall += jump
    bench.wait(10)
    assert bench.age(WALL - 50) == 60
    assert bench.tunnel.handshake_age(bench.peer, bench.moment()) == 60


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_handshake_around_a_jump_is_as_young_as_the_last_look(jump: float):
    bench = Bench()
    bench.age(None)
    bench.wait(4)
    handshake = bench.wall
    bench.wall += jump
    bench.wait(4)
    age = bench.age(handshake)
    assert age is not None
    assert 0 <= age <= 8


def test_a_handshake_of_the_future_at_the_first_look_proves_nothing():
    bench = Bench()
    assert bench.age(WALL + 3600) is None
    bench.wait(5)
    assert bench.age(bench.wall - 1) == 1


def test_after_a_move_the_endpoint_is_written_again_and_spoken_over_until_an_answer_comes():
    bench = Bench()
    bench.use()
    bench.tunnel.proven(PEER)
    generation = bench.peer.endpoint_generation
    bench.age(WALL)
    assert bench.tunnel.renew(bench.moment()) == [Reconcile()]
    assert bench.peer.endpoint_generation == generation + 1
    assert bench.pokes(1.0) == pytest.approx([0.05, 0.3, 0.55, 0.8], abs=0.05)
    bench.rx += 100
    bench.age(WALL)
    assert bench.pokes(5.0) == []


def test_old_counters_are_no_answer():
    bench = Bench()
    bench.use()
    bench.age(WALL)
    bench.pokes(40)  # the counters were read long ago, and moved since
    bench.rx += 10_000
    bench.tunnel.renew(bench.moment())
    assert len(bench.pokes(1.0)) == 4


def test_an_endpoint_is_spoken_over_once_though_the_path_counts_as_proven():
    bench = Bench()
    bench.use()
    bench.tunnel.proven(PEER)
    assert bench.pokes(5.0) == [0.05]


def test_what_is_not_in_use_is_not_renewed():
    bench = Bench()
    assert bench.tunnel.renew(bench.moment()) == []
    assert bench.pokes(5.0) == []


def test_the_counters_rest_while_all_sleep_and_the_last_day_of_use_is_kept():
    bench = Bench()
    bell = parse_endpoint("127.78.0.1:9")
    bench.tunnel.doorbell = lambda _: bell
    bench.use()
    bench.age(WALL)
    assert bench.peer.used_day == WALL // 86_400
    assert bench.is_due()
    bench.tunnel.use_endpoint(UseEndpoint(PEER, None, 2), "00" * 32, bench.moment())
    assert not bench.is_due()
    assert (bench.peer.endpoint, bench.peer.doorbell) == (None, bell)
    bench.wait(86_400)
    bench.age(WALL)
    assert bench.peer.used_day == WALL // 86_400
    bench.use()
    assert bench.peer.doorbell is None
    assert bench.is_due()


def test_who_does_not_start_the_handshake_keeps_the_doorbell_until_it_came():
    bench = Bench()
    bell = parse_endpoint("127.78.0.1:9")
    bench.tunnel.doorbell = lambda _: bell
    bench.tunnel.use_endpoint(UseEndpoint(PEER, None, 1), "00" * 32, bench.moment())
    bench.peer.told = bench.peer.heard = Description("ab" * 8, 1, None, "u" * 8, "p" * 24, ())
    me = "ff" * 32  # of two offers the lower key starts
    bench.tunnel.use_endpoint(UseEndpoint(PEER, HOME, 2), me, bench.moment())
    assert bench.is_held()
    assert bench.peer.doorbell == bell
    bench.wait(0.1)
    bench.age(bench.wall)
    assert not bench.is_held()
    assert bench.peer.doorbell is None
