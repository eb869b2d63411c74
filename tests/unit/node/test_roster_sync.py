"""How members come to the same operations and key, also with one among them that lies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nostrvpn.machine import Moment
from nostrvpn.mesh.log_text import pack_operations
from nostrvpn.mesh.roster import Roster
from nostrvpn.node.events import Reconcile
from nostrvpn.node.roster_sync import (
    ANSWER_BURST,
    ANSWER_EVERY_S,
    ANSWER_RATE,
    ASK_BURST,
    ASK_RATE,
    JUNK_BURST,
    ask_roster,
    has_network_key,
    spread_through,
)
from nostrvpn.signaling.messages import MessageType
from nostrvpn.signaling.network_key import make_key
from tests.unit.node.small_mesh import SmallMesh, persisted, said_through

ROSTER = MessageType.ROSTER


def tag(mesh: SmallMesh, number: int) -> Roster:
    """Return the owner's roster with one more operation, that nobody has heard of."""
    fields = {"who": mesh.owner.secret.public_key, "tags": [f"t{number}"]}
    signed: Roster = mesh.roster().sign(
        mesh.owner.secret.reveal(), "tag", fields, wall=1000, aux=bytes(32)
    )
    return signed


def test_operations_without_effect_cost_a_few_folds_and_spare_the_others(monkeypatch):
    mesh = SmallMesh("alice", "bob", "mallory")
    _, bob, mallory = mesh.all
    folds: list[int] = []
    real = Roster._refold

    def counted(*args: Any) -> Roster:
        folds.append(1)
        return real(*args)

    monkeypatch.setattr(Roster, "_refold", counted)
    for number in range(50):
        mesh.says(mallory, bob, ROSTER, {"ops": mesh.junk(mallory, number)})
    assert len(folds) == JUNK_BURST
    assert bob.node.dropped["roster_flood"] == 50 - JUNK_BURST
    news = tag(mesh, 1)
    mesh.says(mesh.owner, bob, ROSTER, {"ops": pack_operations(news.log[-1:])})
    assert mesh.roster(bob).digest == news.digest


def test_the_end_of_a_bad_message_does_not_undo_its_beginning():
    mesh = SmallMesh("alice", "bob")
    bob = mesh.all[1]
    news = tag(mesh, 1)
    body = {"ops": pack_operations(news.log[-1:]), "network_key": 7, "sample": "none"}
    effects = mesh.says(mesh.owner, bob, ROSTER, body)
    assert mesh.roster(bob).digest == news.digest
    assert [item.key for item in persisted(effects, "network")] == [news.log[-1].id]
    assert any(isinstance(effect, Reconcile) for effect in effects)
    assert bob.node.dropped["bad_key"] == 1


def test_a_digest_that_always_differs_is_not_asked_about_for_ever():
    mesh = SmallMesh("alice", "bob")
    alice, bob = mesh.all
    asked, hours = 0, 10
    start = mesh.moment(alice)
    for number in range(hours * 360):
        moment = Moment(start.now + 10 * number, start.wall, start.entropy)
        asked += bool(ask_roster(alice.node, bob.secret.public_key, moment))
    assert ASK_BURST <= asked <= ASK_BURST + hours * 3600 * ASK_RATE + 1


def test_a_sample_that_always_lacks_is_answered_ever_more_rarely():
    mesh = SmallMesh("alice", "bob")
    alice, bob = mesh.all
    body: dict[str, object] = {"sample": [mesh.roster().network_id], "key": mesh.roster().key_id}
    answers, count = 0, 500
    for _ in range(count):
        mesh.run(2 * ANSWER_EVERY_S)
        mesh.says(bob, alice, ROSTER, body)
        answers += alice.node.peers[bob.secret.public_key].roster_at == mesh.now
    bound = ANSWER_BURST + count * 2 * ANSWER_EVERY_S * ANSWER_RATE + 1
    assert ANSWER_BURST <= answers <= bound


def test_who_has_the_same_digest_is_sent_nothing_whatever_its_sample_says():
    mesh = SmallMesh("alice", "bob")
    alice, bob = mesh.all
    mesh.run(10)
    roster = mesh.roster()
    body: dict[str, object] = {"sample": [roster.network_id], "key": roster.key_id}
    assert (
        said_through(mesh.says(bob, alice, ROSTER, body | {"digest": roster.digest}), ROSTER) == []
    )
    [answer] = said_through(mesh.says(bob, alice, ROSTER, body), ROSTER)
    assert set(answer.body) == {"ops"}


def test_who_lacks_more_than_a_message_holds_asks_on():
    mesh = SmallMesh("alice", "bob")
    alice, bob = mesh.all
    mesh.stop(bob)
    ledger = alice.node.membership._ledger
    for number in range(600):
        ledger.roster = tag(mesh, number)
    mesh.one_relay.stored.clear()
    mesh.start(bob)
    assert mesh.run(120, lambda: mesh.roster(bob).version == mesh.roster().version)
    assert bob.node.efforts.again == {}


def test_a_change_ends_when_all_have_it_though_everybody_passes_it_on():
    mesh = SmallMesh("alice", "bob", "carol", "dave")
    assert mesh.run(60, lambda: all_connected(mesh))
    mesh.kill(mesh.one_relay)
    mesh.run(5)
    before = {host.name: host.sent["SendThrough"] for host in mesh.all}
    mesh.call(mesh.owner, "peer_name", peer="bob", name="robert")
    mesh.run(60)
    assert {mesh.roster(host).digest for host in mesh.all} == {mesh.roster().digest}
    passed = sum(host.sent["SendThrough"] - before[host.name] for host in mesh.all)
    assert 3 <= passed <= 3 + 3 * 2


def all_connected(mesh: SmallMesh) -> bool:
    pairs = ((one, other) for one in mesh.all for other in mesh.all if one is not other)
    return all(mesh.is_connected(one, other) for one, other in pairs)


def test_many_operations_at_once_leave_in_parts():
    mesh = SmallMesh("alice", "bob")
    ledger = mesh.owner.node.membership._ledger
    for number in range(400):
        ledger.roster = tag(mesh, number)
    effects = spread_through(mesh.owner.node, mesh.roster().log, mesh.moment(mesh.owner))
    assert len(said_through(effects, ROSTER)) > 1


def test_messages_of_other_networks_and_types_are_dropped():
    mesh = SmallMesh("alice", "bob")
    alice, bob = mesh.all
    before = mesh.roster().digest
    ops = pack_operations(tag(mesh, 1).log[-1:])
    mesh.says(bob, alice, ROSTER, {"ops": ops}, net="ab" * 32)
    mesh.says(bob, alice, MessageType.NEWS, {"ops": ops})
    mesh.says(bob, alice, MessageType.WELCOME, {"ops": ops, "part": 0, "total": 1})
    assert (alice.node.dropped["other_network"], alice.node.dropped["wrong_place"]) == (1, 2)
    assert mesh.roster().digest == before


# -- the network key ------------------------------------------------------------------------


def without_newest_key(*more: str) -> tuple[SmallMesh, Any, Any]:
    """Return a mesh whose member bob knows of a new network key and has not got it, with both keys."""
    mesh = SmallMesh("alice", "bob", "carol", "dave", *more)
    bob = mesh.all[1]
    old = bob.node.post.keyring
    mesh.call(mesh.owner, "peer_remove", peer="dave")
    mesh.run(20)
    new = mesh.owner.node.post.keyring.current
    assert bob.node.post.keyring.current.id == new.id
    bob.node.post._keeper.keyring = old
    assert not has_network_key(bob.node)
    return mesh, old.current, new


def hand(mesh: SmallMesh, giver: Any, key: Any) -> None:
    bob = mesh.all[1]
    bob.node.peers[giver.secret.public_key].asked_at = mesh.moment(bob).now
    mesh.says(giver, bob, ROSTER, {"network_key": replace(key, left_at=None, told_by="").to_json()})


def test_a_wrong_key_by_a_plain_member_is_not_used_and_gives_way_to_another():
    mesh, old, new = without_newest_key()
    bob, carol = mesh.all[1:3]
    wall = mesh.moment(bob).wall
    wrong = make_key(new.id, wall, mesh.moment(bob).entropy)
    hand(mesh, carol, wrong)
    ring = bob.node.post.keyring
    assert (ring.current.id, ring.current.told_by) == (new.id, carol.secret.public_key)
    assert ring.writing.id == old.id
    assert not has_network_key(bob.node)
    hand(mesh, carol, new)  # it may not take its word back
    assert bob.node.post.keyring.get(new.id).secret == wrong.secret
    hand(mesh, mesh.owner, new)
    assert bob.node.post.keyring.writing.secret == new.at(wrong.day).secret
    assert has_network_key(bob.node)
    hand(mesh, carol, wrong)
    assert has_network_key(bob.node)


def test_a_key_on_a_members_word_is_used_when_an_admin_writes_under_it():
    mesh, _, new = without_newest_key("erin")
    bob, carol, _, erin = mesh.all[1:]
    hand(mesh, carol, new)
    assert not has_network_key(bob.node)
    stored = bob.node.post.keyring.to_json()
    assert type(bob.node.post.keyring).from_json(stored) == bob.node.post.keyring
    # By whom it was told, another plain member (they may lie together), and who is no member at all.
    others = (carol, erin, mesh.host("stranger"))
    for other in others:
        bob.node.post._directory.note_key(other.secret.public_key, new.id)
        assert not has_network_key(bob.node)
    bob.node.post._directory.note_key(mesh.owner.secret.public_key, new.id)
    assert has_network_key(bob.node)


@pytest.mark.parametrize("fault", ["unasked", "foreign", "future", "ancient"])
def test_keys_that_are_not_taken(fault):
    mesh, old, new = without_newest_key()
    bob = mesh.all[1]
    given = {
        "unasked": new,
        "foreign": replace(new, id="f" * 16),
        "future": replace(new, day=new.day + 3),
        "ancient": replace(new, day=new.day - 10),
    }[fault]
    bob.node.peers[mesh.owner.secret.public_key].asked_at = None
    if fault != "unasked":
        hand(mesh, mesh.owner, given)
    else:
        mesh.says(mesh.owner, bob, ROSTER, {"network_key": given.to_json()})
    code = {"unasked": "key_unasked", "foreign": "foreign_key"}.get(fault, "bad_key")
    assert bob.node.dropped[code] == 1
    assert bob.node.post.keyring.current.id == old.id


def test_who_lacks_the_key_asks_until_it_has_it_and_says_so_meanwhile():
    mesh, _, _ = without_newest_key()
    bob = mesh.all[1]
    assert "network_key_missing" in [p["code"] for p in mesh.status(bob)["problems"]]
    assert mesh.run(120, lambda: has_network_key(bob.node))
    assert "network_key_missing" not in [p["code"] for p in mesh.status(bob)["problems"]]
    mesh.run(1)
    assert bob.node.lacking.ask_at is None


def test_a_key_that_nobody_has_is_replaced_by_an_admin():
    mesh = SmallMesh("alice", "bob", "carol")
    rings = [host.node.post.keyring for host in mesh.all]
    mesh.call(mesh.owner, "peer_remove", peer="carol")
    mesh.run(20)
    lost = mesh.roster().key_id
    for host, ring in zip(mesh.all[:2], rings, strict=False):
        host.node.post._keeper.keyring = ring
    assert not mesh.run(600, lambda: mesh.roster().key_id != lost), "others are asked first"
    assert mesh.run(1800, lambda: all(has_network_key(host.node) for host in mesh.all[:2]))
    assert mesh.roster().key_id != lost


def test_without_a_relay_a_node_asks_through_its_tunnels():
    mesh = SmallMesh("alice", "bob")
    bob = mesh.all[1]
    mesh.kill(mesh.one_relay)
    mesh.run(5)
    mesh.owner.node.membership._ledger.roster = tag(mesh, 1)
    for _ in range(15):
        mesh.renew_handshakes()
        mesh.run(60)
    assert mesh.roster(bob).digest == mesh.roster().digest
