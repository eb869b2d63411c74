"""What a node costs while nothing happens, and what a command costs."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from nostrvpn.lab.node import LabNode
from nostrvpn.lab.topologies import Mesh
from tests.bench.connect import GIVE_UP_S, client

WATCHED_S = 60.0
SETTLE_S = 50.0  # the tunnels count as in use for 45 s after the last data
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def rss_mb(pid: int) -> float:
    """Resident memory of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1000
    raise RuntimeError("no VmRSS")


def meet_all(owner: LabNode, others: list[LabNode]) -> None:
    """Let everybody join, and wait until the owner reaches all directly."""
    for node in others:
        link = client(owner).call("invite", npub=node.npub)["link"]
        client(node).call("join", link=link)
    end = time.monotonic() + 60 + GIVE_UP_S
    while True:
        peers = client(owner).call("peers")["peers"]
        direct = sum(peer["path"] == "direct" for peer in peers)
        if direct == len(others):
            return
        if time.monotonic() > end:
            raise RuntimeError(f"only {direct} of {len(others)} peers are direct")
        time.sleep(0.5)


def idle_with(peers: int) -> dict[str, object]:
    """One node's cost per idle minute with ``peers`` connected peers."""
    with Mesh(peers + 1) as lab:
        nodes = [lab.node(host, lab.server) for host in lab.hosts]
        for node in nodes:
            node.init()
            node.start()
        for node in nodes:
            node.wait_for_relay()
        meet_all(nodes[0], nodes[1:])
        time.sleep(SETTLE_S)
        pid = nodes[0].process.pid
        before = cpu_seconds(pid)
        time.sleep(WATCHED_S)
        used = cpu_seconds(pid) - before
        return {
            "cpu_s_per_minute": round(used * 60 / WATCHED_S, 3),
            "rss_mb": round(rss_mb(pid), 1),
        }


def measure_idle() -> dict[str, object]:
    """CPU seconds per idle minute and resident memory, with 2 and with 20 peers."""
    return {f"peers_{peers}": idle_with(peers) for peers in (2, 20)}


def measure_status() -> dict[str, object]:
    """CPU seconds of a whole ``nostrvpn status``, cold: a new process each time."""
    with Mesh(2) as lab:
        nodes = [lab.node(host, lab.server) for host in lab.hosts]
        for node in nodes:
            node.init()
            node.start()
        for node in nodes:
            node.wait_for_relay()
        meet_all(nodes[0], nodes[1:])
        samples: dict[str, list[float]] = {"status": [], "status_json": [], "python": []}
        commands = {
            "status": [*nodes[0].command, "status"],
            "status_json": [*nodes[0].command, "status", "--json"],
            "python": [sys.executable, "-c", "pass"],
        }
        for _ in range(11):
            for name, command in commands.items():
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=30)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                samples[name].append(used)
    return {f"{name}_cpu_s": round(statistics.median(s), 3) for name, s in samples.items()}
