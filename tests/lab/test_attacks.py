"""A daemon that is killed at any moment: what it leaves, and who mends it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nostrvpn.lab.gathering import gather
from nostrvpn.lab.nat import NatKind
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient
from nostrvpn.lab.processes import Process
from tests.lab.homes import machine, watched
from tests.lab.test_relayed import Relayed

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(120))]

# More for a long look: each costs some 2 s.
KILLS = int(os.environ.get("NOSTRVPN_KILLS", "2"))
LATEST = 2.0
# The relay holds everything that there is; the laptop is worth the time of a long look.
NODES = ("vps-1", "laptop-a") if KILLS > 2 else ("vps-1",)

Before = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def lab() -> Iterator[tuple[Relayed, Before]]:
    """Two laptops that only relays join, and how the machines were before."""
    with watched(Relayed(NatKind.SYMMETRIC)) as lab:
        before = {node.name: machine(node) for node in lab.nodes}
        laptops = lab.member("laptop-a"), lab.member("laptop-b")
        gather(lab.member("vps-1"), laptops)
        laptops[0].wait_for_peer(laptops[1].npub, path="relayed")
        yield lab, before


def left(node: LabNode, before: Before) -> dict[str, Any]:
    """What differs on the machine of a node from how it was."""
    was, now = before[node.name], machine(node)
    return {what: (was[what], now[what]) for what in was if was[what] != now[what]}


@pytest.mark.parametrize("name", NODES)
def test_a_node_that_is_killed_leaves_nothing_that_cleanup_or_a_restart_does_not_mend(
    lab: tuple[Relayed, Before], name: str
) -> None:
    """With a relay's table, lent ports, routing turned on, a tunnel, at moments drawn by lot."""
    relayed, before = lab
    node, rng = relayed.member(name), random.Random(name)
    assert left(node, before)  # a relay or tunnel is there: else this shows nothing
    node.kill()
    for number in range(KILLS):
        if number % 2 == 0:
            assert node.attempt("cleanup").returncode == 0
            assert left(node, before) == {}
        daemon = Process(node.namespace, (*node.command, "daemon"), log=node.log)
        time.sleep(rng.uniform(0.2, LATEST))
        daemon.kill()
    # What a killed one left, the next one takes over, and takes down in the end.
    node.start()
    node.wait_for_relay()
    assert node.stop() == 0
    assert left(node, before) == {}
    node.start()
    node.wait_for_relay()
