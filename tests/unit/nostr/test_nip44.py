"""NIP-44 version 2 against the official vectors, and against nostr-sdk."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import nostr_sdk
import pytest

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.nostr import nip44
from nostrvpn.nostr.event import public_key

VECTORS = json.loads(
    (Path(__file__).parents[2] / "vectors" / "nip44.vectors.json").read_text(encoding="utf-8")
)["v2"]
VALID, INVALID = VECTORS["valid"], VECTORS["invalid"]
KEY = hashlib.sha256(b"key").digest()
NONCE = hashlib.sha256(b"nonce").digest()


def test_the_vectors_are_complete() -> None:
    assert len(VALID["get_conversation_key"]) == 35
    assert len(VALID["encrypt_decrypt"]) == 10
    assert len(INVALID["decrypt"]) == 12


@pytest.mark.parametrize("vector", VALID["get_conversation_key"])
def test_conversation_keys(vector: dict[str, str]) -> None:
    key = nip44.conversation_key(bytes.fromhex(vector["sec1"]), vector["pub2"])
    assert key.hex() == vector["conversation_key"]


@pytest.mark.parametrize("vector", INVALID["get_conversation_key"], ids=lambda v: v["note"])
def test_invalid_conversation_keys(vector: dict[str, str]) -> None:
    with pytest.raises(PeerMisbehaved) as caught:
        nip44.conversation_key(bytes.fromhex(vector["sec1"]), vector["pub2"])
    assert caught.value.code == "bad_key"


def test_message_keys() -> None:
    key = bytes.fromhex(VALID["get_message_keys"]["conversation_key"])
    for vector in VALID["get_message_keys"]["keys"]:
        got = nip44.message_keys(key, bytes.fromhex(vector["nonce"]))
        assert [part.hex() for part in got] == [
            vector["chacha_key"],
            vector["chacha_nonce"],
            vector["hmac_key"],
        ]


def test_padded_lengths() -> None:
    for size, padded in VALID["calc_padded_len"]:
        assert nip44.padded_length(size) == padded


@pytest.mark.parametrize("vector", VALID["encrypt_decrypt"])
def test_encrypt_and_decrypt(vector: dict[str, str]) -> None:
    ours, theirs = bytes.fromhex(vector["sec1"]), bytes.fromhex(vector["sec2"])
    key = nip44.conversation_key(ours, public_key(theirs))
    assert key == nip44.conversation_key(theirs, public_key(ours))
    assert key.hex() == vector["conversation_key"]
    plaintext = vector["plaintext"].encode()
    assert nip44.encrypt(key, plaintext, bytes.fromhex(vector["nonce"])) == vector["payload"]
    assert nip44.decrypt(key, vector["payload"]) == plaintext


@pytest.mark.parametrize("vector", VALID["encrypt_decrypt_long_msg"])
def test_long_messages(vector: dict[str, str]) -> None:
    key = bytes.fromhex(vector["conversation_key"])
    plaintext = (vector["pattern"] * int(vector["repeat"])).encode()
    assert hashlib.sha256(plaintext).hexdigest() == vector["plaintext_sha256"]
    payload = nip44.encrypt(key, plaintext, bytes.fromhex(vector["nonce"]))
    assert hashlib.sha256(payload.encode()).hexdigest() == vector["payload_sha256"]
    assert nip44.decrypt(key, payload) == plaintext


@pytest.mark.parametrize("size", INVALID["encrypt_msg_lengths"])
def test_invalid_plaintext_lengths(size: int) -> None:
    with pytest.raises(ValueError, match="NIP-44 takes"):
        nip44.encrypt(KEY, bytes(size), NONCE)


@pytest.mark.parametrize("vector", INVALID["decrypt"], ids=lambda v: v["note"])
def test_invalid_payloads(vector: dict[str, str]) -> None:
    with pytest.raises(PeerMisbehaved) as caught:
        nip44.decrypt(bytes.fromhex(vector["conversation_key"]), vector["payload"])
    assert caught.value.code in {"bad_payload", "unknown_encryption"}


def test_every_flipped_byte_is_noticed() -> None:
    data = base64.b64decode(nip44.encrypt(KEY, b"attack at dawn", NONCE))
    for index in range(len(data)):
        changed = bytearray(data)
        changed[index] ^= 1
        with pytest.raises(PeerMisbehaved):
            nip44.decrypt(KEY, base64.b64encode(changed).decode())


def test_non_ascii_payload_is_refused() -> None:
    with pytest.raises(PeerMisbehaved) as caught:
        nip44.decrypt(KEY, "é" * 200)
    assert caught.value.code == "bad_payload"


@pytest.mark.parametrize("text", ["x", "né \U0001f389", "long " * 4000])
def test_nostr_sdk_and_we_read_each_other(text: str) -> None:
    mine = hashlib.sha256(b"mine").digest()
    theirs = nostr_sdk.Keys.generate()
    key = nip44.conversation_key(mine, theirs.public_key().to_hex())
    my_public = nostr_sdk.PublicKey.parse(public_key(mine))
    payload = nip44.encrypt(key, text.encode(), NONCE)
    assert nostr_sdk.nip44_decrypt(theirs.secret_key(), my_public, payload) == text
    back = nostr_sdk.nip44_encrypt(theirs.secret_key(), my_public, text, nostr_sdk.Nip44Version.V2)
    assert nip44.decrypt(key, back) == text.encode()
