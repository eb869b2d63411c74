"""NIP-01 events: bounds, ids, signatures; nostr-sdk and pynostr as independent judges."""

from __future__ import annotations

import json
from dataclasses import replace

import nostr_sdk
import pytest
from pynostr.event import Event as PynostrEvent

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.nostr.event import (
    MAX_CONTENT,
    Event,
    decode_json,
    encode_json,
    event_id,
    event_json,
    parse_event,
    public_key,
    sign_event,
    verify_event,
)

SECRET = bytes(31) + b"\x03"
AUX = bytes(32)
# BIP-340 test vector 0: the public key of secret 3.
PUBKEY = "f9308a019258c31049344f85f89d5229b531c845836f99b08601f113bce036f9"
# Every escape of NIP-01, other control characters, and text outside the basic plane.
HARD_TEXT = '\n"\\\r\t\b\f \x00\x1f\x7f / é \u2028 \U0001f389'


def signed(content: str = "hello", kind: int = 21059) -> Event:
    return sign_event(
        SECRET,
        kind=kind,
        tags=(("p", PUBKEY), ("expiration", "1700000100"), ("t", HARD_TEXT)),
        content=content,
        created_at=1_700_000_000,
        aux=AUX,
    )


def code_of(obj: object) -> str:
    with pytest.raises(PeerMisbehaved) as caught:
        parse_event(obj)
    return caught.value.code


def test_public_key_is_bip340_x_only() -> None:
    assert public_key(SECRET) == PUBKEY


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, b"\x01" * 31, b"\x01" * 33, b""])
def test_public_key_refuses_bad_secrets(secret: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        public_key(secret)


def test_sign_and_verify_round_trip() -> None:
    event = signed(HARD_TEXT)
    again = parse_event(decode_json(encode_json(event_json(event))))
    assert again == event
    verify_event(again)


def test_same_aux_gives_same_event() -> None:
    assert signed() == signed()


@pytest.mark.parametrize("content", ["hello", HARD_TEXT, ""])
def test_nostr_sdk_and_pynostr_accept_our_events(content: str) -> None:
    text = encode_json(event_json(signed(content)))
    assert nostr_sdk.Event.from_json(text).verify()
    judged = PynostrEvent.from_dict(json.loads(text))
    judged.compute_id()
    assert judged.id == json.loads(text)["id"]
    assert judged.verify()


@pytest.mark.parametrize("content", ["hello", HARD_TEXT])
def test_we_accept_nostr_sdk_events(content: str) -> None:
    keys = nostr_sdk.Keys.generate()
    builder = nostr_sdk.EventBuilder(nostr_sdk.Kind(21059), content)
    made = builder.tags([nostr_sdk.Tag.parse(["p", PUBKEY])]).finalize(keys)
    event = parse_event(decode_json(made.as_json()))
    verify_event(event)
    assert event.content == content
    assert event.tag_values("p") == (PUBKEY,)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("content", "other"),
        ("kind", 1),
        ("created_at", 1),
        ("tags", ()),
        ("pubkey", public_key(bytes(31) + b"\x04")),
        ("id", "0" * 64),
    ],
)
def test_altered_event_has_a_bad_id(field: str, value: object) -> None:
    changed = replace(signed(), **{field: value})  # type: ignore[arg-type]
    with pytest.raises(PeerMisbehaved) as caught:
        verify_event(changed)
    assert caught.value.code == "bad_id"


@pytest.mark.parametrize("sig", ["0" * 128, "f" * 128])
def test_wrong_signature_is_refused(sig: str) -> None:
    with pytest.raises(PeerMisbehaved) as caught:
        verify_event(replace(signed(), sig=sig))
    assert caught.value.code == "bad_signature"


def test_author_off_the_curve_is_refused() -> None:
    event = signed()
    author = "f" * 64
    identifier = event_id(author, event.created_at, event.kind, event.tags, event.content)
    with pytest.raises(PeerMisbehaved) as caught:
        verify_event(replace(event, pubkey=author, id=identifier))
    assert caught.value.code == "bad_signature"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "A" * 64),
        ("id", "a" * 63),
        ("id", None),
        ("pubkey", "z" * 64),
        ("pubkey", PUBKEY.upper()),
        ("pubkey", PUBKEY + "\n"),
        ("sig", "0" * 127),
        ("sig", 5),
        ("created_at", -1),
        ("created_at", 1.5),
        ("created_at", True),
        ("created_at", 2**53),
        ("kind", 65_536),
        ("kind", "1"),
        ("kind", False),
        ("content", None),
        ("content", "x" * (MAX_CONTENT + 1)),
        ("tags", None),
        ("tags", {}),
        ("tags", [["p", "x"]] * 65),
        ("tags", [["p"] * 17]),
        ("tags", [[]]),
        ("tags", [["p", 1]]),
        ("tags", [["p", "x" * 1025]]),
        ("tags", ["p"]),
    ],
)
def test_malformed_events_are_refused(field: str, value: object) -> None:
    obj = decode_json(encode_json(event_json(signed())))
    assert isinstance(obj, dict)
    assert code_of({**obj, field: value}) == "malformed_event"
    del obj[field]
    assert code_of(obj) == "malformed_event"


@pytest.mark.parametrize("obj", [None, [], "x", 5])
def test_non_objects_are_refused(obj: object) -> None:
    assert code_of(obj) == "malformed_event"


@pytest.mark.parametrize("text", ["", "{", "NaN", '"\\ud800"', "[" * 100_000, '"\x01"', b"\xff"])
def test_bad_json_is_a_counted_error(text: str | bytes) -> None:
    with pytest.raises(PeerMisbehaved) as caught:
        decode_json(text)
    assert caught.value.code == "malformed_json"
