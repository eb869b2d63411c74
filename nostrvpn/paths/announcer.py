"""Our side of the conversation with one peer: sessions, descriptions, and when to repeat them.

An offer (``answers`` is None) is repeated until the peer's description names our session. An answer
needs no repeating: while it is missing, the peer repeats its offer and is answered again. Updates
are repeated as long as the caller says that a round is running (``wanted``).
"""

from __future__ import annotations

from dataclasses import replace

from nostrvpn.machine import Moment
from nostrvpn.paths.candidates import Candidate
from nostrvpn.paths.description import CachedSession, Description, NatInfo
from nostrvpn.paths.hard_nat.plan import SearchPlan
from nostrvpn.paths.relay_offers import RelayTicket

__all__ = ["Announcer"]

# Gaps between repetitions of a description; the last one repeats. A lost message costs a second,
# an absent peer one message in five minutes.
REPEAT = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 120.0, 300.0)
# The share of a gap by which it varies, so that peers do not repeat in step.
JITTER = 0.1
# No two descriptions to one peer within this time: candidates that come together go together. After
# quiet two updates may follow each other so fast (new addresses, then what STUN servers and relays
# say of them); then news wait.
MIN_GAP = 0.2
UPDATE_GAP = 5.0
QUICK_UPDATES = 2
QUIET = 30.0
# Sessions whose credentials still open a check: the current one, the last one the peer answered,
# and one between, so that a peer's checks under way survive a restart of the session.
MAX_SESSIONS = 3
# More generations than a session sees between two records of it.
RESTART_STEP = 1000


class Announcer:
    """Holds our sessions towards one peer and the schedule of descriptions."""

    def __init__(self, cached: CachedSession | None, moment: Moment) -> None:
        self._sessions: list[tuple[str, str, str]] = []
        self._sent: Description | None = None
        self._repeats = 0
        self._last_at: float | None = None
        self._updates = 0
        self._hurried: float | None = None
        self.deadline: float | None = None
        self.answered = False
        if cached is None:
            self.renew(moment)
        else:
            local = cached.local
            self._sessions = [(local.session, local.ufrag, local.password)]
            # Descriptions may have followed the one that was kept: begin well above them, or the
            # peer takes ours for an old one.
            self._sent = replace(local, generation=local.generation + RESTART_STEP)
            self.answered = cached.remote.answers == local.session

    @property
    def session(self) -> str:
        """The current session's id."""
        return self._sessions[-1][0]

    @property
    def ufrag(self) -> str:
        """The current session's user name fragment."""
        return self._sessions[-1][1]

    @property
    def ufrags(self) -> tuple[str, ...]:
        """The user name fragments under which checks may come in."""
        return tuple(ufrag for _, ufrag, _ in self._sessions)

    @property
    def latest(self) -> Description | None:
        """The description that was sent last."""
        return self._sent

    @property
    def is_offering(self) -> bool:
        """Whether an offer of ours waits for its answer."""
        return self._sent is not None and self._sent.answers is None and not self.answered

    def password(self, ufrag: str) -> str | None:
        """Return our password that belongs to ``ufrag``."""
        for _, known, password in self._sessions:
            if known == ufrag:
                return password
        return None

    def renew(self, moment: Moment) -> None:
        """Begin a new session (an ICE restart); the old credentials stay valid for a while."""
        take = moment.entropy.take
        self._sessions.append((take(8).hex(), take(6).hex(), take(16).hex()))
        if len(self._sessions) > MAX_SESSIONS:
            # The first is the last one that was answered: a peer may know no other.
            del self._sessions[0 if self.answered else 1]
        self._sent = None
        self.answered = False
        self._repeats = 0

    def acknowledge(self, answers: str | None) -> bool:
        """Take the peer's ``answers``; return whether it knows our current session."""
        if answers == self.session:
            self.answered = True
            del self._sessions[:-2]
        return answers == self.session

    def describe(
        self,
        candidates: tuple[Candidate, ...],
        answers: str | None,
        moment: Moment,
        relays: tuple[RelayTicket, ...] = (),
        nat: NatInfo | None = None,
        search: SearchPlan | None = None,
    ) -> Description:
        """Return the description to send now, one generation on if anything changed."""
        session, ufrag, password = self._sessions[-1]
        last = self._sent
        generation = 1 if last is None or last.session != session else last.generation
        description = Description(
            session, generation, answers, ufrag, password, candidates, relays, nat, search
        )
        if last is not None and last.session == session and last != description:
            description = replace(description, generation=generation + 1)
            self._repeats = 0
        self._sent = description
        if self._last_at is None or moment.now - self._last_at > QUIET:
            self._updates = 0
        self._last_at = moment.now
        gap = REPEAT[min(self._repeats, len(REPEAT) - 1)]
        self._repeats += 1
        self.deadline = moment.now + gap * (1 + JITTER * (moment.entropy.fraction() - 0.5))
        return description

    def may_repeat(self, now: float, gap: float) -> bool:
        """Say whether the last description was sent at least ``gap`` seconds ago."""
        return self._last_at is None or now - self._last_at >= gap

    def hurry(self, now: float, gap: float | None = None) -> None:
        """News: describe again, but no sooner than ``gap`` seconds after the last time."""
        self._repeats = 0
        if gap is None:
            gap = MIN_GAP if self._updates < QUICK_UPDATES else UPDATE_GAP
        due = now if self._last_at is None else max(now, self._last_at + gap)
        if self._hurried is None or self.deadline != self._hurried:
            self._updates += 1
            self.deadline = self._hurried = due

    def rest(self) -> None:
        """Nothing needs to be said (again)."""
        self.deadline = None
