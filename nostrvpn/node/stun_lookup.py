"""When to look the STUN servers' names up: at start, after a move, and again while DNS fails."""

from __future__ import annotations

from nostrvpn.machine import Moment
from nostrvpn.node.events import ResolveStun, StunResolved

__all__ = ["StunLookup"]

# After a change of network DNS is often there a second later than the address.
RETRY_S = 1.0
# The lookup itself gives up after 5 s.
ANSWER_S = 6.0
MAX_RETRY_S = 600.0


class StunLookup:
    """One node's STUN servers by name, and which of them have no address."""

    def __init__(self, servers: tuple[str, ...]) -> None:
        self._servers = servers
        self._wait = RETRY_S
        self.unresolved: tuple[str, ...] = ()
        self.deadline: float | None = None

    def now(self, moment: Moment) -> list[ResolveStun]:
        """Look them up at once; if no answer comes, again later."""
        self._wait = RETRY_S
        self.deadline = moment.now + ANSWER_S if self._servers else None
        return [ResolveStun(self._servers)] if self._servers else []

    def tick(self, moment: Moment) -> list[ResolveStun]:
        """Look up again what had no address."""
        if self.deadline is None or moment.now < self.deadline:
            return []
        self._wait = min(self._wait * 2, MAX_RETRY_S)
        self.deadline = moment.now + max(self._wait, ANSWER_S)
        return [ResolveStun(self._servers)]

    def resolved(self, event: StunResolved, moment: Moment) -> None:
        """Take the answer; one server that never resolves is asked for ever more rarely."""
        self.unresolved = event.unresolved
        self.deadline = moment.now + self._wait if event.unresolved else None
