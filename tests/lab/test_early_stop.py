"""A daemon that is told to stop while it is still starting takes down what it made until then."""

from __future__ import annotations

import signal
import time

import pytest

from nostrvpn.lab.mint import Mint
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


def test_a_daemon_whose_mint_hangs_ends_at_once_and_loses_nothing() -> None:
    """It is stopped in the middle of a swap of which it does not know what came."""
    with homes(1) as lab:
        (node,) = lab.nodes
        with Mint(lab.directory / "mint", namespace=node.namespace) as mint:
            node.init()
            node.start()
            node.cli("wallet", "mints", "add", mint.url)
            node.cli("wallet", "fund", "64", "--mint", mint.url)
            assert mint._process is not None
            mint._process.signal(signal.SIGSTOP)
            words = (*node.command, "wallet", "send", "21")
            sending = Process(node.namespace, words, log=lab.directory / "sending.log")
            balance = ("wallet", "balance")
            wait_until(lambda: node.query(*balance)["pending"] == 64, "the swap to be under way")
            begun = time.monotonic()
            assert node.stop() == 0
            assert time.monotonic() - begun < patient(2.5)
            wait_until(lambda: not sending.alive, "who asked to be told")
            mint._process.signal(signal.SIGCONT)
            node.start()
            wait_until(lambda: node.query(*balance)["pending"] == 0, "the swap to be found")
            assert node.query(*balance)["free"] == 64 - 21
            [sent, _] = node.query("wallet", "history")["entries"]
            token = node.query("wallet", "send", "--again", sent["ref"])["token"]
            assert node.query("wallet", "receive", token)["amount"] == 21
