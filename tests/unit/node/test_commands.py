"""``ping`` says by which path, ``why`` refuses whom it does not know."""

from __future__ import annotations

from dataclasses import replace

from nostrvpn.node.commands import run_command
from nostrvpn.node.events import Command, Refuse, SendEcho
from tests.sim.nodes import Host, World


def met() -> tuple[World, Host, Host]:
    world = World()
    world.relay()
    alice, bob = world.host("alice"), world.host("bob")
    for host in (alice, bob):
        world.start(host)
    world.run(5)
    link = world.call(alice, "invite", npub=bob.secret.npub, once=False, expires_s=86_400)["link"]
    world.ask(bob, "join", link=link)
    assert world.run(60, lambda: world.is_connected(alice, bob))
    return world, alice, bob


def ping(world: World, host: Host) -> dict[str, object]:
    [effect] = run_command(host.node, Command(1, "ping", {"peer": "bob"}), world.moment(host))
    assert isinstance(effect, SendEcho)
    return effect.context


def test_ping_tells_the_path_of_each_echo() -> None:
    world, alice, bob = met()
    told = ping(world, alice)
    assert (told["path"], told["via"], told["carrier"], told["asleep"]) == (
        *("direct", None, "udp"),
        False,
    )
    link = alice.node.paths.snapshot(bob.secret.public_key)
    relayed = replace(link, path="relayed", via="turn a.example", carrier="turn")
    alice.node.paths.snapshot = lambda _peer: relayed
    told = ping(world, alice)
    assert (told["path"], told["via"], told["carrier"]) == ("relayed", "turn a.example", "turn")
    asleep = replace(link, path="none", asleep=True)
    alice.node.paths.snapshot = lambda _peer: asleep
    told = ping(world, alice)
    assert (told["path"], told["via"], told["carrier"], told["asleep"]) == (
        "none",
        None,
        None,
        True,
    )


def test_why_refuses_unknown_peers_in_words() -> None:
    world, alice, _bob = met()
    for wanted in ("nobody", "npub1", "", "x" * 200):
        refused = world.ask(alice, "why", peer=wanted)
        assert isinstance(refused, Refuse)
        assert refused.code == "unknown_peer"
        assert refused.hint
