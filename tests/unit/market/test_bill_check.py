"""The buyer's own count against bills that are younger than it."""

from __future__ import annotations

from typing import Any, cast

from nostrvpn.machine import Entropy, Moment
from nostrvpn.market.bill_check import READINGS, OwnCount
from nostrvpn.market.billing import Bill, Meter
from nostrvpn.market.effects import Counted, Counters
from nostrvpn.market.messages import Usage
from nostrvpn.market.terms import MIB, Price

PRICE = Price(10 * MIB, 1000)


class Quoted:
    price = PRICE


class Access:
    key = "the seller's"


class Lease:
    """As much of a lease as a count needs."""

    quote, exit_access = Quoted(), Access()
    free_bytes = ms = started_at = counted_at = 0
    meter: object = None

    def counted(self) -> Meter:
        return Meter()

    def bill(self, used: int) -> Bill:
        return Bill(PRICE, 0, 0, used, self.ms, 0)


USAGE = Usage(
    lease_id="a" * 32,
    number=1,
    at=0,
    rx=0,
    tx=40 * MIB,
    billable=40 * MIB,
    ms=0,
    due_msat=4000,
    paid_msat=0,
    state="paid",
)


def read(count: OwnCount, total: int, at: float) -> None:
    moment = Moment(at, 1_800_000_000 + at, Entropy(bytes(32)))
    count.read(Counted({Access.key: Counters(total, 0, int(moment.wall))}, "boot"), moment)


def counted(total: int) -> OwnCount:
    made = OwnCount(cast("Any", Lease()))
    read(made, 0, 0.0)
    read(made, total, 2.0)
    return made


def test_a_bill_within_the_tolerance_agrees_at_once():
    count = counted(38 * MIB)
    assert count.agrees(USAGE)
    assert not count.is_doubting


def test_a_bill_that_is_younger_than_our_reading_is_no_overcharge():
    count = counted(9 * MIB)
    assert not count.agrees(USAGE)
    read(count, 9 * MIB, 4.0)  # it was on its way when the bill came
    assert count.is_doubting
    assert count.overcharge is None
    read(count, 41 * MIB, 6.0)
    assert (count.is_doubting, count.overcharge) == (False, None)


def test_a_bill_above_our_count_is_called_so_after_some_readings():
    count = counted(9 * MIB)
    assert not count.agrees(USAGE)
    for number in range(READINGS):
        assert count.overcharge is None
        assert not count.agrees(replace_number(number))  # asking again wins no time
        read(count, 9 * MIB, 4.0 + number)
    assert count.overcharge is not None
    assert "41943040 bytes" in count.overcharge


def replace_number(number: int) -> Usage:
    fields = {name: getattr(USAGE, name) for name in USAGE.__struct_fields__}
    return Usage(**fields | {"number": number + 2})


def test_a_last_bill_may_be_younger_by_some_seconds_of_traffic():
    count = counted(9 * MIB)  # 4.5 MiB a second
    assert count.refuse(USAGE) is not None
    assert count.refuse(USAGE, 5) is None
