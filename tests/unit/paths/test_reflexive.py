# mypy: allow-untyped-calls
from ipaddress import IPv4Address, IPv6Address

import pytest
from aioice import stun

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Entropy, Moment
from nostrvpn.paths.reflexive import ReflexiveProbe
from nostrvpn.paths.settings import PathSettings
from nostrvpn.stun.binding import parse_stun

SERVERS = tuple(Endpoint(IPv4Address(f"11.0.200.{n}"), 3478) for n in range(1, 6))
OURS = Endpoint(IPv4Address("11.0.1.2"), 4000)
V4 = frozenset({4})


def moment(now):
    return Moment(now, 0.0, Entropy(f"{now}".encode()))


def answer(query, mapped=OURS, kind=stun.Class.RESPONSE):
    message = stun.Message(stun.Method.BINDING, kind, query.data[8:20])
    if mapped is not None:
        message.attributes["XOR-MAPPED-ADDRESS"] = (str(mapped.ip), mapped.port)
    return parse_stun(bytes(message))


def started(servers=SERVERS, versions=V4):
    probe = ReflexiveProbe(servers, PathSettings())
    return probe, probe.start(versions, moment(1000.0))


def run(probe, until, reply=None):
    """Tick at each deadline; ``reply`` answers queries at once. Return what was sent, and when."""
    log = []
    while probe.deadline is not None and probe.deadline <= until:
        now = probe.deadline
        sent, _ = probe.tick(moment(now))
        log += [(round(now - 1000, 3), effect) for effect in sent]
        for effect in sent if reply else ():
            probe.answered(answer(effect), effect.destination, moment(now + 0.02))
    return log


def test_the_first_answer_is_usable_at_once_and_the_mapping_needs_two():
    probe, sent = started()
    assert [s.destination for s in sent] == list(SERVERS[:3])
    assert probe.pending
    assert probe.answered(answer(sent[1]), SERVERS[1], moment(1000.03))
    assert not probe.pending
    assert probe.endpoints == (OURS,)
    assert probe.report().mapping == "unknown"
    assert not probe.answered(answer(sent[0]), SERVERS[0], moment(1000.04))
    assert probe.report().mapping == "independent"
    assert probe.report().servers[1].rtt_ms == pytest.approx(30)


def test_a_dependent_mapping_is_told_and_changes_no_candidate():
    probe, sent = started()
    probe.answered(answer(sent[0]), SERVERS[0], moment(1000.03))
    other = Endpoint(OURS.ip, 4001)
    assert not probe.answered(answer(sent[1], other), SERVERS[1], moment(1000.04))
    assert probe.report().mapping == "dependent"
    assert probe.endpoints == (OURS,)


def test_queries_are_repeated_after_100_ms_first_and_dead_servers_are_replaced():
    probe, _ = started()
    log = run(probe, 1000.2)
    assert [(t, s.destination) for t, s in log] == [(0.1, s) for s in SERVERS[:3]]
    later = run(probe, 1010.0)
    assert {s.destination for _, s in later} == set(SERVERS)
    assert not probe.pending


def test_one_query_every_25_seconds_keeps_the_address_fresh():
    probe, sent = started()
    for query in sent:
        probe.answered(answer(query), query.destination, moment(1000.03))
    log = run(probe, 1500.0, reply=True)
    assert [t for t, _ in log] == [25.0 * n for n in range(1, 21)]
    assert {s.destination for _, s in log} == {SERVERS[0]}


def test_an_address_that_changed_is_news_and_one_that_nobody_confirms_is_dropped():
    probe, sent = started()
    for query in sent:
        probe.answered(answer(query), query.destination, moment(1000.03))
    (query,), _ = probe.tick(moment(1025.0))
    moved = Endpoint(OURS.ip, 4444)
    assert probe.answered(answer(query, moved), query.destination, moment(1025.02))
    assert probe.endpoints == (moved,)
    run(probe, 1100.0)
    assert probe.endpoints == ()
    run(probe, 1200.0, reply=True)
    assert probe.endpoints == (OURS,)


@pytest.mark.parametrize(
    ("mapped", "source", "kind", "code"),
    [
        (OURS, SERVERS[1], stun.Class.RESPONSE, "wrong_source"),
        (None, SERVERS[0], stun.Class.RESPONSE, "useless_stun_answer"),
        (OURS, SERVERS[0], stun.Class.ERROR, "useless_stun_answer"),
        (Endpoint(IPv4Address("127.0.0.1"), 5), SERVERS[0], stun.Class.RESPONSE, "useless_stun_answer"),
        (Endpoint(IPv6Address("2d00::1"), 5), SERVERS[0], stun.Class.RESPONSE, "useless_stun_answer"),
    ],
)  # fmt: skip
def test_answers_that_are_no_use(mapped, source, kind, code):
    probe, sent = started()
    with pytest.raises(PeerMisbehaved) as caught:
        probe.answered(answer(sent[0], mapped, kind), source, moment(1000.02))
    assert caught.value.code == code
    assert probe.endpoints == ()
    assert probe.pending


def test_without_servers_or_families_nothing_is_awaited():
    assert not started(servers=())[0].pending
    probe, sent = started(versions=frozenset({6}))
    assert not probe.pending
    assert sent == []
    assert probe.deadline is None
    more = probe.use_servers((Endpoint(IPv6Address("2d00::5"), 3478),), moment(1001.0))
    assert len(more) == 1
    assert probe.pending
