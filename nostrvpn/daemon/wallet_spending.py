"""One operation at a time under one name: what goes in, what comes out, and another try.

Choosing inputs and writing the operation down is one step without a wait in between, so no proof is
ever for two. A mint that rotated its keys, or remembers more of our secrets than we do, refuses; then
the operation is made anew with what it says now.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from nostrvpn.cashu.amounts import select_exact, select_inputs, split, swap_fee
from nostrvpn.cashu.answers import MeltQuote
from nostrvpn.cashu.conditions import Lock
from nostrvpn.cashu.operations import Outputs, SecretSource, blank_outputs, prepare_outputs
from nostrvpn.cashu.proof import Keyset, MintKeys, Proof
from nostrvpn.cashu.purse import DONE, NotEnough, Operation
from nostrvpn.cashu.secrets import LockedSource
from nostrvpn.daemon.wallet_answers import WalletFailed
from nostrvpn.daemon.wallet_book import Book
from nostrvpn.daemon.wallet_errands import ALREADY_SIGNED, OUTDATED, SPENT, TROUBLE, Errands
from nostrvpn.daemon.wallet_mints import Mints
from nostrvpn.errors import PeerMisbehaved, UserError
from nostrvpn.lightning.bolt11 import parse_invoice

__all__ = ["Spending"]

TRIES: Final = 3
TROUBLE_WAIT_S: Final = 0.5
_AGAIN: Final = OUTDATED | {ALREADY_SIGNED, TROUBLE}
# For change of other operations; a payment by Lightning may take that long.
CHANGE_WAIT_S: Final = 70.0
# New money should live longer than any lock on it.
MIN_LIFE_S: Final = 7 * 86_400


class Spending:
    """Starts operations in ``book`` and has ``errands`` carry them out."""

    def __init__(self, book: Book, mints: Mints, errands: Errands, source: SecretSource) -> None:
        self._book = book
        self._mints = mints
        self._errands = errands
        self._source = source
        self._names: dict[str, asyncio.Lock] = {}
        self._asked: Counter[str] = Counter()
        self._running: Counter[str] = Counter()  # operations that wait for a mint, by mint
        self._changed = asyncio.Event()

    def is_running(self, ref: str) -> bool:
        """Whether somebody waits for this operation right now."""
        return ref in self._names

    @asynccontextmanager
    async def named(self, ref: str) -> AsyncIterator[None]:
        """Keep an operation's name to oneself."""
        lock = self._names.setdefault(ref, asyncio.Lock())
        self._asked[ref] += 1
        try:
            async with lock:
                yield
        finally:
            self._asked[ref] -= 1
            if not self._asked[ref]:
                del self._asked[ref], self._names[ref]

    async def once(self, ref: str, start: Callable[[], Awaitable[Operation]]) -> Operation:
        """Return the operation of this name, done: as it was, resumed, or started now."""
        async with self.named(ref):
            found = self._book.operation(ref)
            if found is not None and found.state == DONE:
                return found
            if found is not None:
                try:
                    return await self.resume(found)
                except WalletFailed as error:
                    is_over = self._book.operation(ref) is None and error.number != SPENT
                    if not is_over or found.kind in ("melt", "fund"):
                        raise
            return await start()

    async def resume(self, operation: Operation) -> Operation:
        """Carry on with an operation that was started before; its name is the caller's."""
        try:
            return await self._errands.carry_out(operation)
        finally:
            self._tell()

    async def swap_out(
        self, ref: str, kind: str, mint: str, amounts: Sequence[int], lock: Lock | None = None
    ) -> Operation:
        """Make proofs of these amounts for somebody else, under a lock if there is one."""
        total = sum(amounts)

        async def draft(keys: MintKeys, keyset: Keyset) -> tuple[Operation, int]:
            _require_amounts(amounts, keyset)
            inputs = await self._inputs(mint, total, keys)
            fee = swap_fee(inputs, keys.keysets)
            change = split(sum(p.amount for p in inputs) - total - fee)
            first, locks = self._book.counter(keyset.id), 0
            if lock is None:
                outputs = prepare_outputs([*amounts, *change], keyset, self._source, first)
                numbers = (first, first + len(outputs))
            else:
                locks = self._book.lock_counter(keyset.id)
                locked = LockedSource(self._source, lock)
                outputs = prepare_outputs(amounts, keyset, locked, locks)
                outputs += prepare_outputs(change, keyset, self._source, first)
                numbers, locks = (first, first + len(change)), locks + len(amounts)
            operation = Operation(
                ref,
                kind,
                mint,
                self._book.unix,
                -total,
                fee=fee,
                inputs=inputs,
                outputs=outputs,
                leaving=len(amounts),
                numbers=numbers,
            )
            return operation, locks

        return await self._carry_out(mint, draft)

    def hand_out(self, ref: str, kind: str, mint: str, amount: int) -> Operation | None:
        """Give away free proofs as they are, if some make up the amount; no word to the mint."""
        found = select_exact(self._free(mint), amount)
        if found is None:
            return None
        operation = Operation(ref, kind, mint, self._book.unix, -amount, inputs=found, given=found)
        return self._book.finish(operation)

    async def swap_in(
        self,
        ref: str,
        kind: str,
        mint: str,
        proofs: Sequence[Proof],
        sign: Callable[[Sequence[Proof], Outputs], Sequence[Proof]] = lambda proofs, _: proofs,
    ) -> Operation:
        """Turn proofs into new ones of ours; they carry their signatures, if they are locked.

        ``sign`` adds those that cover the outputs too (SIG_ALL).
        """

        async def draft(keys: MintKeys, keyset: Keyset) -> tuple[Operation, int]:
            worth = sum(proof.amount for proof in proofs)
            try:
                fee = swap_fee(proofs, keys.keysets)
            except KeyError:
                keys = await self._mints.keys(mint, fresh=True)
                if any(proof.keyset_id not in keys.keysets for proof in proofs):
                    raise UserError("the mint does not know the keys of this money") from None
                fee = swap_fee(proofs, keys.keysets)
            if any(self._book.purse.is_taken(proof) for proof in proofs):
                raise WalletFailed("another operation is about to spend this", may_retry=True)
            if worth <= fee:
                raise UserError(f"it is worth {worth} sat, and the mint's fee is {fee} sat")
            first = self._book.counter(keyset.id)
            outputs = prepare_outputs(split(worth - fee), keyset, self._source, first)
            operation = Operation(
                ref,
                kind,
                mint,
                self._book.unix,
                worth - fee,
                fee=fee,
                inputs=tuple(sign(proofs, outputs)),
                outputs=outputs,
                numbers=(first, first + len(outputs)),
            )
            return operation, 0

        return await self._carry_out(mint, draft)

    async def pay(self, ref: str, mint: str, quote: MeltQuote, invoice: str) -> Operation:
        """Pay a Lightning invoice by a mint's quote; what is not needed comes back as change.

        PeerMisbehaved if the mint wants more for it than it is over: a limit of its fee would be none.
        """
        if quote.amount > parse_invoice(invoice).amount_sat:
            raise PeerMisbehaved("bad-answer", f"{mint} asks for more than the invoice is over")
        need = quote.amount + quote.fee_reserve

        async def draft(keys: MintKeys, keyset: Keyset) -> tuple[Operation, int]:
            inputs = await self._inputs(mint, need, keys)
            spare = sum(p.amount for p in inputs) - quote.amount - swap_fee(inputs, keys.keysets)
            first = self._book.counter(keyset.id)
            blanks = blank_outputs(spare, keyset, self._source, first)
            operation = Operation(
                ref,
                "melt",
                mint,
                self._book.unix,
                -quote.amount,
                inputs=inputs,
                outputs=blanks,
                numbers=(first, first + len(blanks)),
                quote=quote.quote,
                note=invoice,
            )
            return operation, 0

        return await self._carry_out(mint, draft)

    async def _carry_out(
        self, mint: str, draft: Callable[[MintKeys, Keyset], Awaitable[tuple[Operation, int]]]
    ) -> Operation:
        is_outdated = False
        for attempt in range(TRIES):
            keys = await self._mints.keys(mint, fresh=is_outdated)
            keyset = await self._mints.signing(mint, self._book.unix + MIN_LIFE_S)
            operation, locks = await draft(keys, keyset)
            self._book.begin(operation, locks)
            self._running[mint] += 1
            try:
                return await self._errands.carry_out(operation, is_new=True)
            except WalletFailed as error:
                if error.number not in _AGAIN or attempt == TRIES - 1:
                    raise
                is_outdated = error.number in OUTDATED
                if error.number == TROUBLE:
                    await asyncio.sleep(TROUBLE_WAIT_S)
                if error.number == ALREADY_SIGNED:
                    await self._errands.catch_up(mint, keyset)
            finally:
                self._running[mint] -= 1
                self._tell()
        raise AssertionError("the last try returns or raises")

    async def _inputs(self, mint: str, amount: int, keys: MintKeys) -> tuple[Proof, ...]:
        """Return free proofs for an amount and their fee, perhaps after others' change came back.

        NotEnough. Nothing may wait between this and ``begin``.
        """
        deadline = asyncio.get_running_loop().time() + CHANGE_WAIT_S
        while True:
            found = select_inputs(self._free(mint), amount, keys.keysets)
            if found is not None:
                return found
            if not self._running[mint]:
                raise _too_little(mint, amount, self._book.purse.balance(mint))
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                raise WalletFailed(
                    "earlier operations at this mint do not end", may_retry=True
                ) from None

    def _free(self, mint: str) -> list[Proof]:
        """Return free proofs that are still worth something."""
        keysets = self._mints.known(mint).keysets
        return [
            proof
            for proof in self._book.purse.proofs(mint)
            if (keysets[proof.keyset_id].final_expiry or self._book.unix + 1) > self._book.unix
        ]

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _too_little(mint: str, amount: int, balance: tuple[int, int]) -> UserError:
    free, taken = balance
    need = f"{amount} sat and the mint's fee are needed at {mint}; there are {free} sat"
    if free + taken < amount:
        return NotEnough(need, "see: nostrvpn wallet balance")
    text = f"{need}, and {taken} sat are in operations that are not finished"
    return WalletFailed(text, "they are asked after: try again", may_retry=True)


def _require_amounts(amounts: Sequence[int], keyset: Keyset) -> None:
    if not amounts or any(amount not in keyset.keys for amount in amounts):
        raise UserError("the mint makes no proofs of these amounts", "use powers of two")
