"""The search's parts one by one; whole searches through simulated NATs are in tests/sim."""

from __future__ import annotations

import itertools
import json
from contextlib import suppress
from ipaddress import IPv4Address

import pytest
from aioice import stun
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Entropy, Moment
from nostrvpn.paths.events import SendDatagram
from nostrvpn.paths.hard_nat.plan import (
    MAX_SPANS,
    PlanKind,
    PortSpan,
    SearchPlan,
    parse_plan,
    plan_to_json,
)
from nostrvpn.paths.hard_nat.ports import PORTS, likely_range, port_distance, steps_of
from nostrvpn.paths.hard_nat.roles import PEER_GAP, SEARCHES_PER_HOUR, Role, SearchBudget, role_of
from nostrvpn.paths.hard_nat.samples import Samples, openings_of
from nostrvpn.paths.hard_nat.search import SOURCE_PORTS, Search
from nostrvpn.paths.hard_nat.shots import MAX_PACKETS, RATE, Shot, Shots
from nostrvpn.paths.hard_nat.task import Failed, Found, SearchTask, Tell
from nostrvpn.paths.open_checks import Credentials
from nostrvpn.paths.snapshot import Mapping
from nostrvpn.stun.binding import parse_stun, render_response

PEER = Endpoint(IPv4Address("11.0.2.2"), 40_000)
OURS = IPv4Address("11.0.1.2")
SERVER = Endpoint(IPv4Address("11.0.200.1"), 3478)
PASSWORD = "p" * 24
PLAN = SearchPlan("0a1b2c3d", PlanKind.OPENED, PEER.ip, 1, (PortSpan(5000, 5002),))  # type: ignore[arg-type]


def moment(now):
    return Moment(now, 0.0, Entropy(f"{now}".encode()))


def search(own, peer, *, controlling=True, attempt=0):
    task = SearchTask(
        controlling=controlling,
        own=own,
        peer=peer,
        target=PEER,
        servers=(SERVER,),
        credentials=Credentials("them:us", PASSWORD),
        tie_breaker=1,
        attempt=attempt,
    )
    return Search(task, moment(100.0))


def mapped(query, port):
    message = stun.Message(stun.Method.BINDING, stun.Class.RESPONSE, query.data[8:20])
    message.attributes["XOR-MAPPED-ADDRESS"] = (str(OURS), port)
    return parse_stun(bytes(message))


def answer_all(machine, effects, ports, now):
    """Answer the queries among ``effects`` with ``ports``; return what follows."""
    queries = [e for e in effects if isinstance(e, SendDatagram) and e.destination == SERVER]
    done = []
    for query, port in zip(queries, ports, strict=True):
        if port is not None:
            done += machine.answered(mapped(query, port), SERVER, moment(now))
    return done


def results(machine):
    """Run to the end; return the results on the way."""
    seen = [machine.result]
    while machine.deadline is not None:
        machine.tick(moment(machine.deadline))
        if machine.result != seen[-1]:
            seen.append(machine.result)
    assert machine.finished
    return seen


# --- ports ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ports", "step", "sure"),
    [
        ((10, 11, 12), 1, 1.0),
        ((10, 12, 14, 16), 2, 1.0),
        ((10, 9, 8), -1, 1.0),
        ((10, 11, 14), 1, 0.5),
        ((10, 14, 20), 2, 0.0),
        ((65_534, 65_535, 0), 1, 1.0),
        ((10, 50, 51), None, None),
        ((10, 11, 10), None, None),
        ((10, 11), None, None),
    ],
)
def test_steps_are_told_from_samples(ports, step, sure):
    steps = steps_of(ports)
    if step is None:
        assert steps is None
    else:
        assert steps is not None
        assert (steps.last, steps.step, steps.sure) == (ports[-1], step, sure)


@given(st.integers(0, 65535), st.integers(-32768, 32767))
def test_a_distance_goes_the_short_way_round(first, distance):
    assert port_distance(first, (first + distance) % 65536) == distance


def test_a_block_of_ports_is_guessed_with_a_margin_and_a_wide_spread_is_everything():
    assert likely_range([20_000, 21_000, 22_000]) == range(19_000, 23_001)
    assert likely_range([1_030, 1_050, 1_040]) == range(PORTS.start, 1_115)
    assert likely_range([2_000, 40_000, 60_000]) == PORTS
    assert likely_range([2_000, 2_001]) == PORTS


def bracketed(seen, towards=()):
    samples = Samples(len(seen), towards, 0.0)
    samples.seen = {n: port for n, port in enumerate(seen) if port is not None}
    return [(span.first, span.last, span.towards) for span in openings_of(samples)]


@pytest.mark.parametrize(
    ("seen", "spans"),
    [
        ((10, 12, 14, 16), [(11, 11, 0), (13, 13, 0), (15, 15, 0)]),
        ((10, 14, 18), [(12, 12, 0), (16, 16, 0)]),  # steps of two
        ((16, 14, 12), [(15, 15, 0), (13, 13, 0)]),
        ((10, 12, 16, 18), [(11, 11, 0), (13, 15, 0), (17, 17, 0)]),  # others' flows between
        ((10, 14, 20, 24), [(11, 13, 0), (15, 19, 0), (21, 23, 0)]),
        ((10, None, 14, 16), [(11, 13, 0), (15, 15, 0)]),  # an answer was lost
        ((10, 11, 12), []),  # nothing between: the openings made no mappings
    ],
)
def test_openings_lie_between_the_samples(seen, spans):
    assert bracketed(seen) == spans


def test_where_an_answer_is_lost_it_is_not_known_which_opening_is_which():
    assert bracketed((10, 12, None, 16, 18), (7, 8, 9, 6)) == [(11, 11, 7), (17, 17, 6)]


# --- plans ----------------------------------------------------------------------------------


def test_a_plan_survives_json():
    assert parse_plan(json.loads(json.dumps(plan_to_json(PLAN)))) == PLAN


@pytest.mark.parametrize(
    "change",
    [
        {"search": "0A1B2C3D"},
        {"search": 7},
        {"kind": "other"},
        {"kind": None},
        {"ip": "2d00::1"},
        {"ip": "11.0.0.256"},
        {"ip": 184549378},
        {"step": 65},
        {"step": True},
        {"ports": []},
        {"ports": [[1, 2, 0]] * (MAX_SPANS + 1)},
        {"ports": [[0, 2, 0]]},
        {"ports": [[3, 2, 0]]},
        {"ports": [[1, 65536, 0]]},
        {"ports": [[1, 2]]},
        {"ports": [[1, 2, "0"]]},
        {"ports": "1"},
    ],
)
def test_a_plan_that_breaks_a_bound_is_the_peers_fault(change):
    with pytest.raises(PeerMisbehaved) as caught:
        parse_plan(plan_to_json(PLAN) | change)
    assert caught.value.code == "bad_search_plan"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=5),
    max_leaves=8,
)  # fmt: skip


@given(json_values, st.sampled_from(["search", "kind", "ip", "step", "ports"]))
def test_nothing_a_peer_says_raises_anything_else(value, name):
    for obj in (value, plan_to_json(PLAN) | {name: value}):
        with suppress(PeerMisbehaved):
            parse_plan(obj)


# --- roles and budgets ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "peer", "one", "other"),
    [
        (Mapping.PREDICTABLE, Mapping.INDEPENDENT, Role.OPEN, Role.FOLLOW),
        (Mapping.RANDOM, Mapping.UNKNOWN, Role.OPEN, Role.FOLLOW),
        (Mapping.DEPENDENT, Mapping.INDEPENDENT, Role.OPEN, Role.FOLLOW),
        (Mapping.PREDICTABLE, Mapping.PREDICTABLE, Role.ANSWER, Role.FORECAST),
        (Mapping.DEPENDENT, Mapping.PREDICTABLE, Role.ANSWER, Role.FORECAST),
        (Mapping.RANDOM, Mapping.PREDICTABLE, None, None),
        (Mapping.RANDOM, Mapping.RANDOM, None, None),
        (Mapping.INDEPENDENT, Mapping.UNKNOWN, None, None),
    ],
)
def test_the_two_sides_take_parts_that_fit(own, peer, one, other):
    parts = role_of(own, peer, controlling=True), role_of(peer, own, controlling=False)
    if one is None:
        assert all(isinstance(part, str) for part in parts)
        failed = search(own, peer)
        assert failed.start(moment(1.0)) == []
        assert failed.result == Failed(str(parts[0]))
        assert failed.finished
    else:
        assert parts == (one, other)


def test_one_search_at_a_time_few_an_hour_and_rarely_the_same_peer():
    budget = SearchBudget()
    assert budget.start("a", 0.0)
    assert not budget.start("b", 1.0)
    budget.end("b")
    assert not budget.start("b", 1.0)
    budget.end("a")
    assert budget.start("b", 1.0)
    budget.end("b")
    assert not budget.start("a", PEER_GAP - 1)
    assert budget.start("a", PEER_GAP - 1, asked=True)
    budget.end("a")
    for number in range(SEARCHES_PER_HOUR - 3):
        assert budget.start(f"c{number}", 700.0)
        budget.end(f"c{number}")
    assert not budget.start("late", 3599.0)
    assert budget.free_at("late") == 3600.0
    assert budget.start("late", 3600.0)


def searches(budget: SearchBudget, peers: list[str], begin: float = 0.0) -> list[list[float]]:
    """When each of some eager peers gets a search within two hours, in minutes after ``begin``."""
    got: dict[str, list[float]] = {peer: [] for peer in peers}
    for minute in range(120):
        for peer in peers:
            if budget.start(peer, begin + minute * 60.0, asked=True):
                got[peer].append(minute)
                budget.end(peer)
    return list(got.values())


def test_who_is_alone_with_his_wish_gets_all_searches():
    budget = SearchBudget()
    [alone] = searches(budget, ["a"])
    assert len([minute for minute in alone if minute < 60]) == SEARCHES_PER_HOUR
    assert min(b - a for a, b in itertools.pairwise(alone)) * 60 >= PEER_GAP - 60
    assert len(alone) == 2 * SEARCHES_PER_HOUR


def test_who_comes_later_waits_ten_minutes_at_most():
    budget = SearchBudget()
    searches(budget, ["eager"])
    eager, late = searches(budget, ["eager", "late"], 7200.0)
    assert late[0] * 60 <= PEER_GAP
    # From then on they share.
    assert abs(sum(m >= 60 for m in eager) - sum(m >= 60 for m in late)) <= 2


def test_liars_do_not_use_up_the_searches_of_others():
    *liars, honest = searches(SearchBudget(), [*(f"liar {n}" for n in range(3)), "honest"])
    assert honest[0] == 0
    for hour in (range(60), range(60, 120)):
        assert all(len([m for m in liar if m in hour]) <= 2 for liar in liars)
        assert any(minute in hour for minute in honest)


def test_a_wait_for_a_plan_in_vain_does_not_count_once_the_plan_comes():
    budget = SearchBudget()
    for number in range(2 * SEARCHES_PER_HOUR):
        assert budget.start(f"a{number}", number)
        budget.end(f"a{number}", spent=False)
    assert not budget.start("a0", 100.0)
    assert budget.start("a0", 100.0, asked=True)
    budget.end("a0")
    assert not budget.start("a0", 200.0, asked=True)


def test_shots_are_paced_and_bounded():
    shots = Shots(Credentials("them:us", PASSWORD), True, 1)
    shots.put([Shot(PEER)] * (MAX_PACKETS + 50), 10.0)
    sent, now = [], 10.0
    while (due := shots.deadline) is not None:
        now = max(now, due)
        sent += [now] * len(shots.tick(moment(now)))
    assert len(sent) == MAX_PACKETS
    assert all(later - first >= 1 - 1e-6 for first, later in zip(sent, sent[RATE:], strict=False))
    late = Shots(Credentials("them:us", PASSWORD), True, 1)
    late.put([Shot(PEER)] * 500, 10.0)
    assert len(late.tick(moment(60.0))) <= 10


# --- the machine ----------------------------------------------------------------------------


def test_a_nat_that_counts_is_told_in_one_plan_and_the_answered_check_is_the_hit():
    machine = search(Mapping.PREDICTABLE, Mapping.INDEPENDENT)
    burst = machine.start(moment(100.0))
    assert [e.destination for e in burst] == [SERVER, PEER, SERVER, PEER, SERVER, PEER, SERVER]
    assert {e.ttl for e in burst if e.destination == PEER} == {4}
    ports = [e.source_port for e in burst]
    assert len(set(ports)) == 7
    assert set(ports) <= set(machine.ports) <= set(SOURCE_PORTS)
    (tell,) = answer_all(machine, burst, (500, 502, 504, 506), 100.05)
    assert isinstance(tell, Tell)
    assert tell.plan.kind is PlanKind.OPENED
    assert tell.plan.ip == OURS
    assert [span.first for span in tell.plan.ports] == [501, 503, 505]
    hit = burst[3].source_port
    assert machine.asked(Endpoint(IPv4Address("11.0.9.9"), PEER.port), hit, moment(100.3)) == []
    assert machine.asked(PEER, None, moment(100.3)) == []
    (back,) = machine.asked(PEER, hit, moment(100.3))
    assert (back.destination, back.source_port, back.ttl) == (PEER, hit, None)
    reply = parse_stun(render_response(back.data[8:20], PEER, PASSWORD))
    machine.answered(reply, PEER, moment(100.4))
    assert results(machine) == [None, Found(hit, PEER)]


def test_an_answer_that_is_forged_or_from_elsewhere_is_no_hit():
    machine = search(Mapping.INDEPENDENT, Mapping.PREDICTABLE)
    assert machine.start(moment(100.0)) == []
    (check,) = machine.told(PLAN, moment(101.0))
    assert check.destination == Endpoint(PEER.ip, 5000)
    forged = parse_stun(render_response(check.data[8:20], PEER, "x" * 24))
    elsewhere = parse_stun(render_response(check.data[8:20], PEER, PASSWORD))
    for message, source, code in (
        (forged, check.destination, "forged_answer"),
        (elsewhere, PEER, "wrong_source"),
    ):
        with pytest.raises(PeerMisbehaved) as caught:
            machine.answered(message, source, moment(101.1))
        assert caught.value.code == code
        assert machine.result is None
    machine.answered(elsewhere, check.destination, moment(101.1))
    assert machine.result == Found(None, check.destination)


def test_a_plan_twice_is_one_plan_and_one_for_another_address_is_refused():
    machine = search(Mapping.INDEPENDENT, Mapping.PREDICTABLE)
    machine.start(moment(100.0))
    assert len(machine.told(PLAN, moment(101.0))) == 1
    assert machine.told(PLAN, moment(101.0)) == []
    foreign = SearchPlan("11111111", PlanKind.OPENED, IPv4Address("11.0.9.9"), 1, PLAN.ports)
    with pytest.raises(PeerMisbehaved) as caught:
        machine.told(foreign, moment(101.5))
    assert caught.value.code == "foreign_search_plan"


def test_a_plan_that_fits_no_part_of_ours_does_nothing():
    machine = search(Mapping.PREDICTABLE, Mapping.INDEPENDENT)
    machine.start(moment(100.0))
    assert machine.told(PLAN, moment(101.0)) == []


def test_lost_samples_are_asked_again_from_other_ports_and_silence_is_a_reason():
    machine = search(Mapping.PREDICTABLE, Mapping.INDEPENDENT)
    first = machine.start(moment(100.0))
    assert answer_all(machine, first, (500, None, None, 506), 100.1) == []
    second = machine.tick(moment(101.0))
    assert len(second) == 7
    assert not {e.source_port for e in first} & {e.source_port for e in second}
    machine.tick(moment(102.0))
    assert machine.tick(moment(103.0)) == []
    assert isinstance(machine.result, Failed)
    assert "STUN" in machine.result.reason


def test_openings_without_a_mapping_are_made_again_without_a_low_ttl():
    machine = search(Mapping.PREDICTABLE, Mapping.INDEPENDENT)
    burst = machine.start(moment(100.0))
    again = answer_all(machine, burst, (500, 501, 502, 503), 100.1)
    assert {e.ttl for e in again if e.destination == PEER} == {None}
