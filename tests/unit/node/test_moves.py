"""When a change of network is acted on."""

from __future__ import annotations

from ipaddress import ip_address

from nostrvpn.node.events import HostChanged
from nostrvpn.node.moves import BURST, GATHER_S, Move, Moves
from nostrvpn.paths.candidates import LocalAddress


def at(*texts: str, source: str | None = None, interrupted: bool = False) -> HostChanged:
    """The host's addresses, each ``IP`` or ``IP%INTERFACE``."""
    parts = [text.partition("%") for text in texts]
    addresses = tuple(LocalAddress(ip_address(ip), name or "eth0", 24) for ip, _, name in parts)
    sources = frozenset(() if source is None else (ip_address(source),))
    return HostChanged(addresses, frozenset(), sources, interrupted)


def started(*texts: str, source: str | None = None) -> Moves:
    moves = Moves(("veth", "docker"))
    assert moves.take(at(*texts, source=source), 100.0) == Move(at(*texts).addresses, is_first=True)
    return moves


def test_the_old_address_goes_the_new_ones_come_and_each_is_acted_on_at_once():
    moves = started("192.168.1.2")
    assert moves.take(at(), 100.0) == Move((), is_cut=True)
    assert moves.take(at("192.168.2.2"), 100.1) == Move(at("192.168.2.2").addresses)
    both = at("192.168.2.2", "2001:db8::2")
    assert moves.take(both, 101.0) == Move(both.addresses)
    assert moves.deadline is None


def test_a_host_without_addresses_at_start_is_told_its_first_one():
    moves = started()
    assert moves.take(at("192.168.2.2"), 100.1) == Move(at("192.168.2.2").addresses)


def test_what_no_peer_is_offered_is_no_move():
    moves = started("192.168.1.2")
    for other in ("172.17.0.1%docker0", "fe80::1%veth12", "fe80::2"):
        assert moves.take(at("192.168.1.2", other), 101.0) is None


def test_a_default_route_that_moves_is_a_move():
    moves = started("192.168.1.2", "10.0.0.2", source="192.168.1.2")
    assert moves.take(at("192.168.1.2", "10.0.0.2", source="10.0.0.2"), 101.0) is not None


def test_an_address_that_was_gone_in_between_is_a_move_and_one_that_was_not_is_none():
    moves = started("192.168.1.2")
    assert moves.take(at("192.168.1.2"), 101.0) is None
    assert moves.take(at("192.168.1.2", interrupted=True), 101.0) is not None


def test_a_flapping_interface_is_acted_on_a_few_times_and_in_the_end():
    moves = started("192.168.1.2")
    acted, cut = [], Move(at("fe80::1%veth1").addresses, is_cut=True)
    for flap in range(20):
        now = 110.0 + flap / 2
        assert moves.take(at("fe80::1%veth1"), now) == cut
        if moves.take(at("192.168.1.2"), now + 0.25):
            acted.append(now)
        while moves.deadline is not None and moves.deadline <= now + 0.5:
            if moves.tick(moves.deadline):
                acted.append(now)
    assert acted[:BURST] == [110.0, 110.5, 111.0]
    assert len(acted) <= BURST + 10 / GATHER_S
    if moves.deadline is not None:
        assert moves.tick(moves.deadline) == Move(at("192.168.1.2").addresses)
    assert moves.deadline is None


def test_what_was_gathered_is_acted_on_once_with_the_newest_addresses():
    moves = started("192.168.1.2")
    for number in range(10):
        moves.take(at(f"192.168.1.{10 + number}"), 100.0)
    assert moves.deadline == 100.0 + GATHER_S
    assert moves.tick(101.0) is None
    assert moves.tick(100.0 + GATHER_S) == Move(at("192.168.1.19").addresses)
    assert moves.tick(200.0) is None


def test_after_a_sleep_the_same_network_is_doubted():
    moves = started("192.168.1.2")
    assert moves.again(5000.0) == Move(at("192.168.1.2").addresses)
    assert started().again(5000.0) is None
