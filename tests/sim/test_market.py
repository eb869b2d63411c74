"""A market with cheats on both sides: money is conserved, and what cheats gain is bounded."""

from __future__ import annotations

import pytest

from nostrvpn.market.terms import MIB
from tests.sim.market_day import market_day


@pytest.mark.timeout(120)
def test_a_market_with_cheats_on_both_sides_conserves_money_and_bounds_their_gains():
    day = market_day(seed=3, buyers=15, sellers=10, hours=3)
    assert day.total_after == day.total_before
    assert day.ledgers_wrong == 0
    assert day.leases >= 10
    assert day.gib > 0.5
    # A seller that serves nothing has the first slices; one that overcharges a few more.
    assert day.worst_unserved_msat <= 100_000  # no more than one largest slice, ever
    assert 0 < day.unserved_msat["NonServer"] <= 3000 * day.leases
    assert day.unserved_msat["Overcharger"] > 0
    # An honest one keeps less than a sat of what was not used.
    assert day.unserved_msat["SellerParty"] < 1000 * day.leases
    # Buyers that do not pay get the trial and the grace of a lease, and no money back by racing.
    assert day.raced_sat == 0
    assert day.worst_unpaid_bytes <= 2 * MIB
    assert day.farmed_bytes <= 10 * 4 * 2 * MIB  # sellers, trials of one network a day, with grace
    assert day.worst_over_budget <= 0
