"""Mailboxes: throwaway Nostr keys that messages are addressed to instead of npubs.

Each is derived from a secret that its writers and readers share, so both can compute the address, the
reader can authenticate to the relay as its owner (NIP-42), and nobody else can link it to an npub or
to another day's mailbox:

- a node's *inbox*: from the network key of the day and the node's public key;
- the network's *board*: from the network key of the day alone; all members read and write it;
- first contact: from the secret of an invite or a token; the answer goes to a *pair* mailbox (from
  the two nodes' static key) or, for a token that any member answers, to the applicant's *reply* one;
- the public noticeboard: known to all.

Since others know a mailbox's secret too, it hides and routes only: who wrote a message is proven by
the seal inside (NIP-59), and that is encrypted by a key of its own (``sealing``).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

from nostrvpn.nostr.event import public_key
from nostrvpn.signaling.ratchet import days_around, derive

__all__ = [
    "Mailbox",
    "invite_mailbox",
    "network_board",
    "node_inbox",
    "noticeboard_mailboxes_around",
    "pair_mailbox",
    "pair_mailboxes_around",
    "reply_mailbox",
    "token_mailbox",
]

# Order of secp256k1 (SEC 2, 2.4.1): a secret key is in 1 .. n-1.
_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


@dataclass(frozen=True, slots=True)
class Mailbox:
    """A mailbox address (``public_key``, 64 hex digits) and the secret that owns it.

    ``salt`` (32 bytes) goes into the key of every seal inside; empty: first contact. ``key_id`` and
    ``day`` say which network key it comes from. ``is_shared``: what lies in it is sealed to the mailbox
    itself, not to one node, for whoever of the members reads it first.
    """

    public_key: str
    secret: bytes = field(repr=False)
    salt: bytes = field(default=b"", repr=False)
    key_id: str = ""
    day: int = 0
    is_shared: bool = False


def _derive(material: bytes, info: bytes) -> tuple[str, bytes]:
    """HKDF-SHA256 (RFC 5869) to a secp256k1 key; an out-of-range candidate moves the counter on."""
    prk = hmac.digest(b"nostrvpn/mailbox", material, hashlib.sha256)
    for counter in range(1, 256):
        secret = hmac.digest(prk, info + bytes([counter]), hashlib.sha256)
        if 0 < int.from_bytes(secret, "big") < _ORDER:
            return public_key(secret), secret
    raise AssertionError("unreachable: 255 candidates out of range")


def node_inbox(key: bytes, key_id: str, day: int, node: str) -> Mailbox:
    """Return the inbox of ``node`` (public key) under a network key's secret ``key`` of ``day``."""
    address, secret = _derive(key, b"inbox/v2/" + bytes.fromhex(node))
    return Mailbox(address, secret, derive(key, b"nostrvpn/seal", b"pair/v2"), key_id, day)


def network_board(key: bytes, key_id: str, day: int) -> Mailbox:
    """Return the network's board under a network key's secret ``key`` of ``day``."""
    address, secret = _derive(key, b"board/v2")
    return Mailbox(address, secret, derive(key, b"nostrvpn/seal", b"board/v2"), key_id, day)


def invite_mailbox(secret: bytes) -> Mailbox:
    """Return the mailbox of an invite, from the secret in its link."""
    return Mailbox(*_derive(secret, b"invite/v1"))


def token_mailbox(secret: bytes) -> Mailbox:
    """Return the mailbox of a token's first contact, from its mailbox secret (32 bytes)."""
    return Mailbox(*_derive(secret, b"token/v1"), is_shared=True)


def reply_mailbox(secret: bytes, applicant: str) -> Mailbox:
    """Return where ``applicant`` (public key) gets the answer to what it wrote to a token's mailbox."""
    return Mailbox(*_derive(secret, b"reply/v1/" + bytes.fromhex(applicant)))


def pair_mailbox(shared: bytes, recipient: str, day: int) -> Mailbox:
    """Return the mailbox in which an applicant (``recipient``, public key) is answered on a day.

    ``shared`` is the pair's NIP-44 conversation key (32 bytes).
    """
    info = b"pair/v1/" + bytes.fromhex(recipient) + day.to_bytes(8, "big")
    return Mailbox(*_derive(shared, info), day=day)


def pair_mailboxes_around(shared: bytes, recipient: str, wall: float) -> tuple[Mailbox, ...]:
    """Return the one or two mailboxes to listen to at ``wall``, clock differences included."""
    return tuple(pair_mailbox(shared, recipient, day) for day in days_around(wall))


def noticeboard_mailboxes_around(wall: float) -> tuple[Mailbox, ...]:
    """Return the one or two public noticeboards to read at ``wall``, clock differences included."""
    return tuple(_noticeboard(day) for day in days_around(wall))


def _noticeboard(day: int) -> Mailbox:
    material = b"noticeboard" + day.to_bytes(8, "big")
    address, secret = _derive(material, b"board/v2")
    return Mailbox(address, secret, derive(material, b"nostrvpn/seal", b"board/v2"), day=day)
