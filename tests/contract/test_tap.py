"""The tap beside a real owner of the port: a UDP socket, and wireguard-go, in our own namespace."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.io.tap import Tap
from nostrvpn.stun.binding import parse_stun, render_query

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="raw sockets need root")
pytestmark = needs_root

WAIT = 2.0
CLONE_NEWNET = 0x40000000
Got = asyncio.Queue[tuple[bytes, Endpoint, IPAddress | None, int | None]]


def udp(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((address, 0))
    sock.setblocking(False)
    return sock


@contextlib.contextmanager
def namespace_with_mtu(mtu: int) -> Iterator[None]:
    """Move this thread into a namespace of its own, whose loopback has this MTU."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        subprocess.run(f"ip link set lo mtu {mtu} up".split(), check=True, timeout=WAIT)
        yield
    finally:
        libc.setns(home, CLONE_NEWNET)
        os.close(home)


@contextlib.asynccontextmanager
async def tapped(port: int) -> AsyncIterator[tuple[Tap, Got]]:
    got: Got = asyncio.Queue()
    tap = Tap(port, 0, lambda *item: got.put_nowait(item))
    tap.open()
    try:
        yield tap, got
    finally:
        tap.close()


async def received(sock: socket.socket, limit: int = 2048) -> tuple[bytes, tuple[str, int]]:
    loop = asyncio.get_running_loop()
    data, address = await asyncio.wait_for(loop.sock_recvfrom(sock, limit), WAIT)
    return data, address[:2]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_both_see_a_stun_packet_and_the_answer_leaves_from_the_owners_port(address):
    with udp(address) as owner, udp(address) as peer:
        port = owner.getsockname()[1]
        async with tapped(port) as (tap, got):
            query = render_query(os.urandom(12))
            peer.sendto(query, (address, port))
            data, source, destination, arrived_on = await asyncio.wait_for(got.get(), WAIT)
            assert arrived_on is None
            assert data == query
            assert source == Endpoint(ip_address(address), peer.getsockname()[1])
            assert destination == ip_address(address)
            assert (await received(owner))[0] == query
            assert tap.send(query, source) is None
            assert await received(peer) == (query, (address, port))
            assert tap.self_test_result is None
            assert tap.counters["received"] == tap.counters["sent"] == 1


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_data_packets_and_other_ports_are_not_seen(address):
    with udp(address) as owner, udp(address) as other, udp(address) as peer:
        port = owner.getsockname()[1]
        async with tapped(port) as (tap, got):
            peer.sendto(b"\x04\0\0\0" + bytes(28), (address, port))
            peer.sendto(render_query(os.urandom(12)), (address, other.getsockname()[1]))
            peer.sendto(b"\0\x01", (address, port))
            last = render_query(os.urandom(12))
            peer.sendto(last, (address, port))
            data, *_ = await asyncio.wait_for(got.get(), WAIT)
            assert data == last
            assert got.empty()
            assert tap.counters["received"] == 1


async def test_a_packet_with_ip_options_is_found():
    with udp("127.0.0.1") as owner, udp("127.0.0.1") as peer:
        port = owner.getsockname()[1]
        async with tapped(port) as (_, got):
            peer.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x01\x01\x01\x00")
            query = render_query(os.urandom(12))
            peer.sendto(query, ("127.0.0.1", port))
            assert (await asyncio.wait_for(got.get(), WAIT))[0] == query


async def test_a_later_fragment_that_looks_like_stun_is_not_seen():
    with udp("127.0.0.1") as owner, udp("127.0.0.1") as peer:
        port = owner.getsockname()[1]
        async with tapped(port) as (tap, got):
            query = render_query(os.urandom(12))
            segment = struct.pack("!HHHH", 7, port, 8 + len(query), 0) + query
            header = struct.pack(
                "!BBHHHBBH4s4s",
                *(0x45, 0, 20 + len(segment), 77, 0x0010, 64, 17, 0),
                IPv4Address("127.0.0.1").packed,
                IPv4Address("127.0.0.1").packed,
            )
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as forge:
                forge.sendto(header + segment, ("127.0.0.1", 0))
            peer.sendto(query, ("127.0.0.1", port))
            _, source, *_ = await asyncio.wait_for(got.get(), WAIT)
            assert source.port == peer.getsockname()[1]
            assert got.empty()
            assert tap.counters["received"] == 1


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_the_ttl_of_an_opener_is_on_the_wire_and_only_on_its_packet(address):
    six = ":" in address
    level, option = (
        (socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT)
        if six
        else (socket.IPPROTO_IP, 12)  # IP_RECVTTL
    )
    with udp(address) as owner, udp(address) as peer:
        peer.setsockopt(level, option, 1)
        peer.setblocking(True)
        peer.settimeout(WAIT)
        async with tapped(owner.getsockname()[1]) as (tap, _):
            to = Endpoint(ip_address(address), peer.getsockname()[1])
            seen = []
            for ttl in (4, None):
                assert tap.send(render_query(os.urandom(12)), to, ttl) is None
                _, ancillary, _, _ = peer.recvmsg(2048, 64)
                seen.append(struct.unpack("=i", ancillary[0][2])[0])
            assert seen[0] == 4
            assert seen[1] > 4


async def test_the_source_address_can_be_chosen():
    with udp("127.0.0.1") as owner, udp("127.0.0.1") as peer:
        port = owner.getsockname()[1]
        async with tapped(port) as (tap, _):
            to = Endpoint(IPv4Address("127.0.0.1"), peer.getsockname()[1])
            query = render_query(os.urandom(12))
            assert tap.send(query, to, None, IPv4Address("127.0.0.9")) is None
            assert await received(peer) == (query, ("127.0.0.9", port))
            assert tap.send(query, to, None, IPv6Address("::1")) == "source of the other family"


async def test_the_checksum_of_any_length_is_right():
    """A UDP socket drops packets with a wrong checksum, unless the device vouches for it: loopback
    does for packets the kernel made, not for ours."""
    with udp("127.0.0.1") as owner, udp("127.0.0.1") as peer:
        async with tapped(owner.getsockname()[1]) as (tap, _):
            to = Endpoint(IPv4Address("127.0.0.1"), peer.getsockname()[1])
            for size in (0, 1, 2, 3, 120, 121, 1200):
                data = os.urandom(size)
                assert tap.send(data, to) is None
                assert (await received(peer))[0] == data


async def test_networks_that_cannot_be_reached_are_a_reason_and_not_an_exception():
    with udp("127.0.0.1") as owner:
        async with tapped(owner.getsockname()[1]) as (tap, _):
            query = render_query(os.urandom(12))
            for text in ("240.0.0.1", "255.255.255.255", "fe80::1", "2d00:ffff::1"):
                reason = tap.send(query, Endpoint(ip_address(text), 9))
                assert reason is None or reason.isupper() or reason == "no IPv6", (text, reason)
            assert tap.send(query, Endpoint(IPv4Address("255.255.255.255"), 9)) is not None
            assert any(name.startswith("send ") for name in tap.counters)
    assert tap.send(query, Endpoint(IPv4Address("127.0.0.1"), 9)) == "closed"
    assert tap.send(query, Endpoint(IPv6Address("::1"), 9)) == "closed"


async def test_a_flood_of_garbage_is_counted_and_does_not_hide_what_is_real():
    with udp("127.0.0.1") as owner, udp("127.0.0.1") as peer:
        port = owner.getsockname()[1]
        async with tapped(port) as (tap, got):
            cookie = bytes.fromhex("2112a442")
            for _ in range(300):
                peer.sendto(b"\xff\0\0\0" + cookie + os.urandom(40), ("127.0.0.1", port))
            peer.sendto(b"\0\x01\0\0" + cookie + bytes(3000), ("127.0.0.1", port))
            query = render_query(os.urandom(12))
            peer.sendto(query, ("127.0.0.1", port))
            data, *_ = await asyncio.wait_for(got.get(), WAIT)
            assert parse_stun(data).transaction == query[8:20]
            assert tap.counters["malformed"] == 300
            assert tap.counters["oversized"] == 1
            assert tap.counters["received"] == 1


async def test_routes_are_asked_again_after_they_changed():
    with udp("127.0.0.1") as owner, udp("127.0.0.1") as peer:
        async with tapped(owner.getsockname()[1]) as (tap, _):
            to = Endpoint(IPv4Address("127.0.0.1"), peer.getsockname()[1])
            tap._routes[IPv4Address("127.0.0.1")] = IPv4Address("127.0.0.7")
            tap.send(b"one", to)
            assert (await received(peer))[1][0] == "127.0.0.7"
            tap.routes_changed()
            tap.send(b"two", to)
            assert (await received(peer))[1][0] == "127.0.0.1"


async def test_opening_twice_on_one_port_and_closing_twice_are_fine():
    with udp("127.0.0.1") as owner, udp("127.0.0.1") as peer:
        port = owner.getsockname()[1]
        async with tapped(port) as (first, got_first), tapped(port) as (_, got_second):
            peer.sendto(render_query(os.urandom(12)), ("127.0.0.1", port))
            await asyncio.wait_for(got_first.get(), WAIT)
            await asyncio.wait_for(got_second.get(), WAIT)
            first.close()
        first.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_other_source_ports_and_what_comes_back_to_them(address):
    with udp(address) as owner, udp(address) as peer:
        port = owner.getsockname()[1]
        first, last = 61_100, 61_131
        to = Endpoint(ip_address(address), peer.getsockname()[1])
        async with tapped(port) as (tap, got):
            tap.listen_on(range(first, last + 1))
            query = render_query(os.urandom(12))
            for source_port in (first, last):
                assert tap.send(query, to, source_port=source_port) is None
                assert await received(peer) == (query, (address, source_port))
            for outside in (first - 1, last + 1):
                peer.sendto(query, (address, outside))
            peer.sendto(b"no STUN, long enough to be", (address, first))
            for inside in (last, first, port):
                peer.sendto(query, (address, inside))
            arrived = [(await asyncio.wait_for(got.get(), WAIT))[3] for _ in range(3)]
            assert arrived == [last, first, None]
            assert got.empty()
            assert tap.counters["wrong_port"] == 0  # the kernel's filter keeps those away
            tap.listen_on(None)
            peer.sendto(query, (address, first))
            peer.sendto(query, (address, port))
            assert (await asyncio.wait_for(got.get(), WAIT))[3] is None
            assert got.empty()
            assert tap.counters["received"] == 4


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_what_must_not_be_fragmented_is_refused_if_it_is_too_large(address):
    # In a namespace of its own: no UDP packet is larger than the MTU that loopback usually has.
    mtu = 9_000
    with namespace_with_mtu(mtu), udp(address) as owner, udp(address) as peer:
        to = Endpoint(ip_address(address), peer.getsockname()[1])
        headers = 28 if "." in address else 48
        async with tapped(owner.getsockname()[1]) as (tap, _):
            fits, excess = bytes(mtu - headers), bytes(mtu - headers + 1)
            assert tap.send(excess, to, dont_fragment=True) == "EMSGSIZE"
            assert tap.send(fits, to, dont_fragment=True) is None
            assert len((await received(peer, 16_384))[0]) == len(fits)
            # And nothing of it stays with the socket: others may be cut into fragments.
            assert tap.send(excess, to) is None
            assert len((await received(peer, 16_384))[0]) == len(excess)
