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
    """Tick at each deadline; ``reply`` answers queries at once. Return what was sent, and when.

    Without what tests the hairpin: that goes to no server.
    """
    log = []
    while probe.deadline is not None and probe.deadline <= until:
        now = probe.deadline
        sent = [s for s in probe.tick(moment(now))[0] if s.destination in SERVERS]
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
    run(probe, 1024.0)
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


def ports_seen(probe, sent, ports, now=1000.03):
    for query, port in zip(sent, ports, strict=True):
        probe.answered(answer(query, Endpoint(OURS.ip, port)), query.destination, moment(now))
    return probe.report()


@pytest.mark.parametrize(
    ("ports", "mapping", "step", "sure"),
    [
        ((4000, 4001, 4002), "predictable", 1, 1.0),
        ((4000, 4002, 4004), "predictable", 2, 1.0),
        ((4000, 3999, 3997), "predictable", -1, 0.5),
        ((65535, 0 + 1, 3), "predictable", 2, 1.0),
        ((4000, 4006, 4008), "predictable", 2, 0.5),
        ((4000, 51234, 20007), "random", None, None),
        ((4000, 4001, 3990), "random", None, None),
        ((4000, 4000, 4001), "random", None, None),
    ],
)
def test_ports_in_the_order_of_asking_tell_how_the_nat_chooses_them(ports, mapping, step, sure):
    probe, sent = started()
    backwards = ports_seen(probe, sent[::-1], ports[::-1])
    assert (backwards.mapping, backwards.step, backwards.sure) == (mapping, step, sure)
    assert backwards.last_port == (ports[-1] if step else None)


def test_mappings_that_live_on_are_no_samples_and_do_not_change_the_verdict():
    probe, sent = started()
    ports_seen(probe, sent, (4000, 4001, 4002))
    for ports, mapping in (
        ((4000, 4900, 4901), "predictable"),
        ((4000, 4000, 4000), "independent"),
    ):
        sent = probe.start(V4, moment(1200.0))
        assert ports_seen(probe, sent, ports, 1200.02).mapping == mapping
    # Behind another NAT every mapping is new, whenever the servers were asked last.
    sent = probe.start(V4, moment(1300.0))
    for query, port in zip(sent, (7, 9000, 400), strict=True):
        elsewhere = Endpoint(IPv4Address("11.0.9.9"), port)
        probe.answered(answer(query, elsewhere), query.destination, moment(1300.02))
    assert probe.report().mapping == "random"


def test_a_hairpin_is_what_comes_back_and_silence_is_none():
    probe, sent = started()
    probe.answered(answer(sent[0]), SERVERS[0], moment(1000.03))
    assert probe.report().hairpin is None
    own = [s for s in probe.tick(moment(1001.03))[0] if s.destination == OURS]
    assert len(own) == 1
    assert not probe.saw_request(sent[0].data[8:20])
    assert probe.saw_request(own[0].data[8:20])
    assert probe.report().hairpin is True
    silent, sent = started()
    silent.answered(answer(sent[0]), SERVERS[0], moment(1000.03))
    run(silent, 1010.0)
    assert silent.report().hairpin is False


def test_filtering_is_told_by_what_came_in_unasked_and_only_from_outside():
    probe, _ = started()
    probe.saw_unsolicited(Endpoint(IPv4Address("192.168.1.7"), 5), address_known=False)
    assert probe.report().filtering == "unknown"
    probe.saw_unsolicited(SERVERS[4], address_known=True)
    assert probe.report().filtering == "address-dependent"
    probe.saw_unsolicited(SERVERS[4], address_known=False)
    assert probe.report().filtering == "independent"


def test_whether_udp_works_is_known_after_an_answer_or_after_all_were_silent():
    probe, _ = started()
    assert probe.report().udp_v4 is None
    run(probe, 1020.0)
    assert (probe.report().udp_v4, probe.report().udp_v6) == (False, None)
    (query, *_) = probe.start(V4, moment(1030.0))
    probe.answered(answer(query), query.destination, moment(1030.02))
    assert probe.report().udp_v4 is True
