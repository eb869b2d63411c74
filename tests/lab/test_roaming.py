"""Laptops change networks while an echo runs through the tunnel: how long it stays away.

Each test prints what it measured. The bounds are generous: on a busy machine everything but a timer
takes long, and the timers that would be to blame are of 3 s and more.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import pytest
import yaml

from nostrvpn.endpoint import parse_endpoint
from nostrvpn.lab.core import Internet
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.processes import Process
from nostrvpn.lab.topologies import Pair
from nostrvpn.lab.topology import Router
from tests.lab.homes import join, peer_of, watched

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(60))]

DELAY = 0.01
BOUND = 3.0
"""Seconds without an echo, at most; measured: 0.1 to 0.6 s."""
SETTLED = 1.0
"""Seconds of undisturbed echoes after which a change counts as over."""
INTERVAL = 0.05
ROAMED_PORT = 33_333


class Town(Pair):
    """Two laptops at home, a third network to go to, and a server outside."""

    def __init__(self, *, ipv6: bool) -> None:
        super().__init__(Internet(delay=DELAY))
        self._ipv6 = ipv6

    def build(self) -> None:
        self.server = self.server_host()
        self.routers = [self.router(f"nat-{x}", ipv6=self._ipv6) for x in "abc"]
        self.laptop_a = self.host("laptop-a", self.routers[0])
        self.laptop_b = self.host("laptop-b", self.routers[1])
        self.places: dict[str, Router] = dict(
            zip(("laptop-a", "laptop-b"), self.routers[:2], strict=True)
        )
        for host in (self.laptop_a, self.laptop_b):
            self.node(host, self.server)

    def move_to_the_free_network(self, name: str) -> None:
        host = self.laptop_a if name == "laptop-a" else self.laptop_b
        free = next(r for r in self.routers if r not in self.places.values())
        self.move(host, self.places[name], free)
        self.places[name] = free


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    with watched(Town(ipv6=False)) as lab:
        join(*lab.nodes)
        yield lab


@pytest.fixture(scope="module")
def town6() -> Iterator[Town]:
    with watched(Town(ipv6=True)) as lab:
        join(*lab.nodes)
        yield lab


def outage(what: str, source: LabNode, target: LabNode, act: Callable[[], object]) -> float:
    """Return the longest time without an echo around ``act``; fail when none comes any more."""
    address = target.status()["addresses"][0]
    argv = ("ping", "-n", "-D", "-i", str(INTERVAL), address)
    process = Process(source.namespace, argv, log=source.directory / "outage.log")

    def times() -> list[float]:
        return [float(at) for at in re.findall(r"\[(\d+\.\d+)\] \d+ bytes", process.output())]

    def is_steady(since: float) -> bool:
        """Whether the last second was full of echoes, all of it after the change."""
        recent = [at for at in times() if at > max(since, time.time() - SETTLED)]
        return len(recent) > 0.8 * SETTLED / INTERVAL

    try:
        wait_until(lambda: len(times()) > 3, "echoes before the change")
        act()
        since = time.time()
        wait_until(partial(is_steady, since), "steady echoes again", timeout=4 * BOUND)
        gap = max(later - earlier for earlier, later in pairwise(times()))
    finally:
        process.stop()
    sys.stdout.write(f"{what}: {gap:.2f} s without an echo\n")
    return gap


@pytest.mark.parametrize("name", ["laptop-a", "laptop-b"])
def test_a_laptop_moves_behind_another_nat(town: Town, name: str) -> None:
    act = partial(town.move_to_the_free_network, name)
    a, b = town.nodes
    assert outage(f"{name} moves, IPv4", a, b, act) < patient(BOUND)
    wait_until(lambda: is_known_at(a, b, town), "the new address", timeout=15)


def is_known_at(a: LabNode, b: LabNode, town: Town) -> bool:
    """Whether both say that they reach the other where it now is."""
    return all(
        parse_endpoint(peer_of(one, other)["endpoint"]).ip == town.places[other.name].address
        for one, other in ((a, b), (b, a))
    )


def test_a_laptop_moves_with_ipv6(town6: Town) -> None:
    a, b = town6.nodes
    assert parse_endpoint(peer_of(b, a)["endpoint"]).ip.version == 6
    act = partial(town6.move_to_the_free_network, "laptop-a")
    assert outage("laptop-a moves, IPv6", a, b, act) < patient(BOUND)


def test_from_wifi_to_the_cable_and_back(town: Town) -> None:
    a, b = town.nodes
    wifi, wired = (
        town.places["laptop-a"],
        next(router for router in town.routers if router not in town.places.values()),
    )
    namespace, gateway = town.laptop_a.namespace, town.laptop_a.plug.gateway
    # As network managers do: of two default routes the cable's has the better metric.
    namespace.ip(
        f"route add default via {gateway} dev eth0 metric 600",
        f"route del default via {gateway} dev eth0 metric 0",
    )
    plug_in = partial(wired.plug, namespace, "eth1")
    assert outage("the default route moves", a, b, plug_in) < patient(BOUND)
    assert endpoint_seen(b, a) == wired.address
    pull_out = partial(wired.unplug, namespace)
    assert outage("the cable is pulled out", a, b, pull_out) < patient(BOUND)
    assert endpoint_seen(b, a) == wifi.address


def endpoint_seen(node: LabNode, other: LabNode) -> object:
    """Where WireGuard itself sends ``other``'s packets, whatever the path engine says."""
    key = other.status()["wireguard_public_key"]
    for line in node.namespace.run("wg", "show", node.interface, "endpoints").stdout.splitlines():
        found, _, endpoint = line.partition("\t")
        if found == key:
            return parse_endpoint(endpoint.strip()).ip
    return None


def test_a_peer_comes_back_with_another_port(town: Town) -> None:
    a, b = town.nodes
    configuration = yaml.safe_load(b.config.read_text())
    configuration["wireguard"] = {"listen_port": ROAMED_PORT}
    b.config.write_text(yaml.safe_dump(configuration))
    b.stop()
    assert outage_of_a_restart(a, b) < patient(BOUND)

    def is_reached() -> bool:
        return parse_endpoint(peer_of(a, b)["endpoint"]).port == ROAMED_PORT

    wait_until(is_reached, "the new port", timeout=15)


def outage_of_a_restart(a: LabNode, b: LabNode) -> float:
    """Start ``b`` and return the seconds from its daemon's first answer until an echo crosses."""
    b.start()
    began = time.monotonic()
    address = b.status()["addresses"][0]

    def crosses() -> bool:
        argv = ("ping", "-n", "-c", "1", "-W", "0.3", address)
        return a.namespace.run(*argv, check=False).returncode == 0

    wait_until(crosses, "an echo", timeout=4 * BOUND)
    took = time.monotonic() - began
    sys.stdout.write(f"back with another port: {took:.2f} s after the start\n")
    return took


# The last one: connections to the relay are forgotten with the mappings, and stay silent for a while.
def test_a_router_forgets_its_mappings(town: Town) -> None:
    a, b = town.nodes
    # Nothing but an answer leaves laptop-b, so its router has to be reminded by its agent.
    forget = partial(town.places["laptop-b"].namespace.run, "conntrack", "-F")
    # The agents speak every 3 s over a path in use.
    assert outage("a router forgets", a, b, forget) < patient(BOUND + 2)
