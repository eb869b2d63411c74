"""Payments by Lightning invoice, as the seller has them: made, told, and watched until paid or over.

An invoice belongs to one ``seq`` of one lease and is written down before it is told, so whatever is
paid is credited once, by the first that was told. One that expired is asked after for some time more: a
wallet may be behind.
"""

from __future__ import annotations

from dataclasses import replace

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.lightning.bolt11 import parse_invoice
from nostrvpn.machine import Moment
from nostrvpn.market.effects import MakeInvoice, MarketEffect, PaymentFailed, WatchInvoice
from nostrvpn.market.ending import Ending
from nostrvpn.market.holds import HOLD_S, UNRELEASED
from nostrvpn.market.lease import Lease, Payment
from nostrvpn.market.messages import Invoice, InvoiceRequest
from nostrvpn.market.payments import Payments
from nostrvpn.market.stall import Stall
from nostrvpn.market.terms import LIGHTNING, PayMode, least_invoice_sat

__all__ = ["INVOICE_S", "Invoices"]

# How long an invoice can be paid; how long it is asked after then, and if the wallet does not answer.
INVOICE_S, LATE_S, GIVE_UP_S = 180, 120, 86_400
# How often the wallet is asked: by itself, and when the buyer says it again (seconds).
WATCH_S, WATCH_SOON_S = 10.0, 1.0
# Invoices that are not paid yet, of all leases: each is a question to the wallet every some seconds.
MAX_OPEN = 64


class Invoices:
    """All that are not paid and not over, by the ref of their payment."""

    def __init__(self, stall: Stall, payments: Payments, ending: Ending) -> None:
        self._stall, self._payments, self._ending = stall, payments, ending
        self._open: dict[str, tuple[str, int]] = {}
        self._watched_at: dict[str, float] = {}

    def __contains__(self, ref: str) -> bool:
        return ref in self._open

    def asked(self, lease: Lease, request: InvoiceRequest, moment: Moment) -> list[MarketEffect]:
        """Make an invoice, or say again what became of it."""
        seq, stall = request.seq, self._stall
        answer = self._payments.answered(lease, seq, moment)
        if answer is not None:
            return answer
        known = lease.payments.get(seq)
        if known is not None:
            return self._again(lease, seq, known, moment)
        code = self._refuse(lease, request, moment)
        if code is not None:
            return self._payments.refused(lease, seq, code, moment)
        effects = self._payments.open(lease, moment)
        lease.remember(seq, Payment(request.hash, "pending", 1000 * request.sat, LIGHTNING))
        kept = stall.keep(lease, moment.wall)
        return [*effects, *kept, *stall.errands.ask(self._begin(lease, seq), moment.now)]

    def _refuse(self, lease: Lease, request: InvoiceRequest, moment: Moment) -> str | None:
        if not lease.mode.by_invoice:
            return "mode-not-accepted"
        if (lease.mode is PayMode.HOLD) != bool(request.hash) or self._knows(request.hash):
            return "hash-refused"
        if self._waiting(lease) >= UNRELEASED:
            return "release-needed"
        if request.sat < least_invoice_sat(lease.price):
            return "slice-too-small"
        if request.sat > lease.quote.max_slice_sat:
            return "slice-too-large"
        if len(self._open) >= MAX_OPEN:
            return "too-busy"
        return self._payments.refuse(lease, request.seq, moment)

    @staticmethod
    def _waiting(lease: Lease) -> int:
        """Return how many payments wait for the buyer's word, or may yet."""
        if lease.mode is not PayMode.HOLD:
            return 0
        return sum(p.state == "pending" or p.hold == "held" for p in lease.payments.values())

    def _begin(self, lease: Lease, seq: int) -> MakeInvoice:
        ref = f"invoice:{lease.id}:{seq}"
        self._open[ref] = (lease.id, seq)
        asked = lease.payments[seq]
        return MakeInvoice(ref, asked.msat, INVOICE_S, asked.id if not asked.invoice else "")

    def _knows(self, payment_hash: str) -> bool:
        others = (p for lease in self._stall.leases.values() for p in lease.payments.values())
        return bool(payment_hash) and any(paid.id == payment_hash for paid in others)

    def _again(self, lease: Lease, seq: int, known: Payment, moment: Moment) -> list[MarketEffect]:
        if not known.invoice:
            return [self._stall.notice(lease, "info", "payment-pending", moment.wall, seq=seq)]
        watch = self._watch(f"invoice:{lease.id}:{seq}", known, WATCH_SOON_S, moment)
        return [self._tell(lease, seq, known, moment), *watch]

    def _tell(self, lease: Lease, seq: int, known: Payment, moment: Moment) -> MarketEffect:
        told = Invoice(lease_id=lease.id, seq=seq, invoice=known.invoice)
        return self._stall.tell(lease, told, moment.wall)

    def made(self, ref: str, text: str, moment: Moment) -> list[MarketEffect]:
        """The wallet made an invoice: it is told, unless it is not what was asked for."""
        found = self._find(ref)
        if found is None or not self._stall.errands.finish(ref):
            return []
        lease, seq, payment = found
        try:
            invoice = parse_invoice(text)
        except PeerMisbehaved as exc:
            self._stall.counters[exc.code] += 1
            return self._settle(ref, "lightning-down", moment)
        name = invoice.payment_hash
        is_good = name == payment.id if payment.id else not self._knows(name)
        if invoice.amount_msat != payment.msat or not is_good:
            self._stall.counters["invoice that was not asked for"] += 1
            return self._settle(ref, "lightning-down", moment)
        payment = replace(payment, id=invoice.payment_hash, invoice=text, until=invoice.expires_at)
        lease.remember(seq, payment)
        # Not looked at now: whoever pays at once says so, and then it is.
        kept = self._stall.keep(lease, moment.wall)
        return [*kept, self._tell(lease, seq, payment, moment)]

    def seen(self, ref: str, is_paid: bool, moment: Moment) -> list[MarketEffect]:
        """The wallet knows whether it was paid."""
        found = self._find(ref)
        if found is None:
            return []
        lease, seq, payment = found
        if is_paid:
            self._forget(ref)
            paid = Payment(payment.id, "credited", payment.msat, LIGHTNING)
            if lease.mode is PayMode.HOLD:
                paid = replace(paid, hold="held", until=int(moment.wall) + HOLD_S)
            return self._payments.credit(lease, seq, paid, moment)
        if moment.wall > payment.until + LATE_S:
            return self._settle(ref, "invoice-expired", moment)
        return []

    def failed(self, failed: PaymentFailed, moment: Moment) -> list[MarketEffect]:
        """The wallet made none, or does not say whether it was paid."""
        found = self._find(failed.ref)
        if found is None:
            return []
        if self._stall.errands.finish(failed.ref):
            return self._settle(failed.ref, "lightning-down", moment)
        if moment.wall > found[2].until + GIVE_UP_S:
            return self._settle(failed.ref, "invoice-expired", moment)
        return []

    def look(self, moment: Moment) -> list[MarketEffect]:
        """Ask after all of them, now and then."""
        effects: list[MarketEffect] = []
        for ref in self._open:
            found = self._find(ref)
            if found is not None and found[2].invoice:
                effects += self._watch(ref, found[2], WATCH_S, moment)
        return effects

    def adopt(self, lease: Lease) -> None:
        """Go on with a lease of an earlier run."""
        for seq, payment in lease.payments.items():
            if lease.mode.by_invoice and payment.state == "pending":
                request = self._begin(lease, seq)
                if not payment.invoice:
                    self._stall.errands.owe(request)

    def _watch(
        self, ref: str, payment: Payment, after: float, moment: Moment
    ) -> list[MarketEffect]:
        if moment.now < self._watched_at.get(ref, float("-inf")) + after:
            return []
        self._watched_at[ref] = moment.now
        is_hold = self._stall.leases[self._open[ref][0]].mode is PayMode.HOLD
        return [WatchInvoice(ref, payment.id, is_hold)]

    def _find(self, ref: str) -> tuple[Lease, int, Payment] | None:
        lease_id, seq = self._open.get(ref, ("", 0))
        lease = self._stall.leases.get(lease_id)
        return None if lease is None else (lease, seq, lease.payments[seq])

    def _forget(self, ref: str) -> None:
        self._open.pop(ref, None)
        self._watched_at.pop(ref, None)

    def _settle(self, ref: str, code: str, moment: Moment) -> list[MarketEffect]:
        """Nothing was paid by it, and nothing will be."""
        found = self._find(ref)
        assert found is not None
        lease, seq, payment = found
        self._forget(ref)
        lease.remember(seq, replace(payment, state=code, invoice=""))
        kept = self._stall.keep(lease, moment.wall)
        told = self._payments.refused(lease, seq, code, moment)
        return [*kept, *told, *self._ending.advance(lease, moment)]
