"""The relay pool in virtual time, against relays that answer only when the test says so."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import replace
from itertools import pairwise

import pytest

from nostrvpn.machine import Entropy, Moment, Tick
from nostrvpn.nostr.event import Event, event_json, public_key, sign_event
from nostrvpn.signaling.relays import (
    CloseRelay,
    Listen,
    OpenRelay,
    Publish,
    Published,
    Received,
    RelayClosed,
    RelayEffect,
    RelayEvent,
    RelayOpened,
    RelayPool,
    RelayStateChanged,
    RelayStatus,
    RelayText,
    RetryNow,
    SendText,
    UseRelays,
)

URLS = [f"wss://{name}.example" for name in "abcde"]
A, B, C, D, E = URLS
MAILBOX_SECRET, OTHER_SECRET = bytes(31) + b"\x01", bytes(31) + b"\x02"
MAILBOX, OTHER = public_key(MAILBOX_SECRET), public_key(OTHER_SECRET)
AUTHOR = bytes(31) + b"\x03"
WALL = 1_700_000_000


def wrap(content: str, kind: int = 21059, mailbox: str = MAILBOX) -> Event:
    return sign_event(
        AUTHOR,
        kind=kind,
        tags=(("p", mailbox),),
        content=content,
        created_at=WALL,
        aux=bytes(32),
    )


LIVE, STORED = wrap("m"), wrap("m", 1059)


class Relay:
    """What one relay does with what it is sent; ``answer`` lists the kinds it accepts."""

    def __init__(self) -> None:
        self.accepts: set[int] = {21059, 1059}
        self.delivers: set[int] = {21059, 1059}
        self.is_mute = False
        self.refuses_reading = False
        self.subscriptions: dict[str, list[dict[str, object]]] = {}
        self.published: list[int] = []

    def take(self, text: str) -> list[list[object]]:
        frame = json.loads(text)
        if self.is_mute:
            return []
        match frame:
            case ["REQ", name, *filters]:
                if self.refuses_reading and name.startswith("m"):
                    return [["CLOSED", name, "error: no"]]
                self.subscriptions[name] = filters
                return [["EOSE", name]]
            case ["CLOSE", name]:
                self.subscriptions.pop(name, None)
                return []
            case ["EVENT", event]:
                kind = event["kind"]
                self.published.append(kind)
                if kind not in self.accepts:
                    return [["OK", event["id"], False, "blocked: kind"]]
                out: list[list[object]] = [["OK", event["id"], True, ""]]
                if kind in self.delivers:
                    out += [["EVENT", name, event] for name in self.matching(event)]
                return out
            case _:
                return []

    def matching(self, event: dict[str, object]) -> list[str]:
        tags = event["tags"]
        assert isinstance(tags, list)
        wanted = {tag[1] for tag in tags if tag[0] == "p"}
        return [
            name
            for name, filters in self.subscriptions.items()
            if any(wanted & set(flt["#p"]) for flt in filters)  # type: ignore[call-overload]
        ]


class World:
    """A pool, its relays, and a clock that only the test moves."""

    def __init__(self, urls: list[str], active: int) -> None:
        self.pool = RelayPool(urls, active=active)
        self.relays = {url: Relay() for url in URLS}
        self.reachable = set(URLS)
        self.now = 0.0
        self.open: set[str] = set()
        self.connects: list[tuple[float, str]] = []
        self.effects: list[RelayEffect] = []

    def moment(self) -> Moment:
        seed = f"{self.now} {len(self.effects)}".encode()
        return Moment(self.now, WALL + self.now, Entropy(seed))

    def step(self, event: RelayEvent) -> list[RelayEffect]:
        """One event, and everything that the relays answer at once."""
        todo: deque[RelayEvent] = deque([event])
        happened: list[RelayEffect] = []
        for _ in range(10_000):
            if not todo:
                break
            for effect in self.pool.step(todo.popleft(), self.moment()):
                happened.append(effect)
                match effect:
                    case OpenRelay(url):
                        assert url not in self.open
                        self.connects.append((self.now, url))
                        if url in self.reachable:
                            self.open.add(url)
                            todo.append(RelayOpened(url))
                        else:
                            todo.append(RelayClosed(url, "refused"))
                    case CloseRelay(url):
                        self.open.discard(url)
                        todo.append(RelayClosed(url, "closed by us"))
                    case SendText(url, text):
                        assert url in self.open
                        frames = self.relays[url].take(text)
                        todo.extend(RelayText(url, json.dumps(frame)) for frame in frames)
                    case _:
                        pass
        else:
            pytest.fail("the pool does not come to rest")
        self.effects += happened
        return happened

    def run(self, seconds: float) -> list[RelayEffect]:
        """Let time pass, stepping at each deadline."""
        end = self.now + seconds
        happened: list[RelayEffect] = []
        for _ in range(10_000):
            deadline = self.pool.deadline
            if deadline is None or deadline > end:
                self.now = end
                return happened
            self.now = max(self.now, deadline)
            happened += self.step(Tick())
        pytest.fail("the pool asks for a tick without end")

    def drop(self, url: str, *, reachable: bool = False) -> list[RelayEffect]:
        """The connection breaks."""
        self.open.discard(url)
        self.relays[url].subscriptions.clear()
        if not reachable:
            self.reachable.discard(url)
        return self.step(RelayClosed(url, "gone"))

    def status(self, url: str) -> RelayStatus:
        return next(status for status in self.pool.snapshot() if status.url == url)

    def states(self) -> dict[str, str]:
        return {status.url: status.state for status in self.pool.snapshot()}


def started(urls: list[str] | None = None, active: int = 1) -> World:
    world = World(urls or [A], active)
    world.step(Listen({MAILBOX: MAILBOX_SECRET}))
    return world


def published(effects: list[RelayEffect]) -> list[Published]:
    return [effect for effect in effects if isinstance(effect, Published)]


def received(effects: list[RelayEffect]) -> list[Received]:
    return [effect for effect in effects if isinstance(effect, Received)]


def event_text(url: str, event: Event, name: str = "m1") -> RelayText:
    return RelayText(url, json.dumps(["EVENT", name, event_json(event)]))


# --- connecting, testing, choosing -------------------------------------------------------------


def test_the_first_relays_are_opened_and_tested() -> None:
    world = World(URLS, 3)
    assert world.pool.deadline == 0.0
    effects = world.step(Tick())
    assert [effect.url for effect in effects if isinstance(effect, OpenRelay)] == [A, B, C]
    assert world.pool.connected == 3
    assert list(world.states().values()) == ["connected"] * 3 + ["standby"] * 2
    assert {world.status(url).fitness for url in (A, B, C)} == {"fit"}
    assert RelayStateChanged(A) in effects


def test_the_subscription_reaches_back_and_names_both_kinds() -> None:
    world = started()
    (flt,) = world.relays[A].subscriptions["m1"]
    # Whole days: to the second it would tell whose clock it was.
    since = (WALL // 86_400 - 31) * 86_400
    assert flt == {"kinds": [1059, 21059], "#p": [MAILBOX], "since": since}
    assert set(world.relays[A].subscriptions) == {"m1"}  # the test's own one is closed


def test_a_relay_that_refuses_ephemeral_events_is_stored_only() -> None:
    world = World([A], 1)
    world.relays[A].accepts = {1059}
    world.step(Tick())
    assert world.status(A).fitness == "stored-only"
    assert world.status(A).reason == "refused ephemeral events: blocked: kind"


def test_a_relay_that_loses_ephemeral_events_is_stored_only() -> None:
    world = World([A], 1)
    world.relays[A].delivers = {1059}
    world.step(Tick())
    assert world.status(A).fitness == "testing"
    world.run(3.0)
    assert world.status(A).fitness == "stored-only"
    assert "did not deliver" in world.status(A).reason


def test_an_unfit_relay_is_replaced_and_tried_again_later() -> None:
    world = World([A, B], 1)
    world.relays[A].accepts = set()
    world.step(Tick())
    assert world.states() == {A: "standby", B: "connected"}
    assert world.status(A).fitness == "unfit"
    assert "refused stored events" in world.status(A).reason
    world.relays[A].accepts = {21059, 1059}
    world.run(61)
    assert world.states() == {A: "connected", B: "standby"}


def test_an_unfit_relay_without_substitute_is_used_nevertheless() -> None:
    world = World([A], 1)
    world.relays[A].delivers = set()
    world.step(Tick())
    world.run(7)
    assert world.states() == {A: "unfit"}
    assert world.pool.connected == 0
    assert published(world.step(Publish("t", {21059: LIVE}))) == [Published("t", 1, ())]
    world.relays[A].delivers = {21059}
    world.run(61)
    assert world.states() == {A: "connected"}


def test_a_relay_that_never_serves_our_mailboxes_is_unfit() -> None:
    world = World([A, B], 1)
    world.relays[A].refuses_reading = True
    world.step(Listen({MAILBOX: MAILBOX_SECRET}))
    world.run(10)
    assert world.states() == {A: "standby", B: "connected"}
    assert "does not serve our mailboxes: error: no" in world.status(A).reason


def test_unreachable_relays_are_replaced() -> None:
    world = World(URLS, 2)
    world.reachable = {C, D, E}
    world.step(Tick())
    world.run(2)
    assert {url for url, state in world.states().items() if state == "connected"} == {C, D}
    assert world.status(A).reason == "refused"


def test_a_better_relay_that_comes_back_displaces_its_substitute() -> None:
    world = started(URLS[:2], 1)
    world.drop(A)
    assert world.open == {B}
    world.reachable.add(A)
    world.run(700)
    assert world.open == {A}
    assert world.states() == {A: "connected", B: "standby"}


def test_a_lost_relay_gets_a_fast_retry_before_a_substitute() -> None:
    world = started(URLS[:3], 2)
    world.drop(A, reachable=True)
    assert world.states() == {A: "down", B: "connected", C: "standby"}
    world.run(0.5)
    assert world.states() == {A: "connected", B: "connected", C: "standby"}


def test_backoff_doubles_with_jitter_up_to_a_minute() -> None:
    world = World([A], 1)
    world.reachable = set()
    world.step(Tick())
    world.run(600)
    times = [now for now, _ in world.connects]
    gaps = [after - before for before, after in pairwise(times)]
    for number, gap in enumerate(gaps):
        longest = min(60.0, 0.5 * 2**number)
        assert longest / 2 <= gap <= longest
    assert gaps[-1] >= 30
    assert len(set(gaps)) == len(gaps)


def test_a_network_change_forgets_the_backoff() -> None:
    world = World([A], 1)
    world.reachable = set()
    world.step(Tick())
    world.run(300)
    world.reachable = {A}
    world.step(RetryNow())
    assert world.states() == {A: "connected"}


def test_after_a_network_change_a_dead_connection_is_noticed_within_two_seconds() -> None:
    world = started()
    world.relays[A].is_mute = True
    world.step(RetryNow())
    world.relays[A].is_mute = False
    happened = world.run(2.0)
    assert CloseRelay(A) in happened
    world.run(0.5)
    assert world.states() == {A: "connected"}
    assert world.status(A).counters["hangups"] == 1


def test_a_live_connection_survives_a_network_change() -> None:
    world = started()
    world.step(RetryNow())
    assert CloseRelay(A) not in world.run(60)
    assert set(world.relays[A].subscriptions) == {"m1"}


def test_the_list_can_change() -> None:
    world = started(URLS[:2], 2)
    effects = world.step(UseRelays([B, C]))
    assert CloseRelay(A) in effects
    assert RelayStateChanged(A) in effects
    assert world.states() == {B: "connected", C: "connected"}
    world.step(UseRelays([A, B]))
    assert world.states() == {A: "connected", B: "connected"}


def test_a_relay_taken_out_and_back_waits_for_its_old_connection() -> None:
    world = started(URLS[:2], 2)
    first = world.pool.step(UseRelays([B]), world.moment())
    assert CloseRelay(A) in first
    again = world.pool.step(UseRelays([A, B]), world.moment())
    assert OpenRelay(A) not in again
    world.open.discard(A)
    assert OpenRelay(A) in world.step(RelayClosed(A, "closed by us"))


def test_the_list_is_bounded() -> None:
    pool = RelayPool([f"wss://r{number}.example" for number in range(100)], active=1)
    assert len(pool.snapshot()) == 32


# --- receiving ---------------------------------------------------------------------------------


def test_an_event_is_received_once_over_several_relays() -> None:
    world = started(URLS[:2], 2)
    assert received(world.step(event_text(A, LIVE))) == [Received(LIVE, A)]
    assert received(world.step(event_text(B, LIVE))) == []
    assert received(world.step(event_text(A, LIVE))) == []
    assert world.status(B).counters["duplicate"] == 1


def test_a_replay_after_a_reconnect_is_a_duplicate() -> None:
    world = started()
    world.step(event_text(A, STORED))
    world.drop(A, reachable=True)
    world.run(1)
    assert received(world.step(event_text(A, STORED))) == []
    assert world.status(A).counters["duplicate"] == 1


def test_a_forged_copy_does_not_hide_the_real_event() -> None:
    world = started()
    forged = replace(LIVE, sig="0" * 128)
    assert received(world.step(event_text(A, forged))) == []
    assert received(world.step(event_text(A, LIVE))) == [Received(LIVE, A)]
    assert world.status(A).counters["bad_signature"] == 1


@pytest.mark.parametrize(
    "event", [wrap("x", mailbox=OTHER), wrap("x", kind=1), wrap("x", mailbox="")]
)
def test_events_not_for_us_are_counted(event: Event) -> None:
    world = started()
    assert received(world.step(event_text(A, event))) == []
    assert world.status(A).counters["unasked"] == 1


def test_changed_mailboxes_open_the_new_subscription_before_the_old_one_closes() -> None:
    world = started()
    world.relays[A].is_mute = True
    both = {MAILBOX: MAILBOX_SECRET, OTHER: OTHER_SECRET}
    effects = world.step(Listen(both))
    frames = [json.loads(effect.text) for effect in effects if isinstance(effect, SendText)]
    assert [frame[:2] for frame in frames] == [["REQ", "m2"]]
    assert frames[0][2]["#p"] == sorted(both)
    # Until the new one is live, events come over either.
    assert received(world.step(event_text(A, LIVE, "m1")))
    other = wrap("o", mailbox=OTHER)
    assert received(world.step(event_text(A, other, "m2")))
    effects = world.step(RelayText(A, '["EOSE","m2"]'))
    assert SendText(A, '["CLOSE","m1"]') in effects
    # What was under way when it closed is not lost.
    assert received(world.step(event_text(A, wrap("late"), "m1")))


def test_a_relay_that_never_says_eose_gets_its_old_subscription_closed_too() -> None:
    world = started()
    world.relays[A].is_mute = True
    world.step(Listen({OTHER: OTHER_SECRET}))
    assert SendText(A, '["CLOSE","m1"]') in world.run(5)


def test_the_same_mailboxes_change_nothing() -> None:
    world = started()
    assert world.step(Listen({MAILBOX: MAILBOX_SECRET})) == []


def test_many_mailboxes_are_split_over_filters() -> None:
    world = World([A], 1)
    world.step(Listen({f"{number:064x}": b"" for number in range(1, 251)}))
    filters = world.relays[A].subscriptions["n1"]
    sizes = [len(flt["#p"]) for flt in filters]  # type: ignore[arg-type]
    assert sizes == [100, 100, 50]


def test_keys_without_secret_are_never_authenticated() -> None:
    world = World([A], 1)
    world.step(Listen({MAILBOX: MAILBOX_SECRET, OTHER: b""}))
    assert set(world.relays[A].subscriptions) == {"m1", "n1"}
    effects = world.step(RelayText(A, '["AUTH","challenge"]'))
    frames = [json.loads(effect.text) for effect in effects if isinstance(effect, SendText)]
    assert [frame[1]["pubkey"] for frame in frames if frame[0] == "AUTH"] == [MAILBOX]
    # A relay that insists refuses only that subscription.
    world.step(RelayText(A, '["CLOSED","n1","auth-required: x"]'))
    assert "m1" in world.relays[A].subscriptions
    assert world.states() == {A: "connected"}


def test_a_closed_subscription_is_opened_again() -> None:
    world = started()
    world.step(RelayText(A, '["CLOSED","m1","error: restarting"]'))
    assert world.status(A).reason == "error: restarting"
    world.run(2)
    assert "m2" in world.relays[A].subscriptions
    assert world.status(A).reason == ""


def test_a_flood_is_hung_up_on_and_backed_off_from() -> None:
    world = started(URLS[:2], 1)
    for _ in range(100):
        world.step(RelayText(A, "junk"))
    assert world.status(A).state == "down"
    assert "breaks the rules" in world.status(A).reason
    assert world.status(A).counters["hangups"] == 1
    assert world.open == {B}
    assert 65 <= world.status(A).counters["malformed_json"] <= 66


# --- publishing --------------------------------------------------------------------------------


def test_a_message_goes_to_every_relay_in_the_same_step_and_is_told_once() -> None:
    world = started(URLS[:3], 3)
    for relay in world.relays.values():
        relay.is_mute = True
    effects = world.step(Publish("t", {21059: LIVE, 1059: STORED}))
    sent = {
        effect.url: json.loads(effect.text) for effect in effects if isinstance(effect, SendText)
    }
    assert set(sent) == {A, B, C}
    assert {frame[1]["id"] for frame in sent.values()} == {LIVE.id}
    refusal = json.dumps(["OK", LIVE.id, False, "blocked: you"])
    acceptance = json.dumps(["OK", LIVE.id, True, ""])
    world.relays[A].is_mute = False
    # A refused ephemeral wrap is tried stored at once.
    effects = world.step(RelayText(A, refusal))
    assert [json.loads(e.text)[1]["id"] for e in effects if isinstance(e, SendText)] == [STORED.id]
    assert published(effects) == [Published("t", 1, ())]
    assert published(world.step(RelayText(B, acceptance))) == []
    assert published(world.run(30)) == []


def test_all_refused_is_told_with_reasons() -> None:
    world = started(URLS[:2], 2)
    for relay in world.relays.values():
        relay.accepts = set()
    (told,) = published(world.step(Publish("t", {21059: LIVE})))
    assert told == Published("t", 0, ((A, "blocked: kind"), (B, "blocked: kind")))


def test_a_lost_ok_ends_in_a_timeout() -> None:
    world = started()
    world.relays[A].is_mute = True
    assert published(world.step(Publish("t", {21059: LIVE}))) == []
    (told,) = published(world.run(5))
    assert told == Published("t", 0, ((A, "no answer within 5 s"),))
    assert world.status(A).counters["publish_timeout"] == 1


def test_a_relay_that_leaves_three_in_a_row_unanswered_is_given_up() -> None:
    world = started(URLS[:2], 1)
    world.relays[A].is_mute = True
    for number in range(3):
        world.step(Publish(str(number), {21059: wrap(str(number))}))
    world.run(5)
    assert world.open == {B}
    assert world.status(A).reason == "does not answer"


def test_a_message_waits_for_a_relay_that_is_connecting() -> None:
    world = World([A], 1)
    assert OpenRelay(A) in world.pool.step(Tick(), world.moment())
    assert world.step(Publish("t", {21059: LIVE})) == []
    world.open.add(A)
    world.now = 9.0
    effects = world.step(RelayOpened(A))
    assert published(effects) == [Published("t", 1, ())]


def test_a_message_waits_no_longer_than_its_age_limit() -> None:
    world = World([A], 1)
    world.pool.step(Tick(), world.moment())
    world.step(Publish("t", {21059: LIVE}))
    (told,) = published(world.run(15))
    assert told.accepted == 0
    assert told.refused[0][0] == A


def test_a_message_without_answer_is_sent_again_after_a_reconnect() -> None:
    world = started()
    world.relays[A].is_mute = True
    world.step(Publish("t", {21059: LIVE}))
    world.relays[A].is_mute = False
    world.relays[A].published.clear()
    assert published(world.drop(A, reachable=True)) == []
    assert published(world.run(0.5)) == [Published("t", 1, ())]


def test_a_relay_far_from_its_next_try_refuses_at_once() -> None:
    world = World([A], 1)
    world.reachable = set()
    world.step(Tick())
    world.run(300)
    (told,) = published(world.step(Publish("t", {21059: LIVE})))
    assert told == Published("t", 0, ((A, "not connected: refused"),))


def test_without_relays_publishing_fails_at_once() -> None:
    world = World([], 1)
    assert published(world.step(Publish("t", {21059: LIVE}))) == [
        Published("t", 0, (("", "no relay is in use"),))
    ]


def test_a_stored_only_relay_gets_the_stored_wrap() -> None:
    world = World([A], 1)
    world.relays[A].accepts = {1059}
    world.step(Tick())
    world.relays[A].published.clear()
    world.step(Publish("t", {21059: LIVE, 1059: STORED}))
    assert world.relays[A].published == [1059]
    (told,) = published(world.step(Publish("u", {21059: LIVE})))
    assert told.refused == ((A, "this relay does not pass ephemeral events on"),)


def test_what_was_sent_during_the_test_is_repeated_stored_if_it_may_be_lost() -> None:
    world = World([A], 1)
    world.relays[A].delivers = {1059}
    world.step(Tick())
    # The relay says OK and delivers nothing; the message did not wait for the test.
    assert published(world.step(Publish("t", {21059: LIVE, 1059: STORED})))[0].accepted == 1
    world.relays[A].published.clear()
    world.run(3)
    assert STORED.id in {
        json.loads(effect.text)[1]["id"]
        for effect in world.effects
        if isinstance(effect, SendText) and effect.text.startswith('["EVENT"')
    }
    assert world.status(A).counters["sent_again"] == 1


def test_the_queue_of_a_connecting_relay_is_bounded_and_says_so() -> None:
    world = World([A], 1)
    world.pool.step(Tick(), world.moment())
    for number in range(256):
        assert world.step(Publish(str(number), {21059: LIVE})) == []
    (told,) = published(world.step(Publish("x", {21059: LIVE})))
    assert told.refused == ((A, "too many messages wait for this relay"),)
    assert world.status(A).counters["queue_overflow"] == 1


def test_taking_a_relay_out_answers_for_what_waits() -> None:
    world = started()
    world.relays[A].is_mute = True
    world.step(Publish("t", {21059: LIVE}))
    (told,) = published(world.step(UseRelays([B])))
    assert told == Published("t", 0, ((A, "not in the list of relays"),))


def test_the_round_trip_time_is_measured() -> None:
    world = started()
    world.relays[A].is_mute = True
    world.step(Publish("t", {21059: LIVE}))
    world.now += 0.08
    world.step(RelayText(A, json.dumps(["OK", LIVE.id, True, ""])))
    rtt = world.status(A).rtt_ms
    assert rtt == pytest.approx(10.0)  # an eighth of 80 ms on top of the test's 0 ms


@pytest.mark.parametrize("seed", range(20))
def test_random_events_never_raise_and_every_message_is_answered(seed: int) -> None:
    entropy = Entropy(str(seed).encode())
    world = World(URLS, 3)
    world.step(Listen({MAILBOX: MAILBOX_SECRET}))
    asked = []
    for number in range(150):
        url = URLS[int(entropy.fraction() * 5)]
        match int(entropy.fraction() * 7):
            case 0:
                asked.append(str(number))
                world.step(Publish(f"{number}", {21059: wrap(str(number)), 1059: STORED}))
            case 1 if url in world.open:
                world.drop(url, reachable=entropy.fraction() < 0.5)
            case 2:
                world.reachable.add(url)
            case 3:
                world.relays[url].is_mute = entropy.fraction() < 0.5
            case 4:
                world.step(RelayText(url, entropy.take(20).hex()))
            case 5:
                world.relays[url].accepts = {1059} if entropy.fraction() < 0.5 else {21059, 1059}
            case _:
                world.run(entropy.fraction() * 20)
    world.run(60)
    assert sorted(told.token for told in published(world.effects)) == sorted(asked)
    assert len(world.pool._outbox) == 0


# --- a change of network -----------------------------------------------------------------------


def test_a_connection_that_dies_with_its_address_is_opened_again_at_once_and_only_once() -> None:
    world = started()
    world.run(1)
    world.relays[A].is_mute = True
    world.step(RetryNow())
    world.relays[A].is_mute = False
    world.drop(A, reachable=True)
    assert world.connects[-1] == (world.now, A)
    assert len(world.connects) == 2
    # This one is the relay's own doing.
    world.drop(A, reachable=True)
    assert len(world.connects) == 2
    world.run(1)
    assert len(world.connects) == 3


def test_a_connection_without_a_sign_of_life_is_replaced_within_a_second() -> None:
    world = started()
    world.run(5)
    world.relays[A].is_mute = True
    world.step(RetryNow())
    world.run(1.01)
    assert [round(at, 2) for at, _ in world.connects] == [0.0, 6.0]


def test_a_flood_of_changes_costs_one_connection_each_at_most() -> None:
    world = started()
    world.run(1)
    before = len(world.relays[A].published)
    for _ in range(8):
        world.step(RetryNow())
        world.drop(A, reachable=True)
        world.run(0.5)
    assert len(world.connects) == 9
    # Each new connection is tested once: a wrap of each kind at most.
    assert len(world.relays[A].published) - before <= 2 * 8
