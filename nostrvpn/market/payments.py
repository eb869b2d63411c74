"""Payments of leases: what is refused before anything is consumed, what is credited, and what follows.

A payment is known by its ``seq``, its money by its id. The record of the money is on disk before the
lease is credited with it, and the lease before anything is said or served; :meth:`Payments.adopt` closes
the gap that a crash between the two leaves.
"""

from __future__ import annotations

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment
from nostrvpn.market.effects import MarketEffect, PaymentFailed
from nostrvpn.market.ending import Ending
from nostrvpn.market.lease import Lease, Payment, Phase
from nostrvpn.market.messages import Fund, TopUp
from nostrvpn.market.money_in import Money
from nostrvpn.market.pace import Pace
from nostrvpn.market.payment_check import MAX_PROOFS, TRANSIENT, examine, notice_code
from nostrvpn.market.serving import Serving
from nostrvpn.market.stall import Stall
from nostrvpn.market.terms import PayMode

__all__ = ["Payments"]

# Payments of a lease that are swapped at a time, and that are in escrow: one is used, one shown.
MAX_PENDING, UNRELEASED = 4, 2
# Proofs looked at in a second, of all who never paid, and of each who did: each takes a millisecond of
# signatures. A proof has no fewer characters in a token than that.
NEW_PROOFS, PAID_PROOFS, PROOF_CHARS = 100.0, 16.0, 150


class Payments:
    """``stale_mints``: whose keysets seem to be others than those we know."""

    def __init__(self, stall: Stall, serving: Serving, ending: Ending) -> None:
        self._stall, self._serving, self._ending = stall, serving, ending
        self.stale_mints: set[str] = set()
        self._newcomers = Pace(NEW_PROOFS, 4 * MAX_PROOFS)
        self._paces: dict[str, Pace] = {}

    def paid(self, lease: Lease, message: Fund | TopUp, moment: Moment) -> list[MarketEffect]:
        """Take a payment, or a wish to try; the same one again is answered again."""
        seq = message.seq
        is_trial = isinstance(message, Fund) and not (message.token or message.signature)
        answer = self.answered(lease, seq, moment)
        if answer is not None:
            return answer
        if seq in lease.payments:
            return [self._stall.notice(lease, "info", "payment-pending", moment.wall, seq=seq)]
        code = self.refuse(lease, seq, moment, is_trial=is_trial)
        if lease.mode.by_invoice and not is_trial:
            code = "mode-not-accepted"
        if code is not None:
            return self.refused(lease, seq, code, moment)
        if is_trial:
            return self._try(lease, seq, moment)
        if not self._may_examine(lease, len(message.token), moment.now):
            return self.refused(lease, seq, "too-busy", moment)
        try:
            if lease.mode is PayMode.CHANNEL:
                return self._update(lease, message, moment)
            money = examine(message.token, lease, seq, self._stall.till.mints, moment.wall)
            code = self._stall.till.refuse(money, moment.now)
            is_full = len(self._stall.till.unreleased(lease.id)) >= UNRELEASED
            if code is None and money.state == "escrow" and is_full:
                code = "release-needed"
        except PeerMisbehaved as exc:
            code = notice_code(exc.code)
            self._stall.counters[f"payment {exc.code}"] += 1
            if exc.code == "unknown-keyset":
                self.stale_mints |= set(lease.quote.mints)
        if code is not None:
            return self.refused(lease, seq, code, moment)
        return self._take(lease, money, moment)

    def _update(self, lease: Lease, message: Fund | TopUp, moment: Moment) -> list[MarketEffect]:
        """A channel says that more of it is ours."""
        stall = self._stall
        channel = stall.channels.examine(lease, message, stall.till.mints, moment)
        kept = [*self.open(lease, moment), *stall.channels.take(channel)]
        paid = channel.payments()[message.seq]
        return [*kept, *self.credit(lease, message.seq, paid, moment)]

    def _may_examine(self, lease: Lease, size: int, now: float) -> bool:
        """Whether there is time to look at a token of so many characters.

        Who never paid shares with all like it, so that a flood of made-up tokens does not keep those
        waiting who did pay; each of those has a share of its own.
        """
        pace = self._newcomers
        if lease.paid_msat:
            pace = self._paces.setdefault(lease.id, Pace(PAID_PROOFS, 2 * MAX_PROOFS))
        if len(self._paces) > len(self._stall.leases):
            self._paces = {name: p for name, p in self._paces.items() if name in self._stall.leases}
        return pace.take(1 + size / PROOF_CHARS, now)

    def answered(self, lease: Lease, seq: int, moment: Moment) -> list[MarketEffect] | None:
        """Return the answer to a payment that was settled before, None if it was not."""
        known = lease.payments.get(seq)
        if known is None or known.state == "pending":
            return None
        if known.state != "credited":
            return self.refused(lease, seq, known.state, moment)
        if lease.phase == Phase.OPEN:
            return self._serving.grant(lease, seq, moment)
        return self._ending.repeat(lease, moment)

    def refuse(
        self, lease: Lease, seq: int, moment: Moment, *, is_trial: bool = False
    ) -> str | None:
        """Return the code of a notice if no payment is taken now."""
        if lease.phase in (Phase.ENDING, Phase.CLOSED):
            return "closed"
        if lease.phase == Phase.QUOTED and moment.wall > lease.quote.expires_at:
            return "quote-expired"
        if seq < lease.stale_below:
            return "stale-seq"
        if sum(paid.state == "pending" for paid in lease.payments.values()) >= MAX_PENDING:
            return "too-busy"
        if lease.access is None:
            refused = self._stall.service.admit(lease.request.wg_pub)
            if refused is not None:
                return refused
        if is_trial and not lease.access and not lease.quote.free_bytes:
            return "trial-denied"
        return None

    def refused(self, lease: Lease, seq: int, code: str, moment: Moment) -> list[MarketEffect]:
        """Say it before anything is consumed."""
        self._stall.counters[f"refused {code}"] += 1
        level = "warning" if code in TRANSIENT else "error"
        return [self._stall.notice(lease, level, code, moment.wall, seq=seq)]

    def _try(self, lease: Lease, seq: int, moment: Moment) -> list[MarketEffect]:
        if lease.phase == Phase.OPEN:
            return self._serving.grant(lease, seq, moment)
        effects = self.open(lease, moment)
        if not lease.free_bytes:
            return [*effects, *self.refused(lease, seq, "trial-denied", moment)]
        return [*effects, *self._serving.grant(lease, seq, moment)]

    def open(self, lease: Lease, moment: Moment) -> list[MarketEffect]:
        """The first payment or trial: from now on the lease is on disk."""
        if lease.phase != Phase.QUOTED:
            return []
        lease.phase = Phase.OPEN
        if lease.quote.free_bytes and self._stall.trials.may_try(lease.buyer, moment.wall):
            lease.free_bytes, lease.tried_at = lease.quote.free_bytes, int(moment.wall)
        return [*self._stall.keep(lease, moment.wall), *self._stall.count_trial(lease)]

    def _take(self, lease: Lease, money: Money, moment: Moment) -> list[MarketEffect]:
        effects = [*self.open(lease, moment), *self._stall.till.take(money)]
        if money.mode.is_locked:
            return [*effects, *self._credit(lease, money, money.msat, moment)]
        lease.remember(money.seq, Payment(money.id, "pending", 0, money.mint))
        kept = self._stall.keep(lease, moment.wall)
        return [*effects, *kept, *self._stall.till.swap(money, moment.now)]

    def _credit(self, lease: Lease, money: Money, msat: int, moment: Moment) -> list[MarketEffect]:
        paid = Payment(money.id, "credited", msat, money.mint)
        effects = self.credit(lease, money.seq, paid, moment)
        if money.mode is PayMode.PLAIN:
            effects += self._stall.till.drop(money)
        return effects

    def credit(self, lease: Lease, seq: int, paid: Payment, moment: Moment) -> list[MarketEffect]:
        """The money is ours: write it down, then serve."""
        _book(lease, seq, paid)
        effects = self._stall.keep(lease, moment.wall)
        if lease.phase != Phase.OPEN:
            return [*effects, *self._ending.advance(lease, moment)]
        effects += self._serving.credited(lease, moment)
        return [*effects, *self._serving.grant(lease, seq, moment)]

    def redeemed(self, ref: str, arrived_sat: int, moment: Moment) -> list[MarketEffect]:
        """Money arrived in the wallet: that of a lease, or many redeemed at once."""
        if self._stall.till.is_batch(ref):
            arrived = self._stall.till.redeemed(ref, arrived_sat, moment.wall)
            return [*arrived, *self._stall.till.redeem(moment)]
        money = self._stall.till.pending(ref)
        if money is None or not self._stall.errands.finish(ref):
            return []
        return self._credit(self._stall.leases[money.lease_id], money, 1000 * arrived_sat, moment)

    def failed(self, failed: PaymentFailed, moment: Moment) -> list[MarketEffect]:
        """The wallet did not get it: later perhaps, or never."""
        ref, stall = failed.ref, self._stall
        if ref not in stall.errands:
            return []
        money = stall.till.pending(ref)
        if failed.may_retry:
            stall.errands.retry(ref, moment.now)
            if money is None:
                return []
            lease = stall.leases[money.lease_id]
            return [stall.notice(lease, "warning", "payment-pending", moment.wall, seq=money.seq)]
        if stall.till.is_batch(ref):
            return stall.till.failed(ref, failed.text, moment)
        stall.errands.finish(ref)
        return [] if money is None else self._lost(money, failed, moment)

    def _lost(self, money: Money, failed: PaymentFailed, moment: Moment) -> list[MarketEffect]:
        """A plain token is none: nothing was consumed, and nothing is served for it."""
        lease = self._stall.leases[money.lease_id]
        spent = failed.code == "11001"
        code = "payment-error-token-spent" if spent else "payment-error-invalid-token"
        lease.remember(money.seq, Payment(money.id, code, 0, money.mint))
        kept = [*self._stall.keep(lease, moment.wall), *self._stall.till.drop(money)]
        told = self.refused(lease, money.seq, code, moment)
        return [*kept, *told, *self._ending.advance(lease, moment)]

    def adopt(self, money: Money, moment: Moment) -> list[MarketEffect]:
        """A payment was written down, its lease perhaps not any more: a crash came between."""
        lease = self._stall.leases.get(money.lease_id)
        if lease is None and money.state == "pending":
            # No crash leaves this: the lease is written first. It stays on disk, for a person.
            self._stall.errands.finish(money.ref)
            self._stall.counters["payment without a lease"] += 1
        if lease is None or money.state in ("done", "lost"):
            return []
        known = lease.payments.get(money.seq)
        if known is not None and known.state == "pending":
            return []
        if known is not None and known.id == money.id:
            # Settled, and only its record was left.
            return [] if money.mode.is_locked else self._settled(money)
        if money.seq < lease.stale_below:
            return []
        if money.mode.is_locked:
            _book(lease, money.seq, Payment(money.id, "credited", money.msat, money.mint))
        else:
            lease.remember(money.seq, Payment(money.id, "pending", 0, money.mint))
        return self._stall.keep(lease, moment.wall)

    def adopt_channels(self, lease: Lease, moment: Moment) -> list[MarketEffect]:
        """The same for updates of the lease's channels."""
        missed = self._stall.channels.uncredited(lease)
        for seq, paid in missed:
            _book(lease, seq, paid)
        return list(self._stall.keep(lease, moment.wall)) if missed else []

    def _settled(self, money: Money) -> list[MarketEffect]:
        self._stall.errands.finish(money.ref)
        return list(self._stall.till.drop(money))


def _book(lease: Lease, seq: int, paid: Payment) -> None:
    lease.paid_msat += paid.msat
    lease.paid_by[paid.mint] = lease.paid_by.get(paid.mint, 0) + paid.msat
    lease.remember(seq, paid)
