"""From a set of operations to what holds: the fold, and which operations a log has to keep.

Operations are read in one order (height, then id), each with its effect or without. Since a removal
also voids what is concurrent with it and comes before it in order, the fold is repeated with what the
last pass found to strike, until nothing changes: two passes for most, one where nothing is concurrent.
The outcome depends on the set alone, not on the order of arrival.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nostrvpn.mesh.authority import Ground, around, has_effect, prepare
from nostrvpn.mesh.history import History, build_history, members_of
from nostrvpn.mesh.operations import Operation
from nostrvpn.mesh.state import State, Struck, apply

__all__ = ["MAX_OPERATIONS", "Fold", "fold"]

# 3 MB and a second of CPU; a household makes a few a year, a company with 1,000 devices a few a day.
MAX_OPERATIONS = 10_000
# Each pass settles one more link of a chain of "A's removal of B is void, so B's of C is not".
# Only people who sign against each other with old places make more than three.
MAX_PASSES = 16


@dataclass(frozen=True)
class Fold:
    """What a log comes to. ``operations`` by id; ``state`` and ``ground`` are not to be changed."""

    history: History
    operations: Mapping[str, Operation]
    state: State
    ground: Ground

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
        apply(state, operation, place, around(ground, state, operation, place))
        return Fold(history, {**self.operations, operation.id: operation}, state, ground)


def fold(
    operations: Mapping[str, Operation], proofs: dict[tuple[str, str], bool]
) -> tuple[Fold, frozenset[str]]:
    """Fold operations; return also the ids that were left out of the log.

    The log keeps what has an effect and what that follows from: whoever was removed cannot fill it.
    Left out are the others and, beyond ``MAX_OPERATIONS``, the last in order. Of those, what can have
    no effect whatever else arrives is not returned.
    """
    history = build_history({key: item.parents for key, item in operations.items()})
    ordered = [operations[key] for key in history.order]
    ground = prepare(history, ordered, proofs)
    state = _settle(ground, ordered)
    kept = members_of(history.closure(state.effective))[:MAX_OPERATIONS]
    if len(kept) == len(history.order):
        return Fold(history, dict(operations), state, ground), frozenset()
    # What had no effect is gone, so the rest comes to the same; its places are others, though.
    folded, _ = fold({history.order[place]: ordered[place] for place in kept}, proofs)
    left_out = frozenset(
        operation.id
        for place, operation in enumerate(ordered)
        if operation.id not in folded.operations and not ground.junk >> place & 1
    )
    return folded, left_out


def _settle(ground: Ground, ordered: list[Operation]) -> State:
    struck, state = Struck(), State()
    for _ in range(MAX_PASSES):
        state = State()
        for place, operation in enumerate(ordered):
            if has_effect(ground, state, struck, operation, place):
                apply(state, operation, place, around(ground, state, operation, place))
        if not any(ground.concurrent) or state.struck == struck:
            break
        struck = state.struck
    return state
