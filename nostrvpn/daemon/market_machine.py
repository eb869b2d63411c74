"""One machine of the market on the running loop: events in, effects out in their order.

What a machine keeps is on disk before anything that follows leaves. While the disk takes nothing, the
machine stands still: messages are repeated by who sent them, and the kernel ends what is not renewed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Protocol, TypeVar

from nostrvpn.errors import NostrvpnError
from nostrvpn.io.store import Record, Store
from nostrvpn.machine import Moment, Tick
from nostrvpn.market.effects import Keep, MarketEffect, Say

__all__ = ["Machine", "MarketMachine"]

MAX_WAITING: Final = 2000
DISK_RETRY_S: Final = 2.0
FAULT_S: Final = 1.0

_log = logging.getLogger("nostrvpn.market")

Event = TypeVar("Event", contravariant=True)


class Machine(Protocol[Event]):
    """What is run: as ``machine.py`` says."""

    def step(self, event: Event, moment: Moment) -> list[MarketEffect]: ...

    @property
    def deadline(self) -> float | None: ...


class MarketMachine:
    """Steps a machine. ``perform`` carries out what is neither Keep nor Say; ``stepped`` is called after
    each event. ``error``: why nothing is done now, or None; ``faults``: events and effects that were
    left because of a fault of ours, which the log has."""

    def __init__(
        self,
        machine: Machine[object],
        store: Store,
        moment: Callable[[], Moment],
        perform: Callable[[MarketEffect], None],
        stepped: Callable[[], None] = lambda: None,
    ) -> None:
        self._machine, self._store, self._moment = machine, store, moment
        self._perform, self._stepped = perform, stepped
        self._name = type(machine).__name__
        self._inbox: asyncio.Queue[object] = asyncio.Queue(MAX_WAITING)
        self._left: deque[MarketEffect] = deque()
        self.error: str | None = None
        self.faults = 0

    def offer(self, event: object) -> bool:
        """Put in an event; False if so many wait already that it is dropped."""
        try:
            self._inbox.put_nowait(event)
        except asyncio.QueueFull:
            return False
        return True

    def carry_out(self, effects: Iterable[MarketEffect]) -> None:
        """Carry out effects of before the first event."""
        self._left.extend(effects)
        self._drain()

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            if self._left:
                await asyncio.sleep(DISK_RETRY_S)
                self._drain()
                continue
            event: object = Tick()
            deadline, now = self._machine.deadline, self._moment().now
            wait = None if deadline is None else max(0.0, min(deadline - now, 3600.0))
            try:
                async with asyncio.timeout(wait):
                    event = await self._inbox.get()
            except TimeoutError:
                pass
            try:
                effects = self._machine.step(event, self._moment())
            except Exception as exc:
                await self._stumbled(event, exc)
                continue
            if effects and _log.isEnabledFor(logging.DEBUG):
                names = " ".join(type(effect).__name__ for effect in effects)
                _log.debug("%s %s: %s", self._name, type(event).__name__, names)
            self.carry_out(effects)
            self._guarded(self._stepped)
            await asyncio.sleep(0)

    async def _stumbled(self, event: object, exc: Exception) -> None:
        """What nobody foresaw of one event ends neither the market nor the tunnels."""
        _log.error("%s: %s was left: %r", self._name, type(event).__name__, exc, exc_info=exc)
        self.faults += 1
        # If the clock brings it, it comes again.
        await asyncio.sleep(FAULT_S)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as exc:
            _log.error("%s: an effect was left: %r", self._name, exc, exc_info=exc)
            self.faults += 1

    def _drain(self) -> None:
        """Carry out what is left, until the disk refuses."""
        while self._left:
            records = []
            for effect in self._left:
                if not isinstance(effect, Keep):
                    break
                records.append(Record(effect.space, effect.key, effect.value))
            if records:
                try:
                    self._store.put(records)
                except NostrvpnError as exc:
                    if self.error is None:
                        _log.error("the market stands still: %s", exc)
                    self.error = str(exc)
                    return
                self.error = None
                for _ in records:
                    self._left.popleft()
                continue
            effect = self._left.popleft()
            if isinstance(effect, Say):
                level = logging.getLevelNamesMapping().get(effect.level.upper(), logging.INFO)
                _log.log(level, "%s", effect.text)
            else:
                self._guarded(partial(self._perform, effect))
