"""A Lightning wallet that speaks NIP-47, for tests: its encryption and signatures are nostr-sdk's.

It knows no Lightning network: what it pays is paid when it says so, and its invoices come from whoever
runs it (a mint's, for example). A payment of another one's hold invoice waits, without an answer, until
that one takes it or sends it back.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from hashlib import sha256
from typing import Any

import aiohttp
import nostr_sdk

from nostrvpn.lightning.bolt11 import parse_invoice
from tests.invoices import make_invoice

__all__ = ["LightningService"]

METHODS = (
    "pay_invoice pay_keysend make_invoice lookup_invoice get_balance get_info "
    "make_hold_invoice settle_hold_invoice cancel_hold_invoice"
)


class LightningService:
    """``balance`` msat. ``paid``: payment hashes; ``silent``: methods that are done without an answer;
    ``refusals``: the error code by method; ``make``: amount in msat to an invoice; ``held``: states of
    own hold invoices by payment hash; ``others``: wallets whose hold invoices it can pay."""

    def __init__(
        self, relay: str, make: Callable[[int], Awaitable[str]], *, balance: int = 10**9
    ) -> None:
        self.relay, self.make, self.balance = relay, make, balance
        self.wallet, self.client = nostr_sdk.Keys.generate(), nostr_sdk.Keys.generate()
        self.encryption, self.methods = "nip44_v2", METHODS
        self.paid: list[str] = []
        self.made: set[str] = set()
        self.held: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.others: list[LightningService] = []
        self.waiting: dict[str, LightningService] = {}
        self.payers: dict[str, LightningService] = {}
        self.silent: set[str] = set()
        self.refusals: dict[str, str] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def link(self) -> str:
        """The connection that a client is given."""
        key, secret = self.wallet.public_key().to_hex(), self.client.secret_key().to_hex()
        return f"nostr+walletconnect://{key}?relay={self.relay}&secret={secret}"

    async def start(self) -> None:
        """Connect, say what it can, and answer from now on."""
        ready = asyncio.Event()
        self._task = asyncio.create_task(self._serve(ready))
        async with asyncio.timeout(10):
            await ready.wait()

    async def stop(self) -> None:
        """End."""
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def notify(self, kind: str, what: dict[str, Any]) -> None:
        """Tell the client of something."""
        await self._send(23197, {"notification_type": kind, "notification": what}, [])

    async def _serve(self, ready: asyncio.Event) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(self.relay) as self._socket,
        ):
            key = self.wallet.public_key().to_hex()
            await self._socket.send_json(["REQ", "asked", {"kinds": [23194], "#p": [key]}])
            tags = [["encryption", self.encryption], ["notifications", "payment_received"]]
            await self._publish(13194, self.methods, tags)
            async for message in self._socket:
                frame = json.loads(message.data)
                if frame[0] == "EOSE":
                    ready.set()
                elif frame[0] == "EVENT":
                    await self._answer(frame[2])

    async def _answer(self, event: dict[str, Any]) -> None:
        author = nostr_sdk.PublicKey.parse(event["pubkey"])
        text = nostr_sdk.nip44_decrypt(self.wallet.secret_key(), author, event["content"])
        request = json.loads(text)
        method, params = request["method"], request["params"]
        self.asked.append((method, params))
        body: dict[str, Any] = {"result_type": method, "error": None, "result": None}
        known = {*self.made, *self.paid, *self.held, *self.waiting}
        unknown = known.isdisjoint(map(str, params.values()))
        if method == "lookup_invoice" and unknown:
            body["error"] = {"code": "NOT_FOUND", "message": "no such invoice"}
        elif method in self.refusals:
            body["error"] = {"code": self.refusals[method], "message": "not today"}
        else:
            body["result"] = await getattr(self, f"_{method}")(params)
        if body["error"] is None and body["result"] is None:
            body["error"] = {"code": "OTHER", "message": "it cannot be done now"}
        if method not in self.silent and body["result"] != {"waits": True}:
            await self._send(23195, body, [["e", event["id"]]])

    async def _get_balance(self, _params: dict[str, Any]) -> dict[str, Any]:
        return {"balance": self.balance}

    async def _pay_invoice(self, params: dict[str, Any]) -> dict[str, Any]:
        invoice = parse_invoice(params["invoice"])
        assert invoice.amount_msat is not None
        name = invoice.payment_hash
        payee = next((one for one in (self, *self.others) if name in one.held), None)
        if payee is not None:
            assert payee.held[name] == "pending"
            payee.held[name], self.waiting[name] = "accepted", payee
            payee.payers[name] = self
            self.balance -= invoice.amount_msat
            return {"waits": True}
        self.balance -= invoice.amount_msat
        self.paid.append(invoice.payment_hash)
        return {"preimage": "00" * 32, "fees_paid": 1000}

    async def _pay_keysend(self, params: dict[str, Any]) -> dict[str, Any]:
        self.balance -= params["amount"]
        self.paid.append(params["pubkey"])
        return {"preimage": "11" * 32}

    async def _make_invoice(self, params: dict[str, Any]) -> dict[str, Any]:
        text = await self.make(params["amount"])
        self.made.add(parse_invoice(text).payment_hash)
        return {"invoice": text}

    async def _make_hold_invoice(self, params: dict[str, Any]) -> dict[str, Any] | None:
        name = params["payment_hash"]
        if name in self.held:
            return None
        text = make_invoice(params["amount"], name, int(time.time()), params["expiry"])
        self.held[name], self.texts[name] = "pending", text
        return {"invoice": text}

    async def _settle_hold_invoice(self, params: dict[str, Any]) -> dict[str, Any] | None:
        name = sha256(bytes.fromhex(params["preimage"])).hexdigest()
        if self.held.get(name) != "accepted":
            return None
        self.held[name] = "settled"
        self.balance += parse_invoice(self.texts[name]).amount_msat or 0
        return {}

    async def _cancel_hold_invoice(self, params: dict[str, Any]) -> dict[str, Any] | None:
        if self.held.get(params["payment_hash"]) not in ("accepted", "pending"):
            return None
        name = params["payment_hash"]
        self.held[name] = "failed"
        if name in self.payers:
            self.payers[name].balance += parse_invoice(self.texts[name]).amount_msat or 0
        return {}

    async def _lookup_invoice(self, params: dict[str, Any]) -> dict[str, Any]:
        name = params["payment_hash"]
        if name in self.held:
            return {"state": self.held[name], "invoice": self.texts[name]}
        if name in self.waiting:
            state = self.waiting[name].held[name]
            state = "pending" if state == "accepted" else state
            return {"state": state, "preimage": "00" * 32, "fees_paid": 1000}
        is_paid = params["payment_hash"] in self.paid
        return {"state": "settled" if is_paid else "pending", "preimage": "00" * 32}

    async def _send(self, kind: int, body: dict[str, Any], tags: list[list[str]]) -> None:
        to = self.client.public_key()
        text = nostr_sdk.nip44_encrypt(
            self.wallet.secret_key(), to, json.dumps(body), nostr_sdk.Nip44Version.V2
        )
        await self._publish(kind, text, [["p", to.to_hex()], *tags])

    async def _publish(self, kind: int, content: str, tags: list[list[str]]) -> None:
        assert self._socket is not None
        parsed = [nostr_sdk.Tag.parse(tag) for tag in tags]
        builder = nostr_sdk.EventBuilder(nostr_sdk.Kind(kind), content).tags(parsed)
        event = builder.finalize(self.wallet)
        await self._socket.send_json(["EVENT", json.loads(event.as_json())])
