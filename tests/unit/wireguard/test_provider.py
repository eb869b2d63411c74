"""A provider's wg-quick file: what is taken from it, what is refused, and no key in any text."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

import pytest

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved, UsageError
from nostrvpn.wireguard.device import SecretKey
from nostrvpn.wireguard.provider import Provider, parse_provider

PRIVATE, SHARED = SecretKey(bytes(range(1, 33))), SecretKey(bytes(range(40, 72)))
PUBLIC = SecretKey(bytes(range(2, 34))).public_key
FILE = f"""
[Interface]
# from the provider's page
PrivateKey = {PRIVATE.base64}
Address = 10.2.0.2/32, fd00::2/128
DNS = 10.2.0.1

[Peer]   # theirs
PublicKey = {PUBLIC}
PresharedKey = {SHARED.base64}
AllowedIPs = 0.0.0.0/0, ::/0
Endpoint = vpn.example:51820
PersistentKeepalive = 25
"""


def test_a_providers_file_is_read() -> None:
    for text in (FILE, FILE.replace("\n", "\r\n")):
        provider, host = parse_provider(text)
        assert host == "vpn.example"
        assert provider.private_key == PRIVATE
        assert provider.peer.public_key == PUBLIC
        assert provider.peer.preshared_key == SHARED
        assert provider.peer.persistent_keepalive == 25
        assert provider.peer.allowed_ips == {ip_network("0.0.0.0/0"), ip_network("::/0")}
        assert provider.addresses == (ip_interface("10.2.0.2/32"), ip_interface("fd00::2/128"))
        assert provider.dns == (ip_address("10.2.0.1"),)
        assert provider.mtu == 1420
        assert provider.versions == {4, 6}
        assert Provider.from_json(provider.to_json()) == provider


@pytest.mark.parametrize("endpoint", ["[2001:db8::1]:443", "192.0.2.1:443"])
def test_an_endpoint_may_be_an_address(endpoint: str) -> None:
    provider, host = parse_provider(FILE.replace("vpn.example:51820", endpoint))
    assert provider.peer.endpoint == Endpoint(ip_address(host), 443)


def test_what_it_does_not_carry_is_not_carried() -> None:
    text = FILE.replace("0.0.0.0/0, ::/0", "0.0.0.0/1, 128.0.0.0/1, 2000::/3")
    assert parse_provider(text)[0].versions == {4}
    assert parse_provider(FILE.replace(", fd00::2/128", ""))[0].versions == {4}


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        *(
            ("[Peer]", f"{name} = touch /tmp/ran\n[Peer]", "never run")
            for name in ("PreUp", "PostUp", "PreDown", "postdown")
        ),
        ("[Peer]", "SaveConfig = true\n[Peer]", "saveconfig"),
        ("[Peer]", "Table = 1234\n[Peer]", "Table"),
        ("AllowedIPs = 0.0.0.0/0, ::/0", "AllowedIPs = 10.0.0.0/8", "everything"),
        ("Endpoint = vpn.example:51820\n", "", "Endpoint"),
        ("vpn.example:51820", "vpn.example:99999", "wg-quick|WireGuard"),
        (f"PrivateKey = {PRIVATE.base64}", "", "PrivateKey"),
        (f"PrivateKey = {PRIVATE.base64}", f"PrivateKey = {PRIVATE.base64[:-4]}", "wg-quick"),
        ("Address = 10.2.0.2/32, fd00::2/128", "Address = nowhere", "wg-quick"),
        ("DNS = 10.2.0.1", "MTU = 20", "WireGuard"),
        (FILE[FILE.index("[Peer]") :], "", "one"),
        (FILE, "", "PrivateKey"),
    ],
)
def test_what_is_refused_is_said_without_a_key(old: str, new: str, word: str) -> None:
    with pytest.raises(UsageError, match=word) as refused:
        parse_provider(FILE.replace(old, new))
    said = f"{refused.value} {refused.value.hint}"
    assert not any(key.base64[:8] in said for key in (PRIVATE, SHARED))


def test_no_key_is_shown() -> None:
    provider, _ = parse_provider(FILE)
    assert PRIVATE.base64 not in repr(provider)
    assert SHARED.base64 not in repr(provider)


@pytest.mark.parametrize(
    "key", ["private_key", "public_key", "endpoint", "allowed", "addresses", "mtu"]
)
def test_a_damaged_record_is_refused(key: str) -> None:
    stored = parse_provider(FILE)[0].to_json()
    damages: tuple[object, ...] = (None, "x", 7, [])
    for bad in damages:
        with pytest.raises(PeerMisbehaved):
            Provider.from_json(stored | {key: bad})
    with pytest.raises(PeerMisbehaved):
        Provider.from_json(None)
