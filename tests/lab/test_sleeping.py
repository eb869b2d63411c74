"""Two laptops behind NATs that nobody uses: they fall silent, and the first packet finds the other."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.topologies import TwoNats
from tests.lab.homes import join, peer_of, problems, watched

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(120))]

SLEEP_AFTER_MINUTES = 0.05
SILENT_S = 5.0
"""Longer than anything a path in use leaves out: its checks come every 3 s."""
WIREGUARD_KEEPALIVE = 32
"""Bytes."""
WAKE_S = 1.5
"""Until the first echo is back; measured: 0.2 to 0.4 s."""


@pytest.fixture(scope="module")
def lab() -> Iterator[TwoNats]:
    with watched(TwoNats()) as made:
        for host in (made.laptop_a, made.laptop_b):
            made.node(host, made.server, paths={"sleep_after_minutes": SLEEP_AFTER_MINUTES})
        join(*made.nodes)
        yield made


def wait_asleep(*nodes: LabNode) -> None:
    def sleeping() -> bool:
        # Each is asked each time: whoever is asked reads its counters.
        peers = [peer for node in nodes for peer in node.ask("status")["peers"]]
        return all(peer["asleep"] for peer in peers)

    wait_until(sleeping, "all to sleep")


def traffic(node: LabNode, other: LabNode) -> tuple[Any, ...]:
    seen = peer_of(node, other)
    return seen["rx_bytes"], seen["tx_bytes"]


def forget_session(node: LabNode) -> None:
    """Take the peer out of WireGuard and put it in again as it was."""
    wg = ("wg", "set", node.interface, "peer")
    dump = node.namespace.run("wg", "show", node.interface, "dump").stdout.splitlines()[1]
    key, _, endpoint, allowed, *_ = dump.split("\t")
    node.namespace.run(*wg, key, "remove")
    node.namespace.run(*wg, key, "endpoint", endpoint, "allowed-ips", allowed)


def echoes(source: LabNode, target: LabNode) -> list[float]:
    """Send three echo requests, and return the round trips of those that came back, in seconds."""
    argv = ("ping", "-n", "-c", "3", "-i", "0.3", "-w", "10", target.status()["addresses"][0])
    text = source.namespace.run(*argv, check=False, timeout=20).stdout
    return [float(ms) / 1000 for ms in re.findall(r"time=([\d.]+) ms", text)]


def test_a_tunnel_that_nobody_uses_is_silent(lab: TwoNats) -> None:
    a, b = lab.nodes
    wait_asleep(a, b)
    # What one of them sent before it slept has arrived, and both daemons have counted it.
    readings: list[tuple[Any, ...]] = []

    def settled() -> bool:
        readings.append((traffic(a, b), traffic(b, a)))
        return readings[-3:].count(readings[-1]) == 3

    wait_until(settled, "counters that rest", timeout=30, poll=1.0)
    before = readings[-1]
    capture = lab.capture("laptop-a", "eth0", f"udp and host {lab.nat_b.address}")
    time.sleep(SILENT_S)
    assert capture.packets() == []
    capture.stop()
    for was, now in zip(before, (traffic(a, b), traffic(b, a)), strict=True):
        # WireGuard answers the last data 10 s later by itself, which gets no farther than the doorbell.
        assert now[0] == was[0]
        assert now[1] - was[1] in (0, WIREGUARD_KEEPALIVE)
    for node, other in ((a, b), (b, a)):
        assert problems(node.status()) == {}
        # What the other side sent last may have shown its address once more, until the next look.
        wait_until(lambda: peer_of(node, other)["endpoint"] is None, "no endpoint", timeout=40)  # noqa: B023


@pytest.mark.parametrize("first", [0, 1])
def test_the_first_packet_wakes_it_and_none_is_lost(lab: TwoNats, first: int) -> None:
    source, target = lab.nodes[first], lab.nodes[1 - first]
    wait_asleep(source, target)
    if first:  # as after a longer sleep
        forget_session(source)
        forget_session(target)
    times = echoes(source, target)
    sys.stdout.write(f"{source.name} wakes {target.name}: {times}\n")
    assert len(times) == 3
    assert times[0] < patient(WAKE_S)
    assert peer_of(target, source)["path"] == "direct"


def test_a_command_wakes_it(lab: TwoNats) -> None:
    a, b = lab.nodes
    wait_asleep(a, b)
    answer = a.query("ping", b.npub, "--count", "1")
    assert [echo["asleep"] for echo in answer["echoes"]] == [True]
    assert answer["received"] == 1


def test_a_peer_that_was_restarted_meanwhile_is_found(lab: TwoNats) -> None:
    a, b = lab.nodes
    wait_asleep(a)
    b.stop()
    b.start()
    times = echoes(a, b)
    sys.stdout.write(f"after a restart: {times}\n")
    assert len(times) == 3
