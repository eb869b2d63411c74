"""Each request of the reconciler is refused once, or is its last before a SIGKILL: between two states.

What is called closed never lets a packet out, and the next run reaches what is desired.
"""

from __future__ import annotations

import pytest

from nostrvpn.lab.patience import patient
from tests.contract.fault_room import (
    ANY_WAY,
    Room,
    Watch,
    Wish,
    connecting,
    everything,
    everything_but_a_block,
    injections,
    lockdown,
    off,
    other_exit,
    reached,
    suffer,
    tunnelled,
    unguarded,
)
from tests.contract.faults import KILLED

pytestmark = pytest.mark.timeout(patient(240))

# Where there are many injections, each test takes every so many of them.
PARTS = 3

CLOSED = [
    (tunnelled, connecting),
    (connecting, tunnelled),
    (tunnelled, other_exit),
    (other_exit, tunnelled),
    (tunnelled, lockdown),
    (lockdown, tunnelled),
]


@pytest.mark.parametrize(("start", "end"), CLOSED)
def test_no_fault_on_the_way_from_one_closed_state_to_another_lets_anything_out(
    room: Room, start: Wish, end: Wish
) -> None:
    there = reached(room, end)
    room.settle(start(room.interface))
    asked = room.faults.run(lambda: room.settle(end(room.interface)))
    for number, kind in injections(asked):
        room.settle(start(room.interface))
        watch = Watch(room, set())
        suffer(room, end, number, kind)
        watch.look(f"the end, {asked[number]} {kind}")
        room.faults.run(lambda: room.settle(end(room.interface)))
        assert room.looks() == there, (asked[number], kind)
        watch.look(f"the next run was over, {asked[number]} {kind}")


@pytest.mark.parametrize("start", [off, unguarded])
def test_a_fault_while_it_closes_leaves_it_closed_or_nothing_changed(
    room: Room, start: Wish
) -> None:
    there = reached(room, tunnelled)
    before = reached(room, start)
    open_before = room.strays()
    asked = room.faults.run(lambda: room.settle(tunnelled(room.interface)))
    for number, kind in injections(asked):
        room.settle(start(room.interface))
        watch = Watch(room, open_before)
        told = suffer(room, tunnelled, number, kind)
        watch.look("the end")
        if ANY_WAY in watch.allowed or (kind == KILLED and watch.allowed):
            assert told, (asked[number], kind)
            assert room.looks() == before, (asked[number], kind)
        room.faults.run(lambda: room.settle(tunnelled(room.interface)))
        assert room.strays() == set()
        assert room.looks() == there, (asked[number], kind)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize(
    ("start", "end"),
    [(tunnelled, off), (tunnelled, unguarded), (off, everything_but_a_block), (everything, off)],
)
def test_after_a_fault_the_next_run_reaches_what_is_desired(
    room: Room, start: Wish, end: Wish, part: int
) -> None:
    there = reached(room, end)
    room.settle(start(room.interface))
    asked = room.faults.run(lambda: room.settle(end(room.interface)))
    for number, kind in injections(asked)[part::PARTS]:
        room.settle(start(room.interface))
        suffer(room, end, number, kind)
        room.settle(end(room.interface))
        assert room.looks() == there, (asked[number], kind)
