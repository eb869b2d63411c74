"""What the suites with real daemons share: homes with laptops in them, and nodes that meet.

A test says ``with homes(2) as lab`` and ``join(*lab.nodes)``; any other lab it wraps in ``watched``.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from nostrvpn.lab.leftovers import WIREGUARD_SOCKETS, leftovers
from nostrvpn.lab.node import LabNode, Status
from nostrvpn.lab.patience import wait_until
from nostrvpn.lab.processes import Process
from nostrvpn.lab.topology import Host, Lab, Router, Server

__all__ = [
    "Homes",
    "Pinging",
    "admit",
    "homes",
    "join",
    "launch",
    "machine",
    "peer_of",
    "ping",
    "problems",
    "wait_direct",
    "watched",
]

DIRECT_TIMEOUT = 30.0
PING_INTERVAL = 0.1

FAILURE = re.compile(r"Traceback|\bCRITICAL\b|\bERROR\b|never retrieved|never awaited")
"""What no daemon's log may hold, whatever the outside world does."""

Json = dict[str, Any]
AnyLab = TypeVar("AnyLab", bound=Lab)


class Homes(Lab):
    """A server outside, and up to six homes: a port-restricted NAT, a laptop, a node on it."""

    def __init__(self, size: int, *, record: bool = False) -> None:
        super().__init__()
        self._size = size
        self._record = record

    server: Server

    def build(self) -> None:
        self.server = self.server_host(relay=False)
        self.relay = self.start_relay(self.server, record=self._record)
        self.routers: list[Router] = []
        self.laptops: list[Host] = []
        for letter in "abcdef"[: self._size]:
            self.routers.append(self.router(f"nat-{letter}"))
            self.laptops.append(self.host(f"laptop-{letter}", self.routers[-1]))
            self.node(self.laptops[-1], self.server)

    def second_node(self, host: Host, interface: str) -> LabNode:
        """Put another node on ``host``, with its own interface and directories."""
        node = LabNode(
            host.namespace,
            directory=self.directory / f"node-{host.name}-{interface}",
            interface=interface,
            relays=(self.server.relay_url,),
            stun=tuple(map(str, self.server.stun)),
            settings={},
        )
        self.nodes.append(node)
        self.stack.callback(node.close)
        return node


@contextmanager
def homes(size: int = 2, *, record: bool = False) -> Iterator[Homes]:
    """Run a lab of so many ``Homes``, ``watched``; its nodes are not started."""
    with watched(Homes(size, record=record)) as lab:
        yield lab


@contextmanager
def watched(lab: AnyLab) -> Iterator[AnyLab]:
    """Run a lab; in the end no daemon may have logged a failure, and nothing may be left."""
    with lab:
        yield lab
        footprint = lab.footprint()
        failures = [
            f"{node.name}: {line}"
            for node in lab.nodes
            for log in (node.log, node.directory / "state/daemon.log")
            if log.exists()
            for line in log.read_text(errors="replace").splitlines()
            if FAILURE.search(line)
        ]
        assert not failures, f"logs in {lab.report()}\n" + "\n".join(failures)
    left = leftovers(footprint)
    assert not left, left


def launch(*nodes: LabNode) -> None:
    """Make identities, start the daemons, and wait until all have a relay."""
    for node in nodes:
        node.init()
        node.start()
    for node in nodes:
        node.wait_for_relay()


def admit(owner: LabNode, guest: LabNode) -> None:
    """Invite and join; return when both list each other."""
    guest.query("join", owner.query("invite", guest.npub)["link"])
    guest.wait_for_peer(owner.npub)
    owner.wait_for_peer(guest.npub)


def wait_direct(*nodes: LabNode, timeout: float = DIRECT_TIMEOUT) -> None:
    """Wait until every one of ``nodes`` has a direct path to every other."""
    for node in nodes:
        others = {other.npub for other in nodes if other is not node}
        node.wait_for(partial(_has_direct, others), "direct to all", timeout=timeout)


def _has_direct(wanted: set[str], status: Status) -> bool:
    return wanted <= {peer["npub"] for peer in status["peers"] if peer["path"] == "direct"}


def join(owner: LabNode, *guests: LabNode) -> None:
    """Launch all, admit the guests, and wait until all are direct to all."""
    launch(owner, *guests)
    for guest in guests:
        admit(owner, guest)
    wait_direct(owner, *guests)


def peer_of(node: LabNode, other: LabNode) -> Json:
    """Return how ``node`` sees ``other`` now."""
    return next(peer for peer in node.status()["peers"] if peer["npub"] == other.npub)


def problems(status: Status) -> dict[str, str]:
    """Return the texts of a status's problems by their codes."""
    return {problem["code"]: problem["text"] for problem in status["problems"]}


def ping(source: LabNode, target: LabNode, *, deadline: int = 10) -> None:
    """Cross the tunnel once with each IP version, within ``deadline`` seconds; fail otherwise."""
    for address in target.status()["addresses"]:
        argv = ("ping", "-n", "-c", "1", "-i", "0.2", "-w", str(deadline), address)
        source.namespace.run(*argv, timeout=deadline + 10)


class Pinging:
    """Echoes across the tunnel for as long as the block runs, ten a second if not told otherwise."""

    def __init__(
        self, source: LabNode, target: LabNode, *, interval: float = PING_INTERVAL
    ) -> None:
        address = target.status()["addresses"][0]
        argv = ("ping", "-n", "-D", "-i", str(interval), address)
        self._process = Process(source.namespace, argv, log=source.directory / "pinging.log")

    def __enter__(self) -> Pinging:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.stop()

    def answered(self) -> int:
        """Return how many echoes came back so far."""
        return self._process.output().count("bytes from")

    def wait_more(self, count: int = 5, *, timeout: float = 10.0) -> None:
        """Wait until that many further echoes have come back."""
        wanted = self.answered() + count
        wait_until(lambda: self.answered() >= wanted, f"{count} more echoes", timeout=timeout)

    def gap(self) -> float:
        """Return the longest time between two echoes that came back so far, in seconds."""
        times = [
            float(at) for at in re.findall(r"\[(\d+\.\d+)\] \d+ bytes", self._process.output())
        ]
        return max(later - earlier for earlier, later in pairwise(times))

    def totals(self) -> tuple[int, int]:
        """End it, and return how many echoes left and how many did not come back.

        The last one, which may still be on its way, is not counted as lost.
        """
        self._process.signal(signal.SIGINT)
        wait_until(lambda: "received" in self._process.output(), "the end of ping")
        found = re.search(r"(\d+) packets transmitted, (\d+) received", self._process.output())
        assert found is not None
        sent, received = int(found[1]), int(found[2])
        return sent, max(0, sent - received - 1)

    def lost(self) -> int:
        """End it, and return how many echoes did not come back."""
        return self.totals()[1]


def machine(node: LabNode) -> Json:
    """Return all that a node could have changed on its machine, to compare before and after."""
    namespace = node.namespace

    def listed(*argv: str) -> Any:
        text = namespace.run(*argv, check=False).stdout
        return json.loads(text) if text.strip() else []

    sysctls = namespace.run("sysctl", "-a", "--pattern", r"^net\.", check=False).stdout.splitlines()
    return {
        "links": listed("ip", "-j", "link"),
        "addresses": listed("ip", "-j", "addr"),
        "routes": listed("ip", "-j", "route", "show", "table", "all"),
        "routes6": listed("ip", "-j", "-6", "route", "show", "table", "all"),
        "rules": listed("ip", "-j", "rule"),
        "rules6": listed("ip", "-j", "-6", "rule"),
        "nft": namespace.run("nft", "list", "ruleset").stdout,
        # This one counts flows, and is no setting.
        "sysctls": [line for line in sysctls if "nf_conntrack_count" not in line],
        "processes": [Path(f"/proc/{pid}/cmdline").read_text() for pid in namespace.pids()],
        "sockets": [
            str(directory)
            for directory in WIREGUARD_SOCKETS
            if (directory / f"{node.interface}.sock").exists()
        ],
    }
