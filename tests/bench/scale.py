"""What a mesh of many costs: real daemons, as many as one machine carries, all with public addresses.

They join one after another, so the same daemons are measured in meshes of several sizes. In the end
all are stopped and started at once. The relay's messages are counted by the daemons: what they
published and it accepted, and what it delivered to them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nostrvpn.errors import SystemRefused
from nostrvpn.lab.node import LabNode, Status
from nostrvpn.lab.topologies import Mesh
from tests.bench.connect import client
from tests.bench.idle import cpu_seconds, rss_mb
from tests.kernel.near import NearNode

SIZES = (2, 20, 50)
SETTLE_S = 50.0  # the tunnels count as in use for 45 s after the last data
WATCHED_S = 60.0
LOOK_S = 0.1
# All of these share the machine's cores.
START_GIVE_UP_S = 300.0
GIVE_UP_S = 240.0
STOPPED_AT_ONCE = 4


class OneOfMany(NearNode):
    """A node that may take long to answer: all of them share the machine's cores."""

    def _try_status(self) -> Status | None:
        try:
            return super()._try_status()
        except SystemRefused:
            return None


class BigMesh(Mesh):
    """A mesh whose nodes are talked to without a program each time: there are too many of them."""

    node_type = OneOfMany


def wait_for(what: str, condition: Callable[..., bool], *arguments: object) -> float:
    """Return when it holds; RuntimeError if it does not come true."""
    end = time.monotonic() + GIVE_UP_S
    while not condition(*arguments):
        if time.monotonic() > end:
            raise RuntimeError(f"not within {GIVE_UP_S:.0f} s: {what}")
        time.sleep(LOOK_S)
    return time.monotonic()


def at_once(work: Callable[[LabNode], object], nodes: list[LabNode], most: int) -> None:
    with ThreadPoolExecutor(most) as pool:
        list(pool.map(work, nodes))


def is_on_relay(node: LabNode) -> bool:
    return any(r["state"] == "connected" for r in client(node).call("status")["relays"])


def are_on_relay(nodes: list[LabNode]) -> bool:
    return all(is_on_relay(node) for node in nodes)


def are_settled(nodes: list[LabNode]) -> bool:
    """Whether all know all the others, and reach each directly or let it sleep."""
    for node in nodes:
        peers = client(node).call("peers")["peers"]
        if len(peers) != len(nodes) - 1:
            return False
        if not all(peer["path"] == "direct" or peer["asleep"] for peer in peers):
            return False
    return True


def log_of(node: LabNode) -> frozenset[str]:
    """Return the operations of a node's roster, by id: equal ones are equal rosters."""
    return frozenset(entry["id"] for entry in client(node).call("network_log")["operations"])


def agree(nodes: list[LabNode]) -> bool:
    """Whether all have the same roster, with all of them; the cheaper question comes first."""
    if any(client(node).call("network")["members"] != len(nodes) for node in nodes):
        return False
    return len({log_of(node) for node in nodes}) == 1


def relay_messages(nodes: Iterable[LabNode]) -> dict[str, Any]:
    """Return what the daemons and the relay told each other since the daemons began."""
    counters = [
        relay["counters"] for node in nodes for relay in client(node).call("status")["relays"]
    ]

    def values(name: str) -> list[int]:
        return [counter.get(name, 0) for counter in counters]

    return {
        "published": sum(values("accepted")),
        "published_most_by_one": max(values("accepted")),
        "refused": sum(values("refused")),
        "delivered": sum(values("received")),
        "connects": sum(values("connects")),
    }


def launch(nodes: list[LabNode]) -> None:
    """Start all of them at once."""
    at_once(lambda node: node.start(timeout=START_GIVE_UP_S), nodes, len(nodes))


def let_in(owner: LabNode, guest: LabNode) -> float:
    """Let one more join; return when it began."""
    link = client(owner).call("invite", npub=guest.npub)["link"]
    began = time.monotonic()
    client(guest).call("join", link=link)
    return began


def grow(nodes: list[LabNode], present: int) -> float:
    """Start all but the first ``present`` nodes, and let them join one after another.

    Returns how long it took, in seconds, from the last one's join until all had the same roster; it
    joins when all the others agree.
    """
    newcomers = nodes[present:]
    for node in newcomers:
        node.init()
    launch(newcomers)
    wait_for("all on the relay", are_on_relay, newcomers)
    owner, *guests = nodes
    for guest in guests[max(0, present - 1) : -1]:
        let_in(owner, guest)
    if len(guests) > 1:
        wait_for(f"{len(guests)} agree", agree, nodes[:-1])
    began = let_in(owner, guests[-1])
    return wait_for(f"{len(nodes)} agree", agree, nodes) - began


def rest(nodes: list[LabNode]) -> dict[str, object]:
    """Memory and CPU time of each daemon while nothing happens, after all have settled."""
    wait_for("all settled", are_settled, nodes)
    time.sleep(SETTLE_S)
    pids = [node.process.pid for node in nodes]
    before, published = [cpu_seconds(pid) for pid in pids], relay_messages(nodes)["published"]
    time.sleep(WATCHED_S)
    used = [
        (cpu_seconds(pid) - old) * 60 / WATCHED_S for pid, old in zip(pids, before, strict=True)
    ]
    return {
        "rss_mb": round(statistics.median(map(rss_mb, pids)), 1),
        "cpu_s_per_minute": round(statistics.median(used), 3),
        "cpu_s_per_minute_most": round(max(used), 3),
        "published_per_minute": relay_messages(nodes)["published"] - published,
    }


def start_again(nodes: list[LabNode]) -> dict[str, object]:
    """Stop all, start all at once: how long until they stand, and what the relay was told."""
    at_once(LabNode.stop, nodes, STOPPED_AT_ONCE)
    began = time.monotonic()
    launch(nodes)
    answering = time.monotonic()
    on_relay = wait_for("all on the relay", are_on_relay, nodes)
    settled = wait_for("all settled", are_settled, nodes)
    until_settled = relay_messages(nodes)
    cpu = [cpu_seconds(node.process.pid) for node in nodes]
    time.sleep(WATCHED_S)
    return {
        "answering_s": round(answering - began, 1),
        "on_relay_s": round(on_relay - began, 1),
        "settled_s": round(settled - began, 1),
        "cpu_s_median": round(statistics.median(cpu), 2),
        "relay_messages": until_settled,
        "relay_messages_a_minute_later": relay_messages(nodes),
        "same_roster": agree(nodes),
    }


def measure_scale() -> dict[str, object]:
    """Memory, CPU time, agreement and a common start of up to 50 real daemons."""
    result: dict[str, object] = {}
    most = SIZES[-1]
    with BigMesh(most) as lab:
        nodes = [lab.node(host, lab.server) for host in lab.hosts]
        present = 0
        for size in SIZES:
            mesh = nodes[:size]
            agreed_s = round(grow(mesh, present), 2)
            present = size
            result[f"roster_convergence_s_{size}_real"] = agreed_s
            costs = rest(mesh)
            result |= {f"{name}_{size}": value for name, value in costs.items()}
            print(f"scale: {size} daemons: {costs}, agreed in {agreed_s} s", flush=True)
        result[f"start_at_once_{most}"] = start_again(nodes)
    return result
