"""From a set of operations to what holds: the fold, and which operations a log has to keep.

Operations are read in one order (height, then id), each with its effect or without. Since a removal
also voids what is concurrent with it and comes before it in order, the fold is repeated with what the
last pass found to strike, until nothing changes: two passes for most, one where nothing is concurrent.
The outcome depends on the set alone, not on the order of arrival.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nostrvpn.mesh.authority import Ground, around, has_effect, may_have_welcomed, prepare
from nostrvpn.mesh.history import History, build_history, members_of
from nostrvpn.mesh.operations import MAX_PARENTS, Operation
from nostrvpn.mesh.state import State, Struck, apply

__all__ = ["MAX_OPERATIONS", "Fold", "fold"]

# 3 MB and a second of CPU; a household makes a few a year, a company with 1,000 devices a few a day.
MAX_OPERATIONS = 10_000
# Each pass settles one more link of a chain of "A's removal of B is void, so B's of C is not".
# Only people who sign against each other with old places make more than three.
MAX_PASSES = 16


@dataclass(frozen=True)
class Fold:
    """What a log comes to. ``operations`` by id; ``state`` and ``ground`` are not to be changed.

    ``welcomed``: admissions without effect, whose authors may have given away the present network key.
    """

    history: History
    operations: Mapping[str, Operation]
    state: State
    ground: Ground
    welcomed: tuple[Operation, ...] = ()

    @property
    def leaks(self) -> frozenset[str]:
        """Ids of the admissions by which somebody may have the network key who is no member."""
        return frozenset(item.id for item in self.welcomed if item.who not in self.state.members)

    def equivocators(self) -> frozenset[str]:
        """Who signed something without following from what it had signed before."""
        concurrent = self.ground.concurrent
        if not any(concurrent):
            return frozenset()
        authors = [self.operations[key].author for key in self.history.order[: len(concurrent)]]
        signed: dict[str, int] = {}
        for place, author in enumerate(authors):
            signed[author] = signed.get(author, 0) | 1 << place
        return frozenset(a for place, a in enumerate(authors) if concurrent[place] & signed[a])

    def append(self, operation: Operation) -> Fold | None:
        """Return the fold with one more operation that follows all others; None if it has no effect."""
        place = len(self.history.order)
        history = self.history.append(operation.id)
        ground = self.ground.grown(history, operation)
        if not has_effect(ground, self.state, Struck(), operation, place):
            return None
        state = self.state.copy()
        apply(state, operation, place, around(ground, state, Struck(), operation, place))
        welcomed = self.welcomed if state.key_place == self.state.key_place else ()
        operations = {**self.operations, operation.id: operation}
        return Fold(history, operations, state, ground, welcomed)

    def clearing(self, author: str, who: str, room: int) -> tuple[tuple[str, ...], str]:
        """Return what a removal of ``who`` follows, and whom it removes, to make room in a full log.

        It follows the part before the last ``room`` operations, and so voids what was written there by
        who is removed. A key that was put in another's place since then goes with that one; who was
        admitted since then is removed from there on. ``author`` has all its standing in that part.
        """
        order, named, hosts = self.history.order, self.ground.named, self.state.hosts
        place = max(len(order) - room, self.state.events.get(author, 0).bit_length())
        former = {
            item.fields["to"]: item.who
            for item in self.operations.values()
            if item.action == "rotate" and hosts.get(item.fields["to"]) == hosts.get(item.who)
        }
        while who in former and not named.get(who, 0) & ((1 << place) - 1):
            who = former.pop(who)
        known = named.get(who, 0)
        place = max(place, (known & -known).bit_length())
        part = {key: self.operations[key].parents for key in order[:place]}
        return build_history(part).heads, who

    def parents(self, heads: tuple[str, ...], author: str, who: str) -> tuple[str, ...]:
        """Return as many of the heads as an operation may follow.

        Of too many (a liar can make them) first those that know the standing of its author, and whom
        the operation is about: without them it would have no effect.
        """
        if len(heads) <= MAX_PARENTS:
            return heads
        places = [self.history.index[head] for head in heads]
        known = [self.history.ancestors[place] | 1 << place for place in places]
        needed = members_of(self.state.events.get(author, 0))[::-1]
        needed += members_of(self.ground.named.get(who, 0))[:1]
        chosen: dict[str, int] = {}
        for place in needed:
            if not any(reach >> place & 1 for reach in chosen.values()):
                knowing = [i for i, reach in enumerate(known) if reach >> place & 1]
                chosen |= {heads[i]: known[i] for i in knowing[:1]}
        return tuple(dict.fromkeys([*chosen, *heads]))[:MAX_PARENTS]


def fold(
    operations: Mapping[str, Operation], proofs: dict[tuple[str, str], bool]
) -> tuple[Fold, frozenset[str]]:
    """Fold operations; return also the ids that were left out of the log.

    The log keeps what has an effect, what the owner said of owner and admins, and what these follow
    from: whoever was removed cannot fill it.
    Left out are the others and, beyond ``MAX_OPERATIONS``, the last in order. Of those, what can have
    no effect whatever else arrives is not returned.
    """
    history = build_history({key: item.parents for key, item in operations.items()})
    ordered = [operations[key] for key in history.order]
    ground = prepare(history, ordered, proofs)
    state = _settle(ground, ordered)
    kept = members_of(history.closure(state.effective | ground.rests_on))[:MAX_OPERATIONS]
    if len(kept) == len(history.order):
        folded = Fold(history, dict(operations), state, ground)
        return _with_welcomed(folded, folded, ordered), frozenset()
    # What had no effect is gone, so the rest comes to the same; its places are others, though.
    folded, _ = fold({history.order[place]: ordered[place] for place in kept}, proofs)
    left_out = frozenset(
        operation.id
        for place, operation in enumerate(ordered)
        if operation.id not in folded.operations and not ground.junk >> place & 1
    )
    whole = Fold(history, operations, state, ground)
    return _with_welcomed(folded, whole, ordered), left_out


def _with_welcomed(folded: Fold, whole: Fold, ordered: list[Operation]) -> Fold:
    """Say which admissions have no effect in a fold, of all that are known (``whole``), yet may have
    given away its network key."""
    state, ground, index = whole.state, whole.ground, whole.history.index
    key_place = index[folded.history.order[folded.state.key_place]]
    void = members_of(whole.history.everything & ~state.effective)
    if len(folded.operations) < len(ordered):  # also those beyond the most that a log holds
        cut = (place for place, item in enumerate(ordered) if item.id not in folded.operations)
        void = sorted({*void, *cut})
    welcomed = (
        ordered[place]
        for place in void
        if ground.before(place) >> key_place & 1
        and may_have_welcomed(ground, state, ordered[place], place)
    )
    return replace(folded, welcomed=tuple(welcomed))


def _settle(ground: Ground, ordered: list[Operation]) -> State:
    struck, state = Struck(), State()
    for _ in range(MAX_PASSES):
        state = State()
        for place, operation in enumerate(ordered):
            if has_effect(ground, state, struck, operation, place):
                apply(state, operation, place, around(ground, state, struck, operation, place))
        if not any(ground.concurrent) or state.struck == struck:
            break
        struck = state.struck
    return state
