"""NIP-01 events as values: parse with bounds, compute the id, sign, verify."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import msgspec
from coincurve import PrivateKey, PublicKeyXOnly

from nostrvpn.errors import PeerMisbehaved

__all__ = [
    "MAX_CONTENT",
    "Event",
    "Tags",
    "decode_json",
    "encode_json",
    "event_id",
    "event_json",
    "is_public_key",
    "parse_event",
    "parse_tags",
    "public_key",
    "sign_event",
    "verify_event",
]

Tags = tuple[tuple[str, ...], ...]

# NIP-44's largest payload is 87,472 base64 characters; this leaves room and stays far below the
# 128 KiB that most relays accept as one message.
MAX_CONTENT = 98_304
# A wrap carries two tags and a NIP-42 answer two; the rest is room for what other software adds.
MAX_TAGS = 64
# Lists of people (NIP-02, NIP-51) have a tag for each; a frame of 128 KiB holds no more than this.
LIST_KINDS = frozenset((3, 10000, 30000))
MAX_LIST_TAGS = 2000
MAX_TAG_ITEMS = 16
MAX_TAG_TEXT = 1024
MAX_KIND = 65_535
# JSON integers beyond this are not exact in most implementations.
MAX_CREATED_AT = 2**53 - 1

_HEX_64 = re.compile(r"[0-9a-f]{64}")
_HEX_128 = re.compile(r"[0-9a-f]{128}")


@dataclass(frozen=True, slots=True)
class Event:
    """A signed Nostr event (NIP-01); ``parse_event`` bounds it, ``verify_event`` proves it."""

    id: str
    pubkey: str
    created_at: int
    kind: int
    tags: Tags
    content: str
    sig: str

    def tag_values(self, name: str) -> tuple[str, ...]:
        """Return the first value of every tag called ``name``, in order."""
        return tuple(tag[1] for tag in self.tags if len(tag) > 1 and tag[0] == name)


def decode_json(text: str | bytes) -> object:
    """Decode outside JSON; anything malformed, not Unicode or too deep is ``malformed_json``."""
    try:
        result: object = msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as exc:
        raise PeerMisbehaved("malformed_json", f"not JSON: {exc}") from exc
    return result


def encode_json(value: object) -> str:
    """Encode as compact JSON with the escapes that NIP-01 asks for in the event id."""
    return msgspec.json.encode(value).decode()


def is_public_key(text: object) -> bool:
    """Whether ``text`` has the form of an x-only public key: 64 lowercase hex characters."""
    return isinstance(text, str) and _HEX_64.fullmatch(text) is not None


def public_key(secret: bytes) -> str:
    """Return the x-only public key (lowercase hex) of a 32-byte secret; ValueError if none."""
    return _private_key(secret).public_key.format(compressed=True)[1:].hex()


def event_id(pubkey: str, created_at: int, kind: int, tags: Tags, content: str) -> str:
    """Return the event id (lowercase hex): SHA-256 of NIP-01's canonical array."""
    canonical = msgspec.json.encode([0, pubkey, created_at, kind, tags, content])
    return hashlib.sha256(canonical).hexdigest()


def event_json(event: Event) -> dict[str, object]:
    """Return the JSON object of an event, ready for ``encode_json``."""
    return {
        "id": event.id,
        "pubkey": event.pubkey,
        "created_at": event.created_at,
        "kind": event.kind,
        "tags": [list(tag) for tag in event.tags],
        "content": event.content,
        "sig": event.sig,
    }


def sign_event(
    secret: bytes, *, kind: int, tags: Tags, content: str, created_at: int, aux: bytes
) -> Event:
    """Build and sign an event (BIP-340); ``aux`` is 32 fresh random bytes."""
    if len(aux) != 32:
        raise ValueError("aux must be 32 bytes")
    key = _private_key(secret)
    pubkey = key.public_key.format(compressed=True)[1:].hex()
    identifier = event_id(pubkey, created_at, kind, tags, content)
    signature = key.sign_schnorr(bytes.fromhex(identifier), aux).hex()
    return Event(identifier, pubkey, created_at, kind, tags, content, signature)


def parse_event(obj: object) -> Event:
    """Check form and bounds of an event; raise ``PeerMisbehaved("malformed_event")`` otherwise.

    The signature is not checked here: ``verify_event`` does that, so a duplicate costs nothing.
    """
    if not isinstance(obj, dict):
        raise PeerMisbehaved("malformed_event", "event is not an object")
    identifier, pubkey, signature = obj.get("id"), obj.get("pubkey"), obj.get("sig")
    created_at, kind, content = obj.get("created_at"), obj.get("kind"), obj.get("content")
    if not isinstance(identifier, str) or not _HEX_64.fullmatch(identifier):
        raise PeerMisbehaved("malformed_event", "event id is not 64 lowercase hex")
    if not isinstance(pubkey, str) or not _HEX_64.fullmatch(pubkey):
        raise PeerMisbehaved("malformed_event", "event author is not 64 lowercase hex")
    if not isinstance(signature, str) or not _HEX_128.fullmatch(signature):
        raise PeerMisbehaved("malformed_event", "event signature is not 128 lowercase hex")
    if type(created_at) is not int or not 0 <= created_at <= MAX_CREATED_AT:
        raise PeerMisbehaved("malformed_event", "event time is not a Unix time")
    if type(kind) is not int or not 0 <= kind <= MAX_KIND:
        raise PeerMisbehaved("malformed_event", "event kind is not 0 to 65535")
    if not isinstance(content, str) or len(content) > MAX_CONTENT:
        raise PeerMisbehaved("malformed_event", "event content is not a string or is too long")
    tags = parse_tags(obj.get("tags"), MAX_LIST_TAGS if kind in LIST_KINDS else MAX_TAGS)
    return Event(identifier, pubkey, created_at, kind, tags, content, signature)


def parse_tags(obj: object, most: int = MAX_TAGS) -> Tags:
    """Check form and bounds of a tag list; ``PeerMisbehaved("malformed_event")`` otherwise."""
    if not isinstance(obj, list) or len(obj) > most:
        raise PeerMisbehaved("malformed_event", "event tags are not a list or are too many")
    for tag in obj:
        if not isinstance(tag, list) or not 0 < len(tag) <= MAX_TAG_ITEMS:
            raise PeerMisbehaved("malformed_event", "event tag is not a list or is too long")
        for item in tag:
            if not isinstance(item, str) or len(item) > MAX_TAG_TEXT:
                raise PeerMisbehaved("malformed_event", "event tag item is too long or no string")
    return tuple(tuple(tag) for tag in obj)


def verify_event(event: Event) -> None:
    """Check id and BIP-340 signature; raise ``PeerMisbehaved`` "bad_id" or "bad_signature"."""
    try:
        computed = event_id(event.pubkey, event.created_at, event.kind, event.tags, event.content)
    except UnicodeEncodeError as exc:
        raise PeerMisbehaved("bad_id", "event holds a lone surrogate") from exc
    if computed != event.id:
        raise PeerMisbehaved("bad_id", "event id is not the hash of the event")
    try:
        author = PublicKeyXOnly(bytes.fromhex(event.pubkey))
        genuine = author.verify(bytes.fromhex(event.sig), bytes.fromhex(event.id))
    except ValueError as exc:
        raise PeerMisbehaved("bad_signature", "event author is not a curve point") from exc
    if not genuine:
        raise PeerMisbehaved("bad_signature", "event signature does not verify")


def _private_key(secret: bytes) -> PrivateKey:
    # coincurve accepts shorter secrets by padding them, which would hide a truncation.
    if len(secret) != 32:
        raise ValueError("secret must be 32 bytes")
    return PrivateKey(secret)
