"""The network key moves forward only; the ring keeps what is needed and lets the rest go."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Entropy
from nostrvpn.signaling.network_key import (
    MAX_FORMER,
    Keyring,
    NetworkKey,
    make_key,
    received_key,
)
from nostrvpn.signaling.ratchet import DAY_S, MAX_STEPS, standing_day, step_to

DAY = 20_000
NOON = DAY * DAY_S + 43_200.0
MIDNIGHT = DAY * DAY_S + DAY_S
ME = "ab" * 32


def key(seed: str = "k", wall: float = NOON) -> NetworkKey:
    return make_key(sha256(seed.encode()).hexdigest()[:16], wall, Entropy(seed.encode()))


def ring(*seeds: str) -> Any:
    made = Keyring()
    for seed in seeds:
        made = made.adopt(key(seed), NOON)
    return made


@given(st.integers(0, 60), st.integers(0, 60))
def test_every_way_to_a_day_gives_the_same_key(first, second):
    direct = key().at(DAY + first + second)
    assert key().at(DAY + first).at(DAY + first + second) == direct
    assert direct.secret == step_to(key().secret, DAY, DAY + first + second)


def test_no_key_goes_back():
    today = key().at(DAY + 3)
    assert today.at(DAY + 2) is today
    with pytest.raises(ValueError, match="no way"):
        step_to(today.secret, DAY + 3, DAY + 2)
    advanced = ring("k").advance(NOON + 3 * DAY_S)
    assert advanced.advance(NOON).current == advanced.current
    # Nor by a key of an earlier day that somebody hands over.
    assert advanced.adopt(key(), NOON).current == advanced.current


def test_what_is_known_to_be_right_gives_way_to_nothing():
    right = key()
    wrong = replace(right.at(DAY + 1), secret=b"w" * 32)
    held = ring("k")
    for told_by in ("", ME):
        assert held.adopt(wrong.told(told_by), NOON) == held
        # Nor does a later day of it end the reading of the days before.
        assert held.adopt(right.at(DAY + 2).told(told_by), NOON) == held


def test_plain_members_who_say_the_same_make_no_key_right():
    right, others = key(), ("cd" * 32, ME)
    held = Keyring().adopt(right.told(others[0]), NOON)
    # Nor does the roster's choice of the key that is held.
    for said in (right.told(others[1]), right.told(others[0]), held.keys[0]):
        held = held.adopt(said, NOON)
        assert [each.told_by for each in held.keys] == [others[0]]
    assert held.adopt(right, NOON).keys[0].told_by == ""
    wrong = replace(right, secret=b"w" * 32)
    assert held.adopt(wrong.told(others[1]), NOON).keys == (wrong.told(others[1]),)
    assert held.adopt(wrong, NOON).keys == (wrong,)


def test_yesterdays_secret_is_let_go_an_hour_after_midnight():
    held = ring("k")
    old = held.current.secret
    for seconds, is_kept in ((-3601, True), (0, True), (3599, True), (3601, False)):
        held = held.advance(MIDNIGHT + seconds)
        assert (old.hex() in json.dumps(held.to_json())) is is_kept, seconds


@pytest.mark.parametrize(
    ("seconds", "days"), [(-7200, 1), (-1800, 2), (0, 2), (1800, 2), (7200, 1)]
)
def test_around_midnight_two_days_are_read(seconds, days):
    held = ring("k").advance(MIDNIGHT + seconds)
    reading = held.reading(MIDNIGHT + seconds)
    assert len(reading) == days
    assert len({key.board().public_key for key in reading}) == days


@pytest.mark.parametrize("ours", [-3000, 0, 3000])
@pytest.mark.parametrize("theirs", [-500, 500])
def test_whatever_the_hour_a_writer_with_another_clock_is_read(ours, theirs):
    for hour in range(48):
        wall = NOON + hour * 3600 + ours
        reader, writer = ring("k").advance(wall), ring("k").advance(wall + theirs)
        board = writer.today(writer.current, wall + theirs).board()
        assert board.public_key in {key.board().public_key for key in reader.reading(wall)}


def test_who_was_away_reads_the_days_it_missed():
    later = NOON + 5 * DAY_S
    held = ring("k").advance(later, behind=ring("k").lag(later))
    assert [key.day for key in held.reading(later)] == list(range(DAY, DAY + 6))
    assert held.advance(later).reading(later)[0].day == DAY + 5


def test_former_keys_are_few_and_end_after_sixty_days():
    held = ring(*"abcdefgh")
    assert len(held.keys) == 1 + MAX_FORMER
    assert held.current.id == key("h").id
    assert len(held.advance(NOON + 59 * DAY_S).keys) == 1 + MAX_FORMER
    assert held.advance(NOON + 61 * DAY_S).keys == (held.advance(NOON + 61 * DAY_S).current,)


def test_a_former_key_that_is_chosen_again_stands_where_it_stood():
    held = ring("a", "b").advance(NOON + 2 * DAY_S)
    again = held.adopt(key("a"), NOON + 2 * DAY_S)
    assert again.current.id == key("a").id
    assert again.current.day == DAY + 2
    assert len(again.keys) == 2


def test_a_clock_that_is_years_ahead_takes_no_step():
    held = ring("k")
    ahead = NOON + (MAX_STEPS + 10) * DAY_S
    assert held.advance(ahead) == held
    assert held.reading(ahead)
    assert held.advance(NOON + DAY_S).current.day == DAY + 1


def test_a_welcome_hands_over_today_and_not_the_day_before():
    later = NOON + 4 * DAY_S
    giver = ring("k")  # stands days behind
    body = json.loads(json.dumps(giver.welcome_fields(later)))
    taken: Any = Keyring().adopt(received_key(body["key"], later), later)
    assert taken.current == giver.current.at(DAY + 4)
    assert giver.current.secret.hex() not in json.dumps(body)
    assert Keyring().welcome_fields(NOON) == {}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"key": None},
        {"key": []},
        {"key": {"id": "x" * 16, "day": DAY, "secret": "00" * 32}},
        {"key": {"id": "0" * 16, "day": DAY + 9, "secret": "00" * 32}},
        {"key": {"id": "0" * 16, "day": True, "secret": "00" * 32}},
        {"key": {"id": "0" * 16, "day": DAY, "secret": "00" * 31}},
        {"key": {"id": "0" * 16, "day": DAY, "secret": "zz" * 32}},
        {"key": {"id": "0" * 16, "day": 1 << 40, "secret": "00" * 32}},
        {"key": {"id": "0" * 16, "day": DAY, "secret": "00" * 32, "left": -1}},
    ],
)
def test_a_welcome_without_a_key_of_now_is_refused(body):
    with pytest.raises(PeerMisbehaved, match=r"key"):
        received_key(body.get("key"), NOON)


def test_a_stored_ring_is_read_as_it_was_written():
    held = ring("a", "b", "c").advance(NOON + DAY_S)
    assert Keyring.from_json(json.loads(json.dumps(held.to_json()))) == held
    assert Keyring.from_json([]) == Keyring()


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=70),
        lambda inner: (
            st.lists(inner, max_size=7)
            | st.dictionaries(st.sampled_from(["id", "day", "secret", "left"]), inner)
        ),
    )
)
def test_a_bent_ring_is_refused_and_never_more(value):
    with suppress(PeerMisbehaved):
        assert len(Keyring.from_json(value).keys) <= 1 + MAX_FORMER


def test_a_ring_with_one_key_twice_or_out_of_order_is_refused():
    rows = ring("a", "b").to_json()
    for bad in ([rows[0], rows[0]], rows[::-1], rows * 3):
        with pytest.raises(PeerMisbehaved):
            Keyring.from_json(bad)


def test_no_secret_shows():
    assert key().secret.hex() not in repr(ring("k"))
    assert repr(key().secret) not in repr(ring("k"))
    assert standing_day(NOON) == DAY
