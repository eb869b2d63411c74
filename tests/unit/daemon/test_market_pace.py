"""Who asks is served by work that began after it asked, and many who ask at once by one."""

from __future__ import annotations

import asyncio

import pytest

from nostrvpn.daemon.market_pace import Pace
from nostrvpn.errors import SystemRefused


class Work:
    """Ends when it is let; counts how often it began."""

    def __init__(self) -> None:
        self.begun = 0
        self.has_begun = asyncio.Event()
        self.may_end = asyncio.Event()

    async def __call__(self) -> None:
        self.begun += 1
        self.has_begun.set()
        await self.may_end.wait()


async def test_one_who_asks_waits_for_nothing_else() -> None:
    work = Work()
    work.may_end.set()
    pace = Pace(work, lambda: 3600.0)
    await asyncio.wait_for(pace.ask(), 5)
    assert work.begun == 1
    await pace.stop()


async def test_many_at_once_are_one() -> None:
    work = Work()
    pace = Pace(work, lambda: 0.0)
    first = pace.ask()
    await asyncio.wait_for(work.has_begun.wait(), 5)
    # What begins now has what they want; what runs already has not.
    others = [pace.ask() for _ in range(50)]
    assert not first.done()
    work.may_end.set()
    await asyncio.wait_for(asyncio.gather(first, *others), 5)
    assert work.begun == 2
    await pace.stop()


async def test_there_is_a_rest_after_it() -> None:
    work = Work()
    work.may_end.set()
    pace = Pace(work, lambda: 3600.0)
    await asyncio.wait_for(pace.ask(), 5)
    second = pace.ask()
    for _ in range(100):
        await asyncio.sleep(0)
    assert work.begun == 1
    assert not second.done()
    await pace.stop()
    assert second.cancelled()


async def test_what_fails_ends_too_and_the_next_is_tried() -> None:
    begun = 0

    async def refused() -> None:
        nonlocal begun
        begun += 1
        raise SystemRefused("no")

    pace = Pace(refused, lambda: 0.0)
    for _ in range(2):
        await asyncio.wait_for(pace.ask(), 5)
    assert begun == 2
    await pace.stop()


@pytest.mark.parametrize("is_running", [True, False])
async def test_nobody_waits_for_what_is_stopped(is_running: bool) -> None:
    work = Work()
    pace = Pace(work, lambda: 0.0)
    asked = pace.ask()
    if is_running:
        await asyncio.wait_for(work.has_begun.wait(), 5)
    await pace.stop()
    assert asked.done()
