"""How much nonsense one relay connection may send before it is left."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["Budget"]

# A burst is forgiven, a steady stream is not. With these figures a relay is left after 32 forged
# events at once, or when it sends more than two a second for long; stored events repeated after a
# reconnect (at most some thousands, cheap to recognise) stay within it.
BUDGET = 256.0
BUDGET_PER_SECOND = 16.0
COSTS: Mapping[str, float] = {
    "bad_id": 8.0,
    "bad_signature": 8.0,
    "oversized": 64.0,
    "challenge": 16.0,
    "duplicate": 0.05,
    "unasked": 2.0,
    "notice": 2.0,
}
DEFAULT_COST = 4.0


class Budget:
    """A bucket of patience that refills with time."""

    def __init__(self) -> None:
        self._left = BUDGET
        self._at: float | None = None

    def spend(self, code: str, now: float) -> bool:
        """Charge one offence (an error code) at ``now`` seconds; False once nothing is left."""
        if self._at is not None:
            earned = max(0.0, now - self._at) * BUDGET_PER_SECOND
            self._left = min(BUDGET, self._left + earned)
        self._at = now
        self._left -= COSTS.get(code, DEFAULT_COST)
        return self._left >= 0
