"""When a direct path is looked for again, and how two peers begin that together over a relay.

While a path is relayed a round is called by a check through the relay that carries the round's
number, repeated until it is answered. The caller of a round is as the offerer of a description, the
called one as its answerer: it opens its NATs before it answers, and holds its checks back.
"""

from __future__ import annotations

from collections import deque

from nostrvpn.machine import Moment, earliest
from nostrvpn.paths.patience import CONTROLLED_LATER, LOST_AGAIN, ROUND_GAP, retry_gap

__all__ = ["Rounds"]

# Gaps after each call until it is answered; then the round is put off.
CALL_RETRY = (0.3, 0.5, 1.0, 2.0)
# Losses of a direct path within this time make the next search for one wait.
STRIKES_WITHIN = 3600.0
MAX_STRIKES = 8


class Rounds:
    """Counts the rounds of one link that found no direct path, and knows when the next is due."""

    def __init__(self, *, controlling: bool) -> None:
        self._controlling = controlling
        self._number: int | None = None
        self._heard: int | None = None
        self._heard_at = float("-inf")
        self._calls = 0
        self._strikes: deque[float] = deque(maxlen=MAX_STRIKES)
        self.failures = 0
        self.retry_at: float | None = None
        self._call_at: float | None = None

    @property
    def deadline(self) -> float | None:
        """When a round or a call is due next."""
        return earliest(self.retry_at, self._call_at)

    def reset(self) -> None:
        """There is news: what failed so far says nothing any more."""
        self.failures = 0
        self._strikes.clear()

    def succeeded(self) -> None:
        """A direct path works: nothing is to be looked for."""
        self.failures, self.retry_at = 0, None
        self._number, self._call_at = None, None

    def failed(self, now: float) -> None:
        """A round found no direct path."""
        self.retry_at = now + retry_gap(self.failures, controlling=self._controlling)
        self.failures += 1

    def no_later(self, at: float | None, now: float) -> None:
        """The round that comes next is of use at ``at``, and may be due long after."""
        if at is None or self.retry_at is None or at <= now:
            return
        self.retry_at = min(self.retry_at, at if self._controlling else at + CONTROLLED_LATER)

    def lost(self, now: float) -> None:
        """A direct path broke and a relay took over: look again, later if it breaks often."""
        recent = [at for at in self._strikes if now - at < STRIKES_WITHIN]
        gap = LOST_AGAIN[min(len(recent), len(LOST_AGAIN) - 1)]
        self._strikes.append(now)
        self.retry_at = now + gap

    def hurry(self, now: float, began_at: float) -> None:
        """Begin soon, but not twice within a moment."""
        self.retry_at = max(now, began_at + ROUND_GAP)

    def due(self, now: float) -> bool:
        """Say whether the next round is due, and count it as begun."""
        if self.retry_at is None or self.retry_at > now:
            return False
        self.retry_at = None
        return True

    def call(self, moment: Moment) -> None:
        """Begin to call a round over the relayed path."""
        self._number = int.from_bytes(moment.entropy.take(4), "big")
        self._calls, self._call_at = 0, moment.now

    def next_call(self, now: float) -> int | None:
        """Return the number to send now, if a call is due."""
        if self._call_at is None or self._call_at > now:
            return None
        if self._number is None or self._calls > len(CALL_RETRY):
            self._number, self._call_at = None, None
            self.failed(now)
            return None
        gap = CALL_RETRY[min(self._calls, len(CALL_RETRY) - 1)]
        self._calls, self._call_at = self._calls + 1, now + gap
        return self._number

    def answered(self, number: int | None) -> bool:
        """A call was answered: say whether the round begins by it."""
        if number is None or number != self._number:
            return False
        self._number, self._call_at = None, None
        return True

    def called(self, number: int | None, now: float) -> bool:
        """The peer calls: say whether a round begins by it. Once for each number."""
        if number is None or number == self._heard or now - self._heard_at < ROUND_GAP:
            return False
        self._heard, self._heard_at = number, now
        if self._number is None:
            self.retry_at = None
        return True
