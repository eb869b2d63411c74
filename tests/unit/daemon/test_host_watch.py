"""The host is read again when reading it was refused, and nothing that was seen meanwhile is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from ipaddress import ip_address, ip_interface
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nostrvpn.daemon import host_watch
from nostrvpn.daemon.host_watch import HostWatch
from nostrvpn.errors import SystemRefused
from nostrvpn.io.netlink import LocalInterface
from nostrvpn.node.events import HostChanged

HERE = LocalInterface("eth0", "", (ip_interface("192.0.2.7/24"),), 1500, True, False)


class Kernel:
    """Refuses to be read as often as it is told to."""

    refusals = 0

    async def run(self, look: Callable[..., Any]) -> Any:
        if self.refusals:
            self.refusals -= 1
            raise SystemRefused("listing addresses: Too many open files")
        return look()


class Outside:
    """What the watch tells: ``told``."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[HostChanged] = asyncio.Queue()
        self.supervisor = self.sockets = self
        self.services = None
        self.tasks: list[asyncio.Task[None]] = []

    def start(self, _name: str, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.create_task(work))

    def moved(self, _interfaces: object, *, restart: bool) -> None:
        pass

    async def put(self, event: HostChanged) -> None:
        await self.told.put(event)


@pytest.mark.parametrize("refusals", [1, 3])
async def test_a_look_that_was_refused_is_made_again(
    monkeypatch: pytest.MonkeyPatch, refusals: int
) -> None:
    place = SimpleNamespace(network="home", unheard=None)
    for name, value in (
        ("local_addresses", lambda: (HERE,)),
        ("main_routes", lambda _interface: frozenset()),
        ("outward_sources", lambda _mark: ()),
        ("_place_here", lambda: place),
        ("_READ_AGAIN_S", 0.01),
    ):
        monkeypatch.setattr(host_watch, name, value)
    kernel, outside = Kernel(), Outside()
    watch = HostWatch(cast("Any", outside), cast("Any", kernel), "nv0")
    monkeypatch.setattr(watch._monitor, "start", lambda: None)
    kernel.refusals = refusals
    async with asyncio.timeout(5):
        await watch.start()
        assert not (await outside.told.get()).interrupted
        # An address went and came back: that it did is all there is to see.
        watch._monitor._lost.add(ip_address("192.0.2.7"))
        kernel.refusals = refusals
        watch._look_again()
        assert (await outside.told.get()).interrupted
        await asyncio.gather(*outside.tasks)
    watch.stop()
