"""One relay connection, driven by hand in virtual time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

import pytest

from nostrvpn.machine import Entropy, Moment
from nostrvpn.nostr.event import (
    Event,
    event_json,
    parse_event,
    public_key,
    sign_event,
    verify_event,
)
from nostrvpn.nostr.frames import render_event
from nostrvpn.nostr.relay import (
    ConnectionOutput,
    EventArrived,
    Hangup,
    PublishAnswered,
    RelayConnection,
    SendFrame,
    SubscriptionLive,
    SubscriptionRefused,
)

URL = "wss://relay.example"
THROWAWAY, ONE, TWO = (bytes(31) + bytes([n]) for n in (9, 1, 2))
KEYS = {public_key(ONE): ONE, public_key(TWO): TWO}
EVENT = sign_event(ONE, kind=21059, tags=(), content="x", created_at=1, aux=bytes(32))


def at(now: float) -> Moment:
    return Moment(now, 1_700_000_000 + now, Entropy(str(now).encode()))


@pytest.fixture
def connection() -> RelayConnection:
    return RelayConnection(URL, THROWAWAY, Counter())


def say(connection: RelayConnection, *frame: object, now: float = 0.0) -> list[ConnectionOutput]:
    return connection.receive(json.dumps(frame), at(now))


def sent(outputs: Iterable[ConnectionOutput]) -> list[list[object]]:
    return [json.loads(output.text) for output in outputs if isinstance(output, SendFrame)]


def auths(outputs: Iterable[ConnectionOutput]) -> list[Event]:
    events = [parse_event(frame[1]) for frame in sent(outputs) if frame[0] == "AUTH"]
    for event in events:
        verify_event(event)
    return events


def publish(connection: RelayConnection, now: float = 0.0) -> list[ConnectionOutput]:
    return connection.publish(EVENT.id, render_event(EVENT), at(now))


def test_a_subscription_brings_events(connection: RelayConnection) -> None:
    out = connection.subscribe("s", [{"kinds": [1]}], {}, at(0))
    assert sent(out) == [["REQ", "s", {"kinds": [1]}]]
    assert say(connection, "EVENT", "s", event_json(EVENT)) == [EventArrived("s", EVENT)]
    assert say(connection, "EOSE", "s") == [SubscriptionLive("s")]
    assert say(connection, "EOSE", "s") == []
    assert sent(connection.unsubscribe("s")) == [["CLOSE", "s"]]
    # Still under way when we closed it.
    assert say(connection, "EVENT", "s", event_json(EVENT)) == [EventArrived("s", EVENT)]
    assert connection.unsubscribe("s") == []


def test_what_nobody_asked_for_is_counted(connection: RelayConnection) -> None:
    assert say(connection, "EVENT", "s", event_json(EVENT)) == []
    assert say(connection, "EOSE", "s") == []
    assert say(connection, "CLOSED", "s", "") == []
    assert say(connection, "OK", "0" * 64, True, "") == []
    assert say(connection, "NOTICE", "hello") == []
    assert say(connection, "WHAT") == []
    assert connection.counters == {"unasked": 4, "notice": 1, "malformed_frame": 1}


@pytest.mark.parametrize(
    ("accepted", "reason", "expected"),
    [(True, "", True), (False, "blocked: no", False), (False, "duplicate: have it", True)],
)
def test_publish_is_answered(
    connection: RelayConnection, accepted: bool, reason: str, expected: bool
) -> None:
    assert [frame[0] for frame in sent(publish(connection))] == ["EVENT"]
    assert publish(connection) == []
    out = say(connection, "OK", EVENT.id, accepted, reason, now=0.25)
    assert out == [PublishAnswered(EVENT.id, expected, reason, 0.25)]
    assert connection.deadline is None


def test_a_lost_ok_is_a_timeout(connection: RelayConnection) -> None:
    publish(connection)
    assert connection.deadline == 5.0
    assert connection.tick(at(4.9)) == []
    assert connection.tick(at(5.0)) == [
        PublishAnswered(EVENT.id, False, "no answer within 5 s", None)
    ]
    assert connection.counters["publish_timeout"] == 1


def test_unanswered_publishes_are_bounded(connection: RelayConnection) -> None:
    for number in range(256):
        assert sent(connection.publish(str(number), "[]", at(0)))
    assert connection.is_full
    assert connection.publish("x", "[]", at(0)) == [
        PublishAnswered("x", False, "too many unanswered events", None)
    ]


def test_auth_is_answered_for_every_mailbox_and_the_req_comes_again(
    connection: RelayConnection,
) -> None:
    connection.subscribe("s", [{}], KEYS, at(0))
    answers = auths(say(connection, "AUTH", "challenge"))
    assert {answer.pubkey for answer in answers} == set(KEYS)
    for answer in answers:
        assert answer.kind == 22242
        assert answer.tags == (("relay", URL), ("challenge", "challenge"))
        # Near enough for NIP-42, too far off to show whose clock it was.
        assert abs(answer.created_at - at(0).wall) <= 25
    assert len({answer.created_at for answer in answers}) == 2
    assert say(connection, "OK", answers[0].id, True, "") == []
    out = say(connection, "OK", answers[1].id, True, "")
    assert sent(out) == [["REQ", "s", {}]]
    # A later one is preceded by nothing: both keys are known already.
    assert sent(connection.subscribe("t", [{}], KEYS, at(1))) == [["REQ", "t", {}]]


def test_a_known_challenge_is_answered_ahead_of_the_req(connection: RelayConnection) -> None:
    say(connection, "AUTH", "challenge")
    frames = sent(connection.subscribe("s", [{}], KEYS, at(0)))
    assert [frame[0] for frame in frames] == ["AUTH", "AUTH", "REQ"]


def test_a_closed_subscription_is_opened_again_after_auth(connection: RelayConnection) -> None:
    connection.subscribe("s", [{}], KEYS, at(0))
    assert say(connection, "CLOSED", "s", "auth-required: who are you") == []
    answers = auths(say(connection, "AUTH", "c"))
    say(connection, "OK", answers[0].id, True, "")
    out = say(connection, "OK", answers[1].id, False, "challenge used")
    assert sent(out) == [["REQ", "s", {}]]
    assert connection.counters["auth_refused"] == 1


def test_a_relay_that_is_never_satisfied_is_refused_in_the_end(
    connection: RelayConnection,
) -> None:
    connection.subscribe("s", [{}], KEYS, at(0))
    say(connection, "AUTH", "c")
    for _ in range(10):
        out = say(connection, "CLOSED", "s", "restricted: no")
        if any(isinstance(output, SubscriptionRefused) for output in out):
            break
        for key in [event.id for event in auths(out)]:
            say(connection, "OK", key, True, "")
    assert SubscriptionRefused("s", "restricted: no") in out


def test_without_keys_auth_is_never_answered(connection: RelayConnection) -> None:
    connection.subscribe("s", [{}], {}, at(0))
    assert say(connection, "AUTH", "c") == []
    assert say(connection, "CLOSED", "s", "auth-required: x") == [
        SubscriptionRefused("s", "auth-required: x")
    ]


def test_waiting_for_a_challenge_ends(connection: RelayConnection) -> None:
    connection.subscribe("s", [{}], KEYS, at(0))
    say(connection, "CLOSED", "s", "auth-required: x")
    assert connection.deadline == 10.0
    assert connection.tick(at(10)) == [
        SubscriptionRefused("s", "auth-required: but no challenge came")
    ]


def test_publishing_authenticates_with_the_throwaway_key(connection: RelayConnection) -> None:
    connection.subscribe("s", [{}], KEYS, at(0))
    for answer in auths(say(connection, "AUTH", "c")):
        say(connection, "OK", answer.id, True, "")
    publish(connection)
    (answer,) = auths(say(connection, "OK", EVENT.id, False, "auth-required: x"))
    assert answer.pubkey == public_key(THROWAWAY)
    assert [frame[0] for frame in sent(say(connection, "OK", answer.id, True, ""))] == ["EVENT"]
    # It is not asked a second time.
    out = say(connection, "OK", EVENT.id, False, "auth-required: x")
    assert out == [PublishAnswered(EVENT.id, False, "auth-required: x", 0.0)]


def test_publishing_waits_for_the_challenge_but_not_forever(connection: RelayConnection) -> None:
    publish(connection)
    assert say(connection, "OK", EVENT.id, False, "auth-required: x", now=1) == []
    assert connection.tick(at(6)) == [PublishAnswered(EVENT.id, False, "auth-required: x", None)]


def test_an_unanswered_auth_gives_up(connection: RelayConnection) -> None:
    connection.subscribe("s", [{}], KEYS, at(0))
    say(connection, "CLOSED", "s", "auth-required: x")
    assert len(auths(say(connection, "AUTH", "c"))) == 2
    assert sent(connection.tick(at(5))) == [["REQ", "s", {}]]
    (out,) = say(connection, "CLOSED", "s", "auth-required: x", now=5)
    assert isinstance(out, SubscriptionRefused)
    assert "no answer to AUTH" in out.reason


def test_a_flood_ends_in_one_hangup(connection: RelayConnection) -> None:
    outputs = [out for _ in range(200) for out in connection.receive("junk", at(0))]
    assert outputs == [Hangup("sent too much that breaks the rules, last: malformed_json")]


def test_a_flood_of_challenges_is_a_flood(connection: RelayConnection) -> None:
    connection.subscribe("s", [{}], KEYS, at(0))
    outputs = [out for n in range(100) for out in say(connection, "AUTH", str(n))]
    assert sum(isinstance(output, Hangup) for output in outputs) == 1
    assert len(auths(outputs)) <= 2 * 17
