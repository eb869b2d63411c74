"""What a packet costs an exit with one guest and with a thousand: the same flow through the same tables.

Guest, exit and receiver share a core: a datagram is through all of them when the call that sent it
returns, so the time of the call is the cost of the path. The ratio is of medians of alternating rounds.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from typing import Any

from nostrvpn.endpoint import IPAddress
from nostrvpn.exits.policy import ExitPolicy
from nostrvpn.host.exit_meter import ExitMeter
from tests.conftest import Netns, run
from tests.contract.test_exit_provider import GUEST4, OTHER4, PUBLIC4, Hosts

__all__ = ["flow", "hosts", "lend_addresses", "measure_provider"]

TARGET = Path("build/bench/exit.json")
KEY = "provider_cost_ratio_1000_to_1"
GUESTS = 1000
ROUNDS = 9
DATAGRAMS = 40_000
DATA = bytes(1200)
_FAST = 10**11  # bytes a second: limits that are looked up, and never reached


def measure_provider() -> dict[str, object]:
    """Return the ratio, and what it is made of in nanoseconds a packet."""
    with hosts() as made:
        return _measure(made)


@contextmanager
def hosts() -> Iterator[Hosts]:
    """Yield an exit with a guest and a server, in namespaces of their own."""
    made: list[str] = []
    numbers = count()

    def make() -> Netns:
        name = f"exitbench{os.getpid()}-{next(numbers)}"
        run("ip", "netns", "add", name)
        made.append(name)
        return Netns(name)

    try:
        yield Hosts(make)
    finally:
        for name in made:
            run("ip", "netns", "del", name)


def _measure(hosts: Hosts) -> dict[str, object]:
    one = [ip_address(GUEST4)]
    # The last ones of the address space and the first: wherever a search would begin.
    many = one + [ip_address(OTHER4) + number for number in range(1, GUESTS)]
    lend_addresses(hosts, many[1:])
    ear = hosts.udp(hosts.world, PUBLIC4, 53)
    found: dict[int, list[float]] = {1: [], GUESTS: []}
    for number in range(ROUNDS + 1):
        for guests in (one, many):
            _prepare(hosts, guests)
            took = flow(hosts)
            if number:  # the first round warms up
                found[len(guests)].append(took)
    ear.close()
    low, high = (statistics.median(found[size]) for size in (1, GUESTS))
    return {
        KEY: round(high / low, 3),
        "provider_ns_a_packet": {"1": round(low), str(GUESTS): round(high)},
    }


def lend_addresses(hosts: Hosts, addresses: Iterable[IPAddress]) -> None:
    """Give the guests' end all of these."""
    path = Path(f"/tmp/exitbench{os.getpid()}")
    path.write_text("".join(f"addr add {ip}/32 dev e\n" for ip in addresses), encoding="ascii")
    try:
        hosts.guest.run("ip", "-batch", str(path))
    finally:
        path.unlink()


def _prepare(hosts: Hosts, guests: list[IPAddress]) -> None:
    sources = frozenset(guests)
    hosts.offer(ExitPolicy("reduced", lan=False), guests=sources)
    meter = ExitMeter(sources, frozenset(), _FAST, _FAST, 100_000, 10**15, "2026-11")
    hosts.measure(meter)
    for guest in guests:  # each has its elements in the sets that the kernel fills
        with hosts.udp(hosts.guest, str(guest)) as sender:
            sender.sendto(b"x", (PUBLIC4, 53))


def flow(hosts: Hosts) -> float:
    """Return nanoseconds a datagram from the guest to the receiver."""
    with hosts.udp(hosts.guest, GUEST4) as sender:
        sender.connect((PUBLIC4, 53))
        send: Any = sender.send
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        send(DATA)
        began = time.process_time_ns()
        for _ in range(DATAGRAMS):
            try:
                send(DATA)
            except ConnectionRefusedError:
                continue
        return (time.process_time_ns() - began) / DATAGRAMS


def main() -> None:
    """Measure, print, and put the ratio beside what others wrote into the file."""
    result = measure_provider()
    print(json.dumps(result, indent=2))
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(TARGET.read_text(encoding="utf-8")) if TARGET.exists() else {}
    text = json.dumps(known | {KEY: result[KEY]}, indent=2)
    TARGET.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
