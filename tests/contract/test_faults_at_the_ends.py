"""Each request of the reconciler is refused once, or is its last before a SIGKILL: begin and end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from nostrvpn.errors import SystemRefused
from nostrvpn.lab.patience import patient
from tests.contract.fault_room import (
    ANY_WAY,
    BY_CABLE,
    Room,
    Watch,
    Wish,
    everything,
    everything_but_a_block,
    injections,
    suffer,
)
from tests.contract.faults import Killed

pytestmark = pytest.mark.timeout(patient(240))

# Each test takes every so many of the injections: more than one CPU can then be busy with them.
PARTS = 4
part_of_them = pytest.mark.parametrize("part", range(PARTS))


@part_of_them
@pytest.mark.parametrize("wish", [everything, everything_but_a_block])
def test_a_start_that_fails_at_any_step_leaves_nothing_but_the_block(
    room: Room, wish: Wish, part: int
) -> None:
    before = room.looks()
    asked = room.faults.run(lambda: room.settle(wish(room.interface)))
    room.down()
    assert room.looks() == before
    for number, kind in injections(asked)[part::PARTS]:
        room.restart()
        watch = Watch(room, {ANY_WAY, BY_CABLE})
        told = suffer(room, wish, number, kind)
        if told != "killed":
            if wish is everything:
                room.faults.run(room.stop)
                watch.look("the end")
            else:
                room.stop()
        if told == "killed" or wish is everything:
            room.cleanup()
        assert room.looks() == before, (asked[number], kind)


@part_of_them
@pytest.mark.parametrize("ending", [Room.down, Room.cleanup])
def test_what_fails_at_any_step_of_the_end_is_removed_by_cleanup(
    room: Room, ending: Callable[[Room], None], part: int
) -> None:
    before = room.looks()
    room.settle(everything(room.interface))
    asked = room.faults.run(lambda: ending(room))
    assert room.looks() == before
    for number, kind in injections(asked)[part::PARTS]:
        room.restart()
        room.settle(everything(room.interface))
        with suppress(SystemRefused, Killed):
            room.faults.run(lambda: ending(room), number, kind)
        room.cleanup()
        assert room.looks() == before, (asked[number], kind)
