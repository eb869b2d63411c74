"""Whether an operation may have its effect: what its author knew, and what happened beside it.

An author's standing counts twice: in the operation's own past (its ancestors), and against everything
concurrent with it. A removal, demotion or rotation voids all that its target signed without having
heard of it, whatever order it is read in ("strong removal"): otherwise a removed admin could go on
signing with an old place. Admins cannot strike at admins,
nor at whom the owner was just making one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nostrvpn.mesh.history import History
from nostrvpn.mesh.members import Role
from nostrvpn.mesh.operations import Operation
from nostrvpn.mesh.state import Around, State, Struck, is_counted
from nostrvpn.mesh.tokens import verify_proof

__all__ = ["Ground", "around", "has_effect", "may_have_welcomed", "prepare"]

# Operations that one member who is no admin may add to the log (``state.is_counted``).
MEMBER_OPERATIONS = 64


@dataclass
class Ground:
    """What is known of a history before its fold: it depends on the owner alone.

    ``terms``: for each key that ever owned the network, the places of the operations that made it the
    owner and that ended it (None: it still is); ``raised``: by key, the owner's operations that made an
    admin of it or of a key that replaced it; ``junk``: what can never have an effect, whatever else
    arrives, since its author was nobody in its past, or since it builds on such an operation.
    """

    history: History
    concurrent: Sequence[int]
    terms: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    by_owner: int = 0
    junk: int = 0
    raised: dict[str, int] = field(default_factory=dict)
    named: dict[str, int] = field(
        default_factory=dict
    )  # key -> operations that admit or rename to it
    rotations: dict[str, list[tuple[int, str]]] = field(default_factory=dict)  # to -> (place, from)
    # (operation id, signer) -> whether its proof is good: the same one is asked in each pass
    proofs: dict[tuple[str, str], bool] = field(default_factory=dict)

    def grown(self, history: History, operation: Operation) -> Ground:
        """Return the ground after one more operation, that follows all others."""
        ground = Ground(
            history,
            self.concurrent,
            dict(self.terms),
            self.by_owner,
            self.junk,
            dict(self.raised),
            dict(self.named),
            {key: list(found) for key, found in self.rotations.items()},
            self.proofs,
        )
        ground.take(operation, len(history.order) - 1)
        return ground

    def before(self, place: int) -> int:
        """Return the set of an operation's ancestors; all others, for one that is to be appended."""
        ancestors = self.history.ancestors
        return ancestors[place] if place < len(ancestors) else (1 << place) - 1

    def beside(self, place: int) -> int:
        """Return the set of what is concurrent with an operation."""
        return self.concurrent[place] if place < len(self.concurrent) else 0

    def owns(self, key: str, place: int) -> bool:
        """Whether ``key`` was the owner, as far as the operation at ``place`` could know."""
        if key not in self.terms:
            return False
        begun, ended = self.terms[key]
        if begun != place and not self.before(place) >> begun & 1:
            return False
        return ended is None or ended == place or bool(self.before(ended) >> place & 1)

    @property
    def rests_on(self) -> int:
        """The set of the owner's operations by which others are judged, even those without effect."""
        found = 0
        for begun, _ in self.terms.values():  # where one term began, the one before it ended
            found |= 1 << begun
        for raised in self.raised.values():
            found |= raised
        return found

    def seemed_to_own(self, key: str, place: int) -> bool:
        """Whether ``key`` was the owner for who had not heard of its end."""
        if key not in self.terms:
            return False
        begun, ended = self.terms[key]
        before = self.before(place)
        return bool(before >> begun & 1) and (ended is None or not before >> ended & 1)

    def take(self, operation: Operation, place: int) -> None:
        """Take up the next operation in order."""
        author, fields, before = operation.author, operation.fields, self.before(place)
        known = self.named.get(author, 0) & before
        if operation.action != "create" and (self.junk & before or not known):
            self.junk |= 1 << place
            return
        if operation.action == "create":
            self.terms[author] = (place, None)
            self.named[author] = 1 << place
        if operation.action == "rotate":
            taken = self.named.get(fields["to"], 0) & before
            if author == operation.who and not taken and self._still_owns(author, place):
                self.terms[author] = (self.terms[author][0], place)
                self.terms[fields["to"]] = (place, None)
            self.rotations.setdefault(fields["to"], []).append((place, operation.who))
        if self.owns(author, place):
            self.by_owner |= 1 << place
            if fields.get("role") == "admin":
                self._raise(operation.who, place, before)
        if operation.action in ("add", "admit", "rotate"):
            key = fields.get("to", operation.who)
            self.named[key] = self.named.get(key, 0) | 1 << place

    def _still_owns(self, key: str, place: int) -> bool:
        return self.owns(key, place) and self.terms[key][1] is None

    def _raise(self, key: str, place: int, before: int) -> None:
        waiting, seen = [key], {key}
        while waiting:
            found = waiting.pop()
            self.raised[found] = self.raised.get(found, 0) | 1 << place
            for at, old in self.rotations.get(found, ()):
                if before >> at & 1 and old not in seen:
                    seen.add(old)
                    waiting.append(old)


def prepare(
    history: History, operations: Sequence[Operation], proofs: dict[tuple[str, str], bool]
) -> Ground:
    """Return what is known of a history before its fold; ``proofs`` as an earlier one found them."""
    ground = Ground(history, history.concurrent(), proofs=proofs)
    for place, operation in enumerate(operations):
        ground.take(operation, place)
    return ground


def has_effect(
    ground: Ground, state: State, struck: Struck, operation: Operation, place: int
) -> bool:
    """Whether the operation at ``place`` has an effect, given the state of all before it in order.

    ``struck`` is what strikes at others by the pass before this one (empty in the first).
    """
    author, action = operation.author, operation.action
    if action == "create":
        return place == 0
    if operation.network_id != state.network_id or ground.junk >> place & 1:
        return False
    role = _standing_of_author(ground, state, author, place)
    if role is None or _is_struck(ground, struck, operation, place):
        return False
    if state.written.get(author, 0) >= MEMBER_OPERATIONS and is_counted(state, operation):
        return False
    match action:
        case "add":
            return _may_add(ground, state, struck, operation, place, role)
        case "admit":
            return role is not Role.GUEST and _may_admit(ground, state, struck, operation, place)
        case "remove":
            if author == operation.who:
                return role is not Role.OWNER and operation.fields["key"] is None
            return _may_strike(ground, state, operation, place, role)
        case "role":
            return _may_change_role(ground, state, struck, operation, place, role)
        case "rotate":
            return _may_rotate(ground, state, struck, operation, place, role)
        case "name":
            allowed = author == operation.who or role.rank >= Role.ADMIN.rank
            return allowed and operation.who in state.members
    if role.rank < Role.ADMIN.rank:
        return False
    match action:
        case "tag" | "routes":
            return operation.who in state.members
        case "token":
            return operation.fields["id"] not in state.tokens
        case "token_revoke":
            return operation.fields["id"] in state.tokens
        case _:
            return action in ("permit", "settings", "rekey")


def around(
    ground: Ground, state: State, struck: Struck, operation: Operation, place: int
) -> Around:
    """Return what surrounds an operation that is about to have its effect."""
    lowers = False
    if operation.action == "role":
        known = standing(ground, state, operation.who, place, highest=True)
        lowers = known is not None and known.rank > Role(operation.fields["role"]).rank
    beside, is_free = ground.beside(place), True
    if operation.action == "rotate":
        to = operation.fields["to"]
        strikes = struck.removed.get(to, 0) | struck.rotated_to.get(to, 0)
        is_free = to not in ground.terms and not strikes & beside
    return Around(ground.before(place), beside, lowers, is_free)


def standing(ground: Ground, state: State, key: str, place: int, *, highest: bool) -> Role | None:
    """Return a key's role as far as the operation at ``place`` could know, or None.

    Where concurrent operations left it open, the lowest (or highest) role that any of them gave.
    """
    if ground.owns(key, place):
        return Role.OWNER
    if key in ground.terms:
        # Beside the owner's rotation nobody may strike at it, though it owns nothing there any more.
        return Role.OWNER if highest and ground.seemed_to_own(key, place) else None
    found: list[Role | None] = []
    left = state.events.get(key, 0) & ground.before(place)
    while left:
        last = left.bit_length() - 1
        found.append(state.after[key, last])
        left &= ~(ground.before(last) | 1 << last)
    given = [role for role in found if role is not None]
    if not given or (len(given) < len(found) and not highest):
        return None
    return (max if highest else min)(given, key=lambda role: role.rank)


def _standing_of_author(ground: Ground, state: State, author: str, place: int) -> Role | None:
    member = state.members.get(author)
    known = standing(ground, state, author, place, highest=False)
    if member is None or known is None:
        return None
    return min(member.role, known, key=lambda role: role.rank)


def _is_struck(ground: Ground, struck: Struck, operation: Operation, place: int) -> bool:
    """Whether the author was removed, demoted or rotated away beside this operation."""
    author = operation.author
    strikes = struck.reduced.get(author, 0) & ground.beside(place)
    if strikes and author == operation.who and operation.action in ("remove", "rotate"):
        # Of two ways in which a key gave itself up, the first in order is the one.
        strikes &= ~struck.own.get(author, 0) | ((1 << place) - 1)
    return bool(strikes)


def _may_strike(ground: Ground, state: State, operation: Operation, place: int, role: Role) -> bool:
    """Whether the author stands above the target, in its own past and beside it.

    The target may be gone meanwhile, or have been admitted by another operation than the author knew
    of: a removal has its effect all the same, so that it is never lost.
    """
    who = operation.who
    target = state.members.get(who)
    if role.rank < Role.ADMIN.rank or not ground.named.get(who, 0) & ground.before(place):
        return False
    known = standing(ground, state, who, place, highest=True)
    given = (known, target.role if target is not None else None)
    if any(one is not None and one.rank >= role.rank for one in given):
        return False
    return role is Role.OWNER or not ground.raised.get(who, 0) & ground.beside(place)


def _removals(
    ground: Ground, struck: Struck, who: str, place: int, role: Role, *, to_admin: bool
) -> int:
    """The removals of ``who`` beside a grant; an admin's do not count against the owner's new admin."""
    found = struck.removed.get(who, 0) & ground.beside(place)
    return found & ground.by_owner if role is Role.OWNER and to_admin else found


def _may_add(
    ground: Ground, state: State, struck: Struck, operation: Operation, place: int, role: Role
) -> bool:
    who, fields = operation.who, operation.fields
    if role.rank < Role.ADMIN.rank or who in state.rotated or who in state.struck.rotated_to:
        return False
    # Two who did not know of each other may admit the same key: both operations have their effect.
    if standing(ground, state, who, place, highest=True) is not None:
        return False
    if who in ground.terms or struck.rotated_to.get(who, 0) & ground.beside(place):
        return False
    to_admin = fields["role"] == "admin"
    if to_admin and (role is not Role.OWNER or fields["expires"] is not None):
        return False
    if _removals(ground, struck, who, place, role, to_admin=to_admin):
        return False
    own = state.members[operation.author].owner
    return role is Role.OWNER or fields["owner"] in (who, own)


def _may_admit(
    ground: Ground, state: State, struck: Struck, operation: Operation, place: int
) -> bool:
    who, fields = operation.who, operation.fields
    token = state.tokens.get(fields["token"])
    # Proofs can be shown again: who was admitted once, by whatever means, comes back by `add` only.
    if token is None or token.revoked or ground.named.get(who, 0) & ground.before(place):
        return False
    if who in state.rotated or who in state.struck.rotated_to:
        return False
    if token.used >= token.uses and who not in state.members:
        return False
    if operation.event.created_at >= token.expires or who in ground.terms:
        return False
    beside = ground.beside(place)
    strikes = struck.revoked.get(token.id, 0) | struck.removed.get(who, 0)
    if (strikes | struck.rotated_to.get(who, 0)) & beside:
        return False
    return _is_genuine(ground, state, operation, token.signer)


def may_have_welcomed(ground: Ground, state: State, operation: Operation, place: int) -> bool:
    """Whether an honest author of this admission, that has no effect, took it for good when it signed.

    If so, it has told the network key to whom it admitted. ``state`` is that of the whole fold.
    """
    if operation.action not in ("add", "admit") or ground.junk >> place & 1:
        return False
    role = standing(ground, state, operation.author, place, highest=False)
    if role is None or role is Role.GUEST:
        return False
    if operation.action == "add":
        return role.rank >= Role.ADMIN.rank
    before = ground.before(place)
    token = state.tokens.get(operation.fields["token"])
    # A proof that the log shows can be signed again and again, by anybody, and lets nobody in.
    if token is None or ground.named.get(operation.who, 0) & before:
        return False
    if state.made.get(token.id, 0) & before == 0 or state.struck.revoked.get(token.id, 0) & before:
        return False
    if operation.event.created_at >= token.expires:
        return False
    return _is_genuine(ground, state, operation, token.signer)


def _is_genuine(ground: Ground, state: State, operation: Operation, signer: str) -> bool:
    asked = (operation.id, signer)
    if asked not in ground.proofs:
        proof = operation.fields["proof"]
        ground.proofs[asked] = verify_proof(signer, state.network_id, operation.who, proof)
    return ground.proofs[asked]


def _may_change_role(
    ground: Ground, state: State, struck: Struck, operation: Operation, place: int, role: Role
) -> bool:
    who, wanted = operation.who, Role(operation.fields["role"])
    if who not in state.members or not _may_strike(ground, state, operation, place, role):
        return False
    to_admin = wanted is Role.ADMIN
    if to_admin and (role is not Role.OWNER or operation.fields["expires"] is not None):
        return False
    if wanted.rank <= state.members[who].role.rank:
        return True
    beside = struck.reduced.get(who, 0) & ground.beside(place)
    return not (beside & ground.by_owner if to_admin else beside)


def _may_rotate(
    ground: Ground, state: State, struck: Struck, operation: Operation, place: int, role: Role
) -> bool:
    who, to = operation.who, operation.fields["to"]
    if ground.named.get(to, 0) & ground.before(place):
        return False
    removed = struck.removed.get(who, 0) & ground.beside(place)
    if operation.author != who:
        # Who was replaced and left meanwhile is out either way; each would void the other without end.
        removed &= ~struck.own.get(who, 0)
        # As a removal it has its effect also if the target is gone, if its author could not know that.
        known = standing(ground, state, who, place, highest=True)
        is_known = known is not None and not removed
        return is_known and _may_strike(ground, state, operation, place, role)
    if removed or to in state.struck.rotated_to:
        return False
    if to in state.rotated or to in ground.terms:
        # The owner's successor is known beforehand: nobody else becomes it, and by nothing else.
        return to != who and ground.terms.get(who, (0, None))[1] == place
    return role is not Role.OWNER
