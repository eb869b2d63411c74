"""How much effort a writer may cost its readers: a token bucket."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Allowance"]


@dataclass(slots=True)
class Allowance:
    """``burst`` tokens at first, refilled at ``rate`` a second, never above ``burst``."""

    burst: float
    rate: float
    left: float = -1.0
    at: float = 0.0

    def spend(self, now: float) -> bool:
        """Take one token at ``now`` (Moment.now); return whether there was one."""
        if self.left < 0:
            self.left, self.at = self.burst, now
        self.left = min(self.burst, self.left + max(0.0, now - self.at) * self.rate)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True
