"""WebSockets to relays: moves texts between the relay pool and the network, decides nothing.

One task per relay reads and hands every text on by awaiting ``deliver``, so a slow reader slows the
relay down (TCP) and nothing is dropped. A second one writes from a bounded queue; if the relay does
not take our texts fast enough to empty it, the connection is closed with that reason. Every ``open``
ends in exactly one ``RelayClosed``.

A connection is named by the relay's URL, with ``#lane`` behind it where several to one relay are to be
told apart (``signaling/lanes.py``); only the proxy learns of the lane.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

import aiohttp

from nostrvpn import __version__
from nostrvpn.endpoint import IPAddress
from nostrvpn.io.connection_failures import CONNECT_SECONDS, describe_failure
from nostrvpn.io.http_way import connector_for, leads_inside
from nostrvpn.io.source_address import is_ours, source_towards
from nostrvpn.signaling.relays import RelayClosed, RelayOpened, RelayText

if TYPE_CHECKING:
    from nostrvpn.io.proxy import SocksProxy

__all__ = ["RelaySockets", "no_redirects"]

SocketEvent = RelayOpened | RelayClosed | RelayText

# A new circuit of Tor's takes a few seconds, and sometimes a second try.
PROXIED_CONNECT_SECONDS: Final = 30.0
# aiohttp pings this often and gives up when no pong comes within half of it.
HEARTBEAT_SECONDS: Final = 20.0
# The largest wrap has 55 kB of text; some relays allow 64 KiB, most 128 KiB.
MAX_MESSAGE: Final = 128 * 1024
# Texts waiting to be written. The pool has at most 256 unanswered publishes per relay, and a few
# subscriptions and answers to AUTH.
MAX_OUTGOING: Final = 512
# A relay that does not answer our close frame is not worth more.
CLOSE_SECONDS: Final = 2.0
_CONNECT_ERRORS: tuple[type[Exception], ...] = (aiohttp.ClientError, OSError, ValueError)
TOO_LARGE: Final = f"oversized message (more than {MAX_MESSAGE} bytes)"


class RelaySockets:
    """Open connections to relays, by URL; events go to ``deliver`` in the order they happened."""

    def __init__(
        self,
        deliver: Callable[[SocketEvent], Awaitable[None]],
        proxy: SocksProxy | None = None,
        mark: int = 0,
        is_strange: Callable[[str], bool] = lambda url: False,
    ) -> None:
        """With ``proxy`` every connection goes through it, and nothing is resolved here.

        ``mark`` is the packets' fwmark, by which they get out while an exit is used or all is blocked;
        it needs CAP_NET_ADMIN. ``is_strange``: whether a URL is a stranger's word: it leads to public
        addresses or nowhere, whatever its name resolves to.
        """
        self._deliver = deliver
        self.proxy = proxy
        self._mark = mark
        self._is_strange = is_strange
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self._links: dict[str, _Link] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    def open(self, url: str) -> None:
        """Start connecting; ``RelayOpened`` or ``RelayClosed`` follows. Nothing if it is open."""
        if url in self._links or self._is_stopping:
            return
        link = _Link(url, self._session_for(url), self._deliver, self.proxy)
        self._links[url] = link
        task = asyncio.get_running_loop().create_task(self._live(link), name=f"relay {url}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _session_for(self, url: str) -> aiohttp.ClientSession:
        """Return the session to connect with: one for all, and behind a proxy one for each lane."""
        if self.proxy is not None:
            return _new_session(connector_for(url.partition("#")[2] or "relays", self.proxy))
        is_strange = self._is_strange(url.partition("#")[0])
        if is_strange not in self._sessions:
            refuses = leads_inside if is_strange else None
            connector = connector_for("relays", mark=self._mark, refuses=refuses)
            self._sessions[is_strange] = _new_session(connector)
        return self._sessions[is_strange]

    def close(self, url: str) -> None:
        """Close a connection or stop connecting; ``RelayClosed`` follows. Nothing if unknown."""
        link = self._links.get(url)
        if link is not None:
            link.stop("closed by us")

    def send(self, url: str, text: str) -> None:
        """Queue a text; a full queue closes the connection, an unknown URL is ignored.

        Ignoring loses nothing: the pool is about to hear ``RelayClosed`` and keeps what had no OK.
        """
        link = self._links.get(url)
        if link is not None:
            link.send(text)

    def moved(self, interfaces: Mapping[IPAddress, str], *, restart: bool) -> None:
        """The host's addresses changed; ``interfaces`` says to which interface each one belongs.

        Connections whose own address is gone, or whose packets would now leave by another interface,
        end at once. ``restart`` begins anew what is being connected: nothing tells over what.
        """
        for link in list(self._links.values()):
            if not link.is_open and restart:
                link.restart()
            elif link.is_open and not _is_at_home(link.ends, interfaces, self._mark):
                link.stop("the network changed")

    async def stop(self) -> None:
        """Close everything, all at once, within four seconds, and deliver nothing any more."""
        self._is_stopping = True
        for link in self._links.values():
            link.stop("stopping")
        if self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=2 * CLOSE_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        while self._sessions:
            await self._sessions.popitem()[1].close()

    async def _live(self, link: _Link) -> None:
        try:
            reason = await link.run()
        finally:
            # Before the event: whoever hears it may open the same URL again at once.
            del self._links[link.url]
            if self.proxy is not None:
                await link.session.close()
        if not self._is_stopping:  # nobody may be left to take it
            await self._deliver(RelayClosed(link.url, reason))


class _Link:
    """One connection: connect, then read until it ends."""

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        deliver: Callable[[SocketEvent], Awaitable[None]],
        proxy: SocksProxy | None,
    ) -> None:
        self.url = url
        self.session = session
        self._deliver = deliver
        self._proxy = proxy
        self._errors = _CONNECT_ERRORS + (proxy.errors if proxy is not None else ())
        self._outgoing: asyncio.Queue[str] = asyncio.Queue(MAX_OUTGOING)
        self._work: asyncio.Task[str] | None = None
        self._stop_reason = ""
        self._is_restarting = False
        self.is_open = False
        self.ends: tuple[object, object] = (None, None)  # the sockets' names: ours, the relay's

    def stop(self, reason: str) -> None:
        """End the connection; the first reason counts."""
        if not self._stop_reason:
            self._stop_reason = reason
            if self._work is not None:
                self._work.cancel()

    def restart(self) -> None:
        """Begin to connect anew."""
        if self._work is not None and not self._stop_reason:
            self._is_restarting = True
            self._work.cancel()

    def send(self, text: str) -> None:
        """Queue a text for writing."""
        try:
            self._outgoing.put_nowait(text)
        except asyncio.QueueFull:
            self.stop(f"does not take what we send ({MAX_OUTGOING} texts wait)")

    async def run(self) -> str:
        """Connect and read to the end; return the reason of the end."""
        if self._stop_reason:  # stopped before the task ran
            return self._stop_reason
        while True:
            self._is_restarting = False
            self._work = asyncio.get_running_loop().create_task(self._connect_and_read())
            try:
                await asyncio.wait({self._work})
            finally:
                self._work.cancel()
            if not self._work.cancelled():
                return self._work.result()
            if not self._is_restarting or self._stop_reason:
                return self._stop_reason

    async def _connect_and_read(self) -> str:
        try:
            patience = CONNECT_SECONDS if self._proxy is None else PROXIED_CONNECT_SECONDS
            async with asyncio.timeout(patience):
                opened = await self.session.ws_connect(
                    self.url.partition("#")[0],
                    heartbeat=HEARTBEAT_SECONDS,
                    max_msg_size=MAX_MESSAGE,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS),
                )
        except self._errors as exc:
            # Also when nothing happened in time: what stands in between is the proxy.
            told = self._proxy.describe(exc) if self._proxy is not None else None
            return told or describe_failure(exc, TOO_LARGE)
        writer: asyncio.Task[None] | None = None
        self.is_open = True
        self.ends = opened.get_extra_info("sockname"), opened.get_extra_info("peername")
        try:
            await self._deliver(RelayOpened(self.url))
            writer = asyncio.get_running_loop().create_task(self._write(opened))
            return await self._read(opened)
        finally:
            if writer is not None:
                writer.cancel()
            with contextlib.suppress(aiohttp.ClientError, OSError):
                await opened.close()

    async def _read(self, opened: aiohttp.ClientWebSocketResponse) -> str:
        transport = opened.get_extra_info("socket")
        while True:
            # A relay with Nagle's algorithm on holds its next frame back until the last one is
            # acknowledged, and Linux delays that by 40 ms; it forgets this option, so each time.
            with contextlib.suppress(OSError, AttributeError):
                transport.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            message = await opened.receive()
            match message.type:
                case aiohttp.WSMsgType.TEXT:
                    await self._deliver(RelayText(self.url, message.data))
                case aiohttp.WSMsgType.BINARY:
                    # No relay has a reason to; the pool counts it as what it is, malformed.
                    await self._deliver(RelayText(self.url, "<binary>"))
                case aiohttp.WSMsgType.ERROR:
                    return describe_failure(message.data, TOO_LARGE)
                case _:
                    failure = opened.exception()
                    if failure is not None:
                        return describe_failure(failure, TOO_LARGE)
                    return _describe_close(opened.close_code)

    async def _write(self, opened: aiohttp.ClientWebSocketResponse) -> None:
        try:
            while True:
                await opened.send_str(await self._outgoing.get())
        except (aiohttp.ClientError, OSError) as exc:
            self.stop(describe_failure(exc, TOO_LARGE))


async def _no_redirect(
    _session: aiohttp.ClientSession, _context: object, what: aiohttp.TraceRequestRedirectParams
) -> None:
    # Else a relay leads us to whatever this host reaches, its own network too.
    what.response.close()
    raise aiohttp.ClientConnectionError("it sends us elsewhere")


def no_redirects() -> aiohttp.TraceConfig:
    """Return what makes a session refuse to be sent elsewhere: WebSockets have no option for it."""
    watch = aiohttp.TraceConfig()
    watch.on_request_redirect.append(_no_redirect)
    return watch


def _new_session(connector: aiohttp.BaseConnector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        trace_configs=[no_redirects()],
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"User-Agent": f"nostrvpn/{__version__}"},
        # No cookies: with one, a relay would know us again under another address.
        cookie_jar=aiohttp.DummyCookieJar(),
    )


def _is_at_home(
    ends: tuple[object, object], interfaces: Mapping[IPAddress, str], mark: int
) -> bool:
    """Whether a connection's own address is still ours, on the interface that leads to the relay."""
    addresses = []
    for name in ends:
        if not isinstance(name, tuple):
            return True  # no IP socket
        addresses.append(ip_address(str(name[0]).partition("%")[0]))
    ours, theirs = addresses
    if not is_ours(ours):
        return False
    source = source_towards(theirs, mark)
    known = interfaces.get(ours), interfaces.get(source) if source is not None else None
    return None in known or known[0] == known[1]


def _describe_close(code: int | None) -> str:
    return f"closed by the relay (code {code})" if code else "closed by the relay"
