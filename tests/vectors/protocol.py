"""The vectors of docs/protocol/vectors, made by the real code from fixed keys and randomness.

``python -m tests.vectors.protocol`` writes the files anew; the tests recompute them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from nostrvpn.identity.keys import RootSecret
from nostrvpn.machine import Entropy
from nostrvpn.mesh.addressing import ipv4_host, ipv4_prefix, ipv6_address, ipv6_prefix
from nostrvpn.mesh.invites import Link, invite_id, render_link
from nostrvpn.mesh.log_text import pack_operations
from nostrvpn.mesh.roster import Roster, create_network
from nostrvpn.mesh.tokens import (
    TokenLink,
    prove,
    render_token_link,
    token_id,
    token_mailbox,
    token_signer,
)
from nostrvpn.nostr import nip44
from nostrvpn.nostr.event import event_json
from nostrvpn.nostr.nip44 import conversation_key
from nostrvpn.nostr.nip59 import Rumor, gift_wrap
from nostrvpn.signaling.mailboxes import Mailbox, invite_mailbox, pair_mailbox
from nostrvpn.signaling.messages import RUMOR_KIND, Message, MessageType, render_message
from nostrvpn.signaling.network_key import NetworkKey
from nostrvpn.signaling.ratchet import step_to
from nostrvpn.signaling.rekey import entry_key, rekey_bodies
from nostrvpn.signaling.sealing import key_of_day, make_seal

__all__ = ["DIRECTORY", "membership", "signaling"]

DIRECTORY = Path(__file__).parents[2] / "docs" / "protocol" / "vectors"
ALICE, BOB = (RootSecret(hashlib.sha256(name).digest()) for name in (b"alice", b"bob"))
INVITE_SECRET = bytes(range(16))
WALL = 1_800_000_000
DAY = 86_400
NETWORK = hashlib.sha256(b"a network").hexdigest()


class Tape:
    """Entropy that also remembers what was taken, so that every nonce can be told."""

    def __init__(self, label: bytes) -> None:
        self._entropy = Entropy(label)
        self.taken: list[bytes] = []

    def take(self, size: int) -> bytes:
        """Return the next bytes of the stream."""
        self.taken.append(self._entropy.take(size))
        return self.taken[-1]


def _mailbox(mailbox: Mailbox) -> dict[str, str]:
    return {"secret": mailbox.secret.hex(), "public_key": mailbox.public_key}


def signaling() -> dict[str, Any]:
    """Mailboxes, keys of a day, and two messages of first contact from rumor to wrap."""
    shared = conversation_key(ALICE.reveal(), BOB.public_key)
    pairs = [
        {"recipient": to.public_key, "unix_time": at, "day": at // DAY}
        | _mailbox(pair_mailbox(shared, to.public_key, at // DAY))
        for to in (ALICE, BOB)
        for at in (WALL, WALL + DAY, 0)
    ]
    return {
        "about": "See ../signaling.md and ../messages.md. Bytes are hex. Alice and Bob are SHA-256 of "
        "'alice' and of 'bob'.",
        "alice": {"secret": ALICE.reveal().hex(), "public_key": ALICE.public_key},
        "bob": {"secret": BOB.reveal().hex(), "public_key": BOB.public_key},
        "conversation_key": shared.hex(),
        "pair_mailboxes": pairs,
        "invite_mailboxes": [
            {"invite_secret": secret.hex()} | _mailbox(invite_mailbox(secret))
            for secret in (INVITE_SECRET, bytes(16))
        ],
        "network_key": [_network_key(shared, day) for day in (WALL // DAY, WALL // DAY + 1)],
        "messages": [
            _chain("live", MessageType.JOIN, 21059, None),
            _chain("stored", MessageType.REFUSED, 1059, WALL + 7 * DAY),
        ],
    }


def _network_key(shared: bytes, day: int) -> dict[str, Any]:
    """A network key on a day: its mailboxes, and the keys of seals and of a rekey's entry."""
    key = NetworkKey("0123456789abcdef", WALL // DAY, bytes(range(32))).at(day)
    pair_secret = step_to(bytes(range(32, 64)), WALL // DAY, day)
    inbox, board = key.inbox(BOB.public_key), key.board()
    [entry] = rekey_bodies(replace(key, id="f" * 16), {BOB.public_key: bytes(32)})
    return {
        "day": day,
        "secret": key.secret.hex(),
        "pair_secret": pair_secret.hex(),
        "inbox_of_bob": _mailbox(inbox) | {"salt": inbox.salt.hex()},
        "board": _mailbox(board) | {"salt": board.salt.hex()},
        "seal_key": key_of_day(shared, inbox.salt, None).hex(),
        "seal_key_with_secret": key_of_day(shared, inbox.salt, pair_secret).hex(),
        "entry_key": entry_key(shared, board.salt, None).hex(),
        "entry_key_with_secret": entry_key(shared, board.salt, pair_secret).hex(),
        "rekey_under_32_zeros": entry,
    }


def _chain(label: str, kind: MessageType, wrap_kind: int, expiration: int | None) -> dict[str, Any]:
    tape = Tape(label.encode())
    shared = conversation_key(ALICE.reveal(), BOB.public_key)
    body: dict[str, object] = {"invite": invite_id(INVITE_SECRET), "reason": "expired"}
    mailbox = pair_mailbox(shared, BOB.public_key, WALL // DAY)
    if kind is MessageType.JOIN:
        body = {"wg": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "relays": []}
        mailbox = invite_mailbox(INVITE_SECRET)
    envelope = render_message(Message(kind, NETWORK, WALL * 1000, body))
    rumor = Rumor(ALICE.public_key, WALL, RUMOR_KIND, (), envelope)
    seal = make_seal(rumor, ALICE.reveal(), shared, tape)  # type: ignore[arg-type]
    wrap = gift_wrap(
        seal,
        mailbox.public_key,
        kind=wrap_kind,
        created_at=WALL,
        expiration=expiration,
        entropy=tape,  # type: ignore[arg-type]
    )
    seal_nonce, seal_aux, author, wrap_nonce, wrap_aux = tape.taken
    author = bytes([author[0] & 0x7F, *author[1:31], author[31] | 1])
    return {
        "envelope": envelope,
        "rumor": {"id": rumor.id} | _rumor_json(rumor),
        "seal_nonce": seal_nonce.hex(),
        "seal_message_keys": [key.hex() for key in nip44.message_keys(shared, seal_nonce)],
        "seal_signature_aux": seal_aux.hex(),
        "seal": event_json(seal),
        "wrap_author_secret": author.hex(),
        "wrap_conversation_key": conversation_key(author, mailbox.public_key).hex(),
        "wrap_nonce": wrap_nonce.hex(),
        "wrap_signature_aux": wrap_aux.hex(),
        "mailbox": _mailbox(mailbox),
        "wrap": event_json(wrap),
    }


def _rumor_json(rumor: Rumor) -> dict[str, Any]:
    return {
        "pubkey": rumor.pubkey,
        "created_at": rumor.created_at,
        "kind": rumor.kind,
        "tags": [],
        "content": rumor.content,
    }


def membership() -> dict[str, Any]:
    """A roster log, its members' addresses, two keys that collide, and invite links."""
    tape = Tape(b"roster")
    roster = create_network(
        ALICE.reveal(),
        "home",
        "alice",
        wall=WALL,
        nonce=tape.take(16),
        key_id=tape.take(8).hex(),
        aux=tape.take(32),
    )
    one, other = _collision(roster.network_id)
    token: dict[str, object] = {
        "id": token_id(INVITE_SECRET),
        "signer": token_signer(INVITE_SECRET),
        "mailbox": token_mailbox(INVITE_SECRET).hex(),
        "uses": 3,
        "expires": WALL + DAY,
        "role": "member",
        "tags": ["ci"],
        "ephemeral": True,
    }
    proof = prove(INVITE_SECRET, roster.network_id, other, tape.take(32))
    steps: list[tuple[RootSecret, str, dict[str, object]]] = [
        (ALICE, "add", _added(BOB.public_key, "bob", "admin")),
        (ALICE, "add", _added(one, "one", "member")),
        (BOB, "token", token),
        (BOB, "admit", {"who": other, "name": "zoe", "token": token["id"], "proof": proof}),
        (BOB, "name", {"who": BOB.public_key, "name": "bobs-laptop"}),
    ]
    branch = roster
    for number, (author, action, fields) in enumerate(steps, 1):
        roster = _signed(roster, author, action, fields, WALL + number, tape)
        branch = roster if number == 4 else branch
    # Two who do not know of each other: the log branches here, and the last operation joins it.
    key = tape.take(8).hex()
    branch = _signed(branch, ALICE, "remove", {"who": one, "key": key}, WALL + 6, tape)
    roster = roster.merge(branch.log)
    roster = _signed(roster, BOB, "settings", {"inbound": "none"}, WALL + 7, tape)
    addresses = [_addresses(roster, key) for key in (ALICE.public_key, BOB.public_key, one, other)]
    links = [
        Link(ALICE.public_key, INVITE_SECRET, NETWORK, WALL + DAY, bound, relays)
        for bound, relays in (
            (BOB.public_key, ("wss://relay.example", "ws://[2001:db8::1]:7777/path?a=1&b=2")),
            (None, ()),
        )
    ]
    return {
        "about": "See ../membership.md. The owner is alice of signaling.json. 'one' and 'other' are "
        "keys whose IPv4 host numbers collide in this network.",
        "network_id": roster.network_id,
        "ipv6_prefix": str(ipv6_prefix(roster.network_id)),
        "ipv4_prefix": str(ipv4_prefix(roster.network_id)),
        "log": [event_json(event) for event in roster.log],
        "packed": pack_operations(roster.log),
        "digest": roster.digest,
        "key_id": roster.key_id,
        "members": {key: [m.name, m.role.value, m.host] for key, m in roster.members.items()},
        "token": {"secret": INVITE_SECRET.hex()}
        | {name: token[name] for name in ("id", "signer", "mailbox")}
        | {"link": render_token_link(TokenLink(INVITE_SECRET, NETWORK, WALL + DAY, ()))},
        "addresses": addresses,
        "invite_id": invite_id(INVITE_SECRET),
        "links": [
            {
                "inviter": link.inviter,
                "secret": link.secret.hex(),
                "network_id": link.network_id,
                "expires": link.expires,
                "bound_to": link.bound_to,
                "relays": list(link.relays),
                "link": render_link(link),
            }
            for link in links
        ],
    }


def _added(who: str, name: str, role: str) -> dict[str, object]:
    fields: dict[str, object] = {"who": who, "name": name, "role": role, "tags": []}
    return fields | {"owner": who, "expires": None, "ephemeral": False}


def _signed(
    roster: Roster,
    author: RootSecret,
    action: str,
    fields: dict[str, object],
    wall: float,
    tape: Tape,
) -> Roster:
    return roster.sign(author.reveal(), action, fields, wall=wall, aux=tape.take(32))


def _addresses(roster: Roster, key: str) -> dict[str, Any]:
    address = roster.address(key)
    return {
        "public_key": key,
        "hashed_host": ipv4_host(roster.network_id, key, frozenset()),
        "host": int(address.ipv4) - int(ipv4_prefix(roster.network_id).network_address) - 1,
        "ipv4": str(address.ipv4),
        "ipv6": str(ipv6_address(roster.network_id, key)),
    }


def _collision(network_id: str) -> tuple[str, str]:
    """Return the first two keys (SHA-256 of a number as secret) with the same IPv4 host number."""
    seen: dict[int, str] = {}
    number = 0
    while True:
        number += 1
        key = RootSecret(hashlib.sha256(str(number).encode()).digest()).public_key
        host = ipv4_host(network_id, key, frozenset())
        if host in seen:
            return seen[host], key
        seen[host] = key


def main() -> None:
    """Write both files."""
    for name, made in (("signaling", signaling()), ("membership", membership())):
        text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
        (DIRECTORY / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
