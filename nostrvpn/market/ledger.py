"""Double entry, in msat: each sum leaves one account and enters another, once for each ``ref``.

Accounts are words. Of the seller: ``wallet:MINT``, ``locked:MINT`` (proofs not redeemed yet) and
``channel:MINT`` (channels not closed yet) are what he has, ``lease:ID`` is what he owes to a buyer in
service or money, ``earned``, ``unused``, ``fees`` and ``lost`` say where it went. Of the buyer:
``wallet:MINT``, ``locked:LEASE``, ``lease:ID``, ``spent``, ``fees``, ``refund``. A debit adds to what
one has; a credit to what one owes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.market.effects import Keep
from nostrvpn.market.terms import MAX_MSAT

__all__ = ["Entry", "Ledger"]


@dataclass(frozen=True, slots=True)
class Entry:
    """``msat`` goes from account ``credit`` to account ``debit``; ``at`` is Unix time in seconds."""

    ref: str
    at: int
    debit: str
    credit: str
    msat: int
    memo: str = ""

    def to_json(self) -> list[object]:
        """Return what is stored (the ref is the record's key)."""
        return [self.at, self.debit, self.credit, self.msat, self.memo]

    @classmethod
    def from_json(cls, ref: str, stored: object) -> Entry:
        """Rebuild from :meth:`to_json`; PeerMisbehaved if the record is damaged."""
        match stored:
            case [int(at), str(debit), str(credit), int(msat), str(memo)]:
                return cls(ref, at, debit, credit, msat, memo)
        raise PeerMisbehaved("bad_record", f"not a ledger entry: {ref}")


class Ledger:
    """All entries of one machine, kept in the space ``space``."""

    def __init__(self, space: str) -> None:
        self.space = space
        self._entries: dict[str, Entry] = {}
        self._balances: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __contains__(self, ref: str) -> bool:
        return ref in self._entries

    def post(self, entry: Entry) -> list[Keep]:
        """Enter it; nothing happens for a sum of nothing, or for a ref that is there already.

        ValueError for what no book may hold: another sum under a known ref, a negative one, one
        account on both sides.
        """
        known = self._entries.get(entry.ref)
        if known is not None:
            same = (entry.debit, entry.credit, entry.msat)
            if (known.debit, known.credit, known.msat) != same:
                raise ValueError(f"{entry.ref} is in the ledger with another sum")
            return []
        if entry.debit == entry.credit or not 0 <= entry.msat <= MAX_MSAT:
            raise ValueError(f"{entry.ref} is no entry: {entry.msat} msat")
        if entry.msat == 0:
            return []
        self._add(entry)
        return [Keep(self.space, entry.ref, entry.to_json())]

    def restore(self, records: Mapping[str, object]) -> None:
        """Take what was kept, by ref; PeerMisbehaved if a record is damaged."""
        for ref, stored in records.items():
            self._add(Entry.from_json(ref, stored))

    def balance(self, account: str) -> int:
        """Return debits less credits (msat): positive is what one has, negative what one owes."""
        return self._balances[account]

    def accounts(self) -> dict[str, int]:
        """Return all balances that are not zero."""
        return {name: msat for name, msat in sorted(self._balances.items()) if msat}

    def check(self) -> list[str]:
        """Return what is wrong, in words; empty in good books.

        Balances are those of the entries; they sum up to nothing; nobody owes us service; no proofs
        are there less than none.
        """
        wrong = []
        sums: Counter[str] = Counter()
        for entry in self._entries.values():
            sums[entry.debit] += entry.msat
            sums[entry.credit] -= entry.msat
            if entry.msat <= 0 or entry.debit == entry.credit:
                wrong.append(f"{entry.ref} moves {entry.msat} msat to {entry.debit}")
        if any(sums[name] != self._balances[name] for name in {*sums, *self._balances}):
            wrong.append("the balances are not those of the entries")
        if sum(self._balances.values()):
            wrong.append("what was taken is not what was given")
        for name, msat in self.accounts().items():
            if name.startswith(("locked:", "channel:")) and msat < 0:
                wrong.append(f"{name} has {msat} msat")
        return wrong

    def _add(self, entry: Entry) -> None:
        self._entries[entry.ref] = entry
        self._balances[entry.debit] += entry.msat
        self._balances[entry.credit] -= entry.msat
