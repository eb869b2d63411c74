"""A daemon that is told to stop while it is still starting takes down what it made until then."""

from __future__ import annotations

import time

import pytest

from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.processes import Process
from tests.lab.homes import homes, machine

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(60))]


def test_a_daemon_stopped_while_it_starts_leaves_nothing() -> None:
    with homes(1) as lab:
        (node,) = lab.nodes
        node.init()
        before = machine(node)
        present = ("ip", "link", "show", node.interface)
        # From the first sight of the interface on, and later by steps that pass its whole start.
        for later in (0.0, 0.03, 0.08):
            daemon = Process(node.namespace, (*node.command, "daemon"), log=node.log)
            wait_until(
                lambda: node.namespace.run(*present, check=False).returncode == 0, "the interface"
            )
            time.sleep(later)
            assert daemon.stop() == 0
            assert machine(node) == before
