"""NATs of the simulator: pure, virtual time, a seed.

``ConeNat``    endpoint-independent mapping; filtering none (full cone), by address, or by port
``SymmetricNat``  a port per destination, filtering by address and port
``HardNat``    a port per flow: counted in steps, other hosts' flows in between, or drawn from a range;
               its table may be small
``LinuxNat``   conntrack with masquerade: keeps the port while the reply tuple is free. With
               ``accept_input`` a packet nobody asked for makes an entry for the router itself, and
               our own later flow to its sender gets another port: the trap of B3.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from nostrvpn.endpoint import Endpoint, IPAddress

UNREPLIED = 30.0
REPLIED = 120.0
# Filters by port: a symmetric NAT's unpredictable port does not get in.
STRICT = {"port-restricted", "linux", "accept-input", "symmetric", "firewall"}


def is_possible(first: str, second: str) -> bool:
    """Say whether a direct path exists, from what the NATs of these kinds do alone."""
    return not (
        (first == "symmetric" and second in STRICT) or (second == "symmetric" and first in STRICT)
    )


@dataclass
class Nat:
    ip: IPAddress
    rng: random.Random
    hairpin: bool = False
    maps: bool = True

    def outbound(self, inner: Endpoint, to: Endpoint, now: float) -> Endpoint | None:
        raise NotImplementedError

    def inbound(self, port: int, source: Endpoint, now: float) -> Endpoint | None:
        raise NotImplementedError


@dataclass
class ConeNat(Nat):
    filtering: str = "port"
    ports: dict[Endpoint, int] = field(default_factory=dict)
    inner: dict[int, Endpoint] = field(default_factory=dict)
    opened: dict[tuple[int, object], float] = field(default_factory=dict)

    def forget(self) -> None:
        """Restart: what is inside gets another port, and nothing is open."""
        for inner in self.ports:
            self.ports[inner] = self.rng.randrange(1024, 65536)
        self.inner = {port: inner for inner, port in self.ports.items()}
        self.opened.clear()

    def _key(self, port: int, remote: Endpoint) -> tuple[int, object]:
        wanted = {"none": None, "address": remote.ip, "port": remote}[self.filtering]
        return (port, wanted)

    def outbound(self, inner: Endpoint, to: Endpoint, now: float) -> Endpoint:
        port = self.ports.get(inner)
        if port is None:
            port = inner.port
            while port in self.inner:
                port = self.rng.randrange(1024, 65536)
            self.ports[inner], self.inner[port] = port, inner
        self.opened[self._key(port, to)] = now + UNREPLIED
        return Endpoint(self.ip, port)

    def inbound(self, port: int, source: Endpoint, now: float) -> Endpoint | None:
        if self.opened.get(self._key(port, source), -1.0) < now:
            return None
        self.opened[self._key(port, source)] = now + REPLIED
        return self.inner[port]


@dataclass
class SymmetricNat(Nat):
    flows: dict[tuple[Endpoint, Endpoint], tuple[int, float]] = field(default_factory=dict)
    back: dict[tuple[int, Endpoint], Endpoint] = field(default_factory=dict)

    def outbound(self, inner: Endpoint, to: Endpoint, now: float) -> Endpoint | None:
        port, expires = self.flows.get((inner, to), (0, -1.0))
        if expires < now:
            port = self.rng.randrange(1024, 65536)
        self.flows[(inner, to)] = (port, now + UNREPLIED)
        self.back[(port, to)] = inner
        return Endpoint(self.ip, port)

    def inbound(self, port: int, source: Endpoint, now: float) -> Endpoint | None:
        inner = self.back.get((port, source))
        if inner is None:
            return None
        known, expires = self.flows[(inner, source)]
        if known != port or expires < now:
            return None
        self.flows[(inner, source)] = (port, now + REPLIED)
        return inner


@dataclass
class HardNat(SymmetricNat):
    """``step`` None draws; ``noise`` is flows a second of other hosts, ``limit`` mappings at once."""

    step: int | None = None
    noise: float = 0.0
    ports: range = range(1024, 65536)
    limit: int = 1 << 30
    counter: int | None = None
    counted_at: float | None = None
    refused: int = 0

    def outbound(self, inner: Endpoint, to: Endpoint, now: float) -> Endpoint | None:
        port, expires = self.flows.get((inner, to), (0, -1.0))
        if expires < now:
            if len(self.flows) >= self.limit and self._live(now) >= self.limit:
                self.refused += 1
                return None
            port = self._next(now)
        self.flows[(inner, to)] = (port, now + UNREPLIED)
        self.back[(port, to)] = inner
        return Endpoint(self.ip, port)

    def _live(self, now: float) -> int:
        for flow in [flow for flow, (_, expires) in self.flows.items() if expires < now]:
            del self.flows[flow]
        return len(self.flows)

    def _next(self, now: float) -> int:
        if self.step is None:
            return self.rng.choice(self.ports)
        if self.counter is None or self.counted_at is None:
            self.counter, self.counted_at = self.rng.choice(self.ports), now
        others = 0
        at = self.counted_at
        while self.noise and (at := at + self.rng.expovariate(self.noise)) < now:
            others += 1
        self.counted_at = now
        span = len(self.ports)
        offset = self.counter - self.ports.start + self.step * (others + 1)
        self.counter = self.ports.start + offset % span
        return self.counter


@dataclass
class LinuxNat(Nat):
    accept_input: bool = False
    flows: dict[tuple[Endpoint, Endpoint], int] = field(default_factory=dict)
    # (our port, remote) -> (inner or None for the router itself, expiry): conntrack's reply tuples
    entries: dict[tuple[int, Endpoint], tuple[Endpoint | None, float]] = field(default_factory=dict)

    def outbound(self, inner: Endpoint, to: Endpoint, now: float) -> Endpoint:
        port = self.flows.get((inner, to))
        if port is None or self.entries[(port, to)][1] < now:
            port = inner.port
            while self.entries.get((port, to), (None, -1.0))[1] >= now:
                port = self.rng.randrange(1024, 65536)
            self.flows[(inner, to)] = port
        self.entries[(port, to)] = (inner, now + UNREPLIED)
        return Endpoint(self.ip, port)

    def inbound(self, port: int, source: Endpoint, now: float) -> Endpoint | None:
        inner, expires = self.entries.get((port, source), (None, -1.0))
        if expires < now or inner is None:
            if self.accept_input:
                self.entries[(port, source)] = (None, now + UNREPLIED)
            return None
        self.entries[(port, source)] = (inner, now + REPLIED)
        return inner


@dataclass
class Firewall(Nat):
    """No translation, but stateful: only replies come in."""

    maps: bool = False
    opened: dict[tuple[Endpoint, Endpoint], float] = field(default_factory=dict)

    def outbound(self, inner: Endpoint, to: Endpoint, now: float) -> Endpoint:
        self.opened[(inner, to)] = now + UNREPLIED
        return inner

    def admits(self, inner: Endpoint, source: Endpoint, now: float) -> bool:
        return self.opened.get((inner, source), -1.0) >= now
