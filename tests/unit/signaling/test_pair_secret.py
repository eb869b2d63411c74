"""A pair's secret: agreed on whatever gets lost, crosses or repeats; all stay readable."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Entropy, Moment
from nostrvpn.signaling.pair_secret import (
    MAX_SENDS,
    MIN_GAP_S,
    SEND_AGAIN_S,
    PairSecrets,
    SayKeys,
    StoreSecret,
)
from nostrvpn.signaling.ratchet import DAY_S

ALICE, BOB = "aa" * 32, "bb" * 32
DAY = 20_000
NOON = DAY * DAY_S + 43_200.0


class Pair:
    """Two machines, a disk each, and a channel that a test may disturb."""

    def __init__(self, seed: object = 0) -> None:
        self.rng = random.Random(str(seed))
        self.now = 0.0
        self.steps = 0
        self.sides = {ALICE: PairSecrets(ALICE), BOB: PairSecrets(BOB)}
        self.disks: dict[str, dict[str, object]] = {ALICE: {}, BOB: {}}
        self.wire: list[tuple[str, dict[str, object]]] = []  # (to whom, body)
        self.refused = 0

    def moment(self) -> Moment:
        self.steps += 1
        seed = f"{self.rng.random()}/{self.steps}".encode()
        return Moment(self.now, NOON + self.now, Entropy(seed))

    def do(self, side: str, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, SayKeys):
                self.wire.append((effect.peer, json.loads(json.dumps(effect.body))))
            elif effect.value is None:
                self.disks[side].pop(effect.peer, None)
            else:
                self.disks[side][effect.peer] = json.loads(json.dumps(effect.value))

    def begin(self, side: str) -> None:
        self.do(side, self.sides[side].begin(other(side), self.moment()))

    def pass_on(self, index: int = 0, *, keep: bool = False) -> None:
        to, body = self.wire[index] if keep else self.wire.pop(index)
        try:
            self.do(to, self.sides[to].on_message(other(to), body, self.moment()))
        except PeerMisbehaved:
            self.refused += 1

    def settle(self) -> None:
        for _ in range(40):
            while self.wire:
                self.pass_on()
            self.now += SEND_AGAIN_S
            for side, machine in self.sides.items():
                self.do(side, machine.tick(self.moment()))
        assert not self.wire

    def restart(self, side: str, *, is_disk_lost: bool = False) -> None:
        if is_disk_lost:
            self.disks[side].clear()
        self.sides[side] = PairSecrets(side)
        assert self.sides[side].restore(self.disks[side]) == []

    def write(self, side: str, day: int = DAY) -> str | None:
        """Write from ``side`` to the other; return by which secret it was read, None: not at all."""
        used = self.sides[side].writing(other(side), day)
        reader = self.sides[other(side)]
        for name, secret in reader.reading(side, day):
            if secret == used:
                self.do(other(side), reader.heard(side, name, NOON + self.now))
                return name
        return None

    def agreed(self, day: int = DAY) -> bool:
        one, two = (self.sides[s].writing(other(s), day) for s in (ALICE, BOB))
        return one is not None and one == two


def other(side: str) -> str:
    return BOB if side == ALICE else ALICE


def agreed_pair() -> Pair:
    pair = Pair()
    pair.begin(ALICE)
    pair.settle()
    assert pair.agreed()
    return pair


def test_three_messages_agree_and_nobody_writes_before_the_proof():
    pair = Pair()
    pair.begin(ALICE)
    pair.pass_on()
    assert [pair.sides[s].writing(other(s), DAY) for s in (ALICE, BOB)] == [None, None]
    pair.pass_on()
    assert pair.write(ALICE)  # read before the last message came
    pair.settle()
    assert pair.agreed()
    assert pair.refused == 0


def test_crossed_exchanges_agree():
    pair = Pair()
    pair.begin(ALICE)
    pair.begin(BOB)
    pair.settle()
    assert pair.agreed()


@settings(max_examples=150, deadline=None)
@example(3116496)
@given(st.integers(0, 10**9))
def test_loss_repeats_and_disorder_never_break_reading_and_end_in_agreement(seed):
    pair = Pair(seed)
    for _ in range(30):
        choice = pair.rng.random()
        side = pair.rng.choice((ALICE, BOB))
        if choice < 0.2:
            pair.begin(side)
        elif choice < 0.3 and pair.wire:
            pair.wire.pop(pair.rng.randrange(len(pair.wire)))
        elif choice < 0.4 and pair.wire:
            pair.pass_on(pair.rng.randrange(len(pair.wire)), keep=True)
        elif choice < 0.8 and pair.wire:
            pair.pass_on(pair.rng.randrange(len(pair.wire)))
        elif choice < 0.85:
            pair.restart(side)
        else:
            pair.now += pair.rng.choice((1.0, SEND_AGAIN_S))
            for each, machine in pair.sides.items():
                pair.do(each, machine.tick(pair.moment()))
        # Whatever happens, what one writes the other reads.
        assert pair.write(ALICE) is not None
        assert pair.write(BOB) is not None
    pair.wire.clear()
    pair.now += SEND_AGAIN_S * MAX_SENDS * 2
    for each, machine in pair.sides.items():
        for _ in range(MAX_SENDS + 1):
            pair.do(each, machine.tick(pair.moment()))
            pair.now += SEND_AGAIN_S * MAX_SENDS
    pair.wire.clear()
    pair.now += DAY_S
    pair.begin(ALICE)
    pair.begin(BOB)
    pair.settle()
    assert pair.write(ALICE, DAY + 1)
    assert pair.write(BOB, DAY + 1)
    assert pair.agreed(DAY + 1)


def test_the_last_message_lost_is_made_up_for_by_what_is_written():
    pair = Pair()
    pair.begin(ALICE)
    pair.pass_on()
    pair.pass_on()
    pair.wire.clear()
    assert pair.sides[BOB].writing(ALICE, DAY) is None
    assert pair.write(ALICE)
    assert pair.agreed()


def test_a_side_that_lost_its_state_is_heard_and_answered_without_the_secret():
    pair = agreed_pair()
    pair.restart(BOB, is_disk_lost=True)
    assert pair.write(ALICE) is None  # she cannot know yet
    pair.now += 700
    assert pair.write(BOB) == ""
    assert pair.write(ALICE) == ""
    pair.begin(BOB)
    pair.settle()
    assert pair.agreed()


def test_a_side_that_lost_its_state_begins_anew_through_the_tunnel():
    pair = agreed_pair()
    pair.restart(BOB, is_disk_lost=True)
    pair.now += 60
    pair.begin(BOB)
    pair.settle()
    assert pair.agreed()


def test_a_restart_changes_nothing():
    pair = agreed_pair()
    pair.restart(ALICE)
    assert pair.agreed()


def test_an_old_message_does_not_talk_anybody_out_of_the_secret():
    pair = agreed_pair()
    alice = pair.sides[ALICE]
    used = alice.writing(BOB, DAY)
    for created in (NOON - 86_400, NOON - 10, NOON + 500):
        assert alice.heard(BOB, "", created) == []
    assert alice.writing(BOB, DAY) == used


def test_the_secret_is_renewed_daily_and_not_more_often():
    pair = agreed_pair()
    first = pair.sides[ALICE].writing(BOB, DAY)
    pair.now += DAY_S / 2
    pair.begin(ALICE)
    assert not pair.wire
    pair.now += DAY_S / 2
    pair.begin(BOB)
    pair.settle()
    assert pair.agreed(DAY + 1)
    from_old = Pair()
    assert pair.sides[ALICE].writing(BOB, DAY + 1) != first
    assert from_old.sides[ALICE].writing(BOB, DAY) is None


def test_the_new_secret_needs_the_old_one_too():
    """Who knows a run's random numbers, but not the secret before, does not get the new secret."""
    one, two = agreed_pair(), Pair()
    one.now = two.now = DAY_S
    one.steps = two.steps = 100
    one.rng, two.rng = random.Random(7), random.Random(7)
    for pair in (one, two):
        pair.begin(ALICE)
        pair.settle()
        assert pair.agreed(DAY + 1)
    secrets = [pair.sides[ALICE].writing(BOB, DAY + 1) for pair in (one, two)]
    assert secrets[0] != secrets[1]


def test_a_day_later_nothing_stored_tells_yesterdays_secret():
    pair = agreed_pair()
    old = pair.sides[ALICE].writing(BOB, DAY)
    assert old is not None
    for side in (ALICE, BOB):
        pair.do(side, pair.sides[side].advance(NOON + DAY_S))
        assert old.hex() not in json.dumps(pair.disks[side])
    assert pair.sides[ALICE].writing(BOB, DAY) is None
    assert pair.agreed(DAY + 1)


def test_what_is_no_exchange_is_refused():
    alice = PairSecrets(ALICE)
    good = {"pub": "11" * 32, "echo": "", "base": "", "day": DAY, "mac": "", "done": False}
    moment = Moment(0.0, NOON, Entropy(b"x"))
    for change in (
        {"pub": "00" * 32},
        {"pub": "11"},
        {"pub": 5},
        {"pub": "zz" * 32},
        {"echo": "22" * 32},
        {"day": DAY + 5},
        {"day": "x"},
        {"done": 0},
        {"base": "0" * 99},
    ):
        with pytest.raises(PeerMisbehaved):
            alice.on_message(BOB, good | change, moment)
    assert alice.on_message(BOB, good, moment)


@pytest.mark.parametrize("is_over", [False, True], ids=["under way", "over"])
def test_a_peer_sends_few_new_keys(is_over):
    stored, taken, refused = 0, list[float](), set[str]()
    alice = agreed_pair().sides[ALICE] if is_over else PairSecrets(ALICE)
    for number in range(100):
        now = DAY_S + number / 2
        body = {"pub": f"{number + 9:064x}", "echo": "", "base": "", "mac": "", "done": False}
        moment = Moment(now, NOON, Entropy(b"%d" % number))
        try:
            effects = alice.on_message(BOB, body | {"day": DAY}, moment)
        except PeerMisbehaved as exc:
            refused.add(exc.code)
            continue
        stored += sum(isinstance(effect, StoreSecret) for effect in effects)
        taken.append(now)
    assert stored == len(taken) == 10
    assert refused == {"keys_flood"}
    assert all(later - earlier >= MIN_GAP_S for earlier, later in pairwise(taken))


def test_a_false_proof_changes_nothing():
    pair = Pair()
    pair.begin(ALICE)
    pair.pass_on()
    pair.wire[0][1]["mac"] = "00" * 16
    pair.pass_on()
    assert pair.refused == 1
    assert pair.sides[ALICE].writing(BOB, DAY) is None


def test_a_damaged_record_is_named_and_left_out():
    pair = agreed_pair()
    row = ["0" * 16, 1, "z" * 64, 2]
    records: tuple[object, ...] = (
        None,
        [],
        {"speaks": "x"},
        {"secrets": [row], "speaks": "", "heard": ""},
        {"secrets": [[*row[:2], "00" * 32, 2]] * 9, "speaks": "", "heard": ""},
    )
    for bad in records:
        machine = PairSecrets(ALICE)
        assert machine.restore({BOB: bad}) == [BOB]
        assert machine.writing(BOB, DAY) is None
    assert pair.sides[ALICE].forget(BOB)
    assert pair.sides[ALICE].writing(BOB, DAY) is None
