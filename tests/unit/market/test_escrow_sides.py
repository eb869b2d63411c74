"""Escrow from the wish to the last sat, in each ending: books of both sides and the mint agree."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nostrvpn.market.deal import arbiter_of
from nostrvpn.market.effects import Tell
from nostrvpn.market.escrow_bought import disputable
from nostrvpn.market.wish import Disputed
from tests.sim.escrow import escrow_market
from tests.sim.market import MINT

SAT = 400
DAYS = 5 * 86_400
ENDINGS = ["released", "for the seller", "for the buyer", "timed out"]


def keep_back(party):
    """The buyer never releases: its machine does, and its words go nowhere."""
    carry_out = party.carry_out

    def without(effects):
        carry_out([e for e in effects if not (isinstance(e, Tell) and '"release"' in e.text)])

    party.carry_out = without


def life(made, arbiter, ending, seconds=120.0):
    """A purchase, its end, and whatever is decided then."""
    [buyer] = made.buyers
    if ending != "released":
        keep_back(buyer)
    made.run(1)
    buyer.want(buyer.wish)
    made.run(seconds)
    buyer.want(None)
    made.loss = made.doubled = 0.0
    made.run(180)
    made.run(1800, 60)
    side = ending.removeprefix("for the ")
    if side in ("seller", "buyer"):
        arbiter.decide(side)
        made.run(1200, 60)
        arbiter.decide(side)
    made.run(DAYS, 7200)


def check_books(made, ending):
    [buyer], [seller] = made.buyers, made.sellers
    bank, ours, theirs = made.bank, buyer.machine.ledger, seller.machine.ledger
    assert bank.total == SAT
    assert not bank.out  # every proof is somebody's again
    assert buyer.machine.deals == ()
    assert ours.check() == seller.machine.problems() == []
    assert seller.machine.unreleased_sat() == {}
    assert ours.balance(f"wallet:{MINT}") == 1000 * (bank.balances["buyer"] - SAT)
    assert theirs.balance(f"wallet:{MINT}") == 1000 * bank.balances["seller"]
    for book in (ours, theirs):
        assert not {name for name in book.accounts() if name.startswith(("locked:", "lease:"))}
    # What the buyer spent is what the seller earned and has: the rest of it he says he lost.
    assert ours.balance("spent") == -theirs.balance("earned") - theirs.balance("lost")
    assert ours.balance("unused") + theirs.balance("unused") == 0
    assert ours.balance("fees") + theirs.balance("fees") == 1000 * bank.fees
    assert ours.balance("lost") == 0
    if ending in ("released", "for the seller"):
        assert theirs.balance("lost") == 0
    assert not buyer.machine.pocket.spending.refs()


@pytest.mark.parametrize("fee_ppk", [0, 100])
@pytest.mark.parametrize("ending", ENDINGS)
def test_each_ending_adds_up_to_the_msat(ending, fee_ppk):
    made, arbiter = escrow_market(1, SAT, fee_ppk)
    life(made, arbiter, ending)
    check_books(made, ending)
    [buyer], [seller] = made.buyers, made.sellers
    earned, lost = -seller.machine.ledger.balance("earned"), seller.machine.ledger.balance("lost")
    assert earned > 0
    if ending == "released":
        assert buyer.moved["seller"] > 300_000_000
        assert arbiter.machine.counters["cases"] == 0
    else:
        # Two slices were out, and nothing more was served.
        assert len(seller.machine.leases) <= 1
        assert earned <= (
            5000 if fee_ppk else 3000
        )  # one and two sat, more where the mint takes some
        assert arbiter.machine.counters["cases"] == 2
    assert lost == (earned if ending in ("for the buyer", "timed out") else 0)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(ENDINGS), st.sampled_from([0, 100]))
def test_loss_doubling_disorder_and_deaths_change_no_book(seed, ending, fee_ppk):
    made, arbiter = escrow_market(seed, SAT, fee_ppk)
    draw = random.Random(seed)
    made.loss, made.doubled = draw.choice([0, 0.2, 0.5]), 0.2
    made.delay = (0.01, draw.choice([1, 8]))
    for party in (*made.buyers, *made.sellers, arbiter):
        party.dies_at = frozenset(draw.randrange(1, 120) for _ in range(draw.randrange(6)))
    life(made, arbiter, ending, 60)
    check_books(made, ending)


WHO = [("arbiter", "for the seller"), ("arbiter", "for the buyer")]
WHO += [(who, ending) for who in ("buyer", "seller") for ending in ENDINGS[:3]]


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize(("who", "ending"), WHO)
def test_killed_at_any_write_each_goes_on(who, ending, part):

    def party_of(made, arbiter):
        return {"buyer": made.buyers[0], "seller": made.sellers[0], "arbiter": arbiter}[who]

    def at_once(made, arbiter):
        life(made, arbiter, ending, 30)
        check_books(made, ending)

    quiet, arbiter = escrow_market(7, SAT)
    at_once(quiet, arbiter)
    writes = party_of(quiet, arbiter).writes
    assert writes >= 4
    for write in range(1 + part, writes + 1, 4):
        made, arbiter = escrow_market(7, SAT)
        party = party_of(made, arbiter)
        party.dies_at = frozenset({write})
        at_once(made, arbiter)
        assert party.deaths == 1


def test_both_sides_are_heard_and_a_user_may_say_why():
    made, arbiter = escrow_market(3, SAT)
    [buyer] = made.buyers
    keep_back(buyer)
    made.run(1)
    buyer.want(buyer.wish)
    made.run(120)
    buyer.want(None)
    made.run(180)
    assert not arbiter.machine.counters["cases"]
    [deal] = buyer.machine.deals
    assert disputable(deal.lease)
    buyer.step(Disputed(deal.lease.key, "it was slow"))
    made.run(5)
    assert {text for case in arbiter.machine.cases for text in words(case, "buyer")} == {
        "it was slow"
    }
    made.run(1200, 60)
    assert arbiter.machine.cases
    for case in arbiter.machine.cases:
        assert sorted(case.claims) == ["buyer", "seller"]
        assert case.claims["seller"].due_msat > 0
    arbiter.decide("seller")
    made.run(60)
    assert disputable(deal.lease) == []
    made.run(DAYS, 7200)
    check_books(made, "for the seller")


def words(case, side):
    """What a side said in its own words."""
    return [case.claims[side].text] if side in case.claims else []


def test_no_arbiter_in_common_is_said_and_none_of_the_two_is_one():
    made, arbiter = escrow_market(4, SAT)
    [buyer], [seller] = made.buyers, made.sellers
    wish, offer = buyer.wish, seller.offer
    assert arbiter_of(offer, wish) == arbiter.public
    assert wish.refuse(offer) is None
    other = replace(wish, arbiters=("ab" * 32,))
    assert arbiter_of(offer, other) == ""
    assert other.refuse(offer) == "no common arbiter"
    for key in (offer.seller, offer.receiver_pubkey[2:]):
        assert arbiter_of(replace(offer, escrow=(key,)), replace(wish, arbiters=(key,))) == ""
    made.run(1)
    buyer.want(other)
    made.run(60)
    assert buyer.machine.why == "no common arbiter"
    assert made.bank.balances["buyer"] == SAT
