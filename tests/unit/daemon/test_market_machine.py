"""What a machine keeps is on disk before anything that follows leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

import pytest

from nostrvpn.daemon import market_machine
from nostrvpn.daemon.market_machine import MAX_WAITING, MarketMachine
from nostrvpn.errors import SystemRefused
from nostrvpn.io.store import Record
from nostrvpn.machine import Entropy, Moment, Tick
from nostrvpn.market.effects import Keep, MarketEffect, Probe, Say, ServiceChanged


class Scripted:
    """Gives the effects that were prepared, one list for each event."""

    def __init__(self, *answers: list[MarketEffect]) -> None:
        self.answers, self.events = list(answers), list[object]()
        self.deadline: float | None = None

    def step(self, event: object, _moment: Moment) -> list[MarketEffect]:
        self.events.append(event)
        self.deadline = None
        return self.answers.pop(0) if self.answers else []


class Disk:
    """Notes what was done in ``done``; refuses while ``is_full``."""

    def __init__(self, done: list[str]) -> None:
        self.done, self.is_full = done, False

    def put(self, records: Sequence[Record]) -> None:
        if self.is_full:
            raise SystemRefused("no space left on device")
        self.done.append("kept " + " ".join(record.key for record in records))


class Room:
    def __init__(self, *answers: list[MarketEffect]) -> None:
        self.done: list[str] = []
        self.disk, self.machine = Disk(self.done), Scripted(*answers)
        self.runner = MarketMachine(
            cast("Any", self.machine),
            cast("Any", self.disk),
            lambda: Moment(1.0, 2.0, Entropy(bytes(32))),
            lambda effect: self.done.append(type(effect).__name__),
        )

    async def until(self, condition: Any) -> None:
        running = asyncio.create_task(self.runner.run())
        try:
            for _ in range(5000):
                if condition():
                    return
                await asyncio.sleep(0.001)
            raise AssertionError("it did not come about")
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


KEEPS: list[MarketEffect] = [Keep("a", "1", 1), Keep("a", "2", 2)]


async def test_effects_are_carried_out_in_their_order() -> None:
    room = Room([*KEEPS, Probe("x"), Say("info", "hello"), Keep("a", "3", 3), ServiceChanged()])
    room.runner.offer("one")
    await room.until(lambda: len(room.done) == 4)
    assert room.done == ["kept 1 2", "Probe", "kept 3", "ServiceChanged"]


async def test_nothing_leaves_and_nothing_is_taken_while_the_disk_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(market_machine, "DISK_RETRY_S", 0.01)
    room = Room([Probe("before"), *KEEPS, Probe("after")], [ServiceChanged()])
    room.disk.is_full = True
    room.runner.offer("one")
    room.runner.offer("two")
    await room.until(lambda: room.runner.error is not None)
    assert room.done == ["Probe"]
    assert room.machine.events == ["one"]
    assert "no space" in str(room.runner.error)
    room.disk.is_full = False
    await room.until(lambda: len(room.done) == 4)
    assert room.done == ["Probe", "kept 1 2", "Probe", "ServiceChanged"]
    assert room.runner.error is None


async def test_a_deadline_brings_a_tick() -> None:
    room = Room([Probe("x")])
    room.machine.deadline = 0.5
    await room.until(lambda: room.done)
    assert isinstance(room.machine.events[0], Tick)


async def test_a_fault_of_ours_ends_one_event_and_not_the_market(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(market_machine, "FAULT_S", 0.01)
    room = Room([Probe("bad"), Probe("x")], [ServiceChanged()])
    step, perform = room.machine.step, room.runner._perform

    def stumble(event: object, moment: Moment) -> list[MarketEffect]:
        if event == "poison":
            raise ValueError("nobody foresaw this")
        return step(event, moment)

    def refuse(effect: MarketEffect) -> None:
        if effect == Probe("bad"):
            raise AssertionError("nor this")
        perform(effect)

    monkeypatch.setattr(room.machine, "step", stumble)
    monkeypatch.setattr(room.runner, "_perform", refuse)
    for event in ("poison", "one", "poison", "two"):
        room.runner.offer(event)
    await room.until(lambda: len(room.done) == 2)
    assert room.done == ["Probe", "ServiceChanged"]
    assert room.runner.faults == 3


def test_more_than_can_wait_is_dropped_and_said() -> None:
    room = Room()
    assert all(room.runner.offer(number) for number in range(MAX_WAITING))
    assert not room.runner.offer("one more")
