"""What was sold and bought, as rows and CSV: sessions of leases' records, earnings of the books."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, TypeVar

from nostrvpn.market.lease import Lease, Phase
from nostrvpn.market.ledger import Entry

__all__ = [
    "Earnings",
    "Session",
    "Statement",
    "csv_text",
    "days_in_order",
    "earnings",
    "sessions",
    "statements",
]


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
    stayed, given back as ``refunds``, ``fees`` of mints, ``lost`` to mints; ``sessions`` that ended, and
    their ``bytes``.
    """

    day: str
    sessions: int
    received: int
    earned: int
    unused: int
    refunds: int
    fees: int
    lost: int
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Statement:
    """One lease, ``sold`` or ``bought``, of or to ``other`` (a hash of a buyer's key, a seller's key).

    ``at``: Unix time of its end, or of its grant while it runs.
    """

    side: str
    lease: str
    other: str
    offer: str
    state: str
    mode: str
    at: int
    bytes: int
    due_msat: int
    paid_msat: int
    refund_sat: int
    reason: str


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


_GIVEN = tuple(field.name for field in fields(Statement) if field.name != "side")
# What a Statement's fields are called in either side's rows; what is not here has its own name.
_SOLD = {"other": "buyer", "at": "granted_at", "bytes": "billable"}
_BOUGHT = {"lease": "lease_id", "other": "seller", "paid_msat": "credited_msat", "reason": "label"}


def statements(
    sold: Iterable[Mapping[str, Any]], bought: Iterable[Mapping[str, Any]]
) -> tuple[Statement, ...]:
    """Return rows for both sides of what ``market_sessions`` answers, the newest first."""
    rows = [_statement("sold", row, _SOLD) for row in sold]
    rows += [_statement("bought", row, _BOUGHT) for row in bought]
    return tuple(sorted(rows, key=lambda row: (-row.at, row.side, row.lease)))


def _statement(side: str, row: Mapping[str, Any], names: Mapping[str, str]) -> Statement:
    given = {name: row[names.get(name, name)] for name in _GIVEN}
    return Statement(side, **given | {"at": row.get("ended_at") or given["at"]})


def earnings(entries: Iterable[Entry], ended: Iterable[Session] = ()) -> tuple[Earnings, ...]:
    """Return a row for each day on which something was booked, the newest first.

    ``ended``: sessions, of which those that ended say what was used.
    """
    days: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for entry in entries:
        day = days[_day(entry.at)]
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
    for session in ended:
        if session.ended_at:
            days[_day(session.ended_at)]["bytes"] += session.billable
    names = [field.name for field in fields(Earnings) if field.name != "day"]
    rows = [Earnings(day, **{name: sums[name] for name in names}) for day, sums in days.items()]
    return tuple(sorted(rows, key=lambda row: row.day, reverse=True))


def days_in_order(rows: Iterable[Earnings], today: int, count: int) -> tuple[Earnings, ...]:
    """Return ``count`` days up to that of ``today`` (Unix time), the oldest first, empty ones too."""
    known = {row.day: row for row in rows}
    names = [_day(today - 86_400 * back) for back in reversed(range(count))]
    return tuple(known.get(day) or Earnings(day, 0, 0, 0, 0, 0, 0, 0) for day in names)


_Row = TypeVar("_Row", Session, Earnings, Statement)


def csv_text(kind: type[_Row], rows: Sequence[_Row]) -> str:
    """Return rows as CSV (RFC 4180) below a line of names, which is there without rows too."""
    out = io.StringIO()
    names = [field.name for field in fields(kind)]
    writer = csv.writer(out)
    writer.writerow(names)
    writer.writerows([_cell(getattr(row, name)) for name in names] for row in rows)
    return out.getvalue()


def _cell(value: object) -> object:
    # Strangers chose some of the words, and spreadsheets take a word that begins so for a formula.
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value


def _day(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).date().isoformat()
