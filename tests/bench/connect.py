"""How long two nodes behind NATs need: cold, and after a restart without any relay."""

from __future__ import annotations

import math
import os
import select
import socket
import statistics
import struct
import threading
import time
from contextlib import suppress
from ipaddress import IPv6Address

from nostrvpn.control.client import ControlClient
from nostrvpn.errors import NostrvpnError
from nostrvpn.identity.keys import parse_npub
from nostrvpn.lab.core import Internet
from nostrvpn.lab.namespaces import Namespace
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.topologies import TwoNats
from nostrvpn.mesh.addressing import ipv6_address
from nostrvpn.mesh.invites import parse_link

ATTEMPTS = 20
DELAY_S = 0.020
GIVE_UP_S = 20.0
PROBE_EVERY_S = 0.004

# One-way trips of 20 ms: the request and the welcome each go to the relay and on (4), then one check
# (2), WireGuard's handshake (2), and the echo itself (2). docs/protocol/paths.md counts them.
FLOOR_MS = 10 * DELAY_S * 1000


class Prober(threading.Thread):
    """Sends ICMPv6 echo requests every few milliseconds; ``answered_at`` is the first reply's time."""

    def __init__(self, namespace: Namespace, address: IPv6Address) -> None:
        super().__init__(daemon=True)
        with namespace.enter():
            self._socket = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        self._socket.setblocking(False)
        self._address = str(address)
        self._ended = threading.Event()
        self.answered_at: float | None = None

    def run(self) -> None:
        identifier, token = os.getpid() & 0xFFFF, os.urandom(8)
        packet = struct.pack("!BBHHH", 128, 0, 0, identifier, 1) + token
        give_up = time.perf_counter() + GIVE_UP_S
        while not self._ended.is_set() and time.perf_counter() < give_up:
            with suppress(OSError):  # no route, no peer, no endpoint: not yet
                self._socket.sendto(packet, (self._address, 0))
            if select.select([self._socket], [], [], PROBE_EVERY_S)[0]:
                data = self._socket.recv(2048)
                if data[:1] == b"\x81" and data.endswith(token):
                    self.answered_at = time.perf_counter()
                    break
        self._socket.close()

    def finish(self) -> float | None:
        """Wait for the first answer (bounded) and return its time."""
        self.join(GIVE_UP_S + 1)
        self._ended.set()
        return self.answered_at


def percentile(values: list[float], share: float) -> float:
    """Return the value below which ``share`` of ``values`` lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered), max(1, math.ceil(share * len(ordered)))) - 1]


def client(node: LabNode) -> ControlClient:
    return ControlClient(f"{node.directory}/run/control.sock")


def ready(node: LabNode) -> None:
    """Start a node and wait until a relay is connected and the public address is known."""
    node.init()
    node.start()
    node.wait_for_relay()
    end = time.monotonic() + GIVE_UP_S
    while not client(node).call("netcheck")["nat"]["reflexive_v4"]:
        if time.monotonic() > end:
            raise RuntimeError(f"{node.name}: STUN does not answer")
        time.sleep(0.05)


def overlay(node: LabNode, network_id: str) -> IPv6Address:
    return ipv6_address(network_id, parse_npub(node.npub))


def attempt() -> dict[str, object]:
    """One cold connect in a fresh lab."""
    with TwoNats(internet=Internet(delay=DELAY_S)) as lab:
        a, b = (lab.node(host, lab.server) for host in (lab.laptop_a, lab.laptop_b))
        for node in (a, b):
            ready(node)
        link = client(a).call("invite", npub=b.npub)["link"]
        prober = Prober(b.namespace, overlay(a, parse_link(link).network_id))
        began = time.perf_counter()
        prober.start()
        client(b).call("join", link=link)
        joined = time.perf_counter()
        answered = prober.finish()
        peers = client(b).call("peers")["peers"]
        return {
            "total": None if answered is None else (answered - began) * 1000,
            "join_answered": (joined - began) * 1000,
            **{name: value for name, value in peers[0]["stages_ms"].items() if value is not None},
        }


def measure_connect() -> dict[str, object]:
    """20 cold connects: from accepting the invite to the first echo over the tunnel."""
    runs: list[dict[str, object]] = []
    for number in range(ATTEMPTS):
        try:
            runs.append(attempt())
        except NostrvpnError as exc:
            runs.append({"total": None, "error": str(exc).splitlines()[0]})
        print(f"connect {number + 1}/{ATTEMPTS}: {runs[-1]['total']}", flush=True)
    totals = [float(str(run["total"])) for run in runs if run["total"] is not None]
    names = {name for run in runs for name in run if name not in ("total", "error")}
    stages = {
        name: statistics.median([float(str(run[name])) for run in runs if name in run])
        for name in names
    }

    return {
        "p50_ms": round(statistics.median(totals), 1) if totals else None,
        "p95_ms": round(percentile(totals, 0.95), 1) if totals else None,
        "floor_ms": FLOOR_MS,
        "success": len(totals),
        "attempts": ATTEMPTS,
        "stages_ms": {k: round(v, 1) for k, v in sorted(stages.items(), key=lambda i: i[1])},
        "samples_ms": [round(total, 1) for total in totals],
        "errors": [run["error"] for run in runs if "error" in run],
    }


def measure_restart() -> dict[str, object]:
    """A daemon restarted while every relay is dead: from its start to the first echo."""
    samples, own, from_start = 7, [], []
    with TwoNats(internet=Internet(delay=DELAY_S), relay=False) as lab:
        relay = lab.start_relay(lab.server)
        a, b = (lab.node(host, lab.server) for host in (lab.laptop_a, lab.laptop_b))
        for node in (a, b):
            ready(node)
        link = client(a).call("invite", npub=b.npub)["link"]
        client(b).call("join", link=link)
        b.wait_for_peer(a.npub, path="direct")
        relay.kill()
        for _ in range(samples):
            b.stop()
            prober = Prober(b.namespace, overlay(a, parse_link(link).network_id))
            began = time.perf_counter()
            prober.start()
            b.start()
            answered = prober.finish()
            if answered is None:
                raise RuntimeError("no echo after the restart")
            from_start.append((answered - began) * 1000)
            peer = b.wait_for_peer(a.npub, path="direct")
            own.append(float(peer["connected_in_ms"]))
    return {
        "samples": samples,
        "p50_ms": round(statistics.median(from_start), 1),
        "connected_in_p50_ms": round(statistics.median(own), 1),
        "floor_ms": 3 * 2 * DELAY_S * 1000,
        "samples_ms": [round(value, 1) for value in from_start],
        "note": "p50_ms begins with the process (imports, interface); connected_in with the peer",
    }
