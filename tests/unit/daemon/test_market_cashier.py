"""Requests to the wallet: each answered by one event, whatever the wallet does."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nostrvpn.cashu.channel import Update
from nostrvpn.cashu.proof import Proof
from nostrvpn.cashu.purse import NotEnough
from nostrvpn.cashu.token import parse_token
from nostrvpn.daemon.market_cashier import Cashier, Request
from nostrvpn.daemon.wallet_answers import Redeemed as Done
from nostrvpn.daemon.wallet_answers import WalletFailed
from nostrvpn.daemon.wallet_channels import Closed
from nostrvpn.errors import SystemRefused, UserError
from nostrvpn.market.channel_effects import (
    ChannelClosed,
    CloseChannel,
    FundChannel,
    SettleChannel,
)
from nostrvpn.market.effects import (
    GiveBack,
    GivenBack,
    Lock,
    Locked,
    MarketEvent,
    PaymentFailed,
    Reclaim,
    Redeem,
    Redeemed,
    TakenOut,
    TakeOut,
)

MINT = "https://mint.example"
KEY = "02" + "ab" * 32
PROOF = Proof("00" + "12" * 7, 4, "secret", KEY)
LOCK = Lock("l", MINT, (4,), KEY, 5, KEY)


class Wallet:
    """Gives one proof for everything, or raises ``error``."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.calls = error, list[tuple[Any, ...]]()
        self.book = SimpleNamespace(operation=lambda ref: SimpleNamespace(fee=1))
        self.may_go = asyncio.Event()
        self.may_go.set()

    async def _do(self, *given: Any) -> Any:
        self.calls.append(given)
        await self.may_go.wait()
        if self.error is not None:
            raise self.error
        return (PROOF,)

    async def _swap(self, *given: Any) -> Done:
        await self._do(*given)
        return Done(3, 1)

    lock = take_out = give_back = _do
    redeem = reclaim = _swap


async def answered(wallet: Wallet, request: Request, key: bytes | None = None) -> MarketEvent:
    cashier, found = Cashier(cast("Any", wallet)), asyncio.Queue[MarketEvent]()
    cashier.ask(request, key, found.put_nowait)
    async with asyncio.timeout(5):
        return await found.get()


async def test_each_request_has_its_answer() -> None:
    assert await answered(Wallet(), LOCK) == Locked("l", (PROOF,), 1)
    taken = await answered(Wallet(), TakeOut("t", MINT, 4))
    assert isinstance(taken, TakenOut)
    assert parse_token(taken.token_text).mint == MINT
    given = await answered(Wallet(), GiveBack("g", MINT, 4, KEY))
    assert isinstance(given, GivenBack)
    assert given.fee_sat == 1
    wallet = Wallet()
    redeem = Redeem("r", MINT, (PROOF,))
    assert await answered(wallet, redeem, b"key") == Redeemed("r", 3, 1)
    assert wallet.calls == [("r", MINT, (PROOF,), b"key")]
    reclaim = Reclaim("c", MINT, (PROOF,), 77)
    assert await answered(wallet, reclaim, b"key") == Redeemed("c", 3, 1)
    assert wallet.calls[-1] == ("c", MINT, (PROOF,), 77, b"key")


async def test_what_is_asked_about_channels_is_asked_with_the_key_of_who_asks() -> None:
    wallet, channel = Wallet(), cast("Any", object())

    async def done(*given: Any) -> Closed:
        await wallet._do(*given)
        return Closed(5, 4, 1)

    channels = SimpleNamespace(fund=wallet._do, close=done, settle=done)
    cast("Any", wallet).channels = channels
    fund = FundChannel("f", MINT, (16,), KEY, KEY, 77)
    assert await answered(wallet, fund, b"key") == Locked("f", (PROOF,), 1)
    update = Update(5, "00" * 64)
    close = CloseChannel("c", MINT, channel, (update,))
    assert await answered(wallet, close, b"key") == ChannelClosed("c", 5, 4, 1)
    settle = SettleChannel("s", MINT, channel, (5,), 78)
    assert await answered(wallet, settle, b"key") == ChannelClosed("s", 5, 4, 1)
    assert wallet.calls == [
        ("f", MINT, (16,), (KEY, KEY), 77),
        ("c", MINT, channel, (update,), b"key"),
        ("s", MINT, channel, (5,), 78, b"key"),
    ]


@pytest.mark.parametrize(
    ("error", "code", "may_retry"),
    [
        (WalletFailed("no", number=11001), "11001", False),
        (WalletFailed("wait", may_retry=True), "refused", True),
        (NotEnough("too little"), "insufficient", False),
        (UserError("unknown mint"), "refused", False),
        (SystemRefused("disk full"), "unreachable", True),
        (RuntimeError("a bug"), "refused", True),
    ],
)
async def test_what_fails_is_told_with_whether_it_may_be_asked_again(
    error: Exception, code: str, may_retry: bool
) -> None:
    found = await answered(Wallet(error), LOCK)
    assert isinstance(found, PaymentFailed)
    assert (found.ref, found.code, found.may_retry) == ("l", code, may_retry)


async def test_the_same_name_is_under_way_once() -> None:
    wallet, found = Wallet(), asyncio.Queue[MarketEvent]()
    wallet.may_go.clear()
    cashier = Cashier(cast("Any", wallet))
    for _ in range(3):
        cashier.ask(LOCK, None, found.put_nowait)
        await asyncio.sleep(0)
    wallet.may_go.set()
    async with asyncio.timeout(5):
        await found.get()
    assert len(wallet.calls) == 1
    await asyncio.sleep(0)
    cashier.ask(LOCK, None, found.put_nowait)
    async with asyncio.timeout(5):
        await found.get()
    assert len(wallet.calls) == 2


async def test_what_is_broken_off_is_not_answered() -> None:
    wallet, found = Wallet(), list[MarketEvent]()
    wallet.may_go.clear()
    cashier = Cashier(cast("Any", wallet))
    cashier.ask(LOCK, None, found.append)
    await asyncio.sleep(0)
    await cashier.stop()
    assert found == []
