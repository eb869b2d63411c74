"""How many relays a link is to have, and when: a mesh has many pairs, and a relay few ports."""

from __future__ import annotations

from nostrvpn.machine import earliest

__all__ = ["RELAYS", "RelayDemand"]

# Relays wanted for one link.
RELAYS = 2
# The controlled side leaves it to the other to allocate for so long, and for longer while a path is
# live: else each pair of peers would have twice the ports that it needs.
YIELD_AT_FIRST = 0.5
YIELD = 10.0
# A direct path is found sooner, as a rule. The second relay is only of use where there is none.
SPARE_AFTER = 0.5
# A node that knows the peer from before finds it directly in less, as a rule.
PATIENCE = 0.3
# What nobody wanted for so long is forgotten, and its WebSockets are closed; the relay's side expires.
RELEASE_AFTER = 60.0


class RelayDemand:
    """Times are Moment.now. ``deadline``: when the demand changes by itself."""

    def __init__(self, *, controlling: bool) -> None:
        self._controlling = controlling
        self._since: float | None = None
        self._not_before = float("-inf")
        self._grows_at: float | None = None
        self._release_at: float | None = None

    @property
    def deadline(self) -> float | None:
        """When more relays are to be asked, or all of them are to be let go."""
        return earliest(self._grows_at, self._release_at)

    @property
    def wanted(self) -> bool:
        """Whether this link needs relays now."""
        return self._since is not None

    def want(self, now: float, *, wanted: bool) -> None:
        """Say whether this link needs relays now: no direct path, or one in use."""
        if wanted:
            self._since = now if self._since is None else self._since
            self._release_at = None
        elif self._since is not None:
            self._since = self._grows_at = None
            self._release_at = now + RELEASE_AFTER

    def be_patient(self, now: float) -> None:
        """A direct path is likely to be found at once."""
        self._not_before = now + PATIENCE

    def count(self, now: float, *, live: bool, direct: bool) -> int:
        """Return how many relays are to be in sight: one at first, or beside a direct path."""
        self._grows_at = None
        if self._since is None:
            return 0
        at = self._not_before
        if not self._controlling:
            at = max(at, self._since + (YIELD if live else YIELD_AT_FIRST))
        if now < at:
            self._grows_at = at
            return 0
        if direct or now >= self._since + SPARE_AFTER:
            return 1 if direct else RELAYS
        self._grows_at = self._since + SPARE_AFTER
        return 1

    def wait_until(self, at: float) -> None:
        """More can be asked then."""
        self._grows_at = earliest(self._grows_at, at)

    def take_release(self, now: float) -> bool:
        """Say, once, that nobody wanted relays for long."""
        if self._release_at is None or now < self._release_at:
            return False
        self._release_at = None
        return True
