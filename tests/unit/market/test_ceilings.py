"""Ceilings: whatever is asked, and whatever the clocks do, none is passed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nostrvpn.machine import Entropy, Moment
from nostrvpn.market.ceilings import DAY, HOUR, Ceilings, Spending
from nostrvpn.market.terms import Price

SMALL = Ceilings(slice_sat=40, hour_sat=100, day_sat=250, reserve_sat=15)
START = 1_790_000_000


def at(now, wall=None):
    return Moment(float(now), float(START + now if wall is None else wall), Entropy(b"ceilings"))


SPEND = st.sampled_from([("ask", 40), ("show", 40)])
STEPS = st.one_of(
    SPEND,
    SPEND,
    SPEND,
    st.tuples(st.just("ask"), st.integers(0, 60)),
    st.tuples(st.just("show"), st.integers(1, 60)),
    st.tuples(st.just("put back"), st.integers(0, 3)),
    st.tuples(st.just("pass"), st.sampled_from([1, 50, HOUR - 200, HOUR - 1, HOUR + 60, DAY - 1])),
    st.tuples(st.just("crash"), st.just(0)),
    st.tuples(st.just("set the clock"), st.integers(-400 * DAY, 400 * DAY)),
    # The machine starts anew, after so long.
    st.tuples(st.just("boot"), st.sampled_from([1, 1000, HOUR - 1, HOUR + 60, DAY - 1])),
)


class Rig:
    """A wallet, a Spending, and what truly happened, by the true time."""

    def __init__(self):
        self.true = self.up = 0.0
        self.set_wrong = self.boots = 0
        self.wallet = 100_000
        self.shown = []
        self.aside, self.total = {}, {}
        self.asked = 0
        self.spending = Spending(self.moment, "0")
        self.stored = ""
        self.store()

    @property
    def moment(self):
        return at(self.up, START + self.true + self.set_wrong)

    def store(self):
        self.stored = json.dumps(self.spending.record(self.moment))

    def do(self, what, number):
        match what:
            case "ask":
                self.ask(number)
            case "show" if self.aside:
                ref = next(iter(self.aside))
                sat = min(number, self.aside[ref])
                self.total[ref] = self.total.get(ref, 0) + sat
                self.spending.show(ref, self.total[ref], self.moment)
                self.store()
                self.aside[ref] -= sat
                self.shown.append((self.true, sat))
            case "put back" if len(self.aside) > number:
                ref = list(self.aside)[number]
                self.spending.put_back(ref, self.moment)
                self.store()
                self.wallet += self.aside.pop(ref)
            case "pass":
                self.true += number
                self.up += number
            case "set the clock":
                self.set_wrong = number
            case "boot":
                self.true += number
                self.up = float(number % 100)
                self.set_wrong = 0
                self.boots += 1
        if what in ("crash", "boot"):
            self.spending = Spending(self.moment, str(self.boots), json.loads(self.stored))
            self.store()  # as a buyer's first step does: what time it is now is known from then on

    def ask(self, sat):
        allowed = self.spending.allowed(SMALL, self.wallet, self.moment)
        sat = min(sat, allowed)
        if sat:
            ref = f"lease/{self.asked}"
            self.asked += 1
            self.spending.set_aside(ref, sat, self.moment)
            self.store()
            self.aside[ref] = sat
            self.wallet -= sat

    def out(self, seconds):
        shown = sum(sat for when, sat in self.shown if when > self.true - seconds)
        return shown + sum(self.aside.values())


@settings(max_examples=600, deadline=None)
@given(st.lists(STEPS, min_size=10, max_size=80))
def test_no_ceiling_is_passed_whatever_is_asked_and_whatever_clocks_and_crashes_do(steps):
    rig = Rig()
    for what, number in steps:
        rig.do(what, number)
        assert rig.out(HOUR) <= SMALL.hour_sat
        assert rig.out(DAY) <= SMALL.day_sat
        assert rig.wallet >= SMALL.reserve_sat


def test_what_was_allowed_comes_back_when_an_hour_and_a_day_are_over():
    spending = Spending(at(0), "first")
    for number in range(2):
        spending.set_aside(f"{number}", 40, at(0))
        spending.show(f"{number}", 40, at(0))
    assert spending.allowed(SMALL, 1000, at(10)) == 20
    assert spending.allowed(SMALL, 1000, at(HOUR + 60)) == 100
    assert spending.spent(DAY, at(HOUR + 60)) == 80
    assert spending.spent(DAY, at(DAY + 60)) == 0


def test_money_set_aside_does_not_age_until_it_is_shown():
    spending = Spending(at(0), "first")
    spending.set_aside("bundle", 40, at(0))
    assert spending.spent(HOUR, at(5 * HOUR)) == 40
    spending.show("bundle", 30, at(5 * HOUR))
    spending.put_back("bundle", at(5 * HOUR))
    assert spending.spent(HOUR, at(5 * HOUR)) == 30
    assert spending.spent(HOUR, at(6 * HOUR + 60)) == 0


def test_the_same_ref_counts_once():
    spending = Spending(at(0), "first")
    spending.set_aside("slice", 30, at(0))
    spending.set_aside("slice", 30, at(1))
    assert spending.spent(DAY, at(1)) == 30
    spending.show("slice", 30, at(1))
    spending.show("slice", 30, at(2))
    assert spending.spent(DAY, at(2)) == 30


def test_a_wrong_date_at_a_start_releases_what_was_spent_once_and_no_more():
    spending = Spending(at(0), "first")
    released = 0
    for boot in range(1, 20):
        while spending.allowed(SMALL, 1000, at(5)) > 0:
            sat = spending.allowed(SMALL, 1000, at(5))
            spending.set_aside(f"{boot}/{released}", sat, at(5))
            spending.show(f"{boot}/{released}", sat, at(5))
            released += sat
        # Each start believes in the same wrong year.
        record = json.loads(json.dumps(spending.record(at(5))))
        spending = Spending(at(4, START + 400 * DAY), f"{boot}", record)
    assert released == 2 * SMALL.hour_sat


def test_an_old_date_at_a_start_releases_what_was_spent_once_when_it_is_mended():
    spending = Spending(at(0), "first")
    released, true = 0, 10
    for boot in range(20):
        # Off for a day; then every other start has an old date, and the next one the right one.
        true += DAY if boot == 0 else 1
        wall = START + true - (400 * DAY if boot % 2 == 0 else 0)
        record = json.loads(json.dumps(spending.record(at(5, wall))))
        spending = Spending(at(2, wall), f"{boot}", record)
        while sat := spending.allowed(SMALL, 1000, at(3, wall)):
            spending.set_aside(f"{boot}/{released}", sat, at(3, wall))
            spending.show(f"{boot}/{released}", sat, at(3, wall))
            released += sat
    assert released == 2 * SMALL.hour_sat


def test_the_reserve_stays_in_the_wallet_and_words_say_so():
    spending = Spending(at(0), "first")
    assert spending.allowed(SMALL, 20, at(0)) == 5
    assert spending.allowed(SMALL, 15, at(0)) == 0
    assert "15 stay" in spending.why_not(SMALL, 15, at(0))
    spending.set_aside("all", 100, at(0))
    assert "100 of 100 sat for an hour" in spending.why_not(SMALL, 1000, at(0))


@pytest.mark.parametrize(
    ("traffic", "time", "refused"),
    [
        ("100sat/GiB", "200sat/h", None),
        ("101sat/GiB", "0sat/h", "sat/GiB is above 100 sat/GiB"),
        ("20sat/GiB", "201sat/h", "201 sat/h is above 200 sat/h"),
    ],
)
def test_prices_above_the_ceiling_are_refused(traffic, time, refused):
    found = Ceilings().refuse_price(Price.parse(traffic, time))
    assert (found is None) if refused is None else (found is not None and refused in found)
