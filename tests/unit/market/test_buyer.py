"""The buyer against sellers that do what sellers were seen to do, each by its name."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from nostrvpn.identity.keys import RootSecret
from nostrvpn.market.attest import signed
from nostrvpn.market.bought_lease import Phase
from nostrvpn.market.ceilings import HOUR, Ceilings
from nostrvpn.market.deal import check_quote
from nostrvpn.market.effects import Counted, Counters, Heard, Keep, Tell
from nostrvpn.market.messages import (
    Grant,
    Low,
    Notice,
    Quote,
    QuoteRequest,
    Usage,
    parse_message,
    render_message,
)
from nostrvpn.market.patience import PATIENCE_S
from nostrvpn.market.terms import GIB, MIB, PayMode
from nostrvpn.market.wish import AUTO, Ranked, Wish
from tests.sim.market import MINT, START, BuyerParty, Market, SellerParty

CAP_SAT = 7  # the first slices: 1, 2, 4 sat


def market(*sellers, sat=500, wish=None, seed=3):
    """A buyer and these kinds of sellers, the first ranked best; an honest one is the last."""
    made = Market(seed)
    for number, kind in enumerate((*sellers, SellerParty)):
        made.sellers.append(kind(made, f"seller{number}"))
        made.scores[made.sellers[-1].public] = 0.9 - number / 10
    made.buyers.append(BuyerParty(made, "buyer", sat, wish or Wish()))
    made.run(1)
    made.buyers[0].want(made.buyers[0].wish)
    return made


def state(made):
    buyer = made.buyers[0]
    return buyer.machine.document(buyer.moment())


def seller_in_use(made):
    using = made.buyers[0].machine.using
    return using and made.seller_of(using.lease.seller).name


def outcomes(made):
    """How leases ended, by seller: those that are settled and those that are not yet."""
    buyer = made.buyers[0]
    found = [v for (space, _), v in buyer.store.items() if space == "bought_history"]
    names = {seller.public: seller.name for seller in made.sellers}
    told = [(names[v["seller"]], v["outcome"]) for v in found]
    over = [d.lease for d in buyer.machine.deals if d.lease.ended_at]
    return told + [(names[lease.seller], lease.outcome.value) for lease in over]


def labels(made):
    buyer = made.buyers[0]
    kept = [v["label"] for (space, _), v in buyer.store.items() if space == "bought_history"]
    return kept + [d.lease.label for d in buyer.machine.deals]


def shown_to(made, name):
    """Sat that a seller was shown and could have kept."""
    made.run(4 * HOUR, 600)
    return made.bank.balances[name]


class GoesDark(SellerParty):
    """Serves the trial, and nothing once it was paid."""

    def step(self, event):
        super().step(event)
        if any(lease.paid_msat for lease in self.machine.leases):
            self.serves = False


class ServesNothing(SellerParty):
    """Grants a tunnel that nothing comes through."""

    def __init__(self, *args):
        super().__init__(*args)
        self.serves = False


class LeadsElsewhere(SellerParty):
    """Grants a way into the buyer's own network."""

    def carry_out(self, effects):
        super().carry_out([self._bend(effect) for effect in effects])

    def _bend(self, effect):
        message = parse_message(effect.text) if isinstance(effect, Tell) else None
        if not isinstance(message, Grant):
            return effect
        bent = msgspec.structs.replace(
            message, access={**message.access, "control": ["192.168.1.1"]}
        )
        return replace(effect, text=render_message(bent))


class TakesAndIsSilent(SellerParty):
    """Takes payments, and answers none."""

    def carry_out(self, effects):
        super().carry_out([e for e in effects if not (isinstance(e, Tell) and '"seq":1' in e.text)])


class LosesGrants(SellerParty):
    """Takes payments; its answers to the later ones are lost, its bills are not."""

    def carry_out(self, effects):
        super().carry_out([e for e in effects if not self._is_lost(e)])

    def _is_lost(self, effect):
        message = parse_message(effect.text) if isinstance(effect, Tell) else None
        return isinstance(message, Grant) and message.seq > 1


class KeepsTheRest(SellerParty):
    """Serves well, and gives nothing back in the end."""

    def begin(self):
        super().begin()
        vars(self.machine._ending)["_refund"] = lambda _lease: ("", 0)


class Lies(SellerParty):
    """Tells bills of its own making."""

    factor, extra_ms = 1, 0

    def carry_out(self, effects):
        super().carry_out([self._lie(effect) for effect in effects])

    def _lie(self, effect):
        message = parse_message(effect.text) if isinstance(effect, Tell) else None
        if not isinstance(message, Usage):
            return effect
        billable, ms = self.factor * message.billable, message.ms + self.extra_ms
        due = self.terms.price.due(billable, ms)
        lie = msgspec.structs.replace(message, billable=billable, ms=ms, due_msat=due, sig="")
        return replace(effect, text=render_message(signed(lie, self.secret, bytes(32))))


class CountsDouble(Lies):
    factor = 2


class RunsItsClock(Lies):
    """Charges hours in which nothing was served."""

    extra_ms = 3 * 3_600_000

    def __init__(self, market, name):
        super().__init__(market, name, "20sat/GiB", hourly="10sat/h")


class AlwaysLow(SellerParty):
    """Says each second that money runs out."""

    def count(self):
        super().count()
        for lease in self.machine.leases:
            text = render_message(Low(lease_id=lease.id))
            for _ in range(5):
                self.market.send(self, Tell(lease.buyer, text, lease.id))


class OnAFullLink(SellerParty):
    """A ninth of what it sends is lost on the way; messages with ``late`` come eight seconds later."""

    late = ""

    def count(self):
        counters = self.counters
        self.counters = {key: [rx, tx * 9 // 8, at] for key, (rx, tx, at) in counters.items()}
        super().count()
        self.counters = counters

    def carry_out(self, effects):
        now = []
        for effect in effects:
            is_told = isinstance(effect, Tell)
            if is_told and self.late and self.late in effect.text:
                self.market.at(8, partial(self.market.send, self, effect))
            else:
                now.append(effect)
        super().carry_out(now)


class Elsewhere(SellerParty):
    """Says Germany, and is in France."""

    def __init__(self, *args):
        super().__init__(*args)
        self.true_country = "FR"


class Baits(SellerParty):
    """Quotes more than it offered."""

    def carry_out(self, effects):
        super().carry_out([self._raise(effect) for effect in effects])

    def _raise(self, effect):
        message = parse_message(effect.text) if isinstance(effect, Tell) else None
        if not isinstance(message, Quote):
            return effect
        dear = msgspec.structs.replace(message, step_msat=message.step_msat + 1)
        return replace(effect, text=render_message(dear))


def requests(made):
    """When each seller was asked for a quote (seconds), by name; once for each lease."""
    found = made.buyers[0].lists = Asked(made)
    return found.asked


class Asked(list[Any]):
    def __init__(self, made):
        super().__init__()
        self.made, self.asked, self.known = made, dict[str, list[float]](), set[str]()

    def append(self, effects):
        for effect in effects:
            message = parse_message(effect.text) if isinstance(effect, Tell) else None
            if isinstance(message, QuoteRequest) and effect.lease_id not in self.known:
                self.known.add(effect.lease_id)
                name = self.made.seller_of(effect.to).name
                self.asked.setdefault(name, []).append(self.made.now)


def alone(kind=SellerParty, seed=3):
    """A buyer and one seller."""
    made = Market(seed)
    made.sellers.append(kind(made, "seller0"))
    made.buyers.append(BuyerParty(made, "buyer", 500, Wish()))
    made.run(1)
    asked = requests(made)
    return made, asked


def test_the_only_seller_is_asked_again_soon_after_it_failed():
    made, asked = alone()
    made.buyers[0].want(made.buyers[0].wish)
    made.sellers[0].is_gone = True
    made.run(300)
    times = asked["seller0"]
    waits = [round(later - sooner - PATIENCE_S[Phase.ASKING]) for sooner, later in pairwise(times)]
    assert waits == [5, 15, 60]
    made.sellers[0].is_gone = False
    made.run(300)
    assert seller_in_use(made) == "seller0"


def test_a_hiccup_of_the_only_seller_costs_seconds():
    made, asked = alone()
    made.buyers[0].bps = 4_000_000
    made.buyers[0].want(made.buyers[0].wish)
    made.run(120)
    assert seller_in_use(made) == "seller0"
    made.sellers[0].serves = False
    while seller_in_use(made):
        made.run(0.25, 0.25)
    ended = made.now
    made.sellers[0].serves = True
    made.run(30)
    assert asked["seller0"][-1] - ended < 6
    assert seller_in_use(made) == "seller0"


def test_the_only_seller_is_not_asked_soon_if_it_was_paid_and_did_not_serve():
    made, asked = alone(GoesDark)
    made.buyers[0].want(made.buyers[0].wish)
    while not seller_in_use(made):
        made.run(0.25, 0.25)
    while seller_in_use(made):
        made.run(0.25, 0.25)
    ended = made.now
    made.run(59)
    assert len(asked["seller0"]) == 1
    made.run(40)
    assert len(asked["seller0"]) == 2
    assert asked["seller0"][1] - ended >= 60


@pytest.mark.parametrize("others", [1, 2])
def test_a_seller_that_failed_is_left_alone_while_another_can_be_asked_or_serves(others):
    made = market(ServesNothing, *[SellerParty] * (others - 1))
    made.buyers[0].want(None)
    asked = requests(made)
    made.buyers[0].want(made.buyers[0].wish)
    while seller_in_use(made) is None:
        made.run(0.25, 0.25)
    assert seller_in_use(made) == "seller1"
    made.run(15)
    [lease] = [one for one in made.sellers[1].machine.leases if one.paid_msat]
    notice = Notice(level="info", code="price-changed", lease_id=lease.id)
    made.buyers[0].step(Heard(made.sellers[1].public, render_message(notice)))
    made.run(5)
    assert seller_in_use(made) == f"seller{others}"
    assert len(asked["seller0"]) == 1


def test_honest_purchase_is_tried_before_it_is_paid_and_paid_before_it_carries():
    made = market()
    buyer, carried = made.buyers[0], []
    for _ in range(40):
        made.run(0.25, 0.25)
        [link] = buyer.machine.links() or [None]
        if link is None:
            continue
        deal = buyer.machine.deals[0]
        if not deal.lease.is_probed:
            assert deal.lease.shown_sat == 0
        if not deal.lease.paid_msat:
            assert not link.carries
        carried.append(link.carries)
    assert carried[0] is False
    assert carried[-1] is True
    assert len(link.private_key) == 32
    assert state(made)["state"] == "connected"


def test_take_money_no_service_costs_a_first_slice_and_the_next_seller_serves():
    made = market(GoesDark)
    made.run(240)
    assert seller_in_use(made) == "seller1"
    assert ("seller0", "broke-off") in outcomes(made)
    assert shown_to(made, "seller0") <= CAP_SAT


def test_a_tunnel_that_nothing_comes_through_is_never_paid():
    made = market(ServesNothing)
    made.run(90)
    assert seller_in_use(made) == "seller1"
    assert ("seller0", "no-service") in outcomes(made)
    assert shown_to(made, "seller0") == 0


def test_a_grant_that_leads_into_the_buyers_network_is_refused_before_a_link_is_made():
    made = market(LeadsElsewhere)
    links = []
    for _ in range(60):
        made.run(1)
        links += made.buyers[0].machine.links()
    assert links
    assert all(str(ip).startswith(("198.18.", "fd")) for one in links for ip in one.control)
    assert seller_in_use(made) == "seller1"
    assert ("seller0", "no-service") in outcomes(made)
    assert shown_to(made, "seller0") == 0


def test_a_seller_that_takes_and_is_silent_is_left():
    made = market(TakesAndIsSilent)
    made.run(240)
    assert seller_in_use(made) == "seller1"
    assert shown_to(made, "seller0") <= 1


def test_a_bill_answers_for_a_payment_whose_own_answer_was_lost():
    made = market(LosesGrants)
    made.run(240)
    assert seller_in_use(made) == "seller0"
    assert {outcome for _, outcome in outcomes(made)} <= {"served"}
    assert made.buyers[0].machine.using.lease.seq > 3


@pytest.mark.parametrize(
    ("kind", "expected"), [(SellerParty, "served"), (KeepsTheRest, "broke-off")]
)
def test_a_seller_that_keeps_the_rest_where_the_buyer_left_broke_its_word(kind, expected):
    made, _ = alone(kind)
    made.buyers[0].want(made.buyers[0].wish)
    made.run(60)
    assert seller_in_use(made) == "seller0"
    made.buyers[0].want(None)
    made.run(60)
    assert outcomes(made) == [("seller0", expected)]


def test_inflated_counters_are_noticed_and_cost_a_few_slices():
    made = market(CountsDouble)
    made.run(300)
    assert ("seller0", "overcharged") in outcomes(made)
    assert seller_in_use(made) == "seller1"
    assert any("overcharge" in label for label in labels(made))
    assert shown_to(made, "seller0") <= CAP_SAT + 2


def test_a_meter_that_runs_while_nothing_is_served_is_noticed():
    made = market(RunsItsClock)
    made.run(300)
    assert ("seller0", "overcharged") in outcomes(made)
    assert shown_to(made, "seller0") <= CAP_SAT


def test_price_raise_mid_lease_brings_the_next_offer_without_a_gap():
    made = market(SellerParty)
    made.run(30)
    assert seller_in_use(made) == "seller0"
    [lease] = [one for one in made.sellers[0].machine.leases if one.paid_msat]
    notice = Notice(level="info", code="price-changed", lease_id=lease.id)
    made.buyers[0].step(Heard(made.sellers[0].public, render_message(notice)))
    seen = []
    for _ in range(120):
        made.run(0.5, 0.5)
        seen.append(seller_in_use(made))
    assert seen[0] == "seller0"
    assert seen[-1] == "seller1"
    assert None not in seen  # the old one carries until the next one does
    carrying = [link.carries for link in made.buyers[0].machine.links()]
    assert carrying.count(True) == 1


def test_a_quote_above_the_offer_is_not_taken():
    made = market(Baits)
    made.run(60)
    assert seller_in_use(made) == "seller1"
    assert made.buyers[0].machine.counters["bad_quote"] >= 1
    assert shown_to(made, "seller0") == 0


def test_mint_goes_away_and_comes_back():
    made = market()
    buyer = made.buyers[0]
    buyer.bps = 4_000_000
    made.run(30)
    made.bank.is_down = True
    made.run(300)
    assert seller_in_use(made) == "seller0"  # what was locked before still pays
    made.run(900)
    assert "does not answer" in state(made)["text"]
    moved = buyer.moved["seller0"]
    made.bank.is_down = False
    made.run(300)
    assert buyer.moved[seller_in_use(made)] > moved
    buyer.want(None)
    made.run(4 * HOUR, 600)
    assert made.bank.total == 500
    assert not made.bank.out


def test_relay_drops_messages_and_nothing_is_paid_twice():
    made = market()
    made.loss, made.doubled = 0.5, 0.3
    made.run(300)
    buyer, seller = made.buyers[0].machine, made.sellers[0].machine
    assert buyer.using is not None
    [lease] = [one for one in seller.leases if one.paid_msat]
    assert lease.paid_msat == 1000 * sum(p.sat for p in buyer.using.lease.slices if not p.token)


def test_a_rogue_provider_cannot_drain_the_wallet():
    made = market(AlwaysLow)
    made.buyers[0].bps = 10_000  # hardly any use
    made.run(900)
    used = made.buyers[0].machine.using.count.bill.due_msat
    assert used < 1000
    assert made.buyers[0].machine.using.lease.shown_sat <= CAP_SAT


def test_wrong_country_is_left_before_it_is_paid():
    made = market(Elsewhere)
    made.run(60)
    assert seller_in_use(made) == "seller1"
    assert any("FR, not in DE" in label for label in labels(made))
    assert shown_to(made, "seller0") == 0


def test_throttling_is_noticed_and_another_seller_looked_for():
    made = market(SellerParty, wish=Wish(max_rtt_ms=30))
    made.run(260)  # each probe takes 40 ms
    assert seller_in_use(made) is not None
    assert made.buyers[0].moved["seller1"] > 0


class AnswersLate(OnAFullLink):
    late = '"type":"grant"'


@pytest.mark.parametrize("seller", [OnAFullLink, AnswersLate])
def test_a_pause_is_known_though_the_answer_to_a_payment_comes_after_it(seller):
    """By the buyer's count there was enough: it saw a dead tunnel, and left."""
    made = Market(3)
    made.sellers.append(seller(made, "seller0", "1000sat/GiB"))
    small, large = (Wish(ceilings=Ceilings(2_000_000, day_sat=day)) for day in (40, 400))
    made.buyers.append(BuyerParty(made, "buyer", 500, small))
    buyer = made.buyers[0]
    buyer.bps = 2_000_000
    made.run(1)
    buyer.want(small)
    made.run(100, 2)
    seen = set()
    for _ in range(180):
        made.run(1, 1)
        seen.add(state(made)["state"])
    assert seen == {"paused"}
    moved = buyer.moved["seller0"]
    buyer.want(large)
    made.run(30, 2)
    assert buyer.moved["seller0"] > moved + 20_000_000
    assert outcomes(made) == []


def test_a_dead_seller_is_replaced_within_two_minutes():
    made = market(SellerParty)
    made.run(30)
    assert seller_in_use(made) == "seller0"
    made.sellers[0].is_gone = True
    made.run(120)
    assert seller_in_use(made) == "seller1"


def test_when_the_budget_is_used_up_it_says_so_and_goes_on_when_the_hour_is_over():
    made = market(wish=Wish(ceilings=Ceilings(hour_sat=12, day_sat=30)))
    buyer = made.buyers[0]
    buyer.bps = 4_000_000
    made.run(600)
    assert "of 12 sat for an hour are spent" in state(made)["text"]
    assert state(made)["spent_hour_sat"] <= 12
    stopped = buyer.moved["seller0"]
    made.run(600)
    assert buyer.moved["seller0"] <= stopped + 20_000_000
    made.run(2 * HOUR, 30)
    assert buyer.moved["seller0"] > 1.5 * stopped
    assert state(made)["spent_day_sat"] <= 30


def test_a_wish_ends_only_by_the_user():
    made = market(ServesNothing, sat=500)
    made.sellers[1].is_gone = True
    for _ in range(6):
        made.run(600)
        assert state(made)["state"] in ("looking", "asking", "trying")
    made.sellers[1].is_gone = False
    made.buyers[0].step(Ranked(made.ranking(made.buyers[0])))
    made.run(60)
    assert state(made)["state"] == "connected"
    made.buyers[0].want(None)
    made.run(30)
    assert state(made)["state"] == "off"
    assert made.buyers[0].machine.links() == ()


def test_an_empty_wallet_and_no_offer_are_said_in_words():
    made = market(sat=0)
    made.run(60)
    assert state(made)["text"] == "looking for an offer: the wallet has nothing at its mints"
    made = market(wish=Wish(country="JP"))
    made.run(60)
    assert state(made)["text"] == "looking for an offer: it is in DE"


def test_undisclosed_money_comes_home_after_the_lock_and_not_before():
    made = market()
    made.run(30)
    buyer = made.buyers[0]
    buyer.want(None)
    made.run(60)
    assert state(made)["coming_home_sat"] > 0
    made.run(HOUR, 60)
    assert state(made)["coming_home_sat"] > 0
    made.run(HOUR, 60)
    assert state(made)["coming_home_sat"] == 0
    shown = sum(buyer.last_slice.values())
    assert made.bank.balances["buyer"] >= 500 - 2 * shown


def test_messages_of_others_and_nonsense_change_nothing():
    made = market()
    made.run(30)
    buyer = made.buyers[0]
    lease = buyer.machine.using.lease
    before = lease.to_json()
    stranger = RootSecret(b"\x07" * 32).public_key
    for text in ("", "{}", "[" * 1000, render_message(Notice(level="error", code="closed"))):
        assert not [
            e
            for e in buyer.machine.step(Heard(lease.seller, text), buyer.moment())
            if isinstance(e, Tell)
        ]
    closed = render_message(Notice(level="error", code="closed", lease_id=lease.lease_id))
    buyer.step(Heard(stranger, closed))
    assert lease.to_json() == before
    assert buyer.machine.counters["unknown_lease"] >= 1
    usage = Usage(
        lease_id=lease.lease_id,
        number=999,
        at=0,
        rx=0,
        tx=0,
        billable=10**12,
        ms=0,
        due_msat=10**9,
        paid_msat=0,
        state="paid",
    )
    buyer.step(Heard(lease.seller, render_message(usage)))  # not signed
    assert buyer.machine.counters["bad_signature"] == 1
    assert seller_in_use(made) == "seller0"


QUOTES = {
    "dearer": {"step_msat": 1001},
    "a smaller step": {"step_bytes": 53_000_000},
    "an hour": {"hour_msat": 1},
    "another receiver": {"receiver": "02" + "11" * 32},
    "another mode": {"mode": PayMode.PLAIN},
    "another mint": {"mints": ("https://other.example",)},
    "a long lock": {"lock_s": 100_000},
    "over already": {"expires_at": 1},
}


@pytest.mark.parametrize("change", QUOTES.values(), ids=QUOTES.keys())
def test_a_quote_that_differs_from_the_offer_is_refused(change):
    made = market()
    made.run(30)
    buyer = made.buyers[0]
    lease = buyer.machine.using.lease
    assert check_quote(lease.quote, lease, buyer.moment()) is None
    assert check_quote(msgspec.structs.replace(lease.quote, **change), lease, buyer.moment())


def test_records_are_written_before_anything_leaves():
    made = market()
    buyer = made.buyers[0]
    lists = buyer.lists = []
    made.run(60)
    assert buyer.machine.using
    kept = [effects for effects in lists if any(isinstance(e, Keep) for e in effects)]
    assert len(kept) > 10
    for effects in lists:
        kinds = [isinstance(effect, Keep) for effect in effects]
        assert kinds == sorted(kinds, reverse=True)


def test_a_wish_survives_storage_and_a_damaged_one_is_refused():
    wish = Wish(AUTO, Ceilings(day_sat=7), "DE", (4, 6), (MINT,), (PayMode.PLAIN,), 300)
    assert Wish.from_json(wish.to_json()) == wish
    with pytest.raises(Exception, match="not a wish"):
        Wish.from_json({"choice": 7})


def test_a_seller_that_ends_in_order_broke_no_word_and_the_next_one_is_used():
    made = market(SellerParty)
    made.run(60)
    assert seller_in_use(made) == "seller0"
    first = made.sellers[0]
    first.carry_out(first.machine.end_all(first.moment()))
    first.machine.service.is_open = False
    made.run(120)
    assert seller_in_use(made) == "seller1"
    assert [how for name, how in outcomes(made) if name == "seller0"] == ["served"] * len(
        [name for name, _ in outcomes(made) if name == "seller0"]
    )
    assert "it ended the lease: stopped" in labels(made)


class Full(SellerParty):
    """Has no room, and counts who asks."""

    asked = 0

    def step(self, event):
        if isinstance(event, Heard) and '"quote_req"' in event.text:
            type(self).asked += 1
        super().step(event)


def test_a_seller_that_refuses_is_not_asked_again_at_once():
    made = market(Full)
    for seller in made.sellers:
        seller.machine.service.admit = lambda _key: "too-busy"
    Full.asked = 0
    made.run(120)
    assert state(made)["state"] in ("looking", "asking")
    assert 2 <= Full.asked <= 15


def test_what_another_lease_counted_with_this_seller_is_not_this_ones():
    made = market()
    buyer, [seller] = made.buyers[0], made.sellers
    buyer.bps = 0
    made.run(30)
    [deal] = buyer.machine.deals
    paid = deal.lease.paid_msat
    wall = int(START + made.now)
    many = Counted({seller.wg_key: Counters(GIB, GIB, wall)}, "boot", "the key of the lease before")
    buyer.step(many)
    assert deal.count.used < MIB
    assert (deal.lease.phase, deal.lease.paid_msat) == (Phase.SERVED, paid)
    buyer.step(replace(many, device=deal.lease.wg_pub))
    assert deal.count.used > GIB
