"""Paths that are lost, and those that only seem to be: what the long runs of big meshes found."""

from __future__ import annotations

import random
from functools import partial

import pytest

from nostrvpn.paths.heartbeat import RELAYED, Heartbeat, Pulse
from tests.sim.big_nats import forget
from tests.sim.network import Conditions, Host, Simulation


def meet(sim: Simulation, first: Host, second: Host) -> None:
    for host in (first, second):
        sim.boot(host)
    sim.offer(first, second)
    sim.run(1.5)
    sim.pair(first, second)


def test_traffic_to_a_lost_path_does_not_keep_a_nat_from_forgetting():
    """A router restarts; what its host sends then comes unasked to a Linux NAT that accepts input.

    Its entry stands in the way of its own host for 30 s after the last packet, so there must be one.
    """
    sim = Simulation(3)
    first, second = sim.host("first", "port-restricted"), sim.host("second", "accept-input")
    meet(sim, first, second)
    assert sim.run(12, until=lambda: sim.are_direct(first, second))
    sim.flow(first, second, 200, every=0.5)
    sim.run(20)
    assert first.nat is not None
    forget(first.nat, random.Random(1))
    assert sim.run(20, until=lambda: not sim.are_connected(first, second))
    assert sim.run(60, until=lambda: sim.are_direct(first, second))


def test_a_lost_path_that_works_again_is_used_before_the_next_of_rare_rounds():
    """The network swallows UDP between the two for ten minutes, and both go on talking."""
    sim = Simulation(3)
    first, second = sim.host("first", "open"), sim.host("second", "open")
    meet(sim, first, second)
    assert sim.run(12, until=lambda: sim.are_direct(first, second))
    sim.flow(first, second, 700, every=0.5)
    sim.run(20)
    sim.blocked = lambda sender, receiver: True
    sim.run(600)
    assert not sim.are_connected(first, second)
    before = len(first.arrivals)
    sim.blocked = lambda sender, receiver: False
    assert sim.run(10, until=lambda: len(first.arrivals) > before)


@pytest.mark.parametrize("loss", [0.1, 0.2])
def test_a_relayed_path_that_loses_packets_stays(loss):
    """Through a relay a check and its answer cross four ways: at 20 % loss six of ten are lost."""
    changes = 0
    for seed in range(2):
        sim = Simulation(seed, Conditions(loss=loss))
        first = sim.host("first", "symmetric", v6=True)
        second = sim.host("second", "symmetric")
        for _ in range(2):
            sim.relay()
        meet(sim, first, second)
        assert sim.run(60, until=partial(sim.are_relayed, first, second))
        sim.flow(first, second, 300, every=0.5)
        sim.run(60)
        for host in (first, second):
            host.told.clear()
        sim.run(200)
        changes += len(first.told) + len(second.told)
    assert changes <= 6


def test_a_heartbeat_learns_how_much_is_lost():
    """Nothing comes back: soon over where all came back before, later where much was lost."""
    took = []
    for loss in (0.0, 0.35, 0.6):
        heartbeat, now, rng = Heartbeat(controlling=True), 1000.0, random.Random(1)
        heartbeat.start(now, RELAYED)
        heartbeat.set_active(True, now)
        for _ in range(300):
            now = heartbeat.deadline or now
            if heartbeat.pulse(now) is Pulse.CHECK and rng.random() >= loss:
                heartbeat.answered(now + 0.1)
            if heartbeat.deadline is None:
                heartbeat.start(now)
        heartbeat.answered(now + 0.1)
        began = now
        while heartbeat.pulse(now) is not Pulse.LOST:
            now = heartbeat.deadline or now
        took.append(now - began)
    assert took[0] < 3.0 < took[1] < took[2] < 6.0
