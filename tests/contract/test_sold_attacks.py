"""What strangers on a sold link may try: keys that are nobody's, other people's sources, odd packets."""

from __future__ import annotations

import logging
import socket
import struct
import time
from base64 import b64encode
from dataclasses import replace

import pytest

from tests.contract.market_room import (
    CLOSED,
    ELSEWHERE,
    FIRST,
    LIMIT,
    OPEN,
    PSK,
    PUBLIC,
    SELLERS_KEY,
    Room,
    drain,
    key,
    lease,
    market_room,
)

__all__ = ["market_room"]  # a fixture

# Spec: what is left of a point of order 1, 4 and 8 (RFC 7748, section 6.1; Curve25519's small subgroup).
_LOW = (
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
)
# Metadata services, and what leads to private IPv4 by another name.
_MORE = (
    *("192.0.0.192", "198.19.0.9", "198.18.255.9", "fd00:ec2::254", "64:ff9b::a9fe:a9fe"),
    *("2002:c0a8:4d07::1", "64:ff9b:1::a00:1"),
)


@pytest.fixture
def link(room: Room) -> str:
    """The buyer's, through which the world is reached."""
    for address in _MORE:
        more = ("nodad",) if ":" in address else ()
        room.world.ip("addr", "add", address, "dev", "lo", *more)
    return room.connect(PUBLIC[4], *ELSEWHERE, *_MORE)


def _arrive(
    room: Room,
    link: str,
    ear: socket.socket,
    version: int,
    to: str,
    port: int,
    data: bytes = b"x",
    options: tuple[tuple[int, int, bytes | int], ...] = (),
) -> int:
    """Return how many of three datagrams arrive."""
    with room.plug(room.buyer, socket.SOCK_DGRAM, version, link) as sock:
        for option in options:
            sock.setsockopt(*option)
        for _ in range(3):
            sock.sendto(data, (to, port))
    return drain(ear)


def test_keys_that_are_nobodys_or_ours_end_no_other_lease(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    """A buyer chooses its WireGuard key: whatever comes of that one, the others are served."""
    low, zero = [b64encode(raw).decode() for raw in _LOW], b64encode(bytes(32)).decode()
    for number, bad_key in enumerate((zero, SELLERS_KEY.public_key)):
        room.seller.call(room.way.settle, room.sold(lease(number + 1, key=bad_key)))
        assert room.way.error is not None  # and nothing is raised: that would end the daemon
        bad = replace(room.lease_of(), peer_key=bad_key if bad_key == zero else lease().key)
        room.buyer.call(room.bought.settle, (bad,))
        assert room.bought.error is not None
    hostile = [lease(n + 1, key=one) for n, one in enumerate(low)]
    room.sell(*hostile, lease())
    room.buy(room.lease_of())
    with room.hearing(room.world, PUBLIC[4]) as ear:
        room.buyer.ip("route", "add", PUBLIC[4], "dev", room.lease_of().link)
        ends = time.monotonic() + LIMIT
        while not _arrive(room, room.lease_of().link, ear, 4, PUBLIC[4], OPEN):
            assert time.monotonic() < ends, "the tunnel never stood"
    room.way.distrust()
    with caplog.at_level(logging.INFO):
        room.sell(*hostile, lease())
    assert [line for line in caplog.messages if "[#]" in line] == []


def test_no_secret_key_is_logged(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        room.sell(lease())
        room.buy(room.lease_of())
    assert lease().key in caplog.text  # what is done is told
    for secret in (PSK, SELLERS_KEY, key(0)):
        assert secret.base64 not in caplog.text
        assert secret.raw.hex() not in caplog.text


def test_other_ways_to_private_networks_are_closed_too(room: Room, link: str) -> None:
    with room.listening(room.world, OPEN):
        assert room.reaches(PUBLIC[4], OPEN, link)
        assert room.reaches(PUBLIC[6], OPEN, link)
        for address in _MORE:
            assert not room.reaches(address, OPEN, link), address


@pytest.mark.parametrize("version", [4, 6])
def test_fragments_are_judged_like_whole_packets(room: Room, link: str, version: int) -> None:
    # Spec: linux/in.h, in6.h: IP_MTU_DISCOVER 10, IPV6_MTU_DISCOVER 23, 0: fragment.
    whole = (socket.IPPROTO_IP, 10, 0) if version == 4 else (socket.IPPROTO_IPV6, 23, 0)
    private = next(one for one in ELSEWHERE if (":" in one) == (version == 6))
    for to, port, expected in (
        (PUBLIC[version], OPEN, 3),
        (PUBLIC[version], CLOSED, 0),
        (private, OPEN, 0),
    ):
        with room.hearing(room.world, to, port) as ear:
            found = _arrive(room, link, ear, version, to, port, bytes(4000), (whole,))
            assert found == expected, to


def test_extension_headers_hide_nothing(room: Room, link: str) -> None:
    # Spec: RFC 8200 section 4.2: PadN of four bytes; the kernel fills in the next header.
    padding = struct.pack("!BBBB4x", 0, 0, 1, 4)
    for name in (socket.IPV6_DSTOPTS, socket.IPV6_HOPOPTS):
        option = ((socket.IPPROTO_IPV6, name, padding),)
        with room.hearing(room.world, PUBLIC[6], OPEN) as ear:
            assert _arrive(room, link, ear, 6, PUBLIC[6], OPEN, b"x", option) == 3
        with room.hearing(room.world, PUBLIC[6], CLOSED) as ear:
            assert _arrive(room, link, ear, 6, PUBLIC[6], CLOSED, b"x", option) == 0
        with room.hearing(room.world, "fd99::9", OPEN) as ear:
            assert _arrive(room, link, ear, 6, "fd99::9", OPEN, b"x", option) == 0


def test_nobody_uses_another_lease_and_its_quota(room: Room, link: str) -> None:
    """A packet with the source of another lease ends at WireGuard."""
    room.sell(lease(), lease(1))
    other = str(lease(1).ipv4)
    room.buyer.ip("addr", "add", f"{other}/32", "dev", link)
    room.buyer.run("nft", "delete", "table", "inet", f"nostrvpn_{room.interface}_bought")
    with room.hearing(room.world, PUBLIC[4]) as ear:
        for source, expected in ((FIRST[4], 3), (other, 0)):
            with room.plug(room.buyer, socket.SOCK_DGRAM, 4, link) as sock:
                sock.bind((source, 0))
                for _ in range(3):
                    sock.sendto(b"x", (PUBLIC[4], OPEN))
            assert drain(ear) == expected, source
