"""Strangers who relay: their offers on the noticeboard, read only by who has no relay of his own."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Entropy, Moment
from nostrvpn.node.relaying import RelayRole
from nostrvpn.node.volunteers import Volunteers, put_up_offer
from nostrvpn.paths.relay_offers import RelayOffer, offer_to_json
from nostrvpn.paths.settings import PathSettings
from nostrvpn.signaling.mailboxes import noticeboard_mailboxes_around
from nostrvpn.signaling.noticeboard import Notice, Noticeboard, post_notice
from nostrvpn.stun.relaying import RelayUser
from tests.sim.nodes import WALL, Host, World

SETTINGS = PathSettings()
USER = RelayUser("0" * 16, "1" * 32)


def world_with_volunteer() -> tuple[World, Host, Host, Host]:
    world = World(3)
    world.relay()
    volunteer, a, b = world.host("volunteer"), world.host("alice"), world.host("bob")
    world.start(volunteer, relay=role_of(volunteer, for_anyone=True))
    for host in (a, b):
        world.start(host)
    world.run(5)
    return world, volunteer, a, b


def role_of(host: Host, *, for_anyone: bool) -> RelayRole:
    return RelayRole(host.secret.relay_secret(), host.address.port, for_anyone)


def test_an_offer_to_strangers_reaches_a_network_without_a_relay_of_its_own():
    _, volunteer, a, b = world_with_volunteer()
    for host in (a, b):
        [offer] = host.node.relays.offers
        assert offer.endpoints == (volunteer.address,)
        assert offer.relay != volunteer.secret.public_key  # a key for this purpose alone


def test_nobody_reads_the_noticeboard_who_has_a_relay_among_his_members():
    world, _, a, b = world_with_volunteer()
    assert readers(world) == {"alice", "bob"}
    link = world.call(a, "invite", npub=b.secret.npub, once=False, expires_s=86_400)["link"]
    world.stop(b)
    world.start(b, relay=role_of(b, for_anyone=False))
    world.run(5)
    world.call(b, "join", link=link)
    world.run(30)
    [offer] = a.node.relays.offers
    assert offer.relay == b.secret.public_key
    assert readers(world) == set()
    world.run(3600)  # the volunteer repeats itself
    assert [o.relay for o in a.node.relays.offers] == [b.secret.public_key]


def readers(world: World) -> set[str]:
    """The hosts that read the noticeboard now."""
    boards = {m.public_key for m in noticeboard_mailboxes_around(WALL + world.now)}
    return {
        name
        for relay in world.relays.values()
        for (name, _), filters in relay.subscriptions.items()
        if any(str(board) in json.dumps(filters) for board in boards)
    }


def test_a_member_relay_tells_no_stranger():
    world = World(4)
    relay = world.relay()
    host = world.host("quiet")
    world.start(host, relay=role_of(host, for_anyone=False))
    world.run(4000)
    assert not [event for event in relay.stored if event["kind"] == 1059]


def test_a_relay_sees_neither_npub_nor_address_of_a_volunteer():
    world, volunteer, _, _ = world_with_volunteer()
    seen = json.dumps([relay.stored for relay in world.relays.values()])
    assert seen.count('"kind": 1059') >= 1
    assert volunteer.secret.public_key not in seen
    assert str(volunteer.address.ip) not in seen


def notice(author: str, offer: RelayOffer, created: float = WALL) -> Notice:
    return Notice(author, {"relay": offer_to_json(offer)}, int(created))


def offer_at(*ips: str, websocket: str | None = None) -> RelayOffer:
    return RelayOffer("", tuple(Endpoint(IPv4Address(ip), 4000) for ip in ips), USER, websocket)


@pytest.mark.parametrize(
    "offer",
    [
        offer_at("192.168.1.1"),
        offer_at("10.0.0.1"),
        offer_at(),
        offer_at("9.9.9.9", websocket="ws://192.168.1.1:80/admin"),
        offer_at("9.9.9.9", websocket="ws://router.lan/reboot"),
    ],
)
def test_a_stranger_cannot_make_us_send_into_our_own_network(offer):
    with pytest.raises(PeerMisbehaved):
        Volunteers("a" * 64).take(notice("b" * 64, offer), SETTINGS, moment())


def test_old_offers_lapse_and_newer_ones_replace_them():
    known = Volunteers("a" * 64)
    assert known.take(notice("b" * 64, offer_at("9.9.9.9")), SETTINGS, moment())
    assert not known.take(notice("b" * 64, offer_at("8.8.8.8"), WALL - 1), SETTINGS, moment())
    assert known.take(notice("b" * 64, offer_at("8.8.4.4"), WALL + 1), SETTINGS, moment())
    [offer] = known.offers
    assert str(offer.endpoints[0].ip) == "8.8.4.4"
    lapses_at = known.lapses_at
    assert lapses_at == 100.0 + 7200  # of a date in the future no more than of now
    assert not known.lapse(lapses_at - 1)
    assert known.lapse(lapses_at)
    assert known.offers == ()
    assert known.lapses_at is None
    with pytest.raises(PeerMisbehaved):
        known.take(notice("c" * 64, offer_at("9.9.9.9"), WALL - 7300), SETTINGS, moment())


def test_the_offer_of_a_volunteer_that_went_away_lapses_by_itself():
    world, volunteer, a, b = world_with_volunteer()
    world.stop(volunteer)
    world.run(7000)
    assert all(len(host.node.relays.offers) == 1 for host in (a, b))
    world.run(300)
    assert all(host.node.relays.offers == () for host in (a, b))


def test_a_volunteer_that_lost_its_public_address_comes_back_later():
    world, volunteer, _, _ = world_with_volunteer()
    node = volunteer.node
    world.run(10)
    assert not node.volunteers.is_due(world.now)
    node.addresses = ()
    due = node.volunteers.put_up_at
    assert put_up_offer(node, moment(due)) == []
    assert due < node.volunteers.put_up_at <= due + 5


def test_thousands_of_offers_stay_few_and_nobody_can_place_himself_first():
    chosen = []
    for me in ("a" * 64, "d" * 64):
        known = Volunteers(me)
        for number in range(60):
            ip = f"9.9.{number // 250}.{number % 250 + 1}"
            known.take(notice(f"{number:064x}", offer_at(ip)), SETTINGS, moment())
        chosen.append({offer.relay for offer in known.offers})
        assert len(known.offers) == 6
    assert chosen[0] != chosen[1]
    for number in range(5000):
        known.take(notice(f"{number:064x}", offer_at("9.9.9.9")), SETTINGS, moment())
    assert len(known._known) <= 64


def moment(now: float = 100.0, seed: int = 0) -> Moment:
    return Moment(now, WALL, Entropy(str(seed).encode()))


def test_a_flooded_noticeboard_costs_a_bounded_effort():
    board = Noticeboard()
    board.open(WALL)
    [wrap] = post_notice(b"\x07" * 32, {"relay": 1}, moment(), expires_s=60).values()
    read = [board.read(wrap, moment()) for _ in range(1000)]
    assert 100 <= len([item for item in read if item]) <= 121
    assert board.dropped["notice_flood"] >= 879


def test_what_is_no_notice_is_counted():
    board = Noticeboard()
    board.open(WALL)
    [wrap] = post_notice(b"\x07" * 32, {}, moment(), expires_s=60).values()
    assert board.read(replace(wrap, content=wrap.content[:-8] + "AAAAAAA="), moment()) is None
    assert sum(board.dropped.values()) == 1
    late = replace(moment(), wall=WALL - 5000)
    assert board.read(wrap, late) is None
    assert board.dropped["clock_skew"] == 1
