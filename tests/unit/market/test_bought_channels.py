"""A buyer who pays by channels: what it signs, what it may spend, and what comes home."""

from __future__ import annotations

import random
from collections import defaultdict

from hypothesis import example, given, settings
from hypothesis import strategies as st

from nostrvpn.market.ceilings import HOUR, Ceilings
from nostrvpn.market.effects import Tell
from nostrvpn.market.messages import Fund, TopUp, parse_message, render_message
from nostrvpn.market.sale import Sale
from nostrvpn.market.terms import PayMode, Price, Terms
from nostrvpn.market.wish import Wish
from tests.sim.market import MINT, BuyerParty, Market, SellerParty

CHANNEL = PayMode.CHANNEL


def market(seed=1, fee_ppk=0, sat=1000, ceilings=None, bps=40_000_000):
    made = Market(seed, fee_ppk)
    made.sellers.append(SellerParty(made, "seller"))
    wish = Wish(modes=(CHANNEL,), ceilings=ceilings or Ceilings())
    buyer = BuyerParty(made, "buyer", sat, wish)
    buyer.bps, buyer.lists = bps, []
    made.buyers.append(buyer)
    made.run(1)
    buyer.want(buyer.wish)
    return made, buyer


def payments(buyer):
    """Each payment as it left first, by its lease and number."""
    found: dict[tuple[str, int], Fund | TopUp] = {}
    for effects in buyer.lists:
        for effect in effects:
            message = parse_message(effect.text) if isinstance(effect, Tell) else None
            if isinstance(message, Fund | TopUp) and message.balance:
                first = found.setdefault((message.lease_id, message.seq), message)
                assert first == message  # said again in the same words
    return list(found.values())


def balances(buyer):
    """The balances that were signed, channel by channel."""
    channels = defaultdict(list)
    seed = ""
    for message in payments(buyer):
        seed = message.seed or seed
        channels[seed].append(message.balance)
    return list(channels.values())


def home(made, buyer):
    buyer.want(None)
    made.run(200)
    made.run(4 * HOUR, 600)


def test_it_is_off_unless_it_is_named():
    assert CHANNEL not in Terms(Price(1, 0), ()).pay
    assert CHANNEL not in Wish().modes
    assert CHANNEL not in Sale(Terms(Price(1, 0), ())).terms.pay


def test_one_swap_funds_many_payments_and_each_is_short():
    made, buyer = market()
    made.run(120)
    found = balances(buyer)
    assert sum(map(len, found)) > 3 * len(found) > 6
    updates = [message for message in payments(buyer) if not message.token]
    assert all(len(render_message(update)) < 330 for update in updates)  # a number, a signature
    swaps = [ref for _, ref in made.bank.done if "/m" in ref and "home" not in ref]
    assert len(swaps) == len(found)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    fee_ppk=st.sampled_from([0, 100, 500]),
    hour=st.integers(1, 120),
    a_slice=st.integers(1, 60),
    bps=st.sampled_from([1_000_000, 20_000_000, 60_000_000]),
)
@example(seed=1, fee_ppk=100, hour=120, a_slice=5, bps=60_000_000)
def test_no_ceiling_is_passed_and_no_balance_falls(seed, fee_ppk, hour, a_slice, bps):
    ceilings = Ceilings(slice_sat=a_slice, hour_sat=hour, day_sat=2 * hour, reserve_sat=30)
    made, buyer = market(seed, fee_ppk, 300, ceilings, bps)
    draw = random.Random(seed)
    made.loss, made.doubled = draw.choice([0, 0.3]), 0.2
    buyer.dies_at = frozenset(draw.randrange(1, 120) for _ in range(draw.randrange(4)))
    for _ in range(12):
        made.run(20)
        spent = buyer.machine.pocket.spending.spent(HOUR, buyer.moment())
        assert spent <= hour
        assert made.bank.balances["buyer"] >= 30
        assert made.bank.balances["buyer"] + spent >= 300
    for found in balances(buyer):
        assert found == sorted(set(found))
        assert all(b - a <= a_slice for a, b in zip([0, *found], found, strict=False))
    made.loss = 0.0
    home(made, buyer)
    assert buyer.machine.deals == ()
    assert not made.bank.out
    assert not buyer.machine.pocket.spending.refs()
    assert made.bank.balances["buyer"] + hour >= 300


def test_a_seller_who_never_closes_has_nothing_of_it():
    made, buyer = market(bps=4_000_000)
    made.run(60)
    shown = buyer.machine.using.lease.shown_sat
    assert shown > 2
    made.sellers[0].is_gone = True
    home(made, buyer)
    assert made.bank.balances["buyer"] == 1000
    assert buyer.machine.ledger.check() == []
    left = {name: msat for name, msat in buyer.machine.ledger.accounts().items() if msat}
    assert left == {}


def test_all_channels_of_a_lease_are_home_a_moment_after_it():
    made, buyer = market()
    made.run(90)
    assert len(buyer.machine.using.lease.parcels) > 0  # used up while the lease went on
    buyer.want(None)
    made.run(20, 1)
    assert len(made.bank.channels.closed) > 1
    assert buyer.machine.deals == ()


def test_what_is_coming_home_is_ours_only():
    made, buyer = market(bps=4_000_000)
    made.run(60)
    lease = buyer.machine.using.lease
    made.sellers[0].is_gone = True
    shown, whole = lease.purse.shown_sat, lease.purse.sat
    buyer.want(None)
    made.run(5)
    assert buyer.machine.document(buyer.moment())["coming_home_sat"] <= whole - shown


def test_a_channel_is_left_before_the_seller_closes_it():
    made, buyer = market(bps=150_000)
    made.run(2.5 * HOUR)
    used = balances(buyer)
    assert len(used) >= 3
    assert not any("channel-closed" in name for name in made.sellers[0].machine.counters)
    assert buyer.machine.using is not None
    home(made, buyer)
    assert not made.bank.out
    ours, theirs = buyer.machine.ledger, made.sellers[0].machine.ledger
    assert ours.balance("spent") == -theirs.balance("earned") > 0
    assert theirs.balance(f"wallet:{MINT}") == 1000 * made.bank.balances["seller"]
