# mypy: allow-untyped-calls
"""The machine under attack, and what its effects promise. Connecting is tests/sim's matter."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nostrvpn.endpoint import Endpoint
from nostrvpn.machine import Entropy, Moment, Tick
from nostrvpn.paths.agent import (
    AddPeer,
    DatagramReceived,
    Describe,
    LocalAddress,
    LocalAddresses,
    NetworkChanged,
    Paths,
    RemoteDescription,
    RemovePeer,
    Restart,
    SendDatagram,
    StunServers,
    TunnelObserved,
    UseEndpoint,
)
from nostrvpn.paths.candidates import Candidate, CandidateKind
from nostrvpn.paths.description import Description
from nostrvpn.stun.binding import Check, StunKind, parse_stun, render_check, render_response

PEER = "ab" * 32
HOME = IPv4Address("192.168.7.2")
PUBLIC = Endpoint(IPv4Address("11.0.2.2"), 4000)
PRIVATE = Endpoint(IPv4Address("192.168.1.9"), 4000)
STRANGER = Endpoint(IPv4Address("11.6.6.6"), 666)
REMOTE = Description(
    "f" * 16,
    1,
    None,
    "theirs",
    "t" * 32,
    (
        Candidate(CandidateKind.HOST, PRIVATE, 2),
        Candidate(CandidateKind.REFLEXIVE, PUBLIC, 1),
    ),
)


class Driver:
    def __init__(self, *, controlling=True):
        self.now = 1000.0
        self.count = 0
        self.sent = []
        self.paths = Paths()
        self.do(LocalAddresses((LocalAddress(HOME, "eth0", 24),), 5555))
        self.ours = self.described(self.do(AddPeer(PEER, controlling)))

    @property
    def link(self):
        snapshot = self.paths.snapshot(PEER)
        assert snapshot is not None
        return snapshot

    def do(self, event):
        self.count += 1
        moment = Moment(self.now, 0.0, Entropy(str(self.count).encode()))
        return self.paths.step(event, moment)

    def wait(self, duration):
        """Let time pass, ticking at each deadline; return the effects."""
        end, effects = self.now + duration, []
        while self.paths.deadline is not None and self.paths.deadline <= end:
            self.now = max(self.now, self.paths.deadline)
            effects += self.do(Tick())
        self.now = end
        return effects

    def receive(self, data, source=PUBLIC):
        return self.do(DatagramReceived(data, source, HOME))

    @staticmethod
    def described(effects):
        return next(e.description for e in effects if isinstance(e, Describe))

    def check(self, number=0, **changes):
        fields = {
            "transaction": number.to_bytes(12, "big"),
            "username": f"{self.ours.ufrag}:{REMOTE.ufrag}",
            "password": self.ours.password,
            "priority": 1,
            "controlling": False,
            "tie_breaker": 1,
            "use_candidate": False,
        }
        return render_check(Check(**(fields | changes)))


def sends(effects):
    return [e for e in effects if isinstance(e, SendDatagram)]


def kinds(effects):
    return [(parse_stun(e.data).kind, e.destination) for e in sends(effects)]


def test_an_answer_leaves_after_the_openers_and_normal_checks_of_nated_pairs_wait():
    driver = Driver()
    effects = driver.do(RemoteDescription(PEER, REMOTE))
    opener = next(i for i, e in enumerate(effects) if isinstance(e, SendDatagram) and e.ttl)
    answer = next(i for i, e in enumerate(effects) if isinstance(e, Describe))
    assert opener < answer
    assert effects[answer].description.answers == REMOTE.session
    assert all(e.ttl == 4 for e in sends(effects) if e.destination == PUBLIC)
    assert PRIVATE in {e.destination for e in sends(effects) if e.ttl is None}
    early = sends(driver.wait(0.69))
    assert all(e.ttl == 4 for e in early if e.destination == PUBLIC)
    assert PUBLIC in {e.destination for e in sends(driver.wait(0.1)) if e.ttl is None}


def test_the_first_authentic_check_ends_the_wait():
    driver = Driver()
    driver.do(RemoteDescription(PEER, REMOTE))
    effects = driver.receive(driver.check())
    assert kinds(effects) == [(StunKind.RESPONSE, PUBLIC), (StunKind.REQUEST, PUBLIC)]
    assert all(e.ttl is None for e in sends(effects))


def test_an_offerer_checks_as_soon_as_it_is_answered():
    driver = Driver()
    effects = driver.do(RemoteDescription(PEER, replace(REMOTE, answers=driver.ours.session)))
    assert not [e for e in effects if isinstance(e, Describe)]
    to_public = [e.ttl for e in sends(effects) if e.destination == PUBLIC]
    assert to_public == [4, None]


def connected(driver):
    driver.do(RemoteDescription(PEER, replace(REMOTE, answers=driver.ours.session)))
    effects = driver.receive(driver.check(1))
    query = sends(effects)[-1] if len(sends(effects)) > 1 else None
    if query is None:
        query = [e for e in sends(driver.wait(1)) if e.destination == PUBLIC][-1]
    return driver.receive(render_response(query.data[8:20], PUBLIC, REMOTE.password))


def test_an_authentic_answer_from_the_right_place_makes_the_path():
    driver = Driver()
    effects = connected(driver)
    assert [e.endpoint for e in effects if isinstance(e, UseEndpoint)] == [PUBLIC]
    snapshot = driver.link
    assert (snapshot.state, snapshot.path) == ("validated", "none")
    driver.do(TunnelObserved(PEER, None, 0, 148))
    driver.now += 0.1
    driver.do(TunnelObserved(PEER, 0.01, 92, 180))
    snapshot = driver.link
    assert (snapshot.state, snapshot.path) == ("connected", "direct")
    assert snapshot.connected_in_ms is not None


def answer_to(driver):
    effects = driver.do(RemoteDescription(PEER, replace(REMOTE, answers=driver.ours.session)))
    return next(e for e in sends(effects) if e.destination == PUBLIC).data[8:20]


@pytest.mark.parametrize(
    ("password", "source", "code"),
    [
        ("x" * 32, PUBLIC, "forged_answer"),
        (REMOTE.password, STRANGER, "wrong_source"),
        (REMOTE.password, replace(PUBLIC, port=4001), "wrong_source"),
    ],
)
def test_answers_that_prove_nothing(password, source, code):
    driver = Driver()
    data = render_response(answer_to(driver), PUBLIC, password)
    assert driver.receive(data, source) == []
    assert driver.paths.counters == {code: 1}
    assert driver.link.endpoint is None


def test_an_answer_is_taken_once():
    driver = Driver()
    data = render_response(answer_to(driver), PUBLIC, REMOTE.password)
    driver.receive(data)
    assert driver.receive(data) == []
    assert driver.paths.counters == {"unknown_transaction": 1}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"password": "x" * 32}, "forged_check"),
        ({"password": REMOTE.password}, "forged_check"),
        ({"username": "nobody:theirs"}, "unknown_user"),
        ({"username": ""}, "unknown_user"),
        ({"controlling": True}, "role_conflict"),
    ],
)
def test_checks_that_are_not_answered(change, code):
    driver = Driver()
    driver.do(RemoteDescription(PEER, REMOTE))
    assert driver.receive(driver.check(**change)) == []
    assert driver.paths.counters == {code: 1}


def test_our_own_packets_reflected_are_dropped():
    driver = Driver()
    effects = driver.do(RemoteDescription(PEER, replace(REMOTE, answers=driver.ours.session)))
    for sent in sends(effects):
        assert driver.receive(sent.data, STRANGER) == []
    assert set(driver.paths.counters) == {"unknown_user"}


def test_a_check_replayed_from_elsewhere_is_dropped_and_a_retransmission_is_answered():
    driver = Driver()
    driver.do(RemoteDescription(PEER, REMOTE))
    data = driver.check(7)
    assert driver.receive(data)
    assert driver.receive(data, STRANGER) == []
    assert driver.paths.counters == {"replayed_check": 1}
    assert (StunKind.RESPONSE, PUBLIC) in kinds(driver.receive(data))


def test_answers_per_source_are_bounded_and_never_larger_than_the_check():
    driver = Driver()
    driver.do(RemoteDescription(PEER, REMOTE))
    answered = 0
    for number in range(100):
        data = driver.check(number)
        for sent in sends(driver.receive(data, STRANGER)):
            if parse_stun(sent.data).kind is StunKind.RESPONSE:
                answered += 1
                assert len(sent.data) <= len(data)
                assert sent.source_ip == HOME
    assert answered == 20
    assert driver.paths.counters == {"rate_limited": 80}
    assert driver.receive(driver.check(500))


def test_a_check_before_the_description_is_answered_and_checked_back_later():
    driver = Driver()
    prflx = replace(PUBLIC, port=9999)
    assert kinds(driver.receive(driver.check(), prflx)) == [(StunKind.RESPONSE, prflx)]
    effects = driver.do(RemoteDescription(PEER, replace(REMOTE, answers=driver.ours.session)))
    assert (StunKind.REQUEST, prflx) in kinds(effects)


def test_sources_that_nobody_may_name_are_never_probed():
    driver = Driver()
    driver.do(RemoteDescription(PEER, REMOTE))
    for text in ("127.0.0.1", "224.0.0.1"):
        driver.receive(driver.check(int(text[:2])), Endpoint(IPv4Address(text), 5))
    assert not [e for e in sends(driver.wait(10)) if e.destination.ip.is_loopback]
    assert driver.link.counters == {"refused_source": 2}


def test_a_new_session_of_the_peer_replaces_the_old_one_quietly():
    driver = Driver()
    connected(driver)
    fresh = replace(REMOTE, session="e" * 16, ufrag="fresh1", password="n" * 32)
    effects = driver.do(RemoteDescription(PEER, fresh))
    assert not [e for e in effects if isinstance(e, UseEndpoint)]
    assert driver.described(effects).answers == fresh.session
    assert driver.link.state == "validated"
    assert driver.do(RemoteDescription(PEER, replace(REMOTE, generation=9))) == []
    assert driver.paths.counters == {"stale_description": 1}


def test_old_generations_and_strangers_are_ignored():
    driver = Driver()
    driver.do(RemoteDescription(PEER, replace(REMOTE, generation=5, answers=driver.ours.session)))
    other = replace(REMOTE, generation=4, candidates=(Candidate(CandidateKind.HOST, STRANGER, 1),))
    driver.do(RemoteDescription(PEER, replace(other, answers=driver.ours.session)))
    assert STRANGER not in {e.destination for e in sends(driver.wait(10))}
    assert driver.do(RemoteDescription("cd" * 32, REMOTE)) == []
    assert driver.paths.counters == {"unknown_peer": 1}


def test_an_ignored_peer_is_forgotten_wholly():
    driver = Driver()
    driver.do(RemoteDescription(PEER, REMOTE))
    driver.do(RemovePeer(PEER))
    assert driver.receive(driver.check()) == []
    assert driver.paths.counters == {"unknown_user": 1}
    assert driver.paths.snapshot(PEER) is None
    assert driver.paths.deadline is None


endpoints = st.sampled_from(
    [PUBLIC, PRIVATE, STRANGER, Endpoint(IPv6Address("2d00::1"), 7), Endpoint(HOME, 5555)]
)


@st.composite
def events(draw, driver):
    number = draw(st.integers(0, 30))
    source = draw(endpoints)
    valid = driver.check(number, use_candidate=draw(st.booleans()))
    damaged = bytearray(valid)
    damaged[draw(st.integers(0, len(valid) - 1))] ^= draw(st.integers(0, 255))
    data = draw(st.sampled_from([valid, bytes(damaged), draw(st.binary(max_size=60))]))
    sent = driver.sent[-1 - draw(st.integers(0, 3))] if len(driver.sent) > 3 else None
    if sent is not None and draw(st.booleans()):
        data, source = render_response(sent.data[8:20], PUBLIC, REMOTE.password), sent.destination
    remote = replace(
        REMOTE,
        session=draw(st.sampled_from(["f" * 16, "e" * 16, "d" * 16])),
        generation=draw(st.integers(1, 9)),
        answers=draw(st.sampled_from([None, driver.ours.session, "0" * 16])),
        candidates=tuple(
            Candidate(CandidateKind.HOST, e, 1) for e in draw(st.lists(endpoints, max_size=3))
        ),
    )
    addresses = (LocalAddress(draw(st.sampled_from([HOME, IPv4Address("10.1.1.1")])), "eth0", 24),)
    return draw(
        st.sampled_from(
            [
                DatagramReceived(data, source, HOME),
                DatagramReceived(data, source, None),
                RemoteDescription(PEER, remote),
                LocalAddresses(draw(st.sampled_from([(), addresses])), 5555),
                StunServers(draw(st.sampled_from([(), (STRANGER,), (STRANGER, PUBLIC)]))),
                TunnelObserved(
                    PEER, draw(st.sampled_from([None, 0.0, 500.0])), number, number * 99
                ),
                NetworkChanged(),
                Restart(PEER),
                RemovePeer(PEER),
                AddPeer(PEER, draw(st.booleans())),
                Tick(),
            ]
        )
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_sequence_of_events_breaks_the_machine(data):
    driver = Driver()
    for _ in range(data.draw(st.integers(1, 25))):
        effects = driver.do(data.draw(events(driver)))
        effects += driver.wait(data.draw(st.sampled_from([0.0, 0.05, 1.0, 40.0])))
        driver.sent += sends(effects)
        assert len(effects) < 500
        for described in (e.description for e in effects if isinstance(e, Describe)):
            driver.ours = described
        snapshot = driver.paths.snapshot(PEER)
        if snapshot is not None and snapshot.path == "direct":
            assert snapshot.endpoint is not None


def test_a_called_round_opens_our_nats_before_it_is_answered_and_holds_checks_back():
    driver = Driver()
    driver.do(RemoteDescription(PEER, replace(REMOTE, answers=driver.ours.session)))
    driver.wait(60)
    effects = sends(driver.receive(driver.check(1, round=5), STRANGER))
    answer = kinds(effects).index((StunKind.RESPONSE, STRANGER))
    assert (PUBLIC, 4) in [(e.destination, e.ttl) for e in effects[:answer]]
    assert not [e for e in effects[answer:] if e.destination == PUBLIC and e.ttl is None]
    again = sends(driver.receive(driver.check(2, round=5), STRANGER))
    assert not [e for e in again if e.ttl == 4 and e.destination == PUBLIC]
