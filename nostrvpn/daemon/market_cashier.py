"""The machines' requests to the wallet, carried out, each answered by one event."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from nostrvpn.cashu import conditions
from nostrvpn.cashu.proof import Proof
from nostrvpn.cashu.purse import NotEnough
from nostrvpn.cashu.token import Token, render_token
from nostrvpn.daemon.lightning_rail import LightningRail
from nostrvpn.daemon.wallet import Wallet
from nostrvpn.daemon.wallet_answers import WalletFailed
from nostrvpn.errors import NostrvpnError, SystemRefused, UserError
from nostrvpn.market import effects
from nostrvpn.market.channel_effects import (
    ChannelClosed,
    CloseChannel,
    FundChannel,
    SettleChannel,
)
from nostrvpn.market.effects import (
    EndHold,
    GiveBack,
    GivenBack,
    HoldEnded,
    InvoiceMade,
    InvoicePaid,
    InvoiceSeen,
    Lock,
    Locked,
    MakeInvoice,
    MarketEvent,
    PayInvoice,
    PaymentFailed,
    Reclaim,
    Redeem,
    TakenOut,
    TakeOut,
    WatchInvoice,
)
from nostrvpn.market.terms import LIGHTNING

__all__ = ["Cashier", "Request"]

_OfChannels = FundChannel | CloseChannel | SettleChannel
_OfLightning = MakeInvoice | WatchInvoice | EndHold | PayInvoice
Request = Lock | TakeOut | Redeem | GiveBack | Reclaim | _OfLightning | _OfChannels

_log = logging.getLogger("nostrvpn.market")


class Cashier:
    """Asks ``wallet``, and ``rail`` what is Lightning's.

    The same ``ref`` asked again while it is under way waits for the one answer.
    """

    def __init__(self, wallet: Wallet, rail: LightningRail | None = None) -> None:
        self._wallet, self._rail = wallet, rail
        self._running: dict[str, asyncio.Task[None]] = {}

    def ask(
        self, request: Request, key: bytes | None, answer: Callable[[MarketEvent], None]
    ) -> None:
        """Carry out a request; ``key`` signs what is locked to another key than the wallet knows."""
        if request.ref in self._running:
            return
        task = asyncio.get_running_loop().create_task(self._carry_out(request, key, answer))
        self._running[request.ref] = task

    async def stop(self) -> None:
        """Break off: whatever was begun goes on by its ref."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry_out(
        self, request: Request, key: bytes | None, answer: Callable[[MarketEvent], None]
    ) -> None:
        try:
            event = await self._event(request, key)
        finally:
            # Before the answer: who hears it may ask again at once.
            del self._running[request.ref]
        answer(event)

    async def _event(self, request: Request, key: bytes | None) -> MarketEvent:
        try:
            return await self._ask(request, key)
        except WalletFailed as exc:
            code = str(exc.number) if exc.number is not None else exc.word or "refused"
            return PaymentFailed(request.ref, code, str(exc), exc.may_retry)
        except NotEnough as exc:
            return PaymentFailed(request.ref, "insufficient", str(exc), False)
        except SystemRefused as exc:  # a full disk: nothing was begun
            return PaymentFailed(request.ref, "unreachable", str(exc), True)
        except NostrvpnError as exc:
            return PaymentFailed(request.ref, "refused", str(exc), False)
        except Exception as exc:
            # What nobody foresaw here must not end the tunnels; the money is where the wallet has it.
            _log.exception("a request to the wallet failed: %s", request.ref)
            return PaymentFailed(request.ref, "refused", repr(exc), True)

    async def _ask(self, request: Request, key: bytes | None) -> MarketEvent:
        wallet, ref = self._wallet, request.ref
        match request:
            case MakeInvoice() | WatchInvoice() | EndHold() | PayInvoice():
                return await self._by_lightning(request)
            case FundChannel() | CloseChannel() | SettleChannel():
                return await self._by_channel(request, key)
            case Lock():
                return Locked(ref, await self._locked(request), self._fee(ref))
            case TakeOut():
                proofs = await wallet.take_out(ref, request.mint, request.amount_sat)
                return TakenOut(ref, _token(request.mint, proofs), self._fee(ref))
            case GiveBack():
                proofs = await wallet.give_back(
                    ref, request.mint, request.amount_sat, request.receiver
                )
                return GivenBack(ref, _token(request.mint, proofs), self._fee(ref))
            case Redeem():
                done = await wallet.redeem(ref, request.mint, request.proofs, key)
                return effects.Redeemed(ref, done.amount, done.fee)
            case Reclaim():
                done = await wallet.reclaim(
                    ref, request.mint, request.proofs, request.not_before, key
                )
                return effects.Redeemed(ref, done.amount, done.fee)

    async def _by_channel(self, request: _OfChannels, key: bytes | None) -> MarketEvent:
        ref, mint, channels = request.ref, request.mint, self._wallet.channels
        match request:
            case FundChannel(amounts_sat=amounts, payer=payer, receiver=receiver, locktime=until):
                proofs = await channels.fund(ref, mint, amounts, (payer, receiver), until)
                return Locked(ref, proofs, self._fee(ref))
            case CloseChannel(channel=channel, updates=updates):
                assert key is not None
                done = await channels.close(ref, mint, channel, updates, key)
            case SettleChannel(channel=channel, balances=balances, not_before=until):
                assert key is not None
                done = await channels.settle(ref, mint, channel, balances, until, key)
        return ChannelClosed(ref, done.balance, done.amount, done.fee)

    async def _locked(self, request: Lock) -> tuple[Proof, ...]:
        name = (request.ref, request.mint, request.amounts_sat)
        lock = (request.receiver, request.locktime, request.refund)
        if not request.others:
            return await self._wallet.lock(*name, *lock)
        both = conditions.Lock(lock[0], lock[1], (lock[2],), request.others, n_sigs=2)
        return await self._wallet.lock_under(*name, both)

    async def _by_lightning(self, request: _OfLightning) -> MarketEvent:
        ref, rail = request.ref, self._rail
        if isinstance(request, PayInvoice) and request.mint != LIGHTNING:
            most = request.max_fee_sat
            paid = await self._wallet.melt(ref, request.mint, request.invoice, most)
            return InvoicePaid(ref, paid.fee)
        if rail is None:
            raise UserError("there is no Lightning wallet")
        match request:
            case MakeInvoice(_, msat, expiry_s, ""):
                return InvoiceMade(ref, await rail.make(msat, expiry_s))
            case MakeInvoice(_, msat, expiry_s, payment_hash):
                return InvoiceMade(ref, await rail.make_held(msat, expiry_s, payment_hash))
            case WatchInvoice(_, payment_hash, held):
                return InvoiceSeen(ref, await rail.is_paid(payment_hash, held=held))
            case EndHold(_, payment_hash, preimage):
                return HoldEnded(ref, await rail.end_hold(payment_hash, preimage))
            case PayInvoice(invoice=text, is_held=True):
                return InvoicePaid(ref, await rail.look_back(text))
            case PayInvoice(invoice=text, is_again=is_again):
                return InvoicePaid(ref, await rail.pay(text, is_again=is_again))

    def _fee(self, ref: str) -> int:
        operation = self._wallet.book.operation(ref)
        return 0 if operation is None else operation.fee


def _token(mint: str, proofs: tuple[Proof, ...]) -> str:
    return render_token(Token(mint, proofs))
