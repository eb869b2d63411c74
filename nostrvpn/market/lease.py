"""One lease that was sold, as a record: all that a restart needs to go on with it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

import msgspec

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.market.billing import Bill, LeaseState, Meter, bytes_left, ms_left
from nostrvpn.market.messages import Quote, QuoteRequest
from nostrvpn.market.service import Allowance
from nostrvpn.market.terms import PayMode, Price

__all__ = ["LEASES", "METERS", "SESSIONS", "Lease", "Payment", "Phase"]

# Spaces of records: leases by id, their meters (written far more often), and ended sessions' rows.
LEASES, METERS, SESSIONS = "sold_lease", "sold_meter", "sold_session"

# Payments whose answers are repeated. Older ones are refused as stale, so nothing is credited twice.
REMEMBERED_PAYMENTS = 32


class Phase:
    """Where a lease is: offered, in use, ending (money is still on its way), or closed."""

    QUOTED = "quoted"
    OPEN = "open"
    ENDING = "ending"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment by its ``seq``: ``state`` is pending, credited, or the code of its refusal.

    By an invoice: ``id`` is its payment hash, empty until it is made; ``until``: when it expires, or
    until when it may wait if that is what it does. ``hold``: held, settling (``preimage`` is known),
    cancelling, settled or cancelled; "" for what never waited.
    """

    id: str
    state: str
    msat: int = 0
    mint: str = ""
    invoice: str = field(default="", repr=False)
    until: int = 0
    hold: str = ""
    preimage: str = field(default="", repr=False)

    @property
    def is_open(self) -> bool:
        """Whether something is still to become of it."""
        return self.state == "pending" or self.hold not in ("", "settled")


@dataclass(slots=True)
class Lease:
    """A lease sold. Bytes, msat, milliseconds; times are Unix seconds, 0 for not yet.

    ``request`` and ``quote`` froze what it is about; ``access`` is what the service said;
    ``free_bytes`` is 0 if nothing could be tried; ``refund_sat`` is the face value given back.
    """

    buyer: str
    offer_id: str
    request: QuoteRequest
    quote: Quote
    phase: str = Phase.QUOTED
    free_bytes: int = 0
    tried_at: int = 0
    access: dict[str, Any] | None = None
    granted_at: int = 0
    started_at: int = 0
    ended_at: int = 0
    suspended_at: int = 0
    paid_msat: int = 0
    paid_by: dict[str, int] = field(default_factory=dict)  # by mint
    payments: dict[int, Payment] = field(default_factory=dict)
    stale_below: int = 0
    number: int = 0
    reason: str = ""
    refund: str = ""  # "", wanted, given, owed
    refund_sat: int = 0
    refund_mint: str = ""
    refund_fee_sat: int = 0
    token: str = field(default="", repr=False)
    receipt: str = field(default="", repr=False)
    network: str = ""  # where a trial came from (trials.py)
    meter: Meter = field(default_factory=Meter)
    ms: int = 0
    # Not stored: what the last look at the counters brought, and what was told and kept of it.
    is_low: bool = False
    seen_at: int = 0
    recent_bps: int = 0
    counted_at: float | None = None
    told_at: float = float("-inf")
    kept_at: float = float("-inf")
    kept_bytes: int = 0
    kept_ms: int = 0

    @property
    def id(self) -> str:
        """The lease's id."""
        return self.quote.lease_id

    @property
    def mode(self) -> PayMode:
        """How it is paid."""
        return self.quote.mode

    @property
    def price(self) -> Price:
        """What it costs, frozen."""
        return self.quote.price

    @property
    def is_live(self) -> bool:
        """Whether the service is there, suspended or not."""
        return self.phase == Phase.OPEN and self.access is not None

    @property
    def bill(self) -> Bill:
        """What was used and paid."""
        return Bill(
            self.price,
            self.free_bytes,
            self.quote.grace_bytes,
            self.meter.total,
            self.ms,
            self.paid_msat,
        )

    @property
    def state(self) -> LeaseState:
        """Where it stands by its bill; closed once nothing more is served."""
        if self.phase in (Phase.ENDING, Phase.CLOSED):
            return LeaseState.CLOSED
        return self.bill.state

    @property
    def allowance(self) -> Allowance:
        """How far it may be served from now on without another payment."""
        bill = self.bill
        left = ms_left(bill)
        return Allowance(bytes_left(bill), None if left is None else left / 1000)

    def remember(self, seq: int, payment: Payment) -> None:
        """Set what became of a payment; the oldest settled ones are forgotten."""
        self.payments[seq] = payment
        settled = sorted(s for s, p in self.payments.items() if not p.is_open)
        for old in settled[: max(0, len(self.payments) - REMEMBERED_PAYMENTS)]:
            del self.payments[old]
            self.stale_below = max(self.stale_below, old + 1)

    def used_of(self, seq: int) -> int:
        """Return how much of a payment was served for (msat)."""
        later = (paid for other, paid in self.payments.items() if other >= seq)
        before = self.paid_msat - sum(paid.msat for paid in later if paid.state == "credited")
        return max(0, min(self.payments[seq].msat, self.bill.due_msat - before))

    @property
    def is_holding(self) -> bool:
        """Whether a payment waits to become ours or the buyer's."""
        return any(p.hold in ("held", "settling", "cancelling") for p in self.payments.values())

    @property
    def has_pending(self) -> bool:
        """Whether money is on its way in."""
        return any(p.state == "pending" for p in self.payments.values())

    def to_json(self) -> dict[str, Any]:
        """Return what is stored, but the meter."""
        stored: dict[str, Any] = {name: getattr(self, name) for name in _PLAIN}
        # The caller may write it later than we change it.
        stored["paid_by"], stored["access"] = dict(self.paid_by), self.access and dict(self.access)
        stored["request"] = msgspec.to_builtins(self.request)
        stored["quote"] = msgspec.to_builtins(self.quote)
        stored["payments"] = {
            str(seq): list(astuple(payment)) for seq, payment in self.payments.items()
        }
        return stored

    def row(self) -> dict[str, object]:
        """Return what is known of it for good: no key, no token (``statements.py`` reads it)."""
        bill = self.bill
        return {
            "lease": self.id,
            "buyer": hashlib.sha256(f"nostrvpn buyer {self.buyer}".encode()).hexdigest()[:16],
            "offer": self.offer_id,
            "state": self.state.value,
            "mode": self.mode.value,
            "granted_at": self.granted_at,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "rx": self.meter.rx,
            "tx": self.meter.tx,
            "billable": bill.billable,
            "ms": self.ms,
            "due_msat": bill.due_msat,
            "paid_msat": self.paid_msat,
            "refund_sat": self.refund_sat,
            "refund": self.refund,
            "reason": self.reason,
        }

    def meter_json(self) -> list[object]:
        """Return what is stored of the meter."""
        return [*self.meter.to_json(), self.ms]

    @classmethod
    def from_json(cls, stored: object, meter: object) -> Lease:
        """Rebuild from :meth:`to_json` and :meth:`meter_json`; PeerMisbehaved if damaged."""
        try:
            if not isinstance(stored, Mapping):
                raise TypeError("no record")
            lease = cls(
                stored["buyer"],
                stored["offer_id"],
                msgspec.convert(stored["request"], QuoteRequest),
                msgspec.convert(stored["quote"], Quote),
            )
            for name in _PLAIN:
                setattr(lease, name, stored[name])
            lease.payments = {int(seq): Payment(*p) for seq, p in stored["payments"].items()}
            if isinstance(meter, list):
                lease.meter, lease.ms = Meter.from_json(meter[:5]), int(meter[5])
                lease.kept_bytes, lease.kept_ms = lease.meter.total, lease.ms
        except (TypeError, ValueError, KeyError, IndexError, msgspec.MsgspecError) as exc:
            raise PeerMisbehaved("bad_record", f"not a lease: {exc}") from exc
        return lease


_PLAIN = (
    *("buyer", "offer_id", "phase", "free_bytes", "access", "granted_at", "started_at", "ended_at"),
    *("suspended_at", "paid_msat", "stale_below", "number", "reason", "refund", "refund_sat"),
    *("refund_mint", "refund_fee_sat", "token", "receipt", "paid_by", "network", "tried_at"),
)
