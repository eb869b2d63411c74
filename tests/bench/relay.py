"""What a relay carries: in the kernel, in user space, and without one for comparison.

Sender, relay and receiver share this machine's cores, so the figures compare the three ways; they are
not what a relay of its own carries. ``batched`` sends 44 datagrams a call (UDP_SEGMENT), ``single``
one a call.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import time
from typing import Any

from nostrvpn.stun.relaying import Side
from tests.conftest import Netns, run
from tests.contract.relay_lab import RelayLab, RunningRelay, allocate, bind, packet, relay_address

DATAGRAM = 1312  # what a tunnel with an MTU of 1280 sends
BATCH = 44
SEND_S = 1.0
QUIET_S = 0.5
RUNS = 3
SINK_PORT = 7777
SO_RCVBUFFORCE = 33
SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104


def send(way: str, kind: str) -> None:
    """In the first client: bind, wait to be told, send for a while."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("", 0))
    sock.settimeout(3)
    to = ("10.2.0.2", SINK_PORT)
    if way != "direct":
        to = relay_address(1, 4, allocate(sock))
        bind(sock, Side.ALLOCATOR, to)
    print(to[1], flush=True)
    sys.stdin.readline()
    sock.setblocking(True)
    sock.connect(to)
    one = packet(1, DATAGRAM)
    many, segment = one * BATCH, [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", DATAGRAM))]
    sent, end = 0, time.monotonic() + SEND_S
    while time.monotonic() < end:
        try:
            if kind == "batched":
                sock.sendmsg([many], segment)
                sent += BATCH
            else:
                sock.send(one)
                sent += 1
        except OSError:  # the device's queue is full
            continue
    print(sent, flush=True)


def sink(way: str, port: int) -> None:
    """In the second client: bind, count what comes, print it."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    sock.bind(("", SINK_PORT))
    sock.settimeout(3)
    if way != "direct":
        bind(sock, Side.OTHER, relay_address(2, 4, port))
    sock.setsockopt(SOL_UDP, UDP_GRO, 1)
    print("ready", flush=True)
    count = sock.recv_into(bytearray(65536))
    first = last = time.monotonic()
    sock.settimeout(QUIET_S)
    buffer = bytearray(65536)
    while True:
        try:
            count += sock.recv_into(buffer)
        except TimeoutError:
            break
        last = time.monotonic()
    print(json.dumps({"packets": count // DATAGRAM, "seconds": last - first}), flush=True)


def one_run(lab: RelayLab, way: str, kind: str) -> dict[str, float]:
    """Send once; packets and Mbit per second that arrived, and the share that did not."""

    def start(netns: Netns, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                "ip",
                "netns",
                "exec",
                netns.name,
                sys.executable,
                "-m",
                "tests.bench.relay",
                *arguments,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    with start(lab.clients[0], "send", way, kind) as sender:
        assert sender.stdout is not None
        assert sender.stdin is not None
        port = sender.stdout.readline().strip()
        with start(lab.clients[1], "sink", way, port) as receiver:
            assert receiver.stdout is not None
            assert receiver.stdout.readline() == "ready\n"
            time.sleep(0.1)  # the kernel learns of the second bind
            sender.stdin.write("go\n")
            sender.stdin.flush()
            sent = int(sender.stdout.readline())
            got = json.loads(receiver.stdout.readline())
    rate = got["packets"] / got["seconds"]
    return {
        "packets_per_s": rate,
        "mbit_per_s": rate * DATAGRAM * 8 / 1e6,
        "lost_percent": 100 * (1 - got["packets"] / sent),
    }


def measure_relay() -> dict[str, object]:
    """Medians of packets/s, Mbit/s and loss for each way and kind."""
    names: list[str] = []

    def make() -> Netns:
        name = f"nvb{os.getpid()}n{len(names)}"
        run("ip", "netns", "add", name)
        names.append(name)
        return Netns(name)

    result: dict[str, object] = {"datagram_bytes": DATAGRAM, "runs": RUNS}
    try:
        lab = RelayLab(make)
        lab.relay.run("sysctl", "-q", "net.ipv4.ip_forward=1")
        for kind in ("batched", "single"):
            for way in ("direct", "kernel", "user_space"):
                runs = [_measured(lab, way, kind) for _ in range(RUNS)]
                result[f"{way}_{kind}"] = {
                    name: round(statistics.median(one[name] for one in runs), 1) for name in runs[0]
                }
    finally:
        for name in names:
            run("ip", "netns", "del", name, check=False)
    return result


def _measured(lab: RelayLab, way: str, kind: str) -> dict[str, float]:
    if way == "direct":
        return one_run(lab, way, kind)
    with RunningRelay(lab, kernel=way == "kernel", mbit_per_s=100_000):
        return one_run(lab, way, kind)


def _child(arguments: list[str]) -> Any:
    return send(*arguments[1:]) if arguments[0] == "send" else sink(arguments[1], int(arguments[2]))


if __name__ == "__main__":
    _child(sys.argv[1:])
