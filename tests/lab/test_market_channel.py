"""Buying an exit by payment channels: real daemons, a real mint, and the books of all agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from tests.lab.homes import watched
from tests.lab.strangers import LIMIT, PRICE, SAT_BYTES, Strangers

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(120))]


class Quay(Strangers):
    """The seller takes channels."""

    def __init__(self) -> None:
        super().__init__(fee_ppk=100)

    def offer(self, seller: LabNode) -> None:
        super().offer(seller)
        [offer] = self.laptop.query("market", "list")["offers"]
        assert "channel" not in offer["pay"]  # not unless it is named
        words = ("--price", PRICE, "--mint", self.mint.url, "--pay", "channel")
        seller.cli("exit", "offer", "--public", *words, timeout=60)
        wait_until(lambda: "channel" in self.pays(), "an offer that takes channels", timeout=LIMIT)

    def pays(self) -> list[str]:
        """Return how the offer can be paid."""
        offers = self.laptop.query("market", "list", "--refresh")["offers"]
        found: list[str] = offers[0]["pay"] if offers else []
        return found

    def accounts(self, node: LabNode, side: str) -> dict[str, int]:
        """Return what a side's books have, by account."""
        answer = node.ask("market_earnings")
        assert answer["problems"] == []
        found: dict[str, int] = answer["accounts"][side]
        return found


@pytest.fixture(scope="module")
def quay() -> Iterator[Quay]:
    with watched(Quay()) as lab:
        lab.open_up()
        yield lab


def use(lab: Quay, megabytes: int) -> None:
    size = megabytes * SAT_BYTES
    assert lab.received(lab.download(size)) == size


def test_an_exit_is_paid_by_channels_and_both_books_agree_with_the_mint(quay: Quay) -> None:
    lab = quay
    lab.buy(lab.refs["vps"], "--pay", "channel")
    assert lab.lease()["mode"] == "channel"
    assert lab.seen() == str(lab.hosts[0].address)
    use(lab, 20)  # more than the first channel has
    seller = lab.sellers[0]
    assert lab.lease()["paid_msat"] > 14_000
    wallet = f"wallet:{lab.mint.url}"
    wait_until(
        lambda: lab.accounts(seller, "sold").get(wallet, 0) > 10_000,
        "the first channel to be closed",
        timeout=LIMIT,
    )
    assert lab.accounts(seller, "sold")[f"channel:{lab.mint.url}"] > 0
    row = lab.settle().bought[0]
    ours, theirs = lab.accounts(lab.laptop, "bought"), lab.accounts(seller, "sold")
    assert ours["spent"] == -theirs["earned"] == row["due_msat"] > 15_000
    assert f"channel:{lab.mint.url}" not in theirs
    free: Any = seller.query("wallet", "balance")
    assert theirs[wallet] == 1000 * free["free"]
    [sold] = seller.ask("market_sessions")["sold"]
    assert (sold["mode"], sold["paid_msat"]) == ("channel", row["credited_msat"])


def test_both_daemons_are_killed_and_nothing_is_lost(quay: Quay) -> None:
    lab, seller = quay, quay.sellers[0]
    lab.buy(lab.refs["vps"], "--pay", "channel")
    use(lab, 5)
    for node in (seller, lab.laptop):
        node.kill()
        node.start()
    wait_until(lambda: lab.purchase()["state"] == "connected", "the lease again", timeout=2 * LIMIT)
    wait_until(lab.seen, "the way through it", timeout=LIMIT)
    use(lab, 5)
    seller.kill()  # while its channel is open
    seller.start()
    row = lab.settle().bought[0]
    assert row["outcome"] == "served"
    assert row["credited_msat"] > 3000  # what was used since the last write, WireGuard took along
