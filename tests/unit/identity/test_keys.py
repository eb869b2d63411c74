"""Derivation against committed vectors, an HKDF of our own, and nostr-sdk as a referee."""

from __future__ import annotations

import hashlib
import hmac
import json
import pickle
from base64 import b64decode
from pathlib import Path
from typing import Any

import nostr_sdk
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.identity.keys import (
    BadKey,
    RootSecret,
    npub,
    parse_npub,
    parse_nsec,
    wireguard_public_key,
)

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "docs/protocol/vectors/identity.json").read_text()
)
ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141


def hkdf(root: bytes, info: str, length: int) -> bytes:
    """RFC 5869 once more, from the standard library alone."""
    key = hmac.digest(b"nostrvpn", root, hashlib.sha256)
    block = output = b""
    counter = 1
    while len(output) < length:
        block = hmac.digest(key, block + info.encode() + bytes([counter]), hashlib.sha256)
        output += block
        counter += 1
    return output[:length]


@pytest.mark.parametrize("vector", VECTORS["derivation"], ids=lambda vector: vector["npub"][:12])
def test_vectors(vector: dict[str, Any]) -> None:
    root = RootSecret(bytes.fromhex(vector["root"]))
    assert root.public_key == vector["public_key"]
    assert root.npub == vector["npub"] == npub(root.public_key)
    assert root.nsec() == vector["nsec"]
    assert parse_nsec(vector["nsec"]) == parse_nsec(vector["root"]) == root
    assert parse_npub(vector["npub"]) == vector["public_key"]
    for key in vector["wireguard"]:
        private = root.wireguard_private_key(key["epoch"])
        assert private == b64decode(key["private_key"])
        assert wireguard_public_key(private) == key["public_key"]
    for payment in vector["payment"]:
        assert root.payment_key(payment["epoch"]).hex() == payment["secret"]
    assert root.relay_secret().hex() == vector["relay"]
    assert root.volunteer_key().hex() == vector["volunteer"]


@pytest.mark.parametrize("vector", VECTORS["derivation"], ids=lambda vector: vector["npub"][:12])
def test_vectors_by_other_means(vector: dict[str, Any]) -> None:
    keys = nostr_sdk.Keys.parse(vector["nsec"])
    assert keys.secret_key().to_hex() == vector["root"]
    assert keys.public_key().to_bech32() == vector["npub"]
    for key in vector["wireguard"]:
        raw = bytearray(
            hkdf(bytes.fromhex(vector["root"]), f"nostrvpn/wireguard/v1/{key['epoch']}", 32)
        )
        raw[0] &= 248
        raw[31] = (raw[31] & 127) | 64
        assert bytes(raw) == b64decode(key["private_key"])
        public = X25519PrivateKey.from_private_bytes(bytes(raw)).public_key().public_bytes_raw()
        assert public == b64decode(key["public_key"])
    wide = int.from_bytes(hkdf(bytes.fromhex(vector["root"]), "nostrvpn/payment/v1/0", 48), "big")
    assert wide % (ORDER - 1) + 1 == int(vector["payment"][0]["secret"], 16)
    wide = int.from_bytes(hkdf(bytes.fromhex(vector["root"]), "nostrvpn/volunteer/v1/0", 48), "big")
    assert wide % (ORDER - 1) + 1 == int(vector["volunteer"], 16)
    assert hkdf(bytes.fromhex(vector["root"]), "nostrvpn/relay/v1/0", 32).hex() == vector["relay"]


@given(st.integers(1, ORDER - 1))
def test_text_forms_round_trip(number: int) -> None:
    root = RootSecret(number.to_bytes(32, "big"))
    assert parse_nsec(root.nsec()) == root
    assert parse_nsec(f"  {root.nsec().upper()}\n") == root
    assert parse_npub(root.npub) == root.public_key


def test_the_secret_never_shows() -> None:
    root = RootSecret(bytes(range(1, 33)))
    shown = f"{root} {root!r} {[root]} {vars(type(root)).keys()}"
    assert root.reveal().hex() not in shown
    assert root.nsec() not in shown
    with pytest.raises(TypeError):
        pickle.dumps(root)


@pytest.mark.parametrize("secret", [bytes(32), ORDER.to_bytes(32, "big"), b"\xff" * 32, b"x", b""])
def test_numbers_that_are_no_secret(secret: bytes) -> None:
    with pytest.raises(BadKey, match="not a valid secret key"):
        RootSecret(secret)


GOOD = "npub1zutzeysacnf9rru6zqwmxd54mud0k44tst6l70ja5mhv8jjumytsd2x7nu"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must start with npub1"),
        ("bob", "must start with npub1"),
        ("note1" + GOOD[5:], "must start with npub1"),
        (GOOD[:-1] + "q", "checksum"),
        (GOOD[:-1], "checksum"),
        (GOOD + GOOD + GOOD, "too long"),
        (GOOD[:-5] + "XYzab", "checksum"),
        ("ünpub", "must start with npub1"),
    ],
)
def test_bad_npubs(text: str, reason: str) -> None:
    with pytest.raises(BadKey, match=reason) as caught:
        parse_npub(text)
    assert "nostrvpn id" in caught.value.hint


def test_an_x_that_is_no_point_is_refused() -> None:
    # 5 is not the x coordinate of any point of secp256k1.
    with pytest.raises(BadKey):
        parse_npub(npub((5).to_bytes(32, "big").hex()))


def test_mixed_up_keys_are_told_without_repeating_a_secret() -> None:
    root = RootSecret(bytes(range(1, 33)))
    with pytest.raises(BadKey, match="secret key") as caught:
        parse_npub(root.nsec())
    assert root.nsec() not in str(caught.value) + caught.value.hint
    with pytest.raises(BadKey, match="public key"):
        parse_nsec(root.npub)
    damaged = root.nsec()[:-1] + ("q" if root.nsec()[-1] != "q" else "p")
    for text in (damaged, root.nsec() + "aa", "z" * 64, "nsec1"):
        with pytest.raises(BadKey) as caught:
            parse_nsec(text)
        assert text not in str(caught.value) + caught.value.hint


def test_epochs_give_unrelated_keys() -> None:
    root = RootSecret(bytes(range(1, 33)))
    keys = {root.wireguard_private_key(epoch) for epoch in range(20)}
    keys |= {root.payment_key(epoch) for epoch in range(20)}
    assert len(keys) == 40
    with pytest.raises(ValueError, match="epoch"):
        root.wireguard_private_key(-1)
