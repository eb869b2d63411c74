"""What was used and what is owed: counters that survive restarts, and a lease's state by its bill.

Everything here is computed from totals, never from events, so a restart changes nothing. A bill is
``price.due(billable bytes, ms)``; billable is what both directions carried beyond the free bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from nostrvpn.cashu.amounts import fee
from nostrvpn.cashu.proof import Keyset, Proof
from nostrvpn.market.terms import Price

__all__ = [
    "GRACE_MS",
    "LEEWAY_BYTES",
    "OVER_PERCENT",
    "Bill",
    "LeaseState",
    "Meter",
    "billable_bytes",
    "bytes_left",
    "credit_msat",
    "is_fair",
    "is_low",
    "lease_state",
    "ms_left",
    "ramp",
    "refund_fee_sat",
]

# Time is served this long beyond what was paid, as bytes are by the grace of the terms.
GRACE_MS = 30_000
# A bill this much above the own count is refused (Mysterium's tolerance): loss on the way, MTU.
OVER_PERCENT = 11
LEEWAY_BYTES = 20_000_000
# Inputs that a seller's wallet needs to make change for a refund, at most.
_REFUND_INPUTS = 10
# WireGuard's counters have 64 bits, nftables' too.
_WRAP = 1 << 64


@dataclass(slots=True)
class Meter:
    """Totals of a peer's two counters. ``absolute`` is what was read last, ``base`` what went before.

    A counter that falls began anew: the peer was removed, the interface or the machine came back.
    One that was near its end and is small now went round. ``epoch``: :class:`Counted`'s.
    """

    rx_absolute: int = 0
    rx_base: int = 0
    tx_absolute: int = 0
    tx_base: int = 0
    epoch: str = ""

    @property
    def rx(self) -> int:
        """Bytes received from the peer, ever."""
        return self.rx_base + self.rx_absolute

    @property
    def tx(self) -> int:
        """Bytes sent to the peer, ever."""
        return self.tx_base + self.tx_absolute

    @property
    def total(self) -> int:
        """Both directions."""
        return self.rx + self.tx

    def read(self, rx: int, tx: int, epoch: str = "") -> int:
        """Take a reading; return by how many bytes the total grew."""
        before = self.total
        if epoch != self.epoch:
            self.restarted()
            self.epoch = epoch
        self.rx_base += _carried(self.rx_absolute, rx)
        self.tx_base += _carried(self.tx_absolute, tx)
        self.rx_absolute, self.tx_absolute = rx, tx
        return self.total - before

    def restarted(self) -> None:
        """The counters are gone, with the peer or the machine: the next reading begins at zero."""
        self.rx_base, self.tx_base = self.rx, self.tx
        self.rx_absolute = self.tx_absolute = 0

    def to_json(self) -> list[int | str]:
        """Return what is stored."""
        return [self.rx_absolute, self.rx_base, self.tx_absolute, self.tx_base, self.epoch]

    @classmethod
    def from_json(cls, stored: Sequence[object]) -> Meter:
        """Rebuild from :meth:`to_json`; ValueError if it is none."""
        numbers, epoch = stored[:4], stored[4] if len(stored) == 5 else None
        if not isinstance(epoch, str) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("not a meter")
        rx_absolute, rx_base, tx_absolute, tx_base = (n for n in numbers if isinstance(n, int))
        return cls(rx_absolute, rx_base, tx_absolute, tx_base, epoch)


def _carried(old: int, new: int) -> int:
    if new >= old:
        return 0
    return _WRAP if old >= _WRAP >> 1 and new < _WRAP >> 1 and old < _WRAP else old


class LeaseState(Enum):
    """Where a lease stands; all but ``CLOSED`` follow from the bill."""

    FREE = "free"
    PAID = "paid"
    GRACE = "grace"
    SUSPENDED = "suspended"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Bill:
    """All that a lease's state depends on: bytes of both directions, time, and what was paid."""

    price: Price
    free_bytes: int
    grace_bytes: int
    used_bytes: int
    ms: int
    paid_msat: int

    @property
    def billable(self) -> int:
        """Bytes that cost."""
        return billable_bytes(self.used_bytes, self.free_bytes)

    @property
    def due_msat(self) -> int:
        """What is owed for all of it."""
        return self.price.due(self.billable, self.ms)

    @property
    def remaining_msat(self) -> int:
        """What is paid and not used."""
        return max(0, self.paid_msat - self.due_msat)

    @property
    def state(self) -> LeaseState:
        """What follows from it."""
        return lease_state(self)


def billable_bytes(used: int, free: int) -> int:
    """Return how many of the bytes used cost something."""
    return max(0, used - free)


def lease_state(bill: Bill) -> LeaseState:
    """Return free, paid, grace or suspended: monotone in use, and in payment the other way."""
    if bill.due_msat <= bill.paid_msat:
        return LeaseState.PAID if bill.paid_msat else _unpaid(bill)
    tolerated = bill.price.due(max(0, bill.billable - bill.grace_bytes), max(0, bill.ms - GRACE_MS))
    return LeaseState.GRACE if tolerated <= bill.paid_msat else LeaseState.SUSPENDED


def _unpaid(bill: Bill) -> LeaseState:
    # Nothing is due: within the free bytes, or the price is nothing.
    is_free = bill.used_bytes <= bill.free_bytes or bill.price.due(1, 1) == 0
    return LeaseState.FREE if is_free else LeaseState.PAID


def bytes_left(bill: Bill) -> int:
    """Return how many more bytes are served before suspension, if no time passes."""
    traffic = bill.paid_msat - bill.price.due(0, max(0, bill.ms - GRACE_MS))
    paid = bill.price.bytes_for(max(0, traffic))
    return max(0, bill.free_bytes + paid + bill.grace_bytes - bill.used_bytes)


def ms_left(bill: Bill) -> int | None:
    """Return for how long service goes on before suspension, if nothing is sent; None for ever."""
    if not bill.price.hour_msat:
        return None
    left = bill.paid_msat - bill.price.due(bill.billable, 0)
    return max(0, max(0, left) * 3_600_000 // bill.price.hour_msat + GRACE_MS - bill.ms)


def is_low(bill: Bill, recent_bps: int) -> bool:
    """Whether less is left than two steps, or than ten seconds at so many bytes a second."""
    soon = bill.price.due(10 * recent_bps, 10_000)
    return bill.paid_msat - bill.due_msat < max(2 * bill.price.step_msat, soon)


def is_fair(price: Price, billed: tuple[int, int], counted: tuple[int, int]) -> bool:
    """Whether a bill agrees with the own count; both are (billable bytes, ms)."""
    hundred = 100 + OVER_PERCENT
    most_bytes = counted[0] * hundred // 100 + LEEWAY_BYTES
    most_ms = counted[1] * hundred // 100 + GRACE_MS
    return price.due(*billed) <= price.due(most_bytes, most_ms)


def ramp(seq: int, price: Price, max_slice_sat: int, fee_ppk: int = 0) -> int:
    """Return the amount (sat) of payment number ``seq``: one step first, then a third more each time.

    Each is at least one sat more than the one before, never above ``max_slice_sat``, and never so
    small that the fee of an input (``fee_ppk``) eats it.
    """
    amount = max(1, -(-(price.step_msat + fee_ppk) // 1000))
    for _ in range(seq):
        if amount >= max_slice_sat:
            break
        amount = max(amount + 1, amount * 4 // 3)
    return min(amount, max_slice_sat)


def refund_fee_sat(fee_ppk: int) -> int:
    """Return the mint's fee for a refund (sat), which the buyer bears: NUT-02."""
    return fee(fee_ppk, _REFUND_INPUTS)


def credit_msat(proofs: Iterable[Proof], keysets: Mapping[str, Keyset]) -> int:
    """Return what locked proofs are worth to the seller: their sum, less the mint's fee for each.

    The fee of an input is ``fee_ppk`` thousandths of a sat, so this is exact; the rounding up of a swap
    is the seller's, who swaps many at once. KeyError for a keyset that is not known.
    """
    return sum(1000 * p.amount - keysets[p.keyset_id].fee_ppk for p in proofs)
