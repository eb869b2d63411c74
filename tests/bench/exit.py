"""What leaving through an exit costs: throughput, the first byte, an exit that dies, many guests.

A laptop behind a NAT, two exits and a site (``tests/lab/abroad.py``). The tunnel by hand lies between
the same two namespaces, on the same engine with the same MTU, set up as ``wg-quick`` does it.
"""

from __future__ import annotations

import os
import select
import socket
import statistics
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

from nostrvpn.endpoint import Endpoint
from nostrvpn.io.wireguard_kernel import KernelBackend
from nostrvpn.lab.gathering import gather
from nostrvpn.lab.patience import wait_until
from nostrvpn.lab.processes import Process
from nostrvpn.wireguard.device import SecretKey
from tests.bench.connect import client
from tests.bench.exit_provider import measure_provider
from tests.lab.abroad import Abroad

__all__ = ["measure_exit"]

SIZE = 40_000_000
CHUNK = 1 << 18
PAIRS = 7
FIRST_BYTES = 7
FAILOVERS = 5
LIMIT_S = 30.0
TRY_EVERY_S = 0.01
ASK_EVERY_S = 0.05
# So long the flow goes on before the exit dies, and after the other one carries.
STEADY_S = 2.0
# Where the site answers with the asker's address.
SITE_TCP, SITE_UDP = 80, 443

# Ours: nothing else of the lab has these.
HAND_PORT, HAND_MARK, HAND_TABLE = 40404, 0x9D94, 40404
HAND_LAPTOP, HAND_EXIT = "10.99.0.2", "10.99.0.1"


def measure_exit() -> dict[str, object]:
    """Return the four figures, and what they are made of."""
    with Abroad() as lab:
        gather(lab.laptop, lab.exits)
        for node in lab.exits:
            node.cli("exit", "offer", "--to", "members", "--policy", "open")
        _until(lambda: len(_exits(lab)) == len(lab.exits), "both offers")
        result = _throughput(lab) | _first_byte(lab) | _failover(lab)
    return result | measure_provider()


# -- throughput -------------------------------------------------------------------------------


def _throughput(lab: Abroad) -> dict[str, object]:
    """Alternating runs of one TCP flow from the site: through the exit, and by hand."""
    found: list[tuple[float, float]] = []
    _use(lab, lab.exits[0].name)
    _until(lambda: _is_seen_abroad(lab), "an exit that carries")  # by then the MTU is measured
    lab.laptop.cli("exit", "off")
    with HandMade(lab) as hand:
        for number in range(PAIRS + 1):
            ways = [_through_the_exit, hand.download]
            # Whoever comes second has the same neighbours in the end.
            taken = {way: way(lab) for way in (ways if number % 2 else ways[::-1])}
            through, beside = (taken[way] for way in ways)
            _say(f"throughput {number}/{PAIRS}: {through:.0f}, by hand {beside:.0f} Mbit/s")
            if number:  # the first pair warms up
                found.append((through, beside))
    ratios = [through / beside for through, beside in found]
    medians = [round(statistics.median(column)) for column in zip(*found, strict=True)]
    return {
        "throughput_ratio": round(statistics.median(ratios), 3),
        "throughput_ratios": [round(ratio, 3) for ratio in ratios],
        "throughput_mbit_per_s": {"exit": medians[0], "by_hand": medians[1]},
    }


def _through_the_exit(lab: Abroad) -> float:
    _use(lab, lab.exits[0].name)
    _until(lambda: _is_seen_abroad(lab), "an exit that carries")
    rate = _download(lab)
    lab.laptop.cli("exit", "off")
    return rate


class HandMade:
    """A tunnel with ``wg`` and ``ip`` from the laptop to the first exit's host, which masquerades."""

    def __init__(self, lab: Abroad) -> None:
        self._laptop, self._exit = lab.laptop.namespace, lab.exits[0].namespace
        # As the agent's own packets go.
        outside = lab.hosts_abroad[0].address6 or lab.hosts_abroad[0].address
        self._endpoint = str(Endpoint(outside, HAND_PORT))
        self._directory = lab.directory
        path = f"/sys/class/net/{lab.laptop.interface}/mtu"
        self._mtu = int(self._laptop.run("cat", path).stdout)
        # Sockets of userspace WireGuard are shared by all namespaces.
        self._links = [f"nvh{os.getpid()}{letter}" for letter in "le"]
        self._engines: list[Process] = []

    def __enter__(self) -> HandMade:
        keys = [SecretKey(os.urandom(32)) for _ in self._links]
        ends = zip((self._laptop, self._exit), self._links, keys, reversed(keys), strict=True)
        for namespace, link, key, other in ends:
            if KernelBackend().unavailable():
                log = self._directory / f"{link}.log"
                environment = {"WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD": "1"}
                argv = ("wireguard-go", "-f", link)
                self._engines.append(Process(namespace, argv, log=log, environment=environment))
                _until(lambda a=namespace, b=link: _is_up(a, b), link)  # type: ignore[misc]
            else:
                namespace.ip(f"link add {link} type wireguard")
            file = self._directory / f"{link}.key"
            file.write_text(b64encode(key.raw).decode())
            more = [
                *("listen-port", str(HAND_PORT), "fwmark", str(HAND_MARK)),
                *("private-key", str(file), "peer", other.public_key),
            ]
            if namespace is self._laptop:
                more += ["allowed-ips", "0.0.0.0/0", "endpoint", self._endpoint]
            else:
                more += ["allowed-ips", f"{HAND_LAPTOP}/32"]
            namespace.run("wg", "set", link, *more)
            own, far = (HAND_LAPTOP, HAND_EXIT)
            if namespace is self._exit:
                own, far = far, own
            namespace.ip(
                f"addr add {own} peer {far} dev {link}", f"link set {link} mtu {self._mtu} up"
            )
        self._laptop.ip(f"route add default dev {self._links[0]} table {HAND_TABLE}")
        self._exit.sysctl({"ipv4/ip_forward": 1})
        self._exit.nft(
            "table ip byhand {\nchain c {\ntype nat hook postrouting priority srcnat;\n"
            f'iifname "{self._links[1]}" masquerade\n}}\n}}\n'
        )
        return self

    def __exit__(self, *_error: object) -> None:
        self._exit.run("nft", "delete", "table", "ip", "byhand", check=False)
        for namespace, link in zip((self._laptop, self._exit), self._links, strict=True):
            namespace.run("ip", "link", "del", link, check=False)
        for engine in self._engines:  # with its link it ends by itself, and its socket is gone
            wait_until(lambda one=engine: not one.alive, "the engine's end")  # type: ignore[misc]

    def download(self, lab: Abroad) -> float:
        """Send everything of the laptop through it meanwhile; return Mbit/s."""
        rules = (
            "lookup main suppress_prefixlength 0 priority 499",
            f"not fwmark {HAND_MARK} lookup {HAND_TABLE} priority 500",
        )
        self._laptop.ip(*(f"rule add {rule}" for rule in rules))
        try:
            _until(lambda: _is_seen_abroad(lab), "the tunnel by hand")
            return _download(lab)
        finally:
            self._laptop.ip(*(f"rule del {rule}" for rule in rules))


def _is_seen_abroad(lab: Abroad) -> bool:
    """Whether the site sees the laptop as the first exit."""
    with lab.laptop.namespace.enter():
        asking = socket.socket()
    with asking, suppress(OSError):
        asking.settimeout(1)
        asking.connect((str(lab.site.address), SITE_TCP))
        return asking.recv(100).decode().strip() == str(lab.hosts_abroad[0].address)
    return False


def _download(lab: Abroad) -> float:
    """Fetch ``SIZE`` bytes from the site with one TCP connection; return Mbit/s.

    RuntimeError if the site saw somebody else than the first exit.
    """
    with lab.site.namespace.enter():
        ear = socket.create_server((str(lab.site.address), 0))
    with lab.laptop.namespace.enter():
        taker = socket.socket()
    seen: list[str] = []

    def give() -> None:
        connection, asker = ear.accept()
        seen.append(asker[0])
        data = bytes(CHUNK)
        with connection, suppress(OSError):
            connection.settimeout(LIMIT_S)
            for _ in range(SIZE // CHUNK):
                connection.sendall(data)

    with ear, taker:
        ear.settimeout(LIMIT_S)
        taker.settimeout(LIMIT_S)
        giver = threading.Thread(target=give, daemon=True)
        giver.start()
        buffer, got = bytearray(CHUNK), 0
        taker.connect(ear.getsockname())
        began = time.perf_counter()
        while count := taker.recv_into(buffer):
            got += count
        took = time.perf_counter() - began
        giver.join(LIMIT_S)
    if seen != [str(lab.hosts_abroad[0].address)] or got < SIZE // CHUNK * CHUNK:
        raise RuntimeError(f"{got} bytes came, and the site saw {seen}")
    return got * 8 / took / 1e6


# -- the first byte ---------------------------------------------------------------------------


class Knocking(threading.Thread):
    """A program that asks the site again and again; ``answered_at``: when it did through an exit."""

    def __init__(self, lab: Abroad) -> None:
        super().__init__(daemon=True)
        self._lab = lab
        self._wanted = {str(host.address) for host in lab.hosts_abroad}
        self._ended = threading.Event()
        self.answered_at: float | None = None

    def run(self) -> None:
        due, give_up = time.perf_counter(), time.perf_counter() + LIMIT_S
        under_way: list[socket.socket] = []
        with self._lab.laptop.namespace.enter():
            while not self._ended.is_set() and time.perf_counter() < give_up:
                if time.perf_counter() >= due:
                    due += TRY_EVERY_S
                    under_way.append(self._knock())
                wait = max(0.0, due - time.perf_counter())
                for sock in select.select(under_way, [], [], wait)[0]:
                    under_way.remove(sock)
                    if self._said(sock) in self._wanted:
                        self.answered_at = time.perf_counter()
                        self._ended.set()
                        break
        for sock in under_way:
            sock.close()

    def _knock(self) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex((str(self._lab.site.address), SITE_TCP))
        return sock

    @staticmethod
    def _said(sock: socket.socket) -> str:
        with sock, suppress(OSError):
            return sock.recv(100).decode().strip()
        return ""

    def finish(self) -> float:
        """Wait for the answer (bounded) and return its time."""
        self.join(LIMIT_S)
        self._ended.set()
        if self.answered_at is None:
            raise RuntimeError("the site did not answer through the exit")
        return self.answered_at


def _first_byte(lab: Abroad) -> dict[str, object]:
    """From the start of ``exit use`` to the first byte of the site's answer through the exit."""
    totals, parts = [], []
    for number in range(FIRST_BYTES + 1):
        lab.laptop.cli("exit", "off")
        _until(lambda: _state(lab) == "off", "the exit to be off")
        knocking = Knocking(lab)
        began = time.perf_counter()
        knocking.start()
        _use(lab, lab.exits[0].name)
        answered = time.perf_counter()
        total = (knocking.finish() - began) * 1000
        _say(f"first byte {number}/{FIRST_BYTES}: {total:.0f} ms")
        if number:
            totals.append(total)
            parts.append((answered - began) * 1000)
    return {
        "first_byte_ms": round(statistics.median(totals)),
        "first_byte_samples_ms": [round(total) for total in totals],
        "exit_use_command_ms": round(statistics.median(parts)),
    }


# -- an exit that dies ------------------------------------------------------------------------


class Asking(threading.Thread):
    """A flow of requests, each a new UDP question to the site from a port of its own."""

    def __init__(self, lab: Abroad) -> None:
        super().__init__(daemon=True)
        self._lab = lab
        self._ended = threading.Event()
        self.answers: list[tuple[float, str]] = []

    def run(self) -> None:
        due = time.perf_counter()
        under_way: list[socket.socket] = []
        with self._lab.laptop.namespace.enter():
            while not self._ended.is_set():
                if time.perf_counter() >= due:
                    due += ASK_EVERY_S
                    under_way.append(self._ask())
                    if len(under_way) > LIMIT_S / ASK_EVERY_S:
                        under_way.pop(0).close()
                wait = max(0.0, due - time.perf_counter())
                for sock in select.select(under_way, [], [], wait)[0]:
                    under_way.remove(sock)
                    with sock, suppress(OSError):
                        self.answers.append((time.perf_counter(), sock.recv(100).decode()))
        for sock in under_way:
            sock.close()

    def _ask(self) -> socket.socket:
        sock = socket.socket(type=socket.SOCK_DGRAM)
        sock.setblocking(False)
        with suppress(OSError):  # held back, or no way: not answered, as the gap will say
            sock.connect((str(self._lab.site.address), SITE_UDP))
            sock.send(b"?")
        return sock

    def seen(self) -> str:
        """Return the address that the last answer was for."""
        return self.answers[-1][1] if self.answers else ""

    def end(self) -> None:
        """Stop asking."""
        self._ended.set()
        self.join(2)


def _failover(lab: Abroad) -> dict[str, object]:
    """The longest time without an answer when the exit in use is cut off, with ``auto``."""
    addresses = [str(host.address) for host in lab.hosts_abroad]
    _use(lab, "auto")
    gaps = []
    for number in range(FAILOVERS):
        _until(lambda: _both_answer(lab), "both exits to answer")
        asking = Asking(lab)
        asking.start()
        _until(lambda: asking.seen() in addresses, "answers through an exit")  # noqa: B023
        time.sleep(STEADY_S)
        used = addresses.index(asking.seen())
        lab.cut(used)
        cut_at = time.perf_counter()
        _until(lambda: asking.seen() == addresses[1 - used], "the other exit")  # noqa: B023
        time.sleep(STEADY_S)
        asking.end()
        lab.mend(used)
        times = [at for at, who in asking.answers if who in addresses]
        gaps.append(max(late - early for early, late in pairwise(times) if late > cut_at))
        _say(f"failover {number + 1}/{FAILOVERS}: {gaps[-1] * 1000:.0f} ms")
    return {
        "failover_gap_ms": round(statistics.median(gaps) * 1000),
        "failover_gap_samples_ms": [round(gap * 1000) for gap in gaps],
    }


# -- the laptop -------------------------------------------------------------------------------


def _use(lab: Abroad, who: str) -> None:
    lab.laptop.cli("exit", "use", who, "--yes", "--kill-switch", "on")


def _exits(lab: Abroad) -> list[dict[str, object]]:
    found: list[dict[str, object]] = client(lab.laptop).call("exit_list")["exits"]
    return found


def _both_answer(lab: Abroad) -> bool:
    return [one["state"] for one in _exits(lab)] == ["answers"] * len(lab.exits)


def _state(lab: Abroad) -> str:
    return str(client(lab.laptop).call("exit_status")["state"])


def _is_up(namespace: object, link: str) -> bool:
    return bool(namespace.run("wg", "show", link, check=False).returncode == 0)  # type: ignore[attr-defined]


def _until(condition: Callable[[], bool], what: str) -> None:
    wait_until(condition, what, timeout=LIMIT_S, poll=0.05)


def _say(line: str) -> None:
    print(line, flush=True)
