"""Payments that wait in the Lightning network, as the seller has them: the buyer has their preimage.

Such a payment is credited once the wallet holds it, and is in the books as ``locked``. It becomes the
seller's by the preimage, which the buyer tells when the payment is used; what was not used when the
lease ends, and what was not released in time, is sent back. What is to become of one is in the lease's
record before the wallet is asked.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

from nostrvpn.machine import Moment
from nostrvpn.market.effects import EndHold, HoldEnded, MarketEffect, PaymentFailed
from nostrvpn.market.ending import Ending
from nostrvpn.market.lease import Lease, Payment, Phase
from nostrvpn.market.messages import Release
from nostrvpn.market.stall import Stall

__all__ = ["HOLD_S", "UNRELEASED", "SoldHolds"]

# For how long a payment may wait: its way through the network is locked for two hours or more.
HOLD_S = 3600
# After the end of a lease the buyer has so long to release what was used (seconds).
RELEASE_S = 600
# Payments of a lease that wait: one is used, one is shown.
UNRELEASED = 2


class SoldHolds:
    """What waits is in the leases' records; here is what is done about it."""

    def __init__(self, stall: Stall, ending: Ending) -> None:
        self._stall, self._ending = stall, ending

    def is_one(self, ref: str) -> bool:
        """Whether an answer is about such a payment."""
        return ref.startswith("hold:")

    def released(self, lease: Lease, message: Release, moment: Moment) -> list[MarketEffect]:
        """The buyer told a preimage: the payment is ours. The same again is answered again."""
        stall, seq = self._stall, message.seq
        payment = lease.payments.get(seq)
        is_it = payment is not None and _opens(message.preimage, payment.id)
        if payment is None or not is_it or payment.hold not in ("held", "settling", "settled"):
            stall.counters["release refused"] += 1
            return [stall.notice(lease, "error", "release-refused", moment.wall, seq=seq)]
        told = stall.notice(lease, "info", "released", moment.wall, seq=seq)
        if payment.hold != "held":
            return [told]
        stall.counters["released"] += 1
        settling = replace(payment, hold="settling", preimage=message.preimage)
        return [*self._decide(lease, seq, settling, moment), told]

    def look(self, moment: Moment) -> list[MarketEffect]:
        """Send back what is not ours, and what was not released in time."""
        effects: list[MarketEffect] = []
        for lease in list(self._stall.leases.values()):
            held = [seq for seq, paid in lease.payments.items() if paid.hold == "held"]
            late = [seq for seq in held if moment.wall > lease.payments[seq].until]
            if late and lease.phase == Phase.OPEN:
                effects += self._ending.end(lease, "not-released", moment)
            if lease.phase != Phase.CLOSED:
                continue
            is_late = moment.wall > lease.ended_at + RELEASE_S
            for seq in held:
                if is_late or seq in late or not lease.used_of(seq):
                    back = replace(lease.payments[seq], hold="cancelling")
                    effects += self._decide(lease, seq, back, moment)
        return effects

    def ended(self, event: HoldEnded, moment: Moment) -> list[MarketEffect]:
        """The wallet took a payment, or sent it back."""
        found = self._find(event.ref)
        if found is None or not self._stall.errands.finish(event.ref):
            return []
        lease, seq, payment = found
        if payment.hold == "settling" and not event.is_settled:
            self._stall.counters["lost while held"] += 1
        state = "settled" if event.is_settled else "cancelled"
        lease.payments[seq] = replace(payment, hold=state, preimage="")
        kept = self._stall.keep(lease, moment.wall)
        if event.is_settled or lease.phase != Phase.OPEN:
            return kept
        return [*kept, *self._ending.end(lease, "not-released", moment)]

    def failed(self, failed: PaymentFailed, moment: Moment) -> list[MarketEffect]:
        """The wallet does not say: it is asked again, however long that takes."""
        if failed.ref in self._stall.errands:
            self._stall.errands.retry(failed.ref, moment.now)
        return []

    def adopt(self, lease: Lease) -> None:
        """Go on with a lease of an earlier run."""
        for seq, payment in lease.payments.items():
            if payment.hold in ("settling", "cancelling"):
                self._stall.errands.owe(_request(lease, seq, payment))

    def _decide(
        self, lease: Lease, seq: int, payment: Payment, moment: Moment
    ) -> list[MarketEffect]:
        lease.payments[seq] = payment
        kept = self._stall.keep(lease, moment.wall)
        return [*kept, *self._stall.errands.ask(_request(lease, seq, payment), moment.now)]

    def _find(self, ref: str) -> tuple[Lease, int, Payment] | None:
        _, lease_id, seq = ref.split(":")
        lease = self._stall.leases.get(lease_id)
        payment = None if lease is None else lease.payments.get(int(seq))
        return None if lease is None or payment is None else (lease, int(seq), payment)


def _request(lease: Lease, seq: int, payment: Payment) -> EndHold:
    return EndHold(f"hold:{lease.id}:{seq}", payment.id, payment.preimage)


def _opens(preimage: str, payment_hash: str) -> bool:
    return bool(preimage) and sha256(bytes.fromhex(preimage)).hexdigest() == payment_hash
