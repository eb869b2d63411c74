"""The userspace API text."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from nostrvpn.endpoint import Endpoint
from nostrvpn.wireguard.device import Device, ObservedDevice, ObservedPeer, Peer, SecretKey
from nostrvpn.wireguard.diff import PresharedKey, RemovePeer, SetDevice, SetPeer
from nostrvpn.wireguard.uapi import parse_get, render_set, response_errno

PRIVATE = SecretKey(bytes(range(32)))
PSK = SecretKey(bytes([9] * 32))
PEER = SecretKey(bytes([1] * 32)).public_key
PEER_HEX = "a4e09292b651c278b9772c569f5fa9bb13d906b46ab68c9df9dc2b4409f8a209"

# As wireguard-go prints it (peer order, zero handshake and all).
RESPONSE = f"""private_key={PRIVATE.raw.hex()}
listen_port=51820
fwmark=4660
public_key={PEER_HEX}
preshared_key={PSK.raw.hex()}
protocol_version=1
endpoint=[fe80::1%eth0]:51821
last_handshake_time_sec=1700000000
last_handshake_time_nsec=500000000
tx_bytes=148
rx_bytes=92
persistent_keepalive_interval=25
allowed_ip=10.0.0.2/32
allowed_ip=fd00::2/128
public_key={"11" * 32}
preshared_key={"00" * 32}
protocol_version=1
endpoint=[::ffff:192.0.2.7]:9
last_handshake_time_sec=0
last_handshake_time_nsec=0
tx_bytes=0
rx_bytes=0
persistent_keepalive_interval=0
something_new=yes
errno=0

"""


def test_parse_get() -> None:
    found = parse_get(RESPONSE)
    first, second = found.peers
    assert (found.public_key, found.listen_port, found.fwmark) == (
        PRIVATE.public_key,
        51820,
        0x1234,
    )
    assert first == ObservedPeer(
        PEER,
        frozenset([ip_network("10.0.0.2/32"), ip_network("fd00::2/128")]),
        25,
        Endpoint(ip_address("fe80::1"), 51821),
        1700000000.5,
        92,
        148,
        PSK,
    )
    assert second.endpoint == Endpoint(ip_address("192.0.2.7"), 9)
    assert second.last_handshake_wall is None
    assert not second.has_preshared_key


def test_parse_get_of_a_device_nobody_configured() -> None:
    found = parse_get("listen_port=40000\nerrno=0\n\n")
    assert found == ObservedDevice(None, 40000, 0, ())
    assert found.is_bare


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "public_key=zz",
        "public_key=00",
        "public_key=" + "11" * 32 + "\nallowed_ip=10.0.0.1/99",
        "public_key=" + "11" * 32 + "\nendpoint=nowhere",
        "private_key=0102",
        "listen_port=many",
    ],
)
def test_parse_get_refuses_garbage(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the text is for a log, the type is the contract
        parse_get(text)


def test_render_set() -> None:
    device = Device(PRIVATE, 51820, 7, (Peer(PEER, frozenset(), preshared_key=PSK),))
    text = render_set(
        [
            RemovePeer("wg0", SecretKey(bytes([2] * 32)).public_key),
            SetPeer(
                "wg0",
                PEER,
                endpoint=Endpoint(ip_address("2001:db8::1"), 1),
                persistent_keepalive=0,
                preshared_key=PresharedKey.SET,
                allowed_ips=frozenset([ip_network("10.0.0.2/32")]),
                replace_allowed_ips=True,
            ),
            SetDevice("wg0", private_key=True, listen_port=51820, fwmark=7),
        ],
        device,
    )
    assert text == (
        f"set=1\nprivate_key={PRIVATE.raw.hex()}\nlisten_port=51820\nfwmark=7\n"
        "public_key=ce8d3ad1ccb633ec7b70c17814a5c76ecd029685050d344745ba05870e587d59\nremove=true\n"
        f"public_key={PEER_HEX}\nupdate_only=true\npreshared_key={PSK.raw.hex()}\n"
        "endpoint=[2001:db8::1]:1\npersistent_keepalive_interval=0\n"
        "replace_allowed_ips=true\nallowed_ip=10.0.0.2/32\n\n"
    )


def test_render_set_clears_a_preshared_key_with_zeros() -> None:
    text = render_set([SetPeer("wg0", PEER, preshared_key=PresharedKey.CLEAR)], Device(PRIVATE))
    assert f"preshared_key={'00' * 32}\n" in text


def test_render_set_refuses_a_key_that_the_device_lacks() -> None:
    with pytest.raises(ValueError, match="no preshared key"):
        render_set([SetPeer("wg0", PEER, preshared_key=PresharedKey.SET)], Device(PRIVATE))


def test_response_errno() -> None:
    assert response_errno("errno=0\n\n") == 0
    assert response_errno("listen_port=1\nerrno=-98\n\n") == -98
    for text in ("", "listen_port=1\n\n", "errno=\n\n"):
        with pytest.raises(ValueError):  # noqa: PT011 - see above
            response_errno(text)
