"""How much each buyer may have at a time, and the account of the month on disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nostrvpn.daemon.market_hours import SHARE_S, Hours
from nostrvpn.exits.limits import ExitLimits
from nostrvpn.io.store import Store
from nostrvpn.machine import Entropy, Moment
from nostrvpn.market.opening import Standing
from nostrvpn.market.sale import Sale
from nostrvpn.market.terms import Price, Terms

WALL = 1_770_000_000.0
GBIT = 125_000_000


def sale(**limits: int) -> Sale:
    return Sale(Terms(Price(1, 1), ("https://mint.example",)), limits=ExitLimits(**limits))


def lease(name: str, bps: int, total: int = 0) -> Any:
    meter = SimpleNamespace(total=total)
    return SimpleNamespace(id=name, meter=meter, recent_bps=bps, is_live=True)


def at(now: float) -> Moment:
    return Moment(now, WALL + now, Entropy(bytes(32)))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "market.db"))


@pytest.mark.parametrize(
    ("limits", "rates", "expected"),
    [
        ({}, [GBIT], GBIT),  # alone: the whole line
        ({}, [GBIT, GBIT], GBIT // 2),
        ({}, [GBIT, 1000, 1000], GBIT),  # who takes little leaves the rest
        ({"bandwidth": 8_000_000}, [GBIT, GBIT], 4_000_000),
        ({"client_rate": 2_000_000}, [GBIT], 2_000_000),
    ],
)
def test_a_line_is_shared_by_those_who_want_it(
    store: Store, limits: dict[str, int], rates: list[int], expected: int
) -> None:
    hours = Hours(store, "sale")
    leases = [lease(str(n), rate) for n, rate in enumerate(rates)]
    hours.look(sale(**limits), leases, GBIT, at(0))
    assert 0.9 * expected <= hours.rate <= expected


def test_shares_are_not_weighed_at_every_look(store: Store) -> None:
    hours = Hours(store, "sale")
    hours.look(sale(), [lease("a", GBIT)], GBIT, at(0))
    both = [lease("a", GBIT), lease("b", GBIT)]
    hours.look(sale(), both, GBIT, at(SHARE_S - 1))
    alone = hours.rate
    hours.look(sale(), both, GBIT, at(SHARE_S))
    assert hours.rate < 0.6 * alone


def test_the_months_account_is_there_after_a_crash(store: Store) -> None:
    hours = Hours(store, "sale")
    wanted = sale(budget=100_000_000)
    assert hours.look(wanted, [lease("a", 0)], GBIT, at(0)) is Standing.OPEN
    hours.look(wanted, [lease("a", 0, 99_999_999)], GBIT, at(2))
    assert hours.standing is Standing.CLOSED
    assert "budget" in hours.why
    again = Hours(store, "sale")
    again.begin([lease("a", 0, 99_999_999)])
    assert again.look(wanted, [lease("a", 0, 99_999_999)], GBIT, at(4)) is Standing.CLOSED
    assert again.look(sale(), [], GBIT, at(6)) is Standing.OPEN
