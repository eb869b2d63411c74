"""The node's zone follows roster, aliases and the host's routes; ``resolve`` says why."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from nostrvpn.mesh.zone import Zone
from nostrvpn.node.events import Refuse
from nostrvpn.node.names import NodeNames, own_addresses
from tests.sim.nodes import Host, World


@pytest.fixture(scope="module")
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


def zone_of(host: Host) -> Zone:
    zone = NodeNames(host.node).zone()
    assert zone is not None
    return zone


def resolve(met: tuple[World, Host, Host], name: str) -> dict[str, Any]:
    world, alice, _bob = met
    told: dict[str, Any] = world.call(alice, "resolve", name=name)
    return told


def test_a_member_by_each_of_its_names_and_by_address(met):
    _world, alice, bob = met
    domain = zone_of(alice).domain
    [peer] = met[0].call(alice, "peers")["peers"]
    for name in ("bob", f"bob.{domain}", f"BOB.{domain}.", bob.secret.npub):
        told = resolve(met, name)
        assert (told["npub"], told["answer"]) == (bob.secret.npub, "NOERROR")
        assert sorted(told["addresses"]) == sorted(peer["addresses"])
    for address in peer["addresses"]:
        assert resolve(met, address)["pointer"] == f"bob.{domain}"
    own = resolve(met, "alice")
    assert sorted(own["addresses"]) == sorted(map(str, own_addresses(alice.node)))


@pytest.mark.parametrize(
    ("name", "answer", "why"),
    [
        ("nobody", "NXDOMAIN", "nobody in the network"),
        ("bob.other.nvpn", "NXDOMAIN", "names that this node knows end in"),
        ("npub1" + "q" * 58, "NXDOMAIN", "no member has this npub"),
        ("nvpn", "NOERROR", "a domain"),
        ("example.org", "REFUSED", "refused here"),
        ("192.0.2.1", "REFUSED", "refused here"),
        ("..", "REFUSED", "refused here"),
    ],
)
def test_why_a_name_leads_nowhere(met, name, answer, why):
    told = resolve(met, name)
    assert (told["answer"], told["addresses"], told["pointer"]) == (answer, [], None)
    assert why in told["text"]


def test_an_alias_is_a_name_at_once_and_no_longer_when_taken_away(met):
    world, alice, bob = met
    names = NodeNames(alice.node)
    before = names.zone()
    assert names.zone() is before  # nothing changed, nothing is made again
    world.call(alice, "peer_rename", peer=bob.secret.npub, name="attic")
    told = resolve(met, "attic")
    assert (told["npub"], told["text"]) == (bob.secret.npub, "a member, by the name you gave it")
    assert resolve(met, "bob")["npub"] == bob.secret.npub
    assert names.zone() is not before
    world.call(alice, "peer_rename", peer=bob.secret.npub, name="")
    assert resolve(met, "attic")["answer"] == "NXDOMAIN"


def test_where_the_host_has_that_ipv4_range_names_have_ipv6_alone(met):
    _world, alice, _bob = met
    assert len(zone_of(alice).prefixes) == 2
    before = alice.node.routes
    alice.node.routes = frozenset([ip_network("10.0.0.0/8")])
    try:
        assert [prefix.version for prefix in zone_of(alice).prefixes] == [6]
        assert [address.version for address in own_addresses(alice.node)] == [6]
        assert all(":" in address for address in resolve(met, "bob")["addresses"])
    finally:
        alice.node.routes = before


def test_without_a_network_there_are_no_names(met):
    world = World()
    world.relay()
    lonely = world.host("lonely")
    world.start(lonely)
    assert NodeNames(lonely.node).zone() is None
    assert own_addresses(lonely.node) == ()
    refused = world.ask(lonely, "resolve", name="bob")
    assert isinstance(refused, Refuse)
    assert refused.hint
