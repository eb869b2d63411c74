"""One signed operation: its shape, its bounds, its signature. What it means is the fold's business.

An operation is a Nostr event (NIP-01) of kind 31910 without tags, never published bare. Its content is
compact JSON in one fixed form, so that it can be packed without its repetitions (``log_text.py``)::

    {"v":2,"net":"<network id>","prev":["<id>", …],"op":"add","who":"<public key>", …}

``net`` is the id of the operation that created the network (empty in that one), ``prev`` the sorted
ids of all operations that had no successor when the author signed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from coincurve import PrivateKey, PublicKeyXOnly

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.mesh.names import is_label
from nostrvpn.mesh.permissions import is_tag, parse_rule, rule_to_json
from nostrvpn.nostr.event import (
    Event,
    decode_json,
    encode_json,
    public_key,
    sign_event,
    verify_event,
)

__all__ = [
    "MAX_PARENTS",
    "MAX_TIME",
    "OPERATION_KIND",
    "Operation",
    "agree_to_rotate",
    "check_content",
    "operation_content",
    "parse_operation",
    "sign_operation",
]

OPERATION_KIND = 31910
# Concurrent branches that one operation joins; more are joined by the next one.
MAX_PARENTS = 32
# 32 parents take 2,200 bytes, the longest operation (64 routes) 3,300 beside them.
MAX_OPERATION = 6_000
MAX_TAGS = 32
MAX_ROUTES = 64
MAX_USES = 10_000
# The end of the year 9999 (Unix seconds): what comes later has no date that can be written.
MAX_TIME = 253_402_300_800

_HEX = re.compile(r"[0-9a-f]*")
_ENVELOPE = ("v", "net", "prev", "op")


@dataclass(frozen=True, slots=True)
class Operation:
    """A parsed operation. ``fields``: JSON values, checked by type and bounds for this action."""

    event: Event
    network_id: str
    parents: tuple[str, ...]
    action: str
    fields: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The event's id, 64 hex digits."""
        return self.event.id

    @property
    def author(self) -> str:
        """The public key that signed."""
        return self.event.pubkey

    @property
    def who(self) -> str:
        """The public key that the operation is about; empty for the network as a whole."""
        return str(self.fields.get("who", ""))


def operation_content(
    network_id: str, parents: Sequence[str], action: str, fields: Mapping[str, object]
) -> str:
    """Return an operation's content in its one form."""
    content = {"v": 2, "net": network_id, "prev": list(parents), "op": action, **fields}
    return encode_json(content)


def sign_operation(secret: bytes, content: str, *, wall: float, aux: bytes) -> Operation:
    """Sign what :func:`operation_content` made; PeerMisbehaved if a field is missing or out of bounds.

    ``wall``: Unix seconds, told in the event; ``aux``: 32 random bytes.
    """
    event = sign_event(
        secret, kind=OPERATION_KIND, tags=(), content=content, created_at=int(wall), aux=aux
    )
    return check_content(event)


def agree_to_rotate(secret: bytes, network_id: str, who: str, aux: bytes) -> str:
    """Return the ``proof`` (128 hex digits) that a new key takes the place of ``who`` by its own will.

    ``secret``: the new key's; ``aux``: 32 random bytes.
    """
    claim = _rotation_claim(network_id, who, public_key(secret))
    return PrivateKey(secret).sign_schnorr(claim, aux).hex()


def parse_operation(event: Event) -> Operation:
    """Verify an operation's signature and shape; PeerMisbehaved if it is none."""
    if event.kind != OPERATION_KIND or event.tags:
        raise PeerMisbehaved("bad_roster", "not a roster operation")
    verify_event(event)
    return check_content(event)


def check_content(event: Event) -> Operation:
    """Parse the content of an operation whose signature is known to be good."""
    if len(event.content) > MAX_OPERATION:
        raise PeerMisbehaved("bad_roster", "an operation that is too long")
    content = decode_json(event.content)
    if not isinstance(content, dict) or content.get("v") != 2:
        raise PeerMisbehaved("bad_roster", "an operation of an unknown version")
    if tuple(content)[:4] != _ENVELOPE or encode_json(content) != event.content:
        raise PeerMisbehaved("bad_roster", "an operation that is not in its one form")
    network, parents, action = content["net"], content["prev"], content["op"]
    if not isinstance(action, str) or action not in _SHAPES:
        raise PeerMisbehaved("bad_roster", "an unknown operation")
    first = action == "create"
    if not isinstance(parents, list) or not all(_is_hex(item, 64) for item in parents):
        raise PeerMisbehaved("bad_roster", "an operation without its predecessors")
    if sorted(set(parents)) != parents or len(parents) > MAX_PARENTS or first == bool(parents):
        raise PeerMisbehaved("bad_roster", "an operation with impossible predecessors")
    if network != "" if first else not _is_hex(network, 64):
        raise PeerMisbehaved("bad_roster", "an operation without its network")
    fields = {key: content[key] for key in content if key not in _ENVELOPE}
    shape = _SHAPES[action]
    if set(fields) != set(shape) and not (action == "settings" and set(fields) < set(shape)):
        raise PeerMisbehaved("bad_roster", f"a {action} operation with other fields than its own")
    for key, value in fields.items():
        if not shape[key](value):
            raise PeerMisbehaved("bad_roster", f"a {action} operation with a bad {key!r}")
    if event.created_at >= MAX_TIME:
        raise PeerMisbehaved("bad_roster", "an operation of no date")
    if action == "rotate" and not _is_agreed(event.pubkey, network, fields):
        raise PeerMisbehaved("bad_roster", "a rotation to a key that did not agree")
    return Operation(event, network, tuple(parents), action, fields)


def _is_agreed(author: str, network: str, fields: Mapping[str, Any]) -> bool:
    """Whether the new key of a rotation signed for it, as it has to exactly for its author's own."""
    who, to, proof = fields["who"], fields["to"], fields["proof"]
    if author != who or proof is None:
        return bool(author != who and proof is None)
    try:
        key = PublicKeyXOnly(bytes.fromhex(to))
        return bool(key.verify(bytes.fromhex(proof), _rotation_claim(network, who, to)))
    except ValueError:
        return False


def _rotation_claim(network: str, who: str, to: str) -> bytes:
    return hashlib.sha256(b"nostrvpn/rotate/v1" + bytes.fromhex(network + who + to)).digest()


# -- the fields, each with what it may be ---------------------------------------------------

_Check = Callable[[Any], bool]


def _is_hex(value: Any, digits: int) -> bool:
    return isinstance(value, str) and len(value) == digits and bool(_HEX.fullmatch(value))


def _hex(digits: int) -> _Check:
    return lambda value: _is_hex(value, digits)


def _one_of(*allowed: str) -> _Check:
    return lambda value: isinstance(value, str) and value in allowed


def _or_null(check: _Check) -> _Check:
    return lambda value: value is None or check(value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_time(value: Any) -> bool:
    return type(value) is int and 0 < value < MAX_TIME


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= MAX_USES


def _is_tags(value: Any) -> bool:
    if not isinstance(value, list) or len(value) > MAX_TAGS:
        return False
    return all(isinstance(tag, str) and is_tag(tag) for tag in value) and _is_sorted(value)


def _is_networks(value: Any) -> bool:
    if not isinstance(value, list) or len(value) > MAX_ROUTES:
        return False
    if not all(isinstance(text, str) and len(text) <= 43 for text in value):
        return False
    try:
        spelled = [str(ip_network(text)) for text in value]
    except ValueError:
        return False
    return bool(spelled == value) and _is_sorted(value)


def _is_sorted(texts: list[str]) -> bool:
    return sorted(set(texts)) == texts


def _is_rule(value: Any) -> bool:
    try:
        return bool(rule_to_json(parse_rule(value)) == value)
    except PeerMisbehaved:
        return False


_KEY = _hex(64)
_KEY_ID = _hex(16)
_SHAPES: dict[str, dict[str, _Check]] = {
    "create": {"name": is_label, "nonce": _hex(32), "who_name": is_label, "key": _KEY_ID},
    "add": {
        "who": _KEY,
        "name": is_label,
        "role": _one_of("admin", "member", "guest"),
        "tags": _is_tags,
        "owner": _KEY,
        "expires": _or_null(_is_time),
        "ephemeral": _is_flag,
    },
    "admit": {"who": _KEY, "name": is_label, "token": _hex(16), "proof": _hex(128)},
    "remove": {"who": _KEY, "key": _or_null(_KEY_ID)},
    "role": {
        "who": _KEY,
        "role": _one_of("admin", "member", "guest"),
        "expires": _or_null(_is_time),
    },
    "name": {"who": _KEY, "name": is_label},
    "tag": {"who": _KEY, "tags": _is_tags},
    "permit": {"rule": _is_rule, "withdraw": _is_flag},
    "routes": {"who": _KEY, "networks": _is_networks},
    "rotate": {"who": _KEY, "to": _KEY, "proof": _or_null(_hex(128))},
    "token": {
        "id": _hex(16),
        "signer": _KEY,
        "mailbox": _hex(64),
        "uses": _is_count,
        "expires": _is_time,
        "role": _one_of("member", "guest"),
        "tags": _is_tags,
        "ephemeral": _is_flag,
    },
    "token_revoke": {"id": _hex(16)},
    "settings": {
        "name": is_label,
        "inbound": _one_of("ping", "none", "all"),
        "same_owner": _is_flag,
    },
    "rekey": {"key": _KEY_ID},
}
