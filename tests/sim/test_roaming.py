"""Nodes whose network comes and goes, in virtual time: how soon they are back, and what it costs."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address

import pytest
from aioice import stun

from nostrvpn.endpoint import Endpoint
from nostrvpn.node.events import HostChanged, Resumed, StunResolved
from nostrvpn.paths.candidates import LocalAddress
from nostrvpn.paths.events import DatagramReceived, SendDatagram
from nostrvpn.signaling.relays import RelayClosed
from tests.sim.nodes import Host, World

RELAY = "wss://relay"
SERVERS = tuple(Endpoint(IPv4Address(f"12.0.0.{n}"), 3478) for n in (1, 2, 3))
FLAPS = 20


class Internet(World):
    """With STUN servers, and hosts without a network; counts what a host sends."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.relay(RELAY)
        self.offline: set[str] = set()
        self.queries: Counter[str] = Counter()
        self.datagrams: Counter[str] = Counter()

    def meet(self) -> tuple[Host, Host]:
        """Two nodes that have met and are at rest."""
        a, b = self.host("alice"), self.host("bob")
        for host in (a, b):
            self.start(host)
            self.step(host, StunResolved(SERVERS))
        self.run(5)
        link = self.call(a, "invite", npub=b.secret.npub, once=False, expires_s=86_400)["link"]
        self.ask(b, "join", link=link)
        assert self.run(60, lambda: self.is_connected(a, b))
        self.run(30)
        return a, b

    def plug(self, host: Host, *, source: IPv4Address | None = None) -> None:
        self.offline.discard(host.name)
        address = LocalAddress(host.address.ip, "eth0", 24)
        sources = frozenset((source or host.address.ip,))
        self.step(host, HostChanged((address,), frozenset(), sources))

    def unplug(self, host: Host) -> None:
        """The address is gone, and with it the connections to relays."""
        self.offline.add(host.name)
        self.step(host, HostChanged(()))
        self.step(host, RelayClosed(RELAY, "the network changed"))
        for key in [key for key in self.relays[RELAY].subscriptions if key[0] == host.name]:
            del self.relays[RELAY].subscriptions[key]

    def events(self, host: Host) -> int:
        """How many connections and messages the host asked for so far."""
        return host.sent["OpenRelay"] + host.sent["SendText"]

    def _open(self, host: Host, url: str) -> None:
        if host.name in self.offline:
            self._later(host, RelayClosed(url, "no network"))
        else:
            super()._open(host, url)

    def _datagram(self, host: Host, effect: SendDatagram) -> None:
        self.datagrams[host.name] += 1
        if effect.destination not in SERVERS:
            if host.name not in self.offline:
                super()._datagram(host, effect)
            return
        self.queries[host.name] += 1
        request = stun.parse_message(effect.data)
        response = stun.Message(stun.Method.BINDING, stun.Class.RESPONSE, request.transaction_id)
        response.attributes["XOR-MAPPED-ADDRESS"] = (str(host.address.ip), host.address.port)
        if host.name not in self.offline:
            answer = DatagramReceived(bytes(response), effect.destination, host.address.ip)
            self._later(host, answer, 2 * self.delay)


@pytest.mark.parametrize("seed", range(5))
def test_an_interface_that_flaps_costs_a_bounded_number_of_messages(seed: int):
    world = Internet(seed)
    a, b = world.meet()
    queries, opened = world.queries["alice"], a.sent["OpenRelay"]
    said, heard, datagrams = a.sent["SendText"], b.sent["SendText"], world.datagrams["alice"]
    for _ in range(FLAPS):
        world.unplug(a)
        world.run(0.25)
        world.plug(a)
        world.run(0.25)
    world.run(5)
    acted = 3 + 10 / 2 + 1
    # Two rounds of one query for each of three servers, each time; refreshes and repetitions beside.
    assert world.queries["alice"] - queries <= 6 * acted + FLAPS
    assert a.sent["OpenRelay"] - opened <= 3 * FLAPS
    # A connection says five texts (mailboxes, test), a description is one.
    assert a.sent["SendText"] - said <= 8 * FLAPS
    assert b.sent["SendText"] - heard <= 2 * FLAPS
    assert world.datagrams["alice"] - datagrams <= 20 * FLAPS
    assert world.run(5, lambda: world.is_connected(a, b))
    assert world.status(a)["relays"][0]["state"] == "connected"


@pytest.mark.parametrize("seed", range(5))
def test_a_default_route_that_flaps_costs_no_more(seed: int):
    world = Internet(seed)
    a, b = world.meet()
    queries, opened, said = world.queries["alice"], a.sent["OpenRelay"], a.sent["SendText"]
    for flap in range(FLAPS):
        world.plug(a, source=IPv4Address(f"11.0.1.{3 + flap % 2}"))
        world.run(0.5)
    world.run(3)
    acted = 3 + 10 / 2 + 1
    assert world.queries["alice"] - queries <= 6 * acted + 6
    assert a.sent["OpenRelay"] == opened  # what lives is asked for a sign of life, not replaced
    assert a.sent["SendText"] - said <= 4 * acted + 4
    assert world.is_connected(a, b)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("slept", [60.0, 600.0, 7200.0])
def test_after_a_sleep_everything_late_is_done_once(seed: int, slept: float):
    world = Internet(seed)
    a, b = world.meet()
    node, a.node = a.node, None
    world.run(slept)
    a.node = node
    datagrams, texts = world.datagrams["alice"], world.events(a)
    world.step(a, Resumed(slept))
    # The network is doubted at once: STUN servers are asked, and the relay for a sign of life.
    assert world.datagrams["alice"] - datagrams >= len(SERVERS)
    assert world.events(a) > texts
    world.run(1.0)
    # No timer makes up for what it missed.
    assert world.datagrams["alice"] - datagrams <= 30
    assert world.events(a) - texts <= 15
    assert world.run(8, lambda: world.is_connected(a, b))
