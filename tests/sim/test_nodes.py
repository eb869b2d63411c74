"""Whole nodes in virtual time: inviting, meeting, losing messages, relays and clocks."""

from __future__ import annotations

import pytest

from nostrvpn.machine import Tick
from nostrvpn.node.events import Refuse, Reply
from nostrvpn.paths.events import UseEndpoint
from tests.sim.nodes import WALL, Host, World


def meet(world: World, a: Host, b: Host) -> float:
    """Let ``a`` invite ``b`` and return the seconds from the join to a direct path."""
    link = world.call(a, "invite", npub=b.secret.npub, once=False, expires_s=86_400)["link"]
    began = world.now
    world.ask(b, "join", link=link)
    assert world.run(60, lambda: world.is_connected(a, b)), (a.logs[-9:], b.logs[-9:])
    return world.now - began


def two(seed: int = 1, *, lost: float = 0.0, skew: float = 0.0) -> tuple[World, Host, Host]:
    world = World(seed)
    world.relay(lost=lost)
    a, b = world.host("alice"), world.host("bob", skew=skew)
    for host in (a, b):
        world.start(host)
    world.run(5)
    return world, a, b


def test_the_path_is_used_one_round_trip_after_the_welcome():
    world, a, b = two()
    # Two trips over the relay (four hops of 20 ms), one check, one handshake, and the watcher's look.
    assert meet(world, a, b) <= 0.080 + 0.040 + 0.040 + 0.045


def test_lost_messages_cost_seconds_not_minutes():
    # A fifth of all messages, each way: of a hundred meetings one or two lose three in a row.
    took = sorted(meet(*two(seed, lost=0.2)) for seed in range(60))
    assert took[-6] < 8
    assert took[-1] < 60


@pytest.mark.parametrize("skew", [-300.0, 300.0])
def test_clocks_a_few_minutes_off_do_not_matter(skew):
    world, a, b = two(skew=skew)
    assert meet(world, a, b) < 1


def test_a_clock_far_off_is_said_in_words():
    world, a, b = two(skew=7200.0)
    link = world.call(a, "invite", npub=b.secret.npub, once=False, expires_s=86_400)["link"]
    assert world.call(b, "join", link=link)["state"] == "waiting"
    status = world.status(a)
    assert set(status["dropped_messages"]) == {"clock_skew"}
    [said] = [p for p in status["problems"] if p["code"] == "clock_skew"]
    assert "120 minutes" in said["text"]
    assert said["hint"]


def test_the_inviter_may_come_back_later():
    world, a, b = two()
    link = world.call(a, "invite", npub=b.secret.npub, once=False, expires_s=86_400)["link"]
    world.stop(a)
    assert world.call(b, "join", link=link)["state"] == "waiting"
    world.run(7200)
    world.start(a)
    assert world.run(5, lambda: world.is_connected(a, b))


def test_a_restarted_node_is_back_without_any_relay():
    world, a, b = two()
    meet(world, a, b)
    world.run(30)
    world.kill(world.relays["wss://relay"])
    world.stop(b)
    world.run(20)
    world.start(b)
    assert world.run(2, lambda: world.is_connected(a, b))


def test_tunnels_outlive_every_relay_and_relays_come_back():
    world, a, b = two()
    meet(world, a, b)
    relay = world.relays["wss://relay"]
    world.kill(relay)
    world.run(600)
    assert world.is_connected(a, b)
    assert "relays_down" in [p["code"] for p in world.status(a)["problems"]]
    relay.up = True
    world.run(90)
    assert [r["state"] for r in world.status(a)["relays"]] == ["connected"]


def test_every_member_meets_every_other():
    world = World(7)
    world.relay()
    hosts = [world.host(f"n{i}") for i in range(6)]
    for host in hosts:
        world.start(host)
    world.run(5)
    for joiner in hosts[1:]:
        meet(world, hosts[0], joiner)
    pairs = [(x, y) for x in hosts for y in hosts if x is not y]
    assert world.run(30, lambda: all(world.is_connected(x, y) for x, y in pairs))
    addresses = [tuple(world.status(host)["addresses"]) for host in hosts]
    assert len(set(addresses)) == len(hosts)


def test_a_removed_member_is_cut_off_by_all():
    world = World(8)
    world.relay()
    hosts = [world.host(f"n{i}") for i in range(3)]
    for host in hosts:
        world.start(host)
    world.run(5)
    for joiner in hosts[1:]:
        meet(world, hosts[0], joiner)
    world.run(30, lambda: world.is_connected(hosts[1], hosts[2]))
    world.call(hosts[0], "peer_remove", peer="n2")
    world.run(5)
    for host in hosts[:2]:
        assert len(world.status(host)["peers"]) == 1
        assert len(host.node.desired(world.now).device.peers) == 1
    assert not hosts[2].node.desired(world.now).device.peers
    assert "removed" in [p["code"] for p in world.status(hosts[2])["problems"]]


def test_no_relay_ever_sees_who_it_is():
    world = World(9)
    world.now = 54_000.0  # an hour before midnight UTC, when mailboxes change
    relay = world.relay()
    hosts = [world.host(f"laptop-{i}") for i in range(2)]
    for host in hosts:
        world.start(host)
    world.run(5)
    for joiner in hosts[1:]:
        meet(world, hosts[0], joiner)
    world.run(9_000)
    assert (WALL + world.now) // 86_400 > (WALL + 54_000.0) // 86_400
    everything = "\n".join(relay.seen)
    for host in hosts:
        network = host.node.membership.roster.network_id
        for secret in (
            host.secret.npub,
            host.secret.public_key,
            host.name,
            str(host.address.ip),
            host.node.settings.tunnel.public_key,
            network,
            *world.status(host)["addresses"],
        ):
            assert secret not in everything, secret


def test_a_refused_applicant_hears_why_and_so_does_the_inviter():
    world, a, b = two()
    c = world.host("carol")
    world.start(c)
    world.run(5)
    link = world.call(a, "invite", npub=None, once=True, expires_s=86_400)["link"]
    assert world.call(b, "join", link=link)["state"] == "joined"
    refused = world.ask(c, "join", link=link)
    assert isinstance(refused, Refuse)
    assert "used" in refused.text
    assert refused.hint
    assert "join_refused" in [p["code"] for p in world.status(c)["problems"]]
    assert "applicant_refused" in [p["code"] for p in world.status(a)["problems"]]
    # A fresh invite works after all.
    assert meet(world, a, c) < 1


def test_commands_with_nonsense_are_refused_in_words():
    world, a, _ = two()
    refused: list[tuple[str, dict[str, object]]] = [
        ("join", {"link": "nostrvpn://nonsense"}),
        ("invite", {"npub": "npub1xyz", "once": False}),
        ("invite", {"npub": None, "once": False}),
        ("peer_remove", {"peer": "nobody"}),
        ("peer_rename", {"peer": "nobody", "name": "x"}),
        ("ping", {"peer": "nobody"}),
        ("dance", {}),
    ]
    for name, args in refused:
        answer = world.ask(a, name, **args)
        assert isinstance(answer, Refuse), (name, answer)
        assert answer.text
        assert "\n" not in answer.text + answer.hint


def test_an_idle_pair_is_quiet():
    world, a, b = two()
    meet(world, a, b)
    world.run(600)
    a.sent.clear()
    world.run(600)
    assert a.sent["SendText"] <= 2
    assert a.sent["SendDatagram"] <= 100


def test_answers_are_json_and_complete():
    world, a, b = two()
    meet(world, a, b)
    for name in ("status", "id", "peers", "netcheck", "export"):
        assert isinstance(world.ask(a, name), Reply)
        assert world.call(a, name)
    [peer] = world.call(a, "peers")["peers"]
    assert peer["path"] == "direct"
    assert peer["name"] == "bob"
    assert world.call(a, "peer_rename", peer="bob", name="server")["name"] == "server"
    assert world.call(a, "peers")["peers"][0]["name"] == "server"


@pytest.mark.parametrize("seed", range(6))
def test_old_joins_that_a_relay_kept_do_not_spoil_a_restart(seed):
    world, a, b = two(seed)
    for _ in range(3):  # each joining leaves a request with a session of its time on the relay
        meet(world, a, b)
        world.run(5)
        world.call(a, "peer_remove", peer=b.secret.npub)
        assert world.run(10, lambda: world.status(b)["peers"] == [])
    meet(world, a, b)
    world.run(5)
    world.stop(a)
    world.start(a)
    world.run(20)
    assert world.is_connected(a, b)
    status = world.status(a)
    assert status["dropped_messages"]["old_news"] > 0
    # Had the path engine taken up one of them, it would hold the peer's present session for stale.
    assert "stale_description" not in status["dropped_datagrams"]


def test_a_path_proven_before_the_whole_welcome_came_waits():
    world, a, b = two()
    link = world.call(a, "invite", npub=b.secret.npub, once=False, expires_s=86_400)["link"]
    world.stop(a)
    assert world.call(b, "join", link=link)["state"] == "waiting"
    chosen = UseEndpoint(a.secret.public_key, a.address, 1)
    b.node.tunnel.use_endpoint(chosen, b.secret.public_key, world.moment(b))
    world.step(b, Tick())
    world.run(60)
    assert b.sent["Poke"] == 0
    assert not b.node.desired(world.now).device.peers
    world.start(a)
    assert world.run(400, lambda: world.is_connected(a, b))


def test_a_full_queue_is_a_visible_problem():
    world, a, _ = two()
    a.node.tap_counters = {"overflowed": 7}
    [said] = [p for p in world.status(a)["problems"] if p["code"] == "queue_full"]
    assert said["text"].startswith("7 datagrams")
    assert world.status(a)["dropped_datagrams"]["overflowed"] == 7
