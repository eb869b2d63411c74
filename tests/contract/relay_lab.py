"""A relay and its clients in namespaces of their own, each client on a link of its own to the relay."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine
from ipaddress import ip_address
from typing import Any

from nostrvpn.endpoint import Endpoint
from nostrvpn.io.relay_host import RelayHost
from nostrvpn.machine import Entropy, Moment
from nostrvpn.relaying.events import AllocateReceived, Users
from nostrvpn.relaying.server import RelayServer
from nostrvpn.relaying.settings import RelaySettings
from nostrvpn.stun.binding import StunMessage, parse_stun
from nostrvpn.stun.relaying import Side, relay_user, render_allocate, render_bind, side_key

WAIT_S = 3.0
SECRET = bytes(range(32))
USER = relay_user(SECRET, "alice")
PAIR = "00112233aabbccdd"
CONTROL_PORT = 24001
TABLE = "nostrvpn_rl_relay"


class RelayLab:
    """Clients 1, 2, … at 10.N.0.2 and fd00:N::2; the relay at .1 of each."""

    def __init__(self, make_netns: Callable[[], Any], clients: int = 2) -> None:
        self.relay = make_netns()
        self.clients = [make_netns() for _ in range(clients)]
        for number, client in enumerate(self.clients, 1):
            self.relay.ip(
                *("link", "add", f"c{number}", "type", "veth"),
                *("peer", "name", "lan", "netns", client.name),
            )
            for netns, name, host in ((self.relay, f"c{number}", 1), (client, "lan", 2)):
                netns.ip("addr", "add", f"10.{number}.0.{host}/24", "dev", name)
                netns.ip("addr", "add", f"fd00:{number}::{host}/64", "dev", name, "nodad")
                netns.ip("link", "set", name, "up")
            client.ip("route", "add", "default", "via", f"10.{number}.0.1")
            client.ip("-6", "route", "add", "default", "via", f"fd00:{number}::1")

    def socket(self, client: int, family: int = 4, port: int = 0) -> socket.socket:
        """Return a UDP socket of a client."""

        def open_socket() -> socket.socket:
            sock = socket.socket(
                socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM
            )
            sock.bind(("", port))
            sock.settimeout(WAIT_S)
            return sock

        opened: socket.socket = self.clients[client - 1].call(open_socket)
        return opened


def relay_address(client: int, family: int, port: int) -> tuple[str, int]:
    """Return the relay's address on the link of ``client``."""
    return (f"10.{client}.0.1" if family == 4 else f"fd00:{client}::1", port)


class Channels:
    """WebSockets that are lists."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, bytes]] = []
        self.closed: list[int] = []

    def send_frame(self, number: int, data: bytes) -> bool:
        self.sent.append((number, data))
        return True

    def close_channel(self, number: int) -> None:
        self.closed.append(number)


class RunningRelay:
    """A RelayHost on an event loop of its own, in a thread that is in the relay's namespace.

    ``ahead`` is added to its clock.
    """

    uplinks = ("c1", "c2")

    def __init__(self, lab: RelayLab, *, kernel: bool = True, **settings: Any) -> None:
        self.lab = lab
        self.channels = Channels()
        self.ahead = 0.0
        self._kernel = kernel
        self._settings = RelaySettings(**settings)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> RunningRelay:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.call(self.host.stop())
            self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the relay's loop and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def step(self, event: Any) -> None:
        """Give the relay an event, and wait until the kernel knows what follows."""

        async def work() -> None:
            self.host.step(event)
            await self.host.settled()

        self.call(work())

    def settled(self) -> None:
        """Wait until the kernel has what it was told."""
        self.call(self.host.settled())

    def snapshot(self) -> Any:
        async def work() -> Any:
            await self.host.read_counters()
            return self.server.snapshot(self._moment())

        return self.call(work())

    def drops(self) -> Any:
        """Return what was dropped, by reason."""
        return self.call(self.host.read_drops())

    def forget_table(self) -> None:
        """Leave the table and the host's routing as they are at the end, as if it was killed."""
        self.host._table = None

    def _moment(self) -> Moment:
        now = time.monotonic() + self.ahead
        return Moment(now, time.time(), Entropy(os.urandom(32)))

    def _run(self) -> None:
        self.lab.relay._enter()
        self.loop = asyncio.new_event_loop()
        control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        control.bind(("", CONTROL_PORT))
        control.setblocking(False)

        def readable() -> None:
            data, address = control.recvfrom(2048)
            self.host.step(AllocateReceived(data, Endpoint(ip_address(address[0]), address[1])))

        async def begin() -> None:
            self.server = RelayServer(SECRET, self._settings)
            self.host = RelayHost(
                self.server,
                self._settings,
                mark=0,
                moment=self._moment,
                send_control=lambda data, to: control.sendto(data, (str(to.ip), to.port)),
                channels=self.channels,
            )
            await self.host.start("rl", self.uplinks if self._kernel else None)
            self.host.step(Users(frozenset([USER.name])))
            self.loop.add_reader(control, readable)

        self.loop.run_until_complete(begin())
        self._ready.set()
        self.loop.run_forever()
        self.loop.remove_reader(control)
        control.close()
        self.loop.close()


def exchange(sock: socket.socket, data: bytes, to: tuple[str, int]) -> StunMessage:
    """Send a request; return the answer to it."""
    sock.sendto(data, to)
    while True:
        answer, source = sock.recvfrom(2048)
        if source[:2] == to and answer[8:20] == data[8:20]:
            return parse_stun(answer)


def allocate(sock: socket.socket, client: int = 1, pair: str = PAIR) -> int:
    """Return the port that the relay lends."""
    data = render_allocate(os.urandom(12), USER, pair)
    answer = exchange(sock, data, relay_address(client, 4, CONTROL_PORT))
    assert answer.relayed is not None, answer.error_code
    return answer.relayed.port


def bind(sock: socket.socket, side: Side, to: tuple[str, int], pair: str = PAIR) -> bytes:
    """Bind a socket, by challenge; return the request that did it."""
    key = side_key(USER.key, pair, side)
    answer = exchange(sock, render_bind(os.urandom(12), pair, side, key, None), to)
    assert answer.error_code == 401
    data = render_bind(os.urandom(12), pair, side, key, answer.nonce)
    answer = exchange(sock, data, to)
    assert answer.mapped is not None
    assert answer.mapped.port == sock.getsockname()[1]
    assert answer.is_authentic(key)
    return data


def packet(number: int, size: int = 148, kind: int = 4) -> bytes:
    """Return what looks like a WireGuard packet."""
    return struct.pack("<IQ", kind, number).ljust(size, b"x")
