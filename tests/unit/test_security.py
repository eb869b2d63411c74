"""The promises of docs/security.md, against relays, members, strangers and local users who cheat."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import random
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from nostrvpn.errors import PeerMisbehaved, UserError
from nostrvpn.identity.keys import RootSecret
from nostrvpn.io.durable_file import make_private_directory
from nostrvpn.io.relays import RelaySockets
from nostrvpn.io.store import Record
from nostrvpn.machine import Entropy, Moment
from nostrvpn.mesh.answers import REFUSALS
from nostrvpn.mesh.effects import JoinState
from nostrvpn.mesh.invites import parse_link
from nostrvpn.mesh.log_text import pack_operations
from nostrvpn.mesh.membership import Membership
from nostrvpn.mesh.names import dns_label
from nostrvpn.mesh.operations import operation_content, sign_operation
from nostrvpn.node.events import Command, HeardThrough, NodeEffect, Persist, Reply
from nostrvpn.nostr.frames import ClosedFrame, NoticeFrame, OkFrame, parse_frame
from nostrvpn.nostr.nip59 import STORED_WRAP
from nostrvpn.signaling.courier import LIVE_SKEW_S, Courier, Delivery
from nostrvpn.signaling.mailboxes import Mailbox, node_inbox
from nostrvpn.signaling.messages import Message, MessageType, render_message
from nostrvpn.signaling.relays import RelayClosed, RelayText
from tests.sim.hostile import (
    RELAY,
    WEEK,
    Attacker,
    deliver,
    invited,
    meet,
    network_of,
    node_of,
    roster_of,
    subscription,
    world_of,
)
from tests.sim.nodes import WALL, Host, World

NASTY = "\x1b[31m\nerror: all is lost\r\x00\u202e\ud800"


def admitted(world: World, owner: Host, seed: int = 77) -> Attacker:
    """A member that does not follow the rules."""
    attacker = Attacker(world, seed)
    attacker.join(owner, invited(world, owner, attacker.secret.npub))
    assert attacker.secret.public_key in node_of(owner).membership.peers
    world.run(1)
    return attacker


def state_of(host: Host) -> str:
    """All that decides about routes, peers, names and permissions."""
    node = node_of(host)
    roster = node.membership.roster
    members = roster.members if roster else None
    return repr((members, sorted(node.peers), node.desired(0.0).host, node.desired(0.0).device))


# -- relays --------------------------------------------------------------------------------


def test_what_a_relay_says_is_one_printable_line():
    said = [
        parse_frame(json.dumps(["OK", "id", False, NASTY[:-1] * 99])),
        parse_frame(json.dumps(["CLOSED", "m1", NASTY[:-1]])),
        parse_frame(json.dumps(["NOTICE", NASTY[:-1]])),
    ]
    for frame in said:
        assert isinstance(frame, OkFrame | ClosedFrame | NoticeFrame)
        words = frame.text if isinstance(frame, NoticeFrame) else frame.reason
        assert words.isprintable()
        assert len(words) <= 200
    with pytest.raises(PeerMisbehaved):
        parse_frame('["NOTICE", "\\ud800"]')


async def test_relays_get_no_cookie_back():
    """A cookie would tell a relay that the node with another address and other mailboxes is the same."""
    seen: list[str | None] = []

    async def handle(request: web.Request) -> web.WebSocketResponse:
        seen.append(request.headers.get("Cookie"))
        socket = web.WebSocketResponse()
        socket.set_cookie("who", "you")
        await socket.prepare(request)
        await socket.close()
        return socket

    closed: asyncio.Queue[Any] = asyncio.Queue()
    application = web.Application()
    application.router.add_get("/", handle)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"ws://localhost:{runner.addresses[0][1]}/"
    sockets = RelaySockets(closed.put)
    try:
        for _ in range(2):
            sockets.open(url)
            while not isinstance(await asyncio.wait_for(closed.get(), 10), RelayClosed):
                pass
    finally:
        await sockets.stop()
        await runner.cleanup()
    assert seen == [None, None]


def test_an_expired_wrap_is_dropped():
    """A relay that keeps wraps beyond their NIP-40 expiration cannot replay them."""
    alice, bob = RootSecret(b"\x01" * 32), RootSecret(b"\x02" * 32)
    ours, theirs = (Courier(one.reveal(), one.public_key) for one in (alice, bob))
    now = 20_000 * 86_400 + 43_200
    mailbox = node_inbox(b"k" * 32, "00" * 8, now // 86_400, bob.public_key)
    theirs.listen({mailbox.public_key: mailbox})
    message = Message(MessageType.DESCRIBE, "ab" * 32, 1, {})
    moment = Moment(0.0, now, Entropy(b"x"))
    wrap = ours.seal(bob.public_key, mailbox, message, moment, expires_s=None)
    # Its date is not told to the second, so neither is its end.
    late = int(wrap[STORED_WRAP].tag_values("expiration")[0]) + LIVE_SKEW_S + 1
    assert theirs.open(wrap[STORED_WRAP], Moment(9.0, late, Entropy(b"y"))) is None
    assert dict(theirs.dropped) == {"expired": 1}
    assert theirs.open(wrap[STORED_WRAP], Moment(9.0, late - 2, Entropy(b"y"))) is not None


def mutated(rng: random.Random, text: str) -> str:
    """One of the many ways in which a text can be wrong."""
    kind = rng.randrange(6)
    at = rng.randrange(len(text)) if text else 0
    if kind == 0:
        return text[:at]
    if kind == 1:
        return text[:at] + rng.choice('"\\{}[],:0\x00\u2028é😀-e') + text[at + 1 :]
    if kind == 2:
        return text[:at] + text[rng.randrange(len(text) or 1) :]
    if kind == 3:
        return text.replace(
            rng.choice(['"', ":", ",", "1", "a", "null"]), rng.choice(["", "9e9", "[]"]), 1
        )
    if kind == 4:
        return "[" * rng.randrange(1, 3000) + text
    return text[:at] + text[at : at + 40] * rng.randrange(40) + text[at:]


def bent(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """A JSON value with one or more members of a wrong type, size or meaning."""
    odd: list[Any] = [
        None, True, -1, 0, 1.5, 2**53, 2**70, "", "x" * 5000, NASTY, [], {}, [[]], {"a": {}},
        "0" * 64, "f" * 64, ["wss://" + NASTY], {"session": "0" * 16}, [None] * 50,
    ]  # fmt: skip
    if depth and rng.random() < 0.15:
        return rng.choice(odd)
    if isinstance(value, dict):
        made = {key: bent(rng, item, depth + 1) for key, item in value.items()}
        if made and rng.random() < 0.2:
            made.pop(rng.choice(list(made)))
        return made
    if isinstance(value, list):
        made_list = [bent(rng, item, depth + 1) for item in value]
        return made_list * rng.randrange(1, 4) if rng.random() < 0.1 else made_list
    return value


FRAMES = [
    ["EVENT", "m1", {}],
    ["OK", "0" * 64, False, "auth-required: please"],
    ["OK", "0" * 64, True],
    ["EOSE", "m1"],
    ["CLOSED", "m1", "restricted: no"],
    ["NOTICE", "hello"],
    ["AUTH", "challenge"],
]


@pytest.mark.parametrize("seed", range(4))
def test_no_frame_of_a_relay_does_more_than_count(seed):
    """Thousands of mutated frames: nothing raises, nothing but counters and connections changes."""
    rng = random.Random(seed)
    world, (alice, bob) = world_of("alice", "bob", seed=seed + 1)
    meet(world, alice, bob)
    world.run(5)
    before = state_of(alice)
    genuine = [text for text in world.relays[RELAY].seen if text.startswith('["EVENT"')]
    for number in range(600):
        frame = json.dumps(bent(rng, rng.choice(FRAMES)))
        if number % 3 == 0:
            event = json.loads(rng.choice(genuine))[1]
            frame = json.dumps(["EVENT", "m1", event if number % 2 else bent(rng, event)])
        text = mutated(rng, frame) if rng.random() < 0.6 else frame
        world.step(alice, RelayText(RELAY, text))
        if number % 100 == 0:
            world.run(20)  # hung up on by now: let it connect again
    world.run(60)
    assert state_of(alice) == before
    json.dumps(world.status(alice), ensure_ascii=False).encode()
    counters = node_of(alice).post.pool.snapshot()[0].counters
    assert counters["malformed_json"] + counters["malformed_frame"] > 20
    assert counters["hangups"] > 0


# -- messages ------------------------------------------------------------------------------


def bodies(attacker: Attacker, link: str) -> dict[MessageType, dict[str, Any]]:
    """A well-formed body of each type."""
    parsed = parse_link(link)
    candidate = {"kind": "host", "endpoint": "11.0.9.9:40000", "priority": 1}
    description = {
        "session": "ab" * 8, "generation": 1, "answers": None, "ufrag": "abcdefgh",
        "password": "p" * 32, "candidates": [candidate],
    }  # fmt: skip
    about = attacker.about(desc=description, relays=["wss://other.example"])
    fields: dict[str, object] = {
        "who": "ab" * 32, "name": "x", "role": "member", "tags": [], "owner": "ab" * 32,
        "expires": None, "ephemeral": False,
    }  # fmt: skip
    network = parsed.network_id
    content = operation_content(network, [network], "add", fields)
    signed = sign_operation(attacker.secret.reveal(), content, wall=1, aux=bytes(32))
    operations = pack_operations([signed.event])
    secrets = {"invite": parsed.invite_id, "secret": parsed.secret.hex(), "name": "mallory"}
    return {
        MessageType.JOIN: about | secrets,
        MessageType.WELCOME: about | {"ops": operations, "part": 0, "total": 1},
        MessageType.REFUSED: {"invite": parsed.invite_id, "reason": "used"},
        MessageType.DESCRIBE: about,
        MessageType.ROSTER: {"ops": operations},
        MessageType.KEYS: {"pub": "09" + "00" * 31, "echo": "", "day": 1},
        MessageType.PRESENCE: about,
        MessageType.NEWS: {"rekey": {"id": "0" * 16, "day": 1, "entries": "AAAA"}},
    }


@pytest.mark.parametrize("kind", MessageType)
@pytest.mark.parametrize("role", ["member", "stranger"])
def test_no_message_does_more_than_its_sender_may(kind, role):
    """Hundreds of bent bodies of each type: nothing raises, and nobody else's entry changes."""
    rng = random.Random(f"{kind}{role}")
    world, (alice, bob) = world_of("alice", "bob")
    meet(world, alice, bob)
    link = invited(world, alice)
    attacker = admitted(world, alice) if role == "member" else Attacker(world)
    node = node_of(alice)
    before = (dict(roster_of(alice).members), node.peers[bob.secret.public_key].wireguard_key)
    network, secret = network_of(alice), parse_link(link).secret
    body = bodies(attacker, link)[kind]
    body["secret" if kind is MessageType.JOIN else "x"] = "00" * 16  # the link is not given away
    for _ in range(120):
        settings: dict[str, Any] = {
            "network": network,
            "invite": secret,
            "stored": rng.random() < 0.2,
        }
        if rng.random() < 0.3:
            text = mutated(rng, json.dumps({"v": 1, "type": kind.value, "net": network,
                                            "seq": 9, "body": body}))  # fmt: skip
            made = attacker.wrap_text(alice, text, invite=secret)
        else:
            made = attacker.wrap(alice, kind, bent(rng, body), **settings)
        deliver(world, alice, made)
        world.run(0.5)
    assert node.dropped or node.post.dropped
    after = (dict(roster_of(alice).members), node.peers[bob.secret.public_key].wireguard_key)
    assert after == before
    status = json.dumps(world.status(alice), ensure_ascii=False)
    status.encode()
    json.dumps(alice.records, ensure_ascii=False).encode()
    assert not any(char in status for char in "\x1b\u202e\r\x00")
    assert not [line for line in alice.logs if not line.isprintable()]
    assert world.is_connected(alice, bob)


def test_nobody_outside_the_roster_changes_anything():
    world, (alice, bob) = world_of("alice", "bob")
    meet(world, alice, bob)
    link = invited(world, alice)
    stranger, before = Attacker(world), state_of(alice)
    for kind, body in bodies(stranger, link).items():
        if kind is not MessageType.JOIN:
            settings: dict[str, Any] = {
                "network": network_of(alice),
                "invite": parse_link(link).secret,
            }
            stranger.send(alice, kind, body, **settings)
    assert state_of(alice) == before
    assert set(node_of(alice).dropped) == {"refusal_unasked"}
    # The mailbox of an invite takes nothing else at all; and what a member may say in the inbox, or
    # through a tunnel, is no use to who is none.
    assert node_of(alice).post.dropped["wrong_place"] >= 2
    box = Mailbox("", b"")
    for kind, body in bodies(stranger, link).items():
        if kind in (MessageType.ROSTER, MessageType.DESCRIBE, MessageType.KEYS):
            message = Message(kind, network_of(alice), 1 << 50, body)
            delivery = Delivery(stranger.secret.public_key, message, int(WALL), box)
            node_of(alice).post.deliveries.append(delivery)
            text = render_message(message)
            world.step(alice, HeardThrough(IPv6Address("fd00::1"), text))
    assert state_of(alice) == before
    assert set(node_of(alice).dropped) >= {"bad_roster", "not_a_member", "refusal_unasked"}


def test_a_join_request_is_admitted_whole_or_its_admission_is_stored():
    """What is signed is on disk before it leaves, also if the rest of the request is nonsense."""
    world, (alice,) = world_of("alice")
    mallory = Attacker(world)
    mallory.join(alice, invited(world, alice, mallory.secret.npub), wg="nonsense")
    roster = roster_of(alice)
    assert sorted(alice.records["network"]) == sorted(event.id for event in roster.log)
    assert roster.version == 2


def test_what_a_member_names_as_relays_are_urls():
    world, (alice,) = world_of("alice")
    mallory = admitted(world, alice)
    named = [f"wss://x.example/{NASTY}", "wss://[/b]", "https://x.example", "wss://good.example"]
    mallory.send(
        alice, MessageType.DESCRIBE, mallory.about(relays=named[:1]), network=network_of(alice)
    )
    assert node_of(alice).post.dropped == {"bad_message": 1}
    named[0] = "wss://x.example/\n\x1b[2J"
    mallory.send(
        alice, MessageType.DESCRIBE, mallory.about(relays=named), network=network_of(alice)
    )
    assert node_of(alice).peers[mallory.secret.public_key].relays == ("wss://good.example",)


def test_no_member_takes_all_our_relays():
    world = World(1)
    world.relay(RELAY)
    for number in range(8):
        world.relay(f"wss://evil{number}.example")
    alice = world.host("alice")
    alice.relays = (RELAY,)
    world.start(alice)
    world.run(5)
    mallory = admitted(world, alice)
    for number in range(8):
        about = mallory.about(relays=[f"wss://evil{number}.example"])
        mallory.send(alice, MessageType.DESCRIBE, about, network=network_of(alice))
        world.run(70)  # other relays are taken up once a minute
    relays: Any = world.status(alice)["relays"]
    states = {relay["url"]: relay["state"] for relay in relays}
    assert states[RELAY] == "connected"
    assert list(states.values()).count("connected") == 4


def test_claiming_anothers_wireguard_key_is_denial_not_interception():
    world, (alice, bob) = world_of("alice", "bob")
    victim = bob.wireguard_key
    mallory = admitted(world, alice)
    about = mallory.about(wg=victim)
    mallory.send(alice, MessageType.DESCRIBE, about, network=network_of(alice))
    link = invited(world, alice, bob.secret.npub)
    world.ask(bob, "join", link=link)
    world.run(30)
    node, roster = node_of(alice), roster_of(alice)
    assert node.dropped["duplicate_key"] > 0
    # Bob cannot be reached; but nothing that is meant for Bob is encrypted to anybody else.
    theirs = str(roster.address(bob.secret.public_key).ipv6)
    for peer in node.desired(world.now).device.peers:
        assert theirs not in {str(prefix.network_address) for prefix in peer.allowed_ips}
    assert not world.is_connected(alice, bob)


def test_a_first_come_wireguard_key_stays_its_owners():
    world, (alice, bob) = world_of("alice", "bob")
    meet(world, alice, bob)
    mallory = admitted(world, alice)
    for key in (bob.wireguard_key, alice.wireguard_key):
        mallory.send(alice, MessageType.DESCRIBE, mallory.about(wg=key), network=network_of(alice))
    assert node_of(alice).dropped["duplicate_key"] == 2
    assert node_of(alice).peers[bob.secret.public_key].wireguard_key == bob.wireguard_key
    assert world.is_connected(alice, bob)


def test_each_member_gets_its_own_addresses_and_no_other():
    world, (alice, bob) = world_of("alice", "bob")
    meet(world, alice, bob)
    admitted(world, alice)
    roster = roster_of(alice)
    peers = {peer.wireguard_key: peer.public_key for peer in node_of(alice).peers.values()}
    for peer in node_of(alice).desired(world.now).device.peers:
        own = roster.address(peers[peer.public_key])
        allowed = {str(prefix) for prefix in peer.allowed_ips}
        assert allowed == {f"{own.ipv6}/128", f"{own.ipv4}/32"}


def test_nobody_is_named_like_anothers_npub():
    world, (alice, bob) = world_of("alice", "bob")
    meet(world, alice, bob)
    mallory = Attacker(world)
    link = invited(world, alice, mallory.secret.npub)
    mallory.join(alice, link, name=f" {bob.secret.npub.upper()}")
    assert mallory.secret.public_key in node_of(alice).membership.peers
    assert world.call(alice, "peer_remove", peer=bob.secret.npub)["npub"] == bob.secret.npub
    assert dns_label("NPUB1xyz") == "node"


def test_an_inviter_whose_link_came_to_nothing_cannot_come_back():
    """A refused application is over: a late welcome must not move this node to that network."""
    at = Moment(1.0, WALL, Entropy(b"1"))
    mallory, alice = (Membership(RootSecret(bytes([n]) * 32), "x") for n in (9, 1))
    link, _ = mallory.invite(alice._me, 86_400, (), at)
    alice.join(link, at)
    parsed = parse_link(link)
    refusal = {"invite": parsed.invite_id, "reason": "used"}
    alice.on_refused(parsed.inviter, refusal)
    assert alice.joining is not None
    assert alice.joining.state is JoinState.REFUSED
    alice.invite(None, 86_400, (), at)
    own = alice.roster
    request = {"invite": parsed.invite_id, "secret": parsed.secret.hex(), "name": "alice"}
    mallory.on_join_request(alice._me, request, at)
    assert mallory.roster is not None
    operations = pack_operations(mallory.roster.log)
    with pytest.raises(PeerMisbehaved):
        alice.on_welcome(parsed.inviter, {"ops": operations, "part": 0, "total": 1})
    assert alice.roster == own


# -- exhaustion ----------------------------------------------------------------------------


def test_asking_again_and_again_is_not_answered_each_time():
    world, (alice,) = world_of("alice")
    mallory = Attacker(world)
    link = invited(world, alice, mallory.secret.npub)
    before = alice.sent["SendText"]
    for _ in range(50):
        mallory.join(alice, link)
    assert alice.sent["SendText"] - before <= 2


def test_strangers_with_an_old_link_get_a_bounded_number_of_refusals():
    world, (alice,) = world_of("alice")
    link = invited(world, alice)
    Attacker(world).join(alice, link)
    before = alice.sent["SendText"]
    for seed in range(100, 160):
        Attacker(world, seed).join(alice, link)
    assert alice.sent["SendText"] - before <= REFUSALS
    assert node_of(alice).dropped["refusals_limited"] == 60 - REFUSALS
    assert len(node_of(alice).membership.refusals) <= 20


def test_one_sender_is_heard_at_a_bounded_rate():
    world, (alice,) = world_of("alice")
    mallory = admitted(world, alice)
    for _ in range(100):
        mallory.send(alice, MessageType.DESCRIBE, mallory.about(), network=network_of(alice))
    assert node_of(alice).post.dropped["sender_flood"] >= 40


@pytest.mark.parametrize(
    "name", ["😀" * 64, '"' * 64, "\\" * 64], ids=["wide", "quotes", "slashes"]
)
def test_the_longest_names_do_not_keep_others_out(name):
    """A welcome's part fits a message, however its members are called."""
    world, (alice,) = world_of("alice")
    for seed in range(100, 126):
        one = Attacker(world, seed)
        one.join(alice, invited(world, alice, one.secret.npub), name=name)
        world.run(40)
    assert not [line for line in alice.logs if "could not be sealed" in line]


def test_memory_of_senders_is_bounded():
    world, (alice,) = world_of("alice")
    invited(world, alice)
    node = node_of(alice)
    network = network_of(alice)
    for seed in range(40):
        attacker = Attacker(world, 100 + seed)
        attacker.send(alice, MessageType.DESCRIBE, attacker.about(), network=network)
    assert node.peers == {}
    assert node.dropped == {"not_a_member": 40}


# -- secrets -------------------------------------------------------------------------------


def spellings(secret: bytes) -> set[str]:
    encoded = base64.b64encode(secret).decode().rstrip("=")
    return {secret.hex(), encoded, encoded.replace("+", "-").replace("/", "_"), repr(secret)[2:-1]}


def test_secrets_show_nowhere(monkeypatch):
    """Not in a status, a log line, or the repr of any event, effect or record."""
    shown: list[str] = []
    world, (alice, bob) = world_of("alice", "bob")
    perform = world._perform

    def performed(host: Host, effects: list[NodeEffect]) -> None:
        shown.append(repr(effects))
        perform(host, effects)

    monkeypatch.setattr(world, "_perform", performed)
    link = invited(world, alice, bob.secret.npub)
    world.step(bob, Command(999, "join", {"link": link}))
    shown.append(repr(Command(1, "join", {"link": link})))
    assert world.run(60, lambda: world.is_connected(alice, bob))
    for host in (alice, bob):
        shown += [repr(world.call(host, name)) for name in ("status", "id", "peers", "netcheck")]
        node = node_of(host)
        shown += host.logs
        shown += [repr(item) for item in (node.settings, node.membership.joining, node.peers)]
        shown += [repr(Record("invite", "x", host.records)), repr(Persist("a", "b", host.records))]
        shown.append(repr(Reply(1, host.records)))
    secrets = {"link": parse_link(link).secret}
    for host in (alice, bob):
        secrets[f"{host.name}'s root"] = host.secret.reveal()
        secrets[f"{host.name}'s WireGuard key"] = host.secret.wireguard_private_key()
    texts = {text: what for what, secret in secrets.items() for text in spellings(secret)}
    texts |= {host.secret.nsec(): f"{host.name}'s nsec" for host in (alice, bob)}
    for host in (alice, bob):
        for session in host.records["session"].values():
            assert isinstance(session, dict)
            texts |= {session[side]["password"]: "a password" for side in ("local", "remote")}
    everything = "\n".join(shown)
    assert "SendDatagram" in everything
    assert [what for text, what in texts.items() if text in everything] == []


# -- local users ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path, mode: int):
    directory = tmp_path / "state"
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(UserError, match="other users can write"):
        make_private_directory(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path):
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    os.chown(directory, 12345, 12345)
    with pytest.raises(UserError, match="belongs to another user"):
        make_private_directory(directory)


def test_a_log_line_is_one_line(caplog):
    """The daemon's own lines come from the node; a name or reason cannot start a new one."""
    world, (alice,) = world_of("alice")
    mallory = Attacker(world)
    mallory.join(alice, invited(world, alice, mallory.secret.npub), name="a\nerror: b\x1b[2J")
    world.step(alice, RelayText(RELAY, json.dumps(["CLOSED", subscription(world, alice), "a\nb"])))
    world.run(60)
    with caplog.at_level(logging.DEBUG):
        assert alice.logs
        assert all(line.isprintable() for line in alice.logs)


def test_the_replay_window_of_a_stored_message_is_eight_days():
    world, (alice,) = world_of("alice")
    mallory = Attacker(world)
    link = invited(world, alice, mallory.secret.npub)
    parsed = parse_link(link)
    body = mallory.about(invite=parsed.invite_id, secret=parsed.secret.hex(), name="m")
    settings: dict[str, Any] = {
        "network": parsed.network_id,
        "invite": parsed.secret,
        "stored": True,
    }
    wrap = mallory.wrap(alice, MessageType.JOIN, body, **settings)
    world.run(WEEK + 86_400 + 1)
    deliver(world, alice, wrap)
    assert node_of(alice).membership.peers == ()
    assert sum(node_of(alice).post.dropped.values()) == 1


def test_a_member_does_not_set_the_pace_of_relays_and_rosters():
    world, [alice] = world_of("alice")
    mallory = admitted(world, alice)
    before = alice.sent.copy()
    for number in range(60):
        about = mallory.about(relays=[f"wss://r{number}.example"], sample=[network_of(alice)])
        mallory.send(alice, MessageType.DESCRIBE, about, network=network_of(alice))
        world.run(0.5)
    sent = alice.sent - before
    assert sent["OpenRelay"] <= 10
    assert sent["Persist"] <= 10
