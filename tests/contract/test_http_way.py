"""The way out for HTTP: a blocked host still reaches who is paid, and strangers lead nowhere inside."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from typing import Any

import pytest
from aiohttp import web
from aiohttp.resolver import ThreadedResolver

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved, SystemRefused
from nostrvpn.host.shield import ShieldKind
from nostrvpn.host.state import FWMARK
from nostrvpn.io.dns_forwarder import Way
from nostrvpn.io.http_way import is_inside
from nostrvpn.io.lnurl import invoice_of
from nostrvpn.io.mint import MintClient
from nostrvpn.io.proxy import SocksProxy
from nostrvpn.io.resolver import ask_outside
from tests.contract.cable import OWN, PUBLIC, Host
from tests.contract.namespaced import Loop
from tests.contract.test_nwc import AMOUNT, COFFEE
from tests.unit.io.name_server import name_server, reply

WEB = 8080


class Internet:
    """One machine at ``PUBLIC[4]``: a name server that leads every name to it, and a web server."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.name_server: Endpoint | None = None
        self._end = asyncio.Event()
        self._ready = asyncio.Event()

    async def serve(self) -> None:
        site = web.Application()
        site.router.add_route("GET", "/{path:.*}", self._answer)
        runner = web.AppRunner(site)
        await runner.setup()
        await web.TCPSite(runner, PUBLIC[4], WEB).start()
        try:
            async with name_server(lambda query, _: [self._told(query)], PUBLIC[4]) as server:
                self.name_server = server
                self._ready.set()
                await self._end.wait()
        finally:
            await runner.cleanup()

    async def ready(self) -> Endpoint:
        await self._ready.wait()
        assert self.name_server is not None
        return self.name_server

    async def end(self) -> None:
        self._end.set()

    @staticmethod
    def _told(query: bytes) -> bytes:
        return reply(query) if b"\0\x1c\0\1" in query else reply(query, PUBLIC[4])

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked.append(f"{request.host} {request.path}")
        if request.path == "/.well-known/lnurlp/me":
            return web.json_response(
                {"tag": "payRequest", "callback": f"http://{request.host}/pay", "metadata": "[]"}
                | {"minSendable": 1000, "maxSendable": 10**12}
            )
        return web.json_response({"pr": COFFEE, "name": "a mint"})


@pytest.fixture
def blocked(make_netns: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Loop, Internet]]:
    """A host that wants an exit and has none, so that all but what is ours is blocked."""
    host = Host(make_netns)
    host.outside.ip("addr", "add", f"{PUBLIC[4]}/32", "dev", "e")
    host.outside.ip("route", "add", OWN[4], "dev", "e", "src", PUBLIC[4])
    outside, inside = Loop(host.outside), Loop(host.netns)
    internet = outside.call(Internet)
    serving = asyncio.run_coroutine_threadsafe(internet.serve(), outside._loop)
    server = outside.do(internet.ready())
    host.apply(ShieldKind.BLOCKED)
    # As the daemon does while an exit is wanted (``ExitNames.outside``).
    ask_outside(lambda: Way((server,), FWMARK))
    yield inside, internet
    ask_outside(lambda: None)
    outside.do(internet.end())
    serving.result(10)
    for loop in (outside, inside):
        loop._loop.call_soon_threadsafe(loop._loop.stop)
    host.close()


def test_a_blocked_host_reaches_a_mint_by_its_name(blocked: tuple[Loop, Internet]) -> None:
    inside, internet = blocked

    async def ask() -> Any:
        client = MintClient(f"http://mint.example:{WEB}")
        try:
            return await client.get("/v1/info")
        finally:
            await client.close()

    assert inside.do(ask(), 30)["name"] == "a mint"
    assert internet.asked == [f"mint.example:{WEB} /v1/info"]


def test_a_blocked_host_reaches_a_lightning_address(
    blocked: tuple[Loop, Internet], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, internet = blocked
    # No certificate here: the scheme is that of names that need none.
    monkeypatch.setattr("nostrvpn.lightning.lnurl._scheme", lambda host: "http")
    invoice = inside.do(invoice_of(f"me@wallet.example:{WEB}", AMOUNT), 30)
    assert invoice.text == COFFEE
    assert internet.asked == [
        f"wallet.example:{WEB} /.well-known/lnurlp/me",
        f"wallet.example:{WEB} /pay",
    ]


# -- where a stranger's word leads


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        *((host, True) for host in ("localhost", "a.localhost", "printer", "nas.lan", "x.local")),
        *((host, True) for host in ("127.0.0.1", "10.1.2.3", "169.254.169.254", "100.64.0.1")),
        *((host, True) for host in ("::1", "fd00::1", "fe80::1%eth0", "::ffff:192.168.1.1")),
        *((host, True) for host in ("127.1", "0x7f000001", "2130706433", "LOCALHOST.", "")),
        *((host, False) for host in ("wallet.example", "1.1.1.1", "2606:4700::1111", "x.onion")),
    ],
)
def test_what_is_inside_by_the_look_of_it(host: str, inside: bool) -> None:
    assert is_inside(host) is inside


class Strangers:
    """A web server on loopback: the host of ``wallet.example``, and whatever else runs here."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.callback = ""
        self.port = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        if request.path == "/.well-known/lnurlp/me":
            return web.json_response(
                {"tag": "payRequest", "callback": self.callback, "metadata": "[]"}
                | {"minSendable": 1000, "maxSendable": 10**12}
            )
        return web.json_response({"pr": COFFEE})


@asynccontextmanager
async def strangers(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Strangers]:
    class Here(ThreadedResolver):
        async def resolve(self, host: str, port: int = 0, family: Any = 0) -> Any:
            return await super().resolve("127.0.0.1", port, socket.AF_INET)

    monkeypatch.setattr("nostrvpn.io.http_way.HostLookup", Here)
    monkeypatch.setattr("nostrvpn.lightning.lnurl._scheme", lambda host: "http")
    made, site = Strangers(), web.Application()
    site.router.add_route("GET", "/{path:.*}", made.answer)
    runner = web.AppRunner(site)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.port = runner.addresses[0][1]
    try:
        yield made
    finally:
        await runner.cleanup()


async def test_an_addresses_callback_leads_into_no_private_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is written there, and whatever its name resolves to."""
    async with strangers(monkeypatch) as there:
        port = there.port
        for host in ("127.0.0.1", "localhost", "10.0.0.1", "[::1]", "169.254.169.254", "127.1"):
            there.callback = f"http://{host}:{port}/admin"
            with pytest.raises(PeerMisbehaved, match="private network"):
                await invoice_of(f"me@wallet.example:{port}", AMOUNT)
        there.callback = f"http://other.example:{port}/admin"  # which resolves to this host
        with pytest.raises(SystemRefused, match="may send us to"):
            await invoice_of(f"me@wallet.example:{port}", AMOUNT)
        assert set(there.asked) == {"/.well-known/lnurlp/me"}
        # Another port of its own host is another program there.
        there.callback = f"http://wallet.example:{port - 1}/pay"
        with pytest.raises(SystemRefused, match="may send us to"):
            await invoice_of(f"me@wallet.example:{port}", AMOUNT)
        # Its own host, which the user named, may be in the user's own network.
        there.callback = f"http://wallet.example:{port}/pay"
        assert (await invoice_of(f"me@wallet.example:{port}", AMOUNT)).text == COFFEE


async def test_an_address_that_is_inside_itself_leads_where_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with strangers(monkeypatch) as there:
        there.callback = f"http://localhost:{there.port}/pay"
        assert (await invoice_of(f"me@127.0.0.1:{there.port}", AMOUNT)).text == COFFEE
        assert there.asked == ["/.well-known/lnurlp/me", "/pay"]


@pytest.mark.skipif(shutil.which("microsocks") is None, reason="needs the package microsocks")
async def test_what_a_proxy_refuses_is_one_clear_error() -> None:
    with closing(socket.socket()) as dead:
        dead.bind(("127.0.0.1", 0))
        nobody = dead.getsockname()[1]
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            "microsocks", "-i", "127.0.0.1", "-p", str(port), stderr=asyncio.subprocess.DEVNULL
        )
        try:
            async with asyncio.timeout(10):
                while True:
                    with pytest.raises(SystemRefused) as refused:
                        await invoice_of(
                            f"me@127.0.0.1:{nobody}", AMOUNT, proxy=SocksProxy("127.0.0.1", port)
                        )
                    if "through the proxy" in str(refused.value):
                        break
                    await asyncio.sleep(0.05)  # it does not listen yet
        finally:
            process.kill()
            await process.wait()
