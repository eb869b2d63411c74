"""The shape of a history: operations that name their predecessors. Knows nothing of what they mean.

Every operation has a *height*, one more than the highest of its predecessors, and a place in the one
order that all nodes compute: by height, then id. So each stands after all its ancestors, and its place
is an index. Sets of operations are integers whose bit ``i`` stands for index ``i``: a history of
10,000 keeps 1,250 bytes for each operation's ancestors, and a question is one or two such integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["SAMPLE", "History", "build_history", "members_of"]

SAMPLE = 32
# Heads told in a sample in any case; further ones as far as there is room.
SAMPLE_HEADS = 16


@dataclass(frozen=True)
class History:
    """A closed set of operations (with each all its predecessors), in order. A value.

    ``order``: the ids; ``parents[i]``: the places of what operation ``i`` names; ``ancestors[i]``: the
    set of all that it follows from, itself left out.
    """

    order: tuple[str, ...]
    index: Mapping[str, int]
    parents: tuple[tuple[int, ...], ...]
    ancestors: tuple[int, ...]
    heads: tuple[str, ...]  # sorted ids of what nothing follows

    @property
    def everything(self) -> int:
        """The set of all operations."""
        return (1 << len(self.order)) - 1

    def append(self, identifier: str) -> History:
        """Return the history with one more operation, that follows all others."""
        place = len(self.order)
        return History(
            (*self.order, identifier),
            {**self.index, identifier: place},
            (*self.parents, tuple(self.index[head] for head in self.heads)),
            (*self.ancestors, self.everything),
            (identifier,),
        )

    def descendants(self) -> list[int]:
        """Return for each operation the set of those that follow from it."""
        found = [0] * len(self.order)
        for place in range(len(self.order) - 1, -1, -1):
            after = found[place] | 1 << place
            for parent in self.parents[place]:
                found[parent] |= after
        return found

    def concurrent(self) -> list[int]:
        """Return for each operation the set of those that neither follow from it nor precede it."""
        if all(before == (1 << place) - 1 for place, before in enumerate(self.ancestors)):
            return [0] * len(self.order)
        everything = self.everything
        return [
            everything & ~(before | after | 1 << place)
            for place, (before, after) in enumerate(
                zip(self.ancestors, self.descendants(), strict=True)
            )
        ]

    def closure(self, wanted: int) -> int:
        """Return a set of operations together with all their ancestors."""
        found = wanted
        for place in members_of(wanted):
            found |= self.ancestors[place]
        return found

    def sample(self) -> tuple[str, ...]:
        """Return at most 32 ids that tell another holder what this one has: heads, then ever older."""
        ids = dict.fromkeys(self.heads[:SAMPLE_HEADS])
        back, last = 1, len(self.order) - 1
        while back <= last and len(ids) < SAMPLE - 1:
            ids[self.order[last - back]] = None
            back *= 2
        if self.order:
            ids[self.order[0]] = None
        for head in self.heads[SAMPLE_HEADS:]:
            if len(ids) < SAMPLE:
                ids[head] = None
        return tuple(ids)

    def lacking(self, sample: Iterable[str]) -> tuple[str, ...]:
        """Return the ids, parents first, of what a holder of the sampled operations may lack."""
        held = 0
        for identifier in sample:
            place = self.index.get(identifier)
            if place is not None:
                held |= self.ancestors[place] | 1 << place
        return tuple(self.order[place] for place in members_of(self.everything & ~held))


def build_history(parents: Mapping[str, Iterable[str]]) -> History:
    """Return the history of operations given by id with their predecessors' ids.

    What has a predecessor that is not among them is left out, and so is what follows from it.
    """
    heights = _heights({key: tuple(named) for key, named in parents.items()})
    order = tuple(sorted(heights, key=lambda identifier: (heights[identifier], identifier)))
    index = {identifier: place for place, identifier in enumerate(order)}
    places = tuple(tuple(index[parent] for parent in parents[key]) for key in order)
    ancestors: list[int] = []
    followed = 0
    for named in places:
        before = direct = 0
        for place in named:
            direct |= 1 << place
            before |= ancestors[place]
        followed |= direct
        ancestors.append(before | direct)
    heads = members_of(((1 << len(order)) - 1) & ~followed)
    return History(
        order,
        index,
        places,
        tuple(ancestors),
        tuple(sorted(order[place] for place in heads)),
    )


def members_of(places: int) -> list[int]:
    """Return the indices in a set, ascending."""
    # By the digits of the number: shifting a long integer bit by bit would be quadratic.
    digits = bin(places)[:1:-1]
    found, at = [], digits.find("1")
    while at >= 0:
        found.append(at)
        at = digits.find("1", at + 1)
    return found


def _heights(parents: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """Kahn's algorithm: heights of all that is complete. No recursion: histories are long."""
    waiting = {key: len(named) for key, named in parents.items()}
    children: dict[str, list[str]] = {}
    for key, named in parents.items():
        for parent in named:
            children.setdefault(parent, []).append(key)
    ready = [key for key, count in waiting.items() if not count]
    heights = dict.fromkeys(ready, 1)
    while ready:
        key = ready.pop()
        for child in children.get(key, ()):
            heights[child] = max(heights.get(child, 0), heights[key] + 1)
            waiting[child] -= 1
            if not waiting[child]:
                ready.append(child)
    return {key: height for key, height in heights.items() if not waiting[key]}
