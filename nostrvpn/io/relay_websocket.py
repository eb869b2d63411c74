"""The relay's WebSockets: for members on networks where UDP is blocked.

One connection is one channel, by number; each binary frame is one datagram. What a frame means, and
who may do what, is the relay's business (``relaying``): here are only the limits that hold before
anybody is known. To everybody else this is a web server that has no such page.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import web

from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import SystemRefused, UserError
from nostrvpn.host.state import FWMARK
from nostrvpn.io.shims import MAX_FRAME
from nostrvpn.io.tcp_carrier import is_congested, prepare_carrier
from nostrvpn.stun.binding import looks_like_stun

__all__ = ["RelayWebSocket", "WebSocketListen"]

# TCP connections of any kind. Each may hold 48 KiB of ours and as much of aiohttp's.
MAX_CONNECTIONS: Final = 1024
# From one address: a household or an office behind one NAT, a WebSocket per pair of peers.
MAX_PER_ADDRESS: Final = 64
# New connections of all clients: so many within so many seconds, then the rest is turned away.
MAX_NEW: Final = 256
NEW_SECONDS: Final = 5.0
# From connecting to an accepted WebSocket, from there to the first frame, from there to an
# answer that is no refusal.
REQUEST_SECONDS: Final = 5.0
FIRST_FRAME_SECONDS: Final = 5.0
ACCEPT_SECONDS: Final = 5.0
# aiohttp pings this often and gives up when no pong comes within half of it.
HEARTBEAT_SECONDS: Final = 20.0
CLOSE_SECONDS: Final = 1.0
# Frames that wait for a connection's writer: a burst. What the kernel holds is bounded besides.
MAX_QUEUED: Final = 32


@dataclass(frozen=True, slots=True)
class WebSocketListen:
    """Where to listen. ``certificate`` and ``key`` (PEM files) together mean TLS.

    ``behind_proxy``: all connections come from a reverse proxy of ours, so the client's address is
    the last one in X-Forwarded-For. Without such a proxy anybody could write anything there.
    """

    host: str
    port: int
    path: str = "/nostrvpn"
    certificate: Path | None = None
    key: Path | None = None
    behind_proxy: bool = False


@dataclass(slots=True, eq=False)
class _Connection:
    number: int
    ip: IPAddress
    socket: web.WebSocketResponse
    tcp: Any
    queue: asyncio.Queue[bytes] = field(default_factory=lambda: asyncio.Queue(MAX_QUEUED))
    accepted: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[Any] | None = None


class _TurnedAway(asyncio.Protocol):
    """Closes what there is no room for."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


class RelayWebSocket:
    """The listener: ``on_frame(number, data)``, and ``on_closed(number)`` once for each number seen.

    A connection has a number from its first frame on. It is closed if nothing but STUN errors were
    sent to it within five seconds after that: who is refused has no business here. ``counters``
    has what was turned away, by reason. Numbers are never used twice.
    """

    def __init__(
        self,
        listen: WebSocketListen,
        on_frame: Callable[[int, bytes], None],
        on_closed: Callable[[int], None],
    ) -> None:
        self._listen = listen
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._connections: dict[int, _Connection] = {}
        self._addresses: Counter[str] = Counter()
        self._upgraded: set[web.RequestHandler] = set()
        self._recent: deque[float] = deque()
        self._last_number = 0
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._tls: ssl.SSLContext | None = None
        self._written: tuple[object, ...] = ()
        self.counters: Counter[str] = Counter()

    @property
    def port(self) -> int:
        """The port that is listened on, also where 0 was asked for."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        """Listen; UserError for a bad certificate, SystemRefused if the port cannot be had."""
        if self._listen.certificate is not None:
            self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self.renew_certificate()
        application = web.Application(client_max_size=0, handler_args={"access_log": None})
        application.router.add_get(self._listen.path, self._serve)
        application.on_response_prepare.append(_say_less)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=CLOSE_SECONDS)
        await self._runner.setup()
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._make_protocol,
                sock=_listen(self._listen.host, self._listen.port),
                ssl=self._tls,
                ssl_handshake_timeout=REQUEST_SECONDS if self._tls else None,
            )
        except OSError as exc:
            await self.stop()
            where = f"{self._listen.host}:{self._listen.port}"
            raise SystemRefused(
                f"cannot listen for WebSockets on {where}: {exc.strerror}",
                "Choose another address or port, or stop the program that has it.",
            ) from exc

    def renew_certificate(self) -> None:
        """If the files changed, serve what is in them, to connections from now on.

        UserError if they are no good, once for each change: what was served before still is.
        """
        if self._tls is None or self._listen.certificate is None:
            return
        files = (self._listen.certificate, self._listen.key)
        written = tuple(map(_when_written, files))
        if written == self._written:
            return
        self._written = written
        try:
            # First on trial: a key that does not fit, or not yet, would spoil what is in use.
            for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self._tls):
                context.load_cert_chain(*files)
        except (OSError, ssl.SSLError) as exc:
            raise UserError(
                f"no certificate for the relay in {self._listen.certificate}: {exc.strerror or exc}",
                "Name a PEM file with the certificate chain, and its private key.",
            ) from exc

    async def stop(self) -> None:
        """Close everything within about two seconds; ``on_closed`` is still called."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections.values()):
            self.close(connection.number)
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self._server = None

    def ip_of(self, number: int) -> IPAddress:
        """Return the address of a client; KeyError if the connection is unknown."""
        return self._connections[number].ip

    def send_frame(self, number: int, data: bytes) -> bool:
        """Queue a frame; False if it was dropped: connection unknown, or too slow."""
        connection = self._connections.get(number)
        if connection is None:
            self.counters["gone"] += 1
            return False
        if not _is_refusal(data):
            connection.accepted.set()
        try:
            connection.queue.put_nowait(data)
        except asyncio.QueueFull:
            self.counters["congested"] += 1
            return False
        return True

    def close(self, number: int) -> None:
        """Close a connection; ``on_closed`` follows. Nothing if unknown."""
        connection = self._connections.get(number)
        if connection is not None and connection.task is not None:
            connection.task.cancel()

    def _make_protocol(self) -> asyncio.Protocol:
        """Return the protocol for a new TCP connection, before anything of it was read."""
        assert self._runner is not None
        server = self._runner.server
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._recent and now - self._recent[0] > NEW_SECONDS:
            self._recent.popleft()
        if server is None or len(self._recent) >= MAX_NEW:
            self.counters["too many new connections"] += 1
            return _TurnedAway()
        if len(server.connections) >= MAX_CONNECTIONS:
            self.counters["too many connections"] += 1
            return _TurnedAway()
        self._recent.append(now)
        handler = server()
        loop.call_later(REQUEST_SECONDS, self._end_unless_upgraded, handler)
        return handler

    def _end_unless_upgraded(self, handler: web.RequestHandler) -> None:
        # Half a request, a kept-alive page reader, a TLS handshake only: they hold a descriptor.
        if handler not in self._upgraded and handler.transport is not None:
            self.counters["no WebSocket in time"] += 1
            handler.transport.abort()

    def _client_ip(self, request: web.Request) -> IPAddress:
        """Return the client's address; that of the proxy if it names none."""
        text = request.remote or ""
        if self._listen.behind_proxy:
            text = request.headers.get("X-Forwarded-For", "").rpartition(",")[2].strip() or text
        try:
            ip = ip_address(text)
        except ValueError:
            return ip_address("0.0.0.0")
        return ip.ipv4_mapped or ip if isinstance(ip, IPv6Address) else ip

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse(
            heartbeat=HEARTBEAT_SECONDS,
            max_msg_size=MAX_FRAME + 1,
            compress=False,
            timeout=CLOSE_SECONDS,
        )
        if not websocket.can_prepare(request):
            raise web.HTTPNotFound
        ip = self._client_ip(request)
        # Whom to count it for: an IPv4 address, or an IPv6 /64 (one household).
        address = ip.packed[:8].hex()
        if self._addresses[address] >= MAX_PER_ADDRESS:
            self.counters["too many of one address"] += 1
            raise web.HTTPNotFound
        self._addresses[address] += 1
        self._upgraded.add(request.protocol)
        try:
            await websocket.prepare(request)
            assert request.transport is not None
            tcp = request.transport.get_extra_info("socket")
            with contextlib.suppress(aiohttp.ClientError, OSError):
                prepare_carrier(tcp)
                await self._attend(websocket, tcp, ip)
        finally:
            self._addresses[address] -= 1
            if not self._addresses[address]:
                del self._addresses[address]
            self._upgraded.discard(request.protocol)
        return websocket

    async def _attend(self, websocket: web.WebSocketResponse, tcp: Any, ip: IPAddress) -> None:
        """See to one WebSocket from its first frame to its end."""
        try:
            async with asyncio.timeout(FIRST_FRAME_SECONDS):
                first = await websocket.receive()
        except TimeoutError:
            self.counters["no first frame"] += 1
            return
        if first.type is not aiohttp.WSMsgType.BINARY or not looks_like_stun(first.data):
            self.counters["malformed"] += 1
            await websocket.close(code=aiohttp.WSCloseCode.PROTOCOL_ERROR)
            return
        self._last_number += 1
        connection = _Connection(self._last_number, ip, websocket, tcp)
        connection.task = asyncio.current_task()
        self._connections[connection.number] = connection
        writer = asyncio.ensure_future(self._write(connection))
        impatience = asyncio.get_running_loop().call_later(
            ACCEPT_SECONDS, self._end_unless_accepted, connection
        )
        try:
            self._on_frame(connection.number, first.data)
            await self._read(connection)
        finally:
            impatience.cancel()
            writer.cancel()
            del self._connections[connection.number]
            self._on_closed(connection.number)
            with contextlib.suppress(asyncio.CancelledError, aiohttp.ClientError, OSError):
                await websocket.close()

    def _end_unless_accepted(self, connection: _Connection) -> None:
        if not connection.accepted.is_set():
            self.counters["never accepted"] += 1
            self.close(connection.number)

    async def _read(self, connection: _Connection) -> None:
        while True:
            message = await connection.socket.receive()
            match message.type:
                case aiohttp.WSMsgType.BINARY if 0 < len(message.data) <= MAX_FRAME:
                    self._on_frame(connection.number, message.data)
                case aiohttp.WSMsgType.BINARY | aiohttp.WSMsgType.TEXT | aiohttp.WSMsgType.ERROR:
                    self.counters["malformed"] += 1
                    return
                case _:
                    return

    async def _write(self, connection: _Connection) -> None:
        with contextlib.suppress(aiohttp.ClientError, OSError):
            while True:
                data = await connection.queue.get()
                if is_congested(connection.tcp):
                    self.counters["congested"] += 1
                else:
                    await connection.socket.send_bytes(data)


def _is_refusal(data: bytes) -> bool:
    """Say whether this is a STUN message of the class error (RFC 8489 section 5)."""
    return looks_like_stun(data) and data[0] & 0x01 == 0x01 and data[1] & 0x10 == 0x10


async def _say_less(_request: web.Request, response: web.StreamResponse) -> None:
    """Leave out which software this is."""
    response.headers.pop("Server", None)


def _when_written(path: Path | None) -> tuple[int, int] | None:
    try:
        found = path.stat() if path is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_ino)


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; the unspecified IPv6 address takes IPv4 too, as users expect.

    What it accepts inherits its mark: so it is answered around an exit that this host uses.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    ear = socket.create_server(
        (host, port),
        family=family,
        backlog=MAX_NEW,
        dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
    )
    with contextlib.suppress(PermissionError):  # nobody without CAP_NET_ADMIN uses an exit
        ear.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, FWMARK)
    return ear
