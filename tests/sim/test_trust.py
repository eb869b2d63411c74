"""Who is removed is out, who was away comes back, and two who act at once agree: on real nodes."""

from __future__ import annotations

from typing import Any

import pytest

from nostrvpn.node.events import Refuse
from tests.sim.meshes import DAY, Meshes
from tests.sim.nodes import Host


def mesh(seed: int, size: int, *, relays: int = 1, sleeps: bool = False) -> tuple[Meshes, Any]:
    """A network of ``size`` that runs, all of them connected."""
    world = Meshes(seed, sleeps=sleeps)
    for number in range(relays):
        world.relay(f"wss://relay{number}")
    hosts = world.network("n", size)
    for host in hosts:
        world.start(host)
    if sleeps:
        world.run(30)
    else:
        pairs = [(one, other) for one in hosts for other in hosts if one is not other]
        assert world.holds(30, lambda: all(world.is_connected(*pair) for pair in pairs))
    return world, hosts


def remove(world: Meshes, by: Host, whom: Host) -> None:
    world.call(by, "peer_remove", peer=whom.secret.npub)


def test_a_removal_gives_all_who_stay_one_new_key():
    world, hosts = mesh(1, 5)
    before = world.key(hosts[0])
    remove(world, hosts[0], hosts[4])
    assert world.holds(20, lambda: world.agree(hosts[:4]))
    assert world.key(hosts[1]) != before
    # It hears of it too, and lets go of what it knew.
    assert world.holds(20, lambda: hosts[4].node.post.keyring.current is None)


@pytest.mark.parametrize("days", [9, 33])
def test_who_was_away_for_weeks_gets_the_operations_and_the_key(days):
    world, hosts = mesh(2, 4)
    away = hosts[3]
    world.stop(away)
    world.cut(away)
    remove(world, hosts[0], hosts[2])
    world.run(20)
    world.call(hosts[0], "peer_name", peer="n1", name="renamed")
    world.run(20)
    # Nothing of the time between is of interest but that it passes, for the relay too.
    for host in hosts[:2]:
        world.stop(host)
    world.run(days * DAY)
    for host in hosts[:2]:
        world.cut(host)
        world.start(host)
    world.run(900)
    world.start(away)
    assert world.holds(120, lambda: world.agree([hosts[0], hosts[1], away]))


def test_who_was_away_gets_them_through_a_tunnel_while_no_relay_is_left():
    world, hosts = mesh(3, 3)
    away = hosts[2]
    world.stop(away)
    world.call(hosts[0], "peer_name", peer="n1", name="renamed")
    world.call(hosts[0], "peer_name", peer="renamed", name="again")
    world.run(10)
    world.kill(world.relays["wss://relay0"])
    world.run(3600)
    world.cut(away)
    world.start(away)
    assert world.holds(1000, lambda: world.agree(hosts))


def test_a_change_reaches_all_while_no_relay_is_left():
    world, hosts = mesh(4, 5)
    world.kill(world.relays["wss://relay0"])
    world.run(60)
    remove(world, hosts[0], hosts[4])
    assert world.holds(60, lambda: world.agree(hosts[:4]))
    assert hosts[4].secret.public_key not in world.roster(hosts[3]).members


def test_two_admins_who_remove_at_once_come_to_one_key_that_nobody_removed_has():
    world, hosts = mesh(5, 6, relays=2)
    world.call(hosts[0], "peer_role", peer="n1", role="admin", lasts_s=None)
    world.run(5)
    held: dict[str, set[str]] = {}
    world.part("n1", "n3", "n5", "wss://relay1")
    world.run(60)
    remove(world, hosts[0], hosts[4])
    remove(world, hosts[1], hosts[5])
    world.run(300)
    stay = hosts[:4]
    for gone in hosts[4:]:
        held[gone.name] = {key.id for key in gone.node.post.keyring.keys}
    world.part("n1", "n3", "n5", "wss://relay1", island=0)
    world.holds(600, lambda: world.agree(stay))
    for host in stay:
        print(
            host.name,
            world.roster(host).digest,
            world.key(host),
            world.roster(host).key_id,
            world.roster(host).needs_rekey,
        )
    assert world.agree(stay)
    assert not world.roster(hosts[0]).needs_rekey
    for gone in hosts[4:]:
        assert gone.secret.public_key not in world.roster(hosts[0]).members
        known = {key.id for key in gone.node.post.keyring.keys} | held[gone.name]
        assert world.key(hosts[0]) not in known


def test_a_device_is_replaced_and_the_old_one_is_out():
    world, hosts = mesh(6, 4)
    new = world.host("new")
    world.start(new)
    world.run(5)
    before = world.key(hosts[0])
    link = world.call(hosts[0], "peer_replace", peer="n3", npub=new.secret.npub, expires_s=86_400)[
        "link"
    ]
    world.ask(new, "join", link=link)
    now = [*hosts[:3], new]
    assert world.holds(60, lambda: world.roster(new) is not None and world.agree(now))
    assert hosts[3].secret.public_key not in world.roster(new).members
    assert world.holds(60, lambda: world.key(hosts[0]) != before and world.agree(now))


def token(world: Meshes, host: Host, uses: int, **more: object) -> str:
    terms: dict[str, object] = {"role": "member", "tags": [], "ephemeral": False} | more
    link = world.call(host, "token_create", uses=uses, expires_s=86_400, **terms)["link"]
    world.run(5)
    return str(link)


def members(world: Meshes, host: Host) -> set[str]:
    return {member.name for member in world.roster(host).members.values()}


def test_a_token_lets_in_as_many_as_it_says_while_its_owner_is_away():
    world, hosts = mesh(7, 3)
    link = token(world, hosts[0], 2)
    world.stop(hosts[0])
    new = [world.host(f"new{number}") for number in range(3)]
    for host in new:
        world.start(host)
        world.run(5)
    for host in new[:2]:
        assert world.call(host, "join", link=link)["state"] == "joined"
        assert world.holds(60, lambda: world.agree([*hosts[1:], host]))  # noqa: B023
    world.ask(new[2], "join", link=link)
    world.run(120)
    assert members(world, hosts[1]) == {"n0", "n1", "n2", "new0", "new1"}
    # It comes back knowing of no use, and finds all three applications on the relay.
    world.start(hosts[0])
    assert world.holds(60, lambda: world.agree([*hosts, *new[:2]]))
    world.run(60)
    assert members(world, hosts[0]) == {"n0", "n1", "n2", "new0", "new1"}


def test_two_at_once_for_one_use_end_with_one():
    for seed in (20, 21):
        world, hosts = mesh(seed, 4, relays=2)
        link = token(world, hosts[0], 1)
        new = [world.host("new0"), world.host("new1")]
        for host in new:
            world.start(host)
        world.run(5)
        # Each of the two is heard by one half of the members only.
        world.part("n2", "n3", "new1", "wss://relay1")
        world.run(60)
        for host in new:
            world.ask(host, "join", link=link)
        world.run(120)
        world.part("n2", "n3", "new1", "wss://relay1", island=0)
        world.holds(600, lambda: world.agree(hosts))
        assert world.agree(hosts)
        admitted = members(world, hosts[0]) & {"new0", "new1"}
        assert len(admitted) == 1
        for out in (host for host in new if host.name not in admitted):
            for host in hosts:
                device = host.node.desired(world.now).device
                assert out.wireguard_key not in {peer.public_key for peer in device.peers}


def test_an_ephemeral_member_that_vanishes_is_removed_and_one_that_is_there_is_not():
    world, hosts = mesh(8, 2, sleeps=True)
    link = token(world, hosts[0], 2, ephemeral=True)
    new = [world.host("stays"), world.host("vanishes")]
    for host in new:
        world.start(host)
        world.run(5)
        assert world.call(host, "join", link=link)["state"] == "joined"
    world.run(60)
    world.stop(new[1])
    world.cut(new[1])
    world.run(4 * 3600)
    assert members(world, hosts[1]) == {"n0", "n1", "stays"}
    world.run(2 * DAY)
    assert members(world, hosts[1]) == {"n0", "n1", "stays"}
    assert world.agree([*hosts, new[0]])


def test_who_lost_its_keys_is_told_one_problem_and_comes_back():
    world, hosts = mesh(9, 3)
    world.run(60)
    lost = hosts[2]
    world.stop(lost)
    world.cut(lost)
    lost.records["keys"].clear()
    world.start(lost)
    world.run(120)
    assert world.agree(hosts)
