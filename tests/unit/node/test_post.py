"""The post of several nodes on one relay: keys, mailboxes, and what a thief of today can read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.identity.keys import RootSecret
from nostrvpn.machine import Entropy, Moment, Tick
from nostrvpn.node.events import Log, Persist
from nostrvpn.node.post import CATCH_UP_S, Post
from nostrvpn.nostr import nip44
from nostrvpn.nostr.event import Event, event_json, parse_event
from nostrvpn.nostr.nip59 import EPHEMERAL_WRAP, STORED_WRAP, open_seal, open_wrap
from nostrvpn.signaling.directory import Listening
from nostrvpn.signaling.mailboxes import Mailbox, pair_mailbox
from nostrvpn.signaling.messages import MessageType
from nostrvpn.signaling.network_key import Keyring, make_key
from nostrvpn.signaling.pair_secret import Held
from nostrvpn.signaling.ratchet import DAY_S
from nostrvpn.signaling.relays import OpenRelay, RelayOpened, RelayText, SendText
from nostrvpn.signaling.sealing import key_of_day

URL = "wss://relay"
NET = "ab" * 32
INVITE = b"i" * 16
TOKEN = b"t" * 32
DAY = 20_000
NOON = DAY * DAY_S + 43_200.0
JOIN, WELCOME, DESCRIBE = MessageType.JOIN, MessageType.WELCOME, MessageType.DESCRIBE
PRESENCE, NEWS = MessageType.PRESENCE, MessageType.NEWS


class BadRing(Keyring):
    """Somebody's who hands over what is no key."""

    def welcome_fields(self, wall: float) -> dict[str, object]:
        return {"key": {"id": 5}}


class Person:
    """One node's post and its disk."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.secret = RootSecret(bytes([number]) * 32)
        self.key = self.secret.public_key
        self.disk: dict[str, object] = {}
        self.logs: list[str] = []
        self.saves = 0
        self.start()

    def start(self) -> None:
        self.post = Post(self.secret, (URL,), 1, 0, dict(self.disk))
        self.subscriptions: dict[str, list[dict[str, Any]]] = {}
        self.run(self.post.tick(self.world.moment()))

    def run(self, effects: list[Any]) -> None:
        for effect in effects:
            match effect:
                case OpenRelay():
                    self.run(self.post.relay_event(RelayOpened(URL), self.world.moment()))
                case SendText(_, text):
                    self.world.take(self, json.loads(text))
                case Persist("keys", key, value):
                    self.saves += 1
                    if value is None:
                        self.disk.pop(key, None)
                    else:
                        self.disk[key] = json.loads(json.dumps(value))
                case Log(text=text):
                    self.logs.append(text)

    def hear(self, frame: list[Any]) -> None:
        self.run(self.post.relay_event(RelayText(URL, json.dumps(frame)), self.world.moment()))

    def listen(self, *members: Person, **settings: Any) -> None:
        wanted = Listening(frozenset(m.key for m in members) - {self.key}, **settings)
        self.run(self.post.listen(wanted, self.world.moment()))

    def send(self, to: Person, kind: MessageType, **settings: Any) -> None:
        body = settings.pop("body", {"word": "secret-word"})
        moment = self.world.moment()
        self.run(self.post.send(to.key, kind, NET, body, moment, **settings))

    def tell(self, kind: MessageType, body: dict[str, object] | None = None) -> None:
        body = body or {"word": "secret-word"}
        self.run(self.post.tell_all(kind, NET, body, self.world.moment()))

    def got(self) -> list[tuple[str, MessageType]]:
        found = [(d.sender, d.message.type) for d in self.post.deliveries]
        found += [(p.author, p.message.type) for p in self.post.postings]
        self.post.deliveries.clear()
        self.post.postings.clear()
        return found


class World:
    """One relay, which keeps every wrap it ever saw."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps = 0
        self.people: list[Person] = []
        self.wraps: dict[str, Event] = {}
        self.away: set[Person] = set()

    def moment(self) -> Moment:
        self.steps += 1
        return Moment(self.now, NOON + self.now, Entropy(str(self.steps).encode()))

    def person(self, number: int) -> Person:
        person = Person(self, number)
        self.people.append(person)
        return person

    def take(self, person: Person, frame: list[Any]) -> None:
        match frame:
            case ["EVENT", dict() as event]:
                self.wraps[event["id"]] = parse_event(event)
                person.hear(["OK", event["id"], True, ""])
                for other in list(self.people):
                    self.bring(other, event)
            case ["REQ", str(name), *filters]:
                person.subscriptions[name] = filters
                for wrap in list(self.wraps.values()):
                    if wrap.kind == STORED_WRAP:
                        self.bring(person, event_json(wrap), only=name)
                person.hear(["EOSE", name])
            case ["CLOSE", str(name)]:
                person.subscriptions.pop(name, None)

    def bring(self, person: Person, event: dict[str, Any], only: str | None = None) -> None:
        address = next((tag[1] for tag in event["tags"] if tag[0] == "p"), "")
        for name, filters in list(person.subscriptions.items()):
            asked = any(address in flt.get("#p", ()) for flt in filters)
            if asked and person not in self.away and only in (None, name):
                person.hear(["EVENT", name, event])

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for person in self.people:
            if person not in self.away:
                person.run(person.post.tick(self.moment()))


def accepted(welcomer: Person) -> dict[str, Any]:
    """What membership says of an admin's welcome that it has accepted."""
    return {"admins": frozenset({welcomer.key}), "welcomed_by": welcomer.key}


def join(owner: Person, other: Person, members: list[Person]) -> None:
    """``other`` joins by an invite; what membership decides is done here by hand."""
    owner.listen(*members, invites=(INVITE,))
    other.listen(inviter=owner.key)
    other.send(owner, JOIN, invite=INVITE, expires_s=600)
    assert (other.key, JOIN) in owner.got()
    members.append(other)
    owner.send(other, WELCOME, expires_s=600)
    assert (owner.key, WELCOME) in other.got()
    other.listen(owner, **accepted(owner))
    for member in members:
        member.listen(*members)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def mesh(world: World) -> list[Person]:
    owner = world.person(1)
    owner.run(owner.post.use_key(owner.post.new_key("5a" * 8, world.moment()), world.moment()))
    members = [owner]
    for number in (2, 3):
        join(owner, world.person(number), members)
    return members


def test_a_welcome_brings_the_key_and_everything_after_goes_to_inboxes_and_board(mesh):
    alice, bob, carol = mesh
    bob.send(carol, DESCRIBE)
    assert carol.got() == [(bob.key, DESCRIBE)]
    carol.tell(PRESENCE)
    carol.tell(NEWS)
    for other in (alice, bob):
        assert other.got() == [(carol.key, PRESENCE), (carol.key, NEWS)]
    for person in mesh:
        assert not person.logs
        assert not person.post.dropped


def test_subscriptions_do_not_grow_with_the_members(mesh, world):
    def mailboxes(person: Person) -> int:
        return sum(
            len(f["#p"])
            for name, filters in person.subscriptions.items()
            if name.startswith("m")
            for f in filters
        )

    before = mailboxes(mesh[0])
    for number in range(4, 12):
        join(mesh[0], world.person(number), mesh)
    assert mailboxes(mesh[0]) == before == mailboxes(mesh[-1]) == 2


def test_the_applicants_key_survives_a_restart_and_goes_when_it_has_joined(world):
    owner, bob = world.person(1), world.person(2)
    owner.run(owner.post.use_key(owner.post.new_key("5a" * 8, world.moment()), world.moment()))
    owner.listen(invites=(INVITE,))
    bob.listen(inviter=owner.key)
    bob.send(owner, JOIN, invite=INVITE, expires_s=600)
    assert "joining" in bob.disk
    bob.start()
    bob.listen(inviter=owner.key)
    owner.send(bob, WELCOME, expires_s=600)
    assert bob.got() == [(owner.key, WELCOME)]
    bob.listen(inviter=owner.key)
    assert bob.post.keyring.current is None  # not before membership has accepted it
    bob.listen(owner, inviter=owner.key, **accepted(owner))
    assert "joining" in bob.disk
    bob.listen(owner)
    assert bob.post.keyring.current == owner.post.keyring.current
    assert "joining" not in bob.disk


def test_an_application_that_came_to_nothing_leaves_no_key(world):
    owner, bob = world.person(1), world.person(2)
    bob.listen(inviter=owner.key)
    bob.send(owner, JOIN, invite=INVITE)
    bob.listen()
    assert bob.disk == {}


def test_a_token_is_answered_by_any_member(mesh, world):
    alice, bob, carol = mesh
    for member in mesh:
        member.listen(*mesh, tokens=(TOKEN,))
    dave = world.person(9)
    dave.listen(asks_by=TOKEN)
    dave.send(alice, JOIN, token=TOKEN, expires_s=600)
    for member in mesh:
        assert member.got() == [(dave.key, JOIN)]
    carol.send(dave, WELCOME, expires_s=600)
    assert dave.got() == [(carol.key, WELCOME)]
    right = bob.post.keyring.current
    dave.listen(*mesh, asks_by=TOKEN, welcomed_by=carol.key, key_id=right.id)
    assert dave.post.keyring.current == right.told(carol.key)
    # Until somebody is heard whose word is enough.
    bob.tell(PRESENCE)
    assert dave.post.keyring.current == right.told(carol.key)
    dave.listen(*mesh, admins=frozenset({alice.key}))
    alice.tell(PRESENCE)
    assert dave.post.keyring.current == right


def test_of_several_welcomes_the_one_that_was_accepted_brings_the_key(mesh, world):
    alice, bob, carol = mesh
    right = bob.post.keyring.current
    for member in mesh:
        member.listen(*mesh, tokens=(TOKEN,))
    dave = world.person(9)
    dave.listen(asks_by=TOKEN)
    dave.send(alice, JOIN, token=TOKEN, expires_s=600)
    alice.send(dave, WELCOME, expires_s=600)
    for name in (right.id, "5c" * 8):
        wrong = replace(right, id=name, secret=b"w" * 32)
        carol.post._keeper.keyring = Keyring().adopt(wrong, NOON)
        carol.send(dave, WELCOME, expires_s=600)
    dave.listen(*mesh, asks_by=TOKEN, welcomed_by=alice.key, key_id=right.id)
    assert dave.post.keyring.keys == (right.told(alice.key),)
    # A plain member's word is about the key in use and no other.
    dave.listen(*mesh, asks_by=TOKEN, welcomed_by=carol.key, key_id=right.id)
    assert dave.post.keyring.keys == (right.told(alice.key),)
    carol.send(dave, WELCOME, expires_s=600)
    dave.listen(*mesh, asks_by=TOKEN, welcomed_by=carol.key, admins=frozenset({carol.key}))
    assert dave.post.keyring.current.id == "5c" * 8


def test_who_has_no_key_welcomes_nobody(mesh, world):
    owner, bob = mesh[0], world.person(9)
    owner.listen(*mesh, invites=(INVITE,))
    bob.listen(inviter=owner.key)
    bob.send(owner, JOIN, invite=INVITE)
    owner.post._keeper.keyring = Keyring()
    owner.send(bob, WELCOME)
    assert bob.got() == []
    assert "no network key" in owner.logs[0]


def test_who_is_no_member_makes_no_key_right(mesh, world):
    alice, bob, _ = mesh
    said = alice.post.keyring.current.told(alice.key)
    bob.post._keeper.keyring = Keyring((said,))
    # It was given the key by a liar, and knows bob's inbox.
    stranger = world.person(9)
    stranger.post._keeper.keyring = Keyring((said.told(""),))
    for admins in (frozenset[str](), frozenset({stranger.key})):
        bob.listen(*mesh, admins=admins)
        stranger.send(bob, DESCRIBE)
        assert bob.got() == [(stranger.key, DESCRIBE)]
        assert bob.post.keyring.keys == (said,)
        assert stranger.key not in bob.post._directory._heard_under
    bob.listen(*mesh, makers={said.id: alice.key})
    alice.send(bob, DESCRIBE)
    assert bob.post.keyring.keys == (said.told(""),)


def test_no_welcome_leaves_without_an_exchange(mesh, world):
    mesh[0].send(world.person(9), WELCOME)
    assert "has not told its key" in mesh[0].logs[0]


def test_a_join_without_a_key_is_counted(mesh, world):
    owner, eve = mesh[0], world.person(9)
    owner.listen(*mesh, invites=(INVITE,))
    eve.post._keeper.begin_application = lambda moment: b"short"
    eve.send(owner, JOIN, invite=INVITE)
    assert owner.got() == []
    assert owner.post.dropped == {"join_without_key": 1}


def test_a_key_in_a_welcome_that_is_none_is_counted_and_no_harm(world):
    owner, bob = world.person(1), world.person(2)
    owner.listen(invites=(INVITE,))
    bob.listen(inviter=owner.key)
    bob.send(owner, JOIN, invite=INVITE)
    owner.post._keeper.keyring = BadRing((make_key("5a" * 8, NOON, Entropy(b"k")),))
    owner.send(bob, WELCOME)
    assert bob.got() == []  # so that the application goes on
    bob.listen(owner, **accepted(owner))
    assert bob.post.keyring == Keyring()
    assert bob.post.dropped == {"bad_key": 1}


def rekey(alice: Person, remaining: list[Person]) -> None:
    under = alice.post.keyring.current
    assert under is not None
    key = alice.post.new_key("5b" * 8, alice.world.moment())
    for part in alice.post.rekey_parts(key, frozenset(p.key for p in remaining), under):
        alice.tell(NEWS, {"rekey": part})
    alice.run(alice.post.use_key(key, alice.world.moment()))


def take_rekey(person: Person) -> bool:
    posting = person.post.postings.pop()
    key = person.post.open_rekey(posting.author, posting.key_id, posting.message.body["rekey"])
    if key is not None:
        person.run(person.post.use_key(key, person.world.moment()))
    return key is not None


def test_after_a_removal_the_removed_one_reads_nothing_new(mesh, world):
    alice, bob, carol = mesh
    alice.listen(alice, bob)
    rekey(alice, [bob])
    assert take_rekey(bob)
    assert not take_rekey(carol)
    bob.listen(alice, bob)
    alice.tell(PRESENCE)
    bob.tell(NEWS)
    assert bob.got() == [(alice.key, PRESENCE)]
    assert alice.got() == [(bob.key, NEWS)]
    assert carol.got() == []
    carol.tell(PRESENCE)  # under the key it still has
    assert bob.got() == alice.got() == []
    assert bob.post.dropped == {"not_a_member": 1}


def test_who_was_away_during_a_rekey_reads_it_days_later(mesh, world):
    alice, bob, carol = mesh
    bob.tell(PRESENCE)
    world.away.add(carol)
    world.pass_time(1.6 * DAY_S)
    alice.got()
    alice.listen(alice, carol)
    rekey(alice, [carol])
    world.pass_time(3 * DAY_S)
    world.away.clear()
    carol.start()
    carol.listen(*mesh)
    assert take_rekey(carol)
    assert carol.post.keyring.current.id == alice.post.keyring.current.id
    old = json.dumps(carol.disk)
    world.pass_time(CATCH_UP_S + 2)
    assert json.dumps(carol.disk) != old
    assert carol.post.keyring.lag(NOON + world.now) == 0
    carol.send(alice, DESCRIBE)
    assert alice.got() == [(carol.key, DESCRIBE)]


def test_who_has_not_heard_of_the_new_key_is_written_to_under_the_old_one(mesh):
    alice, bob, _ = mesh
    bob.tell(PRESENCE)
    assert alice.got() == [(bob.key, PRESENCE)]
    rekey(alice, [])
    bob.got()
    alice.send(bob, DESCRIBE)
    assert bob.got() == [(alice.key, DESCRIBE)]


@pytest.mark.parametrize("body", [None, {}, {"day": 1}, {"day": DAY + 99}, {"day": True}])
def test_a_rekey_that_is_none_is_refused(mesh, body):
    alice, bob, _ = mesh
    with pytest.raises(PeerMisbehaved):
        bob.post.open_rekey(alice.key, bob.post.keyring.current.id, body)
    with pytest.raises(PeerMisbehaved):
        bob.post.open_rekey(alice.key, "0" * 16, body)


def agree(one: Person, two: Person) -> None:
    """What the tunnel's channel will carry."""
    one.run(one.post.tunnel_up(two.key, one.world.moment()))
    for _ in range(4):
        for writer, reader in ((one, two), (two, one)):
            for say in writer.post.take_says():
                assert say.peer == reader.key
                body = json.loads(json.dumps(say.body))
                reader.run(reader.post.hear_keys(writer.key, body, one.world.moment()))


def test_with_a_pairs_secret_the_network_key_and_both_roots_open_nothing(mesh, world):
    alice, bob, _ = mesh
    agree(alice, bob)
    world.wraps.clear()
    alice.send(bob, DESCRIBE, expires_s=600)
    assert bob.got() == [(alice.key, DESCRIBE)]
    (wrap,) = [w for w in world.wraps.values() if w.kind == STORED_WRAP]
    inbox = bob.post.keyring.current.inbox(bob.key)
    seal = open_wrap(wrap, inbox.secret)
    shared = nip44.conversation_key(bob.secret.reveal(), alice.key)
    with pytest.raises(PeerMisbehaved):
        open_seal(seal, bob.secret.reveal(), key_of_day(shared, inbox.salt, None))


def test_a_side_that_lost_everything_is_heard_again(mesh, world):
    alice, bob, _ = mesh
    agree(alice, bob)
    ring = bob.disk["ring"]
    bob.disk = {"ring": ring}
    bob.start()
    bob.listen(*mesh)
    world.pass_time(700)
    bob.send(alice, DESCRIBE)
    assert alice.got() == [(bob.key, DESCRIBE)]
    alice.send(bob, DESCRIBE)
    assert bob.got() == [(alice.key, DESCRIBE)]


def test_a_damaged_record_is_told_and_the_rest_is_used(mesh):
    bob = mesh[1]
    bob.disk |= {"pair/" + mesh[0].key: 5, "joining": "zz"}
    bob.start()
    assert len(bob.post.damaged) == 2
    assert bob.post.keyring.current is not None


class Thief:
    """Has a node's root secret and its whole disk, and every wrap of a relay; tries what there is."""

    def __init__(self, victim: Person, people: list[Person], now: float) -> None:
        self.root = victim.secret.reveal()
        self.me = victim.key
        self.others = [p.key for p in people if p is not victim]
        ring = Keyring.from_json(victim.disk.get("ring", []))
        self.keys = list(ring.reading(NOON + now))
        self.salts = [k.inbox(self.me).salt for k in self.keys]
        self.mailboxes: list[Mailbox] = [k.board() for k in self.keys]
        for key in self.keys:
            self.mailboxes += [key.inbox(node) for node in (self.me, *self.others)]
        for other in self.others:
            shared = nip44.conversation_key(self.root, other)
            for day in range(DAY - 1, DAY + 10):
                self.mailboxes += [pair_mailbox(shared, node, day) for node in (self.me, other)]
        pairs = [Held.from_json(v) for k, v in victim.disk.items() if k.startswith("pair/")]
        self.secrets = [None, *(s.secret for held in pairs for s in held.secrets)]

    def opens(self, wrap: Event) -> bool:
        """Whether anything that was written shows."""
        for mailbox in self.mailboxes:
            if mailbox.public_key not in wrap.tag_values("p"):
                continue  # another mailbox's secret opens nothing: NIP-44 is authenticated
            try:
                seal = open_wrap(wrap, mailbox.secret)
            except PeerMisbehaved:
                continue
            return any(self._unseals(seal, key) for key in self._candidates(seal, mailbox))
        return False

    def _candidates(self, seal: Event, mailbox: Mailbox) -> list[bytes]:
        found = [mailbox.salt] if mailbox.salt else []
        for other in self.others:
            shared = nip44.conversation_key(self.root, other)
            found.append(shared)
            for salt in (*self.salts, mailbox.salt):
                found += [key_of_day(shared, salt, secret) for secret in self.secrets]
        return found

    def _unseals(self, seal: Event, key: bytes) -> bool:
        try:
            return "secret-word" in open_seal(seal, self.root, key).content
        except PeerMisbehaved:
            return False


def test_a_thief_of_today_reads_nothing_of_last_week(world):
    owner = world.person(1)
    owner.run(owner.post.use_key(owner.post.new_key("5a" * 8, world.moment()), world.moment()))
    mesh = [owner]
    for number in (2, 3):
        join(owner, world.person(number), mesh)
    alice, bob, carol = mesh
    for _ in range(7):
        agree(alice, bob)
        for person in mesh:
            person.tell(PRESENCE)
            person.tell(NEWS)
            for other in mesh:
                if other is not person:
                    person.send(other, DESCRIBE, expires_s=600)
        assert all(len(person.got()) >= 6 for person in mesh)
        for _ in range(24):
            world.pass_time(3_600)
    recorded = [w for w in world.wraps.values() if w.kind in (STORED_WRAP, EPHEMERAL_WRAP)]
    assert len(recorded) > 7 * 12
    today = len(recorded)
    alice.tell(PRESENCE)
    carol.send(bob, DESCRIBE, expires_s=600)
    fresh = [w for w in world.wraps.values() if w.kind == STORED_WRAP][-2:]
    assert len(world.wraps) > today
    for victim in mesh:
        thief = Thief(victim, mesh, world.now)
        assert not any(thief.opens(wrap) for wrap in recorded)
        # The thief is no fool: with the same means it does read what was written today.
        assert thief.opens(fresh[0])
    assert Thief(bob, mesh, world.now).opens(fresh[1])


def test_the_first_tick_is_due_at_once(world):
    post = Post(RootSecret(b"\x05" * 32), (URL,), 1, 0)
    assert post.deadline == 0.0
    assert post.relay_event(Tick(), world.moment())
