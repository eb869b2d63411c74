"""What leaves a booth, by which way, and what comes in; made once, mended, gone in the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from nostrvpn.daemon.booth_way import Booths
from nostrvpn.host.booth import (
    BOOTH_NETWORKS,
    Booth,
    BoothWay,
    booth_alias,
    booth_table,
)
from nostrvpn.host.routing_tables import RoutingTable
from nostrvpn.host.shield import ShieldKind
from nostrvpn.io.booth_way import (
    apply_booths,
    booth_links,
    delete_booths,
    remove_booth_routing,
)
from nostrvpn.io.cleanup import remove_marked
from tests.contract.cable import _TALK as TALK
from tests.contract.cable import (
    INSIDE,
    LAN,
    MEMBER,
    OTHER,
    OVERLAY,
    OWN,
    PUBLIC,
    ROUTER,
    TUNNEL,
    Host,
    Wire,
    addresses,
    parsed,
    talk,
    targets,
)

BOTH = frozenset({4, 6})
ONE, OTHER_BOOTH = Booth(0), Booth(1)
INSIDE_BOOTH = {address.version: str(address.ip) for address in ONE.inside}
WAY = BoothWay(frozenset({ONE}), BOTH, parsed(*MEMBER.values()), OVERLAY)
INTERNET = (PUBLIC, OTHER, LAN)


class Room:
    """A host with a booth: ``netns`` is in there, ``wire`` is what arrives."""

    def __init__(self, make_netns: Callable[[], Any]) -> None:
        self.host = Host(make_netns)
        self.netns = make_netns()
        self.host.link(self.netns, ONE.link)
        self.host.sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self.netns.run("sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")
        self.host.netns.ip("link", "set", ONE.link, "alias", booth_alias(TUNNEL))
        for outside, inside in zip(ONE.outside, ONE.inside, strict=True):
            nodad = ("nodad",) if outside.version == 6 else ()
            self.host.netns.ip("addr", "add", str(outside), "dev", ONE.link, *nodad)
            self.netns.ip("addr", "add", str(inside), "dev", "e", *nodad)
            self.netns.ip(f"-{outside.version}", "route", "add", "default", "via", str(outside.ip))
        self.wire = Wire(self.netns, "e")

    def close(self) -> None:
        self.wire.socket.close()
        self.host.close()

    def lead(self, way: BoothWay) -> bool:
        changed: bool = self.host.netns.call(apply_booths, way, TUNNEL)
        return changed

    def leaves(self, *to: dict[int, str]) -> tuple[set[Any], set[Any]]:
        """Have a program in the booth send; return what of it left by cable, and by tunnel."""
        self.host.left()
        send(self.netns, talk(*addresses(*to)))
        cable, tunnel = self.host.left()
        # What the host itself has to say (errors) is for the booth only.
        return {p.target for p in cable}, {(p.target, p.source) for p in tunnel}


def send(netns: Any, packets: list[dict[str, Any]]) -> None:
    netns.run(sys.executable, "-c", TALK, "0", json.dumps(packets))


@pytest.fixture
def room(make_netns: Callable[[], Any]) -> Iterator[Room]:
    made = Room(make_netns)
    yield made
    made.close()


def expected(versions: frozenset[int] = BOTH) -> set[Any]:
    """What may go into the tunnel, with this host's address of the overlay."""
    sent = targets(talk(*addresses(*INTERNET)))
    found = {one for one in sent if one[1] == "icmp" or one[2] == 443}
    asked = targets(talk(*addresses(MEMBER), ports=(53, 853)))
    found |= {one for one in asked if one[1] != "icmp"}
    version = {one: ip_address(one[0]).version for one in found}
    return {(one, INSIDE[version[one]]) for one in found if version[one] in versions}


@pytest.mark.parametrize("kind", [None, *ShieldKind])
def test_from_a_booth_only_the_internet_is_reached_and_only_by_the_tunnel(
    room: Room, kind: ShieldKind | None
) -> None:
    """Whatever way the host itself has: no exit, or the same one, and every kill switch."""
    if kind is not None:
        room.host.apply(kind, versions=BOTH, resolvers=parsed(*MEMBER.values()))
    room.lead(WAY)
    cable, tunnel = room.leaves(*INTERNET, MEMBER)
    assert not cable
    # A host that is blocked lets nothing through the exit, not even a command's; names are asked inside.
    blocked = {one for one in expected() if one[0][0] in MEMBER.values()}
    assert tunnel == (blocked if kind is ShieldKind.BLOCKED else expected())


def test_what_the_exit_does_not_carry_goes_nowhere(room: Room) -> None:
    for versions in (frozenset({4}), frozenset({6}), frozenset[int]()):
        room.lead(BoothWay(WAY.booths, versions, WAY.resolvers, WAY.overlay))
        assert room.leaves(*INTERNET, MEMBER) == (set(), expected(versions))


def test_without_the_tunnel_nothing_leaves_a_booth(room: Room) -> None:
    room.lead(WAY)
    room.host.netns.ip("link", "set", TUNNEL, "down")
    send(room.netns, talk(*addresses(*INTERNET, MEMBER)))
    room.host.netns.ip("link", "set", TUNNEL, "up")
    assert room.host.left()[0] == set()


@pytest.mark.parametrize("gone", ["table", "rules"])
def test_filter_and_routes_each_hold_a_booth_back_alone(room: Room, gone: str) -> None:
    room.lead(WAY)
    if gone == "table":
        room.host.netns.run("nft", "delete", "table", "inet", booth_table(TUNNEL))
    else:
        room.host.netns.call(remove_booth_routing, TUNNEL)
    cable, _ = room.leaves(*INTERNET)
    assert not cable
    assert room.lead(WAY)
    assert room.leaves(*INTERNET, MEMBER) == (set(), expected())


def test_nobody_comes_into_a_booth(room: Room) -> None:
    """Not from the cable, the tunnel, or the host; this test can see it if somebody does."""
    room.lead(WAY)
    ends = ((room.host.outside, ROUTER, OWN), (room.host.exit, MEMBER, INSIDE))
    for netns, own, host in ends:
        for version, network in zip((4, 6), BOOTH_NETWORKS, strict=True):
            length = 24 if version == 4 else 64
            netns.ip("addr", "add", f"{own[version]}/{length}", "dev", "e")
            netns.ip(f"-{version}", "route", "add", str(network), "via", host[version])
        netns.run("sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")
    tried = talk(*INSIDE_BOOTH.values())

    def arrived() -> set[Any]:
        for netns in (room.host.outside, room.host.exit, room.host.netns):
            send(netns, tried)
        room.lead(BoothWay())
        send(room.host.netns, [{"to": INSIDE_BOOTH[4], "kind": "udp", "port": 9003}])
        found = room.wire.until(lambda packet: packet.port == 9003)
        return {packet.target for packet in found if packet.kind in ("tcp", "udp", "icmp")}

    assert not arrived() & targets(tried)
    assert arrived() & targets(tried) == targets(tried)


def test_a_forged_answer_from_the_cable_comes_into_no_booth(room: Room) -> None:
    room.lead(WAY)
    for netns, via in ((room.host.outside, OWN), (room.host.exit, None)):
        netns.ip("addr", "add", f"{PUBLIC[4]}/32", "dev", "e")
        way = ("via", via[4]) if via is not None else ()
        if via is not None:
            netns.ip("addr", "add", f"{ROUTER[4]}/24", "dev", "e")
        netns.ip("route", "add", INSIDE[4], *way, "dev", "e")
    asked = {"to": PUBLIC[4], "kind": "udp", "port": 443, "source": [INSIDE_BOOTH[4], 5555]}
    answer = {"to": INSIDE[4], "kind": "udp", "port": 5555, "source": [PUBLIC[4], 443]}
    send(room.netns, [asked])
    send(room.host.outside, [answer])
    send(room.netns, [asked | {"source": [INSIDE_BOOTH[4], 5556]}])
    # The true one, from the tunnel, comes in.
    send(room.host.exit, [answer | {"port": 5556}])
    found = room.wire.until(lambda packet: packet.target == (INSIDE_BOOTH[4], "udp", 5556))
    assert (INSIDE_BOOTH[4], "udp", 5555) not in {packet.target for packet in found}


def looks(room: Room) -> tuple[str, ...]:
    netns, table = room.host.netns, str(RoutingTable.BOOTHS.number(TUNNEL))
    return (
        *(netns.ip(family, "rule", "show") for family in ("-4", "-6")),
        *(
            netns.run("ip", family, "route", "show", "table", table, check=False)
            for family in ("-4", "-6")
        ),
        netns.ip("route", "show"),
        netns.run("nft", "list", "ruleset"),
    )


def test_it_is_made_once_mended_and_leaves_nothing(room: Room) -> None:
    before = looks(room)
    assert room.lead(WAY)
    made = looks(room)
    assert made[4] == before[4]  # main is never touched
    assert not room.lead(WAY)
    for family in ("-4", "-6"):
        for priority in ("4618", "4619", "4620"):
            room.host.netns.ip(family, "rule", "del", "priority", priority)
    assert room.lead(WAY)
    assert looks(room) == made
    more = BoothWay(frozenset({ONE, OTHER_BOOTH}), BOTH, WAY.resolvers, WAY.overlay)
    assert room.lead(more)
    assert room.lead(WAY)
    assert looks(room) == made
    assert room.lead(BoothWay())
    assert looks(room) == before
    assert not room.lead(BoothWay())


def test_rules_of_another_network_of_this_host_stay(room: Room) -> None:
    room.lead(WAY)
    other = BoothWay(frozenset({OTHER_BOOTH}), BOTH)
    room.host.netns.call(apply_booths, other, "nvpn9")
    room.lead(BoothWay())
    rules = room.host.netns.ip("rule", "show")
    assert OTHER_BOOTH.link in rules
    assert "4618:" in rules
    assert ONE.link not in rules
    room.host.netns.call(apply_booths, BoothWay(), "nvpn9")
    assert "46" not in room.host.netns.ip("rule", "show")


def test_only_links_of_ours_are_booths(room: Room) -> None:
    netns = room.host.netns
    netns.ip("link", "add", OTHER_BOOTH.link, "type", "veth", "peer", "name", "other")
    assert netns.call(booth_links) == {ONE.link}
    assert netns.call(booth_links, "nvpn9") == frozenset()
    assert netns.call(delete_booths, "nvpn9") == []
    assert netns.call(delete_booths, TUNNEL, frozenset({ONE.link})) == []
    assert netns.call(delete_booths, TUNNEL) == [ONE.link]
    assert OTHER_BOOTH.link in netns.ip("link", "show")


def test_a_booth_that_nobody_wants_loses_its_link_before_what_holds_it_back(room: Room) -> None:
    room.lead(WAY)
    booths = Booths(TUNNEL)
    room.host.netns.call(booths.close, BoothWay())
    assert booths.present == frozenset()
    assert ONE.link not in room.host.netns.ip("link", "show")
    assert booth_table(TUNNEL) in room.host.netns.run("nft", "list", "tables")
    room.host.netns.call(booths.open, BoothWay())
    assert booth_table(TUNNEL) not in room.host.netns.run("nft", "list", "tables")
    assert booths.error is None


def test_cleanup_needs_no_record_of_booths(room: Room) -> None:
    before = looks(room)
    room.lead(WAY)
    removed = room.host.netns.call(remove_marked, TUNNEL)
    assert ONE.link in removed
    assert f"table inet {booth_table(TUNNEL)}" in removed
    after = looks(room)
    assert (*after[:4], after[5]) == (*before[:4], before[5])
    assert ONE.link not in room.host.netns.ip("link", "show")
