"""Export of a device as a wg-quick file, for hosts that have no agent."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface

from nostrvpn.endpoint import IPAddress
from nostrvpn.wireguard.device import Device, key_bytes

__all__ = ["render_quick"]


class _BracketedIPv6(IPv6Address):
    """An IPv6 address that prints as wg-quick wants it before a port.

    The library joins host and port with a colon and nothing else, which for IPv6 is ambiguous.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return f"[{super().__str__()}]"


def render_quick(
    device: Device, *, addresses: Iterable[IPv4Interface | IPv6Interface], mtu: int | None = None
) -> str:
    """Return the text of a wg-quick file. It holds the private key: write it with mode 0600."""
    # Imported here: the library brings a QR encoder with it, which only this command needs.
    from wireguard_tools import WireguardConfig, WireguardKey, WireguardPeer

    config = WireguardConfig(
        private_key=WireguardKey(device.private_key.raw),
        listen_port=device.listen_port or None,
        fwmark=device.fwmark or None,
        addresses=sorted(map(str, addresses)),
        mtu=mtu,
    )
    for peer in device.peers:
        config.add_peer(
            WireguardPeer(
                public_key=WireguardKey(key_bytes(peer.public_key)),
                preshared_key=WireguardKey(peer.preshared_key.raw) if peer.preshared_key else None,
                endpoint_host=_host(peer.endpoint.ip) if peer.endpoint else None,
                endpoint_port=peer.endpoint.port if peer.endpoint else None,
                persistent_keepalive=peer.persistent_keepalive or None,
                allowed_ips=sorted(map(str, peer.allowed_ips)),
            )
        )
    text: str = config.to_wgconfig(wgquick_format=True)
    return text


def _host(ip: IPAddress) -> IPAddress:
    return _BracketedIPv6(ip) if isinstance(ip, IPv6Address) else ip
