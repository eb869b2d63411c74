"""Who has lost the network's key, or got a wrong one from whoever let it in, comes to the right one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nostrvpn.node.problems import problem
from nostrvpn.node.roster_sync import has_network_key
from nostrvpn.signaling.network_key import Keyring
from tests.sim.nodes import Host
from tests.unit.node.small_mesh import SmallMesh

TOKEN: dict[str, Any] = {
    "uses": 1,
    "expires_s": 86_400,
    "role": "member",
    "tags": [],
    "ephemeral": False,
}


def forget(mesh: SmallMesh, host: Host) -> None:
    """Its keys are gone, and nobody has a tunnel to it or a path to try."""
    mesh.stop(host)
    for space in ("keys", "session"):
        host.records.get(space, {}).clear()
    for other in mesh.all:
        other.handshakes.pop(host.wireguard_key, None)
    host.handshakes.clear()
    mesh.start(host)
    mesh.run(5)
    assert host.node.post.keyring == Keyring()


def test_a_member_that_lost_its_keys_joins_again_by_a_link_of_an_admin():
    mesh = SmallMesh("alice", "bob", "carol")
    bob = mesh.all[1]
    mesh.run(120)
    before, version = mesh.roster(bob).address(bob.secret.public_key), mesh.roster().version
    forget(mesh, bob)
    told = [
        found for found in mesh.status(bob)["problems"] if found["code"] == "network_key_missing"
    ]
    assert "nostrvpn invite" in told[0]["hint"]
    assert problem("network_key_missing").hint == told[0]["hint"]
    link = mesh.call(mesh.owner, "invite", npub=bob.secret.npub, once=False, expires_s=86_400)[
        "link"
    ]
    assert mesh.call(bob, "join", link=link)["state"] == "joined"
    assert has_network_key(bob.node)
    assert mesh.run(60, lambda: mesh.is_connected(mesh.owner, bob))
    assert mesh.roster(bob).address(bob.secret.public_key) == before
    assert mesh.roster().version == version


def test_an_admin_without_any_key_makes_none_that_would_reach_nobody():
    mesh = SmallMesh("alice", "bob", "carol")
    alice, bob = mesh.all[:2]
    mesh.call(alice, "peer_role", peer="bob", role="admin", lasts_s=None)
    mesh.run(30)
    key = mesh.roster().key_id
    forget(mesh, bob)
    mesh.run(3 * 3600)
    assert mesh.roster(bob).key_id == mesh.roster().key_id == key
    assert not has_network_key(bob.node)
    link = mesh.call(alice, "invite", npub=bob.secret.npub, once=False, expires_s=86_400)["link"]
    assert mesh.call(bob, "join", link=link)["state"] == "joined"
    assert has_network_key(bob.node)


def lets_in(mesh: SmallMesh, welcomer: Host, lie: Callable[[Any], Any]) -> Host:
    """Return who was let in by a token by ``welcomer`` alone, who lies about the network key."""
    link = mesh.call(mesh.owner, "token_create", **TOKEN)["link"]
    mesh.run(30)
    others = [host for host in mesh.all if host is not welcomer]
    for host in others:
        mesh.stop(host)
    keeper = welcomer.node.post._keeper
    mesh.right = keeper.keyring  # type: ignore[attr-defined]
    keeper.keyring = lie(keeper.keyring)
    newcomer = mesh.host("dave")
    mesh.all.append(newcomer)
    mesh.start(newcomer)
    mesh.run(5)
    assert mesh.call(newcomer, "join", link=link)["state"] == "joined"
    # What lay on the relay was said before.
    mesh.one_relay.stored.clear()
    for host in others:
        mesh.start(host)
    return newcomer


def other_secret(ring: Keyring) -> Keyring:
    return Keyring((replace(ring.keys[0], secret=b"w" * 32),))


def other_id(ring: Keyring) -> Keyring:
    return Keyring((replace(ring.keys[0], id="f" * 16),))


def check_that_a_lie_does_not_last(lie: Callable[[Any], Any]) -> None:
    mesh = SmallMesh("alice", "bob", "mallory")
    mallory = mesh.all[2]
    dave = lets_in(mesh, mallory, lie)
    assert not has_network_key(dave.node)
    assert "link" in dave.records["join"]
    right = mesh.right.current  # type: ignore[attr-defined]
    assert mesh.run(600, lambda: has_network_key(dave.node))
    assert (
        dave.node.post.keyring.current.secret == right.at(dave.node.post.keyring.current.day).secret
    )
    assert "link" not in dave.records["join"]
    assert dave.node.post._keeper.ephemeral is None
    assert mesh.run(60, lambda: mesh.is_connected(mesh.owner, dave))


def test_a_wrong_key_of_whoever_let_a_node_in_does_not_last():
    check_that_a_lie_does_not_last(other_secret)


def test_nor_does_a_key_by_another_name():
    check_that_a_lie_does_not_last(other_id)


def test_who_was_let_in_by_a_plain_member_is_certain_as_soon_as_an_admin_is_heard(monkeypatch):
    mesh = SmallMesh("alice", "bob", "carol")
    dave = lets_in(mesh, mesh.all[2], lambda ring: ring)
    assert not has_network_key(dave.node)
    # By what the admin writes under the key: not handed over again, nor by a welcome (after 13 s).
    monkeypatch.setattr("nostrvpn.node.roster_sync._take_key", lambda *_: None)
    assert mesh.run(12, lambda: has_network_key(dave.node))
