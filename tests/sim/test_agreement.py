"""Both ends use the same pair: soon after a path is proven, whatever is lost, and without flapping."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest

from nostrvpn.endpoint import Endpoint
from nostrvpn.paths.events import TurnAllocated
from nostrvpn.stun.binding import parse_stun
from tests.sim.network import Conditions, Host, Simulation

# No part of the half second in which WireGuard's endpoint is looked at: the same would always be seen.
SAMPLE = 0.047
# Name: kinds of NAT, and what else there is.
NETWORKS: dict[str, tuple[tuple[str, str], frozenset[str]]] = {
    "turn": (("symmetric", "symmetric"), frozenset({"turn", "blocked"})),
    "turn-cone": (("port-restricted", "symmetric"), frozenset({"turn", "blocked"})),
    "turn-only": (("symmetric", "symmetric"), frozenset({"turn", "blocked", "both"})),
    "turn-open": (("symmetric", "symmetric"), frozenset({"turn"})),
    "relays": (("symmetric", "symmetric"), frozenset({"relays"})),
    "websocket": (("symmetric", "linux"), frozenset({"relays", "blocked"})),
    "relays-and-turn": (("symmetric", "symmetric"), frozenset({"relays", "turn", "blocked"})),
    "direct": (("linux", "port-restricted"), frozenset()),
    "two-versions": (("linux", "full-cone"), frozenset({"v6"})),
    "everything": (("linux", "accept-input"), frozenset({"relays", "turn", "v6"})),
    "lan": (("linux", "lan"), frozenset({"relays", "v6"})),
}


def build(
    name: str, seed: int, conditions: Conditions | None = None
) -> tuple[Simulation, Host, Host]:
    """Either host may be the one that nominates, and either may be the one without UDP."""
    kinds, features = NETWORKS[name]
    rng = random.Random(seed)
    delay, jitter = rng.uniform(0.003, 0.06), rng.uniform(0, 0.02)
    sim = Simulation(seed, conditions or Conditions(delay=delay, jitter=jitter))
    v6 = "v6" in features
    first = sim.host("first", kinds[0], skew=rng.uniform(0, 5000), v6=v6)
    behind = first if kinds[1] == "lan" else None
    second = sim.host("second", kinds[1], skew=rng.uniform(0, 5000), v6=v6, behind=behind)
    hosts = [first, second]
    if seed % 2:
        first.key, second.key = second.key, first.key
    if "relays" in features:
        for number in range(2):
            sim.relay(websocket="blocked" in features, delay=0.01 * number)
    if "blocked" in features:
        for host in hosts if "both" in features else [hosts[seed // 2 % 2]]:
            host.udp = False
    for host in hosts:
        sim.boot(host)
        if "turn" in features:
            turn = sim.carriers.turn
            sim.step(host, TurnAllocated(turn.name, turn.allocate(host)))
    if "relays" in features:
        sim.offer(*hosts)
    sim.run(1.5)
    return sim, first, second


@dataclass
class Watch:
    """Whether what each end sends arrives over the pair that the other one uses, over time.

    ``probes`` go to the selected endpoint; ``data`` are packets of the flow, which go to where
    WireGuard's endpoint is, and may be carried off by late packets.
    """

    sim: Simulation
    ends: tuple[Host, Host]
    probes: list[tuple[float, bool]] = field(default_factory=list)
    data: list[tuple[float, bool]] = field(default_factory=list)
    before: dict[str, int] = field(default_factory=dict)

    def start(self, duration: float) -> None:
        self.before = {end.name: len(end.told) for end in self.ends}
        arrive = self.sim.arrive
        self.sim.flow(*self.ends, duration, every=SAMPLE)

        def arrived(host: Host, data: bytes, source: Endpoint, port: int | None = None) -> None:
            if data.startswith((b"WG flow", b"WG probe")):
                peer = self.ends[host is self.ends[0]]
                fits = source == self.sim.look(host, peer).endpoint
                kept = self.data if data.startswith(b"WG flow") else self.probes
                kept.append((self.sim.now, fits))
            if not data.startswith(b"WG probe"):
                arrive(host, data, source, port)

        self.sim.arrive = arrived  # type: ignore[method-assign]
        end = self.sim.now + duration

        def probe() -> None:
            for host, peer in (self.ends, self.ends[::-1]):
                if (endpoint := self.sim.look(host, peer).endpoint) is not None:
                    self.sim._send(host, b"WG probe", endpoint)
            if self.sim.now + SAMPLE < end:
                self.sim.at(SAMPLE, probe)

        probe()

    def longest(self, seen: list[tuple[float, bool]]) -> float:
        """Return for how long at most every packet, or all but a few between, came elsewhere."""
        begun: float | None = None
        longest, agreed = 0.0, 0
        for at, fits in seen:
            if not fits:
                begun, agreed = at if begun is None else begun, 0
                longest = max(longest, at - begun)
            else:
                agreed += 1
                # Two directions: one that agrees alone is none of an agreement.
                begun = None if agreed > 6 else begun
        return longest

    def changes(self) -> int:
        """Return how often at most one end set WireGuard's endpoint since ``start``."""
        return max(len(end.told) - self.before[end.name] for end in self.ends)


def meet(sim: Simulation, first: Host, second: Host, *, within: float) -> bool:
    sim.pair(first, second, gap=sim.rng.uniform(0, 0.5))
    return sim.run(within, until=partial(are_live, sim, first, second))


def are_live(sim: Simulation, first: Host, second: Host) -> bool:
    if second.key not in first.paths.peers or first.key not in second.paths.peers:
        return False
    links = (sim.look(first, second), sim.look(second, first))
    return all(link.endpoint is not None for link in links)


@pytest.mark.parametrize("name", NETWORKS)
def test_both_ends_use_one_pair_within_a_second(name):
    for seed in range(12):
        sim, first, second = build(name, seed)
        assert meet(sim, first, second, within=5), seed
        watch = Watch(sim, (first, second))
        watch.start(20)
        sim.run(20)
        found = (seed, first.told, second.told)
        assert watch.longest(watch.probes) < 1, found
        assert watch.longest(watch.data) < 2, found
        assert watch.changes() <= 4, found
        assert len(watch.data) > 0.99 * 2 * 20 / SAMPLE - 4, found
        assert sim.now - max(first.told[-1][0], second.told[-1][0]) > 10, found


@pytest.mark.parametrize("loss", [0.05, 0.2])
@pytest.mark.parametrize("name", NETWORKS)
def test_losses_part_the_ends_for_moments_only(name, loss):
    probes: list[tuple[float, bool]] = []
    for seed in range(6):
        sim, first, second = build(name, seed)
        sim.conditions.loss = loss
        assert meet(sim, first, second, within=30), seed
        watch = Watch(sim, (first, second))
        watch.start(40)
        sim.run(40)
        found = (seed, first.told, second.told)
        assert watch.longest(watch.probes) < 4, found
        assert watch.longest(watch.data) < 5, found
        assert watch.changes() <= 10, found
        probes += watch.probes
    assert sum(not fits for _, fits in probes) / len(probes) < 0.04


Lose = Callable[[Simulation, int], None]


def lose_nominations(sim: Simulation, count: int, *, answers: bool) -> list[bytes]:
    """Let the first ``count`` nominations vanish on their way, or the answers to them."""
    lost: list[bytes] = []
    send = sim._send

    def sent(
        host: Host, data: bytes, to: Endpoint, ttl: int | None = None, port: int | None = None
    ) -> None:
        message = None if data.startswith(b"WG") else parse_stun(data)
        if message is not None and (message.use_candidate or message.transaction in lost):
            if message.use_candidate and len(lost) < count and message.transaction not in lost:
                lost.append(message.transaction)
            if message.transaction in lost and message.use_candidate is not answers:
                return
        send(host, data, to, ttl, port)

    sim._send = sent  # type: ignore[method-assign]
    return lost


@pytest.mark.parametrize("answers", [False, True], ids=["nominations", "answers"])
@pytest.mark.parametrize("name", ["turn", "turn-only", "relays", "two-versions", "everything"])
def test_lost_nominations_are_repeated(name, answers):
    for seed, count in itertools.product(range(6), (1, 3)):
        sim, first, second = build(name, seed)
        lost = lose_nominations(sim, count, answers=answers)
        assert meet(sim, first, second, within=5), seed
        watch = Watch(sim, (first, second))
        watch.start(8)
        sim.run(8)
        found = (seed, first.told, second.told)
        assert len(lost) == count
        assert watch.longest(watch.probes) < 1.5, found
        assert watch.longest(watch.data) < 2, found
        assert watch.changes() <= 4, found


def test_a_peer_that_nominates_two_pairs_in_turn_moves_us_a_few_times_a_minute():
    for seed in range(4):
        sim, first, second = build("relays", 2 * seed)
        assert meet(sim, first, second, within=5)
        sim.run(5)
        link = first.paths._links[second.key]
        assert link.controlling
        relayed = sorted(str(pair.endpoint) for pair in link.checks.working() if pair.is_relayed)
        assert len(relayed) > 1
        turns = itertools.count()

        def nominate(sim=sim, first=first, link=link, relayed=relayed, turns=turns) -> None:
            number = next(turns)
            at = relayed[number % 2]
            pair = next(pair for pair in link.checks.pairs.values() if str(pair.endpoint) == at)
            moment = sim.moment(first)
            sim._perform(first, [*link.checks.send(pair, moment, nomination=1000 + number)])
            sim.at(0.1, nominate)

        told = len(second.told)
        nominate()
        sim.run(120)
        assert next(turns) > 1000
        # Six that were saved up, and one in ten seconds; and WireGuard is brought back now and then.
        assert 6 <= len(second.told) - told <= 2 * (6 + 12), second.told
        assert second.guards.keys() <= {first.key}
