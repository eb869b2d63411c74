"""What an exit gives its guests at most, and the account of what they had. Amounts are bytes.

The packet filter enforces; here is decided which rate each address may have (:func:`fair_rate`), and
counted what was used in a calendar month (UTC), so that a restart does not begin it anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import PeerMisbehaved

__all__ = [
    "DEFAULT_CONNECTIONS",
    "ExitLimits",
    "Ledger",
    "Volume",
    "fair_rate",
    "month_of",
    "next_month",
]

# A page opens some dozens of connections at once, a scan thousands.
DEFAULT_CONNECTIONS = 100
_MAX = 1 << 60
# Nobody's share is so small that nothing works; with very many guests the total holds all the same.
_LEAST_SHARE = 32_000
# Of a budget: some dozens of packets.
_LAST = 65_536
# Who had nine tenths of a share would have taken more.
_HUNGRY = 0.9


@dataclass(frozen=True, slots=True)
class ExitLimits:
    """0 is no limit. ``client_rate``: of each address, each way, bytes a second. ``bandwidth``: of all
    together, each way; guests share it fairly. ``connections``: new ones of each address in a second.
    ``budget``: of all in a calendar month (UTC), both ways together, bytes."""

    client_rate: int = 0
    bandwidth: int = 0
    connections: int = DEFAULT_CONNECTIONS
    budget: int = 0

    def to_json(self) -> dict[str, int]:
        """Return what is stored."""
        return {
            "client_rate": self.client_rate,
            "bandwidth": self.bandwidth,
            "connections": self.connections,
            "budget": self.budget,
        }

    @classmethod
    def from_json(cls, stored: object) -> ExitLimits:
        """Rebuild from :meth:`to_json`; PeerMisbehaved if the record is damaged."""
        values: Mapping[str, Any] = stored if isinstance(stored, Mapping) else {}
        given = [values.get(name) for name in cls.__slots__]
        if not all(_is_amount(value) for value in given):
            raise PeerMisbehaved("bad_record", "not an exit's limits")
        return cls(*(int(value or 0) for value in given))


@dataclass(frozen=True, slots=True)
class Volume:
    """Bytes from a guest (``up``) and to it (``down``)."""

    up: int = 0
    down: int = 0

    @property
    def total(self) -> int:
        """Both together."""
        return self.up + self.down

    def __add__(self, other: Volume) -> Volume:
        return Volume(self.up + other.up, self.down + other.down)


@dataclass(slots=True)
class Ledger:
    """What guests had. ``used``: in ``month``, by all, both ways; the rest is of this run, by address:
    ``volumes`` altogether, ``rates`` in bytes a second between the last two readings."""

    month: str = ""
    used: int = 0
    volumes: dict[IPAddress, Volume] = field(default_factory=dict)
    rates: dict[IPAddress, Volume] = field(default_factory=dict)
    _seen: Mapping[IPAddress, Volume] = field(default_factory=dict)
    _read_at: float | None = None

    def tell_time(self, wall: float) -> bool:
        """Begin a new month if it is one; return whether it is. A clock set back changes nothing."""
        month = month_of(wall)
        if month <= self.month:
            return False
        self.month, self.used = month, 0
        return True

    def take(self, reading: Mapping[IPAddress, Volume], now: float, wall: float) -> int:
        """Take up the counters as they stand; return how much more that is than last time, in bytes.

        A counter that is less than it was began anew. ``now``: Moment.now's seconds.
        """
        self.tell_time(wall)
        elapsed = None if self._read_at is None else max(now - self._read_at, 0.001)
        self.rates, more = {}, 0
        for ip, volume in reading.items():
            before = self._seen.get(ip, Volume())
            since = Volume(_grown(before.up, volume.up), _grown(before.down, volume.down))
            if not since.total:
                continue
            more += since.total
            self.volumes[ip] = self.volumes.get(ip, Volume()) + since
            if elapsed is not None:
                self.rates[ip] = Volume(int(since.up / elapsed), int(since.down / elapsed))
        self._seen, self._read_at = dict(reading), now
        self.used += more
        return more

    def is_spent(self, budget: int) -> bool:
        """Whether a budget is used up, but for what is too little to be worth going on.

        The kernel counts packets that it drops too, so the last bytes are never seen as used.
        """
        return budget > 0 and self.used >= budget - min(_LAST, budget // 16)

    def to_json(self) -> dict[str, object]:
        """Return what is stored."""
        return {"month": self.month, "used": self.used}

    @classmethod
    def from_json(cls, stored: object) -> Ledger:
        """Rebuild from :meth:`to_json`; PeerMisbehaved if the record is damaged."""
        values: Mapping[str, Any] = stored if isinstance(stored, Mapping) else {}
        month, used = values.get("month"), values.get("used")
        if not isinstance(month, str) or len(month) > len("2026-01") or not _is_amount(used):
            raise PeerMisbehaved("bad_record", "not an exit's account")
        return cls(month, int(used or 0))


def fair_rate(limits: ExitLimits, rates: Iterable[int]) -> int:
    """Return the most that one address may have each way, bytes a second; 0 for no limit.

    ``rates``: what each had lately, in the direction of which it had more. Of a stated bandwidth, who
    takes less than a share leaves the rest to the others. Who comes next has its share after a reading.
    """
    if not limits.bandwidth:
        return limits.client_rate
    left, share = limits.bandwidth, limits.bandwidth
    taking = sorted(rate for rate in rates if rate > 0)
    for index, rate in enumerate(taking):
        share = left // (len(taking) - index)
        if rate >= share * _HUNGRY:
            break
        left -= rate
        share = left
    # In steps of a twelfth or so of its size: not each small change is a new ruleset.
    share = max(_stepped(share), min(_LEAST_SHARE, limits.bandwidth))
    return min(share, limits.client_rate) if limits.client_rate else share


def month_of(wall: float) -> str:
    """Return the calendar month (UTC) of a Unix time, as ``2026-01``."""
    return f"{datetime.fromtimestamp(wall, UTC):%Y-%m}"


def next_month(wall: float) -> float:
    """Return the Unix time at which the next calendar month (UTC) begins."""
    now = datetime.fromtimestamp(wall, UTC)
    year, month = (now.year + 1, 1) if now.month == 12 else (now.year, now.month + 1)
    return datetime(year, month, 1, tzinfo=UTC).timestamp()


def _grown(before: int, now: int) -> int:
    return now - before if now >= before else now


def _stepped(amount: int) -> int:
    step = 1 << max(amount.bit_length() - 4, 0)
    return amount - amount % step


def _is_amount(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX
