"""Is a path alive? Consent checks (RFC 7675), made cheap.

In use: both sides check every 2 s, and every second if it is relayed. Idle: the controlling side
alone checks, every 25 s on a grid that all links share; its check and the answer keep both NATs'
mappings open, and the other side listens. Misses, then quick retries, then the path is lost: 5 s
after it broke, if in use; 2.5 s, if relayed. After a move of ours every retry is quick.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from nostrvpn.paths.reflexive import REFRESH, next_on_grid

__all__ = ["DIRECT", "QUICK", "RELAYED", "Heartbeat", "Pace", "Pulse"]

# The same as the STUN refresh, so that one wake-up serves both, and below a NAT's 30 s.
IDLE_INTERVAL = REFRESH
# The listener allows the checker its retries before it checks itself.
LISTENER_SLACK = {True: 2.0, False: 10.0}


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds between the checks of a path in use, and the gaps after each that goes unanswered.

    A late answer counts until the last gap is over, so their sum is what must exceed a round trip.
    """

    interval: float
    gaps: tuple[float, ...]


# The internet's round trips stay below a second. Our NAT may have given us another port, which is
# found out by the first miss: so it comes soon.
DIRECT = Pace(2.0, (0.4, 0.6, 1.0, 0.25, 0.25, 0.25, 0.25))
# A relay has another one beside it, so there is little to gain by waiting.
RELAYED = Pace(1.0, (0.5, 0.2, 0.2, 0.2, 0.2, 0.2))
# The first gap, where round trips are long.
LONGEST_GAP = 1.0
# There is news that makes the loss of the path likely.
QUICK = Pace(3.0, RELAYED.gaps)

# Of a path that loses many packets one silence in so many is taken for its end: it gets more tries.
# (Through a relay a check and its answer take four ways: of 10 % lost on each, a third stay unanswered.)
MISTAKEN = 1e-4
MOST_TRIES = 20
# How much one check enters what is known of the loss.
SMOOTHING = 1 / 16


class Pulse(Enum):
    """What a due heartbeat asks for."""

    NOTHING = "nothing"
    CHECK = "check"
    LOST = "lost"


class Heartbeat:
    """The timer of one path; ``controlling`` decides who checks an idle one."""

    def __init__(self, *, controlling: bool) -> None:
        self._controlling = controlling
        self._pace = DIRECT
        self._gaps = DIRECT.gaps
        self._active = False
        self._misses = 0
        self._loss = 0.0
        self._doubted = False
        self._unanswered_since: float | None = None
        self._heard_at = 0.0
        self.deadline: float | None = None

    @property
    def doubtful(self) -> bool:
        """Whether an answer was missed since the last one came."""
        return self._misses > 0

    @property
    def active(self) -> bool:
        """Whether the tunnel is in use."""
        return self._active

    def start(self, now: float, pace: Pace | None = None) -> None:
        """A path was selected, just proven by a check."""
        self._pace = pace or self._pace
        self._gaps = self._pace.gaps
        self._misses, self._unanswered_since, self._doubted = 0, None, False
        self._heard_at = now
        self._rest(now)

    def stop(self) -> None:
        """No path is selected."""
        self.deadline, self._unanswered_since = None, None

    def answered(self, now: float, rtt: float | None = None) -> None:
        """The peer answered a check on the selected path, after ``rtt`` seconds."""
        if self.deadline is not None:
            if self._unanswered_since is not None:
                # Only now: what nothing comes back from is no lossy path, but none.
                kept = (1 - SMOOTHING) ** self._misses
                self._loss = (self._loss * kept + 1 - kept) * (1 - SMOOTHING)
            self.start(now)
            # Far peers are not doubted after each check.
            late = 0.0 if rtt is None else min(2 * rtt, LONGEST_GAP)
            self._gaps = (max(late, self._gaps[0]), *self._gaps[1:])

    def heard(self, now: float) -> None:
        """The peer's own check came over the selected path."""
        self._heard_at = now

    def probe(self, now: float, *, quick: bool = False) -> None:
        """Doubt the path: check it at once; ``quick``: it probably is lost, wait little."""
        if quick:
            self._gaps = QUICK.gaps
        if self.deadline is not None and self._unanswered_since is None:
            self.deadline = now
            self._doubted = True

    def set_active(self, active: bool, now: float) -> None:
        """The tunnel came into use, or fell idle."""
        if active == self._active:
            return
        self._active = active
        if self.deadline is not None and self._unanswered_since is None:
            self._rest(now)

    def pulse(self, now: float) -> Pulse:
        """Say what is due; after CHECK, the caller sends one."""
        if self.deadline is None or now < self.deadline:
            return Pulse.NOTHING
        if self._unanswered_since is not None:
            self._misses += 1
        elif not self._controlling and not self._active:
            listen_until = self._heard_at + IDLE_INTERVAL + LISTENER_SLACK[self._active]
            if now < listen_until and not self._doubted:
                self.deadline = listen_until
                return Pulse.NOTHING
        if self._misses >= self._tries:
            self.stop()
            return Pulse.LOST
        self._unanswered_since = now
        self.deadline = now + self._gaps[min(self._misses, len(self._gaps) - 1)]
        return Pulse.CHECK

    @property
    def _tries(self) -> int:
        """How many checks go unanswered before the path is lost."""
        if not self._loss:
            return len(self._gaps)
        needed = math.ceil(math.log(MISTAKEN) / math.log(self._loss))
        return max(len(self._gaps), min(needed, MOST_TRIES))

    def _rest(self, now: float) -> None:
        if self._active:
            self.deadline = now + self._pace.interval
        elif self._controlling:
            self.deadline = next_on_grid(now, IDLE_INTERVAL)
        else:
            self.deadline = now + IDLE_INTERVAL + LISTENER_SLACK[False]
