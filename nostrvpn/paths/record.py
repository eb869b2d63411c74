"""What a link notes for others: how long each stage took, and what to persist."""

from __future__ import annotations

from collections import Counter

from nostrvpn.endpoint import Endpoint
from nostrvpn.paths.description import CachedSession, Description

__all__ = ["Record"]


class Record:
    """Stages are milliseconds since the current attempt began."""

    def __init__(self, now: float, cached: CachedSession | None) -> None:
        self.began_at = now
        self.stages: dict[str, float] = {}
        self.counters: Counter[str] = Counter()
        self._kept = cached

    def begin(self, now: float) -> None:
        """A new attempt begins."""
        self.began_at = now
        self.stages.clear()

    def stage(self, name: str, now: float) -> None:
        """Note that a stage was reached, the first time."""
        self.stages.setdefault(name, (now - self.began_at) * 1000)

    def memory(
        self, local: Description | None, remote: Description | None, endpoint: Endpoint | None
    ) -> CachedSession | None:
        """Return what to persist, if it differs from what was persisted last.

        ``endpoint`` None: no direct path now; the last one is as good a start as any.
        """
        if local is None or remote is None:
            return None
        endpoint = endpoint or (None if self._kept is None else self._kept.endpoint)
        cached = CachedSession(local, remote, endpoint)
        if cached == self._kept:
            return None
        self._kept = cached
        return cached
