"""The answer of the control command ``export`` as a wg-quick file."""

from __future__ import annotations

from base64 import b64decode
from ipaddress import ip_interface, ip_network
from typing import Any

from nostrvpn.endpoint import parse_endpoint
from nostrvpn.wireguard.device import Device, Peer, SecretKey
from nostrvpn.wireguard.quick import render_quick

__all__ = ["quick_text"]


def quick_text(data: Any) -> str:
    """Return the wg-quick text of an export; it holds the private key."""
    peers = tuple(
        Peer(
            public_key=peer["public_key"],
            allowed_ips=frozenset(ip_network(item) for item in peer["allowed_ips"]),
            persistent_keepalive=peer["persistent_keepalive"],
            endpoint=parse_endpoint(peer["endpoint"]) if peer.get("endpoint") else None,
            endpoint_generation=0,
            preshared_key=None,
        )
        for peer in data["peers"]
    )
    device = Device(
        private_key=SecretKey(b64decode(data["private_key"])),
        listen_port=data["listen_port"],
        fwmark=data["fwmark"],
        peers=peers,
    )
    addresses = [ip_interface(item) for item in data["addresses"]]
    return render_quick(device, addresses=addresses, mtu=data.get("mtu"))
