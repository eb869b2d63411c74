"""When strangers are served: not in quiet hours, and not once the month's budget is used.

An end is told before it comes: buyers look for another seller meanwhile, and nobody new is taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from nostrvpn.errors import UsageError, one_line
from nostrvpn.exits.limits import Ledger

__all__ = ["CLOSING_S", "Opening", "Quiet", "Standing"]

CLOSING_S = 60
"""So long before the end (seconds) buyers hear of it."""
_DAY_S = 86_400
_QUIET = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])\s*-\s*([01]?[0-9]|2[0-3]):([0-5][0-9])\Z")


class Standing(Enum):
    """``CLOSING``: who is there is served and told; ``CLOSED``: nobody is."""

    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Quiet:
    """Hours of each day, of the host's own clock: from ``begin`` to ``end``, minutes after midnight."""

    begin: int
    end: int

    @classmethod
    def parse(cls, text: str) -> Quiet:
        """Read ``01:00-07:00``, which may pass midnight; UsageError."""
        found = _QUIET.match(text.strip())
        if found is None:
            raise UsageError(f"{one_line(text)!r} are no hours", "for example: 01:00-07:00")
        begin, end = (60 * int(found[n]) + int(found[n + 1]) for n in (1, 3))
        if begin == end:
            raise UsageError("quiet hours that never end", "for example: 01:00-07:00")
        return cls(begin, end)

    def __str__(self) -> str:
        return f"{_clock(self.begin)}-{_clock(self.end)}"

    def covers(self, day_s: float) -> bool:
        """Whether a time of the day (seconds after midnight) is within."""
        minute = day_s % _DAY_S / 60
        if self.begin < self.end:
            return self.begin <= minute < self.end
        return minute >= self.begin or minute < self.end


class Opening:
    """``account``: what was served in the month, kept by the caller. ``why``: it ends, in words."""

    def __init__(self, account: Ledger) -> None:
        self.account = account
        self.standing = Standing.OPEN
        self.why = ""
        self._seen: dict[str, int] = {}
        self._looked_at: float | None = None
        self._ends: tuple[tuple[str, int], float] | None = (
            None  # of which month and budget, and when
        )

    def begin(self, totals: Mapping[str, int]) -> None:
        """Leases of an earlier run have moved so much that is in the account already."""
        self._seen = dict(totals)

    def count(self, totals: Mapping[str, int], now: float, wall: float) -> int:
        """Take up what leases moved, by their ids, bytes; return how many a second that is.

        ``now`` and ``wall``: Moment's seconds.
        """
        self.account.tell_time(wall)
        grown = sum(max(0, total - self._seen.get(name, 0)) for name, total in totals.items())
        self._seen = dict(totals)
        self.account.used += grown
        elapsed = None if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        return int(grown / elapsed) if elapsed else 0

    def look(
        self, budget: int, quiet: Quiet | None, rate: int, now: float, day_s: float
    ) -> Standing:
        """Return how it stands. ``budget``: bytes a month, 0 for any; ``rate``: bytes a second of late;
        ``day_s``: seconds after midnight of the host's clock."""
        spent = "the month's budget is used"
        hours = f"quiet hours, {quiet}" if quiet is not None else ""
        of_month = self.account.month, budget
        if self._ends is not None and self._ends[0] != of_month:
            self._ends = None
        if budget and self._ends is None and self.account.used + rate * CLOSING_S >= budget:
            self._ends = of_month, now + CLOSING_S
        is_over = self._ends is not None and now >= self._ends[1]
        if budget and (is_over or self.account.is_spent(budget)):
            self.standing, self.why = Standing.CLOSED, spent
        elif quiet is not None and quiet.covers(day_s):
            self.standing, self.why = Standing.CLOSED, hours
        elif self._ends is not None:
            self.standing, self.why = Standing.CLOSING, spent
        elif quiet is not None and quiet.covers(day_s + CLOSING_S):
            self.standing, self.why = Standing.CLOSING, hours
        else:
            self.standing, self.why = Standing.OPEN, ""
        return self.standing


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"
