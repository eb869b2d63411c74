"""Leases paid by Lightning invoices: what sellers, buyers and wallets do wrong, and what it costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nostrvpn.market.ceilings import HOUR, Ceilings
from nostrvpn.market.effects import (
    InvoiceMade,
    InvoicePaid,
    InvoiceSeen,
    PayInvoice,
    PaymentFailed,
    Redeem,
    Tell,
)
from nostrvpn.market.invoices import INVOICE_S, LATE_S, MAX_OPEN
from nostrvpn.market.lease import Phase
from nostrvpn.market.messages import (
    Close,
    Fund,
    Grant,
    Invoice,
    InvoiceRequest,
    Notice,
    Receipt,
    parse_message,
    render_message,
)
from nostrvpn.market.offer import offer_event, parse_offer
from nostrvpn.market.terms import LIGHTNING, MIB, PayMode, Price, least_invoice_sat
from nostrvpn.market.wish import Wish
from tests.invoices import make_invoice
from tests.market_shop import SETTINGS, START, Buyer, Shop, books, lease_of
from tests.sim.market import MINT, BuyerParty, Market, SellerParty

BOLT11 = PayMode.BOLT11


def quoted(**settings):
    shop = Shop(BOLT11, settings=replace(SETTINGS, **settings))
    buyer = Buyer(shop)
    buyer.ask()
    return shop, buyer


def asked(buyer, sat=10, seq=1):
    return buyer.say(InvoiceRequest(lease_id=buyer.lease_id, seq=seq, sat=sat))


def codes(said):
    return [one.code for one in said if isinstance(one, Notice)]


# The seller


def test_an_invoice_is_the_same_each_time_and_credited_once():
    shop, buyer = quoted()
    text = buyer.invoice(10, 1)
    shop.start()  # the wallet would make another one
    assert buyer.invoice(10, 1) == text
    grant = buyer.pay_invoice(10, 1)
    assert grant.paid_msat == 10_000
    shop.step(InvoiceSeen(f"invoice:{buyer.lease_id}:1", True))  # an answer that came twice
    assert asked(buyer) == [grant]
    buyer.pay_invoice(12, 2)
    assert lease_of(shop, buyer).paid_msat == 22_000
    assert shop.applied[buyer.wg_pub].is_open
    assert shop.seller.reserved_sat() == {}  # nothing of it can be given back as a token
    receipt = buyer.close()
    assert (receipt.paid_msat, receipt.token) == (22_000, "")
    assert books(shop).unused == 22_000


def test_who_pays_at_once_is_served_at_once():
    shop, buyer = quoted()
    [told] = asked(buyer)
    shop.wallet.lightning.pay(told.invoice, int(START))
    assert [one.paid_msat for one in asked(buyer) if isinstance(one, Grant)] == [10_000]


def test_the_seller_sees_a_payment_by_itself():
    shop, buyer = quoted()
    shop.wallet.lightning.pay(buyer.invoice(10, 1), int(START))
    for _ in range(4):
        shop.wait(5)
    assert lease_of(shop, buyer).paid_msat == 10_000


def test_an_invoice_that_nobody_pays_is_over_and_never_counts():
    shop, buyer = quoted()
    text = buyer.invoice(10, 1)
    shop.wait(INVOICE_S + LATE_S - 30)
    assert lease_of(shop, buyer).has_pending
    shop.wait(60)
    assert "invoice-expired" in codes(one for _, one in shop.inbox)
    assert not shop.wallet.lightning.pay(text, int(START + shop.now))
    assert not shop.seller.leases  # nobody paid for anything


@pytest.mark.parametrize(("sat", "code"), [(9, "slice-too-small"), (65, "slice-too-large")])
def test_an_invoice_has_bounds(sat, code):
    shop, buyer = quoted()
    assert codes(asked(buyer, sat)) == [code]
    assert not shop.disk


def test_a_lease_is_paid_in_the_way_of_its_quote_only():
    shop, buyer = quoted()
    shop.mode = PayMode.PLAIN
    assert buyer.pay(buyer.token(16)) == ["mode-not-accepted"]
    other = Buyer(shop, "other")
    other.ask()
    assert codes(asked(other)) == ["mode-not-accepted"]
    assert not shop.wallet.asked


def test_ten_minutes_are_the_least_where_time_costs():
    assert least_invoice_sat(Price(MIB, 1000)) == 10
    assert least_invoice_sat(Price(MIB, 1000, 120_000)) == 20
    dear = replace(SETTINGS.terms, price=Price(MIB, 1000, 600_000), max_slice_sat=99)
    shop = Shop(BOLT11, settings=replace(SETTINGS, terms=dear))
    assert codes(Buyer(shop).say(Buyer(shop).request())) == ["mode-not-accepted"]


def test_without_its_wallet_the_seller_says_so():
    shop, buyer = quoted()
    shop.wallet.lightning.is_down = True
    assert codes(asked(buyer)) == ["lightning-down"]
    assert codes(asked(buyer)) == ["lightning-down"]  # the same answer again
    shop.wallet.lightning.is_down = False
    assert buyer.pay_invoice(10, 2).paid_msat == 10_000


def test_a_wallet_that_answers_late_loses_no_payment():
    shop, buyer = quoted()
    text = buyer.invoice(10, 1)
    shop.wallet.lightning.pay(text, int(START))
    shop.wallet.lightning.is_down = True
    for _ in range(10):
        shop.wait(60)
    shop.wallet.lightning.is_down = False
    shop.wait(60)
    assert lease_of(shop, buyer).paid_msat == 10_000


@pytest.mark.parametrize("fault", ["amount", "known", "nonsense"])
def test_a_wallet_that_makes_another_invoice_than_asked_for(fault):
    shop, buyer = quoted()
    lightning = shop.wallet.lightning
    known = buyer.invoice(10, 1)
    texts = {
        "amount": lightning.make("seller", 11_000, int(START), INVOICE_S),
        "known": known,
        "nonsense": "lnbc1nothing",
    }
    lightning.make = lambda *_: texts[fault]
    said = asked(buyer, 10, 2)
    assert codes(said) == ["lightning-down"]
    assert not any(isinstance(one, Invoice) for one in said)


def test_money_on_its_way_when_the_lease_ends_is_in_the_receipt():
    shop, buyer = quoted()
    buyer.pay_invoice(10, 1)
    shop.move(buyer, 3 * MIB)
    text = buyer.invoice(10, 2)
    assert codes(buyer.say(Close(lease_id=buyer.lease_id))) == []
    assert lease_of(shop, buyer).phase == Phase.ENDING
    assert not shop.applied
    shop.wallet.lightning.pay(text, int(START + shop.now))
    receipt = buyer.close()
    assert receipt.paid_msat == 20_000
    assert books(shop).wallet == 20


def test_an_end_waits_for_an_invoice_no_longer_than_it_can_be_paid():
    shop, buyer = quoted()
    buyer.pay_invoice(10, 1)
    buyer.invoice(10, 2)
    buyer.say(Close(lease_id=buyer.lease_id))
    shop.wait(INVOICE_S + LATE_S + 30)
    said = buyer.say(Close(lease_id=buyer.lease_id))
    assert [one.paid_msat for one in said if isinstance(one, Receipt)] == [10_000]


def test_invoices_that_are_asked_for_and_not_paid_keep_no_lease_alive():
    shop, buyer = quoted()
    buyer.fund("", seq=0)
    shop.move(buyer, 3 * MIB)
    seq = 1
    for _ in range(15):
        shop.wait(60)
        seq += "invoice-expired" in codes(asked(buyer, 10, seq))
    assert not shop.applied
    assert lease_of(shop, buyer).reason in ("unpaid", "trial-over")
    never = Buyer(shop, "never")
    never.ask()
    for seq in range(1, 15):
        asked(never, 10, seq)
        shop.wait(60)
    assert lease_of(shop, never).phase in (Phase.ENDING, Phase.CLOSED)


def test_open_invoices_have_a_bound():
    shop = Shop(BOLT11)
    for number in range(MAX_OPEN):
        buyer = Buyer(shop, f"buyer{number}")
        buyer.ask()
        buyer.invoice(10, 1)
    last = Buyer(shop, "last")
    last.ask()
    assert codes(asked(last)) == ["too-busy"]
    shop.wait(INVOICE_S + LATE_S + 30)
    last.ask()
    assert last.invoice(10, 1)


def test_an_answer_that_was_not_asked_for_changes_nothing():
    shop, buyer = quoted()
    text = buyer.invoice(10, 1)
    other = shop.wallet.lightning.make("seller", 10_000, int(START), INVOICE_S)
    shop.step(InvoiceMade(f"invoice:{buyer.lease_id}:1", other))
    shop.step(InvoiceMade("invoice:nobody:1", other))
    assert buyer.invoice(10, 1) == text


def test_an_offer_says_that_invoices_are_taken():
    made = Market(1)
    seller = SellerParty(made, "seller")
    event = offer_event(seller.offer, seller.secret, seller.moment())
    assert event.tag_values("ln") == ("bolt11",)
    assert BOLT11 in parse_offer(event, event.created_at).terms.pay


# The buyer


class Liar(SellerParty):
    """Sends other invoices than the ones asked for."""

    sent = 0

    def other(self, message):
        raise NotImplementedError

    def carry_out(self, effects):
        super().carry_out([self._lie(effect) for effect in effects])

    def _lie(self, effect):
        message = parse_message(effect.text) if isinstance(effect, Tell) else None
        if not isinstance(message, Invoice):
            return effect
        told = Invoice(lease_id=message.lease_id, seq=message.seq, invoice=self.other(message))
        return replace(effect, text=render_message(told))

    def invoice(self, msat, expiry):
        self.sent += 1
        return make_invoice(msat, f"{self.sent:064x}", int(START + self.market.now), expiry)


class Dearer(Liar):
    def other(self, _message):
        return self.invoice(50_000, 600)


class Expired(Liar):
    def other(self, _message):
        return self.invoice(10_000, 1)


class Nonsense(Liar):
    def other(self, _message):
        return "lnbc1nothing"


class Silent(Liar):
    """Makes no invoice."""

    def _lie(self, effect):
        message = parse_message(effect.text) if isinstance(effect, Tell) else None
        lies = isinstance(message, Invoice)
        return replace(effect, to="00" * 32) if lies else effect


class Keeps(SellerParty):
    """Is paid, and says nothing of it."""

    def carry_out(self, effects):
        super().carry_out(
            [e for e in effects if not (isinstance(e, Tell) and '"paid_msat":1' in e.text)]
        )


def market(*sellers, sat=400, ceilings=None, bps=40_000_000):
    made = Market(5)
    for number, kind in enumerate((*sellers, SellerParty)):
        made.sellers.append(kind(made, f"seller{number}"))
        made.scores[made.sellers[-1].public] = 0.9 - number / 10
    wish = Wish(modes=(BOLT11,), ceilings=ceilings or Ceilings())
    made.buyers.append(BuyerParty(made, "buyer", sat, wish))
    made.buyers[0].bps = bps
    made.run(1)
    made.buyers[0].want(wish)
    return made


@pytest.mark.parametrize("kind", [Dearer, Expired, Nonsense, Silent])
def test_an_invoice_that_is_not_what_was_asked_for_is_not_paid(kind):
    made = market(kind)
    buyer = made.buyers[0]
    buyer.lists = []
    made.run(200)
    assert made.bank.lightning.balances["seller0"] == 0
    using = buyer.machine.using
    assert using is not None
    assert using.lease.seller == made.sellers[1].public
    paid = [e for effects in buyer.lists for e in effects if isinstance(e, PayInvoice)]
    assert {e.ref.partition("/")[0] for e in paid} == {using.lease.key}


def test_a_seller_that_keeps_the_money_has_one_invoice():
    made = market(Keeps)
    buyer = made.buyers[0]
    buyer.lists = []
    made.run(200)
    assert made.bank.lightning.balances["seller0"] == 10
    assert buyer.machine.using.lease.seller == made.sellers[1].public
    buyer.want(None)
    made.run(4 * HOUR, 600)
    assert buyer.machine.deals == ()
    asked = [e.ref for effects in buyer.lists for e in effects if isinstance(e, Redeem)]
    assert not asked  # there is nothing that could be had back
    assert buyer.machine.ledger.balance("lost") == 10_000
    assert buyer.machine.ledger.check() == []


class SlowPayer(BuyerParty):
    """Its wallet answers ``delay`` seconds after it paid."""

    delay = 30.0

    def ask_wallet(self, effect):
        if not isinstance(effect, PayInvoice):
            super().ask_wallet(effect)
            return
        life = self.life
        done = self.market.bank.do(self.name, effect, (), START + self.market.now)
        self.market.at(self.delay, lambda: self.step(done) if self.life == life else None)


class Forgetful(BuyerParty):
    """Its wallet knows no payment that is on its way: of the second that is for ``delay`` seconds."""

    delay = 0.0
    is_taken = True  # by the seller, or the payment never began
    paid_at: Any = None

    def ask_wallet(self, effect):
        if not isinstance(effect, PayInvoice):
            super().ask_wallet(effect)
            return
        now = self.market.now
        if effect.ref.endswith("/m1"):
            if self.paid_at is None:
                self.paid_at = now
                if not self.is_taken:
                    return
                self.market.bank.do(self.name, effect, (), START + now)
            elif self.is_taken and now > self.paid_at + self.delay:
                self.market.at(0.1, lambda: self.step(InvoicePaid(effect.ref, 1)))
            else:
                word = PaymentFailed.UNKNOWN
                failed = PaymentFailed(effect.ref, word, "never heard of it", True)
                self.market.at(0.1, lambda: self.step(failed))
            return
        done = self.market.bank.do(self.name, effect, (), START + now)
        self.market.at(0.1, lambda: self.step(done))


@pytest.mark.parametrize("is_taken", [True, False])
def test_what_a_wallet_does_not_know_of_is_neither_paid_nor_home_for_two_weeks(is_taken):
    made, buyer, seller = slow_market(Forgetful)
    buyer.delay, buyer.is_taken, buyer.bps = 2 * 86_400.0, is_taken, 20_000_000
    while buyer.paid_at is None:
        made.run(1, 1)
    made.run(30)
    buyer.want(None)
    made.run(4 * HOUR, 600)
    [deal] = buyer.machine.deals
    assert deal.lease.receipt is not None  # it does not wait for that
    assert buyer.machine.pocket.spending.refs()
    made.run(16 * 24 * HOUR, 3600)
    assert buyer.machine.deals == ()
    ours, theirs = buyer.machine.ledger, seller.machine.ledger
    assert ours.check() == []
    assert not buyer.machine.pocket.spending.refs()
    came = theirs.balance(f"wallet:{LIGHTNING}")
    assert came == 10_000 * (1 + is_taken)
    assert ours.balance(f"wallet:{MINT}") == -came - 1000 * (1 + is_taken)
    assert ours.balance("lost") == 0


def slow_market(buyer=SlowPayer):
    made = Market(5)
    made.sellers.append(SellerParty(made, "seller"))
    made.buyers.append(buyer(made, "buyer", 400, Wish(modes=(BOLT11,))))
    made.run(1)
    [buyer] = made.buyers
    buyer.lists = []
    buyer.want(buyer.wish)
    return made, buyer, made.sellers[0]


def is_paying(made):
    made.run(1, 1)
    return any(deal.lease.is_paying for deal in made.buyers[0].machine.deals)


def paid(buyer):
    return [e for effects in buyer.lists for e in effects if isinstance(e, PayInvoice)]


def test_what_is_paid_while_the_user_ends_it_is_on_both_bills():
    made, buyer, seller = slow_market()
    buyer.delay, buyer.bps = 0.1, 20_000_000
    made.run(15)
    assert buyer.machine.using.lease.paid_msat == 10_000
    buyer.delay = 30.0
    while not is_paying(made):
        pass
    buyer.want(None)
    made.run(300)
    made.run(4 * HOUR, 600)
    assert buyer.machine.deals == ()
    ours, theirs = buyer.machine.ledger, seller.machine.ledger
    both = theirs.balance(f"wallet:{LIGHTNING}")
    assert both == 20_000
    assert -theirs.balance("unused") - theirs.balance("earned") == both
    assert ours.balance("unused") + ours.balance("spent") == both
    assert ours.balance("spent") == -theirs.balance("earned")
    assert ours.balance("lost") == 0


def test_what_was_about_to_be_paid_goes_on_after_a_restart_by_its_name():
    made, buyer, _ = slow_market()
    while not is_paying(made):
        pass
    buyer.life += 1
    buyer.begin()
    made.run(60)
    first, *again = paid(buyer)
    assert not first.is_again
    assert again
    assert all(e.is_again and (e.ref, e.invoice) == (first.ref, first.invoice) for e in again)
    assert made.bank.lightning.balances["seller"] == 10
    assert buyer.machine.using is not None


def test_a_paid_invoice_is_told_at_once_though_nothing_is_needed_any_more():
    made, buyer, seller = slow_market()
    buyer.delay, buyer.bps = 0.1, 20_000_000
    made.run(15)
    buyer.delay, lease = 8.0, buyer.machine.using.lease
    while not lease.is_paying:
        made.run(1, 1)
    buyer.bps, buyer.machine.using.count.needs_more = 0, lambda _told: False
    # The seller sees it by himself: what tells the buyer is the answer to its question.
    made.run(12, 1)
    assert len(lease.slices) == 2
    assert lease.paid_msat == 1000 * lease.shown_sat
    assert seller.machine.problems() == []


@pytest.mark.parametrize("fee", [0, 3, 9])
def test_ceilings_hold_with_what_the_connected_wallet_takes(fee):
    made = market(sat=0, ceilings=Ceilings(hour_sat=60, day_sat=60))
    lightning = made.bank.lightning
    lightning.fee_sat, lightning.balances["buyer"] = fee, 400
    made.buyers[0].step(made.buyers[0].funds())
    made.run(HOUR - 200)
    spent = 400 - lightning.balances["buyer"]
    assert spent >= 25
    # A wallet's own fee is known only after it was paid: the last one may pass it, no more is begun.
    assert spent <= 60 + max(0, fee - 3)
    machine = made.buyers[0].machine
    assert machine.pocket.spending.spent(HOUR, made.buyers[0].moment()) >= spent


def test_the_connected_wallet_pays_before_a_mint():
    made = market(sat=400)
    made.bank.lightning.balances["buyer"] = 100
    made.buyers[0].step(made.buyers[0].funds())
    made.buyers[0].want(None)
    made.run(30)
    made.buyers[0].want(made.buyers[0].wish)
    made.run(60)
    assert made.buyers[0].machine.using.lease.mint == LIGHTNING
    assert made.bank.balances["buyer"] == 400


def test_no_mint_in_common_is_needed():
    made = market()
    seller = made.sellers[0]
    seller.terms = replace(seller.terms, mints=("https://other.example",))
    seller.machine.settings = replace(seller.machine.settings, terms=seller.terms)
    made.run(60)
    assert made.buyers[0].machine.using is not None
    assert made.buyers[0].machine.using.lease.mint == MINT


def test_an_offer_whose_least_invoice_is_above_a_slice_is_not_asked():
    made = market(ceilings=Ceilings(slice_sat=9))
    made.run(30)
    assert made.buyers[0].machine.using is None
    assert "least invoice" in made.buyers[0].machine.why


def test_a_trial_is_no_payment():
    shop, buyer = quoted()
    assert buyer.say(Fund(lease_id=buyer.lease_id, seq=0))
    assert not shop.wallet.asked
