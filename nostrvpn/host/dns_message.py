"""What of a DNS message must be known to pass it on: its question, and the addresses in an answer. Pure.

The question is read by hand (RFC 1035 section 4.1): it is compared byte for byte, and most messages are
never looked into any further. Answers are read by dnspython, imported with the first one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from nostrvpn.endpoint import IPAddress

__all__ = [
    "FORMERR",
    "NOTIMP",
    "NXDOMAIN",
    "REFUSED",
    "SERVFAIL",
    "Addresses",
    "Question",
    "answers",
    "fitting",
    "is_cut",
    "is_plain",
    "is_query",
    "make_query",
    "rcode_of",
    "read_addresses",
    "read_question",
    "refusal_of",
    "returned",
]

# Spec: RFC 1035 section 4.1.1.
FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 1, 2, 3, 4, 5
_HEADER = 12
_RESPONSE_BIT, _OPCODE_BITS, _TRUNCATED_BIT, _DESIRED_BIT = 0x80, 0x78, 0x02, 0x01
_AVAILABLE_BIT = 0x80
_RCODE_BITS = 0x0F
# RFC 1035 section 2.3.4, and 6891 section 6.1.2.
_MAX_LABEL, _MAX_NAME, _PLAIN_UDP = 63, 255, 512
_OPT = 41
_ADDRESS_TYPES = {4: 1, 6: 28}
_QUERY_SIZE = 1232
# Addresses of one name that are looked at: far more than anybody gives.
_MAX_ADDRESSES = 256


@dataclass(frozen=True, slots=True)
class Question:
    """The one question of a query. ``labels``: the name in lower case, the leftmost first, without the
    root; ``wire``: name, type and class as they were sent. ``size``: what the asker takes over UDP."""

    id: bytes
    labels: tuple[str, ...]
    wire: bytes
    size: int = _PLAIN_UDP

    @property
    def name(self) -> str:
        """The name as text, without the last dot."""
        return ".".join(self.labels)


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses that an answer leads to, by any record, and for how many seconds it may be kept."""

    ips: frozenset[IPAddress]
    ttl: int


def read_question(wire: bytes) -> Question | None:
    """Return the question of a message, query or answer; None if there is not exactly one to be read.

    A compressed name is none: nothing is before it to point to.
    """
    if len(wire) < _HEADER or wire[4:6] != b"\0\1":
        return None
    labels, at = [], _HEADER
    while True:
        length = wire[at] if at < len(wire) else _MAX_LABEL + 1
        if length > _MAX_LABEL or at + 1 + length - _HEADER > _MAX_NAME:
            return None
        at += 1 + length
        if not length:
            break
        labels.append(wire[at - length : at].decode("latin-1").lower())
    at += 4
    if at > len(wire):
        return None
    return Question(wire[:2], tuple(labels), wire[_HEADER:at], _size(wire, at))


def _size(wire: bytes, at: int) -> int:
    """What the asker takes over UDP: said by the first additional record, where nothing is before it."""
    if wire[6:10] == bytes(4) and wire[at : at + 3] == bytes([0, 0, _OPT]) and len(wire) >= at + 5:
        return max(_PLAIN_UDP, int.from_bytes(wire[at + 3 : at + 5], "big"))
    return _PLAIN_UDP


def is_query(wire: bytes) -> bool:
    """Whether it is no answer, as far as the header says."""
    return len(wire) >= _HEADER and not wire[2] & _RESPONSE_BIT


def is_plain(wire: bytes) -> bool:
    """Whether it is a question for records: opcode QUERY."""
    return not wire[2] & _OPCODE_BITS


def is_cut(wire: bytes) -> bool:
    """Whether an answer says that it is only a part, and the whole is to be had by TCP."""
    return bool(wire[2] & _TRUNCATED_BIT)


def answers(wire: bytes, asked: Question) -> bool:
    """Whether a message is an answer to this question: its id, and the same name, type and class."""
    if len(wire) < _HEADER or not wire[2] & _RESPONSE_BIT or wire[:2] != asked.id:
        return False
    found = read_question(wire)
    return (
        found is not None
        and found.labels == asked.labels
        and found.wire[-4:] == asked.wire[-4:]
        and is_plain(wire)
    )


def returned(wire: bytes, asked: Question) -> bytes:
    """Return an answer to this question as the asker expects it: its id, its spelling of the name."""
    return asked.id + wire[2:_HEADER] + asked.wire + wire[_HEADER + len(asked.wire) :]


def fitting(wire: bytes, asked: Question, *, tcp: bool) -> bytes:
    """Return an answer, or over UDP, where it is larger than the asker takes, that it was cut."""
    if tcp or len(wire) <= asked.size:
        return wire
    flags = bytes([wire[2] | _TRUNCATED_BIT, wire[3]])
    return wire[:2] + flags + b"\0\1" + bytes(6) + asked.wire


def refusal_of(wire: bytes, rcode: int) -> bytes | None:
    """Return the answer that says only ``rcode``; None for what deserves none (noise, or an answer)."""
    if not is_query(wire):
        return None
    asked = read_question(wire)
    flags = bytes([_RESPONSE_BIT | wire[2] & (_OPCODE_BITS | _DESIRED_BIT), _AVAILABLE_BIT | rcode])
    if asked is None:
        return wire[:2] + flags + bytes(8)
    return wire[:2] + flags + b"\0\1" + bytes(6) + asked.wire


def rcode_of(wire: bytes) -> int:
    """Return what an answer's header says; of EDNS's longer codes the lower bits."""
    return wire[3] & _RCODE_BITS


def make_query(host: str, version: int, number: int) -> bytes:
    """Return the question for a host's addresses of one IP version; ValueError if it is no name."""
    try:
        labels = host.rstrip(".").encode("ascii").split(b".")
    except UnicodeError as exc:
        raise ValueError(f"not a host name: {host!r}") from exc
    if not all(0 < len(label) <= _MAX_LABEL for label in labels):
        raise ValueError(f"not a host name: {host!r}")
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    if len(name) > _MAX_NAME:
        raise ValueError(f"not a host name: {host!r}")
    header = number.to_bytes(2, "big") + bytes([_DESIRED_BIT, 0, 0, 1, 0, 0, 0, 0, 0, 1])
    kind = _ADDRESS_TYPES[version].to_bytes(2, "big")
    option = bytes([0, 0, _OPT]) + _QUERY_SIZE.to_bytes(2, "big") + bytes(6)
    return header + name + kind + b"\0\1" + option


def read_addresses(wire: bytes, *, most_ttl: int | None = None) -> tuple[Addresses, bytes]:
    """Return the addresses in an answer, and the answer, its records kept for ``most_ttl`` at most.

    ValueError if it cannot be read whole: cut, bent, or with a name that leads into itself. Addresses
    are in A and AAAA, and in the hints of SVCB and HTTPS (RFC 9460); those beside the question's own
    names count too, since some programs keep them.
    """
    import dns.message

    try:
        message = dns.message.from_wire(wire, ignore_trailing=True)
        records = [*message.answer, *message.authority, *message.additional]
        ips: set[IPAddress] = set()
        ttls = [rrset.ttl for rrset in message.answer]
        for rrset in records:
            if most_ttl is not None:
                rrset.ttl = min(rrset.ttl, most_ttl)
            for record in rrset:
                ips.update(ip_address(text) for text in _addresses(record))
                if len(ips) > _MAX_ADDRESSES:
                    raise ValueError("more addresses than a name has")
        made = wire if most_ttl is None else message.to_wire(max_size=65_535)
    except ValueError:
        raise
    except Exception as exc:
        # The codec raises more than its own errors for bytes from outside.
        raise ValueError(f"an answer that cannot be read: {exc}") from exc
    return Addresses(frozenset(ips), min(ttls, default=0)), made


def _addresses(record: Any) -> Iterable[str]:
    if record.rdtype in _ADDRESS_TYPES.values():
        return (record.address,)
    hints = getattr(record, "params", {}).values() if record.rdtype in (64, 65) else ()
    return (text for hint in hints for text in getattr(hint, "addresses", ()))
