"""A mesh of a few whole nodes around one relay, for tests of what members say to each other."""

from __future__ import annotations

import json
from typing import Any

from nostrvpn.machine import Entropy
from nostrvpn.mesh.log_text import pack_operations
from nostrvpn.mesh.operations import operation_content, sign_operation
from nostrvpn.node.events import HeardThrough, NodeEffect, Persist, SendThrough
from nostrvpn.nostr.event import Event, event_json
from nostrvpn.signaling.board import Board
from nostrvpn.signaling.messages import Message, MessageType, parse_message, render_message
from nostrvpn.signaling.relays import RelayText
from tests.sim.nodes import WALL, Host, World

__all__ = ["SmallMesh", "persisted", "said_through"]


class SmallMesh(World):
    """The first host owns the network; the others were invited by it and are connected to it."""

    def __init__(self, *names: str, seed: int = 1, **terms: Any) -> None:
        super().__init__(seed)
        self.one_relay = self.relay()
        self.seq = 1
        self.all = [self.host(name) for name in names]
        for host in self.all:
            self.start(host)
        self.run(3)
        for host in self.all[1:]:
            self.admit(host, **terms)
        self.run(30)

    @property
    def owner(self) -> Host:
        return self.all[0]

    def admit(self, host: Host, **terms: Any) -> None:
        wanted = {"npub": host.secret.npub, "once": False, "expires_s": 86_400} | terms
        link = self.call(self.owner, "invite", **wanted)["link"]
        self.ask(host, "join", link=link)
        assert self.run(60, lambda: self.is_connected(self.owner, host))

    def roster(self, host: Host | None = None) -> Any:
        return (host or self.owner).node.membership.roster

    def renew_handshakes(self) -> None:
        """WireGuard does so every two minutes while packets flow."""
        for host in self.all:
            host.handshakes = dict.fromkeys(host.handshakes, WALL + self.now)

    def posted(self, reader: Host, wrap: Event) -> None:
        """``reader`` finds this on the relay."""
        text = json.dumps(["EVENT", self._subscription(reader), event_json(wrap)])
        self.step(reader, RelayText(self.one_relay.url, text))

    def _subscription(self, reader: Host) -> str:
        return next(key for name, key in self.one_relay.subscriptions if name == reader.name)

    # -- a member that lies: its node is not asked, its keys are used -----------------------

    def says(
        self, liar: Host, to: Host, kind: MessageType, body: dict[str, object], net: str = ""
    ) -> list[NodeEffect]:
        """Return what ``to`` would do on a message through ``liar``'s tunnel; it is not carried out."""
        self.seq += 1
        network = net or self.roster(to).network_id
        text = render_message(Message(kind, network, self.seq, body))
        address = self.roster(to).address(liar.secret.public_key).ipv6
        effects: list[NodeEffect] = to.node.step(HeardThrough(address, text), self.moment(to))
        return effects

    def posts(
        self, liar: Host, kind: MessageType, body: dict[str, object], key: Any = None
    ) -> Event:
        """Return the wrap of a posting of ``liar`` on today's board under a key (the one in use)."""
        self.seq = max(self.seq + 1, 1 << 50)
        moment = self.moment(liar)
        ring = self.owner.node.post.keyring
        board = ring.today(key or ring.current, moment.wall).board()
        message = Message(kind, self.roster().network_id, self.seq, body)
        board_of_liar = Board(liar.secret.reveal(), liar.secret.public_key)
        [wrap] = board_of_liar.post(board, message, moment).values()
        return wrap

    def junk(self, liar: Host, number: int) -> str:
        """Return, packed, an operation that a plain member may not sign."""
        roster = self.roster()
        fields = {"name": f"mine-{number}"}
        content = operation_content(roster.network_id, roster.heads, "settings", fields)
        operation = sign_operation(
            liar.secret.reveal(), content, wall=1000, aux=Entropy(b"%d" % number).take(32)
        )
        return pack_operations([operation.event])


def said_through(effects: list[NodeEffect], kind: MessageType) -> list[Message]:
    """Return the messages of a kind that leave through tunnels."""
    texts = [effect.text for effect in effects if isinstance(effect, SendThrough)]
    return [m for m in map(parse_message, texts) if m.type is kind]


def persisted(effects: list[NodeEffect], space: str) -> list[Persist]:
    """Return what is stored in a space."""
    return [e for e in effects if isinstance(e, Persist) and e.space == space]
