"""The month's account, and fair shares, in virtual time."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.exits.limits import ExitLimits, Ledger, Volume, fair_rate, month_of, next_month

A, B = ip_address("10.64.0.2"), ip_address("fd64::2")
NOVEMBER = 1_795_000_000.0


def test_what_is_used_is_added_up_over_counters_that_begin_anew() -> None:
    ledger = Ledger()
    assert ledger.take({A: Volume(100, 50)}, 0.0, NOVEMBER) == 150
    assert ledger.take({A: Volume(300, 50), B: Volume(0, 1000)}, 10.0, NOVEMBER + 10) == 1200
    assert ledger.rates == {A: Volume(20, 0), B: Volume(0, 100)}
    # The table was made anew.
    assert ledger.take({A: Volume(40, 0)}, 20.0, NOVEMBER + 20) == 40
    assert ledger.volumes == {A: Volume(340, 50), B: Volume(0, 1000)}
    assert ledger.used == 1390
    assert ledger.take({A: Volume(40, 0)}, 30.0, NOVEMBER + 30) == 0
    assert ledger.rates == {}


def test_a_month_ends_with_the_calendar_and_not_with_a_restart_or_a_clock_set_back() -> None:
    ledger = Ledger()
    ledger.take({A: Volume(900, 0)}, 0.0, NOVEMBER)
    assert ledger.is_spent(900)
    assert not ledger.is_spent(1000)
    assert not ledger.is_spent(0)
    again = Ledger.from_json(ledger.to_json())
    again.tell_time(NOVEMBER + 60)
    assert again.is_spent(900)
    again.tell_time(NOVEMBER - 40 * 86_400)
    assert again.is_spent(900)
    assert again.tell_time(next_month(NOVEMBER))
    assert not again.is_spent(900)


def test_months_begin_where_the_calendar_says() -> None:
    at = NOVEMBER
    for _ in range(30):
        following = next_month(at)
        assert month_of(following - 1) < month_of(following)
        assert month_of(following - 1) == month_of(at)
        at = following


def test_a_bandwidth_is_shared_fairly_among_those_who_want_it() -> None:
    limits = ExitLimits(bandwidth=1 << 20)
    whole = fair_rate(limits, [])
    assert whole == 1 << 20
    assert fair_rate(limits, [1 << 20]) == whole
    assert fair_rate(limits, [1 << 19, 1 << 19]) == 1 << 19
    # Who takes little leaves the rest.
    assert fair_rate(limits, [1 << 16, 900_000]) > 900_000
    assert fair_rate(ExitLimits(1000, 1 << 20), [5]) == 1000
    assert fair_rate(ExitLimits(1000), [5]) == 1000
    assert fair_rate(ExitLimits(), [5]) == 0


@pytest.mark.parametrize("seed", range(5))
def test_guests_who_take_all_they_may_come_to_equal_shares(seed: int) -> None:
    rng = random.Random(seed)
    limits = ExitLimits(bandwidth=rng.randrange(10**6, 10**9))
    modest = [rng.randrange(1, limits.bandwidth // 100) for _ in range(rng.randrange(10))]
    hungry = rng.randrange(1, 20)
    rate = fair_rate(limits, modest)
    for _ in range(20):
        wanted = [rate] * hungry + [min(one, rate) for one in modest]
        scale = min(1.0, limits.bandwidth / sum(wanted))
        rate = fair_rate(limits, [int(one * scale) for one in wanted])
    left = limits.bandwidth - sum(min(one, rate) for one in modest)
    assert 0.75 * left / hungry <= rate <= 1.05 * left / hungry


def test_limits_survive_being_stored_and_damage_is_found() -> None:
    limits = ExitLimits(1, 2, 3, 4)
    assert ExitLimits.from_json(limits.to_json()) == limits
    for damaged in (
        None,
        {},
        limits.to_json() | {"budget": -1},
        limits.to_json() | {"budget": "1"},
    ):
        with pytest.raises(PeerMisbehaved):
            ExitLimits.from_json(damaged)
    for stored in (None, {"month": 5, "used": 1}, {"month": "2026-11", "used": True}):
        with pytest.raises(PeerMisbehaved):
            Ledger.from_json(stored)
