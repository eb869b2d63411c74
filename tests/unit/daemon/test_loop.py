"""The loop when the machine wakes: what the node is told, how often, and in which order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from ipaddress import IPv6Address
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nostrvpn.daemon import inbox
from nostrvpn.daemon.loop import Loop
from nostrvpn.errors import SystemRefused
from nostrvpn.io.clock_watch import SleepMeter
from nostrvpn.machine import Moment, Tick
from nostrvpn.node.events import (
    NodeEffect,
    NodeEvent,
    Persist,
    Reconcile,
    Resumed,
    SendThrough,
    ShutDown,
)
from nostrvpn.signaling.relays import SendText


class SleepyNode:
    """Has one timer, as far away as a heartbeat; remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[NodeEvent] = []
        self.deadline: float | None = time.clock_gettime(time.CLOCK_BOOTTIME) + 25.0

    def start(self, _moment: Moment) -> list[NodeEffect]:
        return []

    def step(self, event: NodeEvent, _moment: Moment) -> list[NodeEffect]:
        self.told.append(event)
        if isinstance(event, Resumed):
            self.deadline = None
        return []


async def test_a_sleep_is_told_at_once_once_and_before_anything_else():
    node = SleepyNode()
    loop = Loop(cast("Any", node), cast("Any", None), cast("Any", None), interface="x", port=1)
    slept = [0.0]
    loop._sleep = SleepMeter(lambda: time.monotonic() + slept[0], time.monotonic)
    task = asyncio.create_task(loop._step_forever())
    await asyncio.sleep(0)
    slept[0] = 3600.0
    loop._clock._woken()  # the kernel's timer tells
    loop._clock._woken()
    async with asyncio.timeout(5):
        while len(node.told) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    resumed, *rest = node.told
    assert isinstance(resumed, Resumed)
    assert 3599 < resumed.slept_s < 3601
    assert rest == [Tick(), Tick()]
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_what_nothing_can_wait_for_comes_in_order_by_one_task(monkeypatch):
    monkeypatch.setattr(inbox, "INBOX", 3)
    tasks: list[asyncio.Task[None]] = []
    lost: list[int] = []

    def start(_name: str, work: Coroutine[Any, Any, None]) -> None:
        tasks.append(asyncio.create_task(work))

    room = inbox.Inbox(start, lambda: lost.append(1))
    events = [Resumed(float(number)) for number in range(8)]
    for event in events[:5]:
        room.deliver(event)
    room.offer(Tick())
    assert room.qsize() == 3
    await asyncio.sleep(0)
    first = room.get_nowait()
    for event in events[5:]:
        room.deliver(event)  # there is room inside now, but others wait longer
    # As many wait outside as inside; two, and the one that might be lost, are.
    assert len(lost) == 3
    got: list[NodeEvent] = [first]
    async with asyncio.timeout(5):
        while len(got) < 6:
            got.append(await room.get())
    assert got == events[:6]
    await asyncio.gather(*tasks)
    assert len(tasks) == 1
    room.deliver(events[7])
    assert await room.get() == events[7]
    assert len(tasks) == 1


class FullDisk:
    def put(self, _records: object) -> None:
        raise SystemRefused("the disk is full")


def test_what_is_not_stored_is_told_to_nobody_by_relay_or_tunnel():
    node = SleepyNode()
    loop = Loop(
        cast("Any", node), cast("Any", FullDisk()), cast("Any", None), interface="x", port=1
    )
    done: list[NodeEffect] = []
    cast("Any", loop)._perform_one = done.append
    shown = Reconcile()
    told = (SendThrough(IPv6Address("fd00::1"), "{}", "roster-1"), SendText("wss://r", "[]"))
    loop._perform([*told])
    assert done == [*told]
    done.clear()
    loop._perform([Persist("network", "a", {}), *told, shown])
    assert done == [shown]


@pytest.mark.parametrize("restart", [False, True])
async def test_only_who_is_asked_to_end_says_what_holds_traffic_back_then(*, restart: bool):
    """A signal, a failure and a restart leave all of it."""
    said: list[object] = []
    exits = SimpleNamespace(shield_after_down="the shield")
    loop = Loop(
        cast("Any", SimpleNamespace(exits=exits)),
        cast("Any", None),
        cast("Any", SimpleNamespace(end_with=said.append)),
        interface="x",
        port=1,
    )
    loop._perform([ShutDown(restart=restart)])
    assert said == ([] if restart else ["the shield"])
