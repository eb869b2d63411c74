"""TURN allocations (RFC 8656), by aioice's client; each remote endpoint of one is behind a shim.

An allocation is kept from ``allocate`` to ``release``: when it is lost or cannot be had, ``lost``
says why, and it is tried again. A refresh every 15 s keeps it and the mapping of our own NAT, and
notices a server that forgot us. aioice is imported at the first allocation, as most nodes never have
one. Its sockets are made here, to carry WireGuard's fwmark.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved, SystemRefused
from nostrvpn.io.shims import MAX_FRAME, Shim
from nostrvpn.io.turn_wire import TurnFailed, TurnServer, TurnWire, connect_turn
from nostrvpn.stun.binding import looks_like_stun, parse_stun

__all__ = ["TurnCalls", "TurnServers"]

# Servers in use at a time, and remote endpoints on each: a few candidates of each peer.
MAX_SERVERS: Final = 4
MAX_CHANNELS: Final = 256
# Remotes without a channel whose last check is kept until they have one, and how often each is told.
MAX_HEARD: Final = 32
HEARD_SECONDS: Final = 2.0
# NATs forget a UDP mapping after 30 s, the worst of them.
KEEPALIVE_SECONDS: Final = 15.0
# Between two refreshes, whatever ICMP says: anybody can forge it.
SUSPICION_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 5.0
RETRY_SECONDS: Final[tuple[float, ...]] = (1.0, 5.0, 30.0, 60.0, 300.0)
# An allocation that lasted so long was one; each is told to all peers.
STEADY_SECONDS: Final = 60.0
RELEASE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class TurnCalls:
    """Whom to tell. ``lost`` also says why an allocation could not be had; it is tried again.

    ``allocated(server, relayed endpoint)``, ``lost(server, reason)``; ``heard(server, remote,
    ufrag)``: a check for ``ufrag`` came from ``remote``, which has no channel (it is delivered once
    there is one);
    ``opened(number, endpoint)``, ``closed(number, reason)`` of a channel.
    """

    allocated: Callable[[str, Endpoint], None]
    lost: Callable[[str, str], None]
    heard: Callable[[str, Endpoint, str], None]
    opened: Callable[[int, Endpoint], None]
    closed: Callable[[int, str], None]


class TurnServers:
    """The allocations, by the name of their server. ``counters`` has drops by reason.

    ``mark`` is WireGuard's fwmark; ``tls`` replaces the system's certificate authorities.
    """

    def __init__(
        self,
        wireguard_port: int,
        calls: TurnCalls,
        *,
        mark: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.port = wireguard_port
        self.calls = calls
        self.counters: Counter[str] = Counter()
        self._mark = mark
        self._tls = tls
        self._keepers: dict[str, asyncio.Task[None]] = {}
        # With those that were released and still give their allocation back.
        self._tasks: set[asyncio.Task[None]] = set()
        self._allocations: dict[str, _Allocation] = {}

    def allocate(self, server: TurnServer) -> None:
        """Have an allocation there from now on; ``allocated`` or ``lost`` follows."""
        if server.name in self._keepers:
            return
        if len(self._keepers) >= MAX_SERVERS:
            reason = f"more than {MAX_SERVERS} TURN servers"
            asyncio.get_running_loop().call_soon(self.calls.lost, server.name, reason)
            return
        keeper = asyncio.get_running_loop().create_task(self._keep(server), name=server.name)
        self._keepers[server.name] = keeper
        self._tasks.add(keeper)
        keeper.add_done_callback(self._tasks.discard)

    def release(self, server: str) -> None:
        """Give the allocation back; its channels close."""
        keeper = self._keepers.pop(server, None)
        if keeper is not None:
            keeper.cancel()

    def open(self, number: int, server: str, remote: Endpoint) -> None:
        """Open a channel to ``remote``; ``opened`` or ``closed`` follows."""
        allocation = self._allocations.get(server)
        if allocation is None:
            self._later(self.calls.closed, number, "no allocation on this TURN server")
        else:
            allocation.open(number, remote)

    def close(self, number: int) -> None:
        """Close a channel; ``closed`` follows. Nothing if unknown."""
        for allocation in self._allocations.values():
            allocation.close_channel(number, "closed by us")

    async def stop(self) -> None:
        """Give all allocations back, within two seconds."""
        for name in list(self._keepers):
            self.release(name)
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=2 * RELEASE_SECONDS)

    def _later(self, call: Callable[..., None], *arguments: object) -> None:
        asyncio.get_running_loop().call_soon(call, *arguments)

    async def _keep(self, server: TurnServer) -> None:
        failures = 0
        while True:
            try:
                wire, relayed = await connect_turn(server, self._mark, self._tls)
            except TurnFailed as exc:
                reason = str(exc)
            else:
                began = asyncio.get_running_loop().time()
                reason = await self._hold(server.name, wire, relayed)
                if asyncio.get_running_loop().time() - began >= STEADY_SECONDS:
                    failures = 0
            self.calls.lost(server.name, reason)
            # Several nodes that lost the same server do not come back as one.
            pause = RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
            failures += 1
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))

    async def _hold(self, name: str, wire: TurnWire, relayed: Endpoint) -> str:
        """Hold an allocation until it is lost; return why."""
        allocation = _Allocation(name, wire, self)
        self._allocations[name] = allocation
        wire.receive = allocation.take
        try:
            self.calls.allocated(name, relayed)
            return await allocation.watch()
        finally:
            del self._allocations[name]
            allocation.close_all()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RELEASE_SECONDS):
                    await wire.close()


@dataclass(slots=True)
class _TurnChannel:
    remote: Endpoint
    shim: Shim
    task: asyncio.Task[None] | None = None


class _Allocation:
    """One allocation that lives, and the channels on it."""

    def __init__(self, name: str, wire: TurnWire, owner: TurnServers) -> None:
        self._name = name
        self._wire = wire
        self._owner = owner
        self.channels: dict[int, _TurnChannel] = {}
        self._numbers: dict[Endpoint, int] = {}
        # When each was told, and its last check.
        self._heard: OrderedDict[Endpoint, tuple[float, bytes]] = OrderedDict()

    async def watch(self) -> str:
        """Return when the allocation is gone, with the reason."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KEEPALIVE_SECONDS):
                    await self._wire.suspicion.wait()
            if self._wire.failure:
                return self._wire.failure
            self._wire.suspicion.clear()
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await self._wire.refresh()
            except TimeoutError:
                return "the TURN server does not answer any more"
            except TurnFailed as exc:
                return str(exc)
            await asyncio.sleep(SUSPICION_SECONDS)

    def open(self, number: int, remote: Endpoint) -> None:
        calls = self._owner.calls
        loop = asyncio.get_running_loop()
        known = self._numbers.get(remote)
        if known is not None or number in self.channels:
            loop.call_soon(calls.closed, number, f"channel {known or number} leads there already")
        elif len(self.channels) >= MAX_CHANNELS:
            loop.call_soon(calls.closed, number, f"more than {MAX_CHANNELS} channels")
        else:
            try:
                shim = Shim(number, self._owner.port, self._owner.counters)
            except SystemRefused as exc:
                loop.call_soon(calls.closed, number, str(exc))
                return
            channel = _TurnChannel(remote, shim)
            self.channels[number] = channel
            self._numbers[remote] = number
            channel.task = loop.create_task(self._carry(number, channel))
            # Not at the end of the task itself: cancelled before its first step, it has none.
            channel.task.add_done_callback(lambda _: shim.close())
            loop.call_soon(calls.opened, number, shim.endpoint)
            _, check = self._heard.pop(remote, (0.0, b""))
            if check:
                loop.call_soon(shim.deliver, check)

    def close_channel(self, number: int, reason: str) -> None:
        """Close it and say so; nothing if it is not ours."""
        channel = self.channels.pop(number, None)
        if channel is None:
            return
        del self._numbers[channel.remote]
        if channel.task is not None and channel.task is not asyncio.current_task():
            channel.task.cancel()
        asyncio.get_running_loop().call_soon(self._owner.calls.closed, number, reason)

    def close_all(self) -> None:
        """Close all channels, as the allocation is gone."""
        for number in list(self.channels):
            self.close_channel(number, f"the allocation on {self._name} is gone")

    def take(self, data: bytes, address: tuple[str, int]) -> None:
        """Pass on what came from ``address``, which we have a permission for."""
        counters = self._owner.counters
        remote = Endpoint(ip_address(address[0]), address[1])
        if not 0 < len(data) <= MAX_FRAME:
            counters["wrong size"] += 1
            return
        number = self._numbers.get(remote)
        if number is not None:
            self.channels[number].shim.deliver(data)
        elif looks_like_stun(data):
            self._hear(remote, data)
        else:
            # WireGuard's packets begin nothing: a path is made by checks.
            counters["unknown remote"] += 1

    def _hear(self, remote: Endpoint, check: bytes) -> None:
        now = asyncio.get_running_loop().time()
        told_at, _ = self._heard.get(remote, (-HEARD_SECONDS, b""))
        is_due = now - told_at >= HEARD_SECONDS
        self._heard[remote] = (now if is_due else told_at, check)
        if len(self._heard) > MAX_HEARD:
            self._heard.popitem(last=False)
        if is_due:
            ufrag = ""
            with contextlib.suppress(PeerMisbehaved):
                ufrag = parse_stun(check).username.partition(":")[0]
            self._owner.calls.heard(self._name, remote, ufrag)

    async def _carry(self, number: int, channel: _TurnChannel) -> None:
        wire, counters = self._wire, self._owner.counters
        address = (str(channel.remote.ip), channel.remote.port)
        try:
            while True:
                data = await channel.shim.receive()
                if wire.is_congested():
                    counters["congested"] += 1
                else:
                    await wire.send(data, address)
        except (TurnFailed, OSError) as exc:
            self.close_channel(number, str(exc))
