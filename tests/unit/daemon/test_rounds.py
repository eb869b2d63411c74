"""An answer waits for the round that has what it tells of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nostrvpn.daemon import rounds
from nostrvpn.daemon.loop import Loop
from nostrvpn.daemon.rounds import Rounds
from nostrvpn.machine import Moment
from nostrvpn.node.events import Command, NodeEffect, NodeEvent, Reconcile, ReconcileFinished, Reply


class Obedient:
    """Answers each command, and wants what was commanded last."""

    deadline = None
    wanted = ""
    exits = SimpleNamespace(changes=0)

    def start(self, _moment: Moment) -> list[NodeEffect]:
        return []

    def step(self, event: NodeEvent, _moment: Moment) -> list[NodeEffect]:
        if not isinstance(event, Command):
            return []
        self.wanted = str(event.args["what"])
        return [Reconcile(), Reply(event.call, {"text": self.wanted})]

    def desired(self, _now: float) -> Any:
        return self.wanted


class Slow:
    """A kernel that takes what is desired when it is let."""

    inbound_error: str | None = None
    gateway_error: str | None = None
    due_in_s = 30.0

    def __init__(self) -> None:
        self.in_force = ""
        self.may_go = asyncio.Event()
        self.error: str | None = None

    async def reconcile(self, desired: str) -> str | None:
        await self.may_go.wait()
        if self.error is None:
            self.in_force = desired
        return self.error

    @property
    def is_applied(self) -> bool:
        return self.inbound_error is None

    def finished(self, error: str | None) -> ReconcileFinished:
        return ReconcileFinished(error)


async def with_loop(work: Callable[[Loop, Slow], Any]) -> Any:
    kernel = Slow()
    node = Obedient()
    loop = Loop(cast("Any", node), cast("Any", None), cast("Any", kernel), interface="x", port=1)
    tasks = [
        asyncio.create_task(loop._step_forever()),
        asyncio.create_task(loop._reconcile_forever()),
    ]
    try:
        async with asyncio.timeout(10):
            return await work(loop, kernel)
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def test_a_permission_is_answered_when_it_is_in_force() -> None:
    async def work(loop: Loop, kernel: Slow) -> None:
        call = asyncio.create_task(loop.call("permit", {"what": "deny all"}, True))
        done, _ = await asyncio.wait({call}, timeout=0.2)
        assert not done
        kernel.may_go.set()
        assert await call == {"text": "deny all", "applied": True}
        assert kernel.in_force == "deny all"

    await with_loop(work)


async def test_what_only_asks_or_sends_is_answered_at_once() -> None:
    async def work(loop: Loop, _kernel: Slow) -> None:
        assert await loop.call("rules", {"what": "nothing"}, True) == {"text": "nothing"}

    await with_loop(work)


@pytest.mark.parametrize("what", ["error", "inbound_error"])
async def test_a_refusal_is_told(what: str) -> None:
    async def work(loop: Loop, kernel: Slow) -> None:
        setattr(kernel, what, "nft refused")
        kernel.may_go.set()
        answer = await loop.call("shields_up", {"what": "up"}, True)
        assert answer == {"text": "up", "applied": False}

    await with_loop(work)


async def test_a_kernel_that_hangs_is_not_waited_for_forever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rounds, "APPLY_WAIT_S", 0.05)

    async def work(loop: Loop, _kernel: Slow) -> None:
        answer = await loop.call("peer_remove", {"what": "gone"}, True)
        assert answer == {"text": "gone", "applied": False}

    await with_loop(work)


async def test_a_round_that_had_begun_before_is_not_taken_for_it() -> None:
    counted = Rounds()
    number = counted.begin()
    counted.ask()
    waiting = asyncio.create_task(counted.applied())
    await asyncio.sleep(0)
    counted.end(number, is_applied=True)
    done, _ = await asyncio.wait({waiting}, timeout=0.05)
    assert not done
    counted.end(counted.begin(), is_applied=True)
    assert await waiting
