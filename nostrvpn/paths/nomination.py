"""Which pair both sides use: the controlling side nominates, the other one follows.

A nomination is a check with USE-CANDIDATE (RFC 8445 section 8.1.1). The pair may change later, so each
choice has a number, as in draft-thatcher-ice-renomination: a check that was held up on the way does
not bring an earlier choice back. It is repeated until it is answered, and the answer says that the
other side follows; one that cannot use the pair does not answer.
"""

from __future__ import annotations

from nostrvpn.endpoint import Endpoint
from nostrvpn.paths.budgets import Budget
from nostrvpn.stun.binding import StunMessage

__all__ = ["Nominated", "Nominations"]

# How long a working pair waits for a better one before it is nominated.
GRACE = 0.3
# Gaps between nominating checks until one is answered; after that every heartbeat nominates.
RETRY = (0.1, 0.2, 0.4, 0.8, 1.6)
# Changes that the peer may ask for, saved up and per second: a network that flaps needs some, and who
# asks for ever more would have us set WireGuard's endpoint all the time.
CHANGES = 6
CHANGES_PER_SECOND = 0.1


class Nominations:
    """The controlling side's: which choice it is, and when it is told (again)."""

    def __init__(self) -> None:
        self._step = 0
        self.number = 0
        self.deadline: float | None = None

    def choose(self, now: float, *, wait: bool) -> None:
        """Another pair was chosen; ``wait``: a better one may come, so tell it a little later."""
        self.number += 1
        self._step, self.deadline = 0, now + (GRACE if wait else 0.0)

    def stop(self) -> None:
        """No pair is chosen."""
        self.deadline = None

    def answered(self, number: int | None) -> None:
        """A check that nominated the choice ``number`` was answered."""
        if number == self.number:
            self.deadline = None

    def is_due(self, now: float) -> bool:
        """Say whether to nominate now, and count it as done."""
        if self.deadline is None or self.deadline > now:
            return False
        self.deadline = now + RETRY[self._step] if self._step < len(RETRY) else None
        self._step += 1
        return True

    @property
    def in_vain(self) -> bool:
        """Whether the last repetition just left: the pair has to show that it can be used."""
        return self.deadline is None and self._step > len(RETRY)


class Nominated:
    """The controlled side's: what it was told last, and how often it still follows."""

    def __init__(self) -> None:
        self._changes = Budget(CHANGES_PER_SECOND, CHANGES)
        self._link: int | None = None
        self._number = 0
        self.endpoint: Endpoint | None = None

    def take(self, endpoint: Endpoint, check: StunMessage) -> bool:
        """Take a nomination unless it is older than the last one; say which.

        Numbers count within one link of the peer's, which its tie-breaker tells from the next one.
        Older versions send none: theirs are taken as they come. The same choice may come from
        another endpoint, as NATs move ports.
        """
        if check.nomination is not None:
            if check.tie_breaker == self._link and check.nomination < self._number:
                return False
            self._link, self._number = check.tie_breaker, check.nomination
        self.endpoint = endpoint
        return True

    def may_change(self, now: float) -> bool:
        """Say whether the peer may have the pair changed now, and count it."""
        return self._changes.spend("", now)
