"""Values of a WireGuard device."""

from __future__ import annotations

import subprocess
from base64 import b64encode
from ipaddress import ip_network

import pytest

from nostrvpn.wireguard.device import MAX_ALLOWED_IPS, Device, Peer, SecretKey, key_bytes

PRIVATE = SecretKey(bytes(range(32)))
PEER_KEY = SecretKey(bytes([7] * 32)).public_key
OTHER_KEY = SecretKey(bytes([8] * 32)).public_key


def peer(public_key: str = PEER_KEY, *prefixes: str) -> Peer:
    return Peer(public_key, frozenset(map(ip_network, prefixes)))


def test_public_key_is_what_wg_says() -> None:
    said = subprocess.run(
        ["wg", "pubkey"], input=PRIVATE.base64, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == PRIVATE.public_key


def test_a_clamped_key_has_the_same_public_key() -> None:
    clamped = bytearray(PRIVATE.raw)
    clamped[0] &= 248
    clamped[31] = clamped[31] & 127 | 64
    assert SecretKey(bytes(clamped)).public_key == PRIVATE.public_key


def test_secrets_do_not_show() -> None:
    device = Device(PRIVATE, peers=(Peer(PEER_KEY, frozenset(), preshared_key=PRIVATE),))
    for text in (repr(device), str(device), f"{device.private_key}"):
        assert PRIVATE.base64 not in text
        assert repr(PRIVATE.raw) not in text
        assert PRIVATE.raw.hex() not in text
    assert repr(PRIVATE) == "<redacted>"


def test_secret_keys_compare_by_value() -> None:
    assert SecretKey(bytes(range(32))) == PRIVATE
    assert len({PRIVATE, SecretKey(bytes(range(32)))}) == 1
    assert SecretKey(bytes(32)) != PRIVATE
    assert PRIVATE.raw != PRIVATE


@pytest.mark.parametrize("size", [0, 31, 33])
def test_secret_key_has_32_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        SecretKey(bytes(size))


@pytest.mark.parametrize(
    "key",
    [
        "",
        "x",
        PEER_KEY[:-1],
        PEER_KEY + "=",
        PEER_KEY + "\n",
        b64encode(bytes(31)).decode(),
        "*" + PEER_KEY[1:],
        # The last character's low bits are not part of the key: a second spelling of the same one.
        PEER_KEY[:-2] + chr(ord(PEER_KEY[-2]) + 1) + "=",
    ],
)
def test_key_bytes_refuses(key: str) -> None:
    with pytest.raises(ValueError, match="not a WireGuard key"):
        key_bytes(key)


@pytest.mark.parametrize("keepalive", [-1, 65536])
def test_peer_refuses_a_keepalive_out_of_range(keepalive: int) -> None:
    with pytest.raises(ValueError, match="keepalive"):
        Peer(PEER_KEY, frozenset(), persistent_keepalive=keepalive)


def test_peer_refuses_the_zero_key_and_too_many_addresses() -> None:
    with pytest.raises(ValueError, match="zero"):
        peer(b64encode(bytes(32)).decode())
    many = frozenset(ip_network(f"10.{i >> 8}.{i & 255}.0/32") for i in range(MAX_ALLOWED_IPS + 1))
    with pytest.raises(ValueError, match="allowed addresses"):
        Peer(PEER_KEY, many)


def test_device_refuses_what_wireguard_cannot_hold() -> None:
    with pytest.raises(ValueError, match="twice"):
        Device(PRIVATE, peers=(peer(), peer()))
    with pytest.raises(ValueError, match="own key"):
        Device(PRIVATE, peers=(peer(PRIVATE.public_key),))
    with pytest.raises(ValueError, match="same allowed"):
        Device(PRIVATE, peers=(peer(PEER_KEY, "10.0.0.1/32"), peer(OTHER_KEY, "10.0.0.1/32")))
    with pytest.raises(ValueError, match="port"):
        Device(PRIVATE, listen_port=65536)
    with pytest.raises(ValueError, match="fwmark"):
        Device(PRIVATE, fwmark=1 << 32)


def test_preshared_key_of() -> None:
    device = Device(PRIVATE, peers=(Peer(PEER_KEY, frozenset(), preshared_key=PRIVATE),))
    assert device.preshared_key_of(PEER_KEY) == PRIVATE
    with pytest.raises(ValueError, match="no preshared key"):
        device.preshared_key_of(OTHER_KEY)
