"""What a payer, a mint or chance may do to a seller who is paid by channels."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nostrvpn.cashu.channel import channel_outputs
from nostrvpn.cashu.conditions import lock_key
from nostrvpn.cashu.operations import swap_body
from nostrvpn.market.channel_effects import most_capacity
from nostrvpn.market.effects import Tick
from nostrvpn.market.messages import NOTICE_CODES, Fund, TopUp
from nostrvpn.market.terms import PayMode
from tests.market_shop import START, URL, Buyer, Shop, books, lease_of

CHANNEL, INVALID = PayMode.CHANNEL, "payment-error-invalid-token"
HALF_S = 2000  # of the locktime that a buyer by hand asks for


def opened(balance=4, capacity=16, fee_ppk=0):
    """A shop with one buyer who paid by a channel."""
    shop = Shop(CHANNEL, fee_ppk=fee_ppk)
    buyer = Buyer(shop)
    buyer.ask()
    buyer.by_channel(balance, 1, **buyer.open_channel(capacity))
    return shop, buyer


def codes(buyer, seq, **fields):
    """What a payment is refused with."""
    kind = Fund if seq == 1 else TopUp
    found = buyer.notice(kind(lease_id=buyer.lease_id, seq=seq, **fields))
    assert set(found) <= NOTICE_CODES
    return found


def spoil(shop, buyer, *balances):
    """Have the mint sign one of the outputs of these balances, for the smallest proof each."""
    for balance in balances:
        _, payer = channel_outputs(buyer.channel, balance, shop.mint.keyset)
        body = swap_body(shop.mint.issue([1]), (replace(payer[0], amount=1),))
        assert shop.mint.handle("POST", "/v1/swap", body)[0] == 200


def end(shop, buyer):
    receipt = buyer.close()
    shop.wait(10)
    return receipt


def test_updates_are_credited_without_a_word_to_the_mint_and_closed_in_one():
    shop, buyer = opened(4)
    for seq, balance in enumerate((5, 9, 15), 2):
        assert buyer.by_channel(balance, seq).paid_msat == 1000 * balance
    assert not [call for call in shop.mint.calls if "swap" in call]
    assert books(shop).accounts[f"channel:{URL}"] == 15_000
    end(shop, buyer)
    assert shop.wallet.closes == [15]
    assert shop.wallet.balance() == 15
    assert f"channel:{URL}" not in books(shop).accounts


def test_what_the_mint_takes_for_bringing_it_home_is_not_credited():
    shop, buyer = opened(4, fee_ppk=100)
    lease = lease_of(shop, buyer)
    assert lease.paid_msat == 3000  # four bits at most: a sat
    end(shop, buyer)
    assert shop.wallet.balance() == 3
    assert books(shop).fees == 0
    other = Buyer(shop, "other")
    other.ask()
    opening = other.open_channel(16)
    assert codes(other, 1, **opening, **other.update(1)) == [INVALID]


@pytest.mark.parametrize("restarted", [False, True])
def test_a_balance_that_does_not_grow_or_is_not_signed_is_worth_nothing(restarted):
    shop, buyer = opened(8)
    if restarted:
        shop.start()
    for balance in (8, 7, 1):
        assert codes(buyer, 2, **buyer.update(balance)) == [INVALID]
    signature = buyer.update(9)["signature"]
    for balance in (10, 16, 17, 1000):
        assert codes(buyer, 2, balance=balance, signature=signature) == [INVALID]
    stranger = Buyer(shop, "stranger")
    stranger.channel = buyer.channel
    assert codes(buyer, 2, **stranger.update(9)) == [INVALID]
    assert codes(buyer, 2) == [INVALID]
    assert lease_of(shop, buyer).paid_msat == 8000
    assert buyer.by_channel(9, 2).paid_msat == 9000
    assert buyer.by_channel(9, 2).paid_msat == 9000  # the same again
    books(shop)


def test_a_channel_of_another_kind_is_refused_before_anything_is_kept():
    shop = Shop(CHANNEL)
    buyer = Buyer(shop)
    buyer.ask()
    now = int(START)
    for changes, code in (
        ({"receiver": lock_key(b"\7" * 32)}, INVALID),
        ({"locktime": now + 1700}, "lock-too-short"),
        ({"locktime": now + 8 * 86_400}, "locked-token"),
    ):
        funding = {"payer": lock_key(buyer.secret), "receiver": buyer.quote.receiver}
        opening = buyer.open_channel(16)
        kept = {**opening, **buyer.update(4)}
        mint, channel = shop.mint, buyer.channel
        lock = replace(channel.lock, **_lock_changes({**funding, **changes}))
        token = buyer.token_of(mint.issue([16], lock))
        assert codes(buyer, 1, **{**kept, "token": token}) == [code]
    assert codes(buyer, 1, token=buyer.token(16), **buyer.update(4), seed="00" * 32) == [INVALID]
    assert [space for space, _ in shop.disk if space in ("sold_channel", "sold_lease")] == []


def _lock_changes(fields):
    found = {"pubkeys": (fields["receiver"],)}
    return found | ({"locktime": fields["locktime"]} if "locktime" in fields else {})


def test_the_first_channel_is_small_and_the_next_ones_twice_as_large():
    assert [most_capacity(number) for number in range(6)] == [16, 32, 64, 128, 256, 256]
    shop = Shop(CHANNEL)
    buyer = Buyer(shop)
    buyer.ask()
    assert codes(buyer, 1, **buyer.open_channel(32), **buyer.update(4)) == ["channel-refused"]
    buyer.by_channel(16, 1, **buyer.open_channel(16))
    assert codes(buyer, 2, **buyer.open_channel(64), **buyer.update(4)) == ["channel-refused"]
    buyer.by_channel(20, 2, **buyer.open_channel(32))
    shop.wait(6)
    assert shop.wallet.closes == [16]  # it is used up: there is another one
    end(shop, buyer)
    assert shop.wallet.balance() == 36
    books(shop)


@pytest.mark.parametrize("when", ["open", "closed", "restarted"])
def test_money_that_funded_a_channel_funds_no_other(when):
    shop, buyer = opened(4)
    opening = buyer.open_channel(16)
    buyer.by_channel(4, 2, **opening)
    if when != "open":
        end(shop, buyer)
    if when == "restarted":
        shop.start()
    other = Buyer(shop, "other")
    other.ask()
    other.channel, other.secret = buyer.channel, buyer.secret
    shown = other.update(12)
    other.secret = Buyer(shop, "other").secret
    assert codes(other, 1, **opening, **shown) == ["payment-error-token-spent"]
    books(shop)


def test_spoilt_updates_cost_what_came_after_the_last_good_one():
    shop, buyer = opened(4)
    for seq, balance in enumerate((6, 9, 13), 2):
        buyer.by_channel(balance, seq)
    spoil(shop, buyer, 9, 13)
    end(shop, buyer)
    assert shop.wallet.closes == [6]
    found = books(shop)
    assert (found.wallet, found.lost) == (6, 7000)
    assert found.accounts.get(f"channel:{URL}", 0) == 0


def test_who_spoilt_a_channel_pays_by_none_in_that_lease():
    shop, buyer = opened(8)
    spoil(shop, buyer, 8)
    buyer.by_channel(20, 2, **buyer.open_channel(32))
    shop.wait(6)
    assert (shop.wallet.closes, books(shop).lost) == ([20], 8000)  # the other, while it can be
    assert codes(buyer, 3, **buyer.update(21)) == ["channel-refused"]
    assert codes(buyer, 3, **buyer.open_channel(64), **buyer.update(9)) == ["channel-refused"]
    end(shop, buyer)
    shop.start()
    found = books(shop)
    assert (found.wallet, found.lost) == (20, 8000)


def test_a_mint_that_is_down_gets_the_close_later_and_bounds_what_is_taken():
    shop, buyer = opened(16)
    shop.mint.down = True
    buyer.by_channel(30, 2, **buyer.open_channel(32))
    shop.wait(6)
    opening = buyer.open_channel(64)
    assert codes(buyer, 3, **opening, **buyer.update(60)) == ["mint-down"]
    shop.start()
    shop.mint.down = False
    shop.wait(300)
    buyer.by_channel(60, 3, **opening)
    end(shop, buyer)
    assert shop.wallet.closes == [16, 30, 60]
    assert books(shop).wallet == 106


def test_it_is_closed_at_the_half_of_its_locktime_and_takes_no_more():
    shop, buyer = opened(4)
    shop.move(buyer, 1 << 20)
    for _ in range(HALF_S // 200):
        shop.wait(200)
        shop.move(buyer, 1000)  # it is in use
    shop.wait(10)
    assert shop.wallet.closes == [4]
    assert codes(buyer, 2, **buyer.update(5)) == ["channel-closed"]
    assert lease_of(shop, buyer).paid_msat == 4000
    assert books(shop).wallet == 4


@pytest.mark.parametrize("mode", [PayMode.LOCKED, PayMode.PLAIN])
def test_an_update_is_no_money_where_no_channel_was_agreed(mode):
    shop = Shop(mode)
    buyer = Buyer(shop)
    buyer.ask()
    buyer.fund(buyer.token(4), seq=1)
    opening = buyer.open_channel(16)
    assert codes(buyer, 2, **{**opening, "token": ""}, **buyer.update(4)) == [INVALID]
    assert codes(buyer, 2) == [INVALID]
    assert codes(buyer, 2, **opening, **buyer.update(4)) == ["locked-token"]
    assert lease_of(shop, buyer).paid_msat == 4000


def test_a_closed_channel_is_forgotten_a_day_after_its_lock():
    shop, buyer = opened(4)
    end(shop, buyer)
    [kept] = [value for (space, _), value in shop.disk.items() if space == "sold_channel"]
    assert (kept["state"], kept["funding"], kept["seed"]) == ("done", [], "")
    shop.wait(4000 + 86_400 + 60)
    shop.step(Tick())
    assert not [1 for space, _ in shop.disk if space == "sold_channel"]
    assert books(shop).wallet == 4
