"""Channels: remote endpoints that are not UDP, each behind a shim of its own on loopback.

A channel is a WebSocket to a relay, or one remote endpoint of a TURN allocation (``turn``). Once it
is open, its loopback endpoint is one more remote endpoint to WireGuard, to the tap and to the path
engine. Nothing is decided here: the first frame of a WebSocket is what the path engine says, the
relay's answer is given back to it, and packets flow when it said ``carry``.

Every ``open`` ends in exactly one ``on_closed``, unless ``close_all`` ended it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.request import getproxies

import aiohttp

from nostrvpn import __version__
from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.errors import SystemRefused
from nostrvpn.io.connection_failures import CONNECT_SECONDS, describe_failure
from nostrvpn.io.http_way import connector_for
from nostrvpn.io.shims import MAX_FRAME, Shim
from nostrvpn.io.tcp_carrier import is_congested, prepare_carrier
from nostrvpn.paths.events import TurnTarget, WebSocketTarget

if TYPE_CHECKING:
    from nostrvpn.io.turn import TurnServers

__all__ = ["ChannelCalls", "Channels"]

# Three of them per peer, and more peers than could sit in one place where UDP is blocked.
MAX_CHANNELS: Final = 256
# For the relay's first frame, and for our own side to accept it.
ANSWER_SECONDS: Final = 5.0
# aiohttp pings this often and gives up when no pong comes within half of it; in use, a dead
# connection is noticed by its unacknowledged bytes (tcp_carrier).
HEARTBEAT_SECONDS: Final = 20.0
CLOSE_SECONDS: Final = 1.0
NO_PACKET: Final = "the relay sent what is no packet"


@dataclass(frozen=True, slots=True)
class ChannelCalls:
    """Whom to tell: ``answered(number, first frame)``, ``opened(number, endpoint)``,
    ``closed(number, reason)``."""

    answered: Callable[[int, bytes], None]
    opened: Callable[[int, Endpoint], None]
    closed: Callable[[int, str], None]


@dataclass(frozen=True, slots=True)
class _Settings:
    """What all WebSockets share."""

    session: aiohttp.ClientSession
    proxy: str | None
    tls: ssl.SSLContext | None


class Channels:
    """All channels of a node, by number. ``counters`` has drops by reason.

    ``mark`` is WireGuard's fwmark, put on every connection. ``proxy`` is an HTTP proxy URL for all
    of them; without it the environment's (HTTPS_PROXY and friends) is used. ``tls`` replaces the
    system's certificate authorities. ``turn`` serves the targets on TURN servers; it is stopped
    by its owner. ``refuses`` says to which addresses nobody may make us connect, however a peer's URL
    or a redirection names them.
    """

    def __init__(
        self,
        wireguard_port: int,
        calls: ChannelCalls,
        *,
        turn: TurnServers | None = None,
        mark: int = 0,
        proxy: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._port = wireguard_port
        self._calls = calls
        self._turn = turn
        self._mark = mark
        self._proxy = proxy
        self._tls = tls
        # Through a proxy, all connections lead to the proxy, and what is behind it is its business.
        self._is_proxied = proxy is not None or bool(getproxies())
        self.refuses: Callable[[IPAddress], bool] | None = None
        self._settings: _Settings | None = None
        self._channels: dict[int, _WebSocketChannel] = {}
        self._is_stopping = False
        self.counters: Counter[str] = Counter()

    def open(self, number: int, target: WebSocketTarget | TurnTarget) -> None:
        """Start to open a channel. Nothing if the number is in use."""
        if number in self._channels or self._is_stopping:
            return
        if isinstance(target, TurnTarget):
            if self._turn is None:
                self._refuse(number, "no TURN server is configured")
            else:
                self._turn.open(number, target.server, target.remote)
            return
        if len(self._channels) >= MAX_CHANNELS:
            self._refuse(number, f"more than {MAX_CHANNELS} channels")
            return
        channel = _WebSocketChannel(number, target, self._port, self._calls, self.counters)
        self._channels[number] = channel
        channel.task = asyncio.get_running_loop().create_task(
            channel.run(self._shared()), name=f"channel {number}"
        )
        channel.task.add_done_callback(partial(self._ended, channel))

    def carry(self, number: int) -> None:
        """The relay's answer was accepted: let packets flow; ``opened`` follows."""
        channel = self._channels.get(number)
        if channel is not None:
            channel.accepted.set()

    def close(self, number: int) -> None:
        """Close a channel or stop opening it; ``closed`` follows. Nothing if unknown."""
        channel = self._channels.get(number)
        if channel is not None:
            channel.stop("closed by us")
        elif self._turn is not None:
            self._turn.close(number)

    async def close_all(self) -> None:
        """Close every WebSocket within two seconds, and tell nobody any more."""
        self._is_stopping = True
        for channel in self._channels.values():
            channel.stop("stopping")
        tasks = {channel.task for channel in self._channels.values() if channel.task is not None}
        if tasks:
            await asyncio.wait(tasks, timeout=2 * CLOSE_SECONDS)
        if self._settings is not None:
            await self._settings.session.close()
            self._settings = None

    def _refuse(self, number: int, reason: str) -> None:
        asyncio.get_running_loop().call_soon(self._calls.closed, number, reason)

    def _shared(self) -> _Settings:
        if self._settings is None:
            # No cookies: with one, a relay would know us again under another address.
            session = aiohttp.ClientSession(
                connector=connector_for(
                    "", mark=self._mark, refuses=self._is_refused, limit=MAX_CHANNELS, keepalive_s=0
                ),
                timeout=aiohttp.ClientTimeout(total=None),
                headers={"User-Agent": f"nostrvpn/{__version__}"},
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=self._proxy is None,
            )
            self._settings = _Settings(session, self._proxy, self._tls)
        return self._settings

    def _is_refused(self, ip: IPAddress) -> bool:
        return not self._is_proxied and self.refuses is not None and self.refuses(ip)

    def _ended(self, channel: _WebSocketChannel, task: asyncio.Task[str]) -> None:
        # Not at the end of the task itself: cancelled before its first step, it has none.
        del self._channels[channel.number]
        flaw = None if task.cancelled() else task.exception()
        if task.cancelled():
            reason = channel.stop_reason or "stopping"
        else:
            reason = "an internal error" if flaw else task.result()
        if not self._is_stopping:
            self._calls.closed(channel.number, reason)
        if flaw is not None:
            raise flaw  # a mistake of ours: the loop's exception handler says so


class _WebSocketChannel:
    """One WebSocket: connect, say hello, hand the answer on, then carry until it ends."""

    def __init__(
        self,
        number: int,
        target: WebSocketTarget,
        port: int,
        calls: ChannelCalls,
        counters: Counter[str],
    ) -> None:
        self.number = number
        self.accepted = asyncio.Event()
        self.task: asyncio.Task[str] | None = None
        self.stop_reason = ""
        self._target = target
        self._port = port
        self._calls = calls
        self._counters = counters

    def stop(self, reason: str) -> None:
        """End it; the first reason counts."""
        if not self.stop_reason and self.task is not None:
            self.stop_reason = reason
            self.task.cancel()

    async def run(self, settings: _Settings) -> str:
        """Return the reason of the end."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                relay = await settings.session.ws_connect(
                    self._target.url,
                    heartbeat=HEARTBEAT_SECONDS,
                    max_msg_size=MAX_FRAME + 1,
                    compress=0,
                    proxy=settings.proxy,
                    ssl=settings.tls or True,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS),
                )
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            return describe_failure(exc, NO_PACKET)
        try:
            return await self._converse(relay)
        except (aiohttp.ClientError, OSError, SystemRefused) as exc:
            return describe_failure(exc, NO_PACKET)
        finally:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                await relay.close()

    async def _converse(self, relay: aiohttp.ClientWebSocketResponse) -> str:
        tcp = relay.get_extra_info("socket")
        prepare_carrier(tcp)
        await relay.send_bytes(self._target.hello)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                message = await relay.receive()
        except TimeoutError:
            return "the relay does not answer"
        if (reason := self._flaw(message, relay)) is not None:
            return reason
        self._calls.answered(self.number, message.data)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self.accepted.wait()
        except TimeoutError:
            return "the relay's answer was not accepted"
        with contextlib.closing(Shim(self.number, self._port, self._counters)) as shim:
            self._calls.opened(self.number, shim.endpoint)
            works = [
                asyncio.ensure_future(self._read(relay, shim)),
                asyncio.ensure_future(self._write(relay, shim, tcp)),
            ]
            try:
                done, _ = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
                return next(iter(done)).result()
            finally:
                for work in works:
                    work.cancel()
                await asyncio.gather(*works, return_exceptions=True)

    async def _read(self, relay: aiohttp.ClientWebSocketResponse, shim: Shim) -> str:
        while True:
            message = await relay.receive()
            if (reason := self._flaw(message, relay)) is not None:
                return reason
            shim.deliver(message.data)

    async def _write(
        self, relay: aiohttp.ClientWebSocketResponse, shim: Shim, tcp: socket.socket
    ) -> str:
        while not relay.closed:
            data = await shim.receive()
            if is_congested(tcp):
                self._counters["congested"] += 1
            else:
                await relay.send_bytes(data)
        return "closed"

    def _flaw(
        self, message: aiohttp.WSMessage, relay: aiohttp.ClientWebSocketResponse
    ) -> str | None:
        """Return why this message ends the connection, or None if it is a frame to carry."""
        match message.type:
            case aiohttp.WSMsgType.BINARY if 0 < len(message.data) <= MAX_FRAME:
                return None
            case aiohttp.WSMsgType.BINARY | aiohttp.WSMsgType.TEXT:
                self._counters["malformed"] += 1
                return NO_PACKET
            case aiohttp.WSMsgType.ERROR:
                self._counters["malformed"] += 1
                return describe_failure(message.data, NO_PACKET)
            case _:
                failure = relay.exception()
                return describe_failure(failure, NO_PACKET) if failure else "closed by the relay"
