"""Leases in use: what was counted, what is told of it, who is suspended and who goes on."""

from __future__ import annotations

from nostrvpn.endpoint import IPAddress
from nostrvpn.machine import Moment
from nostrvpn.market.billing import LeaseState, is_low
from nostrvpn.market.effects import Counted, Counters, MarketEffect, ServiceChanged
from nostrvpn.market.lease import Lease
from nostrvpn.market.messages import Grant, Low
from nostrvpn.market.stall import Stall
from nostrvpn.market.trials import network_of

__all__ = ["Serving"]

# A bill is told so often (seconds), and with each change of state; a pause more often: a buyer that did
# not hear of it sees a dead tunnel, and leaves.
USAGE_S, PAUSED_S = 60, 20
# Counters are written down at least so often while they grow: what a dead machine takes along.
KEEP_S, KEEP_BYTES = 30, 8 << 20
# No more time than this is charged for a gap between two readings: the kernel stops by itself then.
LONGEST_GAP_S = 60


class Serving:
    """What happens to a lease between its first grant and its end."""

    def __init__(self, stall: Stall) -> None:
        self._stall = stall

    def grant(self, lease: Lease, seq: int, moment: Moment) -> list[MarketEffect]:
        """Answer a payment that is credited, or a trial: activate if that was not done yet.

        If the service cannot begin, the credit stays, and the same payment sent again asks again.
        """
        effects = self._activate(lease, moment)
        if lease.access is None:
            self._stall.counters["grant-failed"] += 1
            return [
                *effects,
                self._stall.notice(lease, "warning", "grant-failed", moment.wall, seq=seq),
            ]
        paid = lease.payments.get(seq)
        message = Grant(
            lease_id=lease.id,
            seq=seq,
            payment=paid.id if paid else "",
            paid_msat=lease.paid_msat,
            free_bytes=lease.free_bytes,
            access=lease.access,
        )
        answer = self._stall.tell(lease, message, moment.wall, stored=True)
        # It may not reach.
        paused = self._stall.usage(lease, moment) if lease.suspended_at else []
        return [*effects, answer, *paused]

    def _activate(self, lease: Lease, moment: Moment) -> list[MarketEffect]:
        if lease.access is not None:
            return []
        access = self._stall.service.activate(
            lease.id, lease.request.wg_pub, lease.allowance, moment.entropy
        )
        if access is None:
            return []
        lease.access, lease.granted_at = dict(access), int(moment.wall)
        return [*self._stall.keep(lease, moment.wall), ServiceChanged()]

    def credited(self, lease: Lease, moment: Moment) -> list[MarketEffect]:
        """After a payment was written down: serve further, and again if it was suspended."""
        if lease.access is None or lease.state is LeaseState.SUSPENDED:
            return []  # it did not reach
        lease.is_low = False
        self._stall.service.resume(lease.id, lease.allowance)
        if not lease.suspended_at:
            return [ServiceChanged()]
        lease.suspended_at, lease.counted_at = 0, None
        resumed = self._stall.notice(lease, "info", "resumed", moment.wall)
        # The bill is numbered: a word of the suspension that comes late does not count after it.
        told = [resumed, *self._stall.usage(lease, moment)]
        return [*self._stall.keep(lease, moment.wall), ServiceChanged(), *told]

    def count(self, counted: Counted, moment: Moment) -> list[MarketEffect]:
        """Take the counters of all leases."""
        effects: list[MarketEffect] = []
        for lease in self._stall.leases.values():
            if lease.is_live:
                found = self._stall.service.meter(lease.id, counted)
                if found is not None:
                    effects += self._read(lease, found, counted.epoch, moment)
                effects += self._judge(lease, moment)
        return effects

    def _read(
        self, lease: Lease, found: Counters, epoch: str, moment: Moment
    ) -> list[MarketEffect]:
        effects: list[MarketEffect] = []
        grown = lease.meter.read(found.rx, found.tx, epoch)
        if lease.counted_at is not None:
            gap = moment.now - lease.counted_at
            lease.recent_bps = int(grown / gap) if gap > 0 else lease.recent_bps
            if lease.started_at and lease.paid_msat and not lease.suspended_at:
                lease.ms += int(1000 * min(gap, LONGEST_GAP_S))
        lease.counted_at = moment.now
        if found.last_handshake is not None:
            lease.seen_at = found.last_handshake
            if not lease.started_at:
                lease.started_at = int(moment.wall)
                effects += self._stall.keep(lease, moment.wall)
        if found.source is not None and lease.free_bytes and not (lease.paid_msat or lease.network):
            effects += self._tried_from(lease, found.source, moment)
        return effects

    def _tried_from(self, lease: Lease, source: IPAddress, moment: Moment) -> list[MarketEffect]:
        stall = self._stall
        lease.network = network_of(source)
        effects: list[MarketEffect] = []
        if not stall.trials.may_go_on(lease.network, lease.id, moment.wall):
            # What was used until here stays free; the trial is over, and is not this network's.
            lease.free_bytes, lease.tried_at = min(lease.free_bytes, lease.meter.total), 0
            stall.counters["trial of a network that had its share"] += 1
            stall.service.resume(lease.id, lease.allowance)
            told = stall.notice(lease, "warning", "trial-denied", moment.wall)
            effects = [ServiceChanged(), told]
        return [*stall.keep(lease, moment.wall), *stall.count_trial(lease), *effects]

    def _judge(self, lease: Lease, moment: Moment) -> list[MarketEffect]:
        stall, bill = self._stall, lease.bill
        if lease.state is LeaseState.SUSPENDED and not lease.suspended_at:
            lease.suspended_at = int(moment.wall)
            stall.service.suspend(lease.id)
            stall.counters["suspended"] += 1
            effects = [*stall.keep(lease, moment.wall), *stall.keep_meter(lease, moment.now)]
            told = stall.notice(lease, "warning", "suspended", moment.wall)
            return [*effects, ServiceChanged(), told, *stall.usage(lease, moment)]
        if lease.paid_msat and not lease.is_low and is_low(bill, lease.recent_bps):
            lease.is_low = True
            low = Low(lease_id=lease.id, remaining_msat=bill.remaining_msat)
            return [*stall.usage(lease, moment), stall.tell(lease, low, moment.wall)]
        every = PAUSED_S if lease.suspended_at else USAGE_S
        if lease.started_at and moment.now - lease.told_at >= every:
            return stall.usage(lease, moment)
        unkept = lease.meter.total - lease.kept_bytes
        has_grown = unkept or lease.ms != lease.kept_ms
        if unkept >= KEEP_BYTES or (has_grown and moment.now - lease.kept_at >= KEEP_S):
            return stall.keep_meter(lease, moment.now)
        return []
