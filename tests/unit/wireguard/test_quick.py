"""The wg-quick export, read back by a parser that shares no code with the writer."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest
from wgconfig import WGConfig

from nostrvpn.endpoint import Endpoint
from nostrvpn.wireguard.device import Device, Peer, SecretKey
from nostrvpn.wireguard.quick import render_quick

PRIVATE = SecretKey(bytes(range(32)))
PSK = SecretKey(bytes([9] * 32))
PEER = SecretKey(bytes([1] * 32)).public_key
OTHER = SecretKey(bytes([2] * 32)).public_key


@pytest.fixture
def parsed(tmp_path: Path) -> WGConfig:
    device = Device(
        PRIVATE,
        51820,
        7,
        (
            Peer(
                PEER,
                frozenset(map(ip_network, ("10.0.0.2/32", "fd00::2/128"))),
                25,
                Endpoint(ip_address("2001:db8::1"), 51821),
                1,
                PSK,
            ),
            Peer(OTHER, frozenset([ip_network("10.0.0.3/32")])),
        ),
    )
    addresses = [ip_interface("10.0.0.1/32"), ip_interface("fd00::1/128")]
    path = tmp_path / "wg.conf"
    path.write_text(render_quick(device, addresses=addresses, mtu=1280))
    config = WGConfig(str(path))
    config.read_file()
    return config


def test_interface(parsed: WGConfig) -> None:
    found = parsed.get_interface()
    assert found["PrivateKey"] == PRIVATE.base64
    assert (found["ListenPort"], found["FwMark"], found["MTU"]) == (51820, 7, 1280)
    assert found["Address"] == ["10.0.0.1/32", "fd00::1/128"]


def test_peers(parsed: WGConfig) -> None:
    peer = parsed.get_peer(PEER)
    assert peer["Endpoint"] == "[2001:db8::1]:51821"
    assert peer["PresharedKey"] == PSK.base64
    assert peer["PersistentKeepalive"] == 25
    assert peer["AllowedIPs"] == ["10.0.0.2/32", "fd00::2/128"]
    other = parsed.get_peer(OTHER)
    assert other["AllowedIPs"] == "10.0.0.3/32"
    assert not {"Endpoint", "PresharedKey", "PersistentKeepalive"} & set(other)
