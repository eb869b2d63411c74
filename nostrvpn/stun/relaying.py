"""What a client and a relay of the mesh say to each other, and with which credentials.

A relay lends one UDP port to each pair of peers. ``docs/protocol/relaying.md`` tells the whole; in
short, with STUN's own words:

- Allocate (RFC 8656 section 7), to the relay's WireGuard port: one of the two peers asks for a port.
  USERNAME is ``USER:PAIR``: who asks, as the relay's offer named it, and the pair's id, drawn by the
  client. Asking again for the same pair gives the same port. The answer is XOR-RELAYED-ADDRESS (only
  its port counts: the relay's addresses are in its offer) and LIFETIME.
- Bind, a Binding request to the lent port: USERNAME is ``PAIR:SIDE``, side ``a`` for who allocated and
  ``b`` for the other. The first is answered by error 401 with a NONCE that is tied to the source
  address; repeated with the nonce, it binds that address as this side's, and the answer has
  XOR-MAPPED-ADDRESS (``binding.render_response``). So nobody can bind an address at which he does
  not receive.

Both are authenticated by MESSAGE-INTEGRITY, and no answer is longer than its request: a nonce has at
most 12 bytes.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass, field
from enum import StrEnum

from nostrvpn.endpoint import Endpoint
from nostrvpn.stun.binding import StunMethod
from nostrvpn.stun.codec import stun

__all__ = [
    "ERROR_CAPACITY",
    "ERROR_MISMATCH",
    "ERROR_QUOTA",
    "ERROR_STALE_NONCE",
    "ERROR_UNAUTHORIZED",
    "PAIR_ID",
    "RelayUser",
    "Side",
    "relay_user",
    "render_allocate",
    "render_allocated",
    "render_bind",
    "render_relay_error",
    "side_key",
    "user_key",
]

# RFC 8489 section 14.8 and RFC 8656 section 19.
ERROR_UNAUTHORIZED = 401
ERROR_MISMATCH = 437
ERROR_STALE_NONCE = 438
ERROR_QUOTA = 486
ERROR_CAPACITY = 508
# Drawn by the client: 8 random bytes, in hex.
PAIR_ID = re.compile(r"[0-9a-f]{16}\Z")
# RFC 8656 section 14.7: the protocol number of UDP, in the first byte.
REQUESTED_TRANSPORT_UDP = 17 << 24


class Side(StrEnum):
    """The two ends of a pair: who allocated, and the other."""

    ALLOCATOR = "a"
    OTHER = "b"


@dataclass(frozen=True, slots=True)
class RelayUser:
    """A client of a relay: the name it goes by there, and its key. Both are hex."""

    name: str
    key: str = field(repr=False)


def _derive(key: bytes, label: str) -> bytes:
    return hmac.digest(key, label.encode(), "sha256")[:16]


def relay_user(secret: bytes, recipient: str) -> RelayUser:
    """Return the credentials that a relay with ``secret`` gives to ``recipient``.

    The key follows from the name, so the relay keeps nothing per client, and the name tells an
    observer nothing about the recipient.
    """
    name = _derive(secret, f"nostrvpn relay user {recipient}").hex()[:16]
    return RelayUser(name, user_key(secret, name))


def user_key(secret: bytes, name: str) -> str:
    """Return the key of the user ``name`` of the relay with ``secret``."""
    return _derive(secret, f"nostrvpn relay key {name}").hex()


def side_key(key: str, pair: str, side: Side) -> str:
    """Return the key of one side of ``pair``, from the key of the user who allocated it."""
    return _derive(key.encode(), f"nostrvpn relay bind {pair}:{side.value}").hex()


def render_allocate(transaction: bytes, user: RelayUser, pair: str) -> bytes:
    """Return a request for a port for ``pair``."""
    attributes = {
        "USERNAME": f"{user.name}:{pair}",
        "REQUESTED-TRANSPORT": REQUESTED_TRANSPORT_UDP,
    }
    message = stun.Message(stun.Method.ALLOCATE, stun.Class.REQUEST, transaction, attributes)
    message.add_message_integrity(user.key.encode())
    return bytes(message)


def render_allocated(transaction: bytes, relayed: Endpoint, lifetime_s: int, key: str) -> bytes:
    """Return the answer to an Allocate: ``relayed`` is lent for ``lifetime_s`` without traffic."""
    attributes = {"XOR-RELAYED-ADDRESS": (str(relayed.ip), relayed.port), "LIFETIME": lifetime_s}
    message = stun.Message(stun.Method.ALLOCATE, stun.Class.RESPONSE, transaction, attributes)
    message.add_message_integrity(key.encode())
    return bytes(message)


def render_bind(transaction: bytes, pair: str, side: Side, key: str, nonce: bytes | None) -> bytes:
    """Return a request to bind its source address as ``side`` of ``pair``; ``key`` is the side's."""
    attributes: dict[str, object] = {"USERNAME": f"{pair}:{side.value}"}
    if nonce is not None:
        attributes["NONCE"] = nonce
    message = stun.Message(stun.Method.BINDING, stun.Class.REQUEST, transaction, attributes)
    message.add_message_integrity(key.encode())
    return bytes(message)


def render_relay_error(
    method: StunMethod, transaction: bytes, code: int, key: str | None, nonce: bytes | None = None
) -> bytes:
    """Return a refusal, with the challenge to repeat the request with where there is one.

    ``key`` is None where the relay has none to answer with: it does not know the pair (error 437,
    after a restart of the relay) or the user (401). Whoever gets such an answer allocates anew.
    """
    number = stun.Method.ALLOCATE if method is StunMethod.ALLOCATE else stun.Method.BINDING
    attributes: dict[str, object] = {"ERROR-CODE": (code, "")}
    if nonce is not None:
        attributes["NONCE"] = nonce
    message = stun.Message(number, stun.Class.ERROR, transaction, attributes)
    if key is not None:
        message.add_message_integrity(key.encode())
    return bytes(message)
