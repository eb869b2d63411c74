"""Carrying out the wallet's operations at a mint, and finding out what became of them.

The first request of an operation either has an answer, which settles it, or none. Without one nobody
knows; then, and after a restart, the mint is asked again: by the same request, by the state of the
inputs (NUT-07) and for the signatures of the outputs (NUT-09). A payment is never asked for twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from nostrvpn.cashu.amounts import split
from nostrvpn.cashu.answers import (
    MeltQuote,
    ProofState,
    QuoteState,
    parse_melt_quote,
    parse_mint_quote,
    parse_states,
)
from nostrvpn.cashu.operations import (
    Outputs,
    SecretSource,
    check_body,
    finish_change,
    finish_outputs,
    finish_restored,
    melt_body,
    mint_body,
    parse_signatures,
    prepare_outputs,
    restore_body,
    swap_body,
)
from nostrvpn.cashu.proof import Keyset, Proof
from nostrvpn.cashu.purse import Operation
from nostrvpn.daemon.wallet_answers import WalletFailed
from nostrvpn.daemon.wallet_book import Book
from nostrvpn.daemon.wallet_mints import Mints
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.io.mint import MintBusy, MintRefused, MintUnreachable

__all__ = ["ALREADY_SIGNED", "BATCH", "OUTDATED", "PENDING", "SPENT", "TROUBLE", "Errands"]

# The mint's error codes (the NUTs' error_codes.md).
SPENT: Final = 11001
PENDING: Final = frozenset({11002, 11004})
ALREADY_SIGNED: Final = 11003
# Keys or fees are not what we knew.
OUTDATED: Final = frozenset({11005, 12001, 12002})
# No word on the matter: Nutshell's own trouble (two that want one row of its database).
TROUBLE: Final = 0
# Proofs or outputs in one question.
BATCH: Final = 100
EMPTY_BATCHES: Final = 3
# More than any wallet makes in years, and more than one holds, which keeps few proofs: a mint could
# sign whatever it is asked about, for ever.
MAX_NUMBERS: Final = 1 << 20
MAX_FOUND: Final = 10_000
# An invoice that was paid in its last second is known to the mint by then.
PAYMENT_DELAY_S: Final = 3600


class Errands:
    """Carries operations of ``book`` to their ends at ``mints``; ``source``: secrets of new proofs."""

    def __init__(self, book: Book, mints: Mints, source: SecretSource) -> None:
        self._book = book
        self._mints = mints
        self._source = source

    async def carry_out(self, operation: Operation, *, is_new: bool = False) -> Operation:
        """Return the operation when it is done; WalletFailed if it is not, or not yet.

        ``is_new``: it was written down just now, and no request for it has left before.
        """
        try:
            if operation.kind == "fund":
                return await self._mint(operation)
            if operation.kind == "melt":
                return await self._melt(operation, is_new)
            return await self._swap(operation, is_new)
        except MintBusy as error:
            if is_new and not error.may_have_arrived:
                self._book.drop(operation)
            raise WalletFailed(str(error), error.hint, may_retry=True) from error
        except MintUnreachable as error:
            if is_new and not error.may_have_arrived:
                self._book.drop(operation)
            elif is_new and error.is_cut:
                return await self.carry_out(operation)
            raise WalletFailed(str(error), error.hint, may_retry=True) from error
        except PeerMisbehaved as error:
            text = f"the mint {operation.mint} answered wrongly ({error.code}): {error}"
            raise WalletFailed(
                text, "nothing is forgotten: it is asked again", may_retry=True
            ) from error

    async def states(self, mint: str, proofs: Sequence[Proof]) -> list[ProofState]:
        """Return what the mint says of proofs, in their order (NUT-07)."""
        found: list[ProofState] = []
        for start in range(0, len(proofs), BATCH):
            some = proofs[start : start + BATCH]
            answer = await self._mints.client(mint).post("/v1/checkstate", check_body(some))
            found += parse_states(answer, some)
        return found

    async def restored(self, mint: str, outputs: Outputs) -> tuple[Proof, ...]:
        """Return the proofs of those outputs that the mint once signed, in their order (NUT-09)."""
        found: dict[str, Proof] = {}
        for start in range(0, len(outputs), BATCH):
            some = outputs[start : start + BATCH]
            answer = await self._mints.client(mint).post("/v1/restore", restore_body(some))
            for proof in finish_restored(some, answer, self._keyset(mint, some)):
                found[proof.secret] = proof
        return tuple(found[each.secret] for each in outputs if each.secret in found)

    async def scan(
        self, mint: str, keyset: Keyset, source: SecretSource, first: int = 0
    ) -> tuple[list[Proof], int]:
        """Return what is unspent of all that ``source`` ever had signed from number ``first`` on.

        And the first number that is not used; three empty batches of a hundred end it (NUT-13).
        PeerMisbehaved where nothing ends it.
        """
        found: list[Proof] = []
        start, unused = first, first
        while start - unused < EMPTY_BATCHES * BATCH:
            amounts = [min(keyset.keys)] * BATCH  # the mint knows better, and answers with its own
            outputs = prepare_outputs(amounts, keyset, source, start)
            signed = await self.restored(mint, outputs)
            secrets = {proof.secret for proof in signed}
            for number, output in enumerate(outputs, start + 1):
                if output.secret in secrets:
                    unused = number
            states = await self.states(mint, signed)
            found += [p for p, s in zip(signed, states, strict=True) if s is ProofState.UNSPENT]
            start += BATCH
            if start - first > MAX_NUMBERS or len(found) > MAX_FOUND:
                raise PeerMisbehaved(
                    "bad-answer", "the mint says that it signed all there could be"
                )
        return found, unused

    async def catch_up(self, mint: str, keyset: Keyset) -> int:
        """Take in what our own words had signed under a keyset beyond what is written down.

        So it is after the database was lost, or came back from an old copy. Return the amount.
        """
        found, unused = await self.scan(mint, keyset, self._source, self._book.counter(keyset.id))
        new = [proof for proof in found if not self._book.purse.has(proof)]
        self._book.adopt(mint, new, {keyset.id: max(unused, self._book.counter(keyset.id))})
        return sum(proof.amount for proof in new)

    async def still_comes(self, failed: Operation) -> tuple[Proof, ...]:
        """Return what came of an operation that was given up, if it was carried out late after all.

        Only what stays in the wallet: nobody was given the rest, and nobody can spend it before us.
        """
        if failed.kind != "fund":
            states = await self.states(failed.mint, failed.inputs)
            if any(state is not ProofState.SPENT for state in states):
                return ()
        found = await self.restored(failed.mint, failed.outputs)
        states = await self.states(failed.mint, found)
        unspent = [p for p, s in zip(found, states, strict=True) if s is ProofState.UNSPENT]
        locked = {output.secret for output in failed.outputs[: failed.leaving]}
        return tuple(p for p in unspent if p.secret not in locked or not p.secret.startswith("["))

    # -- swaps ------------------------------------------------------------------------------

    async def _swap(self, operation: Operation, is_new: bool) -> Operation:
        body = swap_body(operation.inputs, operation.outputs)
        try:
            answer = await self._mints.client(operation.mint).post("/v1/swap", body)
        except MintRefused as refusal:
            if is_new:
                await self._drop_refused(operation, refusal)
                raise _failure(refusal) from refusal
            return await self._find_swap(operation, refusal)
        proofs = finish_outputs(
            operation.outputs,
            parse_signatures(answer),
            self._keyset(operation.mint, operation.outputs),
            dleq_needed=operation.leaving > 0,
        )
        return self._done(operation, proofs)

    async def _drop_refused(self, operation: Operation, refusal: MintRefused) -> None:
        """Undo what was refused at once; proofs of ours that turn out to be spent are forgotten."""
        self._book.drop(operation)
        held = [proof for proof in operation.inputs if self._book.purse.has(proof)]
        if refusal.number == SPENT and held:
            states = await self.states(operation.mint, held)
            self._book.lose(p for p, s in zip(held, states, strict=True) if s is ProofState.SPENT)

    async def _find_swap(self, operation: Operation, refusal: MintRefused) -> Operation:
        """Find out whether an earlier request was carried out, now that the same was refused."""
        states = await self.states(operation.mint, operation.inputs)
        if ProofState.PENDING in states:
            raise _failure(refusal, may_retry=True) from refusal
        if ProofState.SPENT not in states:
            self._book.give_up(operation, str(refusal))
            raise _failure(refusal) from refusal
        found = await self.restored(operation.mint, operation.outputs)
        is_whole = [p.amount for p in found] == [o.amount for o in operation.outputs]
        # Numbers used twice (an old copy of the database) show as spent ones.
        if is_whole and ProofState.SPENT not in await self.states(operation.mint, found):
            return self._done(operation, found)
        spent = [
            proof
            for proof, state in zip(operation.inputs, states, strict=True)
            if state is ProofState.SPENT
        ]
        self._book.give_up(operation, str(refusal), spent)
        raise WalletFailed(
            f"the mint refused: spent before (code {SPENT})",
            "somebody else had the same money, and was quicker",
            number=SPENT,
        ) from refusal

    def _done(self, operation: Operation, proofs: Sequence[Proof]) -> Operation:
        given = tuple(proofs[: operation.leaving])
        return self._book.finish(replace(operation, given=given), proofs[operation.leaving :])

    def _keyset(self, mint: str, outputs: Outputs) -> Keyset:
        return self._mints.known(mint).keysets[outputs[0].keyset_id]

    # -- new money --------------------------------------------------------------------------

    async def _mint(self, operation: Operation) -> Operation:
        client = self._mints.client(operation.mint)
        quote = parse_mint_quote(await client.get(f"/v1/mint/quote/bolt11/{operation.quote}"))
        if quote.state is QuoteState.ISSUED:
            return await self._find_minted(operation)
        if quote.state is not QuoteState.PAID:
            last = operation.expires + PAYMENT_DELAY_S if operation.expires else self._book.unix
            if quote.state is QuoteState.UNPAID and self._book.unix > last:
                self._book.drop(operation)
                raise WalletFailed("the invoice was not paid in its time", "ask for another")
            raise WalletFailed("the invoice is not paid yet", may_retry=True)
        for is_last in (False, True):
            if not operation.outputs:
                operation = await self._with_outputs(operation)
            try:
                answer = await client.post(
                    "/v1/mint/bolt11", mint_body(operation.quote, operation.outputs)
                )
            except MintRefused as refusal:
                if is_last or refusal.number not in OUTDATED | {ALREADY_SIGNED}:
                    raise _failure(refusal, may_retry=True) from refusal
                if refusal.number == ALREADY_SIGNED:
                    await self.catch_up(
                        operation.mint, self._keyset(operation.mint, operation.outputs)
                    )
                await self._mints.keys(operation.mint, fresh=True)
                operation = replace(operation, outputs=())
                continue
            keyset = self._keyset(operation.mint, operation.outputs)
            proofs = finish_outputs(
                operation.outputs, parse_signatures(answer), keyset, dleq_needed=False
            )
            return self._done(operation, proofs)
        raise AssertionError("the last try returns or raises")

    async def _with_outputs(self, operation: Operation) -> Operation:
        keyset = await self._mints.signing(operation.mint, self._book.unix)
        first = self._book.counter(keyset.id)
        outputs = prepare_outputs(split(operation.amount), keyset, self._source, first)
        numbers = (first, first + len(outputs))
        operation = replace(operation, outputs=outputs, numbers=numbers)
        self._book.begin(operation)
        return operation

    async def _find_minted(self, operation: Operation) -> Operation:
        found = await self.restored(operation.mint, operation.outputs) if operation.outputs else ()
        if sum(proof.amount for proof in found) == operation.amount:
            return self._done(operation, found)
        self._book.give_up(operation, "issued to somebody else")
        raise WalletFailed("the mint gave the money of this invoice to somebody else")

    # -- payments ---------------------------------------------------------------------------

    async def _melt(self, operation: Operation, is_new: bool) -> Operation:
        client = self._mints.client(operation.mint)
        refused = ""
        quote: MeltQuote | None = None
        if is_new:
            body = melt_body(operation.quote, operation.inputs, operation.outputs)
            try:
                quote = parse_melt_quote(await client.post("/v1/melt/bolt11", body))
            except MintRefused as refusal:
                refused = str(refusal)
        if quote is None or quote.state is QuoteState.UNPAID:
            answer: Any = await client.get(f"/v1/melt/quote/bolt11/{operation.quote}")
            quote = parse_melt_quote(answer)
        if quote.state is QuoteState.PAID:
            return await self._paid(operation, quote)
        states = await self.states(operation.mint, operation.inputs)
        if quote.state is QuoteState.PENDING or ProofState.PENDING in states:
            raise WalletFailed("the payment is still on its way", may_retry=True)
        spent = [p for p, s in zip(operation.inputs, states, strict=True) if s is ProofState.SPENT]
        reason = refused or "the payment did not go through"
        self._book.give_up(operation, reason, spent)
        raise WalletFailed(reason, "nothing was paid", number=SPENT if spent else None)

    async def _paid(self, operation: Operation, quote: MeltQuote) -> Operation:
        change: Sequence[Proof] = ()
        # Where none was asked for, none is anybody's.
        if quote.change and operation.outputs:
            keyset = self._keyset(operation.mint, operation.outputs)
            change = finish_change(operation.outputs, quote.change, keyset)
        elif operation.outputs:
            change = await self.restored(operation.mint, operation.outputs)
        cost = sum(p.amount for p in operation.inputs) - sum(p.amount for p in change)
        done = replace(operation, fee=cost + operation.amount, note=quote.preimage)
        return self._book.finish(done, change)


def _failure(refusal: MintRefused, *, may_retry: bool = False) -> WalletFailed:
    number = refusal.number
    return WalletFailed(
        str(refusal),
        refusal.hint,
        number=number,
        may_retry=may_retry or number == TROUBLE or number in PENDING,
    )
