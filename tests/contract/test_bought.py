"""An exit that is paid for: what goes into its link, what comes out, and what never leaves elsewhere."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from typing import Any

import pytest

from nostrvpn.daemon.reconcile import Reconciler
from nostrvpn.endpoint import Endpoint
from nostrvpn.host.bought import Bought
from nostrvpn.host.exit_routing import ExitRouting
from nostrvpn.host.inbound import Inbound
from nostrvpn.host.shield import Shield, ShieldKind
from nostrvpn.host.state import FWMARK, HostState
from nostrvpn.io.cleanup import remove_marked
from nostrvpn.io.link_probe import probe
from nostrvpn.node.desired import Desired
from nostrvpn.wireguard.device import Device, SecretKey
from tests.contract.cable import Packet, Wire
from tests.contract.market_room import (
    BUYER,
    CLOSED,
    CONTROL,
    DATA,
    FIRST,
    INSIDE,
    LIMIT,
    OPEN,
    OVERLAY,
    PORT,
    PUBLIC,
    SELLER,
    SELLERS_KEY,
    Room,
    drain,
    key,
    lease,
)

MESH_PORT = 23456
MEMBER = "10.64.0.2"


class Buyer(Room):
    """A room in which the buyer is a whole node: ``use`` is what its reconciler is asked for."""

    def __init__(self, make_netns: Callable[[], Any], interface: str) -> None:
        super().__init__(make_netns, interface)
        self.reconciler = Reconciler(self.backend, self.interface, 1280)
        self.cable = Wire(self.world, "wb")
        self.sell(lease(), lease(1))

    def desired(self, *bought: Bought, shield: Shield, routing: ExitRouting) -> Desired:
        addresses = frozenset({ip_interface("10.64.0.1/32"), ip_interface("fd64::1/128")})
        return Desired(
            Device(SecretKey(b"\x01" * 32), MESH_PORT, FWMARK, ()),
            HostState(self.interface, 1280, addresses, OVERLAY),
            inbound=Inbound(frozenset(one.ip for one in addresses)),
            shield=shield,
            exit_routing=routing,
            bought=bought,
        )

    def use(
        self, used: Bought | None, *others: Bought, kind: ShieldKind = ShieldKind.TUNNELLED
    ) -> None:
        """Leave by ``used``, or (None) by nothing; ``others`` are being tried."""
        link, versions = ("", frozenset()) if used is None else (used.link, used.versions)
        if used is None and kind is ShieldKind.TUNNELLED:
            kind = ShieldKind.BLOCKED
        asked = frozenset({ip_address(INSIDE[4])})
        shield = Shield(kind, OVERLAY, versions, asked, listen_port=MESH_PORT, link=link)
        routing = ExitRouting(True, OVERLAY, versions, link=link)
        mine = (replace(used, used=True),) if used is not None else ()
        self.settle(self.desired(*mine, *others, shield=shield, routing=routing))

    def off(self) -> None:
        self.settle(self.desired(shield=Shield(), routing=ExitRouting()))

    def settle(self, desired: Desired) -> None:
        self.buyer.call(self.reconciler.reconcile_now, desired)
        assert self.reconciler.shield_error is None
        assert self.reconciler.bought.error is None

    def strays(self) -> set[Packet]:
        """What left by the cable and is not the tunnel's, since the last time."""
        with self.plug(self.buyer, socket.SOCK_DGRAM, 4, "wan") as sock:
            sock.sendto(b"end", (PUBLIC[4], 9001))
        found = self.cable.until(lambda packet: packet.port == 9001)
        quiet = {p for p in found if p.kind == "icmp" and p.port in (133, 135, 136)}  # neighbours
        tunnel = {p for p in found if p.target == (SELLER[4], "udp", PORT)}
        return {p for p in found - quiet - tunnel if not p.kind.startswith("ether")}

    def close(self) -> None:
        self.cable.socket.close()
        self.buyer.call(remove_marked, self.interface)
        self.reconciler.close()
        super().close()


@pytest.fixture
def room(make_netns: Callable[[], Any], interface: str) -> Iterator[Buyer]:
    made = Buyer(make_netns, interface)
    yield made
    made.close()


def test_what_was_bought_carries_everything_and_the_mesh_stays_apart(room: Buyer) -> None:
    room.use(room.lease_of())
    with room.listening(room.world, OPEN) as (ear,):
        for version in (4, 6):
            room.until_reached(PUBLIC[version])
            peer, source = ear.accept()
            peer.close()
            assert source[0].removeprefix("::ffff:") == SELLER[version]
    way = room.buyer.ip("route", "get", MEMBER)
    assert f"dev {room.interface} " in way
    assert room.strays() == set()


def test_before_it_is_in_use_only_the_agent_sends_into_it(room: Buyer) -> None:
    bought = room.lease_of()
    room.use(None, bought)
    with room.listening(room.world, OPEN):
        room.until_reached(PUBLIC[4], OPEN, bought.link)
        assert not room.reaches(PUBLIC[4], OPEN, bought.link, marked=False)
        assert not room.reaches(PUBLIC[4])
        # Nor where no exit is wanted, and nothing is held back.
        room.settle(room.desired(bought, shield=Shield(), routing=ExitRouting()))
        assert not room.reaches(PUBLIC[4], OPEN, bought.link, marked=False)
        assert room.reaches(PUBLIC[4], OPEN, bought.link)
        room.use(bought)
        assert room.reaches(PUBLIC[4])
    assert room.strays() == set()


def test_a_probe_through_a_link_shows_whether_it_carries(room: Buyer) -> None:
    bought = room.lease_of()
    targets = [Endpoint(ip_address(PUBLIC[4]), OPEN), Endpoint(ip_address(PUBLIC[4]), CLOSED)]
    nowhere = room.buyer.call(asyncio.run, probe(bought.link, targets))
    assert (nowhere.ok, nowhere.rtt_ms) == (False, None)
    room.use(None, bought)
    with room.listening(room.world, OPEN):
        found = room.buyer.call(asyncio.run, probe(bought.link, targets))
        assert found.ok, found.reason
        assert found.versions == {4}
        assert found.rtt_ms is not None
        silent = room.buyer.call(asyncio.run, probe(bought.link, targets, ip_address(INSIDE[4])))
    assert (silent.ok, silent.dns) == (False, False)
    assert INSIDE[4] in silent.reason
    room.sell(lease(serves=False))
    with room.listening(room.world, OPEN):
        assert not room.buyer.call(asyncio.run, probe(bought.link, targets[:1])).ok


def test_only_answers_come_in(room: Buyer) -> None:
    bought = room.lease_of()
    room.use(bought)
    with room.listening(room.seller, CONTROL):
        room.until_reached(INSIDE[4], CONTROL)
    with room.hearing(room.buyer, "0.0.0.0", 5000) as ear:
        room.world.ip("route", "add", FIRST[4], "via", BUYER[4])
        room.seller.ip("route", "add", MEMBER.replace(".2", ".1"), "dev", room.sold().link)
        for netns, address in (
            (room.seller, FIRST[4]),
            (room.world, FIRST[4]),
            (room.seller, "10.64.0.1"),
        ):
            with room.plug(netns, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"x", (address, 5000))
        assert drain(ear) == 0


def test_names_are_asked_of_the_exits_resolver_alone(room: Buyer) -> None:
    room.use(room.lease_of())
    with (
        room.hearing(room.seller, INSIDE[4], 53) as resolver,
        room.hearing(room.world, PUBLIC[4], 53) as other,
        room.plug(room.buyer, socket.SOCK_DGRAM) as sock,
    ):
        sock.sendto(b"x", (INSIDE[4], 53))
        assert resolver.recv(100) == b"x"
        with pytest.raises(PermissionError):
            sock.sendto(b"x", (PUBLIC[4], 53))
        assert drain(other) == 0
    assert room.strays() == set()


def test_what_is_not_carried_goes_nowhere(room: Buyer) -> None:
    room.use(room.lease_of(versions=frozenset({4})))
    with room.listening(room.world, OPEN):
        room.until_reached(PUBLIC[4])
        assert not room.reaches(PUBLIC[6])
        assert not room.reaches(PUBLIC[6], OPEN, "wan", marked=False)
    assert room.strays() == set()


def test_a_switch_from_one_link_to_another_lets_nothing_out(room: Buyer) -> None:
    one, other = room.lease_of(), room.lease_of(1, 1)
    room.use(one, other)
    with room.listening(room.world, OPEN):
        room.until_reached(PUBLIC[4])
        room.until_reached(PUBLIC[4], OPEN, other.link)
    room.strays()
    ended = threading.Event()

    def talk() -> None:
        with (
            room.plug(room.buyer, socket.SOCK_DGRAM) as lasting,
            room.plug(room.buyer, socket.SOCK_DGRAM, 6) as six,
        ):
            while not ended.wait(0.001):
                for sock, address in ((lasting, PUBLIC[4]), (six, PUBLIC[6])):
                    try:
                        sock.sendto(b"x", (address, OPEN))
                    except OSError:
                        continue

    talker = threading.Thread(target=talk)
    talker.start()
    try:
        for _ in range(3):
            room.use(other, one)
            room.use(one, other)
        room.use(other)  # the first is gone
        room.use(None)
        room.use(other)
    finally:
        ended.set()
        talker.join(LIMIT)
    assert room.strays() == set()
    with room.listening(room.world, OPEN):
        room.until_reached(PUBLIC[4])


def test_what_began_through_one_link_is_not_told_to_the_other_seller(room: Buyer) -> None:
    one, other = room.lease_of(), room.lease_of(1, 1)
    room.use(one, other)
    with (
        room.hearing(room.world, PUBLIC[4]) as ear,
        room.plug(room.buyer, socket.SOCK_DGRAM) as sock,
    ):
        sock.connect((PUBLIC[4], OPEN))
        sock.send(b"first")
        assert ear.recv(100) == b"first"
        before = room.seller.call(room.way.read)
        room.use(other, one)
        with suppress(PermissionError):
            sock.send(b"second")
        assert drain(ear) == 0
        after = room.seller.call(room.way.read)
        key = lease(1).key
        # A handshake and a keepalive at most: nothing with the address of the other lease.
        assert after.by_key[key].rx - before.by_key[key].rx < 300


def test_a_dead_link_and_a_daemon_that_is_gone_leave_nothing_open(room: Buyer) -> None:
    bought = room.lease_of()
    room.use(bought)
    with room.listening(room.world, OPEN):
        room.until_reached(PUBLIC[4])
        room.buyer.ip("link", "set", bought.link, "down")
        assert not room.reaches(PUBLIC[4])
        room.buyer.ip("link", "del", bought.link)
        assert not room.reaches(PUBLIC[4])
        assert room.strays() == set()
        room.reconciler.host_changed()
        room.use(bought)
        room.until_reached(PUBLIC[4])


@pytest.mark.parametrize("by", ["off", "down", "cleanup"])
def test_after_buying_the_host_is_as_it_was(room: Buyer, by: str) -> None:
    room.off()
    before = room.looks(room.buyer)
    room.use(room.lease_of(), room.lease_of(1, 1))
    assert room.looks(room.buyer) != before
    if by == "off":
        room.off()
        assert room.looks(room.buyer) == before
        return
    if by == "down":
        room.reconciler.end_with(Shield())
        room.buyer.call(asyncio.run, room.reconciler.delete())
    else:
        room.buyer.call(remove_marked, room.interface)
    assert room.interface not in str(room.looks(room.buyer))
    assert "nostrvpn" not in str(room.looks(room.buyer))


def test_a_seller_that_began_anew_is_spoken_to_at_once(room: Buyer) -> None:
    """WireGuard itself would go on with the keys of before for 15 s."""
    bought = replace(room.lease_of(), keepalive=25)
    room.use(bought)
    with room.listening(room.world, OPEN):
        room.until_reached(PUBLIC[4])
        room.seller.call(room.way.end, "")
        room.sell(lease(), lease(1))
        room.use(replace(bought, session=1))
        began = time.monotonic()
        room.until_reached(PUBLIC[4])
        assert time.monotonic() - began < 8
        # The next lease has the same link, and another count.
        room.use(None)
        room.use(replace(room.lease_of(1), keepalive=25))
        room.until_reached(PUBLIC[4])


def test_one_lease_does_not_inherit_what_was_counted_for_another(room: Buyer) -> None:
    """Of the same seller, by the same link, one right after the other: by such a count it would pay."""
    link, sent = room.connect(), 50
    assert room.send(link, sent) > sent // 2

    def counted(number: int) -> int:
        found = room.buyer.call(room.bought.read, link)
        assert found.device == key(number).public_key
        return int(found.by_key[SELLERS_KEY.public_key].tx)

    assert counted(0) > sent // 2 * len(DATA)
    room.sell(lease(1))
    room.buy(room.lease_of(1))
    assert counted(1) < len(DATA)
