"""A seller is killed before any of its effects: the end is the same, to the msat."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nostrvpn.market.terms import MIB, PayMode
from tests.market_shop import Buyer, Shop, amount_of, books, lease_of

# What is paid, one after the other (sat): as proofs, or over invoices; balances of two channels.
TOKENS, INVOICES = [(4,), (4, 2), (8,)], [(10,), (11,), (12,)]
BALANCES, CAPACITIES = [4, 10, 8], {1: 16, 3: 32}


def story(mode, crashes=(), fee_ppk=0):
    """Try, pay, use, top up, run out, be suspended, top up, use, close; killed at these effects."""
    shop = Shop(mode, fee_ppk=fee_ppk)
    buyer = Buyer(shop)
    crashes = list(crashes)

    def arm():
        if crashes and shop.crash_at is None:
            shop.crash_at = shop.effects + crashes.pop(0)

    arm()
    buyer.ask()
    buyer.fund("", seq=0)  # the trial
    arm()
    shop.move(buyer, MIB // 2)
    by_invoice = mode is PayMode.BOLT11
    paid = INVOICES if by_invoice else TOKENS

    def pay(seq):
        if by_invoice:
            buyer.pay_invoice(paid[seq - 1][0], seq)
        elif mode is PayMode.CHANNEL:
            opening = buyer.open_channel(CAPACITIES[seq]) if seq in CAPACITIES else {}
            buyer.by_channel(BALANCES[seq - 1], seq, **opening)
        elif seq == 1:
            buyer.fund(buyer.token(*paid[0]), seq)
        else:
            buyer.top_up(buyer.token(*paid[seq - 1]), seq)

    pay(1)
    arm()
    shop.move(buyer, 2 * MIB)
    pay(2)
    arm()
    shop.move(buyer, 40 * MIB)
    shop.wait(5)
    assert lease_of(shop, buyer).suspended_at
    arm()
    pay(3)
    shop.move(buyer, 3 * MIB)
    arm()
    receipt = buyer.close()
    again = buyer.close()
    assert (again.due_msat, again.token) == (receipt.due_msat, receipt.token)
    for _ in range(3):
        shop.wait(700)
    return shop, buyer, receipt


def outcome(shop, buyer, receipt):
    found = books(shop)
    sold = sum(map(sum, INVOICES if shop.mode is PayMode.BOLT11 else TOKENS))
    assert receipt.rx + receipt.tx == buyer.used  # every byte that went through is on the bill
    back = amount_of(receipt.token)
    # Money: what was issued is in the seller's wallet, was given back, or was the mint's fee.
    spent = sold - found.wallet - back
    assert spent >= 0
    return (
        receipt.due_msat,
        receipt.paid_msat,
        back,
        buyer.used,
        found.accounts,
        spent,
    )


MODES = [(PayMode.LOCKED, 0), (PayMode.PLAIN, 0), (PayMode.PLAIN, 100), (PayMode.LOCKED, 100)]
MODES += [(PayMode.BOLT11, 0), (PayMode.CHANNEL, 0), (PayMode.CHANNEL, 100)]


@pytest.mark.parametrize(("mode", "fee_ppk"), MODES)
def test_an_honest_run(mode, fee_ppk):
    shop, buyer, receipt = story(mode, fee_ppk=fee_ppk)
    due, paid, back, used, accounts, spent = outcome(shop, buyer, receipt)
    assert due == shop.seller.leases[0].price.due(used - MIB, 0)
    assert accounts["earned"] == -due
    if not fee_ppk:
        assert paid == (33_000 if mode is PayMode.BOLT11 else 18_000)
        assert spent == 0
    if mode in (PayMode.PLAIN, PayMode.LOCKED):
        assert back == (paid - due) // 1000 - (fee_ppk > 0)
    else:
        assert back == 0
        assert accounts["unused"] == -(paid - due)
    assert set(shop.applied) == set()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("mode", "fee_ppk"), MODES[1:3] + MODES[:1] + MODES[4:])
def test_killed_before_any_effect(mode, fee_ppk):
    expected = outcome(*story(mode, fee_ppk=fee_ppk))
    total = story(mode, fee_ppk=fee_ppk)[0].effects
    killed = 0
    for cut in range(total):
        shop, buyer, receipt = story(mode, [cut], fee_ppk)
        killed += shop.crashes
        assert outcome(shop, buyer, receipt) == expected, f"killed before effect {cut}"
    assert killed > 0.9 * total


@pytest.mark.timeout(300)
@settings(max_examples=15, deadline=None)
@given(
    mode=st.sampled_from([PayMode.LOCKED, PayMode.PLAIN, PayMode.BOLT11, PayMode.CHANNEL]),
    crashes=st.lists(st.integers(0, 40), min_size=2, max_size=6),
)
def test_killed_again_and_again(mode, crashes):
    assert outcome(*story(mode, crashes)) == outcome(*story(mode))
