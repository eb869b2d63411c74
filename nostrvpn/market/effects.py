"""What the machines of the market are told, and what they ask for: both sides of a lease share it.

Effects are carried out in their order. A :class:`Keep` is on disk before any later effect of the same
list begins, so whatever a message promises was written down first. Every request to the wallet has a
``ref``: asked again with the same ref, also after a crash, the wallet gives the same result and spends
once. Amounts of Cashu are sat; everything else is msat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from nostrvpn.cashu.proof import Proof
from nostrvpn.endpoint import IPAddress
from nostrvpn.machine import Tick
from nostrvpn.market.channel_effects import (
    ChannelClosed,
    CloseChannel,
    FundChannel,
    SettleChannel,
)

__all__ = [
    "Counted",
    "Counters",
    "EndHold",
    "GiveBack",
    "GivenBack",
    "Heard",
    "HoldEnded",
    "InvoiceMade",
    "InvoicePaid",
    "InvoiceSeen",
    "Keep",
    "Lock",
    "Locked",
    "MakeInvoice",
    "MarketEffect",
    "MarketEvent",
    "PayInvoice",
    "PaymentFailed",
    "Probe",
    "Probed",
    "Reclaim",
    "Redeem",
    "Redeemed",
    "Say",
    "ServiceChanged",
    "TakeOut",
    "TakenOut",
    "Tell",
    "Tick",
    "Undelivered",
    "WatchInvoice",
]


# What a machine asks for


@dataclass(frozen=True, slots=True)
class Keep:
    """Write a record, durable before any later effect; ``value`` is JSON, None removes the record."""

    space: str
    key: str
    value: object = field(repr=False)


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a lease message (its JSON) to a public key.

    Through the tunnel if ``via`` (the other side's address there) is given, and by ``relays`` if that
    fails or there is none; ``stored``: relays shall keep it (kind 1059), for money and grants.
    """

    to: str
    text: str = field(repr=False)
    lease_id: str
    via: IPAddress | None = None
    stored: bool = False
    relays: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Say:
    """Write a line to the log; ``level`` is debug, info, warning or error."""

    level: str
    text: str


@dataclass(frozen=True, slots=True)
class Lock:
    """Make proofs of these amounts that only ``receiver`` can spend, and ``refund`` after ``locktime``.

    Keys are 66 hex digits ("02…"); ``locktime`` is Unix time by the mint's clock. With ``others`` two of
    ``receiver`` and these have to sign. Answer: Locked.
    """

    ref: str
    mint: str
    amounts_sat: tuple[int, ...]
    receiver: str
    locktime: int
    refund: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TakeOut:
    """Take a plain token of this amount out of the wallet. Answer: TakenOut."""

    ref: str
    mint: str
    amount_sat: int


@dataclass(frozen=True, slots=True)
class Redeem:
    """Swap proofs into the own wallet, signing what is locked to the payment key. Answer: Redeemed."""

    ref: str
    mint: str
    proofs: tuple[Proof, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Take a token of this face value out of the wallet, locked to ``receiver``. Answer: GivenBack."""

    ref: str
    mint: str
    amount_sat: int
    receiver: str


@dataclass(frozen=True, slots=True)
class Reclaim:
    """Take own locked proofs back by the refund key, not before Unix time. Answer: Redeemed."""

    ref: str
    mint: str
    proofs: tuple[Proof, ...] = field(repr=False)
    not_before: int


@dataclass(frozen=True, slots=True)
class ServiceChanged:
    """What the service (seller) or the link (buyer) should be has changed: reconcile."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Try the tunnel of a lease (buyer). Answer: Probed."""

    lease_id: str


@dataclass(frozen=True, slots=True)
class MakeInvoice:
    """Have the connected Lightning wallet make an invoice (seller). Answer: InvoiceMade.

    Asked again, it may make another one: the machine goes by the first that it wrote down.
    ``payment_hash``: of a payment that is to be held, else "".
    """

    ref: str
    msat: int
    expiry_s: int
    payment_hash: str = ""


@dataclass(frozen=True, slots=True)
class WatchInvoice:
    """Ask the connected wallet whether an invoice of its own is paid, or only ``held`` (seller).
    Answer: InvoiceSeen."""

    ref: str
    payment_hash: str
    held: bool = False


@dataclass(frozen=True, slots=True)
class EndHold:
    """Have the connected wallet take a payment that it holds, or without ``preimage`` send it back
    (seller). Answer: HoldEnded, with what it came to."""

    ref: str
    payment_hash: str
    preimage: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class PayInvoice:
    """Pay an invoice (buyer): from ``mint``, or for LIGHTNING by the connected wallet.

    ``max_fee_sat``: what a mint may ask besides; a wallet has limits of its own. ``is_again``: it was
    asked before, and may be paid already; ``is_held``: it is on its way, and only asked after. Answer:
    InvoicePaid.
    """

    ref: str
    mint: str
    invoice: str = field(repr=False)
    max_fee_sat: int
    is_again: bool = False
    is_held: bool = False


MarketEffect = (
    Keep
    | Tell
    | Say
    | Lock
    | TakeOut
    | Redeem
    | GiveBack
    | Reclaim
    | MakeInvoice
    | WatchInvoice
    | EndHold
    | PayInvoice
    | FundChannel
    | CloseChannel
    | SettleChannel
    | ServiceChanged
    | Probe
)


# What a machine is told


@dataclass(frozen=True, slots=True)
class Heard:
    """A sealed lease message was opened: ``sender`` is proven, ``text`` is not.

    ``at_tunnel``: the tunnel address it came from, None by a relay.
    """

    sender: str
    text: str = field(repr=False)
    at_tunnel: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class Undelivered:
    """A Tell went neither through the tunnel nor to any relay."""

    to: str
    lease_id: str


@dataclass(frozen=True, slots=True)
class Locked:
    """The answer to Lock; ``fee_sat`` is what the mint took for it, beyond the amounts."""

    ref: str
    proofs: tuple[Proof, ...] = field(repr=False)
    fee_sat: int = 0


@dataclass(frozen=True, slots=True)
class TakenOut:
    """The answer to TakeOut; ``fee_sat`` beyond the token's face value."""

    ref: str
    token_text: str = field(repr=False)
    fee_sat: int = 0


@dataclass(frozen=True, slots=True)
class Redeemed:
    """The answer to Redeem and Reclaim: so much arrived; ``fee_sat`` of the face value did not."""

    ref: str
    amount_sat: int
    fee_sat: int = 0


@dataclass(frozen=True, slots=True)
class GivenBack:
    """The answer to GiveBack; ``fee_sat`` is what the mint took beyond the token's face value."""

    ref: str
    token_text: str = field(repr=False)
    fee_sat: int = 0


@dataclass(frozen=True, slots=True)
class InvoiceMade:
    """The answer to MakeInvoice: the invoice (bolt11)."""

    ref: str
    invoice: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class InvoiceSeen:
    """The answer to WatchInvoice: whether it is paid, for good or as far as was asked."""

    ref: str
    is_paid: bool


@dataclass(frozen=True, slots=True)
class HoldEnded:
    """The answer to EndHold: whether the payment is ours, or the payer's again."""

    ref: str
    is_settled: bool


@dataclass(frozen=True, slots=True)
class InvoicePaid:
    """The answer to PayInvoice; ``fee_sat`` beyond the amount, rounded up."""

    ref: str
    fee_sat: int = 0


@dataclass(frozen=True, slots=True)
class PaymentFailed:
    """A request to the wallet failed; with ``may_retry`` the same ref may be asked again later.

    ``code``: the mint's number as text ("11001": spent) or a word: "unreachable", "busy", "pending",
    "insufficient", "refused"; of an invoice ``FAILED`` (nothing of it is on its way any more) and
    ``UNKNOWN``. 11002 (pending), 429 and an unreachable mint may be retried: they are no fraud. Without
    ``may_retry`` nothing was spent and nothing will be.
    """

    FAILED: ClassVar = "failed"
    UNKNOWN: ClassVar = "unknown"

    ref: str
    code: str
    text: str
    may_retry: bool


@dataclass(frozen=True, slots=True)
class Counters:
    """A peer's counters as our own WireGuard has them: bytes received from and sent to it.

    ``last_handshake`` is Unix time, None if there was none; ``source``: where its packets come from.
    """

    rx: int
    tx: int
    last_handshake: int | None = None
    source: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class Counted:
    """All counters of one of the market's interfaces, by WireGuard public key (base64).

    ``device`` is the interface's own public key: for a buyer it says of which lease the counters are, as
    two leases may be of one seller. ``epoch`` names the life of the counters (boot id and interface
    index): another epoch means that they began at zero again, however large they are.
    """

    by_key: Mapping[str, Counters]
    epoch: str = ""
    device: str = ""


@dataclass(frozen=True, slots=True)
class Probed:
    """The answer to Probe; ``country`` is ISO 3166-1 as seen from outside, None if nobody knows."""

    lease_id: str
    ok: bool
    rtt_ms: int | None = None
    country: str | None = None
    reason: str = ""


MarketEvent = (
    Heard
    | Undelivered
    | Locked
    | TakenOut
    | Redeemed
    | GivenBack
    | InvoiceMade
    | InvoiceSeen
    | InvoicePaid
    | HoldEnded
    | ChannelClosed
    | PaymentFailed
    | Counted
    | Probed
    | Tick
)
