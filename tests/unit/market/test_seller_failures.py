"""What went wrong for others who sell by the megabyte, and what makes a lease one: none of it here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nostrvpn.cashu.blind import y_of
from nostrvpn.cashu.token import parse_token
from nostrvpn.market.attest import is_signed_by, receipt_id
from nostrvpn.market.effects import Heard, Keep, PaymentFailed, ServiceChanged, Tell, Tick
from nostrvpn.market.lease import Phase
from nostrvpn.market.messages import (
    Close,
    Fund,
    Low,
    Notice,
    Receipt,
    TopUp,
    Usage,
    render_message,
)
from nostrvpn.market.statements import Earnings, Session, csv_text, earnings, sessions
from nostrvpn.market.terms import MIB, PayMode, Price
from tests.market_shop import SETTINGS, START, URL, Buyer, Shop, amount_of, books, lease_of

LOCKED, PLAIN = PayMode.LOCKED, PayMode.PLAIN
GIB = 1 << 30


def opened(mode=LOCKED, paid=(8,), fee_ppk=0, **settings):
    shop = Shop(mode, settings=replace(SETTINGS, **settings), fee_ppk=fee_ppk)
    buyer = Buyer(shop)
    buyer.ask()
    buyer.fund(buyer.token(*paid))
    return shop, buyer


def told(shop, kind):
    return [message for _, message in shop.inbox if isinstance(message, kind)]


def codes(shop):
    return [message.code for message in told(shop, Notice)]


@pytest.mark.parametrize("mode", [LOCKED, PLAIN])
def test_paid_but_not_opened_keeps_the_credit(mode):
    """OpenTollGate/tollgate-module-basic-go#258."""
    shop = Shop(mode)
    buyer = Buyer(shop)
    buyer.ask()
    token = buyer.token(8)
    shop.service.activate = lambda *_: None
    assert buyer.pay(token) == ["grant-failed"]
    assert lease_of(shop, buyer).paid_msat == 8000
    shop.start()
    grant = buyer.fund(token)
    assert grant.paid_msat == 8000
    assert shop.applied[buyer.wg_pub].is_open
    assert buyer.fund(token) == grant


def test_paid_and_never_opened_is_given_back():
    shop = Shop(PLAIN)
    shop.service.activate = lambda *_: None
    buyer = Buyer(shop)
    buyer.ask()
    assert buyer.pay(buyer.token(8)) == ["grant-failed"]
    for _ in range(12):
        shop.wait(61)
    assert told(shop, Receipt)[-1].refund_sat == 8
    assert books(shop).wallet == 0


def test_refused_token_is_not_consumed():
    """OpenTollGate/tollgate-module-basic-go#423."""
    shop = Shop(PLAIN)
    buyer = Buyer(shop)
    buyer.ask()
    token = buyer.token(64, 1)
    assert buyer.pay(token) == ["slice-too-large"]
    assert shop.wallet.asked == []
    assert not any(y_of(p.secret) in shop.mint.spent for p in parse_token(token).proofs)


def test_every_mint_of_the_offer_works():
    """OpenTollGate/tollgate-module-basic-go PR 167."""
    second = "https://second.example"
    terms = replace(SETTINGS.terms, mints=(URL, second))
    shop = Shop(PLAIN, settings=replace(SETTINGS, terms=terms), urls=(URL, second))
    buyer = Buyer(shop)
    assert buyer.ask().mints == (URL, second)
    buyer.fund(buyer.token(8))
    buyer.top_up(buyer.token(16, mint=shop.mints[second]), 1)
    shop.move(buyer, 3 * MIB)
    receipt = buyer.close()
    assert receipt.refund_sat == 16  # all that one mint can give back
    assert shop.wallet.balance(second) == 0
    assert books(shop).unused == 24_000 - receipt.due_msat - 16_000
    only = Buyer(shop, "only")
    assert only.ask(mints=(second,)).mints == (second,)


def test_limit_triggers_for_a_peer_that_was_never_counted_before():
    """OpenTollGate/tollgate-module-basic-go#88: a baseline of zero by accident."""
    shop, buyer = opened(LOCKED, (2,))
    moved = shop.move(buyer, 100 * MIB)
    assert 3 * MIB <= moved <= 3 * MIB + SETTINGS.terms.grace_bytes + 128 * 1024
    assert lease_of(shop, buyer).suspended_at
    assert "suspended" in codes(shop)


def test_kernel_alone_ends_what_was_paid_for():
    """A daemon that hangs gives nothing away."""
    _, buyer = opened(LOCKED, (2,))
    lease = buyer.shop.applied[buyer.wg_pub]
    assert lease.quota_bytes == 3 * MIB + SETTINGS.terms.grace_bytes
    buyer.top_up(buyer.token(1), 1)
    assert buyer.shop.applied[buyer.wg_pub].quota_bytes == 4 * MIB + SETTINGS.terms.grace_bytes


def test_long_session_survives_reboots():
    """mysteriumnetwork/node#5788, #5358: 25 MYST of ten days were lost."""
    shop, buyer = opened(LOCKED, (64,), terms=replace(SETTINGS.terms, max_slice_sat=1024))
    buyer.top_up(buyer.token(1024), 1)
    moved = 0
    for _ in range(10):
        moved += shop.move(buyer, 100 * MIB, chunk=20 * MIB)
        shop.reboot()
    receipt = buyer.close()
    assert receipt.rx + receipt.tx == moved == 1000 * MIB
    assert receipt.due_msat == 999_000


def test_reboot_is_seen_although_counters_are_larger_already():
    shop, buyer = opened(LOCKED, (64,))
    shop.move(buyer, MIB)
    shop.wait(31)  # until then a dead machine takes along what was counted last
    shop.kernel[buyer.wg_pub] = [2 * MIB, 3 * MIB]  # a fast start after the machine's
    shop.epoch = "boot-2"
    shop.start()
    assert lease_of(shop, buyer).meter.total == 6 * MIB


def test_large_sessions_are_billed_in_full():
    """mysteriumnetwork/node#4900: 228 GB, paid a hundredth."""
    shop, buyer = opened(LOCKED, (2,))
    lease = lease_of(shop, buyer)
    lease.meter.read(228 * GIB, 0, shop.epoch)
    assert lease.bill.due_msat == (228 * 1024 - 1) * 1000


def test_clock_starts_with_the_first_handshake():
    """lthn-app-vpn#18."""
    price = Price(MIB, 1000, 1_800_000)  # half a sat a second
    terms = replace(SETTINGS.terms, price=price, free_bytes=0)
    shop, buyer = opened(LOCKED, (64,), terms=terms)
    for _ in range(30):
        shop.wait(10)
    assert lease_of(shop, buyer).ms == 0
    shop.move(buyer, 128 * 1024)
    for _ in range(5):
        shop.wait(10)
    assert lease_of(shop, buyer).ms == 50_000
    shop.start()
    kept = lease_of(shop, buyer).ms  # what was counted last is lost with a daemon
    assert 20_000 <= kept <= 50_000
    for _ in range(20):
        shop.wait(10)
    lease = lease_of(shop, buyer)
    assert lease.suspended_at
    stopped = lease.ms
    for _ in range(5):
        shop.wait(10)
    assert lease_of(shop, buyer).ms == stopped
    assert 64_000 < price.due(128 * 1024, stopped) <= 64_000 + 20_000  # 30 s of grace, one reading


def test_refund_that_the_mint_refuses_for_now_comes_later():
    """Routstr/routstr-core#174, #590."""
    shop, buyer = opened(PLAIN, (16,))
    shop.move(buyer, 3 * MIB)
    shop.mint.down = True
    assert buyer.say(Close(lease_id=buyer.lease_id)) == []
    shop.start()
    shop.mint.down = False
    shop.wait(600)
    receipt = told(shop, Receipt)[-1]
    assert receipt.refund_sat == amount_of(receipt.token) == 14
    assert is_signed_by(receipt, shop.seller.pubkey)
    assert books(shop).wallet == 2


def test_refund_is_the_same_unspent_token_each_time():
    """Routstr/routstr-core#378, #412."""
    shop, buyer = opened(PLAIN, (16,))
    assert shop.seller.reserved_sat() == {URL: 16}
    first = buyer.close()
    assert shop.seller.reserved_sat() == {}
    shop.start()
    again = buyer.close()
    assert again.token == first.token
    assert shop.wallet.asked.count(f"back:{buyer.lease_id}") == 1
    proofs = parse_token(first.token).proofs
    assert not any(y_of(proof.secret) in shop.mint.spent for proof in proofs)
    assert all(buyer.refund in proof.secret for proof in proofs)


def test_refund_that_is_refused_for_good_stays_owed():
    shop, buyer = opened(PLAIN, (16,))
    shop.mint.spent |= {y_of(proof.secret) for proof in shop.wallet.proofs[URL]}
    receipt = buyer.close()
    assert (receipt.refund_sat, receipt.owed_sat, receipt.token) == (0, 16, "")
    assert shop.seller.problems() == []
    shop.wallet.proofs[URL] = shop.mint.issue((16,))
    shop.start()
    buyer.close()
    later = buyer.close()
    assert (later.refund_sat, later.owed_sat, amount_of(later.token)) == (16, 0, 16)
    assert books(shop).wallet == 0


@pytest.mark.parametrize("mode", [LOCKED, PLAIN])
def test_seller_who_stops_gives_back_all_that_is_unused(mode):
    shop, buyer = opened(mode, (16,))
    shop.move(buyer, 3 * MIB)
    shop.perform(shop.seller.end(buyer.lease_id, "stopped", shop.moment))
    for _ in range(4):
        shop.wait(60)
    receipt = told(shop, Receipt)[-1]
    assert (receipt.refund_sat, receipt.due_msat) == (14, 2000)
    assert books(shop).earned == 2000


def test_a_refund_out_of_what_is_being_swapped_waits_for_it():
    shop, buyer = opened(LOCKED, (16,))
    assert shop.wallet.balance() == 0
    ending = shop.seller.end(buyer.lease_id, "stopped", shop.moment)
    early = PaymentFailed(f"back:{buyer.lease_id}", "insufficient", "not enough", False)
    shop.perform([*shop.seller.step(early, shop.moment), *ending])
    shop.wait(3)
    (receipt,) = told(shop, Receipt)
    assert (receipt.refund_sat, receipt.owed_sat) == (16, 0)


def test_all_that_are_served_are_told_and_ended():
    shop, buyer = opened(LOCKED, (16,))
    other, waits = Buyer(shop, "other"), Buyer(shop, "waits")
    other.ask()
    other.fund(other.token(1))
    waits.ask()
    shop.move(other, 3 * MIB)
    assert lease_of(shop, other).suspended_at
    shop.inbox.clear()
    shop.perform(shop.seller.tell_all("warning", "ending", shop.moment))
    assert [message.lease_id for message in told(shop, Notice)] == [buyer.lease_id]
    shop.perform(shop.seller.end_all(shop.moment))
    shop.wait(3)
    ended = {message.lease_id: message.reason for message in told(shop, Receipt)}
    assert ended == {buyer.lease_id: "stopped", other.lease_id: "stopped"}


def test_nobody_new_is_taken_while_it_is_closed_and_no_money():
    shop, there = opened()
    quoted, late = Buyer(shop, "quoted"), Buyer(shop, "late")
    quoted.ask()
    shop.service.is_open = False
    late.say(late.request())
    assert codes(shop)[-1] == "closed"
    token = quoted.token(8)
    assert quoted.pay(token) == ["closed"]
    assert lease_of(shop, quoted).paid_msat == 0
    assert there.top_up(there.token(4), 1).paid_msat == 12_000
    shop.service.is_open = True
    assert quoted.fund(token).paid_msat == 8000
    late.ask()


@pytest.mark.parametrize(("mebibytes", "refund"), [(12, 3), (13, 2), (14, 0), (15, 0)])
def test_no_refund_that_the_buyers_own_swap_would_eat(mebibytes, refund):
    shop, buyer = opened(PLAIN, (16,), fee_ppk=100)
    shop.move(buyer, mebibytes * MIB)
    receipt = buyer.close()
    assert (receipt.refund_sat, receipt.owed_sat) == (refund, 0)
    assert books(shop).wallet == 15 - refund - bool(refund)


def test_what_the_fee_would_eat_waits_for_more():
    shop, buyer = opened(LOCKED, (1,), fee_ppk=900)
    buyer.close()
    shop.wait(30)
    assert shop.wallet.asked == []
    other = Buyer(shop, "other")
    other.ask()
    other.fund(other.token(8))
    other.close()
    shop.wait(30)
    assert books(shop).wallet == 7  # nine for one swap of two inputs
    assert books(shop).lost == 0


def test_rotated_keyset():
    shop, buyer = opened(LOCKED, (8,))
    old = buyer.token(4)
    shop.mint.rotate()
    new = buyer.token(4)
    assert buyer.pay(new, 1) == ["unknown-keyset"]
    assert shop.seller.stale_mints == {URL}
    shop.seller.mints = {URL: shop.mint.keys}
    assert buyer.pay(old, 2) == ["inactive-keyset"]
    assert buyer.top_up(new, 1).paid_msat == 12_000
    shop.move(buyer, 13 * MIB)
    buyer.close()
    shop.wait(60)
    assert books(shop).wallet == 12  # what was held is redeemed, of both keysets


def test_slow_mint_is_asked_again_with_the_same_ref():
    shop = Shop(PLAIN)
    buyer = Buyer(shop)
    buyer.ask()
    wallet: Any = shop.wallet
    carry_out, wallet.carry_out = wallet.carry_out, lambda _: Tick()
    token = buyer.token(8)
    assert buyer.pay(token) == []
    assert buyer.pay(token) == ["payment-pending"]
    wallet.carry_out = carry_out
    for _ in range(11):
        shop.wait(60)
    assert buyer.fund(token).paid_msat == 8000
    assert len(shop.wallet.asked) == 1


def test_suspended_then_resumed_then_closed():
    shop, buyer = opened(LOCKED, (2,))
    shop.move(buyer, 10 * MIB)
    assert not shop.applied[buyer.wg_pub].serves  # the peer stays, with its counters
    for _ in range(9):
        shop.wait(60)
    buyer.top_up(buyer.token(2), 1)
    assert "resumed" in codes(shop)
    assert shop.move(buyer, MIB) == MIB
    shop.move(buyer, 10 * MIB)
    for _ in range(11):
        shop.wait(60)
    assert told(shop, Receipt)[-1].reason == "unpaid"
    assert buyer.wg_pub not in shop.applied


def test_a_pause_is_told_again_until_it_is_over():
    """Told once and lost, the buyer saw a dead tunnel and left."""
    shop, buyer = opened(LOCKED, (2,))
    shop.move(buyer, 10 * MIB)
    shop.inbox.clear()
    for _ in range(6):
        shop.wait(10)
    assert [usage.state for usage in told(shop, Usage)] == ["suspended"] * 3
    buyer.top_up(buyer.token(8), 1)
    shop.inbox.clear()
    shop.wait(40)
    assert told(shop, Usage) == []  # each minute


def test_a_payment_through_the_tunnel_is_answered_through_it():
    """Also before the first reading of the counters: relays may be gone."""
    shop, buyer = opened(LOCKED, (2,))
    own, perform = shop.applied[buyer.wg_pub].ipv6, shop.perform
    sent: list[Any] = []

    def watched(effects):
        sent.extend(effect.via for effect in effects if isinstance(effect, Tell))
        perform(effects)

    shop.perform = watched
    assert not lease_of(shop, buyer).started_at
    message = TopUp(lease_id=buyer.lease_id, seq=1, token=buyer.token(2))
    [grant] = buyer.say(message, at_tunnel=own)
    assert grant.paid_msat == 4000
    assert sent == [own]


def test_a_payment_that_does_not_reach_is_answered_with_the_bill_too():
    shop, buyer = opened(LOCKED, (2,))
    shop.move(buyer, 10 * MIB)
    lease = lease_of(shop, buyer)
    lease.meter.rx_base += 10 * MIB  # on its way as the kernel closed
    shop.inbox.clear()
    assert buyer.top_up(buyer.token(1), 1).paid_msat == 3000
    [usage] = told(shop, Usage)
    assert (usage.state, usage.paid_msat) == ("suspended", 3000)
    assert "resumed" not in codes(shop)
    assert not shop.applied[buyer.wg_pub].serves


def test_exposure_is_the_grace():
    shop, buyer = opened(LOCKED, (2,))
    shop.move(buyer, 10 * MIB)
    for _ in range(11):
        shop.wait(60)
    receipt = told(shop, Receipt)[-1]
    late = SETTINGS.terms.grace_bytes + 128 * 1024  # one reading
    assert 0 < receipt.due_msat - receipt.paid_msat <= SETTINGS.terms.price.due(late, 0)
    assert books(shop).earned == receipt.paid_msat


def test_low_and_usage_are_told_and_signed():
    shop, buyer = opened(LOCKED, (8,))
    shop.move(buyer, 8 * MIB)
    [low] = told(shop, Low)
    assert low.remaining_msat < 3000
    usages = told(shop, Usage)
    assert all(is_signed_by(usage, shop.seller.pubkey) for usage in usages)
    assert not is_signed_by(replace_field(usages[0], "paid_msat", 0), shop.seller.pubkey)
    numbers = [usage.number for usage in usages]
    assert numbers == sorted(set(numbers))
    shop.now += 2
    assert isinstance(buyer.say(Low(lease_id=buyer.lease_id))[0], Usage)
    assert buyer.say(Low(lease_id=buyer.lease_id)) == []  # one a second


def replace_field(message, name, value):
    fields = {field: getattr(message, field) for field in message.__struct_fields__}
    return type(message)(**{**fields, name: value})


def test_receipt_names_no_destination_and_is_known_by_a_hash():
    shop, buyer = opened(PLAIN)
    receipt = buyer.close()
    assert len(receipt_id(receipt, shop.seller.pubkey)) == 64
    assert receipt_id(receipt, shop.seller.pubkey) == receipt_id(
        replace_field(receipt, "token", ""), shop.seller.pubkey
    )
    allowed = {"lease_id", "buyer", "offer_id", "started_at", "ended_at", "rx", "tx", "billable"}
    allowed |= {"ms", "due_msat", "paid_msat", "refund_sat", "owed_sat", "reason", "token", "sig"}
    assert set(receipt.__struct_fields__) == allowed


@pytest.mark.parametrize("mode", [LOCKED, PLAIN])
def test_whatever_is_told_or_served_was_written_down_before(mode):
    shop: Any = Shop(mode)
    lists = []
    perform = shop.perform

    def watch(effects):
        lists.append(list(effects))
        perform(effects)

    shop.perform = watch
    buyer = Buyer(shop)
    buyer.ask()
    buyer.fund(buyer.token(4))
    shop.move(buyer, 8 * MIB)
    buyer.top_up(buyer.token(8), 1)
    buyer.close()
    kinds = {type(effect) for effects in lists for effect in effects}
    assert {Keep, Tell, ServiceChanged} <= kinds
    for effects in lists:
        kept = [isinstance(effect, Keep) for effect in effects]
        assert kept == sorted(kept, reverse=True)


def test_forgotten_after_a_day_but_for_the_statement():
    shop, buyer = opened(PLAIN, (8,))
    shop.move(buyer, 3 * MIB)
    buyer.close()
    [row] = sessions(shop.seller.leases, ())
    shop.wait(90_000)
    assert shop.seller.leases == ()
    spaces = {space for space, _ in shop.disk}
    assert spaces == {"sold_entry", "sold_session"}
    past = [value for (space, _), value in shop.disk.items() if space == "sold_session"]
    assert sessions((), past) == (row,)
    assert (row.due_msat, row.paid_msat, row.refund_sat) == (2000, 8000, 6)
    [day] = earnings(shop.seller.ledger, [row])
    assert (day.day, day.received, day.earned, day.refunds) == ("2026-09-21", 8000, 2000, 6000)
    assert day.bytes == row.billable > 0
    assert csv_text(Session, [row]).splitlines()[0].startswith("lease,buyer,offer,state")
    assert (
        csv_text(Earnings, [day]).splitlines()[1]
        == f"2026-09-21,1,8000,2000,0,6000,0,0,{row.billable}"
    )
    assert csv_text(Session, []) == csv_text(Session, [row]).splitlines(keepends=True)[0]


def test_trial_counts_although_the_daemon_died_before_it_was_counted():
    shop = Shop(LOCKED)
    buyer = Buyer(shop)
    buyer.ask()
    heard = Heard(buyer.pubkey, render_message(Fund(lease_id=buyer.lease_id, seq=0)))
    effects = shop.seller.step(heard, shop.moment)
    shop.perform(effects[: [isinstance(e, Keep) and e.space for e in effects].index("sold_trial")])
    shop.start()
    assert buyer.ask(wg_pub=Buyer(shop, "x").wg_pub).free_bytes == 0


def test_nobody_keeps_a_place_for_nothing():
    shop = Shop(LOCKED)
    buyer = Buyer(shop)
    buyer.ask()
    buyer.fund("")
    shop.move(buyer, MIB // 2)
    for _ in range(3):
        shop.wait(60)
    assert shop.applied == {}
    assert told(shop, Receipt)[-1].reason == "trial-over"


def test_full_house_refuses_before_money():
    shop = Shop(LOCKED)
    shop.service.max_sessions = 1
    one, two = Buyer(shop, "one"), Buyer(shop, "two")
    one.ask()
    two.ask()
    one.fund(one.token(4))
    assert two.pay(two.token(4)) == ["too-busy"]
    assert Buyer(shop, "three").notice(Buyer(shop, "three").request()) == ["too-busy"]


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"v":2,"type":"close"}', "x" * 100_000, '{"v":1}']
)
def test_rubbish_is_dropped_and_counted(text):
    shop = Shop(LOCKED)
    assert shop.seller.step(Heard("a" * 64, text), shop.moment) == []
    assert sum(shop.seller.counters.values()) == 1


def test_clock_of_the_machine_is_set_back():
    shop, buyer = opened(LOCKED, (16,))
    shop.move(buyer, 2 * MIB)
    shop.skew = -5000
    shop.move(buyer, 2 * MIB)
    receipt = buyer.close()
    assert receipt.due_msat == 3000
    assert lease_of(shop, buyer).phase == Phase.CLOSED
    assert receipt.ended_at < START


def test_first_payment_may_come_after_a_trial_that_ended():
    shop = Shop(LOCKED)
    buyer = Buyer(shop)
    buyer.ask()
    buyer.fund("")
    shop.move(buyer, 5 * MIB)
    assert lease_of(shop, buyer).suspended_at
    grant = buyer.fund(buyer.token(4), seq=1)
    assert grant.free_bytes == MIB
    assert shop.move(buyer, MIB) == MIB
    assert buyer.say(Fund(lease_id=buyer.lease_id, seq=0))[0].access == grant.access
