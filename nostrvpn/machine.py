"""The contract of every pure machine: an event and a moment go in, effects come out.

A machine is a plain class with::

    def step(self, event: SomeEvent, moment: Moment) -> list[SomeEffect]
    @property
    def deadline(self) -> float | None      # in Moment.now's time; step(Tick(), ...) is due then

Events and effects are frozen, slotted dataclasses in a closed union. A machine reads no clock, draws
no randomness and awaits nothing: both come with the ``Moment``. The same events with the same moments
give the same effects, so a run can be replayed and a hundred nodes can be stepped in virtual time.

Error contract: ``step`` raises nothing for input from outside (it drops and counts); any exception
that leaves it is a bug.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

__all__ = ["Entropy", "Moment", "Tick", "earliest"]


class Entropy:
    """A deterministic stream of random bytes, expanded from one seed (SHA-256 in counter mode).

    The daemon gives each step 32 fresh bytes from the operating system; tests give a fixed seed.
    """

    __slots__ = ("_counter", "_seed")

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._counter = 0

    def __repr__(self) -> str:
        return "<Entropy redacted>"

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes of the stream."""
        blocks = bytearray()
        while len(blocks) < size:
            blocks += hashlib.sha256(self._seed + self._counter.to_bytes(8, "big")).digest()
            self._counter += 1
        return bytes(blocks[:size])

    def fraction(self) -> float:
        """Return a uniform float in [0, 1), for jitter."""
        return int.from_bytes(self.take(7), "big") / float(1 << 56)


@dataclass(frozen=True, slots=True)
class Moment:
    """When a step happens, and the randomness it may use.

    ``now`` is seconds of a clock that never jumps and counts through suspend (CLOCK_BOOTTIME);
    ``wall`` is Unix time in seconds and is used only where signed or shared data needs it.
    """

    now: float
    wall: float
    entropy: Entropy


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: the machine's deadline may be due."""


def earliest(*deadlines: float | None) -> float | None:
    """Return the first of several deadlines, where None means never."""
    first: float | None = None
    for deadline in deadlines:
        if deadline is not None and (first is None or deadline < first):
            first = deadline
    return first
