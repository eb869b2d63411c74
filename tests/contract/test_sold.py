"""What strangers who pay get, and what they do not, with real packets through real tunnels."""

from __future__ import annotations

import json
import socket
import time
from functools import partial

import pytest

from nostrvpn.daemon.bought_way import BoughtWay
from nostrvpn.host import sold_leases
from nostrvpn.host.bought import bought_table
from nostrvpn.host.sold import sold_interface, sold_table
from nostrvpn.host.state import ALIAS_MARK
from nostrvpn.io.cleanup import remove_marked
from nostrvpn.io.netlink import create_link, set_link
from nostrvpn.io.nftables import delete_table
from tests.contract.market_room import (
    BUYER,
    CLOSED,
    CONTROL,
    DATA,
    ELSEWHERE,
    FIRST,
    INSIDE,
    LIMIT,
    OPEN,
    PACKET,
    PUBLIC,
    SELLER,
    Room,
    drain,
    lease,
    market_room,
)

__all__ = ["market_room"]  # a fixture


@pytest.fixture
def link(room: Room) -> str:
    """The buyer's, through which the world is reached."""
    return room.connect(SELLER[6], *(one for one in ELSEWHERE if ":" in one))


def quotas(room: Room) -> list[int]:
    """What each lease has used of its quota, in bytes."""
    table = sold_table(room.interface)
    listed = json.loads(room.seller.run("nft", "-j", "list", "quotas"))["nftables"]
    found = [one["quota"] for one in listed if "quota" in one and one["quota"]["table"] == table]
    return [one["used"] for one in sorted(found, key=lambda one: int(one["name"][1:]))]


def rules(room: Room) -> list[str]:
    listed = room.seller.run("nft", "-s", "list", "ruleset").splitlines()
    return [line for line in listed if "comment" in line]


@pytest.mark.parametrize("version", [4, 6])
def test_who_has_paid_reaches_the_internet_with_the_sellers_address(
    room: Room, link: str, version: int
) -> None:
    with room.listening(room.world, OPEN) as (ear,):
        with room.plug(room.buyer, socket.SOCK_STREAM, version, link) as sock:
            sock.connect((PUBLIC[version], OPEN))
            peer, source = ear.accept()
            peer.sendall(b"answer")
            assert sock.recv(100) == b"answer"
            peer.close()
        assert source[0].removeprefix("::ffff:") == SELLER[version]


def test_who_has_paid_reaches_nothing_else(room: Room, link: str) -> None:
    ports = (OPEN, CLOSED, CONTROL, 22)
    with room.listening(room.world, *ports), room.listening(room.seller, *ports):
        assert room.reaches(PUBLIC[4], OPEN, link)
        assert not room.reaches(PUBLIC[4], CLOSED, link)
        for address in ELSEWHERE:
            assert not room.reaches(address, OPEN, link), address
        for address in (*SELLER.values(), *INSIDE.values()):
            assert not room.reaches(address, OPEN, link), address
            assert not room.reaches(address, 22, link), address
        assert room.reaches(INSIDE[4], CONTROL, link)
        assert room.reaches(INSIDE[6], CONTROL, link)
        assert not room.reaches(SELLER[4], CONTROL, link)


def test_no_guest_reaches_another(room: Room, link: str) -> None:
    room.sell(lease(), lease(1))
    # Another buyer, who lets in whoever comes.
    other = BoughtWay(room.backend, f"{room.interface}o")
    bought = room.lease_of(1, link=f"{room.interface}ob")
    try:
        room.world.call(other.settle, (bought,))
        assert other.error is None
        room.world.call(delete_table, bought_table(f"{room.interface}o"))
        room.world.ip("route", "add", FIRST[4], "dev", bought.link)
        with room.listening(room.world, OPEN), room.listening(room.seller, CONTROL):
            with room.plug(room.world, socket.SOCK_STREAM, 4, bought.link) as sock:
                sock.connect((INSIDE[4], CONTROL))
            assert not room.reaches(str(lease(1).ipv4), OPEN, link)
            room.seller.call(delete_table, sold_table(room.interface))
            assert room.reaches(
                str(lease(1).ipv4), OPEN, link
            )  # so it is the table that keeps them apart
    finally:
        room.world.call(other.end, "")


def test_nobody_outside_reaches_a_guest(room: Room, link: str) -> None:
    room.world.ip("route", "add", "198.18.0.0/16", "via", SELLER[4])
    with room.hearing(room.buyer, FIRST[4], 5000) as ear:
        for netns, address in ((room.world, FIRST[4]), (room.world, INSIDE[4])):
            with room.plug(netns, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"x", (address, 5000))
        assert drain(ear) == 0


def test_who_has_not_paid_speaks_with_the_seller_and_with_nobody_else(
    room: Room, link: str
) -> None:
    room.sell(lease(serves=False))
    with room.listening(room.world, OPEN), room.listening(room.seller, CONTROL):
        assert room.reaches(INSIDE[4], CONTROL, link)
        assert room.reaches(INSIDE[6], CONTROL, link)
        for address in PUBLIC.values():
            assert not room.reaches(address, OPEN, link)
        assert room.send(link, 3) == 0
        room.sell(lease())
        assert room.reaches(PUBLIC[4], OPEN, link)


def test_a_quota_ends_a_lease_to_the_packet_and_nobody_has_to_look(room: Room, link: str) -> None:
    room.sell(lease(quota_bytes=10 * PACKET))
    assert room.send(link, 25) == 10
    assert room.send(link, 5) == 0
    # What is paid on top begins at once.
    room.sell(lease(quota_bytes=3 * PACKET))
    assert room.send(link, 25) == 3


def test_both_ways_are_taken_from_the_quota(room: Room, link: str) -> None:
    room.sell(lease(quota_bytes=10 * PACKET))
    with (
        room.hearing(room.world, PUBLIC[4]) as ear,
        room.plug(room.buyer, socket.SOCK_DGRAM, 4, link) as sock,
    ):
        sock.sendto(DATA, (PUBLIC[4], OPEN))
        _, source = ear.recvfrom(2000)
        for _ in range(20):
            ear.sendto(DATA, source)
        assert drain(sock) == 9


def test_time_ends_a_lease_and_nobody_has_to_look(room: Room, link: str) -> None:
    began = time.monotonic()
    room.sell(lease(seconds_left=2.0))
    with room.listening(room.world, OPEN), room.listening(room.seller, CONTROL):
        assert room.send(link, 1) == 1
        while room.send(link, 1):
            assert time.monotonic() - began < LIMIT
        assert time.monotonic() - began >= 1.9
        # The same words again, as when nothing happened since, are no new time.
        room.sell(lease(seconds_left=2.0))
        assert not room.reaches(PUBLIC[4], OPEN, link)
        assert room.reaches(INSIDE[4], CONTROL, link)
        room.sell(lease(seconds_left=60.0))
        assert room.reaches(PUBLIC[4], OPEN, link)


def test_a_daemon_that_hangs_serves_nobody_for_longer(
    room: Room, link: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sold_leases, "ALIVE_S", 2)
    room.sell(lease(quota_bytes=10**8))
    began = time.monotonic()
    with room.listening(room.world, OPEN), room.listening(room.seller, CONTROL):
        assert room.send(link, 1) == 1
        while room.send(link, 1):
            assert time.monotonic() - began < LIMIT
        assert room.reaches(INSIDE[4], CONTROL, link)
        room.sell(lease(quota_bytes=10**8 + 1))
        assert room.reaches(PUBLIC[4], OPEN, link)


def test_a_pause_keeps_the_counters_of_a_lease(room: Room, link: str) -> None:
    assert room.send(link, 5) == 5
    before = room.seller.call(room.way.read)
    room.sell(lease(serves=False))
    room.sell(lease())
    after = room.seller.call(room.way.read)
    (old,), (new,) = before.by_key.values(), after.by_key.values()
    assert after.epoch == before.epoch
    assert new.rx >= old.rx > 5 * len(DATA)
    assert new.last_handshake == old.last_handshake is not None
    assert str(new.source) == BUYER[4]


def test_a_change_of_one_lease_leaves_the_others_as_they_are(room: Room, link: str) -> None:
    room.sell(lease(), lease(1), lease(2))
    used = quotas(room)[0]
    assert room.send(link, 3) == 3
    assert quotas(room)[0] == used + 3 * PACKET
    room.sell(lease(), lease(1, quota_bytes=5), lease(3, mbit=1))
    room.sell(lease(), lease(3, mbit=2))
    assert quotas(room) == [used + 3 * PACKET, 0]
    assert room.send(link, 1) == 1


def test_a_lease_has_its_rate_and_no_more(room: Room, link: str) -> None:
    sent = 400
    assert room.send(link, sent) == sent
    room.sell(lease(mbit=1))
    # What gathers is 64 KiB and a second's worth, and it goes on meanwhile.
    assert room.send(link, sent) < sent
    room.sell(lease(), rate=10**9)
    assert room.send(link, sent) == sent


def test_a_table_that_others_flush_is_back_and_closed_meanwhile(room: Room, link: str) -> None:
    before = rules(room)
    room.seller.run("nft", "flush", "ruleset")
    room.way.distrust()
    room.sell(lease())
    assert rules(room) == before
    with room.listening(room.world, OPEN):
        assert room.reaches(PUBLIC[4], OPEN, link)


@pytest.mark.parametrize("by", ["end", "nothing sold", "cleanup"])
def test_after_selling_the_host_is_as_it_was(room: Room, by: str) -> None:
    before = room.looks(room.seller)
    room.sell(lease(), lease(1, mbit=5, seconds_left=30.0))
    assert room.looks(room.seller) != before
    assert "conf.all.forwarding = 1" in room.looks(room.seller)["sysctl"]
    if by == "cleanup":
        # Nobody is left who knows of it.
        removed = room.seller.call(remove_marked, room.interface)
        assert sold_interface(room.interface) in removed
    elif by == "end":
        room.seller.call(room.way.end, "")
    else:
        room.seller.call(room.way.settle, None)
    assert room.looks(room.seller) == before


def test_a_link_of_that_name_that_is_another_nodes_is_left_alone(room: Room) -> None:
    name = sold_interface(room.interface)
    room.seller.call(create_link, name, "veth", 1400)
    room.seller.call(partial(set_link, name, mtu=None, alias=f"{ALIAS_MARK} /var/lib/other"))
    before = room.seller.ip("-o", "link", "show", "dev", name)
    room.seller.call(room.way.settle, room.sold(lease()))
    assert room.way.error is not None
    assert "another node's" in room.way.error
    room.seller.call(room.way.end, "")
    assert room.seller.call(remove_marked, room.interface) == ()
    assert room.seller.ip("-o", "link", "show", "dev", name) == before
