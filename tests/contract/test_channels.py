"""Channels over WebSockets: the shim, the carrier, and WireGuard through both."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from aiohttp import TCPConnector, web

from nostrvpn.endpoint import Endpoint
from nostrvpn.io import channels
from nostrvpn.io.channels import ChannelCalls, Channels
from nostrvpn.io.relay_websocket import RelayWebSocket, WebSocketListen
from nostrvpn.paths.events import TurnTarget, WebSocketTarget
from nostrvpn.stun.binding import render_query
from tests.contract.namespaced import LIMIT, PORT, Loop, join, make_site, until
from tests.contract.test_relay_websocket import certificate

HELLO = render_query(b"hello relay!")


class Told:
    """Channels with what they told us; ``accept`` carries at once, as a path engine would."""

    def __init__(self, port: int, accept: bool = True, **settings: Any) -> None:
        self.answers: list[tuple[int, bytes]] = []
        self.opened: dict[int, Endpoint] = {}
        self.closed: dict[int, str] = {}
        self._accept = accept
        calls = ChannelCalls(self._answered, self._opened, self._closed)
        self.channels = Channels(port, calls, **settings)

    def _answered(self, number: int, frame: bytes) -> None:
        self.answers.append((number, frame))
        if self._accept:
            self.channels.carry(number)

    def _opened(self, number: int, endpoint: Endpoint) -> None:
        self.opened[number] = endpoint

    def _closed(self, number: int, reason: str) -> None:
        assert number not in self.closed, "told twice"
        self.closed[number] = reason


class Forwarder:
    """A relay's edge that joins its first two connections: each hears what the other sends."""

    def __init__(self, host: str, port: int = 0, **listen: Any) -> None:
        self.numbers: list[int] = []
        self.edge = RelayWebSocket(
            WebSocketListen(host, port, **listen), self._take, lambda number: None
        )

    def _take(self, number: int, data: bytes) -> None:
        if number not in self.numbers:
            self.numbers.append(number)
            self.edge.send_frame(number, data)
        else:
            for other in self.numbers:
                if other != number:
                    self.edge.send_frame(other, data)


class WireGuard:
    """A UDP socket in the place of WireGuard's."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(("0.0.0.0", 0))
        self.port = self.socket.getsockname()[1]

    def send(self, data: bytes, to: Endpoint) -> None:
        self.socket.sendto(data, (str(to.ip), to.port))

    async def receive(self) -> tuple[bytes, Endpoint]:
        loop = asyncio.get_running_loop()
        data, (ip, port) = await asyncio.wait_for(loop.sock_recvfrom(self.socket, 2048), LIMIT)
        return data, Endpoint(IPv4Address(ip), port)


@pytest.fixture
def wireguard() -> Any:
    made = WireGuard()
    yield made
    made.socket.close()


@asynccontextmanager
async def serving(
    handle: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncIterator[str]:
    """A web server with one page; yields its URL."""
    application = web.Application()
    application.router.add_get("/", handle)
    runner = web.AppRunner(application, shutdown_timeout=0.5)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        await runner.cleanup()


async def test_packets_pass_and_strangers_do_not(wireguard: WireGuard) -> None:
    forwarder = Forwarder("127.0.0.1")
    await forwarder.edge.start()
    url = f"ws://127.0.0.1:{forwarder.edge.port}/nostrvpn"
    other = WireGuard()
    told, far = Told(wireguard.port), Told(other.port)
    try:
        told.channels.open(0x1234, WebSocketTarget(url, HELLO))
        await until(lambda: told.opened)
        far.channels.open(7, WebSocketTarget(url, HELLO))
        await until(lambda: far.opened)
        assert told.answers == [(0x1234, HELLO)]
        near, beyond = told.opened[0x1234], far.opened[7]
        assert near.ip == IPv4Address("127.77.18.52")
        for size in (1, 32, 148, 1500):
            wireguard.send(bytes([4]) * size, near)
            assert await other.receive() == (bytes([4]) * size, beyond)
            other.send(bytes([5]) * size, beyond)
            assert await wireguard.receive() == (bytes([5]) * size, near)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"x", (str(near.ip), near.port))
        wireguard.send(b"", near)
        wireguard.send(bytes(1501), near)
        await until(lambda: told.channels.counters["wrong size"] == 2)
        assert told.channels.counters["stranger"] == 1
    finally:
        await told.channels.close_all()
        await far.channels.close_all()
        await forwarder.edge.stop()
        other.socket.close()
    assert not told.closed


async def test_a_channel_is_closed_once_and_its_number_is_free_again(wireguard: WireGuard) -> None:
    forwarder = Forwarder("127.0.0.1")
    await forwarder.edge.start()
    target = WebSocketTarget(f"ws://127.0.0.1:{forwarder.edge.port}/nostrvpn", HELLO)
    told = Told(wireguard.port)
    try:
        told.channels.open(1, target)
        told.channels.open(1, target)
        told.channels.close(1)  # before anything happened
        told.channels.close(2)
        await until(lambda: told.closed)
        assert told.closed == {1: "closed by us"}
        told.closed.clear()
        told.channels.open(1, target)
        endpoint = await until(lambda: told.opened.get(1))
        told.channels.close(1)
        told.channels.close(1)
        await until(lambda: told.closed)
        assert told.closed == {1: "closed by us"}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind((str(endpoint.ip), endpoint.port))
        told.channels.open(3, target)
        await until(lambda: told.opened.get(3))
        forwarder.edge.close(max(forwarder.numbers))
        await until(lambda: told.closed.get(3))
        assert told.closed[3] == "closed by the relay"
        told.channels.open(4, TurnTarget("turn:x", endpoint))
        await until(lambda: told.closed.get(4))
        assert "no TURN server" in told.closed[4]
    finally:
        await told.channels.close_all()
        await forwarder.edge.stop()


async def test_each_failure_has_its_reason(
    wireguard: WireGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "ANSWER_SECONDS", 0.3)

    async def handle(request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        assert (await websocket.receive_bytes()) == HELLO
        match request.query["do"]:
            case "nothing":
                await asyncio.sleep(3)
            case "text":
                await websocket.send_str("hello")
            case "large":
                await websocket.send_bytes(bytes(1501))
            case "huge":
                await websocket.send_bytes(bytes(1 << 20))
            case "empty":
                await websocket.send_bytes(b"")
            case "end":
                await websocket.close(message=b"\x1b[31m")
            case "garbage":
                assert request.transport is not None
                request.transport.write(os.urandom(1000))
            case "answer":
                await websocket.send_bytes(HELLO)
                await asyncio.sleep(3)
        return websocket

    expected = {
        "nothing": "does not answer",
        "text": "no packet",
        "large": "no packet",
        "huge": "no packet",
        "empty": "no packet",
        "end": "closed by the relay",
        "garbage": "",
        "answer": "was not accepted",
    }
    told = Told(wireguard.port, accept=False)
    async with serving(handle) as url:
        urls = [f"{url}?do={name}" for name in expected]
        urls += [url.rstrip("/") + "/no-such-page", "http://127.0.0.1:9/", "ftp://127.0.0.1/", "x"]
        for number, one in enumerate(urls):
            told.channels.open(number, WebSocketTarget(one, HELLO))
        await until(lambda: len(told.closed) == len(urls))
        for number, words in enumerate((*expected.values(), "HTTP 404", "127.0.0.1:9")):
            assert words in told.closed[number], (urls[number], told.closed[number])
        assert all(reason.isprintable() and reason for reason in told.closed.values())
        assert not told.opened
        assert told.channels.counters["malformed"] >= 4
        monkeypatch.setattr(channels, "MAX_CHANNELS", 2)
        for number in range(100, 103):
            told.channels.open(number, WebSocketTarget(urls[0], HELLO))
        await until(lambda: 102 in told.closed)
        assert "more than 2" in told.closed[102]
        await told.channels.close_all()
        assert set(told.closed) == {*range(len(urls)), 102}


async def test_a_relay_that_does_not_read_costs_packets_not_memory(wireguard: WireGuard) -> None:
    is_done = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        await websocket.send_bytes(await websocket.receive_bytes())
        assert request.transport is not None
        request.transport.pause_reading()
        await is_done.wait()
        return websocket

    told = Told(wireguard.port)
    async with serving(handle) as url:
        told.channels.open(1, WebSocketTarget(url, HELLO))
        endpoint = await until(lambda: told.opened.get(1))
        sent = 0
        async with asyncio.timeout(LIMIT):
            while not told.channels.counters["congested"]:
                for _ in range(20):
                    wireguard.send(bytes(1400), endpoint)
                    sent += 1
                await asyncio.sleep(0)
        is_done.set()
        # What the two kernels take of loopback's buffers, and nothing in this process.
        assert sent * 1400 < 16 << 20
        await told.channels.close_all()


async def test_tls_is_verified(wireguard: WireGuard, tmp_path: Path) -> None:
    files = certificate(tmp_path)
    forwarder = Forwarder("127.0.0.1", certificate=files[0], key=files[1])
    await forwarder.edge.start()
    target = WebSocketTarget(f"wss://127.0.0.1:{forwarder.edge.port}/nostrvpn", HELLO)
    anybody = Told(wireguard.port)
    told = Told(wireguard.port, tls=ssl.create_default_context(cafile=files[0]))
    try:
        anybody.channels.open(1, target)
        await until(lambda: anybody.closed)
        assert anybody.closed[1] == "the certificate of 127.0.0.1 is not valid"
        assert not forwarder.numbers
        for number in (1, 2):
            told.channels.open(number, target)
            await until(partial(told.opened.get, number))
        wireguard.send(bytes(1500), told.opened[1])
        assert await wireguard.receive() == (bytes(1500), told.opened[2])
    finally:
        await anybody.channels.close_all()
        await told.channels.close_all()
        await forwarder.edge.stop()


async def test_the_mark_is_on_the_connection(wireguard: WireGuard) -> None:
    told = Told(wireguard.port, mark=0x00A50000)
    connector = told.channels._shared().session.connector
    assert isinstance(connector, TCPConnector)
    assert connector.force_close  # the next connection may be from another network
    assert connector.limit == channels.MAX_CHANNELS
    make = connector._socket_factory
    assert make is not None
    made = make((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("203.0.113.1", 443)))
    assert made.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0x00A50000
    made.close()
    await told.channels.close_all()


async def test_a_proxy_is_used(wireguard: WireGuard) -> None:
    asked: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    told = Told(wireguard.port, proxy=f"http://127.0.0.1:{port}")
    told.channels.open(1, WebSocketTarget("wss://relay.invalid/nostrvpn", HELLO))
    await until(lambda: told.closed)
    assert asked == [b"CONNECT relay.invalid:443 HTTP/1.1\r\n"]
    await told.channels.close_all()
    server.close()
    await server.wait_closed()


@pytest.mark.kernel
def test_wireguard_and_stun_where_udp_is_blocked(
    make_netns: Callable[[], Any], make_node: Callable[..., Any], interface: str
) -> None:
    relay, left, right = make_netns(), make_netns(), make_netns()
    join(relay, left, "10.1.0")
    join(relay, right, "10.2.0")
    for netns in (left, right):
        # Where strict, neither the reverse path filter nor the martian check may mind loopback.
        netns.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.lo.rp_filter=1")
        for rule in (
            "add table inet block",
            "add chain inet block out { type filter hook output priority 0; }",
            "add rule inet block out oifname eth0 meta l4proto udp counter drop",
        ):
            netns.run("nft", rule)
    with ExitStack() as stack:
        edge_loop = Loop(relay)
        stack.callback(edge_loop.stop)
        forwarder = Forwarder("0.0.0.0", 443)
        edge_loop.do(forwarder.edge.start())
        stack.callback(lambda: edge_loop.do(forwarder.edge.stop()))
        sites, all_told = [], []
        for number, netns in enumerate((left, right), 1):
            site = make_site(make_node, netns, interface, f"{number}{3 - number}")
            stack.callback(site.stop)
            told = site.call(Told, PORT)
            stack.callback(lambda here, it: here.do(it.channels.close_all()), site, told)
            target = WebSocketTarget(f"ws://10.{number}.0.1:443/nostrvpn", HELLO)
            site.call(told.channels.open, number, target)
            site.until(partial(told.opened.get, number))
            sites.append(site)
            all_told.append(told)
        here, there = sites
        near, beyond = all_told[0].opened[1], all_told[1].opened[2]
        # STUN from the one tap to the other, and back to where it came from.
        query = render_query(os.urandom(12))
        assert here.call(here.tap.send, query, near) is None
        there.until(lambda: there.heard)
        assert there.heard == [(query, beyond)]
        assert there.call(there.tap.send, query, beyond) is None
        here.until(lambda: here.heard)
        assert here.heard == [(query, near)]
        # And WireGuard itself.
        here.use(near)
        there.use(beyond)
        assert here.ping(2)
        assert here.node.wg()[here.peer][1] == str(near)
        assert there.node.wg()[there.peer][1] == str(beyond)
        for site, told in zip(sites, all_told, strict=True):
            assert not told.channels.counters
            blocked = site.netns.run("nft", "list table inet block")
            assert "counter packets 0 " in blocked
        # The relay's network goes away without a word: in use, that is noticed.
        relay.run("nft", "add table inet gone")
        relay.run(
            "nft", "add chain inet gone in { type filter hook input priority 0; policy drop; }"
        )
        started = time.monotonic()
        assert not here.ping(2, wait=1)
        here.until(partial(all_told[0].closed.get, 1))
        assert time.monotonic() - started < 6.0
