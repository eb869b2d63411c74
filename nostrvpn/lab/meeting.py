"""Two nodes meet: the main job, step by step, for the demo and for every scenario."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nostrvpn.errors import SystemRefused
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import LabTimeout
from nostrvpn.lab.topologies import Pair
from nostrvpn.lab.topology import Host
from nostrvpn.lab.transfer import Transfer, transfer

__all__ = ["Meeting", "Narrator", "Step"]

PINGS = 5
PING_INTERVAL = 0.2
"""Seconds; the least that ping allows to everybody."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happened: ``at`` seconds after the start, having taken ``seconds``."""

    at: float
    seconds: float
    text: str


class Narrator:
    """Tells the steps as they happen, and remembers them."""

    def __init__(self, tell: Callable[[Step], None]) -> None:
        self._tell = tell
        self._started = self._last = time.monotonic()
        self.steps: list[Step] = []

    def say(self, text: str) -> None:
        """Tell a step that has just been completed."""
        now = time.monotonic()
        step = Step(now - self._started, now - self._last, text)
        self._last = now
        self.steps.append(step)
        self._tell(step)


class Meeting:
    """The two nodes of a ``Pair``: laptop-a invites, laptop-b joins."""

    def __init__(self, lab: Pair, narrator: Narrator, **settings: object) -> None:
        """``settings`` are of both nodes' configuration, as in ``Lab.node``."""
        self.lab = lab
        self._say = narrator.say
        self.a: LabNode = lab.node(lab.laptop_a, lab.server, **settings)
        self.b: LabNode = lab.node(lab.laptop_b, lab.server, **settings)
        self.direct_in: float | None = None

    def start(self) -> None:
        """Create both identities, start both daemons, wait until both reach the relay."""
        for node in (self.a, self.b):
            node.init()
            self._say(f"{node.name}: init, {_short(node.npub)}")
        for node in (self.a, self.b):
            node.start()
        for node in (self.a, self.b):
            status = node.wait_for_relay()
            relay = next(r for r in status["relays"] if r["state"] == "connected")
            self._say(
                f"{node.name}: daemon up, {status['backend']} WireGuard on UDP port "
                f"{status['listen_port']}, relay {relay['url']} connected"
            )

    def join(self) -> None:
        """A invites B by npub, B joins; return once both list each other."""
        link = self.a.query("invite", self.b.npub)["link"]
        self._say(f"{self.a.name}: invite {_short(self.b.npub)} -> {link[:32]}…")
        self._joined = time.monotonic()
        self.b.query("join", link)
        for node, other in ((self.b, self.a), (self.a, self.b)):
            node.wait_for_peer(other.npub)
        self._say(f"{self.b.name}: join, both are members now")

    def wait_direct(self, *, timeout: float = 30.0) -> bool:
        """Return True as soon as both say ``direct``, False when they do not in time."""
        try:
            for node, other in ((self.b, self.a), (self.a, self.b)):
                peer = node.wait_for_peer(other.npub, path="direct", timeout=timeout)
                told = peer["connected_in_ms"]
                self._say(
                    f"{node.name}: direct to {other.name} at {peer['endpoint']}"
                    + (f" after {told:.0f} ms" if told is not None else "")
                )
        except LabTimeout:
            self._say(f"no direct path within {timeout:.0f} s")
            return False
        self.direct_in = time.monotonic() - self._joined
        return True

    def ping(self) -> Json:
        """Ping B from A with the system's ping, over IPv6 and IPv4; return the mean times in ms."""
        result: Json = {}
        for address in self.addresses(self.b):
            mean = _ping(self.lab.laptop_a, address)
            result[address] = mean
            self._say(f"{self.a.name}: ping {address}: {PINGS} of {PINGS}, mean {mean:.1f} ms")
        return result

    def allow(self) -> None:
        """B lets A open TCP connections to it: by default only ping gets in."""
        self._say(f"{self.b.name}: {self.b.cli('allow', self.a.npub, 'inbound:tcp').strip()}")

    def transfer(self, size: int = 10_000_000) -> Transfer:
        """Send ``size`` bytes from A to B over TCP through the tunnel, and compare checksums."""
        from ipaddress import ip_address

        target = ip_address(self.addresses(self.b)[-1])
        done = transfer(self.lab.laptop_a.namespace, self.lab.laptop_b.namespace, target, size=size)
        if not done.intact:
            raise SystemRefused(f"{size} bytes to {target} arrived damaged")
        self._say(
            f"{self.a.name}: sent {size / 1e6:.0f} MB over TCP in {done.seconds:.2f} s "
            f"({done.mbit_per_second:.0f} Mbit/s), SHA-256 {done.sent_sha256[:12]}… matches"
        )
        return done

    def addresses(self, node: LabNode) -> list[str]:
        """Return a node's overlay addresses: IPv6, then IPv4."""
        addresses: list[str] = node.status()["addresses"]
        if not addresses:
            raise SystemRefused(f"{node.name} has no overlay address")
        return sorted(addresses, key=lambda address: ":" not in address)

    def peers(self) -> list[Json]:
        """Return how each node sees the other, from its status."""
        rows = []
        for node, other in ((self.a, self.b), (self.b, self.a)):
            peer = node.wait_for_peer(other.npub)
            rows.append({"node": node.name, "peer_name": other.name, **peer})
        return rows

    def stop(self) -> None:
        """Stop both daemons with SIGTERM."""
        for node in (self.a, self.b):
            code = node.stop()
            self._say(f"{node.name}: stopped (exit code {code})")


def _ping(host: Host, address: str) -> float:
    """Return the mean round trip in ms; raise SystemRefused unless every echo came back."""
    said = host.run("ping", "-n", "-c", str(PINGS), "-i", str(PING_INTERVAL), "-w", "10", address)
    times = [float(match) for match in re.findall(r"time=([0-9.]+) ms", said)]
    if len(times) != PINGS:
        raise SystemRefused(f"{len(times)} of {PINGS} echoes from {address} came back")
    return sum(times) / len(times)


def _short(npub: str) -> str:
    return f"{npub[:12]}…"
