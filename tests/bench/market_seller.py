"""What a packet costs a seller with one lease and with a thousand, and what it costs to keep a thousand.

As ``exit_provider.py``: guest, seller and receiver share a core, so the time of the call that sends a
datagram is the cost of its path through the same tables. The tables are the real ones; a cable stands
for WireGuard, whose cost is not the question.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_interface
from pathlib import Path

from nostrvpn.exits.policy import ExitPolicy
from nostrvpn.host.sold import Sold, SoldLease
from nostrvpn.io.sold import SoldTable
from nostrvpn.wireguard.device import SecretKey
from tests.bench.exit_provider import flow, hosts, lend_addresses
from tests.contract.test_exit_provider import (
    AROUND,
    GUEST4,
    GUEST6,
    OVERLAY,
    OWN4,
    OWN6,
    PUBLIC4,
    Hosts,
)

__all__ = ["LEASES", "lots_sold", "measure_seller"]

TARGET = Path("build/bench/market.json")
RATIO, CHANGE, RENEWAL = "packet_cost_ratio_1000_to_1", "lease_change_ms", "lease_renewal_ms"
LEASES = 1000
ROUNDS = 5
_FAST = 10**9


def measure_seller() -> dict[str, object]:
    """Return the ratio, and milliseconds of one change among a thousand and of keeping all alive."""
    with hosts() as made:
        return _measure(made)


def _lease(number: int) -> SoldLease:
    key = SecretKey((number + 1 << 64).to_bytes(32, "little")).public_key
    # The first one is the guest that sends; the others are wherever a search would begin or end.
    ipv4 = IPv4Address(GUEST4) + (number + 5 if number else 0)
    ipv6 = IPv6Address(GUEST6) + (number + 5 if number else 0)
    return SoldLease(f"lease {number}", key, None, ipv4, ipv6, True, 10**15, 3600.0)


def lots_sold(link: str) -> Sold:
    """Return what a seller has for a thousand buyers at a link."""
    addresses = frozenset({ip_interface(f"{OWN4}/16"), ip_interface(f"{OWN6}/48")})
    rules = ExitPolicy("reduced").compile(OVERLAY, AROUND)
    versions = frozenset({4, 6})
    key, leases = SecretKey(b"\x01" * 32), tuple(map(_lease, range(LEASES)))
    sold = Sold(link, 24000, key, addresses, 1280, rules, versions, rate=_FAST)
    return replace(sold, connections=100_000, leases=leases)


def _measure(hosts: Hosts) -> dict[str, object]:
    many = lots_sold("nv0")
    leases, one = many.leases, replace(many, leases=many.leases[:1])
    lend_addresses(hosts, [lease.ipv4 for lease in leases[1:]])
    table = SoldTable("mesh0")
    hosts.near.call(table.close, one, time.monotonic())
    hosts.near.call(table.forward, one, time.monotonic())
    ear = hosts.udp(hosts.world, PUBLIC4, 53)
    found: dict[int, list[float]] = {1: [], LEASES: []}
    for number in range(ROUNDS + 1):
        for wanted in (one, many):
            hosts.near.call(table.close, wanted, time.monotonic())
            took = flow(hosts)
            if number:  # the first round warms up
                found[len(wanted.leases)].append(took)
    ear.close()
    low, high = (statistics.median(found[size]) for size in (1, LEASES))
    changes = [_change(hosts, table, many, number) for number in range(1, ROUNDS + 1)]
    later = time.monotonic()
    renewals = [_timed(hosts, table, many, later + 100 * number) for number in range(1, ROUNDS + 1)]
    return {
        RATIO: round(high / low, 3),
        CHANGE: round(statistics.median(changes), 1),
        RENEWAL: round(statistics.median(renewals), 1),
        "seller_ns_a_packet": {"1": round(low), str(LEASES): round(high)},
    }


def _change(hosts: Hosts, table: SoldTable, many: Sold, number: int) -> float:
    changed = replace(many.leases[number], quota_bytes=10**14 + number)
    leases = (*many.leases[:number], changed, *many.leases[number + 1 :])
    took = _timed(hosts, table, replace(many, leases=leases), time.monotonic())
    hosts.near.call(table.close, many, time.monotonic())
    return took


def _timed(hosts: Hosts, table: SoldTable, sold: Sold, now: float) -> float:
    began = time.monotonic()
    hosts.near.call(table.close, sold, now)
    return (time.monotonic() - began) * 1000


def main() -> None:
    """Measure, print, and put the figures beside what others wrote into the file."""
    result = measure_seller()
    print(json.dumps(result, indent=2))
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(TARGET.read_text(encoding="utf-8")) if TARGET.exists() else {}
    told = {name: result[name] for name in (RATIO, CHANGE, RENEWAL)}
    TARGET.write_text(json.dumps(known | told, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
