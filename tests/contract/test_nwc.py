"""A Lightning wallet over a real relay; the wallet's cryptography is nostr-sdk's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from hashlib import sha256

import pytest

from nostrvpn.daemon.loop import moment
from nostrvpn.errors import PeerMisbehaved, SystemRefused, UserError
from nostrvpn.io import nwc
from nostrvpn.io.embedded_relay import EmbeddedRelay
from nostrvpn.io.nwc import LightningWallet, WalletSilent
from nostrvpn.lightning.bolt11 import parse_invoice
from nostrvpn.lightning.nwc import Notification, WalletError, parse_wallet_link
from nostrvpn.nostr.event import public_key
from tests.lightning_wallet import LightningService

# The examples of BOLT 11: 250,000 sat.
COFFEE = (
    "lnbc2500u1pvjluezsp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygspp5qqqsyqcyq5rqwzqfqqqsyqcyq5"
    "rqwzqfqqqsyqcyq5rqwzqfqypqdq5xysxxatsyp3k7enxv4jsxqzpu9qrsgquk0rl77nj30yxdy8j9vdx85fkpmdla2087ne0xh8n"
    "hedh8w27kyke0lp53ut353s06fv3qfegext0eh0ymjpf39tuven09sam30g4vgpfna3rh"
)
INVOICE = parse_invoice(COFFEE)
AMOUNT = 250_000_000


async def coffee(_amount_msat: int) -> str:
    return COFFEE


@pytest.fixture
async def service() -> AsyncIterator[LightningService]:
    relay = EmbeddedRelay()
    await relay.start()
    made = LightningService(relay.url, coffee)
    await made.start()
    yield made
    await made.stop()
    await relay.stop()


@pytest.fixture
async def wallet(service: LightningService) -> AsyncIterator[LightningWallet]:
    made = LightningWallet(parse_wallet_link(service.link), moment)
    yield made
    await made.close()


async def test_all_that_a_wallet_can_be_asked(
    service: LightningService, wallet: LightningWallet
) -> None:
    assert "pay_invoice" in (await wallet.info()).methods
    assert await wallet.balance() == 10**9
    assert await wallet.pay_invoice(INVOICE) == ("00" * 32, 1000)
    assert service.paid == [INVOICE.payment_hash]
    assert await wallet.balance() == 10**9 - AMOUNT
    assert (await wallet.lookup_invoice(INVOICE.payment_hash))["state"] == "settled"
    assert await wallet.make_invoice(AMOUNT, "a", 60) == INVOICE
    name = sha256(bytes(32)).hexdigest()
    for payment_hash in (name, "22" * 32):
        held = await wallet.make_hold_invoice(AMOUNT, payment_hash, 60)
        assert held.payment_hash == payment_hash
        service.held[payment_hash] = "accepted"
    await wallet.settle_hold_invoice(bytes(32).hex())
    await wallet.cancel_hold_invoice("22" * 32)
    assert service.held == {name: "settled", "22" * 32: "failed"}
    assert await wallet.pay_keysend("02" + "ab" * 32, 5000, "a tip") == "11" * 32
    assert dict(service.asked)["pay_keysend"] == {
        "amount": 5000,
        "pubkey": "02" + "ab" * 32,
        "tlv_records": [{"type": 34349334, "value": b"a tip".hex()}],
    }


async def test_a_refusal_has_the_wallets_word(
    service: LightningService, wallet: LightningWallet
) -> None:
    service.refusals["pay_invoice"] = "QUOTA_EXCEEDED"
    with pytest.raises(WalletError, match="not today") as caught:
        await wallet.pay_invoice(INVOICE)
    assert caught.value.code == "QUOTA_EXCEEDED"
    assert await wallet.balance() == 10**9


async def test_an_invoice_over_another_amount_is_not_taken(
    service: LightningService, wallet: LightningWallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PeerMisbehaved, match="another amount"):
        await wallet.make_invoice(AMOUNT + 1, "a", 60)
    monkeypatch.setattr(service, "_make_hold_invoice", service._make_invoice)
    with pytest.raises(PeerMisbehaved, match="payment hash"):
        await wallet.make_hold_invoice(AMOUNT, "ff" * 32, 60)


async def test_a_payment_without_an_answer_may_have_been_made(
    service: LightningService, wallet: LightningWallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    await wallet.info()
    monkeypatch.setattr(nwc, "ANSWER_S", 0.5)
    service.silent.add("pay_invoice")
    with pytest.raises(WalletSilent):
        await wallet.pay_invoice(INVOICE)
    monkeypatch.undo()
    assert (await wallet.lookup_invoice(INVOICE.payment_hash))["state"] == "settled"
    assert service.paid == [INVOICE.payment_hash]


async def test_a_wallet_with_nip_04_only_is_refused() -> None:
    relay = EmbeddedRelay()
    await relay.start()
    service = LightningService(relay.url, coffee)
    service.encryption = "nip04"
    await service.start()
    wallet = LightningWallet(parse_wallet_link(service.link), moment)
    with pytest.raises(UserError, match="NIP-04"):
        await wallet.balance()
    await wallet.close()
    await service.stop()
    await relay.stop()


async def test_the_next_relay_is_taken_where_one_is_dead(service: LightningService) -> None:
    link = service.link.replace("?relay=", "?relay=ws://127.0.0.1:9&relay=")
    wallet = LightningWallet(parse_wallet_link(link), moment)
    assert await wallet.balance() == 10**9
    await wallet.close()


async def test_no_relay_at_all_is_said() -> None:
    key = public_key(bytes([7]) * 32)
    text = f"nostr+walletconnect://{key}?relay=ws://127.0.0.1:9&secret={'07' * 32}"
    wallet = LightningWallet(parse_wallet_link(text), moment)
    with pytest.raises(SystemRefused, match="cannot be reached"):
        await wallet.balance()
    await wallet.close()


async def test_notifications_are_told_once(service: LightningService) -> None:
    heard: list[Notification] = []
    wallet = LightningWallet(parse_wallet_link(service.link), moment, notified=heard.append)
    await wallet.balance()
    await service.notify("payment_received", {"amount": 5})
    await wallet.balance()
    assert [(one.kind, one.what) for one in heard] == [("payment_received", {"amount": 5})]
    await wallet.close()
