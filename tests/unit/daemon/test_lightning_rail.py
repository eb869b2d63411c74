"""Paying and being paid by a connected wallet, whatever it answers: nothing twice, nothing forgotten."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nostrvpn.daemon.lightning_rail import LightningRail
from nostrvpn.daemon.market_cashier import Cashier, Request
from nostrvpn.daemon.wallet_answers import Paid
from nostrvpn.errors import SystemRefused, UserError
from nostrvpn.io.nwc import WalletSilent
from nostrvpn.lightning.bolt11 import parse_invoice
from nostrvpn.lightning.nwc import WalletError
from nostrvpn.market.effects import (
    InvoiceMade,
    InvoicePaid,
    InvoiceSeen,
    MakeInvoice,
    MarketEvent,
    PayInvoice,
    PaymentFailed,
    WatchInvoice,
)
from nostrvpn.market.terms import LIGHTNING
from tests.invoices import make_invoice

HASH = "ab" * 32
TEXT = make_invoice(10_000, HASH, int(time.time()), 600)
OLD = make_invoice(10_000, HASH, int(time.time()) - 7200, 600)
MINT = "https://mint.example"


class Client:
    """``answers``: by method, what it returns or raises; the last one again and again."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {
            name: value if isinstance(value, list) else [value] for name, value in answers.items()
        }
        self.asked: list[str] = []

    async def _do(self, name: str) -> Any:
        self.asked.append(name)
        left = self.answers[name]
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def pay_invoice(self, _invoice: object) -> Any:
        return await self._do("pay")

    async def lookup_invoice(self, _hash: str) -> Any:
        return await self._do("lookup")

    async def make_invoice(self, *_: object) -> Any:
        return await self._do("make")

    async def balance(self) -> Any:
        return await self._do("balance")


def rail(
    client: Client | None, methods: str = "pay_invoice lookup_invoice get_balance"
) -> LightningRail:
    def connected() -> Client:
        if client is None:
            raise UserError("no Lightning wallet is connected")
        return client

    lightning = SimpleNamespace(connected=connected, methods=frozenset(methods.split()))
    return LightningRail(cast("Any", lightning))


async def answered(client: Client | None, request: Request, wallet: object = None) -> MarketEvent:
    found = asyncio.Queue[MarketEvent]()
    Cashier(cast("Any", wallet), rail(client)).ask(request, None, found.put_nowait)
    async with asyncio.timeout(5):
        return await found.get()


def pay(*, again: bool, text: str = TEXT) -> PayInvoice:
    return PayInvoice("m1", LIGHTNING, text, 3, again)


NOT_FOUND = WalletError("", "NOT_FOUND", "")


@pytest.mark.parametrize(
    ("client", "again", "text", "expected"),
    [
        (Client(pay=("00", 1001)), False, TEXT, InvoicePaid("m1", 2)),
        (Client(pay=("00", 0)), False, TEXT, InvoicePaid("m1", 0)),
        (Client(lookup={"state": "settled", "fees_paid": 1}), True, TEXT, InvoicePaid("m1", 1)),
        (Client(lookup={"settled_at": 5}), True, TEXT, InvoicePaid("m1", 0)),
        (Client(lookup=NOT_FOUND, pay=("00", 0)), True, TEXT, InvoicePaid("m1", 0)),
    ],
)
async def test_paid(client: Client, again: bool, text: str, expected: MarketEvent) -> None:
    assert await answered(client, pay(again=again, text=text)) == expected
    assert client.asked.count("pay") == (
        expected == InvoicePaid("m1", 2) or "pay" in client.answers
    )


@pytest.mark.parametrize(
    ("client", "again", "text", "may_retry"),
    [
        (Client(pay=WalletError("", "PAYMENT_FAILED", "")), False, TEXT, False),
        (Client(pay=WalletError("", "INSUFFICIENT_BALANCE", "")), False, TEXT, False),
        (Client(pay=WalletError("", "RATE_LIMITED", "")), False, TEXT, True),
        (Client(pay=WalletSilent("no answer")), False, TEXT, True),
        (Client(pay=SystemRefused("no relay")), False, TEXT, True),
        (Client(pay=UserError("it knows no pay_invoice")), False, TEXT, False),
        (None, False, TEXT, False),  # nothing was asked of anybody
        (None, True, TEXT, True),  # it was, before it was disconnected
        (Client(lookup={"state": "pending"}), True, OLD, True),
        (Client(lookup={"state": "failed"}), True, TEXT, False),
        (Client(lookup=WalletError("", "INTERNAL", "")), True, TEXT, True),
        (Client(lookup=WalletSilent("no answer")), True, TEXT, True),
        (Client(lookup=NOT_FOUND), True, OLD, True),  # perhaps it lists only what is over
        (Client(lookup={"state": "expired"}), True, OLD, True),  # the invoice: not its payment
    ],
)
async def test_not_paid_for_good_or_not_known(
    client: Client | None, again: bool, text: str, may_retry: bool
) -> None:
    found = await answered(client, pay(again=again, text=text))
    assert isinstance(found, PaymentFailed)
    assert found.may_retry is may_retry
    if again and client is not None:
        assert "pay" not in client.asked


@pytest.mark.parametrize("pay", [WalletError("", "PAYMENT_FAILED", ""), UserError("unknown")])
async def test_what_is_refused_the_second_time_may_be_on_its_way_since_the_first(
    pay: Exception,
) -> None:
    client = Client(lookup=NOT_FOUND, pay=pay)
    found = await answered(client, PayInvoice("m1", LIGHTNING, TEXT, 3, is_again=True))
    assert isinstance(found, PaymentFailed)
    assert (found.code, found.may_retry) == (PaymentFailed.UNKNOWN, True)


@pytest.mark.parametrize(
    ("lookup", "code"),
    [
        (NOT_FOUND, PaymentFailed.UNKNOWN),
        ({"state": "expired"}, PaymentFailed.UNKNOWN),
        ({"state": "failed"}, PaymentFailed.FAILED),
        ({"state": "pending"}, "refused"),
        (WalletSilent("no answer"), "refused"),
    ],
)
async def test_what_is_held_is_asked_after_and_never_paid_again(lookup: object, code: str) -> None:
    client = Client(lookup=lookup, pay=("00", 0))
    asked = PayInvoice("m1", LIGHTNING, TEXT, 3, is_again=True, is_held=True)
    found = await answered(client, asked)
    assert isinstance(found, PaymentFailed)
    assert (found.code, found.may_retry) == (code, code != PaymentFailed.FAILED)
    assert client.asked == ["lookup"]
    client.answers["lookup"] = [{"state": "settled", "fees_paid": 1000}]
    assert await answered(client, asked) == InvoicePaid("m1", 1)


async def test_a_mint_pays_with_a_limit() -> None:
    class Wallet:
        given: tuple[object, ...] = ()

        async def melt(self, *given: object) -> Paid:
            self.given = given
            return Paid(10, 1, "")

    wallet = Wallet()
    found = await answered(None, PayInvoice("m1", MINT, TEXT, 3), wallet)
    assert found == InvoicePaid("m1", 1)
    assert wallet.given == ("m1", MINT, TEXT, 3)


async def test_invoices_are_made_and_watched() -> None:
    invoice = parse_invoice(TEXT)
    make = MakeInvoice("i1", 10_000, 180)
    client = Client(make=[SystemRefused("lost"), invoice], lookup={"state": "pending"})
    assert await answered(client, make) == InvoiceMade("i1", TEXT)
    assert await answered(client, WatchInvoice("i1", HASH)) == InvoiceSeen("i1", False)
    client.answers["lookup"] = [{"state": "settled"}]
    assert await answered(client, WatchInvoice("i1", HASH)) == InvoiceSeen("i1", True)
    client.answers["make"] = [WalletError("", "RESTRICTED", "")]
    found = await answered(client, make)
    assert isinstance(found, PaymentFailed)
    assert not found.may_retry


async def test_what_the_wallet_has() -> None:
    answers = [25_999, WalletSilent("no answer"), WalletError("", "RESTRICTED", "")]
    client = Client(balance=answers, pay=("00", 500))
    one = rail(client)
    await one.look()
    assert one.sat == 25
    await one.pay(TEXT, is_again=False)
    assert one.sat == 14
    await one.look()
    assert one.sat == 14
    await one.look()
    assert one.sat == 0
    assert not one.can_sell
    assert rail(client, "make_invoice lookup_invoice").can_sell
    poor = rail(client, "make_invoice lookup_invoice get_balance")
    await poor.look()
    assert poor.sat == 0
