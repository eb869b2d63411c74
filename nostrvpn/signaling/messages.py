"""The envelope of every message between nodes: what is in the rumor's content, with its bounds.

JSON, so that a second implementation needs nothing new::

    {"v":2, "type":"describe", "net":"<network id>", "seq":1763719200123, "body":{…}}

``seq`` grows with every message of a sender (milliseconds of its clock, or one more than its last):
newer replaces older where a type says so. Bodies are described in ``docs/protocol/messages.md``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.nostr.event import decode_json

__all__ = ["MAX_MESSAGE", "RUMOR_KIND", "Message", "MessageType", "parse_message", "render_message"]

VERSION = 2
# The rumor is never published, so its kind only has to be told from chat messages (NIP-59).
RUMOR_KIND = 21910
# What goes, JSON escapes included, into the largest rumor whose wrap relays take (``sealing.BUCKETS``).
MAX_MESSAGE = 25_000


class MessageType(Enum):
    """What a message asks of its recipient."""

    JOIN = "join"
    WELCOME = "welcome"
    REFUSED = "refused"
    DESCRIBE = "describe"
    ROSTER = "roster"
    KEYS = "keys"
    PRESENCE = "presence"
    NEWS = "news"


@dataclass(frozen=True, slots=True)
class Message:
    """One message between two nodes. ``network_id`` is 64 hex digits, ``body`` JSON-able."""

    type: MessageType
    network_id: str
    seq: int
    body: dict[str, object] = field(repr=False)  # may hold a link's secret, a path's password


def render_message(message: Message) -> str:
    """Return the rumor's content; ValueError if it is larger than ``MAX_MESSAGE`` bytes."""
    text = json.dumps(
        {
            "v": VERSION,
            "type": message.type.value,
            "net": message.network_id,
            "seq": message.seq,
            "body": message.body,
        },
        separators=(",", ":"),
        ensure_ascii=False,
    )
    if len(text.encode()) > MAX_MESSAGE:
        raise ValueError(f"a {message.type.value} message of {len(text)} characters")
    return text


def parse_message(text: str) -> Message:
    """Parse a rumor's content; PeerMisbehaved if it is none of ours."""
    if len(text) > MAX_MESSAGE:
        raise PeerMisbehaved("oversized_message")
    try:
        # Not json.loads: it lets lone surrogates and NaN in, which no store or answer can hold.
        document = decode_json(text)
        if not isinstance(document, dict):
            raise PeerMisbehaved("bad_message", "not an object")
        kind = MessageType(document["type"])
        version, network, seq, body = (document[key] for key in ("v", "net", "seq", "body"))
    except (PeerMisbehaved, ValueError, KeyError, TypeError) as exc:
        raise PeerMisbehaved("bad_message", "not a message of ours") from exc
    if version != VERSION:
        raise PeerMisbehaved("unknown_version", f"a message of version {version!r}")
    if type(network) is not str or len(network) != 64 or set(network) - set("0123456789abcdef"):
        raise PeerMisbehaved("bad_message", "a message without a network id")
    if type(seq) is not int or not 0 < seq < 1 << 53 or type(body) is not dict:
        raise PeerMisbehaved("bad_message", "a message with a mistyped field")
    return Message(kind, network, seq, body)
