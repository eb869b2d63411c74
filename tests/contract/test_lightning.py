"""Money in and out by Lightning: real mints, a connected wallet, a lightning address."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from nostrvpn.daemon import lightning_service
from nostrvpn.daemon.lightning_service import LIGHTNING_SPACE, LightningService, Payout
from nostrvpn.daemon.loop import moment
from nostrvpn.daemon.wallet import Wallet
from nostrvpn.errors import NostrvpnError, UserError
from nostrvpn.io.embedded_relay import EmbeddedRelay
from nostrvpn.io.mint import MintClient
from nostrvpn.io.store import Store
from nostrvpn.lab.mint import Mint
from nostrvpn.lightning.bolt11 import parse_invoice
from tests.contract.mint_room import two_mints
from tests.lightning_wallet import LightningService as Service

NOBODY = "aa" * 32


@pytest.fixture(scope="module")
def mints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mint, Mint]]:
    """One that is ours, and one whose invoices we pay."""
    with two_mints(tmp_path_factory.mktemp("mints")) as made:
        yield made


class Desk:
    """A wallet at a real mint, Lightning beside it, and somebody's Lightning wallet."""

    def __init__(self, place: Path, ours: str, service: Service) -> None:
        self.mint, self.other = ours, service
        self.store = Store.open(str(place / "market.db"), secret_spaces=[LIGHTNING_SPACE])
        self.wallet = Wallet(self.store, bytes(range(16)))
        self.lightning = LightningService(self.store, self.wallet, moment)

    async def open(self) -> None:
        await self.wallet.trust(self.mint)
        self.wallet.start()
        self.lightning.start()

    async def close(self) -> None:
        await self.lightning.stop()
        await self.wallet.stop()
        self.store.close()

    @property
    def free(self) -> int:
        return self.wallet.balance()[self.mint][0]

    async def fill(self, amount: int) -> None:
        """Money in, by the invoice that FakeWallet says was paid."""
        ref = (await self.lightning.fund(self.mint, amount, by_wallet=False))["ref"]
        await until(lambda: self.lightning.funded(ref))


async def until(ask: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(20):
        while True:
            found = await ask()
            if found and (not isinstance(found, dict) or found["funded"]):
                return
            await asyncio.sleep(0.1)


@pytest.fixture
async def desk(mints: tuple[Mint, Mint], tmp_path: Path) -> AsyncIterator[Desk]:
    ours, theirs = mints
    client = MintClient(theirs.url, mark=0)

    async def make(amount_msat: int) -> str:
        body = {"amount": amount_msat // 1000, "unit": "sat"}
        return str((await client.post("/v1/mint/quote/bolt11", body))["request"])

    relay = EmbeddedRelay()
    await relay.start()
    service = Service(relay.url, make)
    await service.start()
    made = Desk(tmp_path, ours.url, service)
    # Each test has money of its own: its words are derived from where it is.
    made.wallet = Wallet(made.store, str(tmp_path).encode()[-16:])
    made.lightning = LightningService(made.store, made.wallet, moment)
    await made.open()
    yield made
    await made.close()
    await service.stop()
    await relay.stop()
    await client.close()


async def test_a_connected_wallet_pays_our_invoice(desk: Desk) -> None:
    answer = await desk.lightning.connect(desk.other.link)
    assert "pay_invoice" in answer["methods"]
    funded = await desk.lightning.fund(desk.mint, 500, by_wallet=True)
    assert desk.other.paid == [parse_invoice(funded["invoice"]).payment_hash]
    await until(lambda: desk.lightning.funded(funded["ref"]))
    assert desk.free == 500


async def test_a_payment_whose_answer_was_lost_is_looked_up(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.lightning.connect(desk.other.link)
    desk.other.silent.add("pay_invoice")
    monkeypatch.setattr("nostrvpn.io.nwc.ANSWER_S", 1.0)
    assert (await desk.lightning.fund(desk.mint, 64, by_wallet=True))["paid_by_wallet"]
    assert len(desk.other.paid) == 1


async def test_the_connection_outlives_a_restart_and_is_forgotten_when_asked(desk: Desk) -> None:
    await desk.lightning.connect(desk.other.link)
    await desk.lightning.stop()
    desk.lightning = LightningService(desk.store, desk.wallet, moment)
    desk.lightning.start()
    assert (await desk.lightning.fund(desk.mint, 32, by_wallet=True))["paid_by_wallet"]
    await desk.lightning.disconnect()
    assert not desk.lightning.document()["connected"]
    with pytest.raises(UserError, match="no Lightning wallet"):
        await desk.lightning.keysend("02" + NOBODY, 5, "")
    secret = desk.other.client.secret_key().to_hex().encode()
    place = Path(desk.store._path).parent
    assert not any(secret in file.read_bytes() for file in place.iterdir())


async def test_withdrawing_to_the_wallet_to_an_invoice_and_all(desk: Desk) -> None:
    await desk.lightning.connect(desk.other.link)
    await desk.fill(1000)
    done = await desk.lightning.withdraw(desk.mint, 100, "")
    assert (done["amount"], desk.free) == (100, 1000 - 100 - done["fee"])
    invoice = await desk.other.make(200_000)
    with pytest.raises(UserError, match="another amount"):
        await desk.lightning.withdraw(desk.mint, 201, invoice)
    before = desk.free
    done = await desk.lightning.withdraw(desk.mint, None, invoice)
    assert desk.free == before - 200 - done["fee"]
    # The same invoice once more moves nothing.
    assert await desk.lightning.withdraw(desk.mint, None, invoice) == done
    assert desk.free == before - 200 - done["fee"]
    before = desk.free
    done = await desk.lightning.withdraw(desk.mint, None, "")
    assert desk.free == before - done["amount"] - done["fee"] <= before // 50
    while desk.free > 3:
        await desk.lightning.withdraw(desk.mint, None, "")
    with pytest.raises(UserError, match=r"nothing at|not pay for"):
        await desk.lightning.withdraw(desk.mint, None, "")


async def test_withdrawing_to_an_address(desk: Desk) -> None:
    await desk.fill(300)

    async def lnurlp(request: web.Request) -> web.Response:
        terms = {"tag": "payRequest", "callback": f"http://{request.host}/pay", "metadata": "[]"}
        return web.json_response(terms | {"minSendable": 1000, "maxSendable": 10**9})

    async def pay(request: web.Request) -> web.Response:
        return web.json_response({"pr": await desk.other.make(int(request.query["amount"]))})

    site = web.Application()
    site.add_routes([web.get("/.well-known/lnurlp/me", lnurlp), web.get("/pay", pay)])
    runner = web.AppRunner(site)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        to = f"me@127.0.0.1:{runner.addresses[0][1]}"
        done = await desk.lightning.withdraw(desk.mint, 120, to)
        assert desk.free == 300 - 120 - done["fee"]
    finally:
        await runner.cleanup()


async def test_above_a_threshold_it_goes_by_itself(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lightning_service, "PAYOUT_EVERY_S", 0.1)
    with pytest.raises(UserError, match="no wallet to withdraw to"):
        desk.lightning.set_payout(Payout(100))
    await desk.lightning.connect(desk.other.link)
    desk.lightning.set_payout(Payout(100))
    await desk.lightning.stop()  # it goes on after a restart
    desk.lightning = LightningService(desk.store, desk.wallet, moment)
    await desk.fill(99)
    desk.lightning.start()
    assert desk.free == 99
    await desk.fill(64)

    async def is_gone() -> bool:
        return desk.free < 100

    await until(is_gone)
    assert desk.free <= 5


async def test_a_payout_that_fails_is_told_and_loses_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lightning_service, "PAYOUT_EVERY_S", 0.1)
    await desk.fill(200)
    desk.lightning.set_payout(Payout(100, "me@127.0.0.1:9"))
    await desk.lightning.stop()
    desk.lightning.start()

    async def is_told() -> bool:
        return desk.lightning.document()["payout_error"] is not None

    await until(is_told)
    assert desk.free == 200


async def test_what_is_nowhere_cannot_be_withdrawn(desk: Desk) -> None:
    for to in ("", "me@127.0.0.1:9", "lnbc1", await desk.other.make(10_000)):
        with pytest.raises(NostrvpnError):
            await desk.lightning.withdraw(desk.mint, 10, to)
    assert desk.free == 0


async def test_what_buyers_may_get_back_is_not_withdrawn(desk: Desk) -> None:
    await desk.lightning.connect(desk.other.link)
    await desk.fill(200)
    await desk.lightning.stop()
    desk.lightning = LightningService(
        desk.store, desk.wallet, moment, reserved=lambda: {desk.mint: 150}
    )
    desk.lightning.start()
    done = await desk.lightning.withdraw(desk.mint, None, "")
    assert done["amount"] + done["fee"] <= 50
    assert desk.free >= 150
    with pytest.raises(UserError, match=r"not owed|not pay for"):
        await desk.lightning.withdraw(desk.mint, None, "")
