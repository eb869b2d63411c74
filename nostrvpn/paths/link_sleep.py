"""Sleep: a link that nobody uses lets go of its path, and costs nothing until somebody wants it.

Awake again it begins like any other, with a new session. What wakes it: traffic, or the peer's
description.
"""

from __future__ import annotations

from nostrvpn.machine import Moment
from nostrvpn.paths.candidates import Surroundings
from nostrvpn.paths.events import PathEffect
from nostrvpn.paths.link_path import LinkPath
from nostrvpn.paths.states import LIVE, LinkState

__all__ = ["LinkSleep"]

# So long at least a link that was woken tries to reach a peer that does not answer.
IN_VAIN = 60.0
# Spec (WireGuard, section 6): what is not answered for KEEPALIVE_TIMEOUT and REKEY_TIMEOUT, 15 s in all,
# starts a handshake. Asleep nothing is answered: the last echo of all would wake the link.
UNANSWERED = 20.0


class LinkSleep(LinkPath):
    """A link's path, and when it is given up for want of use."""

    _woken_at: float | None = None

    def start(
        self, surroundings: Surroundings, moment: Moment, *, asleep: bool = False
    ) -> list[PathEffect]:
        """Begin with the peer: offer, and check a cached path at once; or wait until it is wanted."""
        self._surroundings = surroundings
        if asleep:
            effects = self._enter(LinkState.ASLEEP, "nobody wants it yet")
            return effects + self._selection.release(moment.now)
        return self._begin(moment)

    def wake(self, moment: Moment) -> list[PathEffect]:
        """There is traffic for a peer whose link sleeps."""
        if self.state is not LinkState.ASLEEP:
            return []
        self._woken_at = moment.now
        return self._begin(moment, renew=True)

    def _fall_asleep(self, moment: Moment) -> list[PathEffect]:
        """Let go of a path that nobody used for long."""
        after, now = self._settings.sleep_after, moment.now
        if after is None:
            return []
        if self.state in (LinkState.OFFERED, LinkState.FAILED):
            # Woken in vain; who started awake goes on, so that it shows.
            idle = 0.0 if self._woken_at is None else now - self._woken_at
            after = max(after, IN_VAIN)
        else:
            idle = self._selection.unused_for(now) if self.state in LIVE else 0.0
        if idle < after:
            return []
        if self.state in LIVE and self._selection.still_for(now) < min(UNANSWERED, after):
            return []
        self.announcer.rest()
        self._gather_until = None
        self.rounds.succeeded()
        self.hard.stop()
        # The memory against replays stays: the credentials still open a check.
        self.checks.forget()
        effects = self._enter(LinkState.ASLEEP, "nobody used it")
        return effects + self._selection.release(now)
