"""When this host sells, and how much each buyer may have at a time: the shell around both decisions."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.exits.limits import ExitLimits, Ledger, fair_rate, next_month
from nostrvpn.io.store import Record, Store
from nostrvpn.machine import Moment
from nostrvpn.market.lease import Lease
from nostrvpn.market.opening import Opening, Standing
from nostrvpn.market.sale import Sale

__all__ = ["Hours"]

_KEY: Final = "month"
# The month's account is written so often at most, and after so many bytes: what a crash may lose.
KEEP_S, KEEP_BYTES = 60.0, 16_000_000
# How often shares are weighed anew, as those of an exit's members are.
SHARE_S: Final = 10.0

_log = logging.getLogger("nostrvpn.market")


class Hours:
    """``rate``: bytes a second each way of each lease, 0 for any; ``why``: nobody is taken, or ""."""

    def __init__(self, store: Store, space: str) -> None:
        self._store, self._space = store, space
        self._opening = Opening(_account(store.get(space, _KEY)))
        self._kept = self._opening.account.used, float("-inf")
        self._shared_at = float("-inf")
        self.rate = 0

    @property
    def account(self) -> Ledger:
        """What was served in the month."""
        return self._opening.account

    @property
    def standing(self) -> Standing:
        """Whether strangers are served, as of the last look."""
        return self._opening.standing

    @property
    def why(self) -> str:
        """Why it ends or has ended, in words, with when it goes on."""
        why = self._opening.why
        if self._opening.why.startswith("the month"):
            return (
                f"{why}; it goes on {time.strftime('%d %B', time.gmtime(next_month(time.time())))}"
            )
        return why

    def begin(self, leases: Iterable[Lease]) -> None:
        """Leases of an earlier run are in the account as far as they were counted."""
        self._opening.begin({lease.id: lease.meter.total for lease in leases})

    def look(
        self, sale: Sale | None, leases: Iterable[Lease], speed: int, moment: Moment
    ) -> Standing:
        """See how it stands now; ``speed``: of the uplink, bytes a second."""
        found = list(leases)
        totals = {lease.id: lease.meter.total for lease in found}
        used = self._opening.count(totals, moment.now, moment.wall)
        self._keep(moment.now)
        limits = sale.limits if sale is not None else ExitLimits()
        if moment.now - self._shared_at >= SHARE_S:
            self._shared_at = moment.now
            # Where the owner says nothing of all together, it is what the line can carry.
            all_together = replace(limits, bandwidth=limits.bandwidth or speed)
            taking = (lease.recent_bps for lease in found if lease.is_live)
            self.rate = fair_rate(all_together, taking)
        at = time.localtime(moment.wall)
        day_s = 3600 * at.tm_hour + 60 * at.tm_min + at.tm_sec
        quiet = sale.quiet if sale is not None else None
        before = self._opening.standing
        standing = self._opening.look(limits.budget, quiet, used, moment.now, day_s)
        if standing is not before:
            _log.info("selling is %s%s", standing.value, f": {self.why}" if self.why else "")
        return standing

    def _keep(self, now: float) -> None:
        used, at = self._kept
        grown = abs(self.account.used - used)
        if grown >= KEEP_BYTES or (grown and now - at >= KEEP_S):
            self.keep(now)

    def keep(self, now: float) -> None:
        """Write the month's account down."""
        self._kept = self.account.used, now
        self._store.put([Record(self._space, _KEY, self.account.to_json())])


def _account(stored: object) -> Ledger:
    if stored is None:
        return Ledger()
    try:
        return Ledger.from_json(stored)
    except PeerMisbehaved as exc:
        _log.error("what was sold this month is not known: %s", exc)
        return Ledger()
