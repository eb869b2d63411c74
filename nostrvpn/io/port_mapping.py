"""Port mapping on the wire: one PortMapper per IP version, its sockets, timers and UPnP requests."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, assert_never

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.host.state import ROUTE_PROTOCOL
from nostrvpn.io.rtnetlink import refused
from nostrvpn.io.upnp import UpnpFailure, UpnpRouter, socket_on
from nostrvpn.machine import Entropy, Moment, Tick
from nostrvpn.portmap.datagrams import GATEWAY_PORT
from nostrvpn.portmap.events import (
    DatagramReceived,
    GatewayChanged,
    GatewayLost,
    MappedChanged,
    PortMapEffect,
    PortMapEvent,
    SendDatagram,
    Stop,
    UpnpCheck,
    UpnpDone,
    UpnpFailed,
    UpnpFind,
    UpnpMap,
    UpnpRequest,
    UpnpUnmap,
)
from nostrvpn.portmap.gateway import LEASE
from nostrvpn.portmap.lease import PortMapReport
from nostrvpn.portmap.mapper import PortMapper

__all__ = ["DefaultGateway", "PortMapping", "default_gateways"]

# Where routers announce that they restarted or have a new address (RFC 6886 section 3.2.1, RFC 6887
# section 14.1): all hosts of the link.
ANNOUNCE_PORT = 5350
ANNOUNCE_GROUPS = {4: "224.0.0.1", 6: "ff02::1"}
# More than any message of PCP (RFC 6887 section 7).
PACKET_LIMIT = 1101
# Datagrams taken per wake-up, so that a flood leaves the loop time for everything else.
BATCH = 32
# The goodbye to a router is not worth more of the user's time.
CLOSE_TIMEOUT = 1.5
# Ours: any address of the public internet; the kernel is asked from which of ours it would be reached.
SOMEWHERE_V6 = "2000::1"


@dataclass(frozen=True, slots=True)
class DefaultGateway:
    """A default route: the next hop, our address towards it, and the interface."""

    ip: IPAddress
    local: IPAddress
    interface: str


class PortMapping:
    """Keeps UDP ``port`` mapped at the default gateways; must be used within a running event loop.

    ``mark`` is the firewall mark of its packets (0: none). ``on_mapped`` is called with all public
    endpoints that lead to the port whenever they change, not after ``close``.
    """

    def __init__(
        self,
        port: int,
        mark: int,
        on_mapped: Callable[[tuple[Endpoint, ...]], None],
        *,
        lease_s: int = LEASE,
    ) -> None:
        self._on_mapped = on_mapped
        self._closed = False
        self._sides = {v: _Side(port, mark, lease_s, self._tell) for v in (4, 6)}

    def gateways_changed(self, gateways: Iterable[DefaultGateway]) -> None:
        """Take the default gateways (see ``default_gateways``) at start and when the network moved.

        The first of each IP version counts. The same ones again make it look soon whether the
        mappings are still there.
        """
        chosen: dict[int, DefaultGateway] = {}
        for gateway in gateways:
            chosen.setdefault(gateway.ip.version, gateway)
        for version, side in self._sides.items():
            side.use(chosen.get(version))

    def report(self) -> dict[str, object]:
        """Return what ``netcheck`` shows as ``port_mapping``; ``ipv6`` is the same for IPv6."""
        v4, v6 = (self._sides[version].report().as_json() for version in (4, 6))
        return {**v4, "ipv6": v6}

    @property
    def counters(self) -> Counter[str]:
        """What was dropped, by reason."""
        return sum((side.counters for side in self._sides.values()), Counter())

    async def close(self) -> None:
        """Give the mappings back, in bounded time, and close everything."""
        self._closed = True
        await asyncio.gather(*(side.close() for side in self._sides.values()))

    def _tell(self) -> None:
        if not self._closed:
            self._on_mapped(tuple(e for side in self._sides.values() for e in side.endpoints))


class _Side:
    """One IP version: a machine, and what carries out its effects."""

    def __init__(self, port: int, mark: int, lease_s: int, changed: Callable[[], None]) -> None:
        self.endpoints: tuple[Endpoint, ...] = ()
        self._mapper = PortMapper(port, lease_s=lease_s)
        self._mark = mark
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._gateway: DefaultGateway | None = None
        self._sockets: list[socket.socket] = []
        self._timer: asyncio.TimerHandle | None = None
        self._router: UpnpRouter | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._upnp_turn = asyncio.Lock()
        self._done = asyncio.Event()

    @property
    def counters(self) -> Counter[str]:
        return self._mapper.counters

    def report(self) -> PortMapReport:
        return self._mapper.report(_now())

    def use(self, gateway: DefaultGateway | None) -> None:
        if gateway != self._gateway:
            self._leave()
            if gateway is not None:
                try:
                    self._open(gateway)
                except OSError:
                    # The address or the interface is gone again; the next change tells.
                    self._leave()
                    gateway = None
            self._gateway = gateway
            # The same addresses on another interface are another network.
            self._step(GatewayLost())
        self._step(GatewayChanged(gateway.ip, gateway.local) if gateway else GatewayLost())

    async def close(self) -> None:
        self._step(Stop())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._done.wait()
        if self._timer is not None:
            self._timer.cancel()
        self._leave()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _open(self, gateway: DefaultGateway) -> None:
        family = socket.AF_INET if gateway.ip.version == 4 else socket.AF_INET6
        scope = socket.if_nametoindex(gateway.interface)
        sock = socket_on(family, socket.SOCK_DGRAM, gateway.interface, self._mark)
        self._sockets.append(sock)
        sock.bind(_address(gateway.local, 0, scope))
        # Connected, so that the kernel drops what others send.
        sock.connect(_address(gateway.ip, GATEWAY_PORT, scope))
        self._loop.add_reader(sock, self._readable, sock, False)
        # To hear announcements is better, but not needed: another program may own the port.
        with contextlib.suppress(OSError):
            heard = socket_on(family, socket.SOCK_DGRAM, gateway.interface, 0)
            self._sockets.append(heard)
            heard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            group = ip_address(ANNOUNCE_GROUPS[gateway.ip.version])
            heard.bind(_address(group, ANNOUNCE_PORT, scope))
            self._loop.add_reader(heard, self._readable, heard, True)
        if isinstance(gateway.ip, IPv4Address) and isinstance(gateway.local, IPv4Address):
            self._router = UpnpRouter(gateway.ip, gateway.local, gateway.interface, self._mark)

    def _leave(self) -> None:
        """Close the sockets, and end the requests to the router that was."""
        for sock in self._sockets:
            self._loop.remove_reader(sock)
            sock.close()
        self._sockets.clear()
        for task in self._tasks:
            task.cancel()
        if self._router is not None:
            self._start(self._router.close())
        self._router = None

    def _readable(self, sock: socket.socket, announced: bool) -> None:
        for _ in range(BATCH):
            try:
                data, address = sock.recvfrom(PACKET_LIMIT)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error: the router has no such port
            # A link-local address comes with its interface behind "%".
            source = Endpoint(ip_address(address[0].partition("%")[0]), address[1])
            self._step(DatagramReceived(data, source, announced))
            if sock.fileno() < 0:
                return

    def _step(self, event: PortMapEvent) -> None:
        # Randomness as the daemon gives it to each step.
        moment = Moment(_now(), time.time(), Entropy(os.urandom(32)))
        for effect in self._mapper.step(event, moment):
            self._perform(effect)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (deadline := self._mapper.deadline) is not None:
            self._timer = self._loop.call_later(max(0.0, deadline - _now()), self._step, Tick())
        if self._mapper.stopped:
            self._done.set()

    def _perform(self, effect: PortMapEffect) -> None:
        match effect:
            case SendDatagram():
                # What cannot be sent is repeated, and then the router is silent.
                with contextlib.suppress(OSError):
                    self._sockets[0].send(effect.data)
            case MappedChanged():
                self.endpoints = effect.endpoints
                self._changed()
            case _:
                if self._router is not None:
                    self._start(self._request(self._router, effect))

    def _start(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _request(self, router: UpnpRouter, request: UpnpRequest) -> None:
        event: UpnpDone | UpnpFailed
        try:
            async with self._upnp_turn:
                ip = await _carry_out(router, request)
            event = UpnpDone(request.serial, ip)
        except UpnpFailure as exc:
            event = UpnpFailed(request.serial, exc.number, str(exc))
        self._step(event)


async def _carry_out(router: UpnpRouter, request: UpnpRequest) -> IPv4Address | None:
    match request:
        case UpnpFind():
            await router.find()
            return None
        case UpnpMap():
            return await router.map(request.external_port, request.internal, request.lease_s)
        case UpnpCheck():
            return await router.check(request.external_port, request.internal)
        case UpnpUnmap():
            await router.unmap(request.external_port, request.internal)
            return None
        case _:
            assert_never(request)


def default_gateways() -> tuple[DefaultGateway, ...]:
    """Return the default gateway of each IP version that has one, from the main table.

    Blocks. A default route without a next hop (PPP, a tunnel) has nobody to ask; ours do not count.
    """
    from nostrvpn.io.pyroute import IPRoute, NetlinkError

    try:
        with IPRoute() as route:
            found = (
                _default_gateway(route, family) for family in (socket.AF_INET, socket.AF_INET6)
            )
            return tuple(gateway for gateway in found if gateway is not None)
    except NetlinkError as exc:
        raise refused("reading the default routes", exc.code) from exc
    except OSError as exc:
        raise refused("reading the default routes", exc.errno or errno.EIO) from exc


def _default_gateway(route: Any, family: int) -> DefaultGateway | None:
    from nostrvpn.io.pyroute import NetlinkError

    messages = [
        message
        for message in route.get_routes(family=int(family), table=254)
        if message["dst_len"] == 0 and message["type"] == 1 and message["proto"] != ROUTE_PROTOCOL
    ]
    for message in sorted(messages, key=lambda message: message.get("priority") or 0):
        gateway, index = message.get("gateway"), message.get("oif")
        if gateway is None or index is None:
            continue
        target = gateway if family == socket.AF_INET else SOMEWHERE_V6
        try:
            way = next(iter(route.route("get", dst=target, oif=index, family=int(family))))
            local = ip_address(way.get("prefsrc"))
            return DefaultGateway(ip_address(gateway), local, socket.if_indextoname(index))
        except (NetlinkError, OSError, ValueError, StopIteration):
            continue  # no address yet, or the link went away meanwhile
    return None


def _address(ip: IPAddress, port: int, scope: int) -> tuple[Any, ...]:
    if isinstance(ip, IPv6Address):
        return (str(ip), port, 0, scope if ip.is_link_local or ip.is_multicast else 0)
    return (str(ip), port)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
