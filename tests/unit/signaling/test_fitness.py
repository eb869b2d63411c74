"""The fitness test over a connection, step by step."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from nostrvpn.machine import Entropy, Moment
from nostrvpn.nostr.event import parse_event, public_key, verify_event
from nostrvpn.nostr.relay import ConnectionOutput, RelayConnection, SendFrame
from nostrvpn.signaling.fitness import Fitness, FitnessTest

SECRET = bytes(31) + b"\x05"


class Bench:
    def __init__(self) -> None:
        self.connection = RelayConnection("wss://r.example", SECRET, Counter())
        self.test = FitnessTest(SECRET)
        self.sent: list[list[object]] = []
        self.collect(self.test.begin(self.connection, self.at(0)))

    def at(self, now: float) -> Moment:
        return Moment(now, 1_700_000_000 + now, Entropy(str(now).encode()))

    def collect(self, outputs: list[ConnectionOutput]) -> None:
        self.sent += [json.loads(out.text) for out in outputs if isinstance(out, SendFrame)]

    def say(self, *frame: object, now: float = 0.0) -> None:
        for output in self.connection.receive(json.dumps(frame), self.at(now)):
            assert self.test.owns(output)
            self.collect(self.test.handle(output, self.connection, self.at(now)))

    def tick(self, now: float) -> None:
        self.collect(self.test.tick(self.connection, self.at(now)))

    @property
    def last_event(self) -> dict[str, object]:
        event = [frame[1] for frame in self.sent if frame[0] == "EVENT"][-1]
        assert isinstance(event, dict)
        return event


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_probe_looks_like_any_wrap_and_names_only_the_throwaway(bench: Bench) -> None:
    assert bench.sent == [["REQ", "t", {"kinds": [1059, 21059], "#p": [public_key(SECRET)]}]]
    bench.say("EOSE", "t")
    event = parse_event(json.loads(json.dumps(bench.last_event)))
    verify_event(event)
    assert event.kind == 21059
    assert event.tags == (("p", public_key(SECRET)),)
    assert event.pubkey != public_key(SECRET)
    assert 0 < abs(event.created_at - 1_700_000_000) <= 25  # as any wrap: not whose clock it was


def test_what_comes_back_is_fit(bench: Bench) -> None:
    bench.say("EOSE", "t")
    bench.say("EVENT", "t", bench.last_event, now=0.2)
    assert bench.test.result is Fitness.FIT
    assert bench.test.rtt == pytest.approx(0.2)
    assert bench.sent[-1] == ["CLOSE", "t"]
    assert bench.test.deadline is None


def test_no_eose_does_not_stop_the_test(bench: Bench) -> None:
    bench.tick(3.0)
    assert bench.last_event["kind"] == 21059


def test_refused_ephemeral_then_stored_with_expiration(bench: Bench) -> None:
    bench.say("EOSE", "t")
    bench.say("OK", bench.last_event["id"], False, "blocked: no")
    assert bench.last_event["kind"] == 1059
    event = parse_event(json.loads(json.dumps(bench.last_event)))
    assert ("expiration", str(event.created_at + 60)) in event.tags
    bench.say("EVENT", "t", bench.last_event)
    assert bench.test.result is Fitness.STORED_ONLY
    assert bench.test.reason == "refused ephemeral events: blocked: no"


def test_nothing_delivered_is_unfit_with_both_reasons(bench: Bench) -> None:
    bench.say("EOSE", "t")
    bench.say("OK", bench.last_event["id"], True, "")
    bench.tick(3.0)
    bench.say("OK", bench.last_event["id"], False, "blocked: no", now=3.0)
    assert bench.test.result is Fitness.UNFIT
    assert bench.test.reason == (
        "did not deliver ephemeral events within 3 s; refused stored events: blocked: no"
    )


def test_a_refused_subscription_is_unfit(bench: Bench) -> None:
    bench.say("CLOSED", "t", "error: no")
    assert bench.test.result is Fitness.UNFIT
    assert bench.test.reason == "refused to be read: error: no"


def test_somebody_elses_event_proves_nothing(bench: Bench) -> None:
    bench.say("EOSE", "t")
    bench.say("EVENT", "t", {**bench.last_event, "sig": "0" * 128})
    assert bench.test.result is Fitness.TESTING
    assert bench.connection.counters["unasked"] == 1
