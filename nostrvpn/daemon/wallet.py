"""The wallet: ecash at the mints that the user trusts, every operation done once by its name.

``ref`` names an operation. Asked again with the same ref, also after a crash, it goes on where it was
and gives the same result; so whoever asks writes the ref down first. What an operation needs (inputs,
new secrets) is on disk before its request leaves. Amounts are sat.

Errors: UserError (UnknownMint and NotEnough are such): nothing happened. WalletFailed: the mint said no,
or (``may_retry``) it is not known yet, and asking again by the same ref finds out.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

from nostrvpn.cashu.amounts import split
from nostrvpn.cashu.answers import ProofState, parse_melt_quote, parse_mint_quote
from nostrvpn.cashu.blind import proof_holds
from nostrvpn.cashu.conditions import Lock, parse_lock, sign_inputs
from nostrvpn.cashu.operations import melt_quote_body, mint_quote_body
from nostrvpn.cashu.proof import MintKeys, Proof
from nostrvpn.cashu.purse import Operation
from nostrvpn.cashu.secrets import SeedSource, entropy_of, seed_of, words_of
from nostrvpn.cashu.token import expand_ids, parse_token
from nostrvpn.daemon.supervise import Supervisor
from nostrvpn.daemon.wallet_answers import Funding, Paid, Redeemed, WalletFailed, told
from nostrvpn.daemon.wallet_book import Book
from nostrvpn.daemon.wallet_channels import Channels
from nostrvpn.daemon.wallet_errands import Errands
from nostrvpn.daemon.wallet_mints import UNIT, Mints
from nostrvpn.daemon.wallet_recovery import MintReport, Recovery
from nostrvpn.daemon.wallet_spending import Spending
from nostrvpn.errors import NostrvpnError, PeerMisbehaved, UserError
from nostrvpn.io.mint import MintClient
from nostrvpn.io.store import Store

__all__ = ["Wallet"]

MAX_SAT: Final = 100_000_000
# What was begun is asked after again so often; invoices that wait to be paid, more often.
RETRY_S: Final = 20.0
POLL_S: Final = 3.0
# Keysets that end so soon are left.
RENEW_S: Final = 3 * 86_400
# What is earned comes in small proofs; with more than so many the smallest become few.
MANY_PROOFS: Final = 256
TIDY_PROOFS: Final = 200
_RENEW_EVERY_S: Final = 3600.0

_log = logging.getLogger(__name__)


class Wallet:
    """The proofs in ``store``, with new secrets from ``entropy`` (16 bytes, the wallet's words).

    ``connect`` makes a client for a mint's URL; ``key_of`` finds the secret key of a public key ("02…",
    66 hex digits) that money may be locked to, or None; ``now`` gives Unix time.
    """

    def __init__(
        self,
        store: Store,
        entropy: bytes,
        *,
        connect: Callable[[str], MintClient] = MintClient,
        key_of: Callable[[str], bytes | None] = lambda _key: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._words = words_of(entropy)
        source = SeedSource(seed_of(self._words))
        self._key_of = key_of
        self._now = now
        self.mints = Mints(store, connect)
        self.book = Book(store, now)
        self._errands = Errands(self.book, self.mints, source)
        self._spending = Spending(self.book, self.mints, self._errands, source)
        self.channels = Channels(self.book, self.mints, self._errands, self._spending)
        self.recovery = Recovery(self.book, self.mints, self._errands, source)
        self._tasks = Supervisor()

    # -- running ----------------------------------------------------------------------------

    def start(self) -> None:
        """Go on, in the background, with what was begun before; and see to invoices and old keysets."""
        self._tasks.start("the wallet's open operations", self._resume_forever())
        self._tasks.start("the wallet's upkeep", self._renew_forever())

    async def stop(self) -> None:
        """End the background work and close the connections; the next start goes on with it."""
        await self._tasks.stop()
        await self.mints.close()

    async def resume(self) -> None:
        """Ask once after everything that was begun and that nobody waits for."""
        by_mint: dict[str, list[str]] = {}
        for ref, operation in self.book.open.items():
            by_mint.setdefault(operation.mint, []).append(ref)
        # A mint that hangs keeps nobody waiting for another.
        await asyncio.gather(*map(self._resume_each, by_mint.values()))

    async def _resume_each(self, refs: Sequence[str]) -> None:
        for ref in refs:
            if self._spending.is_running(ref):
                continue
            async with self._spending.named(ref):
                operation = self.book.open.get(ref)
                if operation is None:
                    continue
                try:
                    await self._spending.resume(operation)
                except NostrvpnError:
                    pass  # it is asked after again
                except Exception:
                    # What nobody foresaw of one must not keep all the others open for ever.
                    _log.exception("going on with %s", ref)

    async def _resume_forever(self) -> None:
        while True:
            await self.resume()
            waiting = any(operation.kind == "fund" for operation in self.book.open.values())
            await asyncio.sleep(POLL_S if waiting else RETRY_S)

    async def _renew_forever(self) -> None:
        while True:
            for mint in self.mints.urls():
                try:
                    await self.renew(mint)
                except NostrvpnError as error:
                    _log.warning("renewing what is at %s: %s", mint, error)
            await asyncio.sleep(_RENEW_EVERY_S)

    # -- mints ------------------------------------------------------------------------------

    async def trust(self, url: str) -> str:
        """Trust a mint from now on, and take in what our words own there; return its URL as kept."""
        known = set(self.mints.urls())
        with told():
            kept, _ = await self.mints.trust(url)
            if kept not in known:
                for keyset in (await self.mints.keys(kept)).keysets.values():
                    await self._errands.catch_up(kept, keyset)
        return kept

    def distrust(self, url: str) -> None:
        """Trust a mint no longer; UserError while money is there."""
        if sum(self.book.purse.balance(url)) or any(o.mint == url for o in self.book.open.values()):
            raise UserError(f"there is money of yours at {url}", "spend it or withdraw it first")
        self.mints.distrust(url)

    async def keys(self, url: str) -> MintKeys:
        """Return a trusted mint's keysets, of the last hour."""
        with told():
            return await self.mints.keys(url)

    # -- what the market asks for -----------------------------------------------------------

    def balance(self) -> dict[str, tuple[int, int]]:
        """Return by mint what is free, and what unfinished operations hold, in sat."""
        mints = set(self.mints.urls()) | self.book.purse.mints()
        return {mint: self.book.purse.balance(mint) for mint in sorted(mints)}

    async def receive(self, text: str, *, mint_ok: bool = False) -> Redeemed:
        """Swap a token (its text) into the wallet; of an unknown mint only if ``mint_ok``.

        PeerMisbehaved if it is no token or the mint never signed it.
        """
        token = parse_token(text)
        if token.unit != UNIT:
            raise UserError(f"the token is in {token.unit}; this wallet knows {UNIT} only")
        if token.mint not in self.mints.urls():
            if not mint_ok:
                self.mints.known(token.mint)  # says what to do
            await self.trust(token.mint)
        keysets = (await self.keys(token.mint)).keysets
        try:
            token = expand_ids(token, keysets)
        except PeerMisbehaved:
            with told():
                keysets = (await self.mints.keys(token.mint, fresh=True)).keysets
            token = expand_ids(token, keysets)
        for proof in token.proofs:
            key = keysets[proof.keyset_id].keys.get(proof.amount)
            if key is None or (proof.dleq is not None and not proof_holds(proof, key)):
                raise PeerMisbehaved("bad-dleq", f"{token.mint} never made this money")
        secrets = " ".join(sorted(proof.secret for proof in token.proofs))
        ref = f"receive:{hashlib.sha256(secrets.encode()).hexdigest()}"
        return await self.redeem(ref, token.mint, token.proofs)

    async def restore(self, words: str | None = None) -> list[MintReport]:
        """Bring back from every trusted mint what our own words own, or what other ``words`` do."""
        if words is None or entropy_of(words) == entropy_of(self._words):
            return await self.recovery.restore()
        reports = []
        for mint in self.mints.urls():
            report = MintReport(mint)
            try:
                with told():
                    proofs = await self.recovery.found_by(mint, words)
                if proofs:
                    secrets = " ".join(sorted(proof.secret for proof in proofs))
                    ref = f"restore:{hashlib.sha256(secrets.encode()).hexdigest()}"
                    report.found = (await self.redeem(ref, mint, proofs)).amount
            except NostrvpnError as error:
                report.error = str(error)
            report.good, report.pending = self.book.purse.balance(mint)
            reports.append(report)
        return reports

    async def take_out(self, ref: str, mint: str, amount: int) -> tuple[Proof, ...]:
        """Return plain proofs worth ``amount``: who has them first has the money."""
        _require(amount)

        async def start() -> Operation:
            self.mints.known(mint)
            handed = self._spending.hand_out(ref, "send", mint, amount)
            return handed or await self._spending.swap_out(ref, "send", mint, split(amount))

        return (await self._once(ref, start)).given

    async def lock(
        self, ref: str, mint: str, amounts: Sequence[int], receiver: str, locktime: int, refund: str
    ) -> tuple[Proof, ...]:
        """Return proofs of these amounts, in their order, that ``receiver`` alone can spend.

        After ``locktime`` (Unix time, by the mint's clock) ``refund`` can too. Keys are "02…", 66 hex.
        """
        return await self.lock_under(ref, mint, amounts, Lock(receiver, locktime, (refund,)))

    async def lock_under(
        self, ref: str, mint: str, amounts: Sequence[int], lock: Lock
    ) -> tuple[Proof, ...]:
        """Return proofs of these amounts, in their order, under a lock of any kind."""
        _require(sum(amounts))
        return (
            await self._once(ref, lambda: self._spending.swap_out(ref, "lock", mint, amounts, lock))
        ).given

    async def give_back(self, ref: str, mint: str, amount: int, receiver: str) -> tuple[Proof, ...]:
        """Return proofs worth ``amount`` that ``receiver`` alone can ever spend."""
        _require(amount)
        parts, lock = split(amount), Lock(receiver)
        return (
            await self._once(
                ref, lambda: self._spending.swap_out(ref, "give back", mint, parts, lock)
            )
        ).given

    async def redeem(
        self, ref: str, mint: str, proofs: Sequence[Proof], key: bytes | None = None
    ) -> Redeemed:
        """Swap proofs into the wallet, all or none; locked ones are signed by ``key``, or by ours."""
        done = await self._once(
            ref,
            lambda: self._spending.swap_in(ref, "redeem", mint, self._signed(proofs, key)),
        )
        return Redeemed(done.amount, done.fee)

    async def reclaim(
        self,
        ref: str,
        mint: str,
        proofs: Sequence[Proof],
        not_before: int,
        key: bytes | None = None,
    ) -> Redeemed:
        """Take back what nobody redeemed of our own locked proofs, by the refund key.

        WalletFailed (may be asked again) before ``not_before``, Unix time.
        """

        async def start() -> Operation:
            if self._now() < not_before:
                raise WalletFailed("the lock on this money has not ended yet", may_retry=True)
            states = await self._errands.states(mint, proofs)
            if ProofState.PENDING in states:
                raise WalletFailed("somebody redeems this money just now", may_retry=True)
            left = [p for p, s in zip(proofs, states, strict=True) if s is ProofState.UNSPENT]
            if not left:
                unix = self.book.unix
                return self.book.finish(Operation(ref, "reclaim", mint, unix, 0))
            return await self._spending.swap_in(ref, "reclaim", mint, self._signed(left, key))

        done = await self._once(ref, start)
        return Redeemed(done.amount, done.fee)

    # -- Lightning --------------------------------------------------------------------------

    async def fund(self, ref: str, mint: str, amount: int) -> Funding:
        """Return an invoice; once it is paid, ``amount`` sat come into the wallet by themselves."""
        _require(amount)
        async with self._spending.named(ref):
            operation = self.book.operation(ref)
            if operation is None:
                with told():
                    client = self.mints.client(mint)
                    answer = await client.post(
                        "/v1/mint/quote/bolt11", mint_quote_body(amount, UNIT)
                    )
                    quote = parse_mint_quote(answer)
                operation = Operation(
                    ref,
                    "fund",
                    mint,
                    self.book.unix,
                    amount,
                    quote=quote.quote,
                    expires=quote.expiry or 0,
                    note=quote.invoice,
                )
                self.book.begin(operation)
        return Funding(ref, operation.note, operation.amount, operation.expires)

    async def funded(self, ref: str) -> bool:
        """Return whether the money of ``fund`` is in the wallet; asks the mint."""

        async def unknown() -> Operation:
            raise UserError("there is no such invoice", "ask for one: nostrvpn wallet fund")

        try:
            await self._once(ref, unknown)
        except WalletFailed as error:
            if not error.may_retry:
                raise
            return False
        return True

    async def melt(self, ref: str, mint: str, invoice: str, max_fee: int | None = None) -> Paid:
        """Pay a bolt11 invoice from a mint; UserError if it would cost more than ``max_fee`` besides."""

        async def start() -> Operation:
            with told():
                client = self.mints.client(mint)
                answer = await client.post("/v1/melt/quote/bolt11", melt_quote_body(invoice, UNIT))
                quote = parse_melt_quote(answer)
            if max_fee is not None and quote.fee_reserve > max_fee:
                raise UserError(
                    f"the mint keeps up to {quote.fee_reserve} sat as its fee, which is more than "
                    f"{max_fee}"
                )
            _require(quote.amount)
            return await self._spending.pay(ref, mint, quote, invoice)

        done = await self._once(ref, start)
        return Paid(-done.amount, done.fee, done.note)

    # -- upkeep -----------------------------------------------------------------------------

    async def renew(self, mint: str) -> int:
        """Swap what is of keysets that end soon, and many small proofs; return the amount in sat."""
        keysets = (await self.keys(mint)).keysets
        latest, now = self._now() + RENEW_S, self._now()
        lasting = await self.mints.signing(mint, latest)
        free = sorted(self.book.purse.proofs(mint), key=lambda proof: proof.amount)
        old = free[:TIDY_PROOFS] if len(free) > MANY_PROOFS else []
        if (lasting.final_expiry or latest + 1) > latest:
            old += [
                proof
                for proof in free
                if now < (keysets[proof.keyset_id].final_expiry or now) <= latest
            ]
        if not old:
            return 0
        ref = f"renew:{self.book.unix}:{hashlib.sha256(mint.encode()).hexdigest()[:8]}"
        proofs = list(dict.fromkeys(old))[:TIDY_PROOFS]
        done = await self._once(ref, lambda: self._spending.swap_in(ref, "renew", mint, proofs))
        return done.amount

    def history(self, limit: int = 50) -> list[dict[str, Any]]:
        """Return what was done, newest first: at, kind, mint, amount (sat, signed), fee, ref."""
        return self.book.history(limit)

    def words(self) -> str:
        """Return the twelve words that bring the money back from the mints; never log them."""
        return self._words

    # -- parts ------------------------------------------------------------------------------

    async def _once(self, ref: str, start: Callable[[], Awaitable[Operation]]) -> Operation:
        with told():
            return await self._spending.once(ref, start)

    def _signed(self, proofs: Iterable[Proof], key: bytes | None) -> tuple[Proof, ...]:
        signed = []
        for proof in proofs:
            lock = parse_lock(proof.secret)
            own = key
            if lock is not None and own is None:
                found = map(self._key_of, (*lock.keys, *lock.refund))
                own = next((secret for secret in found if secret is not None), None)
            signed.append(proof if own is None else sign_inputs((proof,), own)[0])
        return tuple(signed)


def _require(amount: int) -> None:
    if not 0 < amount <= MAX_SAT:
        raise UserError(f"an amount is 1 … {MAX_SAT} sat, not {amount}")
