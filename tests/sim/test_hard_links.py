"""Whole path engines behind hard NATs: relayed or nothing at first, then direct over a port found."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address

import pytest

from nostrvpn.endpoint import Endpoint
from nostrvpn.paths.agent import Paths
from nostrvpn.paths.events import NetworkChanged, RemoteDescription, SendDatagram
from nostrvpn.paths.hard_nat.plan import PlanKind, PortSpan, SearchPlan
from nostrvpn.paths.settings import PathSettings
from tests.sim.network import Conditions, Host, Simulation

SEARCHING = PathSettings()
KINDS = [
    ("counts", "port-restricted"),
    ("accept-input", "counts"),
    ("counts", "counts"),
    ("draws", "port-restricted"),
    ("counts", "firewall"),
]


def two(
    kinds: tuple[str, str], seed: int, conditions: Conditions | None = None, *, relays: int = 1
) -> tuple[Simulation, Host, Host]:
    sim = Simulation(seed, conditions)
    sim.servers = (*sim.servers, Endpoint(IPv4Address("11.0.202.1"), 3478))
    rng = random.Random(seed)
    first, second = (
        sim.host(name, kind, skew=rng.uniform(0, 5000), settings=SEARCHING)
        for name, kind in zip(("first", "second"), kinds, strict=True)
    )
    for _ in range(relays):
        sim.relay()
    for host in (first, second):
        sim.boot(host)
    sim.offer(first, second)
    sim.run(1.5)
    return sim, first, second


@pytest.mark.parametrize("relays", [0, 1])
@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
def test_hard_nats_become_direct_within_a_minute(kinds, relays):
    # Guesses miss now and then, see below; these seeds are no such case.
    for seed in (0, 2, 3) if "draws" in kinds else range(4):
        sim, first, second = two(kinds, seed, relays=relays)
        sim.pair(first, second)
        if relays:
            assert sim.run(2, until=partial(sim.are_relayed, first, second))
        sim.flow(first, second, 80, every=0.5)
        assert sim.run(60, until=partial(sim.are_direct, first, second)), (
            seed,
            sim.link(first, second),
            sim.link(second, first),
        )
        sim.run(10)
        assert sim.are_direct(first, second)
        assert sim.data_flows(first, second)
        assert first.pins or second.pins
        assert not sim.link(first, second).search
        sim.run(200)
        assert sim.are_direct(first, second)
        assert sum(host.counts["Describe"] for host in (first, second)) <= 10
        assert not any(
            h.paths.counters[code] for h in (first, second) for code in ("forged_check",)
        )


def is_unpinned(host: Host) -> bool:
    return not host.pins


def found(seed: int) -> bool:
    sim, first, second = two(("draws", "port-restricted"), seed, relays=0)
    sim.pair(first, second)
    sim.flow(first, second, 40, every=0.5)
    return sim.run(40, until=partial(sim.are_direct, first, second))


def test_guesses_miss_as_seldom_as_the_formula_says():
    # (1 - 256/64512) ** 1024 is 1.7 %: of 24 more than three are missed once in a thousand times.
    missed = [seed for seed in range(100, 124) if not found(seed)]
    assert len(missed) <= 3, missed


@pytest.mark.parametrize("seed", [4, 36, 49])
def test_a_plan_that_comes_while_stun_servers_are_asked_anew_is_taken(seed):
    assert found(seed)


@pytest.mark.parametrize("seed", [2011, 2051])
def test_a_search_in_vain_is_followed_by_another_after_ten_minutes(seed):
    """No guess hits at first. The second search runs during a round, whose checks must not spoil it."""
    sim, first, second = two(("draws", "port-restricted"), seed, relays=0)
    sim.pair(first, second)
    sim.flow(first, second, 140, every=5)
    assert not sim.run(590, until=partial(sim.are_direct, first, second))
    assert sim.run(50, until=partial(sim.are_direct, first, second))


def test_searches_that_find_nothing_end_after_six():
    """A firewall far away lets nothing in: as many as a pair may have, and then hardly any."""
    sim, first, second = two(("draws", "port-restricted"), 3, relays=1)
    sim.blocked = lambda sender, receiver: True
    sent: list[float] = []

    def note(host: Host, effect: SendDatagram) -> None:
        if effect.source_port is not None:
            sent.append(sim.now)

    sim.on_datagram = note
    began = sim.now
    sim.pair(first, second)
    sim.run(7200)
    searches = 1 + sum(later - sooner > 120 for sooner, later in itertools.pairwise(sent))
    assert 6 <= searches <= 8
    assert len([at for at in sent if at > began + 3600]) <= 3 * 300


def test_a_peer_that_does_not_take_part_is_relayed_and_that_is_said():
    sim, first, second = two(("counts", "counts"), 3)
    second.paths = Paths(stun_servers=sim.servers, settings=PathSettings(hard_nat_search=False))
    sim.boot(second)
    sim.offer(second)
    sim.run(1)
    sim.pair(first, second)
    sim.run(60)
    assert sim.are_relayed(first, second)
    assert sim.link(second, first).search == ""
    assert sim.link(first, second).search == "the peer told no plan"


def test_two_nats_that_draw_stay_relayed_and_say_why():
    sim, first, second = two(("draws", "draws"), 3)
    sim.pair(first, second)
    sim.run(60)
    assert sim.are_relayed(first, second)
    for host, peer in ((first, second), (second, first)):
        assert "draws its ports" in sim.link(host, peer).search


def test_a_pinned_path_that_dies_gives_the_port_back():
    for seed in range(3):
        sim, first, second = two(("counts", "port-restricted"), seed)
        sim.pair(first, second)
        sim.flow(first, second, 100, every=0.5)
        assert sim.run(60, until=partial(sim.are_direct, first, second))
        sim.run(8)
        assert first.pins
        sim.blocked = lambda sender, receiver: True
        assert sim.run(30, until=partial(sim.are_relayed, first, second))
        sim.run(10)
        assert not first.pins, seed
        assert not second.pins


@pytest.mark.parametrize("at", [3.0, 15.0])
def test_who_moves_away_from_a_pinned_path_leaves_by_his_own_port_again(at):
    """Else all checks of the new round leave from the pinned port, and none of the peer's gets in."""
    for seed in (0, 2, 3):
        sim, first, second = two(("draws", "port-restricted"), seed, relays=0)
        sim.pair(first, second)
        sim.flow(first, second, 120, every=0.5)
        assert sim.run(60, until=partial(sim.are_direct, first, second))
        sim.run(at)
        assert first.pins
        first.nat = sim.nat("linux", 77)
        first.address = Endpoint(IPv4Address("10.7.7.7"), first.address.port)
        first.lan = "elsewhere"
        sim.step(first, sim.local_addresses(first))
        sim.step(first, NetworkChanged())
        moved = sim.now
        assert sim.run(12, until=partial(is_unpinned, first))
        assert sim.run(12, until=partial(sim.are_direct, first, second)), seed
        sim.run(2)
        assert sim.longest_gap(second, moved, sim.now) < 6, seed


def test_a_peer_that_tells_plans_for_a_victim_is_refused():
    victim = IPv4Address("11.9.9.9")
    sim, first, second = two(("port-restricted", "counts"), 1)
    hits: list[Endpoint] = []

    def watch(host: Host, effect: SendDatagram) -> None:
        if effect.destination.ip == victim:
            hits.append(effect.destination)

    sim.on_datagram = watch
    sim.pair(first, second)
    sim.run(3)
    known = first.paths._links[second.key]._remote.description
    assert known is not None
    plan = SearchPlan("0" * 8, PlanKind.SCATTERED, victim, 0, (PortSpan(1024, 65535),))
    bad = replace(known, generation=known.generation + 50, search=plan)
    sim.step(first, RemoteDescription(second.key, bad))
    sim.run(20)
    assert sim.link(first, second).counters["foreign_search_plan"] == 1
    assert not hits
