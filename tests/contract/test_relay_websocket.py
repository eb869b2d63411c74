"""The relay's WebSocket listener against clients that behave, and clients that do not."""

from __future__ import annotations

import asyncio
import datetime
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nostrvpn.errors import SystemRefused, UserError
from nostrvpn.host.state import FWMARK
from nostrvpn.io import relay_websocket
from nostrvpn.io.relay_websocket import RelayWebSocket, WebSocketListen
from nostrvpn.stun.binding import StunMethod, render_query
from nostrvpn.stun.relaying import render_relay_error

LIMIT = 20.0
HELLO = render_query(b"hello relay!")


async def until(is_so: Callable[[], object], limit: float = LIMIT) -> None:
    async with asyncio.timeout(limit):
        while not is_so():  # noqa: ASYNC110 (anything may make it so)
            await asyncio.sleep(0.01)


class Edge:
    """A listener with what it told us."""

    def __init__(self, **listen: Any) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.closed: list[int] = []
        self.echo = True
        self.relay = RelayWebSocket(
            WebSocketListen("127.0.0.1", 0, **listen), self.take, self.closed.append
        )

    def take(self, number: int, data: bytes) -> None:
        self.frames.append((number, data))
        if self.echo:
            self.relay.send_frame(number, data)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.relay.port}/nostrvpn"


@asynccontextmanager
async def listening(**listen: Any) -> AsyncIterator[tuple[Edge, aiohttp.ClientSession]]:
    edge = Edge(**listen)
    await edge.relay.start()
    try:
        async with aiohttp.ClientSession() as session:
            yield edge, session
    finally:
        await edge.relay.stop()


def certificate(directory: Path, name: str = "127.0.0.1") -> tuple[Path, Path]:
    """Make a self-signed certificate for an address; return the files of it and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(name))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    files = directory / "certificate.pem", directory / "key.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


async def test_frames_pass_both_ways_and_the_end_is_told() -> None:
    async with listening() as (edge, session):
        async with session.ws_connect(edge.url, compress=15) as client:
            assert not client.compress  # offered, and not taken
            await client.send_bytes(HELLO)
            assert await client.receive_bytes(timeout=LIMIT) == HELLO
            for size in (1, 125, 126, 1499, 1500):
                await client.send_bytes(bytes(size))
                assert await client.receive_bytes(timeout=LIMIT) == bytes(size)
            assert {number for number, _ in edge.frames} == {1}
            assert edge.closed == []
        await until(lambda: edge.closed == [1])
        assert not edge.relay.send_frame(1, b"x")
        async with session.ws_connect(edge.url) as client:
            await client.send_bytes(HELLO)
            await client.receive_bytes(timeout=LIMIT)
            assert edge.frames[-1][0] == 2  # never the same number again
            edge.relay.close(2)
            message = await client.receive(timeout=LIMIT)
            assert message.type is aiohttp.WSMsgType.CLOSE
        await until(lambda: edge.closed == [1, 2])


async def test_what_it_answers_is_marked_and_goes_around_an_exit() -> None:
    async with listening() as (edge, session), session.ws_connect(edge.url) as client:
        await client.send_bytes(HELLO)
        await until(lambda: edge.frames)
        (connection,) = edge.relay._connections.values()
        assert connection.tcp.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == FWMARK


async def test_to_everybody_else_it_is_a_web_server_without_that_page() -> None:
    async with listening() as (edge, session):
        for path in ("/", "/nostrvpn", "/nostrvpn/x", "/index.html"):
            async with session.get(f"http://127.0.0.1:{edge.relay.port}{path}") as answer:
                assert answer.status == 404
                assert "Server" not in answer.headers
                assert "aiohttp" not in await answer.text()
        async with session.post(edge.url, data=b"x" * 100) as answer:
            assert answer.status in (404, 405)
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.relay.port)
        writer.write(os.urandom(200) + b"\r\n\r\n")
        said = await asyncio.wait_for(reader.read(), LIMIT)
        writer.close()
        assert said.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))
        assert not edge.frames
        assert not edge.closed


@pytest.mark.parametrize(
    ("first", "then"),
    [(b"x" * 40, None), ("text", None), (b"", None), (HELLO, "text"), (HELLO, b"x" * 1501)],
    ids=["no STUN", "text first", "empty", "text later", "oversized"],
)
async def test_who_sends_anything_else_is_closed(first: Any, then: Any) -> None:
    async with listening() as (edge, session), session.ws_connect(edge.url) as client:
        for frame in (first, then):
            if frame is not None:
                is_text = isinstance(frame, str)
                await (client.send_str(frame) if is_text else client.send_bytes(frame))
        async with asyncio.timeout(LIMIT):
            while (await client.receive()).type is not aiohttp.WSMsgType.CLOSED:
                pass
        assert edge.relay.counters["malformed"] == 1
        assert [data for _, data in edge.frames] == ([HELLO] if then else [])
        assert len(edge.closed) == len(edge.frames)


async def test_who_says_nothing_in_time_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REQUEST_SECONDS", "FIRST_FRAME_SECONDS", "ACCEPT_SECONDS"):
        monkeypatch.setattr(relay_websocket, name, 0.3)
    async with listening() as (edge, session):
        edge.echo = False
        silent = await session.ws_connect(edge.url)
        refused = await session.ws_connect(edge.url)
        await refused.send_bytes(HELLO)
        await until(lambda: edge.frames)
        refusal = render_relay_error(StunMethod.BINDING, b"hello relay!", 401, "key")
        assert edge.relay.send_frame(1, refusal)
        assert await refused.receive_bytes(timeout=LIMIT) == refusal
        halves = []
        for start in (b"", b"GET /nostrvpn HTTP/1.1\r\nHost: x\r\n", b"GET / HTTP/1.1\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", edge.relay.port)
            writer.write(start)
            halves.append((reader, writer))
        for reader, writer in halves:
            async with asyncio.timeout(LIMIT):
                with suppress(ConnectionResetError):  # or an orderly end
                    while await reader.read(1000):
                        pass
            writer.close()
        for client in (silent, refused):
            message = await client.receive(timeout=LIMIT)
            assert message.type is aiohttp.WSMsgType.CLOSE
            await client.close()
        assert edge.relay.counters["no first frame"] == 1
        assert edge.relay.counters["never accepted"] == 1
        assert edge.relay.counters["no WebSocket in time"] >= 2
        await until(lambda: edge.closed == [1])


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_websocket, "MAX_PER_ADDRESS", 3)
    async with listening(behind_proxy=True) as (edge, session):

        async def connect(forwarded: str) -> aiohttp.ClientWebSocketResponse:
            return await session.ws_connect(edge.url, headers={"X-Forwarded-For": forwarded})

        # What the client itself wrote stands before what the proxy wrote.
        held = [await connect(f"10.0.0.{forged}, 192.0.2.1") for forged in range(3)]
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await connect("10.9.9.9, 192.0.2.1")
        held += [await connect(f"2001:db8:1:2::{number}") for number in range(3)]
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await connect("2001:db8:1:2:ffff::1")
        held.append(await connect("192.0.2.2"))
        assert edge.relay.counters["too many of one address"] == 2

    async def flood(edge: Edge, count: int, refused: int) -> None:
        """Make ``count`` connections, of which so many are refused and no others."""
        held = []
        for _ in range(count):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", edge.relay.port))
            held.append(sock)
        await until(lambda: sum(map(is_waiting, held)) <= count - refused)
        assert sum(map(is_waiting, held)) == count - refused
        for sock in held:
            sock.close()

    def is_waiting(sock: socket.socket) -> bool:
        try:
            return sock.recv(1) != b""
        except BlockingIOError:
            return True
        except ConnectionError:
            return False

    # A busy machine takes long for so many.
    monkeypatch.setattr(relay_websocket, "NEW_SECONDS", 600.0)
    async with listening() as (edge, _):
        await flood(edge, 600, 600 - relay_websocket.MAX_NEW)
        assert edge.relay.counters["too many new connections"] == 600 - relay_websocket.MAX_NEW
    monkeypatch.setattr(relay_websocket, "MAX_CONNECTIONS", 20)
    async with listening() as (edge, _):
        await flood(edge, 50, 30)
        assert edge.relay.counters["too many connections"] == 30


async def test_a_slow_reader_costs_a_bounded_queue_and_nobody_else() -> None:
    async with listening() as (edge, session):
        edge.echo = False
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.relay.port, limit=1024)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        writer.write(
            b"GET /nostrvpn HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(bytes([0x82, 0x80 | len(HELLO)]) + bytes(4) + HELLO)
        await until(lambda: edge.frames)
        for _ in range(100):
            queued = sum(edge.relay.send_frame(1, bytes(1500)) for _ in range(100))
            assert queued <= relay_websocket.MAX_QUEUED
            await asyncio.sleep(0)
        # The queue alone would not do: what left it must not pile up elsewhere.
        refused = 100 * (100 - relay_websocket.MAX_QUEUED)
        assert edge.relay.counters["congested"] > refused + 500
        edge.echo = True
        async with session.ws_connect(edge.url) as client:
            await client.send_bytes(HELLO)
            assert await client.receive_bytes(timeout=LIMIT) == HELLO
        writer.transport.abort()
        await until(lambda: 1 in edge.closed)


async def test_a_client_that_vanishes_is_noticed() -> None:
    async with listening() as (edge, session):
        client = await session.ws_connect(edge.url)
        await client.send_bytes(HELLO)
        await client.receive_bytes(timeout=LIMIT)
        sock = client.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection = client._conn
        assert connection is not None
        assert connection.transport is not None
        connection.transport.abort()
        await until(lambda: edge.closed == [1])


async def test_tls_and_its_files(tmp_path: Path) -> None:
    files = certificate(tmp_path)
    async with listening(certificate=files[0], key=files[1]) as (edge, session):
        url = f"https://127.0.0.1:{edge.relay.port}/nostrvpn"
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.ws_connect(url)
        trusted = ssl.create_default_context(cafile=files[0])
        async with session.ws_connect(url, ssl=trusted) as client:
            await client.send_bytes(HELLO)
            assert await client.receive_bytes(timeout=LIMIT) == HELLO
            certificate(tmp_path)
            edge.relay.renew_certificate()
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await session.ws_connect(url, ssl=trusted)
            # Half written: the certificate of another key, then no key at all.
            renewed = ssl.create_default_context(cafile=files[0])
            (tmp_path / "other").mkdir()
            another_one = certificate(tmp_path / "other")[0].read_text()
            for file, text in ((files[0], another_one), (files[1], "nonsense")):
                file.write_text(text)
                with pytest.raises(UserError, match="certificate"):
                    edge.relay.renew_certificate()
                edge.relay.renew_certificate()  # told once
                async with session.ws_connect(url, ssl=renewed) as another:
                    await another.send_bytes(HELLO)
                    assert await another.receive_bytes(timeout=LIMIT) == HELLO
            await client.send_bytes(b"still")
            assert await client.receive_bytes(timeout=LIMIT) == b"still"
    with pytest.raises(UserError, match="no-such-file"):
        await Edge(certificate=tmp_path / "no-such-file", key=files[1]).relay.start()


async def test_a_port_in_use_is_refused_in_words() -> None:
    async with listening() as (edge, _):
        listen = WebSocketListen("127.0.0.1", edge.relay.port)
        second = RelayWebSocket(listen, edge.take, edge.closed.append)
        with pytest.raises(SystemRefused, match="cannot listen"):
            await second.start()
