"""Payments that wait in the Lightning network: what becomes of them, and what liars make of it."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import pytest

from nostrvpn.lightning.bolt11 import parse_invoice
from nostrvpn.market.deal import way_to_pay
from nostrvpn.market.effects import HoldEnded, PayInvoice, PaymentFailed, Tell
from nostrvpn.market.holds import HOLD_S, RELEASE_S
from nostrvpn.market.lease import Phase
from nostrvpn.market.messages import (
    Close,
    Grant,
    Invoice,
    InvoiceRequest,
    Notice,
    Receipt,
    Release,
    parse_message,
    render_message,
)
from nostrvpn.market.paying import LET_GO_S
from nostrvpn.market.terms import LIGHTNING, MIB, PayMode
from nostrvpn.market.wish import Wish
from tests.invoices import make_invoice
from tests.market_shop import START, Buyer, Shop, books, lease_of
from tests.sim.market import MINT, BuyerParty, Market, SellerParty

HOLD = PayMode.HOLD


class Holder:
    """A buyer by hand: its preimages are sixteen times the number of the payment and zeros."""

    def __init__(self, mode=HOLD):
        self.shop = Shop(mode)
        self.buyer = Buyer(self.shop)
        self.buyer.ask()
        self.lightning = self.shop.wallet.lightning

    def asks(self, seq=1, sat=10, **more):
        name = sha256(preimage(seq)).hexdigest()
        request = {"lease_id": self.buyer.lease_id, "seq": seq, "sat": sat, "hash": name, **more}
        return self.buyer.say(InvoiceRequest(**request))

    def pays(self, seq=1, sat=10):
        [told] = [one for one in self.asks(seq, sat) if isinstance(one, Invoice)]
        assert parse_invoice(told.invoice).payment_hash == sha256(preimage(seq)).hexdigest()
        assert self.lightning.pay(told.invoice, int(START + self.shop.now))
        return [one.paid_msat for one in self.asks(seq, sat) if isinstance(one, Grant)]

    def releases(self, seq=1, secret=None):
        told = (secret or preimage(seq)).hex()
        return codes(self.buyer.say(Release(lease_id=self.buyer.lease_id, seq=seq, preimage=told)))

    def closes(self):
        said = self.buyer.say(Close(lease_id=self.buyer.lease_id))
        return next((one for one in said if isinstance(one, Receipt)), None)

    def states(self):
        return [p.hold for p in lease_of(self.shop, self.buyer).payments.values()]


def preimage(seq):
    return bytes([seq]) * 16 + bytes(16)


def codes(said):
    return [one.code for one in said if isinstance(one, Notice)]


# The seller


def test_a_payment_is_credited_once_it_is_held_and_ours_once_it_is_released():
    made = Holder()
    assert made.pays() == [10_000]
    assert made.states() == ["held"]
    assert (books(made.shop).wallet, made.lightning.balances["seller"]) == (0, 0)
    made.shop.move(made.buyer, 11 * MIB)
    assert made.releases() == ["released"]
    assert made.states() == ["settled"]
    assert books(made.shop).wallet == 10
    assert made.releases() == ["released"]  # the same again, the same answer
    assert made.lightning.balances["seller"] == 10


def test_what_was_not_used_goes_back_at_the_end():
    made = Holder()
    made.pays()
    made.shop.move(made.buyer, 3 * MIB)
    made.pays(2)
    receipt = made.closes()
    assert receipt.paid_msat == 20_000
    assert made.releases(1) == ["released"]
    made.shop.wait(10)
    assert made.states() == ["settled", "cancelled"]
    found = books(made.shop)
    assert (found.wallet, found.lost) == (10, 0)
    assert found.earned + found.unused == 10_000
    assert made.releases(2) == ["release-refused"]  # too late: it went back


@pytest.mark.parametrize("secret", [bytes(32), preimage(2)])
def test_another_preimage_releases_nothing(secret):
    made = Holder()
    made.pays()
    assert made.releases(1, secret) == ["release-refused"]
    assert made.releases(7) == ["release-refused"]  # no such payment
    assert made.states() == ["held"]
    assert made.shop.seller.counters["release refused"] == 2


def test_a_stranger_releases_nothing():
    made = Holder()
    made.pays()
    other = Buyer(made.shop, "other")
    told = Release(lease_id=made.buyer.lease_id, seq=1, preimage=preimage(1).hex())
    assert other.say(told) == []
    assert made.states() == ["held"]


def test_what_was_used_and_is_never_released_is_lost_and_no_more_is_served():
    made = Holder()
    made.pays()
    made.shop.move(made.buyer, 3 * MIB)
    made.closes()
    made.shop.wait(RELEASE_S - 20)
    assert made.states() == ["held"]
    made.shop.wait(40)
    assert made.states() == ["cancelled"]
    found = books(made.shop)
    assert found.lost == found.earned > 0
    assert found.wallet == 0


def test_a_payment_waits_for_an_hour_and_then_the_lease_ends():
    made = Holder()
    made.pays()
    made.shop.move(made.buyer, 3 * MIB)
    for _ in range(HOLD_S // 600 - 1):
        made.shop.wait(600)
        made.shop.move(made.buyer, 1000)
    assert lease_of(made.shop, made.buyer).phase == Phase.OPEN
    made.shop.wait(600)
    assert lease_of(made.shop, made.buyer).reason == "not-released"
    assert made.states() == ["cancelled"]
    assert not made.shop.applied


def test_no_third_payment_waits():
    made = Holder()
    made.pays(1)
    made.pays(2)
    assert codes(made.asks(3)) == ["release-needed"]
    made.releases(1)
    assert made.pays(3) == [30_000]


@pytest.mark.parametrize("name", ["", sha256(preimage(1)).hexdigest()])
def test_a_hash_is_needed_and_good_once(name):
    made = Holder()
    made.pays(1)
    assert codes(made.asks(2, hash=name)) == ["hash-refused"]


def test_a_hash_is_for_payments_that_wait_only():
    made = Holder(PayMode.BOLT11)
    assert codes(made.asks(1)) == ["hash-refused"]


def test_a_wallet_that_let_a_payment_go_ends_the_lease():
    made = Holder()
    made.pays()
    made.shop.move(made.buyer, 11 * MIB)
    made.lightning.end(sha256(preimage(1)).hexdigest(), "")
    assert made.releases() == ["released"]
    assert made.states() == ["cancelled"]
    assert lease_of(made.shop, made.buyer).reason == "not-released"
    assert books(made.shop).lost == 10_000


def test_a_wallet_that_is_down_is_asked_until_it_answers():
    made = Holder()
    made.pays()
    made.shop.move(made.buyer, 11 * MIB)
    made.lightning.is_down = True
    assert made.releases() == ["released"]
    assert made.states() == ["settling"]
    made.shop.start()
    made.shop.wait(3)
    made.lightning.is_down = False
    made.shop.wait(30)
    made.shop.wait(30)
    assert made.states() == ["settled"]
    made.shop.step(HoldEnded(f"hold:{made.buyer.lease_id}:1", False))  # an answer that comes late
    made.shop.step(PaymentFailed(f"hold:{made.buyer.lease_id}:1", "refused", "", False))
    assert made.states() == ["settled"]
    assert books(made.shop).wallet == 10


def test_a_wallet_that_makes_an_invoice_over_another_hash(monkeypatch):
    made = Holder()
    make = made.lightning.make
    monkeypatch.setattr(made.lightning, "make", lambda *asked: make(*asked[:4]))
    assert codes(made.asks()) == ["lightning-down"]


# The buyer


class Plain(SellerParty):
    """Sends an invoice that is paid at once."""

    def carry_out(self, effects):
        super().carry_out([self._lie(effect) for effect in effects])

    def _lie(self, effect):
        message = parse_message(effect.text) if isinstance(effect, Tell) else None
        if not isinstance(message, Invoice):
            return effect
        text = make_invoice(10_000, "77" * 32, int(START + self.market.now), 600)
        told = replace_invoice(message, text)
        return replace(effect, text=render_message(told))


def replace_invoice(message, text):
    return Invoice(lease_id=message.lease_id, seq=message.seq, invoice=text)


class Mute(SellerParty):
    """Holds what it is paid, and says nothing of it."""

    def carry_out(self, effects):
        super().carry_out(
            [e for e in effects if not (isinstance(e, Tell) and self._is_word(e.text))]
        )

    @staticmethod
    def _is_word(text):
        return '"type":"grant"' in text and '"paid_msat":0' not in text


class Returns(SellerParty):
    """Sends all payments back at once."""

    def count(self):
        super().count()
        for name, state in self.market.bank.lightning.states.items():
            if state == "accepted":
                self.market.bank.lightning.end(name, "")


class Forgetful(BuyerParty):
    """Its wallet knows no payment that is on its way, and with ``knows_none`` none that is over."""

    knows_none = True

    def ask_wallet(self, effect):
        if not isinstance(effect, PayInvoice):
            super().ask_wallet(effect)
            return
        done = self.market.bank.do(self.name, effect, (), START + self.market.now)
        is_open = isinstance(done, PaymentFailed) and done.code == "pending"
        if effect.is_again and (is_open or self.knows_none):
            done = PaymentFailed(effect.ref, PaymentFailed.UNKNOWN, "never heard of it", True)
        self.market.at(0.1, lambda: self.step(done))


class GivesUp(Forgetful):
    """Its wallet says of each payment that it failed, and looks no longer: it is held all the same."""

    knows_none = False

    def step(self, event):
        if isinstance(event, PaymentFailed) and event.code == "pending":
            failed = PaymentFailed(event.ref, "refused", "PAYMENT_FAILED: it took too long", False)
            self.market.at(20, lambda: self.step(failed))
            return
        super().step(event)


def market(kind, bps=8_000_000, price="100sat/GiB", buyer=BuyerParty):
    made = Market(5)
    made.sellers.append(kind(made, "seller", price))
    wish = Wish(modes=(HOLD, PayMode.BOLT11))
    made.buyers.append(buyer(made, "buyer", 0, wish))
    made.buyers[0].pays_by_wallet = True
    made.bank.lightning.balances["buyer"] = 400
    made.buyers[0].bps = bps
    made.run(1)
    made.buyers[0].want(wish)
    return made


def over(made):
    made.buyers[0].want(None)
    made.run(180)
    made.run(6 * 3600, 600)
    lightning, [buyer] = made.bank.lightning, made.buyers
    assert buyer.machine.deals == ()
    assert buyer.machine.ledger.check() == []
    assert not lightning.held
    assert buyer.machine.ledger.balance(f"wallet:{LIGHTNING}") == 1000 * (
        lightning.balances["buyer"] - 400
    )
    assert not buyer.machine.pocket.spending.refs()
    return lightning


def test_an_invoice_that_would_not_wait_is_not_paid():
    made = market(Plain)
    made.run(60)
    assert over(made).balances["buyer"] == 400
    assert made.buyers[0].machine.counters["bad_invoice"] > 0


def test_a_seller_that_says_nothing_of_a_payment_has_nothing_of_it():
    made = market(Mute)
    made.run(400)
    lightning = over(made)
    assert "cancelled" in lightning.states.values()
    assert (lightning.balances["buyer"], lightning.balances["seller"]) == (400, 0)


def test_a_payment_that_comes_back_while_it_serves_is_the_buyers():
    made = market(Returns)
    made.run(60)
    lightning = over(made)
    back = list(lightning.states.values()).count("cancelled")
    assert back > 0
    assert lightning.balances["buyer"] == 400 - 11 * (len(lightning.states) - back)
    assert made.buyers[0].moved["seller"] > 0


def test_an_exit_that_idles_is_paid_before_the_network_gives_up():
    made = market(SellerParty, bps=1000)
    made.run(LET_GO_S - 60)
    assert made.bank.lightning.balances["seller"] == 0
    made.run(120)
    assert made.bank.lightning.balances["seller"] == 10
    assert made.sellers[0].machine.leases[0].phase == Phase.OPEN
    over(made)


@pytest.mark.parametrize("kind", [Forgetful, GivesUp])
def test_what_a_wallet_does_not_list_while_it_waits_is_counted_as_what_it_becomes(kind):
    made = market(SellerParty, buyer=kind)
    made.buyers[0].knows_none = False
    made.run(300)
    assert made.buyers[0].moved["seller"] > 0
    assert made.sellers[0].machine.leases[0].phase == Phase.OPEN  # it was paid all the time
    made.sellers[0].serves = False
    made.run(200)
    lightning = over(made)
    assert set(lightning.states.values()) == {"settled", "cancelled"}
    assert lightning.balances["buyer"] == 400 - lightning.balances["seller"] - lightning.fees


def test_what_a_wallet_never_lists_is_certain_when_nothing_can_be_on_its_way():
    made = market(SellerParty, buyer=Forgetful)
    [buyer], lightning = made.buyers, made.bank.lightning
    lightning.fee_sat, buyer.lists = 0, []
    made.run(300)
    made.sellers[0].serves = False
    made.run(200)
    buyer.want(None)
    made.run(14 * 86_400, 3600)
    assert set(lightning.states.values()) == {"settled", "cancelled"}
    taken = lightning.balances["seller"]
    [deal] = [d for d in buyer.machine.deals if d.lease.money]
    assert all(money.is_held for money in deal.lease.money if money.is_there)
    ledger = buyer.machine.ledger
    assert ledger.balance(f"wallet:{LIGHTNING}") < -1000 * taken
    asked = sum(isinstance(e, PayInvoice) for effects in buyer.lists for e in effects)
    assert asked < 500 * len(lightning.states)  # not every 15 seconds for two weeks
    made.run(2 * 86_400, 3600)
    assert buyer.machine.deals == ()
    assert ledger.check() == []
    # What the seller was let have is his; the rest cannot have been taken by anybody.
    assert ledger.balance(f"wallet:{LIGHTNING}") == -1000 * taken
    assert lightning.balances["buyer"] == 400 - taken
    assert not buyer.machine.pocket.spending.refs()


def test_what_waits_is_the_buyers_choice_where_its_own_wallet_pays():
    made = market(SellerParty)
    [seller], wish = made.sellers, made.buyers[0].wish
    assert way_to_pay(seller.offer, wish, {MINT: 50, LIGHTNING: 9}) == (HOLD, LIGHTNING)
    assert way_to_pay(seller.offer, wish, {MINT: 50}) == (PayMode.BOLT11, MINT)
    seller.terms = replace(seller.terms, pay=(PayMode.BOLT11,))
    assert way_to_pay(seller.offer, wish, {LIGHTNING: 9}) == (PayMode.BOLT11, LIGHTNING)
