"""The buyer's own count of what it was served, and what it thinks of the seller's."""

from __future__ import annotations

from nostrvpn.machine import Moment
from nostrvpn.market.billing import (
    GRACE_MS,
    LEEWAY_BYTES,
    OVER_PERCENT,
    Bill,
    Meter,
    billable_bytes,
    is_fair,
)
from nostrvpn.market.bought_lease import BoughtLease
from nostrvpn.market.ceilings import DAY
from nostrvpn.market.effects import Counted, Counters
from nostrvpn.market.messages import Receipt, Usage

__all__ = ["HANDSHAKE_AGE_S", "OwnCount"]

# WireGuard makes a new handshake every two minutes while anything is sent; the link sends keepalives.
HANDSHAKE_AGE_S = 200
# A bill may be younger than our last reading, and than one that is on its way already.
READINGS = 2


class OwnCount:
    """What our WireGuard counted for a lease; its totals are kept in the lease's record.

    Time counts only while the tunnel is alive, so a meter that runs while nothing is served is seen.
    """

    def __init__(self, lease: BoughtLease) -> None:
        self.lease = lease
        self.meter: Meter = lease.counted()
        self.handshake: int | None = None
        self.recent_bps = 0  # bytes a second, of the last reading
        self._read_at: float | None = None
        self._doubted: tuple[Usage, int] | None = None  # a bill, and readings until it is judged
        self.overcharge: str | None = None
        self.agreed_msat = 0  # the highest bill that agreed with our count

    @property
    def used(self) -> int:
        """Bytes of both directions."""
        return self.meter.total

    @property
    def bill(self) -> Bill:
        """What we think is owed."""
        return self.lease.bill(self.used)

    @property
    def served_msat(self) -> int:
        """What that costs which came out of the tunnel: into it one can send what goes nowhere."""
        quote, free = self.lease.quote, self.lease.free_bytes
        if quote is None:
            return 0
        return quote.price.due(billable_bytes(self.meter.rx, free), 0)

    def is_alive(self, moment: Moment) -> bool:
        """Whether there is a handshake, and not too old a one."""
        return self.handshake is not None and moment.wall - self.handshake < HANDSHAKE_AGE_S

    def read(self, counted: Counted, moment: Moment) -> Counters | None:
        """Take a reading of the lease's device; return the seller's peer, None without one."""
        access = self.lease.exit_access
        counters = counted.by_key.get(access.key) if access is not None else None
        if counters is None:
            return None
        grown = self.meter.read(counters.rx, counters.tx, counted.epoch)
        self.handshake = counters.last_handshake
        if self._read_at is not None:
            elapsed = moment.now - self._read_at
        else:  # the tunnel lived on while we did not
            gap = moment.wall - self.lease.counted_at if self.lease.counted_at else 0
            elapsed = float(min(max(gap, 0), DAY))
        if elapsed > 0:
            self.recent_bps = int(grown / elapsed)
        if self.is_alive(moment):
            if not self.lease.started_at:
                self.lease.started_at = int(moment.wall)
            self.lease.ms += int(1000 * elapsed)
        self._read_at = moment.now
        if self._doubted is not None:
            usage, left = self._doubted
            self._doubted = (usage, left - 1) if left > 1 else None
            self.overcharge = self.refuse(usage) if left == 1 else None
        self.lease.meter = self.meter.to_json()
        self.lease.counted_at = int(moment.wall)
        return counters

    @property
    def is_doubting(self) -> bool:
        """Whether a bill is above our count, and more readings are waited for."""
        return self._doubted is not None

    def agrees(self, usage: Usage) -> bool:
        """Whether a bill agrees with our count. One that does not is judged by the readings to come.

        Then ``overcharge`` says why it is not to be paid, if it still does not.
        """
        if self.refuse(usage) is None:
            self._doubted = None
            self.agreed_msat = max(self.agreed_msat, usage.due_msat)
            return True
        self._doubted = self._doubted or (usage, READINGS)
        return False

    def refuse(self, statement: Usage | Receipt, seconds: int = 0) -> str | None:
        """Return why a bill is not to be paid, None if it agrees with our count.

        ``seconds``: how much younger than our last reading it may be.
        """
        quote = self.lease.quote
        assert quote is not None
        used = self.used + seconds * self.recent_bps
        ours = (billable_bytes(used, self.lease.free_bytes), self.lease.ms + 1000 * seconds)
        if not is_fair(quote.price, (statement.billable, statement.ms), ours):
            theirs = f"{statement.billable} bytes in {statement.ms} ms"
            return f"it counts {theirs}, we {ours[0]} in {ours[1]}"
        if statement.due_msat > quote.price.due(statement.billable, statement.ms):
            return "it asks for more than its own count costs"
        return None

    def needs_more(self, is_told: bool) -> bool:
        """Whether the next payment is due: little is left by our count.

        If the seller says so (``is_told``), by the count that we would still call fair, and no further:
        who cries "low" all the time gets no more than the tolerance beyond what he served.
        """
        bill = self.bill
        used, ms = bill.used_bytes, bill.ms
        if is_told:
            hundred = 100 + OVER_PERCENT
            used, ms = used * hundred // 100 + LEEWAY_BYTES, ms * hundred // 100 + GRACE_MS
        due = bill.price.due(billable_bytes(used, bill.free_bytes), ms)
        # Half of the first step at the latest: what was paid before is served before more is paid.
        two_steps = min(2 * bill.price.step_msat, bill.paid_msat // 2)
        soon = bill.price.due(10 * self.recent_bps, 10_000)
        return bill.paid_msat - due < max(two_steps, soon)
