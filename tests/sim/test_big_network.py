"""Big meshes in virtual time: conversations under loss, restarts of routers and relays, roaming.

``python -m tests.sim.big_network --seeds 300 --nodes 50`` lives through many more such days.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import pytest

from nostrvpn.endpoint import parse_endpoint
from nostrvpn.machine import Entropy, Moment, Tick
from nostrvpn.paths.agent import Paths
from nostrvpn.paths.candidates import LocalAddress
from nostrvpn.paths.events import AddPeer, LocalAddresses, SendDatagram, Wake
from nostrvpn.paths.settings import PathSettings
from tests.sim.big_day import Day, DaySettings
from tests.sim.big_nats import DEPENDENT
from tests.sim.big_network import BigNetwork
from tests.sim.big_talk import Talk
from tests.sim.network import Conditions

SERVERS = (parse_endpoint("12.0.0.1:3478"), parse_endpoint("12.0.0.2:3478"))
HOME = (LocalAddress(parse_endpoint("192.168.1.5:1").ip, "eth0", 24),)


def moment(now: float) -> Moment:
    return Moment(now, 1.7e9 + now, Entropy(str(now).encode()))


@pytest.mark.parametrize("seed", range(2))
def test_conversations_of_a_day_find_and_keep_their_paths(seed):
    """All networks mixed; a day has few conversations here, or it would take minutes."""
    day = Day(seed, DaySettings.drawn(seed, nodes=12, hours=12.0, talks=16))
    day.live()
    assert len(day.talks) > 2
    assert day.violations() == []


def test_a_hundred_nodes_that_start_at_once_say_little():
    """Everybody starts within 5 s, as after a blackout, and a few have something to say."""
    day = Day(7, DaySettings(nodes=100, hours=0.05, talks=0, relays=3, loss=0.02))
    sim = day.sim
    for first, second in zip(day.hosts[:24:2], day.hosts[1:24:2], strict=True):
        sim.at(day.rng.uniform(0.5, 5.0), partial(day.talk, first, second))
    day.live()
    assert len(day.talks) == 12
    assert all(talk.connected is not None for talk in day.talks)
    assert max(len(ledger.said_at) for ledger in sim.ledgers.values()) <= 20
    assert day.violations() == []


def test_a_relay_that_dies_is_replaced_within_three_seconds():
    """Of nodes that need relays; data is sent each 0.5 s, so a gap shows with that much more."""
    settings = DaySettings(nodes=40, hours=0.05, talks=0, relays=3, loss=0.01, always=3)
    calm = replace(settings, rebinds=0.0, roams=0.0, naps=0.0, outages=0.0)
    day = Day(4, calm)
    hard = [host for host in day.hosts if day.sim.kinds[host.name] in (*DEPENDENT, "no-udp")]
    for first, second in zip(hard[::2], hard[1::2], strict=False):
        day.sim.at(10.0, partial(day.talk, first, second))
    day.sim.at(25.0, partial(day.kill, day.sim.carriers.relays[0]))
    day.live()
    took = [took for talk in day.talks for _, took in talk.replaced]
    assert len(took) > 2
    assert max(took) < 3.5
    assert day.violations() == []


def test_a_pair_that_has_a_way_again_is_judged_again():
    """There was none for a while: only that while is forgiven."""
    day = Day(4, DaySettings(nodes=4, hours=0.01, talks=0, relays=0, loss=0.0))
    first, second = day.hosts[:2]
    talk = Talk(1, first, second, 1000.0, 1500.0, [(1000.0, "open")], connected=0.5, ended=1500.0)
    talk.ways += [(1100.0, "none"), (1200.0, "open")]
    day.talks, day.begin, day.settled = [talk], 1000.0, 1000.0
    day.datagrams = {host.name: 0 for host in day.hosts}
    talk.gaps = [(1100.0, 105.0, "")]
    assert day.violations() == []
    talk.gaps = [(1100.0, 250.0, "")]
    assert len(day.violations()) == 1


def test_a_mesh_of_sleeping_links_costs_nothing():
    """Not one datagram, not one wake-up; and the first packet is not kept waiting for it."""
    sim = BigNetwork(3, Conditions())
    hosts = [sim.node("port-restricted") for _ in range(12)]
    for host in hosts:
        sim.boot(host)
    sim.run(5.0)
    for host, peer in itertools.permutations(hosts, 2):
        sim.add(host, peer)
    sim.run(30.0)
    before = [(host.counts["SendDatagram"], host.wakeups) for host in hosts]
    sim.run(24 * 3600.0)
    assert [(host.counts["SendDatagram"], host.wakeups) for host in hosts] == before
    first, second = hosts[0], hosts[1]
    began = sim.now
    sim.step(first, Wake(second.key))
    assert sim.run(5.0, until=lambda: sim.is_up(first, second) and sim.is_up(second, first))
    assert sim.now - began < 0.6


def test_our_address_is_asked_for_again_while_a_link_is_awake():
    paths = Paths(stun_servers=SERVERS, settings=PathSettings(sleep_after=900.0))
    paths.step(LocalAddresses(HOME, 50000), moment(1.0))
    now = 1.0
    asked: list[SendDatagram] = []

    def run(until: float) -> None:
        nonlocal now
        while paths.deadline is not None and paths.deadline <= until:
            now = max(now, paths.deadline)
            effects = paths.step(Tick(), moment(now))
            asked.extend(effect for effect in effects if isinstance(effect, SendDatagram))
        now = until

    run(100.0)
    asked.clear()
    paths.step(AddPeer("aa" * 32, True, asleep=True), moment(now))
    run(1000.0)
    assert asked == []
    paths.step(Wake("aa" * 32), moment(now))
    run(1100.0)
    assert {e.destination for e in asked} & set(SERVERS)
