"""What is said to the whole network, and what a node makes of it; what a crash in between leaves."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nostrvpn.machine import Moment, Tick
from nostrvpn.mesh.log_text import pack_operations
from nostrvpn.mesh.operations import operation_content, sign_operation
from nostrvpn.mesh.upkeep import UNHEARD_S
from nostrvpn.node.board import MAX_EARLY, Presence
from nostrvpn.node.events import Command, Persist, Reply, Resumed, ShutDown
from nostrvpn.node.roster_sync import has_network_key
from nostrvpn.signaling.courier import Courier
from nostrvpn.signaling.messages import MessageType
from nostrvpn.signaling.network_key import NetworkKey, make_key
from nostrvpn.signaling.rekey import rekey_bodies
from tests.sim.nodes import WALL, Host
from tests.unit.node.small_mesh import SmallMesh

NEWS, PRESENCE = MessageType.NEWS, MessageType.PRESENCE


def agree(mesh: SmallMesh, hosts: list[Host]) -> bool:
    """All of these have the same log, and the network key that it names."""
    same = len({mesh.roster(host).digest for host in hosts}) == 1
    if not same or not all(has_network_key(host.node) for host in hosts):
        return False
    return len({host.node.post.keyring.current.secret for host in hosts}) == 1


# -- crashes --------------------------------------------------------------------------------


def crash_after(persists: int) -> bool:
    """Alice removes carol, and dies after so many writes; return whether there were as many."""
    mesh = SmallMesh("alice", "bob", "carol")
    alice, bob, carol = mesh.all
    mesh.run(120)
    effects = alice.node.step(Command(99, "peer_remove", {"peer": "carol"}), mesh.moment(alice))
    for place, effect in enumerate(effects):
        if isinstance(effect, Persist):
            if not persists:
                effects = effects[:place]
                break
            persists -= 1
    mesh._perform(alice, effects)
    mesh.stop(alice)
    if persists:
        return False
    mesh.run(5)
    mesh.start(alice)
    mesh.run(60)
    if carol.secret.public_key in mesh.roster().members:
        mesh.call(alice, "peer_remove", peer="carol")
    assert mesh.run(120, lambda: agree(mesh, [alice, bob]))
    assert carol.secret.public_key not in mesh.roster(bob).members
    assert carol.node.post.keyring.get(mesh.roster().key_id) is None
    # What was left of the first attempt does no harm: bob and alice hear each other.
    mesh.call(bob, "peer_name", peer="me", name="robert")
    assert mesh.run(30, lambda: agree(mesh, [alice, bob]))
    return True


def test_a_crash_at_any_point_of_a_removal_leaves_a_node_that_recovers():
    count = 0
    while crash_after(count):
        count += 1
    assert count > 3


def test_a_new_key_is_stored_before_anybody_hears_of_it():
    mesh = SmallMesh("alice", "bob", "carol")
    alice = mesh.all[0]
    effects = alice.node.step(Command(99, "peer_remove", {"peer": "carol"}), mesh.moment(alice))
    spaces = [effect.space if isinstance(effect, Persist) else "-" for effect in effects]
    sent = next(
        place
        for place, effect in enumerate(effects)
        if type(effect).__name__ in ("SendText", "SendThrough")
    )
    assert "keys" in spaces[:sent]
    assert "network" in spaces[:sent]
    assert "-" not in spaces[: spaces.index("network")], "both are one transaction"


def test_a_crash_before_the_key_of_a_welcome_is_stored_lets_the_node_ask_again():
    mesh = SmallMesh("alice")
    bob = mesh.host("bob")
    mesh.all.append(bob)
    mesh.start(bob)
    mesh.run(3)
    original, died = mesh._perform, list[bool]()

    def dies(host: Host, effects: list[Any]) -> None:
        persists = [e for e in effects if isinstance(e, Persist)]
        if host is bob and not died and any(e.space == "network" for e in persists):
            keys = [place for place, e in enumerate(effects) if getattr(e, "space", "") == "keys"]
            died.append(True)
            original(host, effects[: keys[0]])
            mesh.stop(bob)
            return
        original(host, effects)

    mesh._perform = dies  # type: ignore[method-assign]
    link = mesh.call(mesh.owner, "invite", npub=bob.secret.npub, once=False, expires_s=86_400)
    mesh.step(bob, Command(77, "join", {"link": link["link"]}))
    assert mesh.run(20, lambda: bool(died))
    assert "network" in bob.records
    assert "ring" not in bob.records.get("keys", {})
    mesh.run(1)
    mesh.start(bob)
    assert mesh.run(60, lambda: mesh.roster(bob) is not None and agree(mesh, mesh.all))


# -- what may be said -----------------------------------------------------------------------


def rekey_by(mesh: SmallMesh, author: Host, key: NetworkKey, to: Host) -> dict[str, object]:
    """Return how ``author`` hands a key to ``to``."""
    ring = mesh.owner.node.post.keyring.current
    board = ring.at(max(ring.day, key.day)).board()
    courier = Courier(author.secret.reveal(), author.secret.public_key)
    secrets = courier.entry_keys([to.secret.public_key], board)
    [body] = rekey_bodies(key, secrets)
    return body


def test_a_key_that_no_operation_of_its_author_names_is_not_used():
    mesh = SmallMesh("alice", "bob", "mallory")
    _, bob, mallory = mesh.all
    before = bob.node.post.keyring
    moment = mesh.moment(mallory)
    for number in range(3 * MAX_EARLY):
        key = make_key(f"{number:016x}", moment.wall, moment.entropy)
        rekey = rekey_by(mesh, mallory, key, bob)
        mesh.posted(bob, mesh.posts(mallory, NEWS, {"rekey": rekey}))
    assert bob.node.post.keyring == before
    assert 0 < len(bob.node.presence._early) <= MAX_EARLY
    theirs = make_key(mesh.roster().key_id, moment.wall, moment.entropy)
    rekey = rekey_by(mesh, mallory, theirs, bob)
    mesh.posted(bob, mesh.posts(mallory, NEWS, {"rekey": rekey}))
    assert bob.node.post.keyring == before


def test_a_key_waits_for_the_operation_that_names_it():
    """Relays give the newest first, so what the operation follows from may come after it."""
    mesh = SmallMesh("alice", "bob")
    alice, bob = mesh.all
    moment, secret = mesh.moment(alice), alice.secret.reveal()
    first = mesh.roster().sign(secret, "settings", {"inbound": "all"}, wall=1000, aux=bytes(32))
    key = make_key("5c" * 8, moment.wall, moment.entropy)
    second = first.sign(secret, "rekey", {"key": key.id}, wall=1001, aux=bytes(32))
    rekey = rekey_by(mesh, alice, key, bob)
    body: dict[str, object] = {"ops": pack_operations(second.log[-1:]), "rekey": rekey}
    mesh.posted(bob, mesh.posts(alice, NEWS, body))
    assert bob.node.post.keyring.get(key.id) is None
    mesh.posted(bob, mesh.posts(alice, NEWS, {"ops": pack_operations(first.log[-1:])}))
    assert mesh.roster(bob).digest == second.digest
    assert bob.node.post.keyring.current.id == key.id
    assert has_network_key(bob.node)


def test_of_two_keys_made_at_once_all_use_the_one_that_the_roster_names():
    orders = []
    for order in (1, -1):
        mesh = SmallMesh("alice", "bob", "carol")
        alice, bob, carol = mesh.all
        mesh.call(alice, "peer_role", peer="carol", role="admin", lasts_s=None)
        mesh.run(10)
        base, moment = mesh.roster(), mesh.moment(alice)
        wraps = []
        for host, name in ((alice, "5a"), (carol, "5b")):
            key = make_key(name * 8, moment.wall, moment.entropy)
            content = operation_content(base.network_id, base.heads, "rekey", {"key": key.id})
            signed = sign_operation(host.secret.reveal(), content, wall=1000, aux=bytes(32))
            body: dict[str, object] = {
                "ops": pack_operations([signed.event]),
                "rekey": rekey_by(mesh, host, key, bob),
            }
            wraps.append(mesh.posts(host, NEWS, body))
        for wrap in wraps[::order]:
            mesh.posted(bob, wrap)
        assert has_network_key(bob.node)
        ring = bob.node.post.keyring
        assert {"5a" * 8, "5b" * 8} <= {key.id for key in ring.keys}
        orders.append(ring.current.id)
    assert orders[0] == orders[1]


def test_who_was_removed_is_not_heard_on_the_old_board():
    mesh = SmallMesh("alice", "bob", "carol")
    bob, carol = mesh.all[1:]
    old = mesh.owner.node.post.keyring.current
    mesh.call(mesh.owner, "peer_remove", peer="carol")
    mesh.run(20)
    digest = mesh.roster(bob).digest
    mesh.posted(bob, mesh.posts(carol, NEWS, {"ops": mesh.junk(carol, 1)}, old))
    assert bob.node.post.dropped["not_a_member"] == 1
    assert mesh.roster(bob).digest == digest


def test_presence_leads_nobody_to_another_relay():
    mesh = SmallMesh("alice", "bob")
    alice, bob = mesh.all
    mesh.run(120)  # it may name relays once a minute
    body = bob.node.outbox.about_us() | {
        "digest": mesh.roster().digest,
        "relays": ["wss://trap.example"],
    }
    before = alice.sent["OpenRelay"]
    mesh.posted(alice, mesh.posts(bob, PRESENCE, body))
    assert alice.node.peers[bob.secret.public_key].relays == ("wss://trap.example",)
    assert alice.sent["OpenRelay"] == before


def test_two_who_agree_with_each_other_are_asked_once():
    presence, moment = Presence(), Moment(0.0, WALL, SmallMesh("a").moment(Host).entropy)  # type: ignore[arg-type]
    asked = [presence.is_needed(f"{n:064x}", "d" * 16, 10**9, moment) for n in range(50)]
    assert asked == [False, True, *[False] * 48]


# -- time -----------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["disconnected", "keyless", "removed", "expired"])
def test_nothing_is_due_for_ever(state):
    """Whoever has nothing to say, or nobody to say it to, does not wake for it again and again."""
    mesh = SmallMesh("alice", "bob", "carol")
    bob = mesh.all[1]
    match state:
        case "disconnected":
            mesh.kill(mesh.one_relay)
        case "keyless":
            mesh.one_relay.stored.clear()
            bob.node.post._keeper.keyring = type(bob.node.post.keyring)()
        case "removed":
            mesh.call(mesh.owner, "peer_remove", peer="bob")
        case "expired":
            mesh.call(mesh.owner, "peer_role", peer="bob", role="guest", lasts_s=30)
            mesh.stop(mesh.owner)
            mesh.stop(mesh.all[2])
    mesh.run(60)
    ticks = 0
    original = bob.node.step

    def counted(event: Any, moment: Moment) -> Any:
        nonlocal ticks
        ticks += isinstance(event, Tick)
        effects = original(event, moment)
        due = bob.node.deadline
        assert due is None or due > moment.now or ticks < 2000
        return effects

    bob.node.step = counted
    bob.node.presence.due = mesh.now
    mesh.run(600)
    assert ticks < 1500


def test_who_has_no_key_says_presence_as_soon_as_it_has_one():
    mesh = SmallMesh("alice", "bob")
    bob = mesh.all[1]
    ring, bob.node.post._keeper.keyring = bob.node.post.keyring, type(bob.node.post.keyring)()
    bob.node.presence.due = mesh.now
    mesh.step(bob, Tick())
    assert bob.node.presence.due is None
    bob.node.post._keeper.keyring = ring
    mesh.run(90)
    assert bob.node.presence._said_at is not None
    assert mesh.now - bob.node.presence._said_at < 90


def test_a_guest_is_let_go_when_its_time_is_over_and_gets_no_key():
    mesh = SmallMesh("alice", "bob", "carol")
    bob, carol = mesh.all[1:]
    mesh.call(mesh.owner, "peer_role", peer="carol", role="guest", lasts_s=100)
    mesh.run(20)
    mesh.stop(mesh.owner)  # nobody removes it
    mesh.run(85)
    who = carol.secret.public_key
    assert who in mesh.roster(bob).members
    assert who not in bob.node.peers
    assert carol.wireguard_key not in {
        peer.public_key for peer in bob.node.desired(mesh.now).device.peers
    }
    assert who not in bob.node.post._directory.listening.members
    assert "membership_ended" in [item["code"] for item in mesh.status(carol)["problems"]]
    mesh.says(carol, bob, MessageType.ROSTER, {"ops": mesh_ops(mesh)})
    assert bob.node.dropped["not_a_member"] == 1
    body = {"digest": "0" * 16} | carol.node.outbox.about_us()
    key = bob.node.post.keyring.current
    mesh.seq = 1 << 50
    wrap = posted_by(mesh, carol, body, key)
    mesh.posted(bob, wrap)
    assert bob.node.post.dropped["not_a_member"] == 1
    mesh.start(mesh.owner)
    assert mesh.run(60, lambda: who not in mesh.roster(bob).members)
    mesh.run(60)
    assert mesh.roster().key_id not in {key.id for key in carol.node.post.keyring.keys}


def mesh_ops(mesh: SmallMesh) -> str:
    return pack_operations(mesh.roster(mesh.all[1]).log[-1:])


def posted_by(mesh: SmallMesh, author: Host, body: dict[str, object], key: NetworkKey) -> Any:
    owner, mesh.owner.node = mesh.owner.node, mesh.all[1].node
    try:
        return mesh.posts(author, PRESENCE, body, key)
    finally:
        mesh.owner.node = owner


# -- ephemeral members ----------------------------------------------------------------------


def test_an_ephemeral_member_leaves_when_it_is_stopped_and_others_do_not():
    mesh = SmallMesh("alice", "bob", "carol")
    dave = mesh.host("dave")
    mesh.all.append(dave)
    mesh.start(dave)
    mesh.run(3)
    mesh.admit(dave, ephemeral=True)
    mesh.run(10)
    for host, is_out in ((dave, True), (mesh.all[1], False), (mesh.owner, False)):
        effects: list[Any] = []
        original = mesh._perform

        def kept(one: Host, what: list[Any], host: Host = host, into: Any = effects) -> None:
            if one is host:
                into += what
            original(one, what)  # noqa: B023

        mesh._perform = kept  # type: ignore[method-assign,assignment]
        mesh.step(host, Command(1000, "stop", {}))
        assert mesh.run(4, lambda: ShutDown() in effects)  # noqa: B023
        mesh._perform = original  # type: ignore[method-assign]
        [reply] = [e for e in effects if isinstance(e, Reply) and e.call == 1000]
        assert effects.index(reply) < effects.index(ShutDown())
        json.dumps(reply.value)
        mesh.run(5)
        others = [other for other in mesh.all if other is not host]
        for other in others:
            assert (host.secret.public_key not in mesh.roster(other).members) is is_out


def test_an_ephemeral_member_stops_within_bounds_without_a_relay():
    mesh = SmallMesh("alice", "bob", ephemeral=True)
    bob = mesh.all[1]
    mesh.kill(mesh.one_relay)
    mesh.run(200)
    mesh.step(bob, Command(1000, "stop", {}))
    assert mesh.run(4, lambda: bob.sent["ShutDown"] == 1)


def test_an_admin_that_heard_nobody_removes_nobody():
    mesh = SmallMesh("alice", "bob", ephemeral=True)
    alice, bob = mesh.all
    who = bob.secret.public_key
    mesh.kill(mesh.one_relay)
    mesh.stop(bob)
    mesh.run(3 * UNHEARD_S)
    assert who in mesh.roster(alice).members
    # It slept, and does not know yet that its connections are dead.
    mesh.one_relay.up = True
    mesh.run(120)
    assert alice.node.post.pool.connected
    mesh._heap.clear()
    mesh.now += 2 * UNHEARD_S
    mesh.step(alice, Resumed(2 * UNHEARD_S))
    mesh.step(alice, Tick())
    assert who in mesh.roster(alice).members
    assert mesh.run(2 * UNHEARD_S, lambda: who not in mesh.roster(alice).members)
