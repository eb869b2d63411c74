"""Which exit is used, and when it is left for another one. Times are ``Moment.now``'s seconds.

What counts is what is measured: an exit carries while its echoes come back through the tunnel. One
exit at a time is used, and the choice is deterministic: the same events give the same one.

- An echo that is not back after ``late_after`` counts as lost, until it comes back after all. The first
  one has the next ones sent sooner, and the other exits asked at once.
- After ``LEAVE_LOSSES`` in a row an exit is left, but only for one that has answered meanwhile, and
  before the last ``LOST_SINCE`` were sent: while this host itself is cut off, nobody answers, and
  when it is back, everybody does. Where no other one answers, it counts as gone after ``LOSSES``.
- Whoever was left so is shunned for a while, each time for longer, unless nobody else answers; to it
  the one in use is left only after ``DOUBTFUL_LOSSES``.
- A better one takes over only if it is better by far and for a while: connections do not survive the
  change of exit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from nostrvpn.exits.offer import ExitOffer
from nostrvpn.exits.settings import AUTO

__all__ = ["ECHO_S", "LEAVE_LOSSES", "LOSSES", "MAX_CANDIDATES", "Candidate", "ExitChoice"]

# Chosen by simulation (tests/sim/test_lossy_exits.py has the essential part) for exits 20 to 60 ms away.
# Six echoes 0.3 s apart, each silent for 0.3 s: an exit that dies is left after 2.4 s in the middle and
# 2.8 s at most; three echoes a second apart took 3.4 and 3.9 s. An exit that loses every fifth packet
# was left 25 times an hour by those three; by four of these 7 times, by five once, by six never. One
# that is silent for 1 s each minute (exponential): 6.5 times by those three, 15, 11 and 8.5 by these.
LEAVE_LOSSES = 6
# From one that stalls to another one that does nobody gains: if all others fell lately, it takes more.
# Where each exit is held up for 3 s once a minute, one was left 163 times an hour without this and is 24
# times with it; for 1 s each 20 s (exponential), 20 and 12. An exit that dies there is left 0.4 s later.
DOUBTFUL_LOSSES = 8
# Three seconds of silence: then it does not carry, and a fixed exit is waited for with everything held.
LOSSES = 10
# Of a host that is back after a moment without a network, a packet may be lost like any other.
LOST_SINCE = 2
HURRIED_EVERY_S = 0.3
MIN_LATE_S, MAX_LATE_S = 0.3, 0.9
ECHO_S = 2.0
"""How long an answer is listened for: one that comes late is an answer still."""
USED_EVERY_S = 1.0
STANDBY_EVERY_S = 30.0
# What has not answered for long is asked less often: an answer ends it.
PATIENT_LOSSES = 60
PATIENT_EVERY_S = 5.0
# A standby one answered lately if its last echo came back, with room for one that was late.
FRESH_S = STANDBY_EVERY_S + 10.0
# At the beginning the first answer waits so long for others: the nearest one answers first.
SETTLE_S = 0.5
# A better one has to be better by so much, for so long, and not soon after the last change.
MARGIN = 1.3
MARGIN_MS = 10.0
STABLE_S = 60.0
STAY_S = 300.0
# After its first fall, doubled with each further one. A better one is not returned to sooner anyway.
SHUN_S = 300.0
MAX_SHUN_S = 3600.0
# An exit that did not fall for so long starts anew.
FORGIVEN_S = 6 * 3600.0
# Of the last so many round trips the middle one counts.
SAMPLES = 8
# More would cost more echoes than a better exit saves.
MAX_CANDIDATES = 16


@dataclass(frozen=True, slots=True)
class Candidate:
    """An exit that this node may use. ``has_path``: packets reach it, as far as is known."""

    offer: ExitOffer
    has_path: bool


@dataclass(slots=True)
class _Health:
    answered: float | None = None
    losses: int = 0
    lost_at: float | None = None  # the first of the losses in a row
    # When the echoes of the last of them were sent.
    lost_sent: deque[float] = field(default_factory=lambda: deque(maxlen=LOST_SINCE))
    rtts: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    falls: int = 0
    fell_at: float = 0.0
    shunned_until: float = 0.0

    @property
    def is_alive(self) -> bool:
        return self.answered is not None and self.losses < LOSSES

    @property
    def rtt_ms(self) -> float | None:
        return sorted(self.rtts)[len(self.rtts) // 2] if self.rtts else None


class ExitChoice:
    """The exit in use (a public key), and how the others do."""

    def __init__(self) -> None:
        self.used: str | None = None
        self.since: float | None = None  # since when it is the one
        self.deadline: float | None = None
        self._health: dict[str, _Health] = {}
        self._first_answer: float | None = None
        # Who answers since the one in use fell silent: the first answer after which none was lost.
        self._proofs: dict[str, float] = {}
        self._better: tuple[str, float] | None = None

    @property
    def carries(self) -> bool:
        """Whether the one in use answers."""
        return self.used is not None and self._of(self.used).is_alive

    def rtt_ms(self, key: str) -> float | None:
        """Return the middle one of an exit's last round trips, in ms; None if it never answered."""
        return self._health[key].rtt_ms if key in self._health else None

    def is_alive(self, key: str) -> bool:
        """Whether an exit answered lately."""
        return key in self._health and self._health[key].is_alive

    def silent_since(self, key: str) -> float | None:
        """Return when the first echo of those in a row stayed away; None if the last came back."""
        return self._health[key].lost_at if key in self._health else None

    def interval(self, key: str) -> float:
        """Return how many seconds lie between two echoes to a candidate now."""
        health = self._of(key)
        if health.losses >= PATIENT_LOSSES:
            return PATIENT_EVERY_S
        if key == self.used:
            return HURRIED_EVERY_S if 0 < health.losses < LOSSES else USED_EVERY_S
        # Whoever falls silent may have to be replaced: then the others are asked at once.
        hurried = not self.carries or (self.used is not None and self._of(self.used).losses > 0)
        return USED_EVERY_S if hurried else STANDBY_EVERY_S

    def late_after(self, key: str) -> float:
        """Return after how many seconds an echo to a candidate counts as lost."""
        rtt = self.rtt_ms(key)
        if rtt is None:
            return MAX_LATE_S
        return min(max(2 * rtt / 1000, MIN_LATE_S), MAX_LATE_S)

    def probed(self, key: str, rtt_ms: float | None, now: float) -> None:
        """An echo came back after ``rtt_ms``, or (None) it did not within :meth:`late_after`. One that
        did not may come back later."""
        health = self._of(key)
        if rtt_ms is None:
            self._proofs.pop(key, None)
            health.losses += 1
            health.lost_sent.append(now - self.late_after(key))
            if health.lost_at is None:
                health.lost_at = now
            return
        if key == self.used:
            self._proofs.clear()
        elif self.used is not None and self._of(self.used).losses:
            self._proofs.setdefault(key, now)
        health.answered, health.losses, health.lost_at = now, 0, None
        health.rtts.append(rtt_ms)
        if self._first_answer is None:
            self._first_answer = now

    def review(self, wanted: str, candidates: Mapping[str, Candidate], now: float) -> bool:
        """Choose anew; return whether the exit in use changed.

        ``wanted``: a public key, ``AUTO``, or empty for none. A candidate is one that offers to be an
        exit and allows this node; who is no candidate any more is left at once.
        """
        before, self.deadline = self.used, None
        for gone in self._health.keys() - candidates.keys():
            del self._health[gone]
        if not wanted:
            self._health.clear()
            self._first_answer = None
        if wanted != AUTO:
            self._use(wanted if wanted in candidates else None, now)
        else:
            if self.used not in candidates:
                self._use(None, now)
            self._choose(candidates, now)
        return before != self.used

    def _choose(self, candidates: Mapping[str, Candidate], now: float) -> None:
        ready = [key for key in candidates if self._is_ready(key, now)]
        # Who fell lately is used only where nobody else answers.
        steady = [key for key in ready if self._of(key).shunned_until <= now]
        if self.used is None:
            if ready and not self._waits(candidates, now):
                self._use(self._best(steady or ready, candidates), now)
            return
        current = self._of(self.used)
        if current.answered is not None and current.losses < LEAVE_LOSSES:
            self._look_for_better(steady, candidates, now)
            return
        proven = [key for key in ready if self._is_proven(key, current)]
        safe = [key for key in proven if key in steady]
        if not proven:
            return
        if current.answered is not None:
            if not safe and current.losses < DOUBTFUL_LOSSES:
                return
            self._fall(current, now)
        self._use(self._best(safe or proven, candidates), now)

    def _waits(self, candidates: Mapping[str, Candidate], now: float) -> bool:
        """Whether a nearer one may yet answer."""
        first = self._first_answer if self._first_answer is not None else now
        unheard = [
            key
            for key, candidate in candidates.items()
            if candidate.has_path and self._of(key).answered is None and not self._of(key).losses
        ]
        if not unheard or now >= first + SETTLE_S:
            return False
        self.deadline = first + SETTLE_S
        return True

    def _look_for_better(
        self, ready: list[str], candidates: Mapping[str, Candidate], now: float
    ) -> None:
        assert self.used is not None
        best = self._best([*ready, self.used], candidates)
        if best == self.used or not self._is_far_better(best, self.used, candidates):
            self._better = None
            return
        if self._better is None or self._better[0] != best:
            self._better = (best, now)
        assert self.since is not None
        due = max(self._better[1] + STABLE_S, self.since + STAY_S)
        if now >= due:
            self._use(best, now)
        else:
            self.deadline = due

    def _is_far_better(self, one: str, other: str, candidates: Mapping[str, Candidate]) -> bool:
        new, old = self._rank(one, candidates), self._rank(other, candidates)
        return new[:2] < old[:2] or (new[:2] == old[:2] and new[2] * MARGIN + MARGIN_MS < old[2])

    def _best(self, keys: list[str], candidates: Mapping[str, Candidate]) -> str:
        return min(keys, key=lambda key: self._rank(key, candidates))

    def _rank(self, key: str, candidates: Mapping[str, Candidate]) -> tuple[bool, bool, float, str]:
        """Return what is compared, less is better: full, without IPv4, latency with load, the key."""
        offer, rtt = candidates[key].offer, self._of(key).rtt_ms
        cost = float("inf") if rtt is None else rtt * (1 + offer.load / 100)
        return offer.load >= 100, not offer.v4, cost, key

    def _is_ready(self, key: str, now: float) -> bool:
        return self._of(key).losses == 0 and self._answered_since(key, now - FRESH_S)

    def _is_proven(self, key: str, current: _Health) -> bool:
        """Whether it answered while the one in use does not."""
        if not current.losses:
            return True
        return self._proofs.get(key, float("inf")) <= current.lost_sent[0]

    def _answered_since(self, key: str, then: float) -> bool:
        answered = self._of(key).answered
        return answered is not None and answered >= then

    def _fall(self, health: _Health, now: float) -> None:
        health.falls = 1 if now - health.fell_at > FORGIVEN_S else health.falls + 1
        health.fell_at = now
        health.shunned_until = now + min(SHUN_S * 2.0 ** (health.falls - 1), MAX_SHUN_S)

    def _use(self, key: str | None, now: float) -> None:
        if key != self.used:
            self.used, self.since, self._better = key, now if key is not None else None, None
            self._proofs.clear()

    def _of(self, key: str) -> _Health:
        return self._health.setdefault(key, _Health())
