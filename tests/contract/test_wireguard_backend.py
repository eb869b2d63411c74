"""One suite for every WireGuard backend; ``wg`` is the independent witness of what was set.

The kernel's half needs the wireguard module: ``tests/kernel`` boots a kernel that has it.
"""

from __future__ import annotations

import asyncio
import socket
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import SystemRefused
from nostrvpn.host.links import SOLD, link_beside
from nostrvpn.io.cleanup import remove_marked
from nostrvpn.io.netlink import find_link
from nostrvpn.io.wireguard import Backend
from nostrvpn.io.wireguard_kernel import KernelBackend
from nostrvpn.io.wireguard_userspace import UserspaceBackend
from nostrvpn.wireguard.device import Device, Peer, SecretKey
from nostrvpn.wireguard.diff import diff

PSK = SecretKey(bytes([9] * 32))
HOME = Endpoint(ip_address("192.0.2.1"), 51820)
HOME6 = Endpoint(ip_address("2001:db8::1"), 51821)
SOCKETS = Path("/var/run/wireguard")


def private(number: int) -> SecretKey:
    # Not in the first byte: X25519 ignores its low bits.
    return SecretKey((number << 64).to_bytes(32, "little"))


def public(number: int) -> str:
    return private(number).public_key


def networks(*prefixes: str) -> frozenset[Any]:
    return frozenset(map(ip_network, prefixes))


KEY = private(1)
A, B = public(2), public(3)


@pytest.fixture(params=["userspace", pytest.param("kernel", marks=pytest.mark.kernel)])
def backend(request: pytest.FixtureRequest, needs: Callable[[bool, str], None]) -> Backend:
    if request.param == "userspace":
        found: Backend = UserspaceBackend()
        if found.unavailable():
            pytest.fail(f"no userspace WireGuard: {found.unavailable()}")
        return found
    needs(not KernelBackend().unavailable(), "the kernel module wireguard")
    return KernelBackend()


@pytest.fixture
def node(make_node: Callable[..., Any], netns: Any, backend: Backend, interface: str) -> Any:
    return make_node(netns, backend, interface)


def eventually(is_so: Callable[[], object], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_a_created_device_is_bare_marked_and_deleted_without_a_trace(node: Any) -> None:
    assert node.observe() is None
    node.create(mtu=1300)
    assert node.observe().is_bare
    link = node.netns.call(find_link, node.interface)
    assert (link.alias, link.mtu, link.is_ours) == ("nostrvpn", 1300, True)
    pids = node.pids()
    node.delete()
    assert node.observe() is None
    assert node.interface not in node.netns.ip("link")
    assert not (SOCKETS / f"{node.interface}.sock").exists()
    assert not [pid for pid in pids if Path(f"/proc/{pid}/ns/net").exists()]
    node.delete()


def test_everything_desired_is_set_once(node: Any) -> None:
    node.create()
    desired = Device(
        KEY,
        51877,
        0x1234,
        (
            Peer(A, networks("10.0.0.2/32", "fd00::2/128"), 25, HOME, 1, PSK),
            Peer(B, networks("10.0.0.3/32"), 0, HOME6, 1),
        ),
    )
    node.settle(desired)
    said = node.wg()
    clamped = said[""][0]
    assert SecretKey(b64decode(clamped)).public_key == KEY.public_key
    assert said[""][1:] == [KEY.public_key, "51877", "0x1234"]
    psk, endpoint, allowed, *_, keepalive = said[A]
    assert (psk, endpoint, keepalive) == (PSK.base64, str(HOME), "25")
    assert set(allowed.split(",")) == {"10.0.0.2/32", "fd00::2/128"}
    assert said[B][:3] == ["(none)", str(HOME6), "10.0.0.3/32"]
    assert said[B][-1] == "off"
    found = node.observe()
    assert {p.public_key: p.endpoint for p in found.peers} == {A: HOME, B: HOME6}
    assert {p.preshared_key for p in found.peers} == {PSK, None}
    assert {p.last_handshake_wall for p in found.peers} == {None}
    assert node.settle(desired) == []


def test_what_is_no_longer_desired_is_cleared(node: Any) -> None:
    node.create()
    node.settle(
        Device(
            KEY,
            51878,
            7,
            (
                Peer(A, networks("10.0.0.2/32", "10.0.0.9/32"), 25, HOME, 1, PSK),
                Peer(B, networks("10.0.0.3/32")),
            ),
        )
    )
    bare = Device(KEY, 51878, 0, (Peer(A, networks("10.0.0.3/32")),))
    node.settle(bare)
    said = node.wg()
    assert said[""][-1] == "off"
    assert set(said) == {"", A}
    assert said[A][:3] == ["(none)", str(HOME), "10.0.0.3/32"]
    assert said[A][-1] == "off"
    assert node.settle(bare) == []


def test_a_new_key_keeps_the_peers(node: Any) -> None:
    node.create()
    peers = (Peer(A, networks("10.0.0.2/32"), 25, HOME, 1, PSK),)
    node.settle(Device(KEY, 51879, 0, peers))
    node.settle(Device(private(7), 51879, 0, peers))
    assert node.wg()[""][1] == public(7)
    assert node.wg()[A][0] == PSK.base64


def test_many_peers_are_read_back_whole(node: Any) -> None:
    node.create()
    peers = tuple(
        Peer(
            b64encode((number + 9).to_bytes(32, "big")).decode(),
            networks(
                *(f"10.{number >> 8}.{number & 255}.{i}/32" for i in range(8)),
                f"fd00:{number:x}::/64",
            ),
            0,
            Endpoint(ip_address("192.0.2.1"), 1000 + number),
            1,
        )
        for number in range(60)
    )
    # One peer whose addresses alone exceed a netlink message, so that its dump is continued.
    many = Peer(A, networks(*(f"10.200.{i >> 8}.{i & 255}/32" for i in range(700))))
    desired = Device(KEY, 51880, 0, (*peers, many))
    node.settle(desired)
    found = {peer.public_key: peer.allowed_ips for peer in node.observe().peers}
    assert found == {peer.public_key: peer.allowed_ips for peer in desired.peers}
    assert node.settle(desired) == []


def test_redirects_are_as_before_when_the_last_device_is_gone(
    netns: Any, make_node: Callable[..., Any], backend: Backend, interface: str
) -> None:
    """The kernel turns them off for the whole namespace when a WireGuard link comes up."""
    setting = Path("/proc/sys/net/ipv4/conf/all/send_redirects")
    nodes = [make_node(netns, backend, interface + suffix) for suffix in "ab"]
    for before in ("1", "0"):
        netns.call(setting.write_text, before)
        for node in nodes:
            node.create()
            node.up()
        nodes[0].delete()
        if backend.name == "kernel":
            assert netns.call(setting.read_text).strip() == "0"
        nodes[1].delete()
        assert netns.call(setting.read_text).strip() == before


def test_adopts_its_own_running_device(node: Any) -> None:
    node.create()
    desired = Device(KEY, 51881, 0, (Peer(A, networks("10.0.0.2/32")),))
    node.settle(desired)
    pids = node.pids()
    node.create(mtu=1400)
    assert node.pids() == pids
    assert node.settle(desired) == []
    assert node.netns.call(find_link, node.interface).mtu == 1400


def test_adopts_a_bare_device_that_lost_its_mark(node: Any) -> None:
    node.create()
    node.netns.ip("link", "set", node.interface, "alias", "")
    node.create()
    assert node.netns.call(find_link, node.interface).is_ours


def test_leaves_a_device_of_somebody_else_alone(node: Any) -> None:
    node.create()
    node.settle(Device(KEY, 51882, 0, ()))
    node.netns.ip("link", "set", node.interface, "alias", "")
    with pytest.raises(SystemRefused, match="not nostrvpn's"):
        node.create()
    with pytest.raises(SystemRefused, match="not nostrvpn's"):
        node.delete()
    with pytest.raises(SystemRefused, match="not nostrvpn's"):
        node.settle(Device(private(7), 51882, 0, (Peer(A, networks("10.0.0.2/32")),)))
    assert node.netns.call(remove_marked) == ()
    assert node.observe().public_key == KEY.public_key
    assert node.observe().peers == ()
    node.netns.ip("link", "del", node.interface)


def test_leaves_a_link_of_another_kind_alone(node: Any) -> None:
    node.netns.ip("link", "add", node.interface, "type", "veth", "peer", "name", "other")
    with pytest.raises(SystemRefused, match="not nostrvpn's") as caught:
        node.create()
    assert "--interface" in caught.value.hint
    assert node.observe() is None
    with pytest.raises(SystemRefused):
        node.delete()
    assert node.interface in node.netns.ip("link")


def test_a_taken_port_is_refused_by_name(node: Any) -> None:
    node.create()
    with node.netns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", 51883))
        with pytest.raises(SystemRefused, match="51883"):
            node.settle(Device(KEY, 51883))
    node.settle(Device(KEY, 51883))
    assert node.wg()[""][2] == "51883"


def test_a_device_that_vanished_is_reported(node: Any) -> None:
    node.create()
    node.delete()
    device = Device(KEY, 51884)
    ops = diff(None, device, {}, interface=node.interface)
    with pytest.raises(SystemRefused):
        node.netns.call(node.backend.apply, node.interface, ops, device)


def test_cleanup_needs_no_state(node: Any) -> None:
    node.create()
    pids = node.pids()
    node.netns.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    node.netns.ip("link", "set", "veth0", "alias", "not nostrvpn")
    assert node.netns.call(remove_marked, "other") == ()
    assert node.netns.call(remove_marked) == (node.interface,)
    assert not (SOCKETS / f"{node.interface}.sock").exists()
    assert not [pid for pid in pids if Path(f"/proc/{pid}/ns/net").exists()]
    assert "veth0" in node.netns.ip("link")
    assert node.netns.call(remove_marked) == ()


def test_cleanup_finds_a_device_that_was_never_marked_if_it_is_named(node: Any) -> None:
    """Who is killed between making a device and marking it leaves that."""
    node.create()
    node.netns.ip("link", "set", node.interface, "alias", "")
    assert node.netns.call(remove_marked) == ()
    assert node.netns.call(remove_marked, "other") == ()
    node.settle(Device(KEY, 51885))
    assert node.netns.call(remove_marked, node.interface) == ()  # somebody put it to use
    node.netns.ip("link", "set", node.interface, "alias", "nostrvpn")
    node.delete()
    node.create()
    node.netns.ip("link", "set", node.interface, "alias", "")
    assert node.netns.call(remove_marked, node.interface) == (node.interface,)
    assert node.observe() is None
    assert not (SOCKETS / f"{node.interface}.sock").exists()


def test_cleanup_finds_such_a_device_beside_the_named_one(
    make_node: Callable[..., Any], netns: Any, backend: Backend, interface: str
) -> None:
    beside = make_node(netns, backend, link_beside(interface, SOLD))
    beside.create()
    netns.ip("link", "set", beside.interface, "alias", "")
    assert netns.call(remove_marked, interface) == (beside.interface,)
    assert beside.observe() is None


async def test_works_in_a_worker_thread_beside_a_running_loop(node: Any) -> None:
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    heart = asyncio.ensure_future(beat())
    await asyncio.to_thread(node.create)
    await asyncio.to_thread(node.settle, Device(KEY, 51885, 0, (Peer(A, networks("::/0")),)))
    assert (await asyncio.to_thread(node.observe)).peers[0].public_key == A
    heart.cancel()
    assert beats > 0


def test_traffic_roaming_and_a_decided_endpoint(
    make_netns: Callable[[], Any],
    make_node: Callable[..., Any],
    backend: Backend,
    interface: str,
) -> None:
    """Two devices meet over a veth; one changes its address; the other follows by itself.

    left 198.51.100.1 ---- veth ---- 198.51.100.2, later .3 right
    """
    left = make_node(make_netns(), backend, interface + "l")
    right = make_node(make_netns(), backend, interface + "r")
    left.netns.ip("link", "add", "e0", "type", "veth", "peer", "e0", "netns", right.netns.name)
    for node, address in ((left, "198.51.100.1/24"), (right, "198.51.100.2/24")):
        node.netns.ip("addr", "add", address, "dev", "e0")
        node.netns.ip("link", "set", "e0", "up")
        node.create()
    to_right = Peer(
        public(12), networks("10.9.0.2/32"), 0, Endpoint(ip_address("198.51.100.2"), 5002), 1, PSK
    )
    to_left = Peer(
        public(11), networks("10.9.0.1/32"), 0, Endpoint(ip_address("198.51.100.1"), 5001), 1, PSK
    )
    left_device = Device(private(11), 5001, 0, (to_right,))
    right_device = Device(private(12), 5002, 0, (to_left,))
    left.settle(left_device)
    right.settle(right_device)
    left.up("10.9.0.1/32", routes=("10.9.0.0/24",))
    right.up("10.9.0.2/32", routes=("10.9.0.0/24",))
    right.netns.run("ping", "-c", "2", "-i", "0.2", "-W", "10", "10.9.0.1")
    peer = left.observe().peers[0]
    assert abs(peer.last_handshake_wall - time.time()) < 60
    assert peer.rx_bytes > 148
    assert peer.tx_bytes > 92

    right_device = replace(right_device, listen_port=5003)
    right.settle(right_device)
    moved = Endpoint(ip_address("198.51.100.2"), 5003)

    def has_followed() -> bool:
        right.netns.run("ping", "-c", "1", "-W", "1", "10.9.0.1", check=False)
        return bool(left.observe().peers[0].endpoint == moved)

    eventually(has_followed)
    assert left.settle(left_device) == []
    assert left.observe().peers[0].endpoint == moved

    decided = replace(left_device, peers=(replace(to_right, endpoint_generation=2),))
    ops = left.settle(decided)
    assert [str(op) for op in ops] == [
        f"wg set {left.interface} peer {public(12)} endpoint 198.51.100.2:5002"
    ]
    assert left.settle(decided) == []
    for node in (left, right):
        node.delete()
        assert not (SOCKETS / f"{node.interface}.sock").exists()
