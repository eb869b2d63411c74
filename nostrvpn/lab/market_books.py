"""The books of one who sold and one who bought, held against each other and against their wallets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nostrvpn.lab.node import LabNode

__all__ = ["Books", "disagreements"]

Json = dict[str, Any]


class Books:
    """What one buyer and the sellers it bought from have in their books, and in their wallets.

    ``funded_msat``: what the buyer's wallet began with; the sellers' began empty. Nobody else bought or
    sold, and nothing but the market touched the wallets.
    """

    def __init__(self, buyer: LabNode, sellers: tuple[LabNode, ...], funded_msat: int) -> None:
        self._buyer, self._sellers, self.funded_msat = buyer, sellers, funded_msat
        self.read()

    def read(self) -> Books:
        """Ask all daemons anew."""
        self.bought: list[Json] = self._buyer.ask("market_sessions")["bought"]
        found = self._buyer.ask("market_earnings")
        self.spent: dict[str, int] = found["accounts"]["bought"]
        self.problems: list[str] = found["problems"]
        self.buyer_msat = _in_wallet(self._buyer)
        self.sold: list[Json] = []
        self.earned: dict[str, int] = {}
        self.seller_msat = 0
        for node in self._sellers:
            self.sold += node.ask("market_sessions")["sold"]
            found = node.ask("market_earnings")
            self.problems = self.problems + found["problems"]
            for name, msat in found["accounts"]["sold"].items():
                self.earned[name] = self.earned.get(name, 0) + msat
            self.seller_msat += _in_wallet(node)
        return self

    @property
    def is_settled(self) -> bool:
        """Whether nothing is on its way any more, but what is locked until its time."""
        open_leases = [row for row in (*self.bought, *self.sold) if row["state"] != "closed"]
        unredeemed = _sum(self.earned, "locked:") + _sum(self.earned, "channel:")
        return not open_leases and not unredeemed

    def document(self) -> Json:
        """Return all of it."""
        return {
            "sessions": {"bought": self.bought, "sold": self.sold},
            "accounts": {"bought": self.spent, "sold": self.earned},
            "wallets_msat": {"buyer": self.buyer_msat, "sellers": self.seller_msat},
        }

    def text(self) -> str:
        """Return all of it in a line, as evidence."""
        return str(self.document())


def disagreements(books: Books) -> list[str]:
    """Return where settled books, or books and wallets, differ by a msat or more; nothing if nowhere."""
    wrong = list(books.problems)
    sold = {row["lease"]: row for row in books.sold}
    for row in books.bought:
        other = sold.pop(row["lease_id"], None)
        if other is None:
            if row["credited_msat"]:
                wrong.append(f"lease {row['lease_id']}: paid, and not in a seller's books")
            continue
        mine = (row["due_msat"], row["credited_msat"], row["refund_sat"])
        theirs = (other["due_msat"], other["paid_msat"], other["refund_sat"])
        if mine != theirs:
            wrong.append(
                f"lease {row['lease_id']}: due, credited, given back are {mine} and {theirs}"
            )
    wrong += [f"lease {lease}: sold, and not in the buyer's books" for lease in sold]
    spent, earned = books.spent, books.earned
    for account, other_side in (("spent", "earned"), ("unused", "unused")):
        a, b = spent.get(account, 0), -earned.get(other_side, 0)
        if a != b:
            wrong.append(f"the buyer has {a} msat {account}, the sellers {b} {other_side}")
    if spent.get("lost", 0) or earned.get("lost", 0):
        wrong.append(f"lost: {spent.get('lost', 0)} and {earned.get('lost', 0)} msat")
    if books.buyer_msat != books.funded_msat + _sum(spent, "wallet:"):
        wrong.append(f"the buyer's wallet has {books.buyer_msat} msat, its books say otherwise")
    if books.seller_msat != _sum(earned, "wallet:"):
        wrong.append(
            f"the sellers' wallets have {books.seller_msat} msat, their books say otherwise"
        )
    # What the mint took: a fee that the seller was not credited is in the buyer's books.
    fees = spent.get("fees", 0) + earned.get("fees", 0)
    # A payment that was not answered for is still in the account of its lease.
    locked = _sum(spent, "locked:") + _sum(spent, "lease:")
    if books.funded_msat != books.buyer_msat + books.seller_msat + locked + fees:
        wrong.append(
            f"of {books.funded_msat} msat {books.buyer_msat} are with the buyer, "
            f"{books.seller_msat} with the sellers, {locked} locked, {fees} went to the mint"
        )
    return wrong


def _sum(accounts: Mapping[str, int], prefix: str) -> int:
    return sum(msat for name, msat in accounts.items() if name.startswith(prefix))


def _in_wallet(node: LabNode) -> int:
    return 1000 * int(node.ask("wallet_balance")["free"])
