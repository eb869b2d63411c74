"""Buying an exit by Lightning invoices, with real daemons and a wallet by Nostr Wallet Connect."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.processes import Process
from tests.lab.homes import watched
from tests.lab.strangers import LIMIT, SAT_BYTES, Strangers

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(120))]

PROGRAM = "tests.lab.programs.lightning_wallet"
ROOT = Path(__file__).parents[2]


class Town(Strangers):
    """Both sides have their money at one Lightning wallet."""

    def connect(self, *kind: str) -> None:
        """Start a wallet, and connect both to it."""
        self.wallet = Process(
            self.server.namespace,
            (sys.executable, "-m", PROGRAM, self.server.relay_url, *kind),
            log=self.directory / f"lightning-wallet{len(kind)}.log",
            environment={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.stack.callback(self.wallet.kill)
        self.wallet.wait_for_text("link ")
        link = self.wallet.output().partition("link ")[2].split()[0]
        for node in (self.laptop, *self.sellers):
            assert node.ask("wallet_connect", link=link)["connected"]

    def pays(self) -> list[str]:
        """Return how the first offer can be paid."""
        [offer] = self.laptop.query("market", "list", "--refresh")["offers"]
        found: list[str] = offer["pay"]
        return found


@pytest.fixture
def town() -> Iterator[Town]:
    with watched(Town()) as lab:
        lab.open_up()
        yield lab


def accounts(lab: Town) -> tuple[dict[str, int], dict[str, int]]:
    buyer, seller = (n.ask("market_earnings") for n in (lab.laptop, lab.sellers[0]))
    assert buyer["problems"] == seller["problems"] == []
    return buyer["accounts"]["bought"], seller["accounts"]["sold"]


def test_an_exit_is_paid_by_invoices_while_a_wallet_is_connected(town: Town) -> None:
    lab = town
    assert "bolt11" not in lab.pays()
    lab.connect("plain")
    wait_until(lambda: "bolt11" in lab.pays(), "an offer that takes invoices", timeout=LIMIT)
    ecash = lab.laptop.query("wallet", "balance")
    lab.buy(lab.refs["vps"], "--pay", "bolt11")
    assert (lab.lease()["mode"], lab.lease()["mint"]) == ("bolt11", "lightning")
    assert lab.seen() == str(lab.hosts[0].address)
    size = 25 * SAT_BYTES
    assert lab.received(lab.download(size)) == size
    wait_until(lambda: lab.lease()["paid_msat"] >= 30_000, "the third grant", timeout=LIMIT)
    lab.laptop.cli("exit", "off")

    def rows() -> list[dict[str, Any]]:
        sides = ((lab.laptop, "bought"), (lab.sellers[0], "sold"))
        return [node.ask("market_sessions")[name][0] for node, name in sides]

    wait_until(
        lambda: all(row["state"] == "closed" for row in rows()),
        "settled books",
        timeout=2 * LIMIT,
        evidence=lambda: str(rows()),
    )
    bought, sold = rows()
    assert bought["outcome"] == "served"
    assert bought["credited_msat"] == sold["paid_msat"]
    assert bought["due_msat"] == sold["due_msat"] > 20_000
    ours, theirs = accounts(lab)
    assert theirs["wallet:lightning"] == sold["paid_msat"]
    assert ours["wallet:lightning"] == -sold["paid_msat"] - ours["fees"]
    assert ours["spent"] == -theirs["earned"]
    assert lab.laptop.query("wallet", "balance") == ecash


@pytest.mark.timeout(patient(240))
def test_what_waits_in_the_network_goes_home_unless_it_was_used(town: Town) -> None:
    lab = town
    lab.connect()
    wait_until(lambda: "hold" in lab.pays(), "an offer that takes held invoices", timeout=LIMIT)
    lab.buy(lab.refs["vps"], "--pay", "bolt11")
    assert (lab.lease()["mode"], lab.lease()["mint"]) == ("hold", "lightning")
    size = 12 * SAT_BYTES
    assert lab.received(lab.download(size)) == size
    wait_until(lambda: lab.lease()["paid_msat"] >= 20_000, "the second grant", timeout=LIMIT)
    wait_until(lambda: "wallet:lightning" in accounts(lab)[1], "the first release", timeout=LIMIT)
    assert accounts(lab)[1]["locked:lightning"] >= 10_000
    lab.laptop.cli("exit", "off")

    def is_over() -> bool:
        ours, theirs = accounts(lab)
        waits = [name for name in ours if name.startswith(("locked:", "lease:"))]
        return not waits and "locked:lightning" not in theirs

    wait_until(is_over, "settled books", timeout=4 * LIMIT, evidence=lambda: str(accounts(lab)))
    ours, theirs = accounts(lab)
    assert ours["wallet:lightning"] == -theirs["wallet:lightning"] - ours.get("fees", 0)
    assert ours["spent"] == -theirs["earned"] > 10_000
    assert "lost" not in {*ours, *theirs}
