"""Routers for the port mapper in virtual time: what they speak, how they fail, and a clock."""

from __future__ import annotations

import heapq
import itertools
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from nostrvpn.endpoint import Endpoint
from nostrvpn.machine import Entropy, Moment, Tick
from nostrvpn.portmap.events import (
    DatagramReceived,
    GatewayChanged,
    MappedChanged,
    SendDatagram,
    UpnpCheck,
    UpnpDone,
    UpnpFailed,
    UpnpFind,
    UpnpMap,
    UpnpUnmap,
)
from nostrvpn.portmap.mapper import PortMapper

PORT = 40000
GATEWAY = IPv4Address("192.168.1.1")
LOCAL = IPv4Address("192.168.1.2")
EXTERNAL = IPv4Address("11.0.1.2")


@dataclass
class Router:
    """``mappings``: external port -> (protocol, when it ends). The knobs: what it does wrong."""

    speaks: frozenset[str] = frozenset({"pcp", "nat_pmp", "upnp"})
    ip: Any = EXTERNAL
    max_lease: int = 1 << 31
    taken: set[int] = field(default_factory=set)
    pcp_error: int = 0
    natpmp_error: int = 0
    upnp_error: int = 0
    hold_s: int = 0
    answers_from: Endpoint | None = None
    up: bool = True
    mappings: dict[int, tuple[str, float]] = field(default_factory=dict)
    booted: float = -5000.0
    requests: list[tuple[float, str]] = field(default_factory=list)

    def reboot(self, now: float) -> None:
        self.mappings.clear()
        self.booted = now

    def mapped(self, now: float) -> dict[int, str]:
        return {port: by for port, (by, ends) in self.mappings.items() if ends > now}

    def datagram(self, data: bytes, now: float) -> bytes | None:
        if data[0] == 2 and "pcp" in self.speaks:
            return self._pcp(data, now)
        if "nat_pmp" not in self.speaks:
            # RFC 6887 section 9 and RFC 6886 section 3.5: a version that is not spoken.
            return (
                struct.pack("!BBBBII12x", 2, 0x80, 0, 1, 0, self._epoch(now))
                if ("pcp" in self.speaks)
                else None
            )
        if data[0] == 2:
            return struct.pack("!BBHI", 0, 0x80, 1, self._epoch(now))
        return self._natpmp(data, now)

    def _pcp(self, data: bytes, now: float) -> bytes:
        opcode, lifetime = struct.unpack_from("!xB2xI", data)
        if opcode == 0:
            self.requests.append((now, "pcp look"))
            return struct.pack("!BBBBII12x", 2, 0x80, 0, 0, 0, self._epoch(now))
        self.requests.append((now, "pcp map" if lifetime else "pcp unmap"))
        nonce, protocol, internal, wished = struct.unpack_from("!12sB3xHH", data, 24)
        external = self._take(wished, internal, lifetime, "pcp", now) if not self.pcp_error else 0
        lifetime = self.hold_s if self.pcp_error else min(lifetime, self.max_lease)
        head = struct.pack("!BBBBII12x", 2, 0x81, 0, self.pcp_error, lifetime, self._epoch(now))
        tail = struct.pack("!12sB3xHH16s", nonce, protocol, internal, external, packed(self.ip))
        return head + tail

    def _natpmp(self, data: bytes, now: float) -> bytes:
        epoch, error = self._epoch(now), self.natpmp_error
        if data[1] == 0:
            self.requests.append((now, "nat_pmp look"))
            return struct.pack("!BBHI4s", 0, 0x80, 0, epoch, self.ip.packed)
        _, _, _, internal, wished, lifetime = struct.unpack("!BBHHHI", data)
        self.requests.append((now, "nat_pmp map" if lifetime else "nat_pmp unmap"))
        port = self._take(wished, internal, lifetime, "nat_pmp", now) if not error else 0
        lifetime = min(lifetime, self.max_lease)
        return struct.pack("!BBHIHHI", 0, 0x81, error, epoch, internal, port, lifetime)

    def upnp(self, request: Any, now: float) -> UpnpDone | UpnpFailed | None:
        if "upnp" not in self.speaks or not self.up:
            return UpnpFailed(request.serial, 0)
        match request:
            case UpnpMap():
                self.requests.append((now, "upnp map"))
                if self.upnp_error == 725 and request.lease_s:
                    return UpnpFailed(request.serial, 725)
                if self.upnp_error not in (0, 725):
                    return UpnpFailed(request.serial, self.upnp_error)
                if request.external_port in self.taken:
                    return UpnpFailed(request.serial, 718)
                ends = now + request.lease_s if request.lease_s else float("inf")
                self.mappings[request.external_port] = ("upnp", ends)
            case UpnpCheck() if request.external_port not in self.mapped(now):
                return UpnpFailed(request.serial, 714)
            case UpnpUnmap():
                self.mappings.pop(request.external_port, None)
        return UpnpDone(request.serial, None if isinstance(request, UpnpFind) else self.ip)

    def _epoch(self, now: float) -> int:
        return int(now - self.booted)

    def _take(self, wished: int, internal: int, lifetime: int, by: str, now: float) -> int:
        if not lifetime:
            self.mappings = {p: m for p, m in self.mappings.items() if m[0] != by}
            return 0
        kept = next((p for p, m in self.mappings.items() if m[0] == by and m[1] > now), None)
        free = (p for p in itertools.chain([wished or internal], range(1024, 65536)))
        port = kept or next(p for p in free if p not in self.taken)
        self.mappings[port] = (by, now + min(lifetime, self.max_lease))
        return port


class World:
    """One host with a PortMapper, one router, a lossy cable and a clock. Times are seconds."""

    def __init__(self, router: Router, *, seed: int = 0, loss: float = 0.0) -> None:
        self.router = router
        self.loss = loss
        self.now = 1000.0
        self.mapper = PortMapper(PORT)
        self.told: list[tuple[float, tuple[Endpoint, ...]]] = []
        self.steps = 0
        self._rng = random.Random(seed)
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.server = Endpoint(GATEWAY, 5351)

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return self.told[-1][1] if self.told else ()

    @property
    def report(self) -> Any:
        return self.mapper.report(self.now)

    def join(self, gateway: Any = GATEWAY, local: Any = LOCAL) -> None:
        self.server = Endpoint(gateway, 5351)
        self.step(GatewayChanged(gateway, local))

    def step(self, event: Any) -> None:
        self.steps += 1
        seed = self._rng.randbytes(32)
        for effect in self.mapper.step(event, Moment(self.now, 0.0, Entropy(seed))):
            self._perform(effect)

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while True:
            deadline = self.mapper.deadline
            times = [
                t for t in (deadline, self._queue[0][0] if self._queue else None) if t is not None
            ]
            if not times or min(times) > until:
                break
            at = min(times)
            assert at >= self.now - 1e-9, "a deadline in the past: the clock would stand still"
            self.now = max(self.now, at)
            if self._queue and self._queue[0][0] <= self.now:
                heapq.heappop(self._queue)[2]()
            else:
                before = self.mapper.deadline
                self.step(Tick())
                assert self.mapper.deadline != before, "a tick that does nothing"
        self.now = until

    def later(self, delay: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay, next(self._order), call))

    def _perform(self, effect: Any) -> None:
        if isinstance(effect, MappedChanged):
            self.told.append((self.now, effect.endpoints))
        elif isinstance(effect, SendDatagram):
            assert effect.destination == self.server
            if not self._lost():
                self.later(self._rng.uniform(0.001, 0.02), lambda: self._arrive(effect.data))
        else:
            wait = 0.1 if self.router.up and "upnp" in self.router.speaks else 2.5
            self.later(wait, lambda: self._upnp(effect))

    def _arrive(self, data: bytes) -> None:
        answer = self.router.datagram(data, self.now) if self.router.up else None
        if answer is not None and not self._lost():
            source = self.router.answers_from or self.server
            event = DatagramReceived(answer, source)
            self.later(self._rng.uniform(0.001, 0.02), lambda: self.step(event))

    def _upnp(self, effect: Any) -> None:
        event = self.router.upnp(effect, self.now)
        if event is not None:
            self.step(event)

    def _lost(self) -> bool:
        return self._rng.random() < self.loss


def packed(ip: Any) -> bytes:
    ip = ip_address(str(ip))
    return ip.packed if isinstance(ip, IPv6Address) else bytes(10) + b"\xff\xff" + ip.packed
