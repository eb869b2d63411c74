"""The commands about the network, on nodes that talk: what each answers, and what the others come to."""

from __future__ import annotations

from typing import Any

import pytest

from nostrvpn.identity.keys import RootSecret
from nostrvpn.mesh.admission import MAX_INVITES
from nostrvpn.mesh.members import Role
from nostrvpn.mesh.operations import agree_to_rotate
from nostrvpn.node.commands import run_command
from nostrvpn.node.events import Command, NodeEffect, Persist, Refuse, Reply, ShutDown
from nostrvpn.node.spreading import answer_spread
from nostrvpn.signaling.network_key import Keyring
from tests.sim.nodes import Host, World

NEW = RootSecret(b"\x55" * 32)


def alone() -> tuple[World, Host]:
    world = World()
    world.relay()
    host = world.host("alice")
    world.start(host)
    world.run(5)
    return world, host


def met() -> tuple[World, Host, Host]:
    world, alice = alone()
    bob = world.host("bob")
    world.start(bob)
    world.run(5)
    link = world.call(alice, "invite", npub=bob.secret.npub, once=False)["link"]
    world.ask(bob, "join", link=link)
    assert world.run(60, lambda: world.is_connected(alice, bob))
    return world, alice, bob


def refusal(world: World, host: Host, command: str, /, **args: Any) -> Refuse:
    refused = world.ask(host, command, **args)
    assert isinstance(refused, Refuse), refused
    return refused


def effects_of(world: World, host: Host, name: str) -> list[NodeEffect]:
    return run_command(host.node, Command(1, name, {}), world.moment(host))


def test_a_network_is_created_once() -> None:
    world, alice = alone()
    assert world.call(alice, "network")["id"] is None
    made = world.call(alice, "network_create", name="crew")
    assert (made["name"], made["role"], made["members"]) == ("crew", "owner", 1)
    assert world.call(alice, "network") == made
    assert (
        "in the network crew already" in refusal(world, alice, "network_create", name="other").text
    )


def test_what_is_decided_is_told_in_words() -> None:
    world, alice, bob = met()
    key = bob.secret.public_key
    tagged = world.call(alice, "peer_tag", peer="bob", tags=["b", "a"])
    assert tagged["tags"] == ["a", "b"]
    assert world.call(alice, "peer_name", peer="bob", name="desk")["name"] == "desk"
    made = world.call(alice, "peer_role", peer="desk", role="guest", lasts_s=3600)
    assert made["role"] == "guest"
    assert made["expires_at"] == int(world.moment(alice).wall) + 3600
    settings = world.call(alice, "network_settings", name=None, inbound="all", same_owner=False)
    assert settings == {"name": "home", "inbound": "all", "same_owner": False}
    assert (
        world.call(alice, "network_settings", name=None, inbound=None, same_owner=None) == settings
    )
    told = [entry["text"] for entry in world.call(alice, "network_log")["operations"]]
    assert told[:5] == [
        "created the network home",
        "let bob in as member",
        "tagged desk a, b",
        "named desk desk",
        told[4],
    ]
    assert told[4].startswith("made desk guest until ")
    assert told[5] == "set inbound to all, same owner to off"
    assert alice.node.membership.roster.members[key].role is Role.GUEST
    assert {entry["void"] for entry in world.call(alice, "network_log")["operations"]} == {None}


def test_a_member_decides_only_about_itself() -> None:
    world, alice, bob = met()
    for command in (
        ("peer_tag", {"peer": "alice", "tags": []}),
        ("peer_role", {"peer": "alice", "role": "guest", "lasts_s": None}),
        ("network_settings", {"name": None, "inbound": "all", "same_owner": None}),
        (
            "token_create",
            {"uses": 1, "expires_s": 60, "role": "member", "tags": [], "ephemeral": 0},
        ),
        ("peer_replace", {"peer": "alice", "npub": NEW.npub, "expires_s": 60}),
    ):
        assert "only the" in refusal(world, bob, command[0], **command[1]).text
    assert world.call(bob, "peer_name", peer="me", name="desk")["name"] == "desk"
    assert world.run(30, lambda: alice.node.peer_name(bob.secret.public_key) == "desk")


def test_a_replacement_that_is_refused_has_signed_nothing() -> None:
    world, alice, bob = met()
    for _ in range(MAX_INVITES - len(alice.node.membership.invites)):
        world.call(alice, "invite", npub=None, once=True, expires_s=86_400)
    args = {"peer": "bob", "npub": NEW.npub, "expires_s": 86_400}
    assert "open already" in refusal(world, alice, "peer_replace", **args).text
    assert bob.secret.public_key in alice.node.membership.roster.members
    assert set(alice.records["network"]) == {e.id for e in alice.node.membership.roster.log}


def test_told_is_what_the_command_itself_said() -> None:
    world, _, bob = met()
    # Something else is under way, and a relay takes that alone.
    bob.node.post._under_way.add("roster-0")
    step = world.moment(bob)
    effects = run_command(bob.node, Command(5, "network_leave", {"wait_s": 3.0}), step)
    assert not [effect for effect in effects if isinstance(effect, Reply)]
    bob.node.post._under_way.clear()
    bob.node.post._taken.append("roster-0")
    [answer] = answer_spread(bob.node, step)
    assert isinstance(answer, Reply)
    assert answer.value["told"] is False  # type: ignore[index]


def test_without_a_network_key_nobody_is_told() -> None:
    world, _, bob = met()
    bob.node.post._keeper.keyring = Keyring()
    assert world.call(bob, "network_leave", wait_s=3.0)["told"] is False


def test_tokens_are_made_listed_and_ended() -> None:
    world, alice, _ = met()
    member = {"role": "guest", "tags": ["lab"], "ephemeral": True}
    made = world.call(alice, "token_create", uses=3, expires_s=3600, **member)
    [token] = world.call(alice, "token_list")["tokens"]
    assert made["link"].startswith("nostrvpn://join/")
    assert token == {
        "id": made["id"],
        "state": "open",
        "uses": 3,
        "used": 0,
        "expires_at": made["expires_at"],
        **member,
    }
    assert world.call(alice, "token_revoke", id=made["id"][:6]) == {"id": made["id"]}
    assert world.call(alice, "token_list")["tokens"][0]["state"] == "revoked"
    assert "no such token" in refusal(world, alice, "token_revoke", id="abcdef").text


def test_a_replaced_device_leaves_its_place() -> None:
    world, alice, bob = met()
    old = alice.node.membership.roster.address(bob.secret.public_key)
    made = world.call(alice, "peer_replace", peer="bob", npub=NEW.npub, expires_s=3600)
    assert made["link"].startswith("nostrvpn://npub1")
    roster = alice.node.membership.roster
    assert bob.secret.public_key not in roster.members
    assert roster.members[NEW.public_key].name == "bob"
    assert roster.address(NEW.public_key).ipv4 == old.ipv4
    own = refusal(world, alice, "peer_replace", peer="me", npub=NEW.npub, expires_s=60)
    assert "nostrvpn rotate" in own.hint
    former = {"peer": "bob", "npub": bob.secret.npub, "expires_s": 60}
    assert "is or was a member" in refusal(world, alice, "peer_replace", **former).text


def test_leaving_is_answered_when_a_relay_has_it() -> None:
    world, alice, bob = met()
    assert world.call(bob, "network_leave", wait_s=8.0) == {"name": "home", "told": True}
    key = bob.secret.public_key
    assert world.run(30, lambda: key not in alice.node.membership.roster.members)
    told = [entry["text"] for entry in world.call(alice, "network_log")["operations"]]
    assert "left" in told


def test_leaving_without_a_relay_says_so() -> None:
    world, _, bob = met()
    for relay in world.relays.values():
        world.kill(relay)
    world.run(1)
    assert world.call(bob, "network_leave", wait_s=5.0) == {"name": "home", "told": False}


def test_an_owner_leaves_no_operation() -> None:
    world, alice, _ = met()
    before = alice.node.membership.roster.version
    assert world.call(alice, "network_leave", wait_s=1.0)["told"] is True
    assert alice.node.membership.roster.version == before


def test_rotating_is_told_again_until_it_is_heard() -> None:
    world, alice, bob = met()
    told = {"npub": NEW.npub, "told": True}
    network = alice.node.membership.roster.network_id
    proof = agree_to_rotate(NEW.reveal(), network, bob.secret.public_key, bytes(32))
    assert "agree" in refusal(world, bob, "rotate", npub=NEW.npub, wait_s=8.0).text
    assert world.call(bob, "rotate", npub=NEW.npub, proof=proof, wait_s=8.0) == told
    assert world.run(30, lambda: NEW.public_key in alice.node.membership.roster.members)
    assert "key_replaced" in {item["code"] for item in world.status(bob)["problems"]}
    version = bob.node.membership.roster.version
    before = bob.sent["SendText"]
    assert world.call(bob, "rotate", npub=NEW.npub, wait_s=8.0) == told
    assert bob.node.membership.roster.version == version
    assert bob.sent["SendText"] > before


def test_a_node_in_no_network_has_nobody_to_tell() -> None:
    world, alice = alone()
    assert world.call(alice, "rotate", npub=NEW.npub, wait_s=1.0) == {
        "npub": NEW.npub,
        "told": True,
    }


def test_another_wireguard_key_comes_with_the_next_start() -> None:
    world, alice = alone()
    stored, reply = effects_of(world, alice, "rotate_wireguard")
    assert stored == Persist("meta", "wireguard_epoch", 1)
    assert isinstance(reply, Reply)
    reply, ending = effects_of(world, alice, "restart")
    assert isinstance(reply, Reply)
    assert ending == ShutDown(restart=True)
    assert reply.value == {"run": alice.node.run}


@pytest.mark.parametrize("name", ["network_log", "token_list", "network_settings", "peer_tag"])
def test_without_a_network(name: str) -> None:
    world, alice = alone()
    arguments = {"peer": "bob", "tags": []} if name == "peer_tag" else {}
    assert "this node is in no network" in refusal(world, alice, name, **arguments).text


def test_a_guest_expires_and_an_admin_takes_it_out() -> None:
    world, alice, bob = met()
    world.call(alice, "peer_role", peer="bob", role="guest", lasts_s=60)
    key = bob.secret.public_key
    assert world.run(50)
    assert key in alice.node.membership.roster.members
    assert world.run(60, lambda: key not in alice.node.membership.roster.members)
    # Whoever was out still knew the key: a new one is made.
    assert world.run(60, lambda: not alice.node.membership.roster.needs_rekey)
