"""What the machines ask of the wallet about channels, and what became of one.

As ``effects.py`` has it: each request has a ``ref``, and asked again by it gives the same result.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nostrvpn.cashu.channel import Channel, Update

__all__ = [
    "FIRST_CHANNEL_SAT",
    "ChannelClosed",
    "CloseChannel",
    "FundChannel",
    "SettleChannel",
    "most_capacity",
]

# What the channels of a lease may hold: so much the first, then twice as much each time (sat). A payer
# can spoil a channel (docs/protocol/leases.md), so who has closed none well is trusted with little.
FIRST_CHANNEL_SAT, LAST_CHANNEL_SAT = 16, 256


def most_capacity(number: int) -> int:
    """Return what channel ``number`` (0 is the first) of a lease may hold (sat)."""
    return min(FIRST_CHANNEL_SAT << min(number, 16), LAST_CHANNEL_SAT)


@dataclass(frozen=True, slots=True)
class FundChannel:
    """Make proofs of these amounts under the lock of a channel (buyer). Answer: Locked.

    Keys are 66 hex digits; ``payer`` signs updates, and alone can spend after ``locktime`` (Unix).
    """

    ref: str
    mint: str
    amounts_sat: tuple[int, ...]
    payer: str
    receiver: str
    locktime: int


@dataclass(frozen=True, slots=True)
class CloseChannel:
    """Close at the first of ``updates`` that the mint takes, and bring that home (seller).

    Answer: ChannelClosed.
    """

    ref: str
    mint: str
    channel: Channel = field(repr=False)
    updates: tuple[Update, ...]


@dataclass(frozen=True, slots=True)
class SettleChannel:
    """Bring home what the seller's close left, or from ``not_before`` (Unix) on all of it (buyer).

    ``balances``: that were signed, the last one first. Answer: ChannelClosed, or PaymentFailed that
    may be retried while it is open.
    """

    ref: str
    mint: str
    channel: Channel = field(repr=False)
    balances: tuple[int, ...]
    not_before: int


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """The receiver has ``balance_sat`` of it, 0 if the payer had all back.

    ``amount_sat`` arrived here; ``fee_sat`` of what is ours did not.
    """

    ref: str
    balance_sat: int
    amount_sat: int
    fee_sat: int = 0
