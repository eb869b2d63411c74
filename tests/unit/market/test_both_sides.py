"""Buyer and seller together: whatever is lost, doubled or killed, both books and the mint agree.

The cap, as ``docs/market.md`` states it: a buyer loses no more than the slice that was shown last, and
what was left when it was shown: two steps or ten seconds of use, and by how much counts may differ.
It is in the books as "unused", never as "lost".
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nostrvpn.market.buyer_records import HISTORY
from nostrvpn.market.terms import LIGHTNING, PayMode
from nostrvpn.market.wish import Wish
from tests.sim.market import MINT, BuyerParty, Market, SellerParty

SAT = 400
# Slices of ten sat are used up in time without counts so coarse that one side calls the other unfair.
DEAR = "100sat/GiB"
# Two steps (more than ten seconds of 4 MB/s), and by how much counts may differ: 11 % and 20 MB.
LEFT_MSAT = 3000
BY_WALLET = "bolt11 by a connected wallet"
MODES = [PayMode.LOCKED, PayMode.PLAIN, PayMode.BOLT11, BY_WALLET, PayMode.CHANNEL, PayMode.HOLD]


def market(seed, mode, fee_ppk=0):
    made = Market(seed, fee_ppk)
    is_held = mode is PayMode.HOLD
    made.sellers.append(SellerParty(made, "seller", DEAR if is_held else "20sat/GiB"))
    by_wallet = mode == BY_WALLET or is_held
    wish = Wish(modes=(PayMode.BOLT11 if mode == BY_WALLET else mode,))
    buyer = BuyerParty(made, "buyer", 0 if by_wallet else SAT, wish)
    buyer.pays_by_wallet = by_wallet
    made.bank.lightning.balances["buyer"] = SAT if by_wallet else 0
    # The least invoice is worth many small slices, and more than one channel is to be used up.
    is_fast = wish.modes[0] in (PayMode.BOLT11, PayMode.CHANNEL)
    buyer.bps = 40_000_000 if is_fast else 8_000_000 if is_held else 4_000_000
    made.buyers.append(buyer)
    return made


def whole_life(made, seconds=60.0):
    """A purchase from the wish to the last sat home."""
    [buyer] = made.buyers
    made.run(1)
    buyer.want(buyer.wish)
    made.run(seconds)
    buyer.want(None)
    made.loss = made.doubled = 0.0
    made.run(180)
    made.run(4 * 3600, 600)


def check_books(made):
    [buyer], [seller] = made.buyers, made.sellers
    bank = made.bank
    assert bank.total == SAT
    assert not bank.out  # every proof came home, to one or to the other
    assert buyer.machine.deals == ()
    assert buyer.machine.ledger.check() == []
    assert seller.machine.problems() == []
    ours, theirs = buyer.machine.ledger, seller.machine.ledger
    paid_in = Counter({LIGHTNING if buyer.pays_by_wallet else MINT: SAT})
    for place, has in ((MINT, bank.balances), (LIGHTNING, bank.lightning.balances)):
        assert ours.balance(f"wallet:{place}") == 1000 * (has["buyer"] - paid_in[place])
        assert theirs.balance(f"wallet:{place}") == 1000 * has["seller"]
    left = {name for name in ours.accounts() if name.startswith(("locked:", "lease:"))}
    assert not left
    # Of what waits for the buyer's word, a buyer that is at odds with the seller releases no last slice.
    lost = theirs.balance("lost")
    rows = (value for (space, _), value in buyer.store.items() if space == HISTORY)
    at_odds = buyer.wish.modes == (PayMode.HOLD,) and any(r["outcome"] != "served" for r in rows)
    assert ours.balance("lost") == 0
    assert 0 <= lost <= (1000 * max(buyer.last_slice.values(), default=0) if at_odds else 0)
    assert ours.balance("spent") + lost == -theirs.balance("earned")
    fees = ours.balance("fees") + theirs.balance("fees")
    unused = ours.balance("unused") + theirs.balance("unused")
    # What the seller credited is what the buyer counts as spent or unused; the rest the mint took.
    assert unused == 0
    assert fees == 1000 * (bank.fees + bank.lightning.fees)
    unused_msat = max(LEFT_MSAT, seller.terms.price.due(13 * buyer.bps, 0))
    assert ours.balance("unused") <= sum(1000 * n + unused_msat for n in buyer.last_slice.values())
    assert not buyer.machine.pocket.spending.refs()


@pytest.mark.parametrize("fee_ppk", [0, 100])
@pytest.mark.parametrize("mode", MODES)
def test_a_quiet_purchase_adds_up_to_the_msat(mode, fee_ppk):
    made = market(1, mode, fee_ppk)
    whole_life(made, 120)
    check_books(made)
    assert made.buyers[0].moved["seller"] > 300_000_000
    assert made.sellers[0].machine.ledger.balance("earned") < -5000


@pytest.mark.parametrize("mebibytes", range(600, 700, 5))
def test_what_is_left_adds_up_however_little_it_is(mebibytes):
    """A refund of a sat is nothing once the buyer's own swap is paid for."""
    made = market(1, PayMode.PLAIN, 100)
    made.buyers[0].bps = mebibytes * 2**20 // 100
    whole_life(made, 100)
    check_books(made)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(MODES), st.sampled_from([0, 100]))
def test_loss_doubling_disorder_and_deaths_change_no_book(seed, mode, fee_ppk):
    made = market(seed, mode, fee_ppk)
    draw = random.Random(seed)
    made.loss, made.doubled, made.delay = (
        draw.choice([0, 0.2, 0.5]),
        0.2,
        (0.01, draw.choice([1, 8])),
    )
    for party in (*made.buyers, *made.sellers):
        party.dies_at = frozenset(draw.randrange(1, 120) for _ in range(draw.randrange(6)))
    whole_life(made)
    check_books(made)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", ["buyer", "seller"])
def test_killed_at_any_write_either_side_goes_on(side, mode):
    quiet = market(7, mode)
    whole_life(quiet, 40)
    writes = (quiet.buyers[0] if side == "buyer" else quiet.sellers[0]).writes
    assert writes > 20
    for write in range(1, writes + 1):
        made = market(7, mode)
        party = made.buyers[0] if side == "buyer" else made.sellers[0]
        party.dies_at = frozenset({write})
        whole_life(made, 40)
        assert party.deaths == 1
        check_books(made)
