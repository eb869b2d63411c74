"""What strangers pay for, on the kernel's own WireGuard: its counters, its quota, and nothing left.

Links and tables are those of the daemon; nobody runs while packets pass.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nostrvpn.io.wireguard_kernel import KernelBackend
from nostrvpn.lab.patience import patient
from nostrvpn.market.effects import Counters
from tests.contract.market_room import (
    CONTROL,
    INSIDE,
    OPEN,
    PACKET,
    PUBLIC,
    SELLER,
    Room,
    lease,
    market_room,
)
from tests.kernel.near import told

__all__ = ["market_room"]  # a fixture

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(patient(30))]


def test_a_lease_is_metered_cut_off_paused_and_taken_away(
    room: Room, needs: Callable[[bool, str], None]
) -> None:
    needs(not KernelBackend().unavailable(), "the kernel module wireguard")
    assert room.backend.name == "kernel"
    before = room.looks(room.seller)
    told("a seller and a buyer")
    link = room.connect()
    room.sell(lease(), lease(1))
    told("sold and bought")
    what_was_bought_carries(room, link)
    both_ends_count_alike(room, link)
    a_quota_ends_it_and_what_came_is_counted(room, link)
    a_pause_keeps_the_counters(room, link)
    room.buyer.call(room.bought.settle, ())
    room.seller.call(room.way.settle, None)
    assert room.looks(room.seller) == before
    left = str(room.looks(room.buyer))
    assert link not in left
    assert "nostrvpn" not in left
    told("nothing left")


def read(room: Room, link: str) -> tuple[Counters, Counters]:
    """Return what the seller's link counted of the lease, and what the buyer's did."""
    sold = room.seller.call(room.way.read)
    bought = room.buyer.call(room.bought.read, link)
    return sold.by_key[lease().key], next(iter(bought.by_key.values()))


def what_was_bought_carries(room: Room, link: str) -> None:
    with room.listening(room.world, OPEN) as (ear,):
        for version in (4, 6):
            assert room.reaches(PUBLIC[version], OPEN, link)
            peer, source = ear.accept()
            peer.close()
            assert source[0].removeprefix("::ffff:") == SELLER[version]
    told("carries")


def both_ends_count_alike(room: Room, link: str) -> None:
    """Each peer by itself: there is another lease, which has had nothing."""
    sold, bought = read(room, link)
    assert room.send(link, 20) == 20
    sold_then, bought_then = read(room, link)
    # Data messages, and a handshake or a keepalive at most.
    moved = sold_then.rx - sold.rx
    assert 20 * PACKET < moved < 20 * PACKET * 1.1 + 300
    assert moved == bought_then.tx - bought.tx
    assert sold_then.last_handshake is not None
    other = room.seller.call(room.way.read).by_key[lease(1).key]
    assert (other.rx, other.tx, other.last_handshake) == (0, 0, None)
    told("counted")


def a_quota_ends_it_and_what_came_is_counted(room: Room, link: str) -> None:
    room.sell(lease(quota_bytes=10 * PACKET), lease(1))
    received = read(room, link)[0].rx
    assert room.send(link, 25) == 10
    assert read(room, link)[0].rx - received > 25 * PACKET
    room.sell(lease(quota_bytes=3 * PACKET), lease(1))
    assert room.send(link, 5) == 3
    told("cut off to the packet")


def a_pause_keeps_the_counters(room: Room, link: str) -> None:
    whole = room.seller.call(room.way.read)
    room.sell(lease(serves=False), lease(1))
    assert room.send(link, 3) == 0
    with room.listening(room.seller, CONTROL):
        assert room.reaches(INSIDE[4], CONTROL, link)
    room.sell(lease(), lease(1))
    assert room.send(link, 3) == 3
    then = room.seller.call(room.way.read)
    assert then.epoch == whole.epoch
    assert then.by_key[lease().key].rx - whole.by_key[lease().key].rx > 6 * PACKET
    told("paused and back")
