"""The roster: who belongs to a network and what its admins decided, as a log of signed operations says.

The log is a graph: each operation names those its author knew, so two admins may sign at once and all
nodes come to the same. Any subset, in any order, may be given to :meth:`Roster.merge`; what is not
signed by somebody with the standing for it has no effect and is not kept. Whoever holds the log may
hand it on: it proves itself. What the operations mean is decided in ``fold.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from nostrvpn.errors import PeerMisbehaved, UserError
from nostrvpn.mesh.addressing import OverlayAddress, overlay_address
from nostrvpn.mesh.fold import MAX_OPERATIONS, Fold, fold
from nostrvpn.mesh.history import build_history
from nostrvpn.mesh.members import Member, NetworkSettings, Role, Token
from nostrvpn.mesh.operations import (
    Operation,
    operation_content,
    parse_operation,
    sign_operation,
)
from nostrvpn.mesh.permissions import Rule
from nostrvpn.mesh.state import labels
from nostrvpn.nostr.event import Event, public_key

__all__ = [
    "MAX_OPERATIONS",
    "Member",
    "NetworkSettings",
    "Role",
    "Roster",
    "Token",
    "create_network",
    "open_roster",
]

# Operations whose predecessors have not arrived, and operations without effect, that are remembered:
# the latest of each. An honest network has a few for seconds; beyond, they are simply sent again.
MAX_PENDING = 256
MAX_ASIDE = 256
# Of a full log, a removal builds on the part before so many last operations: it is concurrent with
# what the removed one filled it with, and voids that.
ROOM = 1_000
# So many new operations are appended one by one; more are folded at once.
FEW = 4


@dataclass(frozen=True, eq=False)
class Roster:
    """The folded state of one network's log. A value: each method returns a new one.

    ``pending_operations`` wait for their predecessors; ``aside`` had no effect but may yet have (if the
    removal of their author turns out to be void itself). Neither is handed on or stored.
    """

    folded: Fold = field(repr=False)
    pending_operations: Mapping[str, Operation] = field(default_factory=dict, repr=False)
    aside: Mapping[str, Operation] = field(default_factory=dict, repr=False)

    def __eq__(self, other: object) -> bool:
        """The same log comes to the same; what waits or lies aside is another matter."""
        if not isinstance(other, Roster):
            return NotImplemented
        return (self.network_id, self.heads) == (other.network_id, other.heads)

    def __hash__(self) -> int:
        return hash(self.heads)

    @property
    def network_id(self) -> str:
        """The id of the operation that created the network: 64 hex digits."""
        return self.folded.state.network_id

    @property
    def owner(self) -> str:
        """The owner's public key."""
        return self.folded.state.owner

    @property
    def settings(self) -> NetworkSettings:
        """What holds for the whole network."""
        return self.folded.state.settings

    @property
    def name(self) -> str:
        """The network's name, a label."""
        return self.settings.name

    @cached_property
    def log(self) -> tuple[Event, ...]:
        """All operations in order, each after its predecessors."""
        return tuple(self.folded.operations[key].event for key in self.folded.history.order)

    @property
    def heads(self) -> tuple[str, ...]:
        """The sorted ids of the operations that nothing follows."""
        return self.folded.history.heads

    @cached_property
    def members(self) -> dict[str, Member]:
        """Everybody who belongs to the network, by public key, in order of admission."""
        named = labels(self.folded.state)
        found = self.folded.state.members.items()
        return {key: replace(member, name=named[key]) for key, member in found}

    @property
    def former(self) -> Mapping[str, int]:
        """Everybody who is or was a member, with the number of its IPv4 address."""
        return self.folded.state.hosts

    @property
    def tokens(self) -> Mapping[str, Token]:
        """All tokens by id, also those that admit nobody any more."""
        return self.folded.state.tokens

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The permissions that admins gave, oldest first."""
        return tuple(self.folded.state.rules.values())

    @property
    def key_id(self) -> str:
        """The id of the network key in use: 16 hex digits."""
        return self.folded.state.key_id

    @property
    def keys(self) -> Mapping[str, str]:
        """Every network key that there was, by id, with the public key of who made it."""
        return self.folded.state.keys

    @property
    def needs_rekey(self) -> bool:
        """Whether somebody is out, or was never let in, and yet may know the network key."""
        return self.is_key_former or bool(self.leaks)

    @property
    def leaks(self) -> frozenset[str]:
        """The ids of admissions by which somebody may know the network key who is no member."""
        return self.folded.leaks

    @property
    def is_key_former(self) -> bool:
        """Whether somebody is out who still knows the network key."""
        state = self.folded.state
        known = self.folded.history.ancestors[state.key_place] | 1 << state.key_place
        return bool(state.removals & ~known)

    @cached_property
    def equivocators(self) -> frozenset[str]:
        """Whoever signed two operations of the log that do not know of each other."""
        return self.folded.equivocators()

    @property
    def pending(self) -> int:
        """The number of operations that wait for their predecessors."""
        return len(self.pending_operations)

    @property
    def version(self) -> int:
        """The number of operations in the log."""
        return len(self.folded.history.order)

    @cached_property
    def digest(self) -> str:
        """16 hex digits; the same exactly where the log is the same."""
        return hashlib.sha256("".join(self.heads).encode()).hexdigest()[:16]

    def address(self, public_key: str) -> OverlayAddress:
        """Return the overlay addresses of anybody who is or was a member; KeyError otherwise."""
        return overlay_address(self.network_id, public_key, self.former[public_key])

    def role(self, public_key: str) -> Role | None:
        """Return a member's role; None for anybody else."""
        member = self.folded.state.members.get(public_key)
        return member.role if member is not None else None

    def is_admin(self, public_key: str) -> bool:
        """Whether this is the owner or an admin."""
        return self.role(public_key) in (Role.OWNER, Role.ADMIN)

    def is_rotated(self, public_key: str) -> bool:
        """Whether another key took the place of this one."""
        return public_key in self.folded.state.rotated

    def sample(self) -> tuple[str, ...]:
        """Return at most 32 ids by which another member sees what this roster has."""
        return self.folded.history.sample()

    def holds(self, sample: Iterable[str]) -> bool:
        """Whether all the operations of another holder's sample are known here."""
        return all(key in self.folded.operations for key in sample)

    def lacking(self, sample: Iterable[str]) -> tuple[Event, ...]:
        """Return what a holder of the sampled operations may lack, parents first."""
        known = self.folded.operations
        return tuple(known[key].event for key in self.folded.history.lacking(sample))

    def merge(self, events: Iterable[Event]) -> Roster:
        """Return the roster after those of ``events`` that are new to it, in whatever order they come.

        PeerMisbehaved ``bad_roster`` (or of the bad event) if there are too many, or if none of them
        could ever be of use and one was bad: forged, malformed, of another network, or signed by
        somebody who was nobody in what it follows from.
        """
        new, bad = self._parse(events)
        roster = self._stack(new) if len(new) <= FEW else self
        left = {key: item for key, item in new.items() if key not in roster._held()}
        if left or roster._awaited(new):
            roster = roster._take(left)
        used = any(key in known for key in new for known in roster._known())
        if not used and (new or bad is not None):
            text = "operations of somebody who may not sign them"
            raise bad or PeerMisbehaved("bad_roster", text)
        return roster

    def sign(
        self,
        secret: bytes,
        action: str,
        fields: Mapping[str, object],
        *,
        wall: float,
        aux: bytes,
    ) -> Roster:
        """Return the roster after a new operation; UserError if its author may not, or the log is full.

        ``fields`` are those of the action (docs/protocol/membership.md); ``aux`` 32 random bytes.
        """
        author, who, heads = public_key(secret), str(fields.get("who")), self.heads
        if self.version >= MAX_OPERATIONS:
            if action != "remove":
                raise UserError("the network's log is full", "create a new network")
            heads, who = self.folded.clearing(author, who, ROOM)
            fields = {**fields, "who": who}
        parents = self.folded.parents(heads, author, who)
        try:
            content = operation_content(self.network_id, sorted(parents), action, fields)
            operation = sign_operation(secret, content, wall=wall, aux=aux)
        except PeerMisbehaved as exc:
            raise UserError(str(exc), "see `nostrvpn --help`") from exc
        on_top = parents == self.heads and self.version < MAX_OPERATIONS
        grown = self._append(operation) if on_top else self._refold({operation.id: operation})
        if grown is None or operation.id not in grown._held():
            raise UserError(
                f"this node may not do that: {action.replace('_', ' ')}",
                "the owner and admins may; see `nostrvpn status` for who they are",
            )
        return grown

    def _held(self) -> Mapping[str, Operation]:
        return self.folded.operations

    def _stack(self, new: Mapping[str, Operation]) -> Roster:
        """Return the roster after those of the new operations that follow all it has, one by one."""
        roster, left = self, list(new.values())
        while left:
            on_top = next((item for item in left if item.parents == roster.heads), None)
            grown = roster._append(on_top) if on_top is not None else None
            if on_top is None or grown is None:
                break
            roster = grown
            left.remove(on_top)
        return roster

    def _append(self, operation: Operation) -> Roster | None:
        if operation.parents != self.heads or self.version >= MAX_OPERATIONS:
            return None
        folded = self.folded.append(operation)
        if folded is None:
            return None
        return Roster(folded, self.pending_operations, self.aside)

    def _awaited(self, new: Mapping[str, Operation]) -> bool:
        return any(not new.keys().isdisjoint(p.parents) for p in self.pending_operations.values())

    def _take(self, new: Mapping[str, Operation]) -> Roster:
        """Fold again with new operations, unless that cannot change anything."""
        waiting = {**self.pending_operations, **new}
        known = {*self.folded.operations, *self.aside}
        arrived: set[str] = set()
        while ready := {
            key
            for key, item in waiting.items()
            if key not in arrived and (known | arrived).issuperset(item.parents)
        }:
            arrived |= ready
        named = {
            item.fields.get("to", item.who) for item in (*waiting.values(), *self.aside.values())
        }
        named |= self.folded.ground.named.keys()
        if any(waiting[key].author in named for key in arrived):
            return self._refold(new)
        left = {key: item for key, item in waiting.items() if key not in arrived}
        return Roster(self.folded, _latest(left, MAX_PENDING), self.aside)

    def _refold(self, new: Mapping[str, Operation]) -> Roster:
        every = {**self.folded.operations, **self.aside, **self.pending_operations, **new}
        complete = _complete(every)
        folded, left_out = fold(complete, self.folded.ground.proofs)
        aside = {key: every[key] for key in every if key in left_out}
        pending = {key: item for key, item in every.items() if key not in complete}
        return Roster(folded, _latest(pending, MAX_PENDING), _latest(aside, MAX_ASIDE))

    def _parse(self, events: Iterable[Event]) -> tuple[dict[str, Operation], PeerMisbehaved | None]:
        """Return what is new among events, by id, and what was wrong with the last bad one."""
        new: dict[str, Operation] = {}
        bad: PeerMisbehaved | None = None
        for count, event in enumerate(events):
            if count >= MAX_OPERATIONS:
                raise PeerMisbehaved("bad_roster", "too many operations")
            if event.id in new or any(event.id in known for known in self._known()):
                continue
            try:
                operation = parse_operation(event)
                if (operation.network_id or operation.id) != self.network_id:
                    raise PeerMisbehaved("bad_roster", "an operation of another network")
            except PeerMisbehaved as exc:
                bad = exc
            else:
                new[event.id] = operation
        return new, bad

    def _known(self) -> tuple[Mapping[str, Operation], ...]:
        return (self.folded.operations, self.aside, self.pending_operations)


def create_network(
    secret: bytes,
    name: str,
    who_name: str,
    *,
    wall: float,
    nonce: bytes,
    key_id: str,
    aux: bytes,
) -> Roster:
    """Return a new network whose only member is its owner; ``nonce`` (16 bytes) makes its id unique.

    ``name`` and ``who_name`` are labels (``names.py``), ``key_id`` the first network key's.
    """
    fields = {"name": name, "nonce": nonce.hex(), "who_name": who_name, "key": key_id}
    operation = sign_operation(
        secret, operation_content("", (), "create", fields), wall=wall, aux=aux
    )
    return _found({operation.id: operation})


def open_roster(log: Iterable[Event]) -> Roster:
    """Fold a whole log, in any order; PeerMisbehaved if it is not one network's, whole."""
    operations = {event.id: parse_operation(event) for event in log}
    return _found(operations)


def _found(operations: Mapping[str, Operation]) -> Roster:
    created = [key for key, item in operations.items() if item.action == "create"]
    networks = {item.network_id for item in operations.values()} - {""}
    if len(created) != 1 or not networks <= set(created) or len(operations) > MAX_OPERATIONS:
        raise PeerMisbehaved("bad_roster", "not the log of one network")
    first = operations[created[0]]
    folded, _ = fold({first.id: first}, {})
    roster = Roster(folded)
    roster = roster._refold(operations) if len(operations) > 1 else roster
    if roster.pending:
        raise PeerMisbehaved("bad_roster", "a log with gaps")
    return roster


def _complete(operations: Mapping[str, Operation]) -> dict[str, Operation]:
    """Return the operations of which all predecessors are there, in order."""
    history = build_history({key: item.parents for key, item in operations.items()})
    return {key: operations[key] for key in history.order}


def _latest(found: Mapping[str, Operation], most: int) -> dict[str, Operation]:
    return dict(list(found.items())[-most:])
