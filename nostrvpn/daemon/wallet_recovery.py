"""Comparing the wallet with its mints, and bringing money back from words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nostrvpn.cashu.answers import ProofState
from nostrvpn.cashu.operations import SecretSource
from nostrvpn.cashu.proof import Proof
from nostrvpn.cashu.secrets import SeedSource, seed_of
from nostrvpn.daemon.wallet_book import Book
from nostrvpn.daemon.wallet_errands import Errands
from nostrvpn.daemon.wallet_mints import Mints
from nostrvpn.errors import NostrvpnError

__all__ = ["MintReport", "Recovery"]


@dataclass(slots=True)
class MintReport:
    """What was found at one mint, in sat; ``error``: why nothing could be.

    ``good`` and ``pending`` are ours; ``spent`` was in our books and is gone; ``found`` the mint still
    had for us, and is in the wallet now.
    """

    mint: str
    good: int = 0
    pending: int = 0
    spent: int = 0
    found: int = 0
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it for the control interface."""
        return asdict(self)


class Recovery:
    """Checks and restores; ``source`` makes the secrets of this wallet's own words."""

    def __init__(self, book: Book, mints: Mints, errands: Errands, source: SecretSource) -> None:
        self._book = book
        self._mints = mints
        self._errands = errands
        self._source = source

    async def check(self) -> list[MintReport]:
        """Ask each mint after every proof of ours (NUT-07), and after what was given up before."""
        return [await self._guarded(mint, self._check) for mint in self._mints.urls()]

    async def restore(self) -> list[MintReport]:
        """Take in whatever our own words still own, from number 0 on (NUT-09, NUT-13)."""
        return [await self._guarded(mint, self._restore) for mint in self._mints.urls()]

    async def found_by(self, mint: str, words: str) -> tuple[Proof, ...]:
        """Return what other words own at a mint, to be redeemed; BadWords."""
        source = SeedSource(seed_of(words))
        found: list[Proof] = []
        for keyset in (await self._mints.keys(mint, fresh=True)).keysets.values():
            proofs, _ = await self._errands.scan(mint, keyset, source)
            found += proofs
        return tuple(found)

    async def _guarded(self, mint: str, work: Any) -> MintReport:
        report = MintReport(mint)
        try:
            await work(report)
        except NostrvpnError as error:
            report.error = str(error)
        return report

    async def _check(self, report: MintReport) -> None:
        # Of what an operation holds its own end decides.
        free = self._book.purse.proofs(report.mint)
        states = await self._errands.states(report.mint, free)
        held = {p.secret for p in self._book.purse.proofs(report.mint)}
        lost: list[Proof] = []
        for proof, state in zip(free, states, strict=True):
            if proof.secret not in held:
                continue  # spent by us meanwhile
            if state is ProofState.SPENT:
                lost.append(proof)
                report.spent += proof.amount
            elif state is ProofState.PENDING:
                report.pending += proof.amount
            else:
                report.good += proof.amount
        self._book.lose(lost)
        report.pending += self._book.purse.balance(report.mint)[1]
        for failed in self._book.failed():
            if failed.mint == report.mint:
                late = self._new(await self._errands.still_comes(failed))
                if late:
                    self._book.recover(failed, late)
                    report.found += sum(proof.amount for proof in late)
        report.good += report.found

    async def _restore(self, report: MintReport) -> None:
        for keyset in (await self._mints.keys(report.mint, fresh=True)).keysets.values():
            proofs, unused = await self._errands.scan(report.mint, keyset, self._source)
            begun = {o.secret for op in self._book.open.values() for o in op.outputs}
            known = begun | self._book.given()
            new = [p for p in self._new(proofs) if p.secret not in known]
            counter = max(unused, self._book.counter(keyset.id))
            self._book.adopt(report.mint, new, {keyset.id: counter})
            report.found += sum(proof.amount for proof in new)
        report.good, report.pending = self._book.purse.balance(report.mint)

    def _new(self, proofs: Sequence[Proof]) -> list[Proof]:
        return [proof for proof in proofs if not self._book.purse.has(proof)]
