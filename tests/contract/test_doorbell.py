"""The doorbell: WireGuard rings it, and the kept initiation saves the five seconds' wait."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import IPv4Address
from typing import Any

import pytest

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import SystemRefused
from nostrvpn.io import doorbell as module
from nostrvpn.io.doorbell import Doorbell
from tests.contract.namespaced import LIMIT, PORT, join, make_site, until

INITIATION = b"\1\0\0\0" + bytes(144)
SEALED = b"\4\0\0\0" + bytes(44)
KEEPALIVE = b"\4\0\0\0" + bytes(28)


@pytest.fixture
def wireguard() -> Any:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("0.0.0.0", 0))
        yield made


def send(sock: socket.socket, data: bytes, endpoint: Endpoint) -> None:
    sock.sendto(data, (str(endpoint.ip), endpoint.port))


async def test_packets_ring_at_a_bounded_rate_and_initiations_are_kept(
    wireguard: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    rings: list[str] = []
    bell = Doorbell(wireguard.getsockname()[1], rings.append)
    bell.open()
    try:
        anna, berta = bell.endpoint("anna"), bell.endpoint("berta")
        assert anna == bell.endpoint("anna")
        assert anna.ip != berta.ip
        assert anna.port == berta.port
        for _ in range(50):
            send(wireguard, INITIATION, anna)
            send(wireguard, b"\4\0\0\0" + os.urandom(60), anna)
        await until(lambda: bell.counters["kept"] == 50)
        assert rings == ["anna"]
        assert bell.counters["initiations"] == 50
        send(wireguard, KEEPALIVE, berta)
        await until(lambda: bell.counters["swallowed"] == 1)
        assert rings == ["anna"]
        send(wireguard, SEALED, berta)
        await until(lambda: rings == ["anna", "berta"])
        assert bell.take("nobody") == []
        assert bell.take("berta") == [SEALED]
        initiation, *sealed = bell.take("anna")
        assert initiation == INITIATION
        assert len(sealed) == module.MAX_KEPT
        assert bell.take("anna") == []
        # A late one is void: WireGuard has sent another by then, or will not know the answer.
        monkeypatch.setattr(module, "REKEY_TIMEOUT", 0.0)
        monkeypatch.setattr(module, "RING_SECONDS", 0.0)
        send(wireguard, INITIATION, anna)
        await until(lambda: rings == ["anna", "berta", "anna"])
        assert bell.take("anna") == []
    finally:
        bell.close()
        bell.close()


async def test_who_is_not_wireguard_rings_nothing(wireguard: socket.socket) -> None:
    rings: list[str] = []
    bell = Doorbell(wireguard.getsockname()[1], rings.append)
    with pytest.raises(SystemRefused):
        bell.endpoint("anna")
    bell.open()
    try:
        endpoint = bell.endpoint("anna")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            send(stranger, INITIATION, endpoint)
            send(stranger, b"x", Endpoint(IPv4Address("127.0.0.1"), endpoint.port))
        send(wireguard, INITIATION, Endpoint(IPv4Address("127.78.200.200"), endpoint.port))
        assert bell.endpoint("anna") == endpoint
        bell.forget("anna")
        bell.forget("anna")
        send(wireguard, INITIATION, endpoint)
        await until(lambda: bell.counters["nobody"] == 2)
        assert bell.counters["stranger"] == 2
        assert rings == []
        # An address just freed goes to nobody else for long: late packets to it are not for them.
        assert bell.endpoint("carla").ip != endpoint.ip
    finally:
        bell.close()


async def test_a_thousand_sleepers_cost_one_socket(wireguard: socket.socket) -> None:
    rings: list[str] = []
    before = len(os.listdir("/proc/self/fd"))
    bell = Doorbell(wireguard.getsockname()[1], rings.append)
    bell.open()
    try:
        names = [f"peer {number}" for number in range(1000)]
        endpoints = [bell.endpoint(name) for name in names]
        assert len(set(endpoints)) == 1000
        assert len(os.listdir("/proc/self/fd")) == before + 1
        for endpoint in endpoints:
            send(wireguard, INITIATION, endpoint)
            await asyncio.sleep(0)
        await until(lambda: len(rings) == 1000)
        assert sorted(rings) == sorted(names)
    finally:
        bell.close()


@pytest.mark.kernel
def test_the_kept_initiation_completes_the_handshake_at_once(
    make_netns: Callable[[], Any], make_node: Callable[..., Any], interface: str
) -> None:
    left, right = make_netns(), make_netns()
    join(left, right, "10.1.0")
    real = Endpoint(IPv4Address("10.1.0.2"), PORT)
    with ExitStack() as stack:
        here = make_site(make_node, left, interface, "12")
        stack.callback(here.stop)
        there = make_site(make_node, right, interface, "21")
        stack.callback(there.stop)
        rings: list[str] = []
        bell = Doorbell(PORT, rings.append)
        here.call(bell.open)
        stack.callback(lambda: here.call(bell.close))
        here.use(here.call(bell.endpoint, here.peer))
        # One packet, which WireGuard keeps until it has a session.
        command = ("ip", "netns", "exec", left.name, "ping", "-c1", "-W10", "10.9.0.2")
        ping = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        stack.callback(ping.wait, LIMIT)
        here.until(lambda: rings)
        assert rings == [here.peer]
        started = time.monotonic()
        here.use(real)
        [initiation] = here.call(bell.take, here.peer)
        assert here.call(here.tap.send, initiation, real) is None
        here.until(here.has_handshake)
        assert ping.wait(LIMIT) == 0
        # REKEY_TIMEOUT is what it would have taken.
        assert time.monotonic() - started < 2.0
        assert here.node.wg()[here.peer][1] == str(real)
