"""When strangers are served: hours of the day, the month's budget, and the minute before either ends."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from nostrvpn.errors import UsageError
from nostrvpn.exits.limits import Ledger
from nostrvpn.market.opening import CLOSING_S, Opening, Quiet, Standing

NOON = 12 * 3600
WALL = datetime(2026, 3, 10, 12, tzinfo=UTC).timestamp()
MB = 1_000_000


@pytest.mark.parametrize(
    ("text", "within", "outside"),
    [
        ("01:00-07:00", ("01:00", "06:59"), ("00:59", "07:00", "12:00")),
        ("22:30 - 6:00", ("22:30", "23:59", "00:00", "05:59"), ("06:00", "22:29")),
    ],
)
def test_hours_of_the_day(text: str, within: tuple[str, ...], outside: tuple[str, ...]) -> None:
    quiet = Quiet.parse(text)
    assert Quiet.parse(str(quiet)) == quiet

    def at(clock: str) -> int:
        hours, minutes = map(int, clock.split(":"))
        return 3600 * hours + 60 * minutes + 59 * (clock in within)

    assert all(quiet.covers(at(clock)) for clock in within)
    assert not any(quiet.covers(at(clock)) for clock in outside)


@pytest.mark.parametrize("text", ["", "1-7", "01:00", "25:00-26:00", "01:60-02:00", "01:00-01:00"])
def test_what_is_no_hours(text: str) -> None:
    with pytest.raises(UsageError):
        Quiet.parse(text)


def test_quiet_hours_are_told_a_minute_before() -> None:
    opening, quiet = Opening(Ledger()), Quiet.parse("01:00-07:00")
    for day_s, expected in (
        (3600 - CLOSING_S - 1, Standing.OPEN),
        (3600 - CLOSING_S, Standing.CLOSING),
        (3600, Standing.CLOSED),
        (7 * 3600, Standing.OPEN),
    ):
        assert opening.look(0, quiet, 0, float(day_s), day_s) is expected
        assert bool(opening.why) is (expected is not Standing.OPEN)


def test_a_budget_is_of_what_all_moved_in_a_month_and_of_no_earlier_run() -> None:
    opening = Opening(Ledger("2026-03", 40 * MB))
    opening.begin({"old": 30 * MB})
    assert opening.count({"old": 30 * MB}, 0.0, WALL) == 0
    assert opening.count({"old": 31 * MB, "new": 4 * MB}, 10.0, WALL) == 500_000
    assert opening.count({"new": 4 * MB, "third": MB}, 20.0, WALL) == 100_000  # one is gone
    assert opening.account.used == 46 * MB
    assert opening.look(50 * MB, None, 0, 20.0, NOON) is Standing.OPEN
    opening.count({"new": 8 * MB, "third": MB}, 30.0, WALL)
    assert opening.look(50 * MB, None, 0, 30.0, NOON) is Standing.CLOSED
    assert opening.look(0, None, 0, 30.0, NOON) is Standing.OPEN
    opening.count({"new": 8 * MB}, 40.0, WALL + 31 * 86_400)
    assert opening.look(50 * MB, None, 0, 40.0, NOON) is Standing.OPEN


def test_the_end_of_a_budget_is_told_while_a_minute_of_it_is_left() -> None:
    opening = Opening(Ledger("2026-03", 900 * MB))
    assert opening.look(1000 * MB, None, MB, 0.0, NOON) is Standing.OPEN
    assert opening.look(1000 * MB, None, 2 * MB, 10.0, NOON) is Standing.CLOSING
    # Who was told is not called back, although less is used now.
    assert opening.look(1000 * MB, None, 0, 20.0, NOON) is Standing.CLOSING
    assert opening.look(1000 * MB, None, 0, 10.0 + CLOSING_S, NOON) is Standing.CLOSED
    # More was bought of the hoster.
    assert opening.look(2000 * MB, None, 0, 80.0, NOON) is Standing.OPEN
