"""How much was carried this month, and whether that is all there is."""

from __future__ import annotations

from datetime import UTC, datetime

from nostrvpn.machine import Moment

__all__ = ["Meter", "month_of"]


class Meter:
    """Bytes of one calendar month (UTC) against ``limit``, None for none.

    ``month`` and ``carried`` go on from an earlier run.
    """

    def __init__(self, limit: int | None, month: str, carried: int) -> None:
        self._limit = limit
        self._month = month
        self._carried = carried

    def add(self, carried: int, moment: Moment) -> None:
        """Count ``carried`` bytes as of now."""
        self._carried = self.carried(moment) + carried
        self._month = month_of(moment)

    def carried(self, moment: Moment) -> int:
        """Return the bytes of the month that it is now."""
        return self._carried if self._month == month_of(moment) else 0

    def is_used_up(self, moment: Moment) -> bool:
        """Say whether nothing may be carried any more until the next month."""
        return self._limit is not None and self.carried(moment) >= self._limit


def month_of(moment: Moment) -> str:
    """Return the month of ``moment.wall``, as "2026-11"."""
    return datetime.fromtimestamp(moment.wall, UTC).strftime("%Y-%m")
