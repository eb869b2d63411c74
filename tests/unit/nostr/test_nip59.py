"""Rumors, seals and gift wraps; nostr-sdk as the other side."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import nostr_sdk
import pytest

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Entropy
from nostrvpn.nostr import nip44
from nostrvpn.nostr.event import (
    Event,
    decode_json,
    encode_json,
    event_json,
    parse_event,
    public_key,
    sign_event,
    verify_event,
)
from nostrvpn.nostr.nip59 import (
    EPHEMERAL_WRAP,
    SEAL,
    STORED_WRAP,
    Rumor,
    fresh_secret,
    gift_wrap,
    open_seal,
    open_wrap,
    seal_rumor,
)

ALICE, BOB, MAILBOX = (hashlib.sha256(name).digest() for name in (b"alice", b"bob", b"mailbox"))
NOW = 1_700_000_000
RUMOR = Rumor(public_key(ALICE), NOW, 14, (("x", "y"),), 'hello "bob"\n')


def entropy(seed: bytes = b"seed") -> Entropy:
    return Entropy(seed)


def sealed(rumor: Rumor = RUMOR, sender: bytes = ALICE) -> Event:
    key = nip44.conversation_key(sender, public_key(BOB))
    return seal_rumor(rumor, sender, key, created_at=NOW, entropy=entropy())


def wrapped(content: str, kind: int = EPHEMERAL_WRAP) -> Event:
    """A wrap around any text, as a hostile sender could make it."""
    key = nip44.conversation_key(ALICE, public_key(MAILBOX))
    payload = nip44.encrypt(key, content.encode(), bytes(32))
    return sign_event(ALICE, kind=kind, tags=(), content=payload, created_at=NOW, aux=bytes(32))


def code_of_wrap(event: Event) -> str:
    with pytest.raises(PeerMisbehaved) as caught:
        open_wrap(event, MAILBOX)
    return caught.value.code


def code_of_rumor(text: str) -> str:
    key = nip44.conversation_key(ALICE, public_key(BOB))
    payload = nip44.encrypt(key, text.encode(), bytes(32))
    seal = sign_event(ALICE, kind=SEAL, tags=(), content=payload, created_at=NOW, aux=bytes(32))
    with pytest.raises(PeerMisbehaved) as caught:
        open_seal(seal, BOB)
    return caught.value.code


@pytest.mark.parametrize("kind", [EPHEMERAL_WRAP, STORED_WRAP])
def test_round_trip_through_a_mailbox(kind: int) -> None:
    mailbox = public_key(MAILBOX)
    wrap = gift_wrap(
        sealed(), mailbox, kind=kind, created_at=NOW, expiration=NOW + 60, entropy=entropy(b"wrap")
    )
    verify_event(wrap)
    assert wrap.tags == (("p", mailbox), ("expiration", str(NOW + 60)))
    assert wrap.created_at == NOW
    assert wrap.pubkey not in {public_key(ALICE), public_key(BOB), mailbox}
    seal = open_wrap(wrap, MAILBOX)
    assert seal.kind == SEAL
    assert seal.tags == ()
    assert open_seal(seal, BOB) == RUMOR
    cached = nip44.conversation_key(BOB, seal.pubkey)
    assert open_seal(seal, BOB, cached) == RUMOR


def test_a_wrap_names_neither_party() -> None:
    wrap = gift_wrap(
        sealed(),
        public_key(MAILBOX),
        kind=STORED_WRAP,
        created_at=NOW,
        expiration=None,
        entropy=entropy(b"wrap"),
    )
    text = encode_json(event_json(wrap))
    assert public_key(ALICE) not in text
    assert public_key(BOB) not in text
    assert wrap.tags == (("p", public_key(MAILBOX)),)


def test_every_wrap_has_a_fresh_author() -> None:
    source = entropy()
    keys = {public_key(fresh_secret(source)) for _ in range(20)}
    assert len(keys) == 20


def test_only_the_mailbox_key_opens_a_wrap() -> None:
    wrap = gift_wrap(
        sealed(),
        public_key(MAILBOX),
        kind=STORED_WRAP,
        created_at=NOW,
        expiration=None,
        entropy=entropy(),
    )
    with pytest.raises(PeerMisbehaved) as caught:
        open_wrap(wrap, BOB)
    assert caught.value.code == "bad_payload"


def test_sealing_for_somebody_else_is_a_bug() -> None:
    with pytest.raises(ValueError, match="own author"):
        sealed(sender=BOB)


def test_wrapping_with_another_kind_is_a_bug() -> None:
    with pytest.raises(ValueError, match="no gift wrap"):
        gift_wrap(
            sealed(),
            public_key(MAILBOX),
            kind=1,
            created_at=NOW,
            expiration=None,
            entropy=entropy(),
        )


def test_a_rumor_in_another_name_is_refused() -> None:
    obj = {**rumor_json(), "pubkey": public_key(MAILBOX)}
    assert code_of_rumor(encode_json(obj)) == "forged_author"


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("pubkey", 1, "malformed_rumor"),
        ("created_at", -1, "malformed_rumor"),
        ("created_at", True, "malformed_rumor"),
        ("kind", 70_000, "malformed_rumor"),
        ("content", None, "malformed_rumor"),
        ("tags", [1], "malformed_event"),
    ],
)
def test_malformed_rumors_are_refused(field: str, value: object, code: str) -> None:
    assert code_of_rumor(encode_json({**rumor_json(), field: value})) == code


def test_a_rumor_that_is_no_object_is_refused() -> None:
    assert code_of_rumor("[]") == "malformed_rumor"
    assert code_of_rumor("{") == "malformed_json"


def test_a_wrap_must_hold_a_genuine_seal() -> None:
    seal = sealed()
    assert code_of_wrap(wrapped("garbage")) == "malformed_json"
    assert code_of_wrap(wrapped("{}")) == "malformed_event"
    forged = replace(seal, sig="0" * 128)
    assert code_of_wrap(wrapped(encode_json(event_json(forged)))) == "bad_signature"
    note = sign_event(ALICE, kind=1, tags=(), content="x", created_at=NOW, aux=bytes(32))
    assert code_of_wrap(wrapped(encode_json(event_json(note)))) == "not_a_seal"
    tagged = sign_event(
        ALICE, kind=SEAL, tags=(("p", "x"),), content="x", created_at=NOW, aux=bytes(32)
    )
    assert code_of_wrap(wrapped(encode_json(event_json(tagged)))) == "not_a_seal"
    assert code_of_wrap(wrapped(encode_json(event_json(seal)), kind=1)) == "not_a_wrap"


def test_nostr_sdk_opens_our_wrap() -> None:
    # nostr-sdk has one recipient for both layers, so here the mailbox is Bob's own key.
    wrap = gift_wrap(
        sealed(),
        public_key(BOB),
        kind=STORED_WRAP,
        created_at=NOW,
        expiration=NOW + 60,
        entropy=entropy(b"wrap"),
    )
    bob = nostr_sdk.Keys.parse(BOB.hex())
    theirs = nostr_sdk.Event.from_json(encode_json(event_json(wrap)))
    gift = nostr_sdk.UnwrappedGift.from_gift_wrap(bob, theirs)
    assert gift.sender().to_hex() == public_key(ALICE)
    assert gift.rumor().content() == RUMOR.content
    assert gift.rumor().created_at().as_secs() == NOW
    assert gift.rumor().id().to_hex() == RUMOR.id


def test_we_open_the_wrap_of_nostr_sdk() -> None:
    alice = nostr_sdk.Keys.parse(ALICE.hex())
    rumor = nostr_sdk.EventBuilder(nostr_sdk.Kind(14), "hello").finalize_unsigned(
        alice.public_key()
    )
    theirs = nostr_sdk.nip59_make_gift_wrap(
        alice, nostr_sdk.PublicKey.parse(public_key(BOB)), rumor
    )
    wrap = parse_event(decode_json(theirs.as_json()))
    verify_event(wrap)
    seal = open_wrap(wrap, BOB)
    assert open_seal(seal, BOB).content == "hello"
    assert seal.pubkey == public_key(ALICE)


def rumor_json() -> dict[str, object]:
    return {
        "id": RUMOR.id,
        "pubkey": RUMOR.pubkey,
        "created_at": RUMOR.created_at,
        "kind": RUMOR.kind,
        "tags": RUMOR.tags,
        "content": RUMOR.content,
    }
