"""What a seller said of its own count: that little is left there, or that it pauses.

It knows what was lost on the way to us, so it may pause while by our count enough is paid. Its messages
overtake each other: what it says was said at some sum paid, and holds until more than that is credited,
or until a later bill says otherwise. The answer to a payment alone takes nothing of it back.
"""

from __future__ import annotations

from nostrvpn.market.billing import LeaseState
from nostrvpn.market.messages import Usage

__all__ = ["Told"]


class Told:
    """The last word of a lease's seller; nothing was said yet."""

    def __init__(self) -> None:
        self._billed_msat = 0
        self._low_at: int | None = None  # msat that were paid when it was said
        self._paused_at: int | None = None

    @property
    def is_low(self) -> bool:
        """Whether money runs out by the seller's count."""
        return self._low_at is not None

    @property
    def is_suspended(self) -> bool:
        """Whether it waits for money and lets nothing through."""
        return self._paused_at is not None

    def low(self, paid_msat: int, *, is_suspended: bool = False) -> None:
        """It said so without a bill; ``paid_msat``: what we know to be credited."""
        self._low_at = max(paid_msat, self._billed_msat)
        if is_suspended:
            self._paused_at = self._low_at

    def billed(self, usage: Usage) -> None:
        """Take a bill that agrees with our count, the latest by its number."""
        self._billed_msat = usage.paid_msat
        # Who has what he asks for waits for nothing.
        owes = usage.due_msat > usage.paid_msat
        is_paused = usage.state == LeaseState.SUSPENDED.value and owes
        self._paused_at = usage.paid_msat if is_paused else None
        if is_paused or usage.state == LeaseState.GRACE.value:
            self._low_at = usage.paid_msat

    def credited(self, paid_msat: int) -> None:
        """So much in all is credited."""
        if self._low_at is not None and paid_msat > self._low_at:
            self._low_at = None
        if self._paused_at is not None and paid_msat > self._paused_at:
            self._paused_at = None
