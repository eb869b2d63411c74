"""Payment channels at a mint (``cashu/channel.py``): funded, closed by who is paid, settled by who pays.

A close leaves nothing to write down: its outputs follow from the channel, so whether one of them was
carried out is asked of the mint (NUT-07, NUT-09), however this process ended meanwhile. What comes of
it is then swapped into the wallet, as an operation of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from nostrvpn.cashu.answers import ProofState, parse_info
from nostrvpn.cashu.channel import (
    Channel,
    Update,
    channel_lock,
    channel_outputs,
    close_body,
    finish_close,
)
from nostrvpn.cashu.conditions import sign_all, sign_inputs
from nostrvpn.cashu.operations import Outputs, parse_signatures
from nostrvpn.cashu.proof import Keyset, Proof
from nostrvpn.cashu.purse import Operation
from nostrvpn.daemon.wallet_answers import WalletFailed, told
from nostrvpn.daemon.wallet_book import Book
from nostrvpn.daemon.wallet_errands import ALREADY_SIGNED, OUTDATED, PENDING, TROUBLE, Errands
from nostrvpn.daemon.wallet_mints import Mints
from nostrvpn.daemon.wallet_spending import Spending
from nostrvpn.errors import PeerMisbehaved, UserError
from nostrvpn.io.mint import MintRefused

__all__ = ["Channels", "Closed"]

TRIES: Final = 2


@dataclass(frozen=True, slots=True)
class Closed:
    """At which balance a channel closed (0: the payer had it back), what came of it, and the fee."""

    balance: int
    amount: int
    fee: int


class Channels:
    """Channels of the wallet whose parts these are; ``key``: the secret of who is paid, or who pays."""

    def __init__(self, book: Book, mints: Mints, errands: Errands, spending: Spending) -> None:
        self._book, self._mints = book, mints
        self._errands, self._spending = errands, spending

    async def require(self, mint: str) -> None:
        """Raise UserError if a mint cannot have channels."""
        with told():
            info = parse_info(await self._mints.client(mint).get("/v1/info"))
        if not info.signs_all:
            raise UserError(
                f"the mint {mint} has no channels: its locks know no signature over a whole swap",
                "pay in another way, or choose another mint",
            )

    async def fund(
        self, ref: str, mint: str, amounts: Sequence[int], parties: tuple[str, str], locktime: int
    ) -> tuple[Proof, ...]:
        """Return proofs that fund a channel between ``parties`` (payer, receiver: "02…", 66 hex).

        The payer's key has them back after ``locktime``, Unix time by the mint's clock.
        """
        payer, receiver = parties

        async def start() -> Operation:
            await self.require(mint)
            lock = channel_lock(payer, receiver, locktime, payer)
            return await self._spending.swap_out(ref, "channel", mint, amounts, lock)

        with told():
            return (await self._spending.once(ref, start)).given

    async def close(
        self, ref: str, mint: str, channel: Channel, updates: Sequence[Update], key: bytes
    ) -> Closed:
        """Close a channel at the first of ``updates`` that the mint takes, and take in our part."""
        async with self._spending.named(ref):
            with told():
                balance, ours = await self._closed(mint, channel, updates, key)
            amount = await self._take_in(f"{ref}/in", mint, ours, key)
            return Closed(balance, amount, balance - amount)

    async def settle(
        self,
        ref: str,
        mint: str,
        channel: Channel,
        balances: Sequence[int],
        until: float,
        key: bytes,
    ) -> Closed:
        """Take in the payer's part once the receiver closed, or all of it from ``until`` (Unix time) on.

        ``balances``: that were signed. WalletFailed that may be retried while it is neither.
        """
        async with self._spending.named(ref):
            if self._book.operation(f"{ref}/refund") is not None:
                try:
                    return await self._refund(ref, mint, channel, key)
                except WalletFailed as error:
                    if error.may_retry:
                        raise  # else the receiver was quicker
            with told():
                [state, *others] = set(await self._errands.states(mint, channel.funding))
                if others or state is ProofState.PENDING:
                    raise WalletFailed("the channel is being closed", may_retry=True)
                if state is ProofState.UNSPENT and self._book.unix < until:
                    raise WalletFailed("the channel is open", may_retry=True)
                if state is ProofState.UNSPENT:
                    return await self._refund(ref, mint, channel, key)
                balance, theirs = await self._find(mint, channel, balances, is_receiver=False)
            amount = await self._take_in(f"{ref}/in", mint, theirs, key)
            whole = sum(proof.amount for proof in channel.funding)
            return Closed(balance, amount, whole - balance - amount)

    async def _closed(
        self, mint: str, channel: Channel, updates: Sequence[Update], key: bytes
    ) -> tuple[int, tuple[Proof, ...]]:
        """Return at which balance it is closed now, and the receiver's proofs."""
        refused: MintRefused | None = None
        for update in updates:
            for attempt in range(TRIES):
                await self._mints.keys(mint, fresh=attempt > 0)
                keyset = await self._mints.signing(mint, self._book.unix)
                body = close_body(channel, update, key, keyset)
                try:
                    answer = await self._mints.client(mint).post("/v1/swap", body)
                except MintRefused as refusal:
                    refused = refusal
                    if refusal.number not in OUTDATED:
                        break
                    continue
                ours, _ = finish_close(channel, update.balance, parse_signatures(answer), keyset)
                return update.balance, ours
            states = set(await self._errands.states(mint, channel.funding))
            if ProofState.SPENT in states:
                balances = [each.balance for each in updates]
                return await self._find(mint, channel, balances, is_receiver=True)
            assert refused is not None
            if ProofState.PENDING in states or refused.number in PENDING | {TROUBLE}:
                raise WalletFailed(str(refused), may_retry=True)
            if refused.number != ALREADY_SIGNED:
                break
        assert refused is not None
        raise WalletFailed(str(refused), refused.hint, number=refused.number)

    async def _find(
        self, mint: str, channel: Channel, balances: Iterable[int], *, is_receiver: bool
    ) -> tuple[int, tuple[Proof, ...]]:
        """Return at which balance a channel that is spent was closed, and a side's proofs of it."""
        keysets = (await self._mints.keys(mint)).keysets.values()
        for balance in balances:
            for keyset in sorted(keysets, key=lambda each: not each.is_active):
                sides = channel_outputs(channel, balance, keyset)
                if await self._are_signed(mint, sides[0] + sides[1], keyset):
                    side = sides[0] if is_receiver else sides[1]
                    return balance, await self._errands.restored(mint, side)
        raise WalletFailed("the channel was spent, and not by closing it", number=11001)

    async def _are_signed(self, mint: str, outputs: Outputs, keyset: Keyset) -> bool:
        """Whether the mint signed just these: one alone proves nothing, the payer can have it signed."""
        try:
            found = await self._errands.restored(mint, outputs)
        except PeerMisbehaved:
            return False  # by another keyset
        return [each.amount for each in found] == [each.amount for each in outputs]

    async def _refund(self, ref: str, mint: str, channel: Channel, key: bytes) -> Closed:
        name = f"{ref}/refund"

        def signed(proofs: Sequence[Proof], outputs: Outputs) -> tuple[Proof, ...]:
            return sign_all(proofs, [each.message for each in outputs], key)

        with told():
            done = await self._spending.once(
                name,
                lambda: self._spending.swap_in(name, "reclaim", mint, channel.funding, signed),
            )
        return Closed(0, done.amount, done.fee)

    async def _take_in(self, ref: str, mint: str, proofs: Sequence[Proof], key: bytes) -> int:
        """Swap what closing left into the wallet; return what arrived."""
        keysets = (await self._mints.keys(mint)).keysets
        if 1000 * sum(p.amount for p in proofs) <= sum(
            keysets[p.keyset_id].fee_ppk for p in proofs
        ):
            return 0  # nothing, or so little that the fee takes it
        inputs = sign_inputs(proofs, key)
        with told():
            done = await self._spending.once(
                ref, lambda: self._spending.swap_in(ref, "channel", mint, inputs)
            )
        return done.amount
