"""A relay at work: the machine, the lent ports, the kernel's table.

Carries the machine's effects out. Each pair is forwarded in user space at once; a worker thread then
tells the kernel, which sees packets first and so takes over. If it will not, nothing changes. What
comes while the worker is busy is told all at once, so that many pairs cost as much as one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Protocol, TypeVar

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.errors import SystemRefused
from nostrvpn.io.forward_policy import forward_obstacles
from nostrvpn.io.relay_ports import ChannelSender, RelayPorts
from nostrvpn.io.relay_table import RelayTable, is_for_kernel
from nostrvpn.machine import Moment, Tick
from nostrvpn.relaying.events import (
    Channel,
    ChannelReceived,
    CloseChannel,
    ClosePort,
    CountersRead,
    Forward,
    OpenPort,
    PortOpened,
    PortReceived,
    PortRefused,
    RelayEffect,
    RelayEvent,
    SendControl,
    SendFrom,
    Unforward,
)
from nostrvpn.relaying.server import RelayServer
from nostrvpn.relaying.settings import RelaySettings

__all__ = ["COUNTERS_EVERY_S", "RelayChannels", "RelayHost"]

T = TypeVar("T")
TableChange = OpenPort | ClosePort | Forward | Unforward

# Fine enough to stop a month's last bytes and an idle port in time, and 10 ms of nft each.
COUNTERS_EVERY_S = 15.0

_log = logging.getLogger(__name__)


class RelayChannels(ChannelSender, Protocol):
    """Whoever has the WebSockets of clients."""

    def close_channel(self, number: int) -> None:
        """Close a WebSocket; one that is gone is fine."""
        ...


class RelayHost:
    """Runs ``server`` on the running loop, in this network namespace.

    ``send_control(data, destination)`` sends from WireGuard's port. ``counters``: "nft_refused",
    "forward_dropped" (pairs left to user space for another firewall's sake), "kernel" (those that
    the kernel took) and "failed" (work that ended in an error nobody foresaw). ``counted`` is called
    whenever the machine was told what was carried.
    """

    def __init__(
        self,
        server: RelayServer,
        settings: RelaySettings,
        *,
        mark: int,
        moment: Callable[[], Moment],
        send_control: Callable[[bytes, Endpoint], object],
        channels: RelayChannels,
    ) -> None:
        self._server = server
        self._moment = moment
        self._send_control = send_control
        self._channels = channels
        self._mbit_per_s = settings.mbit_per_s
        self.ports = RelayPorts(mark, settings.mbit_per_s, self._at_port, channels)
        self._table: RelayTable | None = None
        self._untold: list[TableChange] = []
        self._untold_lock = Lock()
        self._worker = ThreadPoolExecutor(1, "relay table")
        self._kernel_carried: dict[int, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._reader: asyncio.Task[None] | None = None
        # What the worker knows: the pairs to forward, and what another firewall would drop.
        self._joined: dict[int, Forward] = {}
        self._obstacles: dict[int, str] = {}
        self._untold_yet = False
        self._refused: str | None = None
        self.failure: str | None = None
        """The last error that nobody foresaw; the work goes on."""
        self._logged: set[str] = set()
        self.counted: Callable[[], None] = lambda: None
        self.counters: Counter[str] = Counter()

    async def start(self, interface: str, uplinks: tuple[str, ...] | None) -> None:
        """Make the kernel forward between ``uplinks``; None leaves all to user space."""
        if uplinks is not None:
            table = RelayTable(interface, self._mbit_per_s)
            try:
                await self._in_worker(lambda: table.create(uplinks))
                self._table = table
                await self._in_worker(self._look_around)
            except SystemRefused as exc:
                self._refused = str(exc)
        self._reader = asyncio.get_running_loop().create_task(self._read_regularly())

    @property
    def refusal(self) -> str | None:
        """Why the kernel does not forward, so that user space must; None if it does."""
        return self._refused or next(iter(self._obstacles.values()), None)

    async def stop(self) -> None:
        """Give all ports back, remove the table, and put the host's routing back."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
        self.ports.close_all()
        table, self._table = self._table, None
        try:
            if table is not None:
                await self._in_worker(table.remove)
        finally:
            self._worker.shutdown()

    def step(self, event: RelayEvent) -> None:
        """Give the machine an event, and do what it says."""
        self._perform(self._server.step(event, self._moment()))

    def channel_frame(self, number: int, data: bytes) -> None:
        """Take a binary frame of a client's WebSocket."""
        if not self.ports.channel_frame(number, data):
            self.step(ChannelReceived(number, data))

    async def read_counters(self) -> None:
        """Tell the machine what was carried; done regularly by itself."""
        if self._table is not None:
            try:
                self._kernel_carried = await self._in_worker(self._table.read_counters)
            except SystemRefused:
                self.counters["nft_refused"] += 1
        self.step(CountersRead(Counter(self._kernel_carried) + self.ports.carried))
        self.counted()

    async def look_around(self) -> None:
        """See what other firewalls drop now, and let the kernel forward or not; done regularly too."""
        if self._table is not None:
            await self._in_worker(self._look_around)

    async def read_drops(self) -> Counter[str]:
        """Return how many datagrams were dropped, by reason, in the kernel and here."""
        drops = Counter(self.ports.drops)
        if self._table is not None:
            drops.update(await self._in_worker(self._table.read_drops))
        return drops

    async def settled(self) -> None:
        """Wait until the kernel has what it was told so far."""
        await self._in_worker(lambda: None)

    async def _read_regularly(self) -> None:
        while True:
            await asyncio.sleep(COUNTERS_EVERY_S)
            # One after the other: what ails the first must not keep the second from the cap.
            for work in (self.look_around, self.read_counters):
                try:
                    await work()
                except Exception as exc:
                    self._failed(exc)

    def _failed(self, exc: Exception) -> None:
        """Count an error that nobody foresaw, and log each kind once."""
        kind = type(exc).__name__
        self.failure = f"{kind}: {exc}"
        self.counters["failed"] += 1
        if kind not in self._logged:
            self._logged.add(kind)
            _log.error("relaying goes on after %s", self.failure, exc_info=exc)

    def _at_port(
        self, port: int, data: bytes, source: Endpoint, local_ip: IPAddress | None
    ) -> None:
        self.step(PortReceived(port, data, source, local_ip))

    def _perform(self, effects: list[RelayEffect]) -> None:
        for effect in effects:
            match effect:
                case OpenPort(port):
                    opened = self.ports.open(port)
                    if opened:
                        self._tell_kernel(effect)
                    self.step(PortOpened(port) if opened else PortRefused(port))
                case ClosePort(port):
                    self.ports.close(port)
                    self._kernel_carried.pop(port, None)
                    self._tell_kernel(effect)
                case SendFrom(port, data, destination, local_ip):
                    self.ports.send(port, data, destination, local_ip)
                case SendControl(data, Channel(number)):
                    self._channels.send_frame(number, data)
                case SendControl(data, Endpoint() as destination):
                    self._send_control(data, destination)
                case CloseChannel(number):
                    self._channels.close_channel(number)
                case Forward():
                    self.ports.forward(effect.port, effect.a, effect.b)
                    self._tell_kernel(effect)
                case Unforward(port):
                    self.ports.unforward(port)
                    self._tell_kernel(effect)
        self._set_timer()

    def _tell_kernel(self, change: TableChange) -> None:
        if self._table is None:
            return
        with self._untold_lock:
            self._untold.append(change)
            is_first = len(self._untold) == 1
        if is_first:
            self._worker.submit(self._tell_all, self._table)

    def _tell_all(self, table: RelayTable) -> None:
        """Give the kernel what has gathered; in the worker, where nobody waits for an error."""
        with self._untold_lock:
            changes, self._untold = self._untold, []
        works: list[Callable[[], None]] = [table.look_again]
        if any(isinstance(change, Forward) for change in changes):
            works.append(self._look_around)
        works += [partial(self._note, change, table) for change in changes]
        works.append(partial(self._apply, table))
        for work in works:
            self._safely(work)

    def tables_changed(self) -> None:
        """Somebody removed of our nftables tables: look soon whether it was the relay's."""
        if self._table is not None:
            self._worker.submit(self._safely, self._look_around)

    def _safely(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as exc:
            self._failed(exc)

    def _look_around(self) -> None:
        """Find out what other firewalls drop; if that is news, each pair gets its other way.

        What could not be told before is told again.
        """
        before, self._obstacles = self._obstacles, forward_obstacles()
        table = self._table
        if table is None:
            return
        try:
            self._mend(table)
        except SystemRefused as exc:
            self._refused = str(exc)
            self.counters["nft_refused"] += 1
            return
        if before != self._obstacles and self._joined:
            for forward in tuple(self._joined.values()):
                self._note(forward, table)
            self._untold_yet = True
        if self._untold_yet:
            self._apply(table)

    def _mend(self, table: RelayTable) -> None:
        """Undo what others did to the table and to the host's forwarding; SystemRefused."""
        if table.mend():
            _log.warning("the relay's table had gone, and is made anew")
            self._untold_yet = True
        table.look_again()
        for forward in self._joined.values():
            if self._obstacle(forward) is None and is_for_kernel(forward.a, forward.b):
                table.route_at((forward.a, forward.b))

    def _note(self, change: TableChange, table: RelayTable) -> None:
        match change:
            case OpenPort(port):
                table.open(port)
            case ClosePort(port):
                self._joined.pop(port, None)
                table.close(port)
            case Unforward(port):
                self._joined.pop(port, None)
                table.unforward(port)
            case Forward(port, a, b):
                self._joined[port] = change
                if self._is_for_kernel(change, table):
                    table.forward(port, a, b)
                    self.counters["kernel"] += 1
                else:
                    table.bridge(port, (a, b))

    def _is_for_kernel(self, forward: Forward, table: RelayTable) -> bool:
        a, b = forward.a, forward.b
        if not is_for_kernel(a, b):
            return False
        if self._obstacle(forward) is not None:
            self.counters["forward_dropped"] += 1
            return False
        try:
            table.route_at((a, b))
        except SystemRefused as exc:
            self._refused = str(exc)
            return False
        return True

    def _obstacle(self, forward: Forward) -> str | None:
        ip = forward.a.local_ip
        return None if ip is None else self._obstacles.get(ip.version)

    def _apply(self, table: RelayTable) -> None:
        self._untold_yet = True
        refused = table.apply()
        self._untold_yet = False
        self.counters["nft_refused"] += len(refused)
        self._refused = next(iter(refused.values()), None)

    async def _in_worker(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._server.deadline
        if deadline is not None:
            wait = max(0.05, deadline - self._moment().now)
            self._timer = asyncio.get_running_loop().call_later(wait, self.step, Tick())
