"""What was sold, as rows: sessions from the records of leases, earnings from the books; CSV of both."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from nostrvpn.market.lease import Lease, Phase
from nostrvpn.market.ledger import Entry

__all__ = ["Earnings", "Session", "csv_text", "earnings", "sessions"]


@dataclass(frozen=True, slots=True)
class Session:
    """One lease: ``buyer`` is a hash of its key; times are Unix seconds, 0 for not yet."""

    lease: str
    buyer: str
    offer: str
    state: str
    mode: str
    granted_at: int
    started_at: int
    ended_at: int
    rx: int
    tx: int
    billable: int
    ms: int
    due_msat: int
    paid_msat: int
    refund_sat: int
    refund: str
    reason: str


@dataclass(frozen=True, slots=True)
class Earnings:
    """A day (UTC, "2026-11-21") in msat: ``received`` of buyers, ``earned`` by service, ``unused`` that
    stayed, given back as ``refunds``, ``fees`` of mints, ``lost`` to mints; ``sessions`` that ended.
    """

    day: str
    sessions: int
    received: int
    earned: int
    unused: int
    refunds: int
    fees: int
    lost: int


def sessions(leases: Iterable[Lease], past: Iterable[Mapping[str, Any]]) -> tuple[Session, ...]:
    """Return a row for each lease that was granted, the newest first.

    ``leases``: ``Seller.leases``; ``past``: the stored values of the space ``SESSIONS``. What is known
    of both is taken from the lease.
    """
    rows = {str(row["lease"]): row for row in past}
    rows |= {x.id: x.row() for x in leases if x.phase != Phase.QUOTED and x.granted_at}
    names = [field.name for field in fields(Session)]
    found = [Session(**{name: row[name] for name in names}) for row in rows.values()]
    return tuple(sorted(found, key=lambda row: (-row.granted_at, row.lease)))


def earnings(entries: Iterable[Entry]) -> tuple[Earnings, ...]:
    """Return a row for each day on which something was booked, the newest first."""
    days: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for entry in entries:
        day = days[datetime.fromtimestamp(entry.at, UTC).date().isoformat()]
        kind = entry.ref.partition(":")[0]
        if kind == "paid":
            day["received"] += entry.msat
        elif kind in ("earned", "unused"):
            day[kind] += entry.msat
            day["sessions"] += kind == "earned"
        elif kind == "refund":
            day["refunds"] += entry.msat
        for account in ("fees", "lost"):
            day[account] += entry.msat * ((entry.debit == account) - (entry.credit == account))
    names = [field.name for field in fields(Earnings) if field.name != "day"]
    rows = [Earnings(day, **{name: sums[name] for name in names}) for day, sums in days.items()]
    return tuple(sorted(rows, key=lambda row: row.day, reverse=True))


def csv_text(rows: Sequence[Session] | Sequence[Earnings]) -> str:
    """Return rows as CSV with a line of names (RFC 4180); nothing for no rows."""
    out = io.StringIO()
    if rows:
        names = [field.name for field in fields(rows[0])]
        writer = csv.writer(out)
        writer.writerow(names)
        writer.writerows([getattr(row, name) for name in names] for row in rows)
    return out.getvalue()
