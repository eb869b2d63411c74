"""Messages to a peer through its own tunnel: a TCP port on our address there.

A frame is four bytes of length (network order) and the message's text; the receiver answers each with
one byte, so that the sender knows it was taken, and sends it by relays otherwise. One connection
carries one message: there are a few an hour, and nothing has to be kept alive.

Who speaks is told by the source address: WireGuard lets nobody use another's (cryptokey routing), and
both sockets are bound to the tunnel's interface, so nothing gets here by a cable.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final

from nostrvpn.endpoint import IPAddress

__all__ = ["PeerChannel"]

_LENGTH: Final = struct.Struct("!I")
_TAKEN: Final = b"\x06"  # ASCII ACK
# A message has 25,000 bytes at most (signaling/messages.py, market/messages.py), sealed half as much
# again; whoever says more is cut off.
MAX_FRAME: Final = 50_000
# How long a message may take, in either direction: several round trips of the slowest link.
SECONDS: Final = 8.0
MAX_INCOMING: Final = 64
MAX_INCOMING_PER_PEER: Final = 4
MAX_OUTGOING: Final = 64
# Linux ABI (linux/in.h, in6.h): bind before the address is on the interface. Not in Python's socket.
_FREEBIND: Final = {4: (socket.IPPROTO_IP, 15), 6: (socket.IPPROTO_IPV6, 78)}

_log = logging.getLogger(__name__)


class PeerChannel:
    """The channel of one node, on the running loop.

    ``heard(address, text)`` is called for each message, ``failed(token)`` for each that did not get
    through. ``counters``: "sent", "failed", "heard", "bad_frame", "slow", "crowded".
    """

    def __init__(
        self,
        port: int,
        heard: Callable[[IPAddress, str], None],
        failed: Callable[[str], None],
        mark: int = 0,
    ) -> None:
        """``mark`` is the packets' fwmark, by which they are led past the rules of an exit."""
        self._mark = mark
        self._port = port
        self._heard = heard
        self._failed = failed
        self._address: IPAddress | None = None
        self._interface = ""
        self._server: asyncio.Server | None = None
        self._incoming: Counter[str] = Counter()
        self._sending: set[asyncio.Task[None]] = set()
        self.counters: Counter[str] = Counter()
        self.error: str | None = None

    async def use(self, interface: str, address: IPAddress | None) -> None:
        """Listen on our own address in the tunnel from now on, or nowhere (None)."""
        if (interface, address) == (self._interface, self._address) and self.error is None:
            return
        await self._close_server()
        self._interface, self._address, self.error = interface, address, None
        if address is None:
            return
        try:
            sock = self._socket(self._port)
            try:
                self._server = await asyncio.start_server(self._serve, sock=sock, limit=MAX_FRAME)
            except BaseException:
                sock.close()
                raise
        except OSError as exc:
            # Messages go by relays then, and a later call tries again.
            self.error = f"no socket for messages through the tunnel: {exc.strerror or exc}"
            _log.warning("%s", self.error)

    def send(self, address: IPAddress, text: str, token: str) -> None:
        """Send one message; ``failed(token)`` if it was not taken within ``SECONDS``."""
        if self._address is None or len(self._sending) >= MAX_OUTGOING:
            self.counters["failed"] += 1
            asyncio.get_running_loop().call_soon(self._failed, token)
            return
        task = asyncio.get_running_loop().create_task(self._send(address, text.encode(), token))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def close(self) -> None:
        """Stop listening, and drop what is under way."""
        for task in tuple(self._sending):
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        await self._close_server()
        self._address = None

    async def _close_server(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
            await server.wait_closed()

    def _socket(self, port: int) -> socket.socket:
        assert self._address is not None
        version = self._address.version
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._interface.encode())
            sock.setsockopt(*_FREEBIND[version], 1)
            if self._mark:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
            sock.bind((str(self._address), port))
        except BaseException:
            sock.close()
            raise
        return sock

    async def _send(self, address: IPAddress, data: bytes, token: str) -> None:
        try:
            async with asyncio.timeout(SECONDS):
                await self._deliver(address, data)
        except (OSError, TimeoutError, EOFError) as exc:
            self.counters["failed"] += 1
            _log.debug("a message through the tunnel to %s failed: %s", address, exc)
            self._failed(token)
        else:
            self.counters["sent"] += 1

    async def _deliver(self, address: IPAddress, data: bytes) -> None:
        sock = self._socket(0)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (str(address), self._port))
            reader, writer = await asyncio.open_connection(sock=sock)
        except BaseException:
            sock.close()
            raise
        try:
            writer.write(_LENGTH.pack(len(data)) + data)
            await writer.drain()
            if await reader.readexactly(1) != _TAKEN:
                raise EOFError("not taken")
        finally:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source = str(writer.get_extra_info("peername")[0])
        crowded = (
            self._incoming.total() >= MAX_INCOMING
            or self._incoming[source] >= MAX_INCOMING_PER_PEER
        )
        if crowded:
            self.counters["crowded"] += 1
            writer.transport.abort()
            return
        self._incoming[source] += 1
        try:
            async with asyncio.timeout(SECONDS):
                await self._take(ip_address(source.partition("%")[0]), reader, writer)
        except TimeoutError:
            self.counters["slow"] += 1
        except (OSError, EOFError, ValueError):
            self.counters["bad_frame"] += 1
        except asyncio.CancelledError:
            # The daemon ends. Python 3.11 would log a cancelled connection as an error.
            return
        finally:
            self._incoming[source] -= 1
            if not self._incoming[source]:
                del self._incoming[source]
            writer.transport.abort()

    async def _take(
        self, source: IPAddress, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > MAX_FRAME:
            raise ValueError("a frame longer than any message")
        text = (await reader.readexactly(length)).decode()
        # Before anything is waited for: what was taken must not be lost with its connection.
        self.counters["heard"] += 1
        self._heard(source, text)
        writer.write(_TAKEN)
        with contextlib.suppress(OSError):
            await writer.drain()
            # The sender closes: an abort of ours could overtake the answer.
            await reader.read(1)
