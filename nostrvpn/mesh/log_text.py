"""Operations as text: what repeats is left out, the rest compressed, so that messages hold many.

The text is base64url of: the length (4 bytes, big-endian) of a zlib stream, the stream, and the
signatures (64 bytes each; they do not compress). The stream is JSON ``[net, authors, operations]``,
each operation ``[author's index, created_at, prev, op, fields]``; in ``prev`` a number counts back to
an operation of the same text, a string is an id. Ids are not sent: the reader computes them.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterable, Sequence

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.mesh.operations import OPERATION_KIND, check_content, operation_content
from nostrvpn.nostr.event import (
    Event,
    decode_json,
    encode_json,
    event_id,
    is_public_key,
    verify_event,
)

__all__ = ["MAX_PACKED", "pack_operations", "split_operations", "unpack_operations"]

# Characters of one text: an envelope of 25,000 characters holds it and what else a welcome says.
MAX_PACKED = 21_000
# What a text may decompress to: at most 32 times its size, where ours take about 3.
MAX_UNPACKED = 1 << 20
MAX_IN_ONE = 1_000
_SIGNATURE = 64


def pack_operations(events: Sequence[Event]) -> str:
    """Return operations as text; ValueError if they take more than ``MAX_PACKED`` characters."""
    text = _pack(events)
    if len(text) > MAX_PACKED or len(events) > MAX_IN_ONE:
        raise ValueError(f"{len(events)} operations in {len(text)} characters")
    return text


def split_operations(events: Iterable[Event]) -> tuple[tuple[Event, ...], ...]:
    """Return operations in the same order, in parts that :func:`pack_operations` takes."""
    left, parts = list(events), []
    count = 200
    while left:
        count = min(count, len(left), MAX_IN_ONE)
        while (size := len(_pack(left[:count]))) > MAX_PACKED:
            count = max(1, min(count - 1, count * MAX_PACKED // size))
        parts.append(tuple(left[:count]))
        del left[:count]
        count = count * MAX_PACKED // size
    return tuple(parts)


def unpack_operations(text: object) -> tuple[Event, ...]:
    """Return the operations of a text, in its order, shapes and signatures verified.

    PeerMisbehaved ``bad_roster`` (or of one event) if anything is wrong with it.
    """
    if not isinstance(text, str) or len(text) > MAX_PACKED:
        raise PeerMisbehaved("bad_roster", "no packed operations, or too many")
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error) as exc:
        raise PeerMisbehaved("bad_roster", "packed operations that are not base64") from exc
    size = int.from_bytes(packed[:4], "big")
    stream, signatures = packed[4 : 4 + size], packed[4 + size :]
    inflater = zlib.decompressobj()
    try:
        # One byte more than allowed is asked for, and no more is ever made of a bomb.
        plain = inflater.decompress(stream, MAX_UNPACKED + 1)
    except zlib.error as exc:
        raise PeerMisbehaved("bad_roster", "packed operations that do not unpack") from exc
    if len(plain) > MAX_UNPACKED or not inflater.eof or inflater.unused_data:
        raise PeerMisbehaved("bad_roster", "packed operations that are too large or cut off")
    return _read(decode_json(plain), signatures)


def _pack(events: Sequence[Event]) -> str:
    operations = [check_content(event) for event in events]
    network = next((item.network_id for item in operations if item.network_id), "")
    authors = list(dict.fromkeys(event.pubkey for event in events))
    index = {author: number for number, author in enumerate(authors)}
    places = {event.id: place for place, event in enumerate(events)}
    rows: list[object] = []
    for place, item in enumerate(operations):
        back: list[int | str] = [
            place - places[parent] if places.get(parent, place) < place else parent
            for parent in item.parents
        ]
        row = [index[item.author], item.event.created_at, back, item.action, item.fields]
        rows.append(row)
    stream = zlib.compress(encode_json([network, authors, rows]).encode(), 9)
    signatures = b"".join(bytes.fromhex(event.sig) for event in events)
    packed = len(stream).to_bytes(4, "big") + stream + signatures
    return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def _read(document: object, signatures: bytes) -> tuple[Event, ...]:
    bad = PeerMisbehaved("bad_roster", "packed operations with a mistyped field")
    if not isinstance(document, list) or len(document) != 3:
        raise bad
    network, authors, rows = document
    if not isinstance(network, str) or not isinstance(authors, list) or not isinstance(rows, list):
        raise bad
    if not all(is_public_key(author) for author in authors) or len(rows) > MAX_IN_ONE:
        raise bad
    if len(signatures) != _SIGNATURE * len(rows):
        raise PeerMisbehaved("bad_roster", "packed operations without their signatures")
    events: list[Event] = []
    for number, row in enumerate(rows):
        signature = signatures[_SIGNATURE * number : _SIGNATURE * (number + 1)].hex()
        event = _event(network, authors, row, events, signature)
        if event is None:
            raise bad
        verify_event(event)
        check_content(event)
        events.append(event)
    return tuple(events)


def _event(
    network: str, authors: list[str], row: object, earlier: list[Event], signature: str
) -> Event | None:
    if not isinstance(row, list) or len(row) != 5:
        return None
    author, created_at, back, action, fields = row
    if type(author) is not int or not 0 <= author < len(authors):
        return None
    if type(created_at) is not int or not 0 <= created_at < 1 << 53:
        return None
    if not isinstance(back, list) or not isinstance(action, str) or not isinstance(fields, dict):
        return None
    parents: list[str] = []
    for item in back:
        if isinstance(item, str):
            parents.append(item)
        elif type(item) is int and 0 < item <= len(earlier):
            parents.append(earlier[-item].id)
        else:
            return None
    network_id = "" if action == "create" else network
    content = operation_content(network_id, parents, action, fields)
    key = authors[author]
    identifier = event_id(key, created_at, OPERATION_KIND, (), content)
    return Event(identifier, key, created_at, OPERATION_KIND, (), content, signature)
