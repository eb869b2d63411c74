"""What changing paths costs a flow: direct to relayed, one relay to another, relayed to direct.

Two laptops behind port-restricted NATs and two members that relay. 50 numbered datagrams a second go
each way through the tunnel; a gap is the longest time in which one side got none.
"""

from __future__ import annotations

import socket
import statistics
import threading
import time
from contextlib import suppress
from itertools import pairwise
from select import select
from types import TracebackType

from nostrvpn.errors import NostrvpnError
from nostrvpn.lab.core import Internet
from nostrvpn.lab.gathering import gather
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.topology import Host, Lab, Router, Server
from tests.bench.connect import client

ATTEMPTS = 5
DELAY_S = 0.010
INTERVAL_S = 0.02
PORT = 5005
SIZE = 200
LOOK_S = 0.02
STEADY_S = 3.0
# What is sent so long before and after a side says "direct" counts for the loss of the upgrade.
AROUND_S = 5.0
SETTLE_S = 20.0
GIVE_UP_S = 120.0


class SwitchLab(Lab):
    """Two homes, two members with public addresses that relay, and a way to part the homes."""

    server: Server

    def __init__(self) -> None:
        super().__init__(Internet(delay=DELAY_S))

    def build(self) -> None:
        self.server = self.server_host()
        self.machines: dict[str, Host] = {}
        self.relays = [self._node(f"vps-{n}", None, relay={"offer": "members"}) for n in (1, 2)]
        self.routers = [self.router(f"nat-{letter}") for letter in "ab"]
        self.a = self._node("laptop-a", self.routers[0])
        self.b = self._node("laptop-b", self.routers[1])

    def _node(self, name: str, router: Router | None, **settings: object) -> LabNode:
        self.machines[name] = self.host(name, router)
        return self.node(self.machines[name], self.server, **settings)

    def part(self) -> None:
        """Let nothing pass between the two homes."""
        for one, other in (self.routers, self.routers[::-1]):
            one.block(f"ip daddr {other.address}")


class End(threading.Thread):
    """One end of the flow: sends numbered datagrams, remembers when which was sent and came."""

    def __init__(self, node: LabNode, other: LabNode) -> None:
        super().__init__(daemon=True)
        with node.namespace.enter():
            self._socket = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self._socket.bind(("::", PORT))
        self._target = (str(other.status()["addresses"][0]), PORT)
        self._ended = threading.Event()
        self.sent: list[float] = []
        self.arrived: dict[int, float] = {}

    def run(self) -> None:
        due = time.monotonic()
        while not self._ended.is_set():
            wait = due - time.monotonic()
            if wait > 0:
                if select([self._socket], [], [], wait)[0]:
                    number = int.from_bytes(self._socket.recv(SIZE)[:8], "big")
                    self.arrived.setdefault(number, time.monotonic())
                continue
            data = len(self.sent).to_bytes(8, "big") + bytes(SIZE - 8)
            self.sent.append(time.monotonic())
            with suppress(OSError):  # no route: lost, as the receiver will say
                self._socket.sendto(data, self._target)
            due += INTERVAL_S
        self._socket.close()

    def end(self) -> None:
        """Stop sending."""
        self._ended.set()
        self.join(2)


class Flow:
    """Both ends, for as long as the block runs."""

    def __init__(self, a: LabNode, b: LabNode) -> None:
        self._ends = (End(a, b), End(b, a))

    def __enter__(self) -> Flow:
        for end in self._ends:
            end.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for end in self._ends:
            end.end()

    def gap_s(self, begin: float, until: float) -> float:
        """Return the longest time in which an end got nothing."""
        gaps = []
        for end in self._ends:
            times = [at for at in sorted(end.arrived.values()) if begin < at < until]
            marks = [begin, *times, until]
            gaps.append(max(late - early for early, late in pairwise(marks)))
        return max(gaps)

    def count(self, begin: float, until: float) -> tuple[int, int]:
        """Return how many datagrams were sent within that time, and how many never came."""
        sent = lost = 0
        for sender, receiver in (self._ends, self._ends[::-1]):
            numbers = [n for n, at in enumerate(sender.sent) if begin < at < until]
            sent += len(numbers)
            lost += sum(number not in receiver.arrived for number in numbers)
        return sent, lost


def wait_both(lab: SwitchLab, path: str, *, other_than: str = "") -> tuple[float, str]:
    """Wait until both laptops have such a path; return when, and who relays."""
    end = time.monotonic() + GIVE_UP_S
    while time.monotonic() < end:
        seen = []
        for node, other in ((lab.a, lab.b), (lab.b, lab.a)):
            peers = client(node).call("peers")["peers"]
            seen.append(next(peer for peer in peers if peer["npub"] == other.npub))
        vias = {str(peer["via"]) for peer in seen}
        if all(peer["path"] == path for peer in seen) and other_than not in vias:
            return time.monotonic(), vias.pop()
        time.sleep(LOOK_S)
    raise RuntimeError(f"not {path} within {GIVE_UP_S:.0f} s")


def attempt() -> dict[str, float]:
    """One run in a fresh lab: part the homes, kill the relay in use, let the homes meet again."""
    with SwitchLab() as lab:
        gather(lab.relays[0], [lab.relays[1], lab.a, lab.b])
        wait_both(lab, "direct")
        with Flow(lab.a, lab.b) as flow:
            time.sleep(SETTLE_S)  # both relays are bound by now, and stand by
            lab.part()
            parted = time.monotonic()
            relayed, via = wait_both(lab, "relayed")
            time.sleep(STEADY_S)
            downgrade_gap = flow.gap_s(parted - INTERVAL_S, time.monotonic())

            lab.machines[via].namespace.ip("link set eth0 down")
            died = time.monotonic()
            wait_both(lab, "relayed", other_than=via)
            time.sleep(STEADY_S)
            replacement_gap = flow.gap_s(died - INTERVAL_S, time.monotonic())

            for router in lab.routers:
                router.unblock()
            met = time.monotonic()
            direct, _ = wait_both(lab, "direct")
            time.sleep(AROUND_S + 1)
            sent, lost = flow.count(direct - AROUND_S, direct + AROUND_S)
            return {
                "downgrade_gap_s": downgrade_gap,
                "downgrade_s": relayed - parted,
                "relay_replacement_gap_s": replacement_gap,
                "upgrade_s": direct - met,
                "upgrade_packets": sent,
                "upgrade_lost": lost,
                "upgrade_gap_s": flow.gap_s(direct - AROUND_S, direct + AROUND_S),
            }


def measure_switch() -> dict[str, object]:
    """Medians (and the worst gap) over fresh labs; the loss of an upgrade over all of them."""
    runs: list[dict[str, float]] = []
    errors: list[str] = []
    for number in range(ATTEMPTS):
        try:
            runs.append(attempt())
            print(f"switch {number + 1}/{ATTEMPTS}: {runs[-1]}", flush=True)
        except (NostrvpnError, RuntimeError) as exc:
            errors.append(str(exc).splitlines()[0])
            print(f"switch {number + 1}/{ATTEMPTS}: {errors[-1]}", flush=True)
    if not runs:
        raise RuntimeError(f"no run of {ATTEMPTS} came to its end: {errors[0]}")

    def values(name: str) -> list[float]:
        return [run[name] for run in runs]

    medians = {
        name: round(statistics.median(values(name)), 3) for name in runs[0] if name.endswith("_s")
    }
    sent, lost = sum(values("upgrade_packets")), sum(values("upgrade_lost"))
    return {
        "upgrade_loss_percent": round(100 * lost / sent, 3),
        **medians,
        "worst_gap_s": {
            name.removesuffix("_gap_s"): round(max(values(name)), 3)
            for name in medians
            if name.endswith("_gap_s")
        },
        "upgrade_packets": sent,
        "packets_per_s": round(1 / INTERVAL_S),
        "success": len(runs),
        "attempts": ATTEMPTS,
        "errors": errors,
    }
