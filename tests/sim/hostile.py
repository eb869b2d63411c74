"""What an attacker can say: sealed messages of any sender, and frames of a relay that lies."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from nostrvpn.identity.keys import RootSecret, wireguard_public_key
from nostrvpn.mesh.invites import parse_link
from nostrvpn.mesh.roster import Roster
from nostrvpn.node.events import NodeEffect
from nostrvpn.node.node import Node
from nostrvpn.nostr.event import Event, event_json
from nostrvpn.nostr.nip59 import EPHEMERAL_WRAP, STORED_WRAP, Rumor, gift_wrap, seal_rumor
from nostrvpn.paths.events import OpenChannel, SendDatagram
from nostrvpn.signaling.courier import Courier
from nostrvpn.signaling.mailboxes import Mailbox, invite_mailbox, pair_mailbox
from nostrvpn.signaling.messages import RUMOR_KIND, MessageType
from nostrvpn.signaling.relays import RelayText
from nostrvpn.signaling.sealing import key_of_day
from tests.sim.nodes import WALL, Host, World

RELAY = "wss://relay"
WEEK = 7 * 86_400


def node_of(host: Host) -> Node:
    """The running node of a host."""
    node: Node = host.node
    assert node is not None
    return node


def roster_of(host: Host) -> Roster:
    """The roster a host holds."""
    roster = node_of(host).membership.roster
    assert roster is not None
    return roster


def network_of(host: Host) -> str:
    """The id of the network a host is in."""
    return roster_of(host).network_id


class Attacker:
    """Somebody with a key of its own, who knows a host's npub and whatever mailbox is needed."""

    def __init__(self, world: World, seed: int = 77) -> None:
        self.world = world
        self.secret = RootSecret(bytes([seed]) * 32)
        self.courier = Courier(self.secret.reveal(), self.secret.public_key)

    @property
    def wireguard_key(self) -> str:
        """A WireGuard public key of the attacker's own."""
        return wireguard_public_key(self.secret.wireguard_private_key())

    def inbox(self, host: Host) -> Mailbox:
        """The mailbox in which a host reads now: a member's inbox, else the answer's to a join."""
        node, public_key = node_of(host), host.secret.public_key
        key, wall = node.post.keyring.current, WALL + self.world.now
        if key is not None:
            return node.post.keyring.today(key, wall).inbox(public_key)
        shared = self.courier.shared_key(public_key)
        return pair_mailbox(shared, public_key, int(wall) // 86_400)

    def wrap(
        self,
        host: Host,
        kind: MessageType,
        body: dict[str, Any],
        *,
        network: str,
        invite: bytes | None = None,
        stored: bool = False,
        seq: int | None = None,
    ) -> Event:
        """Seal a message for a host, into an invite's mailbox or its own."""
        number = self.courier.next_seq(self.world.moment(host)) if seq is None else seq
        envelope = {"v": 2, "type": kind.value, "net": network, "seq": number, "body": body}
        return self.wrap_text(host, json.dumps(envelope), invite=invite, stored=stored)

    def wrap_text(
        self, host: Host, text: str, *, invite: bytes | None = None, stored: bool = False
    ) -> Event:
        """Seal any text, well-formed or not, as a message is sealed."""
        mailbox = self.inbox(host) if invite is None else invite_mailbox(invite)
        moment = self.world.moment(host)
        now = int(moment.wall)
        rumor = Rumor(self.secret.public_key, now, RUMOR_KIND, (), text)
        key = self.courier.shared_key(host.secret.public_key)
        if mailbox.salt:
            key = key_of_day(key, mailbox.salt, None)
        seal = seal_rumor(rumor, self.secret.reveal(), key, created_at=now, entropy=moment.entropy)
        return gift_wrap(
            seal,
            mailbox.public_key,
            kind=STORED_WRAP if stored else EPHEMERAL_WRAP,
            created_at=now,
            expiration=now + WEEK if stored else None,
            entropy=moment.entropy,
        )

    def send(self, host: Host, kind: MessageType, body: dict[str, Any], **settings: Any) -> None:
        """Seal a message, and let the relay deliver it in this instant."""
        deliver(self.world, host, self.wrap(host, kind, body, **settings))

    def about(self, **changes: Any) -> dict[str, Any]:
        """What a well-behaved node says of itself, with changes."""
        return {"wg": self.wireguard_key, "relays": [], "sample": [], "desc": None} | changes

    def join(self, host: Host, link: str, **changes: Any) -> None:
        """Send a join request by a link."""
        parsed = parse_link(link)
        body = self.about(name="mallory") | {
            "invite": parsed.invite_id,
            "secret": parsed.secret.hex(),
            "eph": "09" + "00" * 31,  # X25519's base point: its secret is 1
        }
        settings: dict[str, Any] = {"network": parsed.network_id, "invite": parsed.secret}
        self.send(host, MessageType.JOIN, body | changes, **settings)


def admitted_member(world: World, owner: Host, seed: int = 77) -> Attacker:
    """A member that does not follow the rules."""
    attacker = Attacker(world, seed)
    attacker.join(owner, invited(world, owner, attacker.secret.npub))
    assert attacker.secret.public_key in node_of(owner).membership.peers
    world.run(1)
    return attacker


def description_of(session: int, generation: int, *endpoints: str, **more: Any) -> dict[str, Any]:
    """A well-formed description that names whatever endpoints."""
    candidates = [{"kind": "srflx", "endpoint": at, "priority": 1} for at in endpoints]
    return {
        "session": f"{session:016x}",
        "generation": generation,
        "answers": None,
        "ufrag": "abcdefgh",
        "password": "p" * 32,
        "candidates": candidates,
    } | more


@dataclass
class Harm:
    """What a host was made to do since ``watch``: datagrams and bytes by address, other effects."""

    datagrams: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    channels: list[str] = field(default_factory=list)
    effects: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)


def watch(world: World, host: Host) -> Harm:
    """Note from now on what ``host`` does."""
    harm, perform = Harm(), world._perform

    def performed(host_: Host, effects: list[NodeEffect]) -> None:
        for effect in effects if host_ is host else ():
            harm.effects[type(effect).__name__] += 1
            harm.shown.append(repr(effect))
            if isinstance(effect, SendDatagram):
                harm.datagrams[str(effect.destination.ip)] += 1
                harm.sizes[str(effect.destination.ip)] += len(effect.data)
            elif isinstance(effect, OpenChannel):
                harm.channels.append(getattr(effect.target, "url", ""))
        perform(host_, effects)

    world.__dict__["_perform"] = performed
    return harm


def subscription(world: World, host: Host) -> str:
    """The id of the host's open subscription at the relay."""
    return next(
        sub
        for name, sub in world.relays[RELAY].subscriptions
        if name == host.name and sub.startswith("m")
    )


def deliver(world: World, host: Host, wrap: Event) -> None:
    """The relay hands a wrap to the host."""
    frame = ["EVENT", subscription(world, host), event_json(wrap)]
    world.step(host, RelayText(RELAY, json.dumps(frame)))


def invited(world: World, host: Host, npub: str | None = None) -> str:
    """Let a host invite somebody; return the link."""
    once = npub is None
    link = world.call(host, "invite", npub=npub, once=once, expires_s=86_400)["link"]
    world.run(1)  # the new mailbox's subscription goes out
    assert isinstance(link, str)
    return link


def world_of(*names: str, seed: int = 1) -> tuple[World, list[Host]]:
    """A relay and running nodes."""
    world = World(seed)
    world.relay(RELAY)
    hosts = [world.host(name) for name in names]
    for host in hosts:
        world.start(host)
    world.run(5)
    return world, hosts


def meet(world: World, owner: Host, other: Host) -> None:
    """Let one invite and admit the other, and find a path."""
    link = invited(world, owner, other.secret.npub)
    world.ask(other, "join", link=link)
    assert world.run(60, lambda: world.is_connected(owner, other)), owner.logs[-5:]
