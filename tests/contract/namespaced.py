"""Event loops and WireGuard devices in network namespaces, for the suites of channels."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from ipaddress import ip_network
from typing import Any, TypeVar

from nostrvpn.endpoint import Endpoint
from nostrvpn.io.tap import Tap
from nostrvpn.io.wireguard_kernel import KernelBackend
from nostrvpn.io.wireguard_userspace import UserspaceBackend
from nostrvpn.wireguard.device import Device, Peer, SecretKey

T = TypeVar("T")
LIMIT = 20.0
# Both devices listen here, each in its namespace.
PORT = 51900


async def until(is_so: Callable[[], T | None], limit: float = LIMIT) -> T:
    """Wait until a condition is true; return it."""
    async with asyncio.timeout(limit):
        while not (found := is_so()):  # noqa: ASYNC110 (anything may make it so)
            await asyncio.sleep(0.005)
        return found


class Loop:
    """A thread in a namespace that runs an event loop; its sockets are there."""

    def __init__(self, netns: Any) -> None:
        self.netns = netns
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.netns._enter()
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def do(self, coroutine: Coroutine[Any, Any, T], limit: float = LIMIT) -> T:
        """Run a coroutine there and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(limit)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function there, on the loop."""

        async def work() -> T:
            return function(*arguments)

        return self.do(work())

    def until(self, is_so: Callable[[], T | None], limit: float = LIMIT) -> T:
        """Wait until a condition, looked at on the loop, is true; return it."""
        return self.do(until(is_so, limit), limit + 5)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()


class Site(Loop):
    """A loop, a WireGuard device on ``PORT`` (10.9.0.NUMBER inside) and a tap beside it."""

    def __init__(self, netns: Any, node: Any, number: int, other: int) -> None:
        super().__init__(netns)
        self.node = node
        self.peer = private(other).public_key
        node.create()
        allowed = frozenset([ip_network(f"10.9.0.{other}/32")])
        node.settle(Device(private(number), PORT, peers=(Peer(self.peer, allowed),)))
        netns.ip("addr", "add", f"10.9.0.{number}/24", "dev", node.interface)
        netns.ip("link", "set", node.interface, "up")
        self.heard: list[tuple[bytes, Endpoint]] = []
        self.tap = Tap(PORT, 0, self._hear)
        self.call(self.tap.open)

    def _hear(self, data: bytes, source: Endpoint, *_: Any) -> None:
        self.heard.append((data, source))

    def use(self, endpoint: Endpoint) -> None:
        """Tell WireGuard the peer's endpoint."""
        self.netns.run(
            "wg", "set", self.node.interface, "peer", self.peer, "endpoint", str(endpoint)
        )

    def has_handshake(self) -> bool:
        return str(self.node.wg()[self.peer][3]) != "0"

    def ping(self, number: int, wait: int = 10) -> bool:
        said = self.netns.run(
            "ping", "-c1", f"-W{wait}", f"-w{wait}", f"10.9.0.{number}", check=False
        )
        return " 0% packet loss" in str(said)

    def stop(self) -> None:
        self.call(self.tap.close)
        super().stop()
        self.node.delete()


def private(number: int) -> SecretKey:
    # Not in the first byte: X25519 ignores its low bits.
    return SecretKey((number << 64).to_bytes(32, "little"))


def join(left: Any, right: Any, net: str) -> None:
    """Lay a cable between two namespaces: ``net`` .1 left and .2 right, which routes over it."""
    name = f"v{net.replace('.', '')}"
    left.ip("link", "add", name, "type", "veth", "peer", "eth0", "netns", right.name)
    left.ip("addr", "add", f"{net}.1/24", "dev", name)
    left.ip("link", "set", name, "up")
    right.ip("addr", "add", f"{net}.2/24", "dev", "eth0")
    right.ip("link", "set", "eth0", "up")
    right.ip("route", "add", "default", "via", f"{net}.1")


def make_site(make_node: Callable[..., Any], netns: Any, interface: str, ends: str) -> Site:
    """Return the site ``ends[0]`` whose peer is ``ends[1]`` (digits).

    On the kernel's WireGuard where there is one (as in ``tests/kernel``), else on a userspace one.
    """
    backend = UserspaceBackend() if KernelBackend().unavailable() else KernelBackend()
    node = make_node(netns, backend, f"{interface[:13]}{ends[0]}")
    return Site(netns, node, int(ends[0]), int(ends[1]))
