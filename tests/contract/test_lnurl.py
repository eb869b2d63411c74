"""A lightning address over HTTP; the host is aiohttp's server in the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from nostrvpn.errors import NostrvpnError, PeerMisbehaved, SystemRefused, UserError
from nostrvpn.io.lnurl import MAX_ANSWER, invoice_of
from tests.contract.test_nwc import AMOUNT, COFFEE

Host = Callable[..., Any]


class AddressHost:
    """Answers as ``terms`` and ``invoice`` say; ``asked``: the amounts that invoices were asked over."""

    def __init__(self) -> None:
        self.address = ""
        self.asked: list[str] = []
        self.invoice: object = {"pr": COFFEE}
        self.terms: dict[str, object] = {}
        self.text: str | None = None

    async def lnurlp(self, request: web.Request) -> web.Response:
        if self.text is not None:
            return web.Response(text=self.text, content_type="application/json")
        terms = {
            "tag": "payRequest",
            "callback": f"http://{request.host}/pay",
            "minSendable": 1000,
            "maxSendable": 10**12,
            "metadata": "[]",
        }
        return web.json_response(terms | self.terms)

    async def pay(self, request: web.Request) -> web.Response:
        self.asked.append(request.query["amount"])
        return web.json_response(self.invoice)

    async def away(self, request: web.Request) -> web.Response:
        raise web.HTTPFound(f"http://{request.host}/.well-known/lnurlp/me")


@pytest.fixture
async def host() -> AsyncIterator[AddressHost]:
    made, site = AddressHost(), web.Application()
    site.add_routes(
        [
            web.get("/.well-known/lnurlp/me", made.lnurlp),
            web.get("/.well-known/lnurlp/away", made.away),
            web.get("/pay", made.pay),
        ]
    )
    runner = web.AppRunner(site)
    await runner.setup()
    listener = web.TCPSite(runner, "127.0.0.1", 0)
    await listener.start()
    made.address = f"me@127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


async def test_an_invoice_over_the_amount(host: AddressHost) -> None:
    assert (await invoice_of(host.address, AMOUNT)).text == COFFEE
    assert host.asked == [str(AMOUNT)]


@pytest.mark.parametrize(
    ("terms", "invoice", "error", "words"),
    [
        ({"status": "ERROR", "reason": "gone"}, {}, UserError, "gone"),
        ({"maxSendable": 5000}, {}, UserError, "takes 1 to 5"),
        ({"callback": "https://127.0.0.1:9"}, {}, PeerMisbehaved, "no terms"),
        ({}, {"pr": COFFEE[:-1]}, PeerMisbehaved, "checksum"),
        ({}, {"status": "ERROR", "reason": "busy"}, UserError, "busy"),
        ({}, ["pr"], PeerMisbehaved, "no invoice"),
    ],
)
async def test_what_a_host_may_answer_instead(
    host: AddressHost, terms: Any, invoice: Any, error: type[NostrvpnError], words: str
) -> None:
    host.terms, host.invoice = terms, invoice
    with pytest.raises(error, match=words):
        await invoice_of(host.address, AMOUNT)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "1" * (MAX_ANSWER + 1)])
async def test_garbage_is_one_error(host: AddressHost, text: str) -> None:
    host.text = text
    with pytest.raises(SystemRefused):
        await invoice_of(host.address, AMOUNT)


async def test_nobody_is_followed_elsewhere(host: AddressHost) -> None:
    with pytest.raises(SystemRefused, match="no JSON"):
        await invoice_of(host.address.replace("me@", "away@"), AMOUNT)
    assert not host.asked


async def test_a_host_that_is_not_there() -> None:
    with pytest.raises(SystemRefused, match="cannot be reached"):
        await invoice_of("me@127.0.0.1:9", AMOUNT)
