"""Seals: what keeps a message readable for its recipient only, also for whoever gets its keys later.

A seal is NIP-59's (kind 13, signed by the sender's npub, no tags), and its content NIP-44's; the key is
ours:

- between members: the pair's static conversation key, mixed with the day's network key (the mailbox's
  ``salt``) and, where both have one, the pair's secret. Both are gone a day later.
- a welcome: the static key mixed with an exchange of two ephemeral X25519 keys. The sender's public one
  stands before the content.
- first contact: the static conversation key alone; there is nothing else yet.

Plaintexts are padded to few sizes, so that the length of a wrap says nothing but one of three.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Entropy
from nostrvpn.nostr import nip44
from nostrvpn.nostr.event import Event, sign_event
from nostrvpn.nostr.nip59 import SEAL, Rumor, open_seal, rumor_json
from nostrvpn.signaling.ratchet import derive

__all__ = [
    "BUCKETS",
    "exchange",
    "key_of_day",
    "make_seal",
    "make_welcome_seal",
    "open_welcome_seal",
    "public_half",
]

# Bytes of a rumor's JSON. The last is the largest whose two layers of NIP-44 stay below 65,536 bytes as
# an event (55,200), which is all that many relays take; ``messages.MAX_MESSAGE`` and its escapes fit.
BUCKETS = (2_048, 8_192, 28_672)
# Base64 of 32 bytes without its "=".
_HALF = 43


def public_half(secret: bytes) -> bytes:
    """Return the X25519 public key of ``secret``, 32 bytes each."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def exchange(secret: bytes, public: bytes) -> bytes:
    """Return the 32 bytes that two X25519 keys share; PeerMisbehaved("bad_key") for a bad point."""
    try:
        return X25519PrivateKey.from_private_bytes(secret).exchange(
            X25519PublicKey.from_public_bytes(public)
        )
    except ValueError as exc:  # a wrong length, or a point that gives zero (RFC 7748 section 6.1)
        raise PeerMisbehaved("bad_key", "no shared key: a bad X25519 key") from exc


def key_of_day(conversation: bytes, salt: bytes, secret: bytes | None) -> bytes:
    """Return a seal's key between members; ``secret`` is the pair's, of that day, or None."""
    info = b"nostrvpn/seal/v2" if secret is None else b"nostrvpn/seal-with-secret/v2"
    return derive(conversation + (secret or b""), salt, info)


def make_seal(rumor: Rumor, author: bytes, key: bytes, entropy: Entropy, prefix: str = "") -> Event:
    """Return the rumor, padded, under ``key`` and signed by the ``author``'s secret; ValueError: too
    large."""
    plain = rumor_json(rumor).encode()
    size = next((bucket for bucket in BUCKETS if len(plain) <= bucket), None)
    if size is None:
        raise ValueError(f"a message of {len(plain)} bytes")
    # Spaces after a JSON text are still that JSON text.
    content = prefix + nip44.encrypt(key, plain.ljust(size), entropy.take(32))
    seal = sign_event(
        author,
        kind=SEAL,
        tags=(),
        content=content,
        created_at=rumor.created_at,
        aux=entropy.take(32),
    )
    if seal.pubkey != rumor.pubkey:
        raise ValueError("a rumor can only be sealed by its own author")
    return seal


def make_welcome_seal(
    rumor: Rumor, author: bytes, conversation: bytes, recipient: bytes, entropy: Entropy
) -> Event:
    """Seal to whom sent the X25519 public key ``recipient``; PeerMisbehaved("bad_key"): a bad one."""
    own = entropy.take(32)
    key = _welcome_key(conversation, exchange(own, recipient))
    half = base64.b64encode(public_half(own)).decode()[:_HALF]
    return make_seal(rumor, author, key, entropy, f"{half}.")


def open_welcome_seal(seal: Event, own: bytes, reader: bytes, conversation: bytes) -> Rumor:
    """Open such a seal by the ephemeral secret ``own``; PeerMisbehaved if it is none for it."""
    half, dot, content = seal.content[:_HALF], seal.content[_HALF : _HALF + 1], seal.content[44:]
    try:
        public = base64.b64decode(half + "=", validate=True)
    except (binascii.Error, ValueError) as exc:
        raise PeerMisbehaved("bad_payload", "a welcome without its key") from exc
    if dot != ".":
        raise PeerMisbehaved("bad_payload", "a welcome without its key")
    key = _welcome_key(conversation, exchange(own, public))
    return open_seal(replace(seal, content=content), reader, key)


def _welcome_key(conversation: bytes, shared: bytes) -> bytes:
    return derive(conversation + shared, b"nostrvpn/seal", b"nostrvpn/welcome/v2")
