"""The end of a lease: the service, then money still on its way, then what is given back, a receipt."""

from __future__ import annotations

from nostrvpn.cashu.amounts import fee
from nostrvpn.machine import Moment
from nostrvpn.market.attest import signed
from nostrvpn.market.billing import LeaseState, refund_fee_sat
from nostrvpn.market.effects import GiveBack, Keep, MarketEffect, ServiceChanged
from nostrvpn.market.lease import SESSIONS, Lease, Phase
from nostrvpn.market.messages import Receipt, render_message
from nostrvpn.market.stall import Stall
from nostrvpn.market.terms import PayMode

__all__ = ["Ending"]

# A lease that was only tried ends after this; one that is suspended; one nobody used (seconds).
TRIAL_S, SUSPENDED_S, IDLE_S = 120, 600, 3600
# How long a receipt is repeated to who asks for it, and a lease's keys are not taken again.
RECEIPT_S = 86_400


class Ending:
    """Ends leases, each exactly once, through any number of restarts."""

    def __init__(self, stall: Stall) -> None:
        self._stall = stall

    def end(self, lease: Lease, reason: str, moment: Moment) -> list[MarketEffect]:
        """Serve no more, and settle."""
        stall = self._stall
        if lease.phase == Phase.QUOTED:
            return stall.drop(lease)
        if lease.phase != Phase.OPEN:
            return []
        meter = stall.keep_meter(lease, moment.now)
        lease.phase, lease.reason, lease.ended_at = Phase.ENDING, reason, int(moment.wall)
        effects = [*meter, *stall.keep(lease, moment.wall)]
        if stall.service.teardown(lease.id):
            effects.append(ServiceChanged())
        return [*effects, *self.advance(lease, moment)]

    def advance(self, lease: Lease, moment: Moment) -> list[MarketEffect]:
        """Go on with an end as far as it goes now."""
        if lease.phase != Phase.ENDING or lease.has_pending or lease.refund:
            return []
        mint, amount = self._refund(lease)
        if amount <= 0:
            return self._close(lease, moment)
        lease.refund, lease.refund_mint, lease.refund_sat = "wanted", mint, amount
        self._stall.till.lease_ended(mint)
        request = self.request(lease)
        # What was paid may not be in the wallet yet.
        redeem = self._stall.till.redeem(moment)
        ask = self._stall.errands.ask(request, moment.now)
        return [*self._stall.keep(lease, moment.wall), *redeem, *ask]

    def request(self, lease: Lease) -> GiveBack:
        """Return what the wallet is asked for a refund."""
        receiver = lease.request.refund
        return GiveBack(f"back:{lease.id}", lease.refund_mint, lease.refund_sat, receiver)

    def given(self, lease: Lease, token: str, fee_sat: int, moment: Moment) -> list[MarketEffect]:
        """The refund is made."""
        lease.refund, lease.token, lease.refund_fee_sat = "given", token, fee_sat
        return self._close(lease, moment)

    def is_early(self, lease: Lease, code: str) -> bool:
        """Whether a refund that failed is only asked too early: what was paid is being swapped."""
        if code != "insufficient":
            return False
        self._stall.till.lease_ended(
            lease.refund_mint
        )  # a process before this one may have been told
        return self._stall.till.is_redeeming(lease.refund_mint)

    def not_given(self, lease: Lease, moment: Moment) -> list[MarketEffect]:
        """The wallet refuses the refund for good: it stays owed, the receipt says so."""
        if not self._stall.errands.finish(self.request(lease).ref):
            return []
        lease.refund = "owed"
        self._stall.counters["refunds owed"] += 1
        return self._close(lease, moment)

    def repeat(self, lease: Lease, moment: Moment) -> list[MarketEffect]:
        """Return the receipt once more; a refund that is owed is tried again."""
        if lease.phase == Phase.ENDING:
            return [self._stall.notice(lease, "info", "ending", moment.wall)]
        told = self._stall.tell_text(lease, lease.receipt, moment.wall, stored=True)
        if lease.refund == "owed" and self.request(lease).ref not in self._stall.errands:
            return [told, *self._stall.errands.ask(self.request(lease), moment.now)]
        return [told]

    def expire(self, moment: Moment) -> list[MarketEffect]:
        """End what nobody pays or uses, and forget what ended long ago."""
        effects: list[MarketEffect] = []
        for lease in list(self._stall.leases.values()):
            reason = self._overdue(lease, moment.wall)
            if reason == "nothing":
                effects += self._stall.drop(lease)
            elif reason:
                effects += self.end(lease, reason, moment)
            elif lease.phase == Phase.CLOSED and self._is_past(lease, moment.wall):
                effects.append(Keep(SESSIONS, lease.id, lease.row()))
                effects += self._stall.drop(lease)
        return effects

    def _overdue(self, lease: Lease, wall: float) -> str:
        by_invoice = lease.mode.by_invoice  # waited for once the service has ended
        if lease.phase != Phase.OPEN or (lease.has_pending and not by_invoice):
            return ""
        if lease.access is None:
            if lease.paid_msat or lease.has_pending:
                return "no-service" if wall > lease.quote.expires_at + SUSPENDED_S else ""
            return "nothing" if wall > lease.quote.expires_at else ""
        if lease.suspended_at and wall > lease.suspended_at + SUSPENDED_S:
            return "unpaid"
        if not lease.paid_msat and wall > lease.granted_at + TRIAL_S:
            return "trial-over"
        used = max(lease.granted_at, lease.seen_at, lease.started_at)
        return "idle" if wall > used + IDLE_S else ""

    def _is_past(self, lease: Lease, wall: float) -> bool:
        return wall > lease.ended_at + RECEIPT_S and lease.refund != "owed" and not lease.is_holding

    def _refund(self, lease: Lease) -> tuple[str, int]:
        """Return from which mint how much is given back (sat).

        Of a channel the buyer has all that it did not show, in steps as small as he likes, so what is
        left of the last one stays here, but where we ended the lease; of what is in escrow the buyer
        decides. What came by Lightning is in another wallet than tokens are made from.
        """
        ours = lease.reason in ("no-service", "policy-denied", "price-changed", "stopped")
        stays = lease.mode.by_invoice or lease.mode is PayMode.ESCROW
        stays |= lease.mode is PayMode.CHANNEL and not ours
        if not lease.paid_by or stays:
            return "", 0
        mint, paid = max(lease.paid_by.items(), key=lambda item: item[1])
        keys = self._stall.till.mints.get(mint)
        active = keys.active() if keys else ()
        ppk = active[0].fee_ppk if active else 0
        left = min(lease.bill.remaining_msat, paid) // 1000 - refund_fee_sat(ppk)
        # What the buyer's own swap would eat is nobody's gain but the mint's.
        return mint, left if left > fee(ppk, left.bit_count()) else 0

    def _close(self, lease: Lease, moment: Moment) -> list[MarketEffect]:
        lease.phase = Phase.CLOSED
        bill = lease.bill
        receipt = Receipt(
            lease_id=lease.id,
            buyer=lease.buyer,
            offer_id=lease.offer_id,
            started_at=lease.started_at,
            ended_at=lease.ended_at,
            rx=lease.meter.rx,
            tx=lease.meter.tx,
            billable=bill.billable,
            ms=lease.ms,
            due_msat=bill.due_msat,
            paid_msat=lease.paid_msat,
            refund_sat=lease.refund_sat if lease.refund == "given" else 0,
            owed_sat=lease.refund_sat if lease.refund == "owed" else 0,
            reason=lease.reason,
            token=lease.token,
        )
        receipt = signed(receipt, self._stall.secret, moment.entropy.take(32))
        lease.receipt = render_message(receipt)
        for mint in lease.paid_by:
            self._stall.till.lease_ended(mint)
        assert lease.state is LeaseState.CLOSED
        told = self._stall.tell(lease, receipt, moment.wall, stored=True)
        return [*self._stall.keep(lease, moment.wall), told]
