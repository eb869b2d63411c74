"""Which exit is used, in virtual time."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from nostrvpn.exits.choice import (
    DOUBTFUL_LOSSES,
    LEAVE_LOSSES,
    LOSSES,
    SETTLE_S,
    SHUN_S,
    STABLE_S,
    STAY_S,
    Candidate,
    ExitChoice,
)
from nostrvpn.exits.offer import ExitOffer
from nostrvpn.exits.settings import AUTO
from tests.unit.exits.world import A, B, C, Exits


def test_the_nearest_exit_is_taken_after_all_answered() -> None:
    exits = Exits(a=80.0, b=20.0, c=50.0)
    exits.run(1.0)
    assert exits.used() == B
    assert exits.carries()
    assert exits.history[-1][0] <= 100.0 + 0.2


def test_a_first_answer_waits_for_others_but_not_for_long() -> None:
    exits = Exits(a=300.0, b=20.0)
    exits.dead.add(A)
    exits.run(0.3)
    assert exits.used() is None
    exits.run(SETTLE_S)
    assert exits.used() == B


def test_a_fixed_exit_is_used_before_it_answers_and_is_never_left() -> None:
    exits = Exits(a=80.0, b=20.0)
    exits.wanted = A
    exits.dead.add(A)
    exits.run(20.0)
    assert exits.used() == A
    assert not exits.carries()
    exits.dead.clear()
    exits.run(2.0)
    assert exits.carries()
    assert [used for _, used in exits.history] == [A]


@pytest.mark.parametrize("seed", range(12))
def test_a_dead_exit_is_left_within_three_seconds(seed: int) -> None:
    exits = Exits(a=20.0, b=40.0, c=60.0)
    exits.run(60.0 + random.Random(seed).uniform(0.0, 40.0))
    assert exits.used() == A
    died = exits.now
    exits.dead.add(A)
    exits.run(5.0)
    assert exits.used() == B
    assert exits.carries()
    assert exits.history[-1][0] - died < 3.0


def test_nothing_is_left_while_this_host_itself_is_cut_off() -> None:
    exits = Exits(a=20.0, b=40.0)
    exits.run(100.0)
    exits.cut_off = True
    exits.run(600.0)
    assert exits.used() == A
    assert not exits.carries()
    exits.cut_off = False
    exits.run(6.0)
    assert exits.carries()
    assert [used for _, used in exits.history if used] == [A]


def test_one_lost_echo_changes_nothing() -> None:
    exits = Exits(a=20.0, b=40.0)
    exits.run(60.0)
    for _ in range(LOSSES - 1):
        exits.choice.probed(A, None, exits.now)
        exits.review()
    assert exits.carries()
    exits.choice.probed(A, 20.0, exits.now)
    exits.choice.probed(A, None, exits.now)
    assert exits.carries()


def test_a_better_exit_takes_over_late_and_only_if_it_is_better_by_far() -> None:
    exits = Exits(a=100.0, b=90.0)
    exits.offers.pop(B)
    exits.run(STAY_S + 100.0)
    exits.offers[B] = ExitOffer()
    exits.run(STABLE_S * 4)
    assert exits.used() == A
    exits.rtts[B] = 20.0
    before = exits.now
    exits.run(600.0)
    assert exits.used() == B
    assert exits.history[-1][0] - before >= STABLE_S


def test_who_fell_is_shunned_unless_nobody_else_answers() -> None:
    exits = Exits(a=20.0, b=60.0)
    exits.run(60.0)
    exits.dead.add(A)
    exits.run(6.0)
    exits.dead.clear()
    exits.run(SHUN_S)
    assert exits.used() == B
    exits.dead.add(B)
    exits.run(6.0)
    assert exits.used() == A


def test_load_counts_and_a_full_exit_comes_last() -> None:
    exits = Exits(a=20.0, b=30.0, c=50.0)
    exits.offers[A] = ExitOffer(load=100)
    exits.offers[B] = ExitOffer(load=90)
    exits.run(1.0)
    assert exits.used() == C


def test_an_exit_that_is_no_candidate_any_more_is_left_at_once() -> None:
    exits = Exits(a=20.0, b=30.0)
    exits.run(60.0)
    exits.offers.pop(A)
    exits.run(0.1)
    assert exits.used() == B
    exits.offers.clear()
    exits.run(0.1)
    assert exits.used() is None
    assert not exits.carries()


def test_standby_exits_are_asked_seldom_until_the_one_in_use_falls_silent() -> None:
    exits = Exits(a=20.0, b=30.0)
    exits.run(10.0)
    assert exits.choice.interval(A) == 1.0
    assert exits.choice.interval(B) == 30.0
    exits.choice.probed(A, None, exits.now)
    assert exits.choice.interval(B) == 1.0
    assert exits.choice.interval(A) == 0.3
    for _ in range(LOSSES):
        exits.choice.probed(A, None, exits.now)
    assert exits.choice.interval(A) == 1.0


@pytest.mark.parametrize("seed", range(12))
def test_exits_that_come_and_go_make_no_flapping(seed: int) -> None:
    """Exits die and return at random: each change has a dead exit as its cause, or a better one."""
    rng = random.Random(seed)
    exits = Exits(a=20.0, b=35.0, c=60.0)
    fallen: list[float] = []
    exits.run(30.0)
    for _ in range(60):
        key = rng.choice([A, B, C])
        if key in exits.dead:
            exits.dead.discard(key)
        elif len(exits.dead) < 2:
            exits.dead.add(key)
            if key == exits.used():
                fallen.append(exits.now)
        exits.run(rng.uniform(5.0, 40.0))
        assert exits.used() not in exits.dead or not exits.carries()
    changes = [at for at, used in exits.history if used is not None][1:]
    better = [at for one, at in pairwise([0.0, *changes]) if at - one >= STAY_S]
    # One change for each exit that died while it was used, and late ones to a better exit.
    assert len(changes) <= len(fallen) + len(better)
    again = Exits(a=20.0, b=35.0, c=60.0)
    again.run(30.0)
    assert again.history == exits.history[: len(again.history)]


def two(now: float = 0.0) -> tuple[ExitChoice, dict[str, Candidate]]:
    """A is used and B stands by; both answered at ``now``."""
    choice = ExitChoice()
    candidates = {key: Candidate(ExitOffer(), True) for key in (A, B)}
    choice.probed(A, 20.0, now)
    choice.probed(B, 40.0, now)
    choice.review(AUTO, candidates, now)
    assert choice.used == A
    return choice, candidates


def test_a_later_answer_of_a_nearer_exit_counts_at_the_beginning() -> None:
    choice, candidates = ExitChoice(), {key: Candidate(ExitOffer(), True) for key in (A, B)}
    choice.probed(B, 50.0, 10.0)
    choice.review(AUTO, candidates, 10.0)
    assert choice.used is None
    assert choice.deadline == 10.0 + SETTLE_S
    choice.probed(A, 20.0, 10.3)
    choice.review(AUTO, candidates, 10.3)
    assert choice.used == A


def test_who_takes_over_has_answered_since_the_other_fell_silent() -> None:
    choice, candidates = two()
    for second in range(1, LOSSES + 1):
        choice.probed(A, None, float(second))
        choice.review(AUTO, candidates, float(second))
    assert choice.used == A
    assert not choice.carries
    now = LOSSES + 1.0
    choice.probed(B, 40.0, now)
    choice.review(AUTO, candidates, now)
    # Both may be back: only echoes that were sent after that answer show that this one is not.
    for late in (0.1, 0.4, 0.7):
        assert choice.used == A
        choice.probed(A, None, now + late)
        choice.review(AUTO, candidates, now + late)
    assert choice.used == B
    assert choice.carries


def test_an_exit_is_left_before_it_counts_as_gone() -> None:
    choice, candidates = two()
    for number in range(1, LEAVE_LOSSES + 1):
        assert choice.used == A
        choice.probed(A, None, number * 0.3)
        choice.probed(B, 40.0, number * 0.3)
        assert choice.carries
        choice.review(AUTO, candidates, number * 0.3)
    assert choice.used == B


def test_who_fell_lately_is_gone_to_only_after_a_longer_silence() -> None:
    choice, candidates = two()

    def falls_silent(one: str, other: str, now: float) -> int:
        """Return after how many losses ``one`` is left."""
        for number in range(1, LOSSES + 1):
            now += 0.3
            choice.probed(one, None, now)
            choice.probed(other, 30.0, now)
            choice.review(AUTO, candidates, now)
            if choice.used == other:
                return number
        return 0

    assert falls_silent(A, B, 0.0) == LEAVE_LOSSES
    assert falls_silent(B, A, 10.0) == DOUBTFUL_LOSSES > LEAVE_LOSSES
    # B has fallen once, and is forgiven.
    assert falls_silent(A, B, 20.0 + SHUN_S) == LEAVE_LOSSES


def test_an_answer_that_comes_late_is_an_answer() -> None:
    choice, candidates = two()
    for number in range(1, 4 * LOSSES):
        choice.probed(A, None, number * 0.3)
        choice.probed(B, 40.0, number * 0.3)
        if number % (LEAVE_LOSSES - 1) == 0:
            choice.probed(A, 1400.0, number * 0.3)
        choice.review(AUTO, candidates, number * 0.3)
    assert choice.used == A
    # A far exit gets the time that it takes, but no more than before the next regular echo.
    assert choice.late_after(A) == 0.9
    assert choice.late_after(B) == 0.3


def test_who_fell_and_returned_is_not_the_next_one() -> None:
    exits = Exits(a=20.0, b=40.0, c=60.0)
    exits.run(60.0)
    exits.dead.add(A)
    exits.run(6.0)
    exits.dead.clear()
    exits.run(20.0)
    exits.dead.add(B)
    exits.run(6.0)
    assert [used for _, used in exits.history if used] == [A, B, C]


def test_a_better_exit_waits_until_it_was_better_for_long_and_the_last_change_is_past() -> None:
    choice, candidates = two()
    candidates[C] = Candidate(ExitOffer(), True)
    now, changed_at = 0.0, None
    while changed_at is None and now < 2 * STAY_S:
        now += 1.0
        choice.probed(A, 100.0, now)
        choice.probed(C, 10.0, now)
        choice.review(AUTO, candidates, now)
        changed_at = now if choice.used == C else None
    assert changed_at == STAY_S
    # Much later, it is how long the other one was better that counts.
    choice, candidates = two()
    for late in range(1, int(STAY_S) + 100):
        choice.probed(A, 100.0, float(late))
        choice.review(AUTO, candidates, float(late))
    begun = late + 1.0
    candidates[C] = Candidate(ExitOffer(), True)
    while choice.used == A:
        late += 1
        choice.probed(A, 100.0, float(late))
        choice.probed(C, 10.0, float(late))
        choice.review(AUTO, candidates, float(late))
        assert late < begun + 2 * STABLE_S
    assert late - begun == STABLE_S
