"""What the wallet answers: what came of an operation, or why nothing did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from nostrvpn.errors import UserError
from nostrvpn.io.mint import MintBusy, MintRefused, MintUnreachable

__all__ = ["Funding", "Paid", "Redeemed", "WalletFailed", "told"]


@dataclass(frozen=True, slots=True)
class Redeemed:
    """What came into the wallet, in sat, and what the mint kept."""

    amount: int
    fee: int


@dataclass(frozen=True, slots=True)
class Funding:
    """An invoice (bolt11), to be paid until Unix time ``expires``, for ``amount`` sat of new money."""

    ref: str
    invoice: str
    amount: int
    expires: int


@dataclass(frozen=True, slots=True)
class Paid:
    """An invoice was paid: ``amount`` and ``fee`` (all of it) in sat, and the proof of it."""

    amount: int
    fee: int
    preimage: str = field(repr=False)


class WalletFailed(UserError):
    """It did not happen, or (``may_retry``) not yet: asked again by the same name, it goes on.

    ``number``: the mint's error code (11001: the money was spent before), or None. ``word``: what a
    Lightning wallet's answer means (``PaymentFailed.code``), or "".
    """

    code = "wallet_failed"

    def __init__(
        self,
        text: str,
        hint: str = "",
        *,
        number: int | None = None,
        may_retry: bool = False,
        word: str = "",
    ) -> None:
        super().__init__(text, hint)
        self.word = word
        self.number = number
        self.may_retry = may_retry


@contextmanager
def told() -> Iterator[None]:
    """Turn what a mint's client raises, about a question that moves no money, into WalletFailed."""
    try:
        yield
    except MintRefused as error:
        raise WalletFailed(str(error), error.hint, number=error.number) from error
    except (MintUnreachable, MintBusy) as error:
        raise WalletFailed(str(error), error.hint, may_retry=True) from error
