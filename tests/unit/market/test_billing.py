"""What is owed follows from totals alone: monotone, and the same after any restart."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.cashu.proof import Keyset, Proof
from nostrvpn.market.billing import (
    GRACE_MS,
    LEEWAY_BYTES,
    Bill,
    LeaseState,
    Meter,
    bytes_left,
    credit_msat,
    is_fair,
    is_low,
    ms_left,
    ramp,
)
from nostrvpn.market.terms import GIB, MIB, Price

PRICE = Price.parse("20sat/GiB", "5sat/h")
SIZES = st.integers(0, 1 << 42)
PRICES = st.builds(
    Price, st.integers(1, 1 << 32), st.integers(0, 10**7), st.sampled_from([0, 1, 5000, 10**6])
)
BILLS = st.builds(
    Bill,
    PRICES,
    st.sampled_from([0, MIB]),
    st.sampled_from([0, 256 * 1024]),
    SIZES,
    st.integers(0, 10**9),
    st.integers(0, 10**9),
)
ORDER = [LeaseState.FREE, LeaseState.PAID, LeaseState.GRACE, LeaseState.SUSPENDED]


@given(BILLS, st.integers(0, 1 << 40), st.integers(0, 10**8))
def test_more_use_never_betters_a_lease_and_more_money_never_worsens_it(bill, more, ms):
    used = Bill(
        bill.price,
        bill.free_bytes,
        bill.grace_bytes,
        bill.used_bytes + more,
        bill.ms + ms,
        bill.paid_msat,
    )
    assert used.due_msat >= bill.due_msat
    assert ORDER.index(used.state) >= ORDER.index(bill.state)
    paid = Bill(
        bill.price,
        bill.free_bytes,
        bill.grace_bytes,
        bill.used_bytes,
        bill.ms,
        bill.paid_msat + more,
    )
    assert (bill.state is LeaseState.SUSPENDED) or (paid.state is not LeaseState.SUSPENDED)


@given(BILLS)
def test_the_kernel_never_serves_beyond_suspension(bill):
    left = bytes_left(bill)
    if left < 1 << 60:
        over = Bill(
            bill.price,
            bill.free_bytes,
            bill.grace_bytes,
            bill.used_bytes + left + bill.price.step_bytes + 1,
            bill.ms,
            bill.paid_msat,
        )
        if bill.price.step_msat:
            assert over.state is LeaseState.SUSPENDED
    if bill.state is LeaseState.SUSPENDED and not bill.price.hour_msat:
        assert left == 0


def test_states_by_the_bill():
    def state(used, paid, ms=0):
        return Bill(Price(MIB, 1000), MIB, 256 * 1024, used, ms, paid).state

    assert state(0, 0) is LeaseState.FREE
    assert state(MIB, 0) is LeaseState.FREE
    assert state(MIB + 1, 0) is LeaseState.GRACE
    assert state(MIB + 256 * 1024 + 1, 0) is LeaseState.SUSPENDED
    assert state(MIB + 1, 1000) is LeaseState.PAID
    assert state(3 * MIB, 2000) is LeaseState.PAID
    assert state(3 * MIB + 1, 2000) is LeaseState.GRACE


def test_time_left():
    bill = Bill(Price(MIB, 1000, 3_600_000), 0, 0, 0, 10_000, 20_000)
    assert ms_left(bill) == 10_000 + GRACE_MS
    assert ms_left(Bill(Price(MIB, 1000), 0, 0, 0, 0, 0)) is None


READINGS = st.lists(
    st.tuples(st.sampled_from(["grow", "reset", "reboot", "restart"]), st.integers(0, 1 << 33)),
    max_size=30,
)


@given(READINGS)
def test_meter_counts_every_byte_through_resets_and_restarts(steps):
    meter, rx, truth, epoch = Meter(), 0, 0, 0
    for kind, size in steps:
        if kind == "reset":  # seen before the counter is beyond what it was
            rx = min(size, rx - 1) if rx else 0
            truth += rx
        elif kind == "reboot":
            rx, epoch = size, epoch + 1
            truth += size
        elif kind == "restart":
            meter = Meter.from_json(json.loads(json.dumps(meter.to_json())))
        else:
            rx += size
            truth += size
        meter.read(rx, 2 * rx, str(epoch))
        assert (meter.rx, meter.tx) == (truth, 2 * truth)


def test_meter_goes_round():
    meter = Meter()
    meter.read((1 << 64) - 100, 5)
    assert meter.read(50, 5) == 150
    assert meter.rx == (1 << 64) + 50


@pytest.mark.parametrize(
    "stored", [[], [1, 2, 3, 4], [1, 2, 3, -4, ""], [1, 2, 3, 4, 5], ["1", 2, 3, 4, ""]]
)
def test_damaged_meter_is_refused(stored):
    with pytest.raises(ValueError, match="not a meter"):
        Meter.from_json(stored)


@given(PRICES, st.integers(1, 10**6), st.sampled_from([0, 100, 1000, 5000]))
def test_slices_grow_by_a_third_up_to_the_most(price, most, fee_ppk):
    sizes = [ramp(seq, price, most, fee_ppk) for seq in range(40)]
    assert all(0 < size <= most for size in sizes)
    for small, large in pairwise(sizes):
        assert small <= large <= max(small + 1, small * 4 // 3)
        assert large > small or large == most
    assert sizes[0] == most or 1000 * sizes[0] >= price.step_msat + fee_ppk


def test_first_slice_is_one_step():
    assert [ramp(seq, PRICE, 100) for seq in range(6)] == [1, 2, 3, 4, 5, 6]
    assert ramp(60, PRICE, 100) == 100


def test_credit_is_what_the_mint_leaves():
    keysets = {"a": Keyset("a", "sat", True, 100, {}), "b": Keyset("b", "sat", True, 0, {})}
    proofs = [Proof("a", 4, "s", "c"), Proof("a", 1, "t", "c"), Proof("b", 2, "u", "c")]
    assert credit_msat(proofs, keysets) == 6800


def test_a_bill_is_compared_with_the_own_count():
    own = (10 * GIB, 3_600_000)
    assert is_fair(PRICE, own, own)
    assert is_fair(PRICE, (10 * GIB * 111 // 100 + LEEWAY_BYTES, 3_600_000), own)
    assert not is_fair(PRICE, (10 * GIB * 112 // 100 + 2 * LEEWAY_BYTES, 3_600_000), own)
    assert not is_fair(PRICE, (0, 2 * 3_600_000), (0, 3_600_000))


def test_low_is_two_steps_or_ten_seconds():
    price = Price(MIB, 1000)

    def bill(used):
        return Bill(price, 0, 0, used, 0, 100_000)

    assert not is_low(bill(98 * MIB), 0)
    assert is_low(bill(98 * MIB + 1), 0)
    assert not is_low(bill(50 * MIB), 5 * MIB)
    assert is_low(bill(50 * MIB + 1), 5 * MIB)
