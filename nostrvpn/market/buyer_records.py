"""What a buyer writes down, in which order, and how it is read again.

What was spent comes first, then the leases, then the books: whatever was written when the process ends,
nothing is spent that is not counted, and the books follow from the leases.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict

import msgspec

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment
from nostrvpn.market.attest import receipt_id
from nostrvpn.market.bought_lease import BOUGHT, BOUGHT_METER, BoughtLease
from nostrvpn.market.effects import Keep
from nostrvpn.market.ledger import Ledger
from nostrvpn.market.paying import Pocket, settle
from nostrvpn.market.trust import History
from nostrvpn.market.wish import Wish

__all__ = ["BUYER", "HISTORY", "LEDGER", "Records", "history_of", "row_of"]

# Spaces of records: the wish, what was spent, the next number; ended leases; the books.
BUYER, HISTORY, LEDGER = "buyer", "bought_history", "bought_ledger"
# A meter is stored so often (seconds); what is lost of it, the counters themselves still know.
METER_S = 30


class Records:
    """What is stored, and the books that follow from it. ``unread``: keys of leases that are damaged."""

    def __init__(self) -> None:
        self.ledger = Ledger(LEDGER)
        self.next_number = 0
        self.unread: list[str] = []
        self._stored: dict[tuple[str, str], bytes] = {}
        self._seen: dict[str, bytes] = {}  # whole leases: most do not change most of the time
        self._meter_at: dict[str, float] = {}

    def read(
        self, kept: Mapping[str, Mapping[str, object]], pocket: Pocket, moment: Moment
    ) -> list[BoughtLease]:
        """Take what was kept; PeerMisbehaved "bad_record" if more than leases is damaged."""
        own, meters = kept.get(BUYER, {}), kept.get(BOUGHT_METER, {})
        number = own.get("next", 0)
        if not isinstance(number, int):
            raise PeerMisbehaved("bad_record", "the next number is none")
        self.next_number = number
        wish = own.get("wish")
        pocket.wish = Wish.from_json(wish) if wish is not None else None
        self.ledger.restore(kept.get(LEDGER, {}))
        leases = []
        for key, value in kept.get(BOUGHT, {}).items():
            try:
                leases.append(BoughtLease.from_json(value, meters.get(key)))
            except PeerMisbehaved:
                self.unread.append(key)  # it stays as it is, for a person or another version
        # A number is stored before the lease that has it, but for damage.
        self.next_number = max([number, *(lease.number + 1 for lease in leases)])
        known = {money.ref for lease in leases for money in lease.money}
        for ref in pocket.spending.refs():
            if ref not in known:  # set aside, and then the process ended before it asked for it
                pocket.spending.put_back(ref, moment)
        return leases

    def keep(
        self, leases: Iterable[BoughtLease], pocket: Pocket, moment: Moment
    ) -> tuple[list[Keep], list[str]]:
        """Return what is to be written, and the keys of leases that are settled and forgotten."""
        leases = list(leases)
        for lease in leases:
            settle(lease, pocket, moment)
        own = {
            "wish": pocket.wish.to_json() if pocket.wish is not None else None,
            "next": self.next_number,
        }
        changed: list[Keep] = []
        for name, value in own.items():
            changed += self._changed(BUYER, name, value)
        spending = pocket.spending.record(moment)
        # Its clock goes on by itself: only a change of sums is worth a write.
        if self._changed("", "sums", [spending["spent"], spending["aside"]]):
            changed.append(Keep(BUYER, "spending", spending))
        settled: list[str] = []
        books: list[Keep] = []
        for lease in leases:
            text = msgspec.json.encode(lease)
            if self._seen.get(lease.key) == text:
                continue
            self._seen[lease.key] = text
            lines = [keep for entry in lease.entries(moment) for keep in self.ledger.post(entry)]
            books += lines
            if lease.is_final:
                settled.append(lease.key)
                books += self._forget(lease, moment)
            else:
                changed += self._changed(BOUGHT, lease.key, lease.to_json())
                changed += self._metered(lease, moment)
        return [*changed, *books], settled

    def _forget(self, lease: BoughtLease, moment: Moment) -> list[Keep]:
        """A lease is settled: what is left of it is a line of history."""
        gone = [Keep(BOUGHT, lease.key, None), Keep(BOUGHT_METER, lease.key, None)]
        if lease.quote is None:
            return gone  # nobody promised anything
        told = row_of(lease, int(moment.wall))
        return [Keep(HISTORY, lease.key, told), *gone]

    def _metered(self, lease: BoughtLease, moment: Moment) -> list[Keep]:
        if moment.now < self._meter_at.get(lease.key, float("-inf")):
            return []
        changed = self._changed(BOUGHT_METER, lease.key, lease.meter_json())
        if changed:
            self._meter_at[lease.key] = moment.now + METER_S
        return changed

    def _changed(self, space: str, key: str, value: object) -> list[Keep]:
        text = msgspec.json.encode(value)
        if self._stored.get((space, key)) == text:
            return []
        self._stored[space, key] = text
        return [Keep(space, key, value)]


def history_of(lease: BoughtLease, at: int) -> History:
    """Return what is remembered of the seller; ``at``: Unix time, for a lease that did not end."""
    return History(
        lease.lease_id,
        lease.seller,
        lease.ended_at or at,
        lease.counted().total,
        1000 * lease.shown_sat,
        lease.outcome,
        lease.offer.address,
        receipt_id(lease.receipt, lease.seller) if lease.receipt is not None else "",
    )


def row_of(lease: BoughtLease, at: int) -> dict[str, object]:
    """Return a lease as ``market sessions`` shows it: :func:`history_of`, how it ended, and its bill.

    ``due_msat`` and ``credited_msat`` (what was shown, less the mint's fee) are the receipt's once it
    is there, our own count before; ``refund_sat`` came back, ``coming_sat`` is locked yet.
    """
    receipt = lease.receipt
    own = lease.bill(lease.counted().total).due_msat if lease.quote is not None else 0
    return {
        **asdict(history_of(lease, at)),
        "outcome": lease.outcome.value,
        "label": lease.label,
        "mode": lease.mode.value,
        "due_msat": own if receipt is None else receipt.due_msat,
        "credited_msat": lease.paid_msat if receipt is None else receipt.paid_msat,
        "refund_sat": 0 if receipt is None else receipt.refund_sat,
        "coming_sat": sum(p.sat for p in lease.parcels if not p.is_settled),
    }
