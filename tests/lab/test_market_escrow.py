"""Escrow with real daemons: served, not released, disputed, decided; every book and wallet agrees."""

from __future__ import annotations

from typing import Any

import pytest

from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from tests.lab.homes import watched
from tests.lab.strangers import FUNDS, LIMIT, PRICE, SAT_BYTES, Strangers

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(180))]

Json = dict[str, Any]


class Court(Strangers):
    """A seller, a buyer, and one whom both trust."""

    def build(self) -> None:
        super().build()
        self.judge = self.node(self.host("judge"), self.server)

    def open_up(self) -> None:
        self.judge.init()
        self.judge.start()
        self.judge.wait_for_relay()
        opened = self.judge.query("market", "arbitrate", "start")
        assert opened["state"] == "open"
        self.arbiter = opened["npub"]
        super().open_up()
        self.offer_in_escrow()

    def offer_in_escrow(self) -> None:
        """Put the exit on the market with the judge as arbiter."""
        words = ("--price", PRICE, "--mint", self.mint.url, "--escrow", self.arbiter)
        seller = self.sellers[0]
        seller.cli("exit", "offer", "--public", "--i-understand", *words, timeout=60)
        wait_until(self._takes_escrow, "the offer with its arbiter", timeout=LIMIT)

    def _takes_escrow(self) -> bool:
        found = self.laptop.query("market", "list", "--refresh")["offers"]
        return any("escrow" in one.get("pay", ()) for one in found)

    def wallet(self, node: LabNode) -> int:
        """Return what somebody has free (sat)."""
        return int(node.ask("wallet_balance")["free"])

    def accounts(self, node: LabNode) -> dict[str, int]:
        """Return the books of buyer or seller (msat)."""
        found = node.ask("market_earnings")
        assert found["problems"] == []
        accounts: dict[str, int] = found["accounts"]["bought" if node is self.laptop else "sold"]
        return accounts

    def at_home(self) -> int:
        """Return what both have, and what was locked and not shown when the buyer ended (sat)."""
        unshown = total(self.accounts(self.laptop), "locked:") // 1000
        return self.wallet(self.laptop) + self.wallet(self.sellers[0]) + unshown

    def cases(self) -> list[Json]:
        """Return what the judge is to decide."""
        found: list[Json] = self.judge.query("market", "arbitrate", "list")["cases"]
        return found

    def undecided(self) -> list[Json]:
        """Return the cases that are open."""
        return [one for one in self.cases() if one["state"] == "open"]


def total(accounts: dict[str, int], prefix: str) -> int:
    return sum(msat for name, msat in accounts.items() if name.startswith(prefix))


def used_and_left(lab: Court) -> str:
    """Use a lease, let the buyer vanish, end it, ask the judge; return the lease's id."""
    seller, laptop = lab.sellers[0], lab.laptop
    lab.buy(lab.refs["vps"], "--escrow", lab.arbiter)
    assert lab.lease()["mode"] == "escrow"
    size = 6 * SAT_BYTES
    assert lab.received(lab.download(size)) == size
    wait_until(lambda: lab.lease()["paid_msat"] >= 6000, "payments", timeout=LIMIT)
    laptop.kill()
    lease = str(seller.ask("market_sessions")["sold"][0]["lease"])
    early = seller.attempt("market", "dispute", lease)
    assert "in use yet" in early.stderr
    seller.cli("exit", "offer", "--public", "--stop", timeout=60)
    seller.cli("market", "dispute", lease, "--text", "it was served")
    wait_until(lambda: lab.undecided(), "a case", timeout=LIMIT)
    assert {one["lease"] for one in lab.undecided()} == {lease}
    return lease


def test_what_is_not_released_is_decided_and_every_book_agrees() -> None:
    with watched(Court()) as lab:
        lab.open_up()
        seller, laptop = lab.sellers[0], lab.laptop
        wrong = laptop.attempt("exit", "buy", "--escrow", lab.arbiter, "--pay", "locked")
        assert "a way to pay of its own" in wrong.stderr
        used_and_left(lab)
        before = lab.wallet(seller)
        open_cases = lab.undecided()
        shown = lab.judge.cli("market", "arbitrate", "show", open_cases[0]["id"][:12])
        assert "it was served" in shown
        lab.judge.restart()
        for one in open_cases:
            lab.judge.cli("market", "arbitrate", "decide", one["id"][:16], "--for", "seller")
        won = sum(one["claims"]["seller"]["sat"] for one in open_cases)
        wait_until(lambda: lab.wallet(seller) >= before + won, "what was won", timeout=LIMIT)
        # The buyer comes back, and has nothing against it: both books are the same.
        laptop.start()
        laptop.wait_for_relay()
        lab.settle()
        # Once more, and the judge thinks otherwise.
        lab.offer_in_escrow()
        used_and_left(lab)
        open_cases = lab.undecided()
        won = sum(one["claims"]["seller"]["sat"] for one in open_cases)
        used = sum(one["claims"]["seller"]["used_msat"] for one in open_cases)
        for one in open_cases:
            lab.judge.cli("market", "arbitrate", "decide", one["id"][:16], "--for", "buyer")
        wait_until(lambda: lab.accounts(seller).get("lost"), "the loss", timeout=LIMIT)
        assert lab.accounts(seller)["lost"] == used
        laptop.start()
        laptop.wait_for_relay()
        laptop.cli("exit", "off")
        wait_until(
            lambda: lab.at_home() == FUNDS,
            "all money at home",
            timeout=2 * LIMIT,
            evidence=lambda: f"{lab.accounts(laptop)} {lab.accounts(seller)} {lab.cases()}",
        )
        ours, theirs = lab.accounts(laptop), lab.accounts(seller)
        assert total(ours, "wallet:") == 1000 * (lab.wallet(laptop) - FUNDS)
        assert total(theirs, "wallet:") == 1000 * lab.wallet(seller)
        assert not total(theirs, "locked:")
        assert ours["spent"] == -theirs["earned"] - theirs["lost"]
        assert ours.get("unused", 0) == -theirs.get("unused", 0)
        assert won > 0
