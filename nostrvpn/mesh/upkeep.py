"""What admins do without being asked: removing who has expired or vanished, renewing the network key.

Every admin sees the same need; each waits by its rank, so that one acts and the next one only if it
did not.
"""

from __future__ import annotations

from collections.abc import Iterable

from nostrvpn.errors import UserError
from nostrvpn.machine import Moment, earliest
from nostrvpn.mesh.admission import rank_of
from nostrvpn.mesh.effects import MembershipEffect
from nostrvpn.mesh.ledger import Ledger
from nostrvpn.mesh.members import Role
from nostrvpn.mesh.roster import Roster

__all__ = ["UNHEARD_S", "Upkeep"]

# An ephemeral member that nobody heard for so long is gone: it speaks every 50 minutes at the latest,
# and a message may be lost.
UNHEARD_S = 7200.0
# Time for the admin before to act, and for the news to get around.
RANK_S = 30.0
# Removals and rotations that come together need one new key.
SETTLE_S = 5.0
# Of new keys for no other reason than an admission that came to nothing: a liar can sign those at will.
LEAK_S = 3600.0


class Upkeep:
    """An admin's duties, by the clock. Times are Moment.now's seconds."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._unheard: dict[str, float] = {}
        self._rekey_at: float | None = None
        self._key = ""  # the one that was there at the last look
        self._was_leak = False  # and whether only somebody may have it who was never let in
        self._rested_at = 0.0
        self._refused = ""  # the digest of a log that takes no new key: it is full
        self._next: float | None = None
        self._seen: Roster | None = None  # the roster that was looked at last

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` is due: at once after a change, whoever made it."""
        return 0.0 if self._is_new else self._next

    def changed(self) -> None:
        """Look again at the next tick, which is due at once."""
        self._seen = None

    @property
    def _is_new(self) -> bool:
        roster = self._ledger.roster
        mine = roster is not None and roster.is_admin(self._ledger.me)
        return mine and roster is not self._seen

    def unheard(self, peer: str, since: float) -> None:
        """Nothing was heard of ``peer`` since then; as late as now if it was just heard."""
        self._unheard[peer] = since
        self.changed()

    @property
    def awaited(self) -> tuple[str, ...]:
        """Whose silence is counted."""
        return tuple(self._unheard)

    def excuse(self, peers: Iterable[str], now: float) -> None:
        """Count the silence of these from now on; looked at when it is time, not at once."""
        self._unheard |= {peer: now for peer in peers if peer in self._unheard}

    def rekey(self, moment: Moment) -> list[MembershipEffect]:
        """Make a new network key now."""
        return self._sign("rekey", {}, moment)

    def tick(self, moment: Moment) -> list[MembershipEffect]:
        """Do what is due."""
        effects: list[MembershipEffect] = []
        if not self._is_new and (self._next is None or moment.now < self._next):
            return effects
        for _ in range(2):  # the second look is at what the first one changed
            roster = self._ledger.roster
            self._seen = roster
            if roster is None or not roster.is_admin(self._ledger.me):
                self._next = None
                return effects
            due = self._removals(roster, moment)
            for peer in [peer for peer, at in due.items() if at <= moment.now]:
                effects += self._sign("remove", {"who": peer}, moment)
                del due[peer]
            self._plan_rekey(roster, moment)
            if self._rekey_at is not None and self._rekey_at <= moment.now:
                signed = self._sign("rekey", {}, moment)
                self._refused = "" if signed else roster.digest
                self._rekey_at = None
                effects += signed
            self._next = earliest(*due.values(), self._rekey_at)
        self._seen = self._ledger.roster
        return effects

    def _removals(self, roster: Roster, moment: Moment) -> dict[str, float]:
        """Return when which member is to be removed, if nobody did before."""
        self._unheard = {k: since for k, since in self._unheard.items() if k in roster.members}
        due: dict[str, float] = {}
        for key, member in roster.members.items():
            ends = []
            if member.expires is not None:
                ends.append(moment.now + member.expires - moment.wall)
            if member.ephemeral and key in self._unheard:
                ends.append(self._unheard[key] + UNHEARD_S)
            mine = self._ledger.roster is not None and self._may_remove(roster, member.role)
            if ends and mine and key != self._ledger.me:
                due[key] = min(ends) + RANK_S * self._rank(roster, "remove", key)
        return due

    def _plan_rekey(self, roster: Roster, moment: Moment) -> None:
        if roster.key_id != self._key:
            if self._was_leak:
                self._rested_at = moment.now + LEAK_S
            self._key, self._rekey_at = roster.key_id, None
        is_leak = self._was_leak = roster.needs_rekey and not roster.is_key_former
        if not roster.needs_rekey or self._refused == roster.digest:
            self._rekey_at = None
            return
        wait = SETTLE_S + RANK_S * self._rank(roster, "rekey", roster.key_id)
        at = max(moment.now + wait, self._rested_at if is_leak else 0.0)
        self._rekey_at = at if self._rekey_at is None else min(at, self._rekey_at)

    def _may_remove(self, roster: Roster, role: Role) -> bool:
        mine = roster.role(self._ledger.me)
        return mine is not None and role.rank < mine.rank

    def _rank(self, roster: Roster, *about: str) -> int:
        admins = {key: None for key in roster.members if roster.is_admin(key)}
        return rank_of(self._ledger.me, admins, *about)

    def _sign(
        self, action: str, fields: dict[str, object], moment: Moment
    ) -> list[MembershipEffect]:
        try:
            key_id = moment.entropy.take(8).hex()
            return self._ledger.sign(action, {**fields, "key": key_id}, moment)
        except UserError:
            return []  # the log is full: every admin will find the same
