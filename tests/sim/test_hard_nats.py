"""The search for a path through hard NATs, alone, in virtual time: two machines, two NATs, a STUN
server, and a way for plans. ``python -m tests.sim.test_hard_nats`` prints the table of
docs/hard-nats.md.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Address

import pytest

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Entropy, Moment
from nostrvpn.paths.events import SendDatagram
from nostrvpn.paths.hard_nat import shots as hard_nat_shots
from nostrvpn.paths.hard_nat.plan import SearchPlan, parse_plan, plan_to_json
from nostrvpn.paths.hard_nat.search import Search
from nostrvpn.paths.hard_nat.task import Failed, Found, SearchTask, Tell
from nostrvpn.paths.open_checks import Credentials
from nostrvpn.paths.snapshot import Mapping
from nostrvpn.stun.binding import (
    Check,
    StunKind,
    parse_stun,
    render_check,
    render_query,
    render_response,
)
from tests.sim.nats import ConeNat, HardNat, LinuxNat, Nat

SERVERS = tuple(Endpoint(IPv4Address(f"11.0.200.{n}"), 3478) for n in (1, 2))
CORE_HOPS = 8
# Between packets of one burst: what a Python process takes to make and send one.
PACKET_TIME = 0.0002
SIGNALING_REPEATS = (0.0, 2.0, 6.0)


@dataclass
class Kind:
    """A NAT to build: ``easy``, ``linux``, ``accept-input``, ``counts`` or ``draws``."""

    name: str
    step: int = 1
    noise: float = 0.0
    ports: range = range(1024, 65536)
    limit: int = 1 << 30
    far: bool = False  # its mapping is made beyond the reach of low-TTL packets

    @property
    def mapping(self) -> Mapping:
        known = {"counts": Mapping.PREDICTABLE, "draws": Mapping.RANDOM}
        return known.get(self.name, Mapping.INDEPENDENT)

    def build(self, ip: IPv4Address, rng: random.Random) -> Nat:
        if self.name == "easy":
            return ConeNat(ip, rng, filtering="port")
        if self.name in ("linux", "accept-input"):
            return LinuxNat(ip, rng, accept_input=self.name == "accept-input")
        step = self.step if self.name == "counts" else None
        return HardNat(ip, rng, step=step, noise=self.noise, ports=self.ports, limit=self.limit)


@dataclass
class Weather:
    delay: float = 0.03
    loss: float = 0.0
    signal_delay: float = 0.2
    signal_loss: float = 0.0


@dataclass
class Side:
    nat: Nat
    kind: Kind
    host: IPv4Address
    port: int
    password: str
    search: Search | None = None
    reflexive: Endpoint | None = None
    answered: int = 0
    forged: int = 0
    found_at: float | None = None
    guesses: list[float] = field(default_factory=list)


class Lazy:
    """A check that is made bytes only if somebody reads it: most guesses hit nothing."""

    def __init__(self, check: Check) -> None:
        self.check = check

    def __bytes__(self) -> bytes:
        return render_check(self.check)


@contextmanager
def lazy_checks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hard_nat_shots, "render_check", Lazy)
        yield


class World:
    def __init__(self, one: Kind, other: Kind, seed: int, weather: Weather | None = None) -> None:
        self.weather = weather or Weather()
        self.rng = random.Random(seed)
        self.seed = seed
        self.now = 1000.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._entropy = itertools.count()
        self.sides: list[Side] = []
        self.tamper: Callable[[SearchPlan], SearchPlan] = lambda plan: plan
        for number, kind in enumerate((one, other), 1):
            nat = kind.build(IPv4Address(f"11.0.{number}.2"), random.Random(self.rng.random()))
            host = IPv4Address(f"192.168.{number}.2")
            port = self.rng.randrange(20_000, 60_000)
            side = Side(nat, kind, host, port, password=f"{number}" * 24)
            side.reflexive = nat.outbound(Endpoint(host, port), SERVERS[0], self.now)
            self.sides.append(side)
        for side in self.sides:
            # The ordinary round's checks have made a mapping towards the peer's endpoint already.
            peer = self.peer(side)
            assert peer.reflexive is not None
            side.nat.outbound(Endpoint(side.host, side.port), peer.reflexive, self.now)
        self.now += 1.0

    def peer(self, side: Side) -> Side:
        return self.sides[1 - self.sides.index(side)]

    def moment(self) -> Moment:
        return Moment(self.now, 0.0, Entropy(f"{self.seed}/{next(self._entropy)}".encode()))

    def start(self, attempt: int = 0) -> None:
        for side in self.sides:
            peer = self.peer(side)
            assert peer.reflexive is not None
            task = SearchTask(
                controlling=side is self.sides[0],
                own=side.kind.mapping,
                peer=peer.kind.mapping,
                target=peer.reflexive,
                servers=SERVERS,
                credentials=Credentials("peer:us", peer.password),
                tie_breaker=7,
                attempt=attempt,
            )
            side.search = Search(task, self.moment())
        for side in self.sides:
            search = side.search
            assert search is not None
            self.perform(side, search.start(self.moment()))

    def at(self, delay: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + delay, next(self._order), call))

    def run(self, duration: float = 70.0) -> bool:
        """Until both have found each other and nothing more is under way, or all is over."""
        end = self.now + duration
        while True:
            deadlines = [
                (side.search.deadline, index)
                for index, side in enumerate(self.sides)
                if side.search and side.search.deadline is not None
            ]
            due, index = min(deadlines, default=(None, 0))
            if self._heap and (due is None or self._heap[0][0] <= due):
                self.now, _, call = heapq.heappop(self._heap)
                call()
            elif due is not None and due <= end:
                self.now = max(self.now, due)
                side = self.sides[index]
                assert side.search is not None
                self.perform(side, side.search.tick(self.moment()))
            else:
                return self.met()
            if self.now > end:
                return self.met()

    def met(self) -> bool:
        """Both found, and data of either reaches the other: WireGuard follows what arrives."""
        if not all(side.search and isinstance(side.search.result, Found) for side in self.sides):
            return False
        one, other = self.sides
        return self.reaches(one) and self.reaches(other)

    def reaches(self, side: Side) -> bool:
        """Whether a packet of ``side`` on its path gets to the very port its peer has pinned."""
        peer = self.peer(side)
        assert side.search is not None
        assert peer.search is not None
        mine, theirs = side.search.result, peer.search.result
        assert isinstance(mine, Found)
        assert isinstance(theirs, Found)
        source = Endpoint(side.host, mine.local_port or side.port)
        outer = side.nat.outbound(source, mine.remote, self.now)
        if outer is None or outer != theirs.remote:
            return False
        inner = peer.nat.inbound(mine.remote.port, outer, self.now)
        return inner == Endpoint(peer.host, theirs.local_port or peer.port)

    # --- carrying ---------------------------------------------------------------------------

    def perform(self, side: Side, effects: list[SendDatagram | Tell]) -> None:
        if side.search and side.search.result and side.found_at is None:
            side.found_at = self.now
        for number, effect in enumerate(effects):
            if isinstance(effect, Tell):
                text = json.dumps(plan_to_json(effect.plan))
                for repeat in SIGNALING_REPEATS:
                    if self.rng.random() >= self.weather.signal_loss:
                        delay = self.weather.signal_delay + repeat
                        self.at(delay, partial(self.told, side, text))
            else:
                self.at(number * PACKET_TIME, partial(self.send, side, effect))

    def told(self, sender: Side, text: str) -> None:
        receiver = self.peer(sender)
        assert receiver.search is not None
        plan = self.tamper(parse_plan(json.loads(text)))
        try:
            self.perform(receiver, receiver.search.told(plan, self.moment()))
        except PeerMisbehaved:
            receiver.forged += 1

    def send(self, side: Side, effect: SendDatagram) -> None:
        side.guesses.append(self.now)
        source = Endpoint(side.host, effect.source_port or side.port)
        low = effect.ttl is not None and effect.ttl < CORE_HOPS
        if low and side.kind.far:
            return
        outer = side.nat.outbound(source, effect.destination, self.now)
        if outer is None or low or self.rng.random() < self.weather.loss:
            return
        arrives = Arrival(effect.data, outer, effect.destination)
        self.at(self.weather.delay, lambda: self.cross(arrives))

    def cross(self, arrival: Arrival) -> None:
        if arrival.to in SERVERS:
            if self.rng.random() >= self.weather.loss:
                request = parse_stun(bytes(arrival.data))
                data = render_response(request.transaction, arrival.source, "unused")
                back = Arrival(data, arrival.to, arrival.source)
                self.at(self.weather.delay, lambda: self.cross(back))
            return
        for side in self.sides:
            if side.nat.ip == arrival.to.ip:
                inner = side.nat.inbound(arrival.to.port, arrival.source, self.now)
                if inner is not None:
                    self.arrive(side, bytes(arrival.data), arrival.source, inner.port)

    def arrive(self, side: Side, data: bytes, source: Endpoint, port: int) -> None:
        search = side.search
        assert search is not None
        message = parse_stun(data)
        to = None if port == side.port else port
        if message.kind is StunKind.REQUEST:
            if not message.is_authentic(side.password):
                side.forged += 1
                return
            side.answered += 1
            answer = render_response(message.transaction, source, side.password)
            self.send(side, SendDatagram(answer, source, source_port=to))
            self.perform(side, search.asked(source, to, self.moment()))
        elif search.knows(message.transaction):
            try:
                self.perform(side, search.answered(message, source, self.moment()))
            except PeerMisbehaved:
                side.forged += 1


@dataclass
class Arrival:
    data: bytes | Lazy
    source: Endpoint
    to: Endpoint


EASY = Kind("easy")
COUNTS = Kind("counts")
DRAWS = Kind("draws")
BLOCK = replace(DRAWS, ports=range(20_480, 22_528))


@dataclass
class Outcome:
    share: float
    median_s: float
    worst_s: float
    packets: tuple[int, int]


def outcomes(
    one: Kind, other: Kind, seeds: range, weather: Weather | None = None, attempt: int = 0
) -> Outcome:
    met, times, packets = 0, [], [0, 0]
    with lazy_checks():
        for seed in seeds:
            world = World(one, other, seed, weather)
            began = world.now
            world.start(attempt)
            if world.run():
                met += 1
                times.append(max(side.found_at or 0.0 for side in world.sides) - began)
            for index, side in enumerate(world.sides):
                assert side.search is not None
                packets[index] += side.search.packets
    count = len(seeds)
    return Outcome(
        met / count,
        statistics.median(times) if times else 0.0,
        max(times, default=0.0),
        (packets[0] // count, packets[1] // count),
    )


LOSSY = Weather(delay=0.08, loss=0.1, signal_delay=1.0, signal_loss=0.2)
SLOW = Weather(signal_delay=3.0)


def both_ways(one: Kind, other: Kind) -> list[tuple[Kind, Kind]]:
    return [(one, other), (other, one)]


@pytest.mark.parametrize("easy", ["easy", "linux", "accept-input"])
@pytest.mark.parametrize("step", [1, 2, -1, -4])
def test_a_nat_that_counts_is_met_by_one_burst_and_a_few_checks(step, easy):
    for one, other in both_ways(Kind("counts", step=step), Kind(easy)):
        result = outcomes(one, other, range(30))
        assert result.share == 1.0
        assert sum(result.packets) < 30
        assert result.worst_s < 1.5


def test_other_hosts_flows_and_slow_signaling_cost_nothing_that_brackets_do_not_pay():
    busy = Kind("counts", noise=40)
    assert outcomes(busy, EASY, range(60), SLOW).share >= 0.98
    assert outcomes(busy, EASY, range(60), LOSSY).share >= 0.9


@pytest.mark.parametrize("steps", [(1, 1), (1, 2), (2, -1), (-1, -1)])
def test_two_nats_that_count_meet(steps):
    one, other = (Kind("counts", step=step) for step in steps)
    result = outcomes(one, other, range(40))
    assert result.share == 1.0
    assert sum(result.packets) < 60


def test_two_busy_nats_that_count_mostly_meet():
    busy = Kind("counts", noise=5)
    assert outcomes(busy, busy, range(60)).share >= 0.85
    assert outcomes(busy, busy, range(60), LOSSY).share >= 0.85
    # The counter runs away between forecast and sweep: it is asked again and again.
    busier = Kind("counts", noise=40)
    assert outcomes(busier, busier, range(30)).share >= 0.9
    # Everything foretold is behind us when the plans have been exchanged: known the second time.
    assert outcomes(replace(busier, noise=20), busier, range(30), SLOW).share >= 0.7


def test_a_nat_that_draws_its_ports_is_met_by_the_birthday_paradox():
    for one, other in both_ways(DRAWS, EASY):
        result = outcomes(one, other, range(30))
        assert result.share >= 0.9
        assert sum(result.packets) <= 1_400
        assert result.worst_s < 20


def test_a_carriers_block_of_ports_is_found_out_and_makes_it_quick():
    result = outcomes(BLOCK, EASY, range(30))
    assert result.share == 1.0
    assert result.packets[1] < 60


def test_a_small_table_costs_hits_and_no_more():
    small = replace(DRAWS, limit=128)
    result = outcomes(small, EASY, range(20))
    assert 0.5 <= result.share < 1.0


def test_a_mapping_that_is_made_far_away_needs_openers_that_get_there():
    far = replace(COUNTS, far=True)
    assert outcomes(far, EASY, range(20)).share == 1.0
    far = replace(DRAWS, far=True)
    assert outcomes(far, EASY, range(8)).share == 0.0
    assert outcomes(far, EASY, range(8), attempt=1).share >= 0.75


@pytest.mark.parametrize("pair", [(DRAWS, DRAWS), (DRAWS, COUNTS), (COUNTS, DRAWS), (EASY, EASY)])
def test_what_cannot_be_found_is_not_tried(pair):
    world = World(pair[0], pair[1], 1)
    world.start()
    for side in world.sides:
        assert side.search is not None
        assert isinstance(side.search.result, Failed)
        assert side.search.finished
        assert side.search.packets == 0
        assert side.search.deadline is None


@pytest.mark.parametrize("pair", [(COUNTS, EASY), (COUNTS, COUNTS), (DRAWS, EASY)])
def test_a_peer_that_is_not_there_ends_the_search_in_time(pair):
    world = World(pair[0], pair[1], 3)
    world.start()
    world.told = lambda sender, text: None  # type: ignore[method-assign]
    began = world.now
    assert not world.run()
    for side in world.sides:
        assert side.search is not None
        assert isinstance(side.search.result, Failed), side.search.result
        assert side.search.finished
    assert world.now - began < 40


def test_no_more_than_100_packets_in_any_second_and_only_to_the_peer():
    with lazy_checks():
        for pair in ((DRAWS, EASY), (COUNTS, COUNTS), (replace(COUNTS, noise=20), EASY)):
            world = World(pair[0], pair[1], 5)
            world.start()
            world.run()
            for side in world.sides:
                assert side.search is not None
                assert side.search.packets <= hard_nat_shots.MAX_PACKETS
                for first, later in zip(side.guesses, side.guesses[115:], strict=False):
                    assert later - first > 1.0


def test_a_plan_for_somebody_elses_address_is_refused():
    world = World(DRAWS, EASY, seed=2)
    world.tamper = lambda plan: replace(plan, ip=IPv4Address("11.0.77.7"))
    world.start()
    with lazy_checks():
        assert not world.run()
    follower = world.sides[1]
    assert follower.forged == len(SIGNALING_REPEATS)
    assert follower.search is not None
    assert follower.search.packets == 0


def test_only_the_peers_own_word_is_a_hit():
    world = World(COUNTS, EASY, seed=2)
    world.start()
    world.sides[1].password = "x" * 24  # whoever answers in the peer's place does not have its key
    assert not world.run()
    assert sum(side.forged for side in world.sides) > 0
    query = parse_stun(render_query(b"0" * 12))
    search = world.sides[0].search
    assert search is not None
    assert not search.knows(query.transaction)


def measure(seeds: int) -> None:
    """Print the table of docs/hard-nats.md."""
    easy, busy, busier = EASY, Kind("counts", noise=5), Kind("counts", noise=20)
    rows: list[tuple[str, Kind, Kind, Weather | None, int]] = [
        ("counts x easy", COUNTS, easy, None, seeds),
        ("counts x easy, 20 flows/s", busier, easy, None, seeds),
        ("counts x easy, 20 flows/s, bad", busier, easy, LOSSY, seeds),
        ("counts by -2 x easy", Kind("counts", step=-2), easy, None, seeds),
        ("counts x counts", COUNTS, COUNTS, None, seeds),
        ("counts x counts, 5 flows/s", busy, busy, None, seeds),
        ("counts x counts, 20 flows/s", busier, busier, None, seeds),
        ("counts x counts, 5 flows/s, bad", busy, busy, LOSSY, seeds),
        ("counts x counts, 5 flows/s, slow", busy, busy, SLOW, seeds),
        ("counts x counts, 20 flows/s, slow", busier, busier, SLOW, seeds),
        ("draws x easy", DRAWS, easy, None, seeds // 4),
        ("draws x easy, bad", DRAWS, easy, LOSSY, seeds // 4),
        ("draws of 2048 x easy", BLOCK, easy, None, seeds // 4),
        ("draws of 8192 x easy", replace(DRAWS, ports=range(8192, 16384)), easy, None, seeds // 4),
        ("draws, table of 512 x easy", replace(DRAWS, limit=512), easy, None, seeds // 4),
        ("draws, table of 128 x easy", replace(DRAWS, limit=128), easy, None, seeds // 4),
    ]
    for name, one, other, weather, count in rows:
        began = time.monotonic()
        result = outcomes(one, other, range(count), weather)
        sys.stdout.write(
            f"| {name} | {count} | {result.share * 100:.1f} % | {result.median_s:.2f} s | "
            f"{result.worst_s:.1f} s | {result.packets[0]} + {result.packets[1]} | "
            f"({time.monotonic() - began:.0f} s)\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    measure(int(sys.argv[1]) if len(sys.argv) > 1 else 2_000)
