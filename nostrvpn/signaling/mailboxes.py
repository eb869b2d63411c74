"""Mailboxes: throwaway Nostr keys that messages are addressed to instead of npubs.

A pair of nodes shares a secret (its NIP-44 conversation key). From it, the recipient's key and the day
come the mailbox's *secret* key, so both can compute the address, the recipient can authenticate to
the relay as its owner (NIP-42), and nobody else can link it to an npub or to another day's.
An invite has one mailbox, derived from the secret in its link. The noticeboard's is known to all.

Since a mailbox's key pair is known to both sides, it hides and routes only: who wrote a message is
proven by the seal inside (NIP-59), and the seal is encrypted to the recipient's own key.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from nostrvpn.nostr.event import public_key

__all__ = [
    "Mailbox",
    "invite_mailbox",
    "noticeboard_mailboxes_around",
    "pair_mailbox",
    "pair_mailboxes_around",
]

DAY_S = 86_400
# Both clocks may be off by this much around midnight UTC; two mailboxes are listened to meanwhile.
OVERLAP_S = 3_600
# Order of secp256k1 (SEC 2, 2.4.1): a secret key is in 1 .. n-1.
_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


@dataclass(frozen=True, slots=True)
class Mailbox:
    """A mailbox address (``public_key``, 64 hex digits) and the secret that owns it."""

    public_key: str
    secret: bytes

    def __repr__(self) -> str:
        return f"<Mailbox {self.public_key[:8]}>"


def _derive(material: bytes, info: bytes) -> Mailbox:
    """HKDF-SHA256 (RFC 5869) to a secp256k1 key; an out-of-range candidate moves the counter on."""
    prk = hmac.digest(b"nostrvpn/mailbox", material, hashlib.sha256)
    for counter in range(1, 256):
        secret = hmac.digest(prk, info + bytes([counter]), hashlib.sha256)
        if 0 < int.from_bytes(secret, "big") < _ORDER:
            return Mailbox(public_key(secret), secret)
    raise AssertionError("unreachable: 255 candidates out of range")


def pair_mailbox(shared: bytes, recipient: str, wall: float) -> Mailbox:
    """Return the mailbox in which ``recipient`` (public key) gets a pair's messages at ``wall``.

    ``shared`` is the pair's NIP-44 conversation key (32 bytes).
    """
    day = int(wall) // DAY_S
    return _derive(shared, b"pair/v1/" + bytes.fromhex(recipient) + day.to_bytes(8, "big"))


def pair_mailboxes_around(shared: bytes, recipient: str, wall: float) -> tuple[Mailbox, ...]:
    """Return the one or two mailboxes to listen to at ``wall``, clock differences included."""
    days = sorted({int(wall + shift) // DAY_S for shift in (-OVERLAP_S, 0, OVERLAP_S)})
    return tuple(pair_mailbox(shared, recipient, day * DAY_S) for day in days)


def invite_mailbox(secret: bytes) -> Mailbox:
    """Return the mailbox of an invite, from the secret in its link."""
    return _derive(secret, b"invite/v1")


def noticeboard_mailboxes_around(wall: float, overlap_s: int = OVERLAP_S) -> tuple[Mailbox, ...]:
    """Return the public noticeboards of the day at ``wall``, and of the next or last one near by."""
    days = sorted({int(wall + shift) // DAY_S for shift in (-overlap_s, 0, overlap_s)})
    return tuple(_derive(b"noticeboard", b"board/v1" + day.to_bytes(8, "big")) for day in days)
