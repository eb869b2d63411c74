"""What tries through a tunnel found, one after the other: is it there, is it fast, where does it end."""

from __future__ import annotations

from nostrvpn.market import patience
from nostrvpn.market.bought_lease import BoughtLease, Phase
from nostrvpn.market.effects import Probed
from nostrvpn.market.trust import Outcome

__all__ = ["Tries"]


class Tries:
    """``rtt_ms`` and ``country`` are the last that were found."""

    def __init__(self) -> None:
        self.rtt_ms: int | None = None
        self.country = ""
        self._failures = self._slow = 0

    @property
    def why_slow(self) -> str:
        """Why another seller should be looked for while this one serves, or nothing."""
        return f"it answers in {self.rtt_ms} ms" if self._slow >= patience.SLOW_PROBES else ""

    def take(
        self, probe: Probed, lease: BoughtLease, limit_ms: int, *, is_suspended: bool
    ) -> tuple[str, Outcome] | None:
        """Take one; return why the seller is left at once. ``limit_ms``: slower is slow, 0 for any."""
        if not probe.ok:
            self._failures += 1
            # Who is paused for want of our money is not dead.
            dead = self._failures >= patience.PROBE_FAILURES and not is_suspended
            if lease.phase == Phase.SERVED and dead:
                return f"nothing comes through: {probe.reason}", Outcome.BROKE_OFF
            return None
        self._failures, self.rtt_ms = 0, probe.rtt_ms
        self.country = probe.country or self.country
        claimed = lease.offer.country
        if probe.country and claimed and probe.country != claimed:
            return f"it is in {probe.country}, not in {claimed}", Outcome.NO_SERVICE
        self._slow = self._slow + 1 if limit_ms and (probe.rtt_ms or 0) > limit_ms else 0
        return None
