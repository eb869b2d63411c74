"""The tap on the port of a real wireguard-go, in a namespace that dies with its thread."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from ipaddress import IPv4Address

import pytest

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.io.tap import Tap
from nostrvpn.stun.binding import render_query

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("wireguard-go", "wg", "ip"))),
    reason="needs root, wireguard-go, wg and ip",
)

CLONE_NEWNET = 0x40000000
LIMIT = 20.0
PORT = 51999
MARK = 0x00A50000


def run(command: str) -> None:
    subprocess.run(command.split(), check=True, timeout=LIMIT, stdin=subprocess.DEVNULL)


async def probe_beside(interface: str) -> None:
    got: asyncio.Queue[tuple[bytes, Endpoint, IPAddress | None, int | None]] = asyncio.Queue()
    tap = Tap(PORT, MARK, lambda *item: got.put_nowait(item))
    tap.open()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.setblocking(False)
        try:
            assert tap.self_test_result is None
            for _ in range(20):
                query = render_query(os.urandom(12))
                peer.sendto(bytes([4, 0, 0, 0]) + os.urandom(28), ("127.0.0.1", PORT))
                peer.sendto(query, ("127.0.0.1", PORT))
                data, source, *_ = await asyncio.wait_for(got.get(), LIMIT)
                assert data == query
                assert tap.send(query, source) is None
                loop = asyncio.get_running_loop()
                answer = await asyncio.wait_for(loop.sock_recvfrom(peer, 2048), LIMIT)
                assert answer == (query, ("127.0.0.1", PORT))
            assert got.empty()
            assert tap.counters["received"] == 20
            assert tap.send(b"x", Endpoint(IPv4Address("11.0.0.1"), 9)) == "ENETUNREACH"
        finally:
            tap.close()
    run(f"wg show {interface}")


def in_namespace(failures: list[BaseException]) -> None:
    interface = f"nvt{os.getpid()}"[:15]
    server = None
    try:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        run("ip link set lo up")
        server = subprocess.Popen(
            ["wireguard-go", "-f", interface],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD": "1"},
        )
        deadline = time.monotonic() + LIMIT
        while not os.path.exists(f"/var/run/wireguard/{interface}.sock"):
            assert time.monotonic() < deadline
            assert server.poll() is None
            time.sleep(0.01)
        run(f"wg set {interface} listen-port {PORT} fwmark {MARK:#x}")
        run(f"ip link set {interface} up")
        asyncio.run(asyncio.wait_for(probe_beside(interface), LIMIT))
    except BaseException as exc:
        failures.append(exc)
    finally:
        if server is not None:
            server.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(LIMIT)


def test_stun_and_wireguard_share_the_port():
    failures: list[BaseException] = []
    thread = threading.Thread(target=in_namespace, args=(failures,))
    thread.start()
    thread.join(LIMIT * 3)
    assert not thread.is_alive()
    if failures:
        raise failures[0]
