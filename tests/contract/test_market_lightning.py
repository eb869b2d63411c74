"""A lease paid by Lightning: a real mint melts, NIP-47 wallets make, watch and pay invoices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from nostrvpn.daemon.lightning_rail import LightningRail
from nostrvpn.daemon.lightning_service import LIGHTNING_SPACE, LightningService
from nostrvpn.daemon.loop import moment
from nostrvpn.daemon.market_cashier import Cashier, Request
from nostrvpn.daemon.wallet import Wallet
from nostrvpn.io.embedded_relay import EmbeddedRelay
from nostrvpn.io.mint import MintClient
from nostrvpn.io.store import Store
from nostrvpn.lab.mint import Mint
from nostrvpn.lightning.bolt11 import parse_invoice
from nostrvpn.market.effects import (
    EndHold,
    HoldEnded,
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
from tests.contract.mint_room import two_mints
from tests.lightning_wallet import LightningService as Service


@pytest.fixture(scope="module")
def mints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mint, Mint]]:
    """The buyer's, and one that makes the invoices of the seller's Lightning wallet."""
    with two_mints(tmp_path_factory.mktemp("mints")) as made:
        yield made


class Side:
    """One host's wallets: ecash at the mint, a connected Lightning wallet, and who asks them."""

    def __init__(self, place: Path, service: Service) -> None:
        self.store = Store.open(str(place), secret_spaces=[LIGHTNING_SPACE])
        self.wallet = Wallet(self.store, str(place).encode()[-16:])
        self.lightning = LightningService(self.store, self.wallet, moment)
        self.rail = LightningRail(self.lightning)
        self.cashier, self.service = Cashier(self.wallet, self.rail), service

    async def open(self, mint: str) -> None:
        await self.service.start()
        await self.wallet.trust(mint)
        self.wallet.start()
        self.lightning.start()
        await self.lightning.connect(self.service.link)

    async def close(self) -> None:
        await self.cashier.stop()
        await self.lightning.stop()
        await self.wallet.stop()
        await self.service.stop()
        self.store.close()

    async def ask(self, request: Request) -> MarketEvent:
        found = asyncio.Queue[MarketEvent]()
        self.cashier.ask(request, None, found.put_nowait)
        async with asyncio.timeout(20):
            return await found.get()


class Room:
    def __init__(self, mint: str, buyer: Side, seller: Side) -> None:
        self.mint, self.buyer, self.seller = mint, buyer, seller

    async def invoice(self, msat: int = 10_000) -> str:
        made = await self.seller.ask(MakeInvoice("invoice:x:1", msat, 180))
        assert isinstance(made, InvoiceMade)
        assert parse_invoice(made.invoice).amount_msat == msat
        return made.invoice

    async def is_paid(self, text: str) -> bool:
        watch = WatchInvoice("invoice:x:1", parse_invoice(text).payment_hash)
        seen = await self.seller.ask(watch)
        assert isinstance(seen, InvoiceSeen)
        return seen.is_paid


@pytest.fixture
async def room(mints: tuple[Mint, Mint], tmp_path: Path) -> AsyncIterator[Room]:
    ours, theirs = mints
    client = MintClient(theirs.url, mark=0)

    async def make(amount_msat: int) -> str:
        body = {"amount": amount_msat // 1000, "unit": "sat"}
        return str((await client.post("/v1/mint/quote/bolt11", body))["request"])

    relay = EmbeddedRelay()
    await relay.start()
    sides = [
        Side(tmp_path / f"{name}.db", Service(relay.url, make)) for name in ("buyer", "seller")
    ]
    for side in sides:
        await side.open(ours.url)
    yield Room(ours.url, *sides)
    for side in sides:
        await side.close()
    await relay.stop()
    await client.close()


async def test_a_mint_pays_the_sellers_invoice_once(room: Room) -> None:
    buyer, text = room.buyer, await room.invoice()
    funding = (await buyer.lightning.fund(room.mint, 64, by_wallet=False))["ref"]
    for _ in range(100):
        if (await buyer.lightning.funded(funding))["funded"]:
            break
        await asyncio.sleep(0.1)
    pay = PayInvoice("lease/m0", room.mint, text, 3)
    paid = await buyer.ask(pay)
    assert isinstance(paid, InvoicePaid)
    assert 0 <= paid.fee_sat <= 3
    left = buyer.wallet.balance()[room.mint][0]
    assert left == 64 - 10 - paid.fee_sat
    assert await buyer.ask(pay) == paid  # asked again, by the same name
    assert buyer.wallet.balance()[room.mint][0] == left


async def test_a_mint_that_asks_too_much_is_not_paid_from(room: Room) -> None:
    buyer, text = room.buyer, await room.invoice(20_000)
    failed = await buyer.ask(PayInvoice("lease/m1", room.mint, text, 0))
    assert isinstance(failed, PaymentFailed)
    assert not failed.may_retry


async def test_a_connected_wallet_pays_and_the_sellers_sees_it(room: Room) -> None:
    buyer, text = room.buyer, await room.invoice()
    await buyer.rail.look()
    before = buyer.rail.sat
    assert not await room.is_paid(text)
    assert await buyer.ask(PayInvoice("lease/m2", LIGHTNING, text, 3)) == InvoicePaid("lease/m2", 1)
    assert buyer.rail.sat == before - 11
    # What Lightning would do between the two wallets.
    room.seller.service.paid += buyer.service.paid
    assert await room.is_paid(text)


async def test_a_payment_without_an_answer_is_looked_up_and_not_made_again(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer, text = room.buyer, await room.invoice()
    buyer.service.silent.add("pay_invoice")
    monkeypatch.setattr("nostrvpn.io.nwc.ANSWER_S", 1.0)
    failed = await buyer.ask(PayInvoice("lease/m3", LIGHTNING, text, 3))
    assert isinstance(failed, PaymentFailed)
    assert failed.may_retry
    again = PayInvoice("lease/m3", LIGHTNING, text, 3, is_again=True)
    assert await buyer.ask(again) == InvoicePaid("lease/m3", 0)
    assert len(buyer.service.paid) == 1


async def test_a_payment_that_was_never_asked_for_is_made_after_a_restart(room: Room) -> None:
    buyer, text = room.buyer, await room.invoice()
    again = PayInvoice("lease/m4", LIGHTNING, text, 3, is_again=True)
    assert await buyer.ask(again) == InvoicePaid("lease/m4", 1)
    assert len(buyer.service.paid) == 1


async def held(room: Room, monkeypatch: pytest.MonkeyPatch, secret: bytes, ref: str) -> PayInvoice:
    """Have a payment wait from the one wallet to the other; return what paid it."""
    monkeypatch.setattr("nostrvpn.io.nwc.ANSWER_S", 1.0)
    room.buyer.service.others.append(room.seller.service)
    name = sha256(secret).hexdigest()
    made = await room.seller.ask(MakeInvoice(f"invoice:{ref}", 10_000, 180, name))
    assert isinstance(made, InvoiceMade)
    assert parse_invoice(made.invoice).payment_hash == name
    # The answer was lost: it is the same invoice.
    assert await room.seller.ask(MakeInvoice(f"invoice:{ref}", 10_000, 180, name)) == made
    assert await room.seller.ask(WatchInvoice(ref, name, held=True)) == InvoiceSeen(ref, False)
    failed = await room.buyer.ask(PayInvoice(ref, LIGHTNING, made.invoice, 3))
    assert isinstance(failed, PaymentFailed)
    assert failed.may_retry
    assert await room.seller.ask(WatchInvoice(ref, name, held=True)) == InvoiceSeen(ref, True)
    assert await room.seller.ask(WatchInvoice(ref, name)) == InvoiceSeen(ref, False)
    again = PayInvoice(ref, LIGHTNING, made.invoice, 3, is_again=True)
    failed = await room.buyer.ask(again)
    assert isinstance(failed, PaymentFailed)
    assert failed.may_retry
    return again


async def test_a_payment_waits_until_it_is_taken(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert room.seller.rail.can_hold
    secret = b"s" * 32
    again = await held(room, monkeypatch, secret, "lease/m5")
    name, had = sha256(secret).hexdigest(), room.seller.service.balance
    wrong = await room.seller.ask(EndHold("hold:x:0", name, "00" * 32))
    assert isinstance(wrong, PaymentFailed)
    assert wrong.may_retry
    take = EndHold("hold:x:1", name, secret.hex())
    for _ in range(2):  # asked again, if the first answer was lost
        assert await room.seller.ask(take) == HoldEnded("hold:x:1", True)
    assert room.seller.service.balance == had + 10_000
    assert await room.seller.ask(EndHold("hold:x:2", name)) == HoldEnded("hold:x:2", True)
    assert await room.buyer.ask(again) == InvoicePaid("lease/m5", 1)


async def test_a_payment_that_waits_is_sent_back(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, had = b"t" * 32, room.buyer.service.balance
    again = await held(room, monkeypatch, secret, "lease/m6")
    name = sha256(secret).hexdigest()
    for _ in range(2):
        assert await room.seller.ask(EndHold("hold:x:3", name)) == HoldEnded("hold:x:3", False)
    late = EndHold("hold:x:4", name, secret.hex())
    assert await room.seller.ask(late) == HoldEnded("hold:x:4", False)
    failed = await room.buyer.ask(again)
    assert isinstance(failed, PaymentFailed)
    assert not failed.may_retry
    assert room.buyer.service.balance == had
