"""How often applicants are answered: asking again and again must cost the asker, not the mesh.

A welcome to a large network is many messages, and whoever has an old link can make up npubs without
end. An honest applicant notices nothing: it asks after 1, 2, 4 … seconds.
"""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["REFUSE_WITHIN_S", "AnswerPace"]

# A repeated request is welcomed again no sooner than this, for each message the welcome takes.
WELCOME_GAP_S = 0.5
# Refusals sent at once, and the time after which there may be one more.
REFUSALS = 20
REFUSAL_EVERY_S = 15.0
# Relays keep requests for days and repeat them: one older than this is not refused (again). An
# applicant that still waits asks anew within 300 s.
REFUSE_WITHIN_S = 600.0
# Applicants remembered; more than invites can be open (100), and forgetting one only answers it early.
MAX_APPLICANTS = 256


class AnswerPace:
    """The inviter's patience. Times are Moment.now's seconds."""

    def __init__(self) -> None:
        self._welcomed: OrderedDict[str, float] = OrderedDict()
        self._refusals = float(REFUSALS)
        self._refused_at = 0.0

    def may_welcome(self, applicant: str, messages: int, now: float) -> bool:
        """Say whether to welcome an applicant now, with so many messages; take note if so."""
        last = self._welcomed.get(applicant)
        if last is not None and now - last < WELCOME_GAP_S * messages:
            return False
        self._welcomed[applicant] = now
        self._welcomed.move_to_end(applicant)
        while len(self._welcomed) > MAX_APPLICANTS:
            self._welcomed.popitem(last=False)
        return True

    def may_refuse(self, now: float) -> bool:
        """Say whether to send one more refusal now; take note if so."""
        earned = max(0.0, now - self._refused_at) / REFUSAL_EVERY_S
        self._refusals, self._refused_at = min(REFUSALS, self._refusals + earned), now
        if self._refusals < 1:
            return False
        self._refusals -= 1
        return True
