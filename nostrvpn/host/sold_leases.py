"""What each lease is in the table of ``sold.py``: elements and objects, made, changed, taken away.

A change of one among a thousand is a few lines of nft for that one. What an object has counted cannot be
set, so a quota that changes is another object, in the same transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from nostrvpn.endpoint import IPAddress
from nostrvpn.host.sold import ALIVE_S, Sold, SoldLease, sold_table

__all__ = ["Held", "alive_lines", "lease_lines"]

# What TCP sends in one go, besides the second's worth that nftables itself lets gather.
_BURST = 65536
# 120 Gbit/s. The kernel (net/netfilter/nft_limit.c) refuses what overflows 64 bits as nanoseconds.
_FASTEST = 15_000_000_000
# The end of a lease is told anew with each look at it; so much is no other end.
_SAME_END_S = 1.0


@dataclass(frozen=True, slots=True)
class Held:
    """One lease as it is in the table. ``rate``: bytes a second, 0 is no limit; ``until``: of the clock
    that ``lease_lines`` is told. ``quota`` and ``limit``: the numbers in the names of its objects."""

    lease: SoldLease
    rate: int
    until: float | None
    quota: int
    limit: int


def alive_lines(sold: Sold, interface: str) -> list[str]:
    """Return the lines that let the kernel serve for another ``ALIVE_S`` seconds."""
    table = sold_table(interface)
    lines = _without(table, "alive", ["ipv4", "ipv6"])
    timed = ", ".join(f"ipv{version} timeout {ALIVE_S}s" for version in sorted(sold.versions))
    return lines + ([f"add element inet {table} alive {{ {timed} }}"] if timed else [])


def lease_lines(
    sold: Sold,
    held: Mapping[IPAddress, Held],
    interface: str,
    now: float,
    known: Mapping[IPAddress, Held] = MappingProxyType({}),
) -> tuple[list[str], dict[IPAddress, Held]]:
    """Return the lines that make the table's leases (``held``, by address) those of ``sold``, and
    what is held then.

    ``now``: seconds of any clock that only goes on. What has timed out is still held, and harmless.
    ``known``: what a table before this one held: the ends in it stand.
    """
    table, lines = sold_table(interface), list[str]()
    wanted = {lease.ipv4: lease for lease in sold.leases if lease.is_open}
    after: dict[IPAddress, Held] = {}
    number = max((n for old in held.values() for n in (old.quota, old.limit)), default=0)
    for address, old in held.items():
        new = wanted.get(old.lease.ipv4)
        if new is None or _who(new) != _who(old.lease):
            lines += _close(table, old)
        else:
            after[address] = old
    for lease in wanted.values():
        before = after.get(lease.ipv4)
        if before is not None and before.lease == lease and before.rate == _rate(sold, lease):
            continue
        number += 1
        until = None if lease.seconds_left is None else now + lease.seconds_left
        past = known.get(lease.ipv4)
        until = past.until if past is not None and past.lease == lease else until
        made = _next(before, lease, _rate(sold, lease), until, number)
        lines += _change(table, before, made, now)
        after[lease.ipv4] = made
    return lines, after


def _who(lease: SoldLease) -> tuple[object, ...]:
    return lease.lease_id, lease.key, lease.addresses


def _rate(sold: Sold, lease: SoldLease) -> int:
    rate = sold.rate if lease.mbit is None else lease.mbit * 125_000
    return min(max(rate, 0), _FASTEST)


def _next(
    before: Held | None, lease: SoldLease, rate: int, until: float | None, number: int
) -> Held:
    if before is None:
        return Held(lease, rate, until, number, number)
    keeps_end = before.until is not None and until is not None
    if keeps_end and abs(before.until - until) <= _SAME_END_S:  # type: ignore[operator]
        until = before.until
    quota = before.quota if before.lease.quota_bytes == lease.quota_bytes else number
    return Held(lease, rate, until, quota, before.limit if before.rate == rate else number)


def _change(table: str, before: Held | None, after: Held, now: float) -> list[str]:
    lines, addresses = list[str](), after.lease.addresses
    if before is None or before.quota != after.quota:
        name = f"q{after.quota}"
        lines.append(f"add quota inet {table} {name} {{ over {after.lease.quota_bytes} bytes }}")
        lines += _unled(table, "quota", addresses) if before is not None else []
        lines += _led(table, "quota", addresses, name)
        lines += [f"delete quota inet {table} q{before.quota}"] if before is not None else []
    if before is None or before.limit != after.limit:
        lines += _unlimited(table, before) if before is not None else []
        lines += _limited(table, after)
    if before is None or before.until != after.until:
        end = ""
        if after.until is not None:
            end = f" timeout {max(1, int((after.until - now) * 1000))}ms"
        for ip in addresses:
            lines += _without(table, f"paid{ip.version}", [str(ip)])
            lines.append(f"add element inet {table} paid{ip.version} {{ {ip}{end} }}")
    return lines


def _close(table: str, held: Held) -> list[str]:
    lines, addresses = list[str](), held.lease.addresses
    for ip in addresses:
        lines += _without(table, f"paid{ip.version}", [str(ip)])
    lines += _unled(table, "quota", addresses)
    lines.append(f"delete quota inet {table} q{held.quota}")
    return lines + _unlimited(table, held)


def _limited(table: str, held: Held) -> list[str]:
    lines = list[str]()
    for way in ("up", "down") if held.rate else ():
        most = f"rate over {held.rate} bytes/second burst {_BURST} bytes"
        lines.append(f"add limit inet {table} {way}{held.limit} {{ {most} }}")
        lines += _led(table, f"rate_{way}", held.lease.addresses, f"{way}{held.limit}")
    return lines


def _unlimited(table: str, held: Held) -> list[str]:
    lines = list[str]()
    for way in ("up", "down") if held.rate else ():
        lines += _unled(table, f"rate_{way}", held.lease.addresses)
        lines.append(f"delete limit inet {table} {way}{held.limit}")
    return lines


def _led(table: str, label: str, addresses: Iterable[IPAddress], name: str) -> list[str]:
    """Return the lines that lead addresses to an object."""
    what = f"add element inet {table} {label}"
    return [f'{what}{ip.version} {{ {ip} : "{name}" }}' for ip in addresses]


def _unled(table: str, label: str, addresses: Iterable[IPAddress]) -> list[str]:
    """Return the lines that lead addresses, which an object has, to none."""
    return [f"delete element inet {table} {label}{ip.version} {{ {ip} }}" for ip in addresses]


def _without(table: str, name: str, elements: Iterable[str]) -> list[str]:
    # Time may have taken it already, and what is not there cannot be deleted: so it is made first.
    what = f"element inet {table} {name} {{ {', '.join(elements)} }}"
    return [f"add {what}", f"delete {what}"]
