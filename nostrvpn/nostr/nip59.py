"""NIP-59: an unsigned rumor in a seal signed by the sender, in a wrap signed by a throwaway key.

Two things differ from the customary use, both on purpose. The wrap may be addressed to another key
than the seal: the ``p`` tag a relay sees is a mailbox, only the real recipient opens the seal. And
nothing is backdated, because relays refuse events dated far from now; a wrap's time is the time
it is sent, which the relay sees anyway.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Entropy
from nostrvpn.nostr import nip44
from nostrvpn.nostr.event import (
    MAX_CREATED_AT,
    MAX_KIND,
    Event,
    Tags,
    decode_json,
    encode_json,
    event_id,
    event_json,
    parse_event,
    parse_tags,
    sign_event,
    verify_event,
)

__all__ = [
    "BLUR_S",
    "EPHEMERAL_WRAP",
    "SEAL",
    "STORED_WRAP",
    "Rumor",
    "blurred",
    "fresh_secret",
    "gift_wrap",
    "open_seal",
    "open_wrap",
    "rumor_json",
    "seal_rumor",
]

SEAL = 13
STORED_WRAP = 1059  # kept until its NIP-40 expiration
EPHEMERAL_WRAP = 21059  # relays pass it on and keep nothing (NIP-01 kind ranges)
BLUR_S = 25.0


@dataclass(frozen=True, slots=True)
class Rumor:
    """An unsigned event: what a seal carries. Its author is proven by the seal, never by itself."""

    pubkey: str
    created_at: int
    kind: int
    tags: Tags
    content: str = field(repr=False)  # the plaintext

    @property
    def id(self) -> str:
        """The NIP-01 event id the rumor would have if it were signed."""
        return event_id(self.pubkey, self.created_at, self.kind, self.tags, self.content)


def fresh_secret(entropy: Entropy) -> bytes:
    """Return a new 32-byte secp256k1 secret from ``entropy``."""
    # A random 32-byte string is no valid scalar once in 2^128; shifting the top bit away makes that
    # impossible instead of improbable and costs one bit.
    secret = bytearray(entropy.take(32))
    secret[0] &= 0x7F
    secret[31] |= 1
    return bytes(secret)


def rumor_json(rumor: Rumor) -> str:
    """Return the text that a seal encrypts."""
    return encode_json(
        {
            "id": rumor.id,
            "pubkey": rumor.pubkey,
            "created_at": rumor.created_at,
            "kind": rumor.kind,
            "tags": rumor.tags,
            "content": rumor.content,
        }
    )


def seal_rumor(
    rumor: Rumor, sender_secret: bytes, conversation: bytes, *, created_at: int, entropy: Entropy
) -> Event:
    """Encrypt ``rumor`` under the key sender and recipient share; the sender signs."""
    content = nip44.encrypt(conversation, rumor_json(rumor).encode(), entropy.take(32))
    aux = entropy.take(32)
    seal = sign_event(
        sender_secret, kind=SEAL, tags=(), content=content, created_at=created_at, aux=aux
    )
    if seal.pubkey != rumor.pubkey:
        raise ValueError("a rumor can only be sealed by its own author")
    return seal


def blurred(wall: float, entropy: Entropy) -> int:
    """Return a wrap's date: near ``wall``, but not so near that it shows whose clock it was.

    Relays refuse what is dated far off: ephemeral kinds that are a minute old, by the strictest known.
    """
    return int(wall + BLUR_S * (2.0 * entropy.fraction() - 1.0))


def gift_wrap(
    seal: Event,
    mailbox: str,
    *,
    kind: int,
    created_at: int,
    expiration: int | None,
    entropy: Entropy,
) -> Event:
    """Wrap a seal for the key ``mailbox`` under a throwaway author; ``expiration`` per NIP-40."""
    if kind not in (STORED_WRAP, EPHEMERAL_WRAP):
        raise ValueError(f"kind {kind} is no gift wrap")
    secret = fresh_secret(entropy)
    conversation = nip44.conversation_key(secret, mailbox)
    content = nip44.encrypt(conversation, encode_json(event_json(seal)).encode(), entropy.take(32))
    tags: Tags = (("p", mailbox),)
    if expiration is not None:
        tags = (*tags, ("expiration", str(expiration)))
    return sign_event(
        secret,
        kind=kind,
        tags=tags,
        content=content,
        created_at=created_at,
        aux=entropy.take(32),
    )


def open_wrap(event: Event, mailbox_secret: bytes) -> Event:
    """Return the verified seal inside a wrap; PeerMisbehaved if it is none or not for this mailbox.

    The wrap's own signature is not checked here: its author is a throwaway key and proves nothing.
    """
    if event.kind not in (STORED_WRAP, EPHEMERAL_WRAP):
        raise PeerMisbehaved("not_a_wrap", f"kind {event.kind} is no gift wrap")
    conversation = nip44.conversation_key(mailbox_secret, event.pubkey)
    seal = parse_event(decode_json(nip44.decrypt(conversation, event.content)))
    # NIP-59: a seal has kind 13 and never any tags, which would leak to whoever holds the mailbox.
    if seal.kind != SEAL or seal.tags:
        raise PeerMisbehaved("not_a_seal", "the wrap holds something else than a seal")
    verify_event(seal)
    return seal


def open_seal(seal: Event, recipient_secret: bytes, conversation: bytes | None = None) -> Rumor:
    """Return the rumor of a verified seal, authored by ``seal.pubkey``; PeerMisbehaved otherwise.

    ``conversation`` is the cached conversation key of recipient and ``seal.pubkey``, if the caller
    has one; without it the ECDH is done here.
    """
    key = conversation or nip44.conversation_key(recipient_secret, seal.pubkey)
    rumor = _parse_rumor(decode_json(nip44.decrypt(key, seal.content)))
    # NIP-59: otherwise anyone could seal a message in somebody else's name.
    if rumor.pubkey != seal.pubkey:
        raise PeerMisbehaved("forged_author", "the message names another author than its seal")
    return rumor


def _parse_rumor(obj: object) -> Rumor:
    if not isinstance(obj, dict):
        raise PeerMisbehaved("malformed_rumor", "rumor is not an object")
    pubkey, created_at = obj.get("pubkey"), obj.get("created_at")
    kind, content = obj.get("kind"), obj.get("content")
    if not isinstance(pubkey, str) or not isinstance(content, str):
        raise PeerMisbehaved("malformed_rumor", "rumor author or content is no string")
    if type(created_at) is not int or not 0 <= created_at <= MAX_CREATED_AT:
        raise PeerMisbehaved("malformed_rumor", "rumor time is not a Unix time")
    if type(kind) is not int or not 0 <= kind <= MAX_KIND:
        raise PeerMisbehaved("malformed_rumor", "rumor kind is not 0 to 65535")
    return Rumor(pubkey, created_at, kind, parse_tags(obj.get("tags")), content)
