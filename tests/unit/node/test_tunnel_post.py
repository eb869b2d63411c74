"""Messages through tunnels: whose they are, and what becomes of those that do not get through."""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import Any

from nostrvpn.node.events import HeardThrough, SendThrough, ThroughFailed
from nostrvpn.node.tunnel_post import MAX_UNDER_WAY, is_up, send_through
from nostrvpn.signaling.courier import SENDER_BURST
from nostrvpn.signaling.messages import MessageType
from nostrvpn.signaling.relays import SendText
from tests.unit.node.small_mesh import SmallMesh

ROSTER, KEYS = MessageType.ROSTER, MessageType.KEYS


def sent(mesh: SmallMesh, kind: MessageType = ROSTER) -> SendThrough:
    """Return a message of alice that goes through bob's tunnel."""
    alice, bob = mesh.all
    moment = mesh.moment(alice)
    effects = send_through(alice.node, bob.secret.public_key, (kind, {"sample": []}), moment)
    assert effects is not None
    [through] = [effect for effect in effects if isinstance(effect, SendThrough)]
    return through


def step(mesh: SmallMesh, event: Any) -> list[Any]:
    return list(mesh.owner.node.step(event, mesh.moment(mesh.owner)))


def test_what_does_not_get_through_goes_by_relays_once():
    mesh = SmallMesh("alice", "bob")
    token = sent(mesh).token
    assert any(isinstance(e, SendText) for e in step(mesh, ThroughFailed(token)))
    assert not any(isinstance(e, SendText) for e in step(mesh, ThroughFailed(token)))
    assert not any(isinstance(e, SendText) for e in step(mesh, ThroughFailed("roster-4711")))
    assert mesh.call(mesh.owner, "netcheck")["tunnel_messages"]["failed"] == 1


def test_keys_go_through_the_tunnel_or_not_at_all():
    mesh = SmallMesh("alice", "bob")
    token = sent(mesh, KEYS).token
    assert not any(isinstance(e, SendText) for e in step(mesh, ThroughFailed(token)))


def test_no_more_are_kept_in_mind_than_may_still_fail():
    mesh = SmallMesh("alice", "bob")
    first = sent(mesh).token
    for _ in range(MAX_UNDER_WAY):
        last = sent(mesh).token
    post = mesh.owner.node.tunnel_post
    assert len(post._under_way) == MAX_UNDER_WAY
    assert (post.end(first), post.end(last) is not None) == (None, True)


def test_a_stranger_and_one_who_was_removed_are_not_heard():
    mesh = SmallMesh("alice", "bob")
    alice, bob = mesh.all
    address = mesh.roster().address(bob.secret.public_key).ipv6
    text, before = sent(mesh).text, alice.node.tunnel_post.counters["heard"]
    step(mesh, HeardThrough(IPv6Address("fd00::1"), text))
    mesh.call(alice, "peer_remove", peer="bob")
    step(mesh, HeardThrough(address, text))
    assert alice.node.dropped["not_a_member"] == 2
    assert alice.node.tunnel_post.counters["heard"] == before


def test_a_flood_and_what_is_no_message_are_dropped_and_counted():
    mesh = SmallMesh("alice", "bob")
    alice, bob = mesh.all
    address = mesh.roster().address(bob.secret.public_key).ipv6
    mesh.run(60)
    for text in ("", "{}", "x" * 36_001, '{"v":1}', sent(mesh).text.replace('"v":2', '"v":3')):
        step(mesh, HeardThrough(address, text))
    dropped = alice.node.dropped
    assert dropped["bad_message"] == 3
    assert (dropped["oversized_message"], dropped["unknown_version"]) == (1, 1)
    for _ in range(2 * int(SENDER_BURST)):
        step(mesh, HeardThrough(address, "{}"))
    assert dropped["sender_flood"] == SENDER_BURST + 5


def test_a_tunnel_is_up_while_its_session_is():
    mesh = SmallMesh("alice", "bob")
    alice, bob = mesh.all
    who = bob.secret.public_key
    assert is_up(alice.node, who, mesh.moment(alice))
    mesh.stop(bob)
    mesh.run(200)
    assert not is_up(alice.node, who, mesh.moment(alice))
    nothing: dict[str, object] = {}
    assert send_through(alice.node, who, (ROSTER, nothing), mesh.moment(alice)) is None
    assert not is_up(alice.node, "ab" * 32, mesh.moment(alice))
