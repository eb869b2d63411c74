"""Paths through relays in a simulated internet: hundreds of seeds, virtual time."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address

import pytest

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.paths.description import Description
from nostrvpn.paths.events import (
    NetworkChanged,
    RemoteDescription,
    SendDatagram,
    TurnAllocated,
    Wake,
)
from nostrvpn.paths.relay_offers import RelayTicket
from nostrvpn.paths.settings import PathSettings
from nostrvpn.stun.relaying import Side
from tests.sim.nats import ConeNat, LinuxNat, SymmetricNat, is_possible
from tests.sim.network import (
    Conditions,
    Host,
    Simulation,
    drawn_conditions,
    two_hosts,
)

KINDS = ("open", "full-cone", "port-restricted", "accept-input", "symmetric", "firewall")
PAIRS = tuple(itertools.combinations_with_replacement(KINDS, 2))


def two(
    kinds: tuple[str, str] = ("symmetric", "symmetric"),
    seed: int = 1,
    conditions: Conditions | None = None,
    *,
    relays: int = 2,
    websocket: bool = False,
) -> tuple[Simulation, Host, Host]:
    sim, first, second = two_hosts(kinds, seed, conditions)
    for number in range(relays):
        sim.relay(websocket=websocket, delay=0.01 * number)
    for host in (first, second):
        sim.boot(host)
    sim.offer(first, second)
    sim.run(1.5)
    return sim, first, second


def connect(sim: Simulation, first: Host, second: Host, *, within: float = 10.0) -> bool:
    sim.pair(first, second)
    return sim.run(within, until=lambda: sim.are_connected(first, second))


def test_two_symmetric_nats_are_relayed_at_once():
    sim, first, second = two()
    start = sim.now
    assert connect(sim, first, second)
    assert sim.now - start < 0.6
    assert sim.are_relayed(first, second)
    assert sim.data_flows(first, second)


def reboot(sim: Simulation, host: Host) -> None:
    """The daemon starts anew; WireGuard in the kernel keeps running."""
    host.paths = Simulation(sim.seed + 1).host(host.name, "open").paths
    host.scheduled = None
    sim.boot(host)


def describes(*hosts: Host) -> int:
    return sum(host.counts["Describe"] for host in hosts)


@pytest.mark.parametrize("kinds", PAIRS, ids="+".join)
def test_every_pair_with_a_common_relay_connects_and_is_direct_if_it_can_be(kinds):
    for seed in range(3):
        sim, first, second = two(kinds, seed)
        start = sim.now
        assert connect(sim, first, second)
        assert sim.now - start < 0.6, (seed, sim.now - start)
        sim.run(8)
        direct = is_possible(*kinds)
        assert sim.are_direct(first, second) == direct, (seed, first.traces, second.traces)
        assert sim.are_relayed(first, second) != direct, (seed, first.traces, second.traces)
        assert sim.data_flows(first, second)
        assert describes(first, second) <= 4


@pytest.mark.parametrize("loss", [0.05, 0.2])
@pytest.mark.parametrize(
    "kinds", [("symmetric", "symmetric"), ("symmetric", "firewall"), ("accept-input", "symmetric")]
)
def test_bad_networks_cost_time_and_not_the_relayed_connection(kinds, loss):
    for seed in range(8):
        rng = random.Random(seed)
        conditions = drawn_conditions(rng, loss, longest_delay=0.1)
        sim, first, second = two(kinds, seed, conditions)
        sim.add(first, second)
        sim.run(rng.uniform(0, 3))
        sim.add(second, first)
        connected = sim.run(60, until=partial(sim.are_connected, first, second))
        assert connected, (seed, first.traces, second.traces, sim.link(first, second))


def test_only_one_side_knows_relays():
    for knows in (0, 1):
        sim, first, second = two(relays=0)
        sim.relay()
        sim.offer((first, second)[knows])
        assert connect(sim, first, second)
        assert sim.are_relayed(first, second)


def test_offers_that_come_late_are_used():
    sim, first, second = two(relays=0)
    assert not connect(sim, first, second)
    sim.relay()
    sim.offer(first, second)
    assert sim.run(3, until=lambda: sim.are_relayed(first, second))


def test_ipv4_only_and_ipv6_only_hosts_meet_at_a_relay():
    sim = Simulation(3)
    first = sim.host("first", "symmetric")
    second = sim.host("second", "firewall", v6=True, v4=False)
    sim.relay()
    for host in (first, second):
        sim.boot(host)
    sim.offer(first, second)
    assert connect(sim, first, second)
    assert sim.are_relayed(first, second)
    assert sim.data_flows(first, second)


@pytest.mark.parametrize("seed", range(6))
def test_a_blocked_direct_path_is_replaced_by_a_relay_and_comes_back(seed):
    conditions = Conditions(delay=0.02, loss=0.02 * (seed % 2))
    sim, first, second = two(("port-restricted", "firewall"), seed, conditions)
    assert connect(sim, first, second)
    sim.flow(first, second, 160)
    sim.run(30)
    assert sim.are_direct(first, second)
    sim.blocked = lambda sender, receiver: True
    start = sim.now
    sim.run(20)
    for host in (first, second):
        assert sim.longest_gap(host, start, sim.now) < 7
    assert sim.are_relayed(first, second), (first.traces, second.traces)
    sim.blocked = lambda sender, receiver: False
    back = sim.now
    assert sim.run(80, until=lambda: sim.are_direct(first, second)), sim.link(first, second)
    sim.run(10)
    for host in (first, second):
        assert sim.longest_gap(host, back, sim.now) < 0.5
    assert describes(first, second) <= 5


@pytest.mark.parametrize("late", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_after_a_restart_the_relay_beside_the_direct_path_is_not_taken_for_one(seed, late):
    sim, restarted, other = two(("linux", "linux"), seed, Conditions(delay=0.02), relays=1)
    assert connect(sim, restarted, other)
    sim.flow(restarted, other, 60)
    sim.run(30)
    assert sim.are_direct(restarted, other)
    reboot(sim, restarted)  # its peer keeps their port at the relay warm
    sim.at(late, partial(sim.offer, restarted))
    sim.add(restarted, other, cached=restarted.memories[other.key])
    sim.run(20)
    assert sim.are_direct(restarted, other)
    relay = sim.carriers.relays[0].offer(restarted).endpoints[0].ip
    ends = (sim.link(restarted, other).endpoint, sim.link(other, restarted).endpoint)
    assert all(end is not None and end.ip != relay for end in ends)


@pytest.mark.parametrize("seed", range(9))
def test_a_relay_that_dies_is_replaced_by_the_other_within_three_seconds(seed):
    conditions = Conditions(loss=0.02 * (seed % 3))
    sim, first, second = two(seed=seed, conditions=conditions)
    assert connect(sim, first, second)
    sim.flow(first, second, 100)
    sim.run(40)
    via = sim.link(first, second).via
    relay = next(relay for relay in sim.carriers.relays if relay.name == via)
    relay.die()
    start = sim.now
    sim.run(30)
    for host in (first, second):
        assert sim.longest_gap(host, start, sim.now) < 3
    assert sim.are_relayed(first, second)
    assert sim.link(first, second).via != via


def test_the_nearer_relay_is_used():
    for seed in range(10):
        sim, first, second = two(seed=seed)
        assert connect(sim, first, second)
        sim.run(5)
        sim.carriers.relays[seed % 2].delay = 0.06
        sim.flow(first, second, 120, every=1.0)
        sim.run(120)
        near = sim.carriers.relays[1 - seed % 2].name
        assert {sim.link(first, second).via, sim.link(second, first).via} == {near}


def test_a_relay_that_forgot_everything_is_asked_anew():
    sim, first, second = two(relays=1)
    assert connect(sim, first, second)
    sim.flow(first, second, 60)
    sim.run(30)
    sim.carriers.relays[0].restart()
    start = sim.now
    sim.run(20)
    assert sim.are_relayed(first, second), (first.traces, sim.link(first, second))
    assert max(sim.longest_gap(host, start, sim.now) for host in (first, second)) < 6


@pytest.mark.parametrize("relays", [1, 2])
def test_a_nat_that_gives_another_port_costs_a_moment(relays):
    for seed in range(5):
        sim, first, second = two(seed=seed, relays=relays)
        assert connect(sim, first, second)
        sim.flow(first, second, 60)
        sim.run(20)
        assert isinstance(first.nat, SymmetricNat)
        first.nat.flows.clear()
        first.nat.back.clear()
        start = sim.now
        sim.run(10)
        assert max(sim.longest_gap(host, start, sim.now) for host in (first, second)) < 3


@pytest.mark.parametrize("kind", ["port-restricted", "open"])
def test_a_nat_that_moves_a_direct_path_to_another_port_costs_less_than_three_seconds(kind):
    for seed in range(6):
        sim, first, second = two(("port-restricted", kind), seed)
        assert connect(sim, first, second)
        sim.flow(first, second, 60)
        sim.run(20 + 0.37 * seed)
        assert sim.are_direct(first, second)
        assert isinstance(first.nat, ConeNat)
        first.nat.forget()
        start = sim.now
        sim.run(10)
        gap = max(sim.longest_gap(host, start, sim.now) for host in (first, second))
        assert gap < 3, (seed, gap)
        assert sim.are_direct(first, second)


def test_without_udp_the_websocket_of_a_relay_carries():
    for blocked in ((True, False), (False, True), (True, True)):
        sim = Simulation(1)
        first, second = (sim.host(name, "symmetric") for name in ("first", "second"))
        sim.relay(websocket=True)
        for host, closed in zip((first, second), blocked, strict=True):
            host.udp = not closed
            sim.boot(host)
        sim.run(1.5)
        sim.offer(first, second)
        start = sim.now
        assert connect(sim, first, second), (sim.link(first, second), sim.link(second, first))
        assert max(first.validated_at[second.key], second.validated_at[first.key]) - start < 1
        assert sim.data_flows(first, second)
        carriers = [sim.link(first, second).carrier, sim.link(second, first).carrier]
        assert carriers == ["websocket" if closed else "udp" for closed in blocked]


def test_the_relay_itself_is_reached_through_its_own_websocket():
    for seed in range(4):
        sim = Simulation(seed)
        guest = sim.host("guest", "symmetric", skew=99.0 * seed)
        owner = sim.host("owner", "open", skew=7.0)
        if seed % 2:  # either of them may be the one that nominates
            guest.key, owner.key = owner.key, guest.key
        relay = sim.relay(websocket=True)
        relay.name, relay.v4 = owner.key, Endpoint(owner.address.ip, relay.v4.port)
        guest.udp = False
        for host in (guest, owner):
            sim.boot(host)
        sim.offer(guest)
        sim.run(1.5)
        assert connect(sim, guest, owner), (sim.link(guest, owner), sim.link(owner, guest))
        assert sim.link(guest, owner).carrier == "websocket"
        assert sim.link(guest, owner).via == owner.key
        assert sim.data_flows(guest, owner)
        sim.run(600)
        assert sim.data_flows(guest, owner)


def test_the_relay_itself_is_not_asked_where_udp_passes():
    sim, guest, owner = two(("symmetric", "open"), relays=0)
    relay = sim.relay(websocket=True)
    relay.name = owner.key
    sim.offer(guest)
    assert connect(sim, guest, owner)
    assert sim.link(guest, owner).relays == ()
    assert not relay.ports


def test_a_direct_path_that_rests_lets_its_relay_go():
    sim, first, second = two(("linux", "linux"))
    assert connect(sim, first, second)
    assert sum(len(relay.ports) for relay in sim.carriers.relays) <= 2
    sim.run(400)
    assert sim.are_direct(first, second)
    for host, peer in ((first, second), (second, first)):
        assert sim.link(host, peer).relays == ()
    assert not any(relay.ports for relay in sim.carriers.relays)


def test_a_turn_server_carries_where_there_is_no_relay():
    sim, first, second = two(("symmetric", "symmetric"), relays=0)
    relayed = sim.carriers.turn.allocate(first)
    sim.step(first, TurnAllocated(sim.carriers.turn.name, relayed))
    assert connect(sim, first, second), (sim.link(first, second), sim.link(second, first))
    assert sim.are_relayed(first, second)
    assert sim.link(first, second).carrier == "turn"
    assert sim.link(second, first).via == f"turn {relayed.ip}"
    assert sim.data_flows(first, second)


def all_connected(sim: Simulation, pairs: list[tuple[Host, Host]]) -> bool:
    return all(sim.are_connected(*pair) for pair in pairs)


def test_peers_at_one_turn_server_are_told_apart():
    # All have addresses at one server and nothing else, so their checks come from one IP address.
    for seed in range(20):
        sim = Simulation(seed)
        hosts = [sim.host(name, "symmetric") for name in ("first", "second", "third")]
        for host in hosts:
            host.udp = False
            sim.boot(host)
            sim.step(host, TurnAllocated(sim.carriers.turn.name, sim.carriers.turn.allocate(host)))
        sim.run(1.5)
        pairs = list(itertools.combinations(hosts, 2))
        sim.rng.shuffle(pairs)
        for number, (one, other) in enumerate(pairs):
            sim.at(0.02 * seed * number, partial(sim.pair, one, other, gap=0.01 * seed))
        assert sim.run(10, until=partial(all_connected, sim, pairs)), seed
        assert all(sim.are_relayed(*pair) and sim.data_flows(*pair) for pair in pairs)


@pytest.mark.parametrize("kinds", [("symmetric", "symmetric"), ("port-restricted", "firewall")])
def test_a_host_that_moves_loses_little(kinds):
    for seed in range(6):
        sim, first, second = two(kinds, seed)
        assert connect(sim, first, second)
        sim.flow(first, second, 100)
        sim.run(30)
        move(sim, first)
        start = sim.now
        sim.run(30)
        gap = max(sim.longest_gap(host, start, sim.now) for host in (first, second))
        assert gap < 3, (seed, gap, first.traces, second.traces)


def move(sim: Simulation, host: Host) -> None:
    number = sim.rng.randrange(70, 99)
    host.nat = sim.nat("port-restricted", number)
    host.address = Endpoint(IPv4Address(f"10.7.7.{number}"), host.address.port)
    host.lan = f"elsewhere{number}"
    sim.step(host, sim.local_addresses(host))
    sim.step(host, NetworkChanged())


def test_hours_of_relaying_cost_few_messages_and_do_not_flap():
    sim, first, second = two(conditions=Conditions(jitter=0.02, loss=0.02))
    assert connect(sim, first, second)
    sim.flow(first, second, 1200, every=4.0)
    sim.run(1200)
    assert sim.are_relayed(first, second)
    for host in (first, second):
        assert len(host.told) < 8
        assert host.counts["Describe"] <= 4


def test_an_idle_relayed_path_stays():
    sim, first, second = two()
    assert connect(sim, first, second)
    sim.run(30)
    before = first.wakeups
    sim.run(3600)
    assert sim.are_relayed(first, second)
    assert (first.wakeups - before) / 60 < 20
    assert describes(first, second) <= 4
    assert sim.data_flows(first, second)


def test_a_round_over_the_relay_finds_what_the_first_one_missed():
    """The openers, and who holds back, hold there as well, and nothing is signaled."""
    kinds = ("accept-input", "accept-input")
    for seed in range(20):
        rng = random.Random(seed)
        conditions = Conditions(delay=rng.uniform(0.002, 0.15), signal_delay=rng.uniform(0.01, 0.4))
        sim, first, second = two(kinds, seed, conditions)
        sim.blocked = lambda sender, receiver: True
        assert connect(sim, first, second)
        assert sim.are_relayed(first, second)
        sim.run(20)
        sim.blocked = lambda sender, receiver: False
        sent = describes(first, second)
        assert sim.run(60, until=partial(sim.are_direct, first, second)), seed
        assert describes(first, second) == sent
        assert sim.link(first, second).direct_rounds == 0
        for host in (first, second):
            assert isinstance(host.nat, LinuxNat)
            assert all(inner is not None for inner, _ in host.nat.entries.values())


def test_rounds_become_rare():
    sim, first, second = two()
    assert connect(sim, first, second)
    calls: list[float] = []
    sim.on_datagram = lambda host, effect: calls.append(sim.now) if effect.ttl == 4 else None
    sim.run(2 * 3600)
    assert sim.link(first, second).direct_rounds >= 5
    assert sim.are_relayed(first, second)
    rounds = 1 + sum(1 for before, after in itertools.pairwise(calls) if after - before > 10)
    assert 5 <= rounds <= 11


def test_a_peer_that_names_victims_as_relays_cannot_make_us_flood_them():
    victim = IPv4Address("11.9.9.9")
    sim, first, second = two(("open", "open"), 1, relays=0)
    sim.add(first, second)
    hits: list[float] = []
    opened: list[float] = []

    def watch(host: Host, effect: SendDatagram) -> None:
        if effect.destination.ip == victim:
            hits.append(sim.now)

    sim.on_datagram = watch
    sim.carriers.open = lambda host, effect: opened.append(sim.now)  # type: ignore[method-assign]
    template = Description("0" * 16, 1, None, "abcdef", "p" * 32, ())
    first.udp = False
    sim.step(first, NetworkChanged())
    for number in range(300):
        tickets = tuple(
            RelayTicket(
                f"{number:014x}{n:02x}",
                (Endpoint(victim, 1000 + n),),
                Side.OTHER,
                "k" * 32,
                "ws://victim.example/",
            )
            for n in range(4)
        )
        described = replace(
            template, session=f"{number:016x}", generation=number + 1, relays=tickets
        )
        sim.step(first, RemoteDescription(second.key, described))
        sim.run(0.2)
    assert 0 < len(hits) <= 60 + 61
    assert 0 < len(opened) <= 8 + 3


def test_a_link_that_nobody_uses_goes_to_sleep_and_wakes():
    settings = PathSettings(sleep_after=900.0)
    for wakes in ("first", "second"):
        sim = Simulation(5)
        first, second = (sim.host(n, "linux", settings=settings) for n in ("first", "second"))
        for host in (first, second):
            sim.boot(host)
        sim.run(1)
        assert connect(sim, first, second)
        for host, peer in ((first, second), (second, first)):
            host.keepalive = False
            assert not sim.link(host, peer).asleep
        sim.run(1100)
        for host, peer in ((first, second), (second, first)):
            assert sim.link(host, peer).asleep
            assert host.told[-1][1] is None
        before = {host.name: host.counts["SendDatagram"] for host in (first, second)}
        sim.run(600)
        for host in (first, second):  # one datagram in 25 s is for the STUN server
            assert host.counts["SendDatagram"] - before[host.name] <= 600 / 25 + 8
        host, peer = (first, second) if wakes == "first" else (second, first)
        start = sim.now
        sim.step(host, Wake(peer.key))
        assert sim.run(5, until=partial(sim.are_connected, first, second))
        assert sim.now - start < 1


@pytest.mark.parametrize("kinds", [("symmetric", "symmetric"), ("linux", "linux")])
def test_how_large_packets_pass_is_found_on_either_kind_of_path(kinds):
    sim, first, second = two(kinds)
    limit = 1420
    pass_on, deliver = sim.deliver, []

    def narrow(host: Host | None, data: bytes, source: Endpoint, to: Endpoint) -> None:
        deliver.append(len(data))
        if len(data) + 28 <= limit:
            pass_on(host, data, source, to)

    sim.deliver = narrow  # type: ignore[method-assign]
    assert connect(sim, first, second)
    sim.run(30)
    assert max(deliver) > limit
    for host, peer in ((first, second), (second, first)):
        found = sim.link(host, peer).mtu
        assert found is not None
        assert limit - 16 < found <= limit
        assert sim.link(host, peer).path != "none"


def test_late_packets_of_the_relay_do_not_bring_the_tunnel_back_to_it():
    for seed in range(6):
        sim, first, second = two(("linux", "linux"), seed, Conditions(jitter=0.02))
        for relay in sim.carriers.relays:
            relay.delay = 0.1
        sim.blocked = lambda sender, receiver: True
        assert connect(sim, first, second)
        sim.run(10)
        sim.blocked = lambda sender, receiver: False
        sim.flow(first, second, 60)
        relays: set[IPAddress] = {relay.v4.ip for relay in sim.carriers.relays}
        assert sim.run(60, until=partial(endpoints_are_not, sim, relays))
        for _ in range(100):
            sim.run(0.03)
            for host in (first, second):
                [tunnel] = host.tunnels.values()
                assert tunnel.endpoint is not None
                assert tunnel.endpoint.ip not in relays


def endpoints_are_not(sim: Simulation, ips: set[IPAddress]) -> bool:
    first, second = sim.hosts.values()
    chosen = (sim.link(first, second).endpoint, sim.link(second, first).endpoint)
    return all(endpoint is not None and endpoint.ip not in ips for endpoint in chosen)
