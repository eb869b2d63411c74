"""What buying and selling an exit costs: the first byte, a tick on both sides, a thousand leases.

The first byte is taken in the lab (``nostrvpn/lab/market.py``), with daemons, relay, mint and tunnels.
A tick is one slice, from the payer's decision to the payee's answer, and the processor time that each
side spends on it: machine, disk, seals, and wallet where it takes part (``market_desk.py``). A thousand
leases pay once a minute each, to the same seller; what the kernel is told and asked meanwhile is
measured on a table and a link with a thousand peers (``market_seller.py`` has a packet's cost there).
"""

from __future__ import annotations

import os
import resource
import socket
import statistics
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from nostrvpn.daemon.market_shop import COUNT_AT_LEAST_S, COUNT_S
from nostrvpn.daemon.sold_way import SoldWay
from nostrvpn.errors import SystemRefused
from nostrvpn.host.sold import Sold
from nostrvpn.io.wireguard import Backend
from nostrvpn.io.wireguard_kernel import KernelBackend
from nostrvpn.io.wireguard_userspace import UserspaceBackend
from nostrvpn.lab.market import Market
from nostrvpn.lab.patience import wait_until
from nostrvpn.market.ceilings import Ceilings
from nostrvpn.market.terms import PayMode
from nostrvpn.market.wish import Wish
from tests.bench.connect import client
from tests.bench.market_desk import CountedBuyer, CountedMarket, CountedSeller, Payer
from tests.bench.market_seller import LEASES, lots_sold, measure_seller
from tests.conftest import Netns, run

__all__ = ["measure_market"]

FIRST_BYTES = 5
LIMIT_S = 60.0
TRY_EVERY_S = 0.01
# A slice is so many sat at a sat a MiB; the pace of the buyer whose ticks are measured.
SLICE_SAT, BYTES_A_SECOND = 4, 1 << 20
WARM_S, TICKS_S, LOOK_S = 120.0, 600.0, 2.0
MODES = (PayMode.PLAIN, PayMode.LOCKED, PayMode.CHANNEL)
ROUNDS = 5


def measure_market() -> dict[str, object]:
    """Return all four figures, and what they are made of."""
    result = measure_seller() | _thousand() | _ticks()
    with Market() as lab:
        return result | _first_byte(lab)


# -- the first byte -----------------------------------------------------------------------------


class _Knocking(threading.Thread):
    """Asks the site who it sees, again and again, until the answer is the seller's address."""

    def __init__(self, lab: Market) -> None:
        super().__init__(daemon=True)
        self._lab = lab
        self.seen_at: float | None = None

    def run(self) -> None:
        end = time.perf_counter() + LIMIT_S
        with self._lab.laptop.namespace.enter():
            while self.seen_at is None and time.perf_counter() < end:
                with suppress(OSError, HTTPException):
                    if self._ask() == str(self._lab.hosts[0].address):
                        self.seen_at = time.perf_counter()
                        return
                time.sleep(TRY_EVERY_S)

    def _ask(self) -> str:
        connection = HTTPConnection(str(self._lab.site.address), timeout=0.1)
        try:
            connection.request("GET", "/")
            return connection.getresponse().read().decode().strip()
        finally:
            connection.close()


def _name_server(lab: Market) -> None:
    """Answer where this machine's name servers are: without them a seller waits for two seconds."""
    for line in Path("/etc/resolv.conf").read_text(encoding="utf-8").splitlines():
        word, _, address = line.partition(" ")
        if word != "nameserver" or ":" in address or address.startswith("127."):
            continue
        with suppress(SystemRefused):  # one is enough
            lab.site.namespace.ip(f"addr add {address.strip()}/32 dev lo")
            lab.core.namespace.ip(f"route add {address.strip()}/32 via {lab.site.address}")
    with lab.site.namespace.enter():
        datagrams = socket.socket(type=socket.SOCK_DGRAM)
        datagrams.bind(("", 53))
        stream = socket.create_server(("", 53))
    for work in (_answer_datagrams, _answer_streams):
        sock = datagrams if work is _answer_datagrams else stream
        lab.stack.callback(sock.close)
        threading.Thread(target=work, args=(sock,), daemon=True).start()


def _answer(query: bytes) -> bytes:
    return query[:2] + bytes((query[2] | 0x80, 0x80)) + query[4:]


def _answer_datagrams(sock: socket.socket) -> None:
    with suppress(OSError):
        while True:
            query, address = sock.recvfrom(4096)
            sock.sendto(_answer(query), address)


def _answer_streams(server: socket.socket) -> None:
    with suppress(OSError):
        while True:
            with server.accept()[0] as sock:
                data = sock.recv(4096)
                sock.sendall(data[:2] + _answer(data[2:]))


def _first_byte(lab: Market) -> dict[str, object]:
    """From the start of ``exit buy`` to the first byte of a page through the exit."""
    _name_server(lab)
    seller, buyer = lab.sellers[0], lab.laptop
    for node in (seller, buyer):
        node.init()
        node.start()
    for node in (seller, buyer):
        node.wait_for_relay()
        node.cli("wallet", "mints", "add", lab.mint.url, timeout=LIMIT_S)
    buyer.cli("wallet", "fund", "2000", timeout=LIMIT_S)
    words = ("--price", "20sat/GiB", "--mint", lab.mint.url, "--i-understand")
    seller.cli("exit", "offer", "--public", *words, timeout=LIMIT_S)
    wait_until(
        lambda: any(row["usable"] for row in buyer.query("market", "list", "--refresh")["offers"]),
        "the offer in the list",
        timeout=LIMIT_S,
        poll=0.5,
    )
    totals, commands = [], []
    for number in range(FIRST_BYTES + 1):
        knocking = _Knocking(lab)
        began = time.perf_counter()
        knocking.start()
        buyer.cli("exit", "buy", "auto", timeout=LIMIT_S)
        answered = time.perf_counter()
        knocking.join(LIMIT_S)
        if knocking.seen_at is None:
            raise RuntimeError("the site did not answer through the exit")
        took = (knocking.seen_at - began) * 1000
        print(f"first byte {number}/{FIRST_BYTES}: {took:.0f} ms", flush=True)
        if number:  # the first one warms up
            totals.append(took)
            commands.append((answered - began) * 1000)
        buyer.cli("exit", "off")
        wait_until(lambda: _is_over(lab), "the lease to end", timeout=LIMIT_S)
    return {
        "first_byte_ms": round(statistics.median(totals)),
        "first_byte_samples_ms": [round(total) for total in totals],
        "exit_buy_command_ms": round(statistics.median(commands)),
    }


def _is_over(lab: Market) -> bool:
    daemon = client(lab.laptop)
    if daemon.call("exit_status")["state"] != "off":
        return False
    rows = daemon.call("market_sessions", days=1)["bought"]
    return all(row["state"] == "closed" for row in rows)


# -- a tick -------------------------------------------------------------------------------------


def _ticks() -> dict[str, object]:
    found = {}
    for mode in MODES:
        with tempfile.TemporaryDirectory() as directory:
            market = CountedMarket(Path(directory))
            try:
                found[mode.value] = _tick(market, mode)
            finally:
                market.close()
    return {"tick_ms": found}


def _tick(market: CountedMarket, mode: PayMode) -> dict[str, float]:
    ceilings = Ceilings(gib_msat=2_000_000, hour_sat=100_000, day_sat=100_000)
    seller = CountedSeller(market, "seller", SLICE_SAT)
    market.sellers.append(seller)
    buyer = CountedBuyer(market, "buyer", Wish(ceilings=ceilings, modes=(mode,)))
    buyer.bps = BYTES_A_SECOND
    market.buyers.append(buyer)
    market.run(1.0, LOOK_S)
    buyer.want(buyer.wish)
    market.run(WARM_S, LOOK_S)
    for party in (seller, buyer):
        party.account.clear()
    before = _paid(seller)
    market.run(TICKS_S, LOOK_S)
    ticks = (_paid(seller) - before) // (1000 * SLICE_SAT)
    if ticks < TICKS_S * BYTES_A_SECOND / (SLICE_SAT << 20) / 2:
        raise RuntimeError(f"only {ticks} slices were paid")
    # Counters are read all the time, whether anything is paid or not.
    each = [
        round(party.account.milliseconds("step Counted") / ticks, 2) for party in (buyer, seller)
    ]
    print(f"{mode.value}: {ticks} ticks, payer {each[0]} ms, payee {each[1]} ms", flush=True)
    return dict(zip(("payer", "payee"), each, strict=True))


def _paid(seller: CountedSeller) -> int:
    return sum(lease.paid_msat for lease in seller.machine.leases)


# -- a thousand leases --------------------------------------------------------------------------


def _thousand() -> dict[str, object]:
    parts = _of_the_daemon() | _of_the_kernel()
    cores = {name: round(ms / 60_000, 3) for name, ms in parts.items()}
    return {
        "cores_at_1000_leases": round(sum(parts.values()) / 60_000, 3),
        "cores_at_1000_leases_by_part": cores,
    }


def _of_the_daemon() -> dict[str, float]:
    """Milliseconds of CPU in a minute in which each of a thousand pays once, by what they were for."""
    with tempfile.TemporaryDirectory() as directory:
        market = CountedMarket(Path(directory))
        try:
            seller = CountedSeller(market, "seller", SLICE_SAT)
            market.sellers.append(seller)
            payers = [Payer(market, seller, f"{n}", SLICE_SAT) for n in range(LEASES)]
            for number, payer in enumerate(payers):
                market.at(60 * number / LEASES, payer.begin)
            market.run(62.0, LOOK_S)
            if not all(payer.is_served for payer in payers):
                raise RuntimeError("not everybody was served")
            seller.account.clear()
            before = _paid(seller)
            for number, payer in enumerate(payers):
                market.at(60 * number / LEASES, payer.pay)
            for _ in range(round(60 / LOOK_S)):
                market.run(LOOK_S, LOOK_S)
                for payer in payers:
                    payer.use(int(SLICE_SAT * (1 << 20) * LOOK_S / 60))
            market.run(1.0, LOOK_S)
            if _paid(seller) - before != 1000 * SLICE_SAT * LEASES:
                raise RuntimeError("not everybody paid")
            sums: dict[str, float] = {}
            for what, ns in seller.account.seconds.items():
                name = "machine" if what.startswith("step") else what
                sums[name] = sums.get(name, 0.0) + ns / 1e6
            return sums
        finally:
            market.close()


def _of_the_kernel() -> dict[str, float]:
    """The same for reading the counters, and for telling the kernel of who paid."""
    name = f"market{os.getpid()}"
    run("ip", "netns", "add", name)
    try:
        netns, backend = Netns(name), _backend()
        way, sold = SoldWay(backend, name), lots_sold(f"{name}s"[-15:])
        netns.call(way.settle, sold)
        try:
            return _asked(netns, way, sold)
        finally:
            netns.call(way.end, name)
    finally:
        run("ip", "netns", "del", name)


def _asked(netns: Netns, way: SoldWay, sold: Sold) -> dict[str, float]:
    counted = netns.call(way.read)
    if counted is None or len(counted.by_key) != LEASES:
        raise RuntimeError(f"not all are peers: {way.error}")
    reads, changes = [], []
    for number in range(1, ROUNDS + 1):
        reads.append(_timed(lambda: netns.call(way.read)))
        quota = 10**14 + number
        few = [replace(lease, quota_bytes=quota) for lease in sold.leases[: LEASES // 60]]
        changed = replace(sold, leases=(*few, *sold.leases[len(few) :]))
        changes.append(_timed(lambda: netns.call(way.settle, changed)))  # noqa: B023
    if way.error is not None:
        raise RuntimeError(way.error)
    (read, read_s), (change, change_s) = (
        [statistics.median(column) for column in zip(*samples, strict=True)]
        for samples in (reads, changes)
    )
    # As often as market_shop.py does it: with its rests.
    read_every = read_s + max(COUNT_S, min(9 * read_s, COUNT_AT_LEAST_S))
    change_every = change_s + LEASES / 1000
    print(f"reading {read:.0f} ms of CPU, a change {change:.0f} ms", flush=True)
    return {"counters": read * 60 / read_every, "kernel": change * 60 / change_every}


def _timed(work: object) -> tuple[float, float]:
    """Milliseconds of CPU, children's too, and seconds."""
    before, began = _cpu_s(), time.monotonic()
    assert callable(work)
    work()
    return (_cpu_s() - before) * 1000, time.monotonic() - began


def _cpu_s() -> float:
    usages = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _backend() -> Backend:
    kernel = KernelBackend()
    return kernel if kernel.unavailable() is None else UserspaceBackend()
