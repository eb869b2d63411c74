"""The side that admits: invites given, requests answered, tokens honoured.

Whoever is the owner or an admin admits by its own invites. By a token any member but a guest does: all
of them hear the request, and each waits by its rank in an order that the request itself decides, so
that one answers and the next one only if it did not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from nostrvpn.errors import PeerMisbehaved, UserError
from nostrvpn.machine import Moment
from nostrvpn.mesh.answers import REFUSE_WITHIN_S, AnswerPace
from nostrvpn.mesh.effects import MembershipEffect, SendRefusal, Store, Welcome
from nostrvpn.mesh.invites import Invite, Terms
from nostrvpn.mesh.joining import KEEP_USED_S
from nostrvpn.mesh.ledger import Ledger
from nostrvpn.mesh.links import LINK_SECRET_SIZE
from nostrvpn.mesh.log_text import pack_operations, split_operations
from nostrvpn.mesh.members import Role
from nostrvpn.mesh.names import dns_label, free_label
from nostrvpn.mesh.roster import Roster
from nostrvpn.mesh.tokens import verify_proof

__all__ = ["CATCH_UP_S", "MAX_INVITES", "TURN_S", "Admission", "rank_of", "wait_of"]

MAX_INVITES = 100  # outstanding at a time: a listening node subscribes one mailbox for each
# Requests by tokens that wait for their turn.
MAX_TURNS = 64
# Time for the one before to answer, and for the answer to get around.
TURN_S = 2.0
EARLY_TURNS = 8
# Who was away answers nobody by a token before it has heard who used it up meanwhile: of two admissions
# too many the one with the older knowledge would hold, and put somebody out who is in. Who is the only
# member has nobody to hear that of.
CATCH_UP_S = 10.0
# The rest of a large network shares so much: most of those before them are asleep.
LATE_TURNS_S = 60.0


@dataclass(frozen=True, slots=True)
class _Turn:
    """A request by a token that this node answers at ``due``, if nobody did before."""

    due: float
    name: str
    proof: str
    was_member: bool


def rank_of(me: str, others: Mapping[str, object], *about: str) -> int:
    """Return this node's place among ``others`` (itself one of them) in a matter: 0 comes first."""

    def place(key: str) -> bytes:
        return hashlib.sha256("/".join(("nostrvpn/turn/v1", *about, key)).encode()).digest()

    mine = place(me)
    return sum(place(key) < mine for key in others if key != me)


def wait_of(rank: int, among: int) -> float:
    """Return how many seconds the one of this rank among so many leaves to those before it."""
    early = TURN_S * min(rank, EARLY_TURNS)
    late = max(0, rank - EARLY_TURNS) / max(1, among)
    return early + LATE_TURNS_S * late


class Admission:
    """The invites this node gave, and the requests it hears."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.invites: dict[str, Invite] = {}
        self.refusals: list[tuple[float, str, str]] = []  # (wall, applicant, reason), newest last
        self._pace = AnswerPace()
        self._unheard: set[str] = set()  # admitted in this run, and maybe without their welcome
        self._turns: dict[tuple[str, str], _Turn] = {}
        self._caught_up_at: float | None = None

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` is due."""
        return min((turn.due for turn in self._turns.values()), default=None)

    def restore(self, value: object) -> None:
        """Take up a stored invite; ValueError or KeyError if it is damaged."""
        if not isinstance(value, dict):
            raise ValueError("an object was expected")
        invite = Invite.from_json(value)
        self.invites[invite.id] = invite

    def open_invites(self, wall: float) -> tuple[Invite, ...]:
        """Return the invites whose mailbox must be listened to (also lately used or expired ones)."""
        return tuple(i for i in self.invites.values() if wall < i.expires + KEEP_USED_S)

    def token_mailboxes(self, wall: float) -> tuple[bytes, ...]:
        """Return the mailbox secrets (32 bytes each) of the tokens by which this node may admit."""
        roster = self._ledger.roster
        if roster is None or not self._may_use_tokens(roster, wall):
            return ()
        # One that is used up too: whom it admitted may have to ask again, until it has the right key.
        reasons = None, "used"
        return tuple(t.mailbox for t in roster.tokens.values() if t.refusal(wall) in reasons)

    def check_room(self, wall: float) -> None:
        """Raise UserError if there is no place for one more invite."""
        if len(self.open_invites(wall)) >= MAX_INVITES:
            raise UserError(f"{MAX_INVITES} invites are open already", "wait until some expire")

    def invite(
        self, bound_to: str | None, expires: int, terms: Terms, moment: Moment
    ) -> tuple[Invite, list[MembershipEffect]]:
        """Make an invite; UserError if there are too many."""
        self.check_room(moment.wall)
        effects = self._forget_old_invites(moment.wall)
        secret = moment.entropy.take(LINK_SECRET_SIZE)
        invite = Invite(secret, bound_to, expires, int(moment.wall), terms=terms)
        self.invites[invite.id] = invite
        return invite, [*effects, Store("invite", invite.id, invite.to_json())]

    def on_request(
        self, sender: str, body: Mapping[str, object], moment: Moment, created: float | None
    ) -> list[MembershipEffect]:
        """Admit or refuse an applicant, or wait for this node's turn to.

        PeerMisbehaved if the request is not even one of ours. ``created`` is its date (Unix seconds):
        relays keep requests for days and repeat them after a restart, so what was refused long ago is
        not refused again.
        """
        roster = self._ledger.roster
        if roster is None:
            raise PeerMisbehaved("join_no_network", "a join request, and there is no network")
        if "token" in body:
            return self._hear_token(roster, sender, body, moment)
        if not roster.is_admin(self._ledger.me):
            raise PeerMisbehaved("join_not_admin", "a join request to a node that may not admit")
        invite = self.invites.get(str(body.get("invite")))
        if invite is None or body.get("secret") != invite.secret.hex():
            # Not answered: whoever does not know the secret learns nothing, not even that we exist.
            raise PeerMisbehaved("join_unknown_invite", "a request for an invite we never gave")
        reason = invite.refusal(sender, moment.wall)
        is_out = sender in roster.former and sender not in roster.members
        if reason is None and invite.used_by == sender and is_out:
            reason = "removed"  # if it was never in, its admission had no effect: once more
        if reason is not None:
            return self._refuse(sender, invite, reason, moment, created)
        if sender in roster.members:
            return [*self.welcome(sender, moment.now)]
        return self._admit(roster, sender, body, invite, moment)

    def tick(self, moment: Moment) -> list[MembershipEffect]:
        """Answer the requests whose turn has come."""
        effects: list[MembershipEffect] = []
        due = [key for key, turn in self._turns.items() if moment.now >= turn.due]
        for key in due:
            token, applicant = key
            turn, roster = self._turns.pop(key), self._ledger.roster
            if roster is None or self._why_not(roster, token, applicant, turn.proof, moment):
                continue
            if applicant not in roster.members:
                name = free_label(dns_label(turn.name), {m.name for m in roster.members.values()})
                fields = {"who": applicant, "name": name, "token": token, "proof": turn.proof}
                try:
                    effects += self._ledger.sign("admit", fields, moment)
                except UserError:
                    continue  # the log is full, or this node was just made a guest
            elif not turn.was_member:
                continue  # somebody was faster, and sent the welcome
            self._unheard.add(applicant)
            effects += self.welcome(applicant, moment.now)
        return effects

    def connected(self, now: float) -> None:
        """This node hears again what it missed, from ``now`` on."""
        self._caught_up_at = now + CATCH_UP_S

    def heard(self, peer: str) -> None:
        """A member showed that it knows the network."""
        self._unheard.discard(peer)

    def welcome_again(self, peer: str, now: float) -> list[Welcome]:
        """Return the welcome of a member who has not shown yet that it got one; else nothing."""
        roster = self._ledger.roster
        if peer not in self._unheard or roster is None or peer not in roster.members:
            return []
        return self.welcome(peer, now)

    def welcome(self, applicant: str, now: float) -> list[Welcome]:
        """Return the whole log for a new member, unless it had it just now."""
        assert self._ledger.roster is not None
        parts = split_operations(self._ledger.roster.log)
        if not self._pace.may_welcome(applicant, len(parts), now):
            return []
        return [
            Welcome(applicant, number, len(parts), pack_operations(part))
            for number, part in enumerate(parts)
        ]

    def _refuse(
        self, sender: str, invite: Invite, reason: str, moment: Moment, created: float | None
    ) -> list[MembershipEffect]:
        if created is not None and moment.wall - created > REFUSE_WITHIN_S:
            raise PeerMisbehaved("old_request", "a request that was refused long ago")
        if not self._pace.may_refuse(moment.now):
            raise PeerMisbehaved("refusals_limited", "too many requests that were refused")
        self.refusals = [*self.refusals[-19:], (moment.wall, sender, reason)]
        return [SendRefusal(sender, invite.id, reason)]

    def _admit(
        self,
        roster: Roster,
        sender: str,
        body: Mapping[str, object],
        invite: Invite,
        moment: Moment,
    ) -> list[MembershipEffect]:
        terms, me = invite.terms, roster.members[self._ledger.me]
        taken = {member.name for member in roster.members.values()}
        fields = {
            "who": sender,
            "name": free_label(terms.name or dns_label(body.get("name")), taken),
            "role": terms.role.value,
            "tags": sorted(set(terms.tags)),
            "owner": me.owner if terms.own else sender,
            "expires": None if terms.lasts_s is None else int(moment.wall) + terms.lasts_s,
            "ephemeral": terms.ephemeral,
        }
        try:
            signed = self._ledger.sign("add", fields, moment)
        except UserError as exc:
            raise PeerMisbehaved("join_impossible", str(exc)) from exc
        used = replace(invite, used_by=sender)
        self.invites[invite.id] = used
        self._unheard.add(sender)
        stored = Store("invite", used.id, used.to_json())
        return [stored, *signed, *self.welcome(sender, moment.now)]

    def _hear_token(
        self, roster: Roster, sender: str, body: Mapping[str, object], moment: Moment
    ) -> list[MembershipEffect]:
        token, proof = str(body["token"]), body.get("proof")
        if not isinstance(proof, str):
            raise PeerMisbehaved("join_unknown_token", "a request without its proof")
        reason = self._why_not(roster, token, sender, proof, moment)
        if reason:
            # Not answered: a thousand members would.
            raise PeerMisbehaved(f"join_{reason}_token", f"a request by a token: {reason}")
        helpers = {
            key: member
            for key, member in roster.members.items()
            if member.role is not Role.GUEST and member.is_active(moment.wall)
        }
        rank = rank_of(self._ledger.me, helpers, token, sender)
        caught_up_at = self._caught_up_at if len(roster.members) > 1 else None
        due = max(moment.now, caught_up_at or 0.0) + wait_of(rank, len(helpers))
        if (token, sender) not in self._turns:
            if len(self._turns) >= MAX_TURNS:
                raise PeerMisbehaved("join_crowded", "too many requests by tokens at a time")
            name = dns_label(body.get("name"))
            self._turns[token, sender] = _Turn(due, name, proof, sender in roster.members)
        return self.tick(moment)

    def _why_not(
        self, roster: Roster, token_id: str, applicant: str, proof: str, moment: Moment
    ) -> str | None:
        token, member = roster.tokens.get(token_id), roster.members.get(applicant)
        if not self._may_use_tokens(roster, moment.wall):
            return "foreign"
        if token is None or not verify_proof(token.signer, roster.network_id, applicant, proof):
            return "unknown"
        if member is not None:
            return None
        return "removed" if applicant in roster.former else token.refusal(moment.wall)

    def _may_use_tokens(self, roster: Roster, wall: float) -> bool:
        me = roster.members.get(self._ledger.me)
        return me is not None and me.role is not Role.GUEST and me.is_active(wall)

    def _forget_old_invites(self, wall: float) -> list[MembershipEffect]:
        old = [i.id for i in self.invites.values() if wall >= i.expires + KEEP_USED_S]
        for key in old:
            del self.invites[key]
        return [Store("invite", key, None) for key in old]
