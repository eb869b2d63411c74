"""When late packets of an old path must not make WireGuard roam back to it."""

from __future__ import annotations

from nostrvpn.endpoint import Endpoint
from nostrvpn.paths.events import Guard, PathEffect, Unguard

__all__ = ["PathGuard", "passes_on"]

# Both sides change over within two round trips and a heartbeat; measured: late packets of a busy
# tunnel end within 2 s.
GUARD_FOR = 4.0


def passes_on(old: Endpoint, new: Endpoint) -> bool:
    """Say whether a packet from ``old`` can be made one from ``new``; else a guard drops it.

    No header holds an address of the other IP version, and the kernel takes none from the loopback
    network that comes from elsewhere.
    """
    return old.ip.version == new.ip.version and not (old.ip.is_loopback or new.ip.is_loopback)


class PathGuard:
    """At most one guard: that of the last change of a live tunnel's endpoint."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._old: Endpoint | None = None
        self.deadline: float | None = None

    def change(self, old: Endpoint | None, new: Endpoint, now: float) -> list[PathEffect]:
        """The endpoint of a live tunnel changes; return what comes before that."""
        if old is None or old == new:
            return []
        if self.deadline is not None and self._old == new:
            return self.lift()
        self._old, self.deadline = old, now + GUARD_FOR
        return [Guard(self._peer, old, new)]

    def lift(self) -> list[PathEffect]:
        """The old path is quiet or gone; nothing is to be told where nothing was guarded."""
        if self.deadline is None:
            return []
        self._old, self.deadline = None, None
        return [Unguard(self._peer)]

    def tick(self, now: float) -> list[PathEffect]:
        """Lift the guard when its time is over."""
        return self.lift() if self.deadline is not None and self.deadline <= now else []
