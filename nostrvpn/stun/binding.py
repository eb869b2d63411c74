"""STUN messages (RFC 8489, with the ICE attributes of RFC 8445) as values, on aioice's codec.

Everything the codec raises for bytes from outside becomes PeerMisbehaved here.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv6Address, ip_address

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.stun.codec import stun

__all__ = [
    "Check",
    "StunKind",
    "StunMessage",
    "StunMethod",
    "is_allocate",
    "looks_like_stun",
    "parse_stun",
    "render_check",
    "render_query",
    "render_response",
    "sealed",
]

# RFC 8489 section 5.
COOKIE = stun.COOKIE.to_bytes(4, "big")
HEADER = stun.HEADER_LENGTH
# Ours: a check is 120 bytes, a server's answer with SOFTWARE and friends stays under 300, and a check
# that is padded to see whether a large packet passes fills an Ethernet frame.
MAX_STUN = 1500
TRANSACTION = 12
# RFC 8489 section 18.3.
INTEGRITY_ATTRIBUTE = 0x0008
FINGERPRINT_ATTRIBUTE = 0x8028
# Ours, comprehension-optional (RFC 8489 section 18.3), in a check: "a round of checks over every other
# path begins, open your NATs". Its 32 bits tell one round from another.
_ROUND: tuple[int, str, object, object] = (
    0xC7A1,
    "NOSTRVPN-ROUND",
    stun.pack_unsigned,
    stun.unpack_unsigned,
)
# draft-thatcher-ice-renomination, with libwebrtc's number: which choice of the controlling side it is.
_NOMINATION: tuple[int, str, object, object] = (
    0xC001,
    "NOMINATION",
    stun.pack_unsigned,
    stun.unpack_unsigned,
)
for _attribute in (_ROUND, _NOMINATION):
    stun.ATTRIBUTES_BY_TYPE[_attribute[0]] = _attribute
    stun.ATTRIBUTES_BY_NAME[_attribute[1]] = _attribute


class StunMethod(Enum):
    """What a message is about (RFC 8489 section 5, RFC 8656 section 5)."""

    BINDING = "binding"
    ALLOCATE = "allocate"


class StunKind(Enum):
    """The class of a message (RFC 8489 section 5)."""

    REQUEST = "request"
    INDICATION = "indication"
    RESPONSE = "response"
    ERROR = "error"


_METHODS = {stun.Method.BINDING: StunMethod.BINDING, stun.Method.ALLOCATE: StunMethod.ALLOCATE}
_KINDS = {
    stun.Class.REQUEST: StunKind.REQUEST,
    stun.Class.INDICATION: StunKind.INDICATION,
    stun.Class.RESPONSE: StunKind.RESPONSE,
    stun.Class.ERROR: StunKind.ERROR,
}


@dataclass(frozen=True, slots=True)
class StunMessage:
    """A parsed message. ``sender_controls`` is None where the sender names no role.

    ``tie_breaker``, ``nonce``, ``relayed``, ``lifetime`` (seconds), ``round`` (which round of checks
    begins) and ``nomination`` (the how manieth choice) are None where the message has none.
    """

    method: StunMethod
    kind: StunKind
    transaction: bytes
    username: str
    priority: int | None
    sender_controls: bool | None
    use_candidate: bool
    mapped: Endpoint | None
    error_code: int | None
    nonce: bytes | None
    relayed: Endpoint | None
    lifetime: int | None
    round: int | None
    nomination: int | None
    tie_breaker: int | None
    has_fingerprint: bool
    size: int
    _message: stun.Message = field(repr=False)

    def is_authentic(self, password: str) -> bool:
        """Say whether MESSAGE-INTEGRITY is there and made with ``password`` (RFC 8489, 14.5)."""
        return bool(self._message.check_message_integrity(password.encode()))


@dataclass(frozen=True, slots=True)
class Check:
    """A connectivity check (RFC 8445 section 7.2.2) before it is bytes."""

    transaction: bytes
    username: str
    password: str = field(repr=False)
    priority: int
    controlling: bool
    tie_breaker: int
    use_candidate: bool
    round: int | None = None
    nomination: int | None = None


def looks_like_stun(data: bytes) -> bool:
    """Say whether ``data`` has STUN's first two bits, cookie and a sane size (RFC 8489, 5)."""
    return HEADER <= len(data) <= MAX_STUN and not data[0] & 0xC0 and data[4:8] == COOKIE


def is_allocate(data: bytes) -> bool:
    """Say whether a STUN message is an Allocate request (RFC 8656 section 17: method 0x003)."""
    return data[:2] == b"\x00\x03"


def parse_stun(data: bytes) -> StunMessage:
    """Parse one message; PeerMisbehaved("malformed_stun") for what is none of its methods."""
    if not looks_like_stun(data):
        raise PeerMisbehaved("malformed_stun", "not a STUN message")
    try:
        message = stun.parse_message(data)
        mapped = _endpoint(message, "XOR-MAPPED-ADDRESS", "MAPPED-ADDRESS")
        relayed = _endpoint(message, "XOR-RELAYED-ADDRESS")
    except (ValueError, struct.error, IndexError, KeyError, TypeError, OverflowError) as exc:
        raise PeerMisbehaved("malformed_stun", str(exc)) from exc
    method = _METHODS.get(message.message_method)
    if method is None:
        raise PeerMisbehaved("malformed_stun", "of a method that nobody here speaks")
    attributes = message.attributes
    controls = "ICE-CONTROLLING" in attributes
    return StunMessage(
        method=method,
        kind=_KINDS[message.message_class],
        transaction=bytes(message.transaction_id),
        username=attributes.get("USERNAME", ""),
        priority=attributes.get("PRIORITY"),
        sender_controls=controls if controls or "ICE-CONTROLLED" in attributes else None,
        use_candidate="USE-CANDIDATE" in attributes,
        mapped=mapped,
        error_code=message.error_code,
        nonce=attributes.get("NONCE"),
        relayed=relayed,
        lifetime=attributes.get("LIFETIME"),
        round=attributes.get(_ROUND[1]),
        nomination=attributes.get(_NOMINATION[1]),
        tie_breaker=attributes.get("ICE-CONTROLLING" if controls else "ICE-CONTROLLED"),
        has_fingerprint="FINGERPRINT" in attributes,
        size=len(data),
        _message=message,
    )


def _endpoint(message: stun.Message, *names: str) -> Endpoint | None:
    """Return the first of these address attributes; servers of old send MAPPED-ADDRESS (14.1)."""
    value = next((found for name in names if (found := message.attributes.get(name))), None)
    if value is None or not value[1]:
        return None
    ip = ip_address(value[0])
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return Endpoint(ip, value[1])


def render_query(transaction: bytes) -> bytes:
    """Return a plain Binding request for a STUN server."""
    message = stun.Message(stun.Method.BINDING, stun.Class.REQUEST, transaction)
    message.add_fingerprint()
    return bytes(message)


def render_check(check: Check) -> bytes:
    """Return a connectivity check, authenticated with the peer's password."""
    attributes: dict[str, object] = {
        "USERNAME": check.username,
        "PRIORITY": check.priority,
        "ICE-CONTROLLING" if check.controlling else "ICE-CONTROLLED": check.tie_breaker,
    }
    if check.use_candidate:
        attributes["USE-CANDIDATE"] = None
    if check.nomination is not None:
        attributes[_NOMINATION[1]] = check.nomination
    if check.round is not None:
        attributes[_ROUND[1]] = check.round
    message = stun.Message(stun.Method.BINDING, stun.Class.REQUEST, check.transaction, attributes)
    return sealed(bytes(message), check.password)


def render_response(transaction: bytes, mapped: Endpoint, password: str) -> bytes:
    """Return the answer to a check or a bind from ``mapped``; ``password`` is what the asker used."""
    attributes = {"XOR-MAPPED-ADDRESS": (str(mapped.ip), mapped.port)}
    message = stun.Message(stun.Method.BINDING, stun.Class.RESPONSE, transaction, attributes)
    return sealed(bytes(message), password)


def sealed(message: bytes, password: str) -> bytes:
    """Return a rendered message with MESSAGE-INTEGRITY and FINGERPRINT added.

    Each covers a header whose length ends with itself (RFC 8489 sections 14.5 and 14.7). The codec
    would render the whole message anew for each of them.
    """
    covered = stun.set_body_length(message, len(message) - HEADER + stun.INTEGRITY_LENGTH)
    mac = hmac.digest(password.encode(), covered, "sha1")
    message += struct.pack("!HH", INTEGRITY_ATTRIBUTE, len(mac)) + mac
    message += struct.pack("!HHI", FINGERPRINT_ATTRIBUTE, 4, stun.message_fingerprint(message))
    return bytes(stun.set_body_length(message, len(message) - HEADER))
