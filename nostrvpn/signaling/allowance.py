"""How much effort a writer may cost its readers: a token bucket."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

__all__ = ["Allowance", "Allowances"]


@dataclass(slots=True)
class Allowance:
    """``burst`` tokens at first, refilled at ``rate`` a second, never above ``burst``."""

    burst: float
    rate: float
    left: float = -1.0
    at: float = 0.0

    def spend(self, now: float) -> bool:
        """Take one token at ``now`` (Moment.now); return whether there was one."""
        if not self.has(now):
            return False
        self.left -= 1
        return True

    def has(self, now: float) -> bool:
        """Return whether there is a token at ``now``, and leave it there."""
        if self.left < 0:
            self.left, self.at = self.burst, now
        self.left = min(self.burst, self.left + max(0.0, now - self.at) * self.rate)
        self.at = now
        return self.left >= 1


class Allowances:
    """An allowance for each of many writers, of whom the latest ``most`` are kept in mind."""

    def __init__(self, burst: float, rate: float, most: int) -> None:
        self._burst = burst
        self._rate = rate
        self._most = most
        self._of: OrderedDict[str, Allowance] = OrderedDict()

    def of(self, writer: str) -> Allowance:
        """Return a writer's own."""
        found = self._of.setdefault(writer, Allowance(self._burst, self._rate))
        self._of.move_to_end(writer)
        while len(self._of) > self._most:
            self._of.popitem(last=False)
        return found
