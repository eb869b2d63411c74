"""The machines' requests to the wallet, carried out, each answered by one event."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from nostrvpn.cashu.proof import Proof
from nostrvpn.cashu.purse import NotEnough
from nostrvpn.cashu.token import Token, render_token
from nostrvpn.daemon.wallet import Wallet
from nostrvpn.daemon.wallet_answers import WalletFailed
from nostrvpn.errors import NostrvpnError, SystemRefused
from nostrvpn.market import effects
from nostrvpn.market.effects import (
    GiveBack,
    GivenBack,
    Lock,
    Locked,
    MarketEvent,
    PaymentFailed,
    Reclaim,
    Redeem,
    TakenOut,
    TakeOut,
)

__all__ = ["Cashier", "Request"]

Request = Lock | TakeOut | Redeem | GiveBack | Reclaim

_log = logging.getLogger("nostrvpn.market")


class Cashier:
    """Asks ``wallet``; the same ``ref`` asked again while it is under way waits for the one answer."""

    def __init__(self, wallet: Wallet) -> None:
        self._wallet = wallet
        self._running: dict[str, asyncio.Task[None]] = {}

    def ask(
        self, request: Request, key: bytes | None, answer: Callable[[MarketEvent], None]
    ) -> None:
        """Carry out a request; ``key`` signs what is locked to another key than the wallet knows."""
        if request.ref in self._running:
            return
        task = asyncio.get_running_loop().create_task(self._carry_out(request, key, answer))
        self._running[request.ref] = task
        task.add_done_callback(lambda _done: self._running.pop(request.ref, None))

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
            answer(await self._ask(request, key))
        except WalletFailed as exc:
            code = str(exc.number) if exc.number is not None else "refused"
            answer(PaymentFailed(request.ref, code, str(exc), exc.may_retry))
        except NotEnough as exc:
            answer(PaymentFailed(request.ref, "insufficient", str(exc), False))
        except SystemRefused as exc:  # a full disk: nothing was begun
            answer(PaymentFailed(request.ref, "unreachable", str(exc), True))
        except NostrvpnError as exc:
            answer(PaymentFailed(request.ref, "refused", str(exc), False))
        except Exception as exc:
            # What nobody foresaw here must not end the tunnels; the money is where the wallet has it.
            _log.exception("a request to the wallet failed: %s", request.ref)
            answer(PaymentFailed(request.ref, "refused", repr(exc), True))

    async def _ask(self, request: Request, key: bytes | None) -> MarketEvent:
        wallet, ref = self._wallet, request.ref
        match request:
            case Lock():
                proofs = await wallet.lock(
                    ref,
                    request.mint,
                    request.amounts_sat,
                    request.receiver,
                    request.locktime,
                    request.refund,
                )
                return Locked(ref, proofs, self._fee(ref))
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

    def _fee(self, ref: str) -> int:
        operation = self._wallet.book.operation(ref)
        return 0 if operation is None else operation.fee


def _token(mint: str, proofs: tuple[Proof, ...]) -> str:
    return render_token(Token(mint, proofs))
