"""How much of something costly is done in a second for whoever asks: a bucket that fills by itself."""

from __future__ import annotations

__all__ = ["Pace"]


class Pace:
    """``rate`` units a second, ``burst`` at once; full at first. Time is in seconds of any
    clock that only goes on."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._left, self._at = burst, 0.0

    def take(self, units: float, now: float) -> bool:
        """Take so many units if they are there; what is more than the burst is as much as it."""
        grown = self._rate * max(0.0, now - self._at)
        self._left, self._at = min(self._burst, self._left + grown), now
        units = min(units, self._burst)
        if self._left < units:
            return False
        self._left -= units
        return True
