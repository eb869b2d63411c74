"""Node -> what the kernel should look like: the WireGuard device and the interface around it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_interface, ip_network

from nostrvpn.host.state import HostState, IPInterface, IPNetwork
from nostrvpn.mesh.addressing import ipv4_prefix, ipv6_prefix
from nostrvpn.mesh.roster import Roster
from nostrvpn.node.peers import Peer
from nostrvpn.wireguard.device import Device, SecretKey
from nostrvpn.wireguard.device import Peer as TunnelPeer

__all__ = ["FWMARK", "Desired", "TunnelSettings", "desired_state", "overlapping_route"]

# In the third byte, away from the marks other VPN programs use (Tailscale 0x40000 and 0x80000,
# NetBird 0x1BD00, Mullvad 0x6d6f6c65). WireGuard's own packets and every probe carry it.
FWMARK = 0x00A50000


@dataclass(frozen=True, slots=True)
class TunnelSettings:
    """What the configuration and the identity fix for one run. ``interface`` is also our mark."""

    interface: str
    alias: str
    mtu: int
    private_key: SecretKey
    public_key: str
    listen_port: int
    keepalive: int


@dataclass(frozen=True, slots=True)
class Desired:
    """The state the reconciler brings the kernel to."""

    device: Device
    host: HostState


def overlapping_route(
    roster: Roster, routes: Iterable[IPv4Network | IPv6Network]
) -> IPv4Network | None:
    """Return a route of the host that overlaps the overlay's IPv4 prefix, or None."""
    prefix = ipv4_prefix(roster.network_id)
    for route in routes:
        if isinstance(route, IPv4Network) and route.prefixlen >= 8 and route.overlaps(prefix):
            return route
    return None


def desired_state(
    settings: TunnelSettings,
    me: str,
    roster: Roster | None,
    peers: Iterable[Peer],
    *,
    ipv4: bool,
    now: float,
    complete: bool = False,
) -> Desired:
    """Return the device and interface for a node ``me``.

    ``ipv4`` False leaves the overlay's IPv4 out; ``complete`` lists also the peers that WireGuard is
    not told yet.
    """
    addresses: list[IPInterface] = []
    routes: list[IPNetwork] = []
    tunnel_peers: list[TunnelPeer] = []
    if roster is not None and me in roster.members:
        own = roster.address(me)
        addresses.append(ip_interface(f"{own.ipv6}/128"))
        routes.append(ipv6_prefix(roster.network_id))
        if ipv4:
            addresses.append(ip_interface(f"{own.ipv4}/32"))
            routes.append(ipv4_prefix(roster.network_id))
        tunnel_peers = [
            _tunnel_peer(peer, roster, settings.keepalive, now)
            for peer in peers
            if peer.public_key in roster.members
            and peer.wireguard_key is not None
            and (complete or _is_due(peer, me))
        ]
    device = Device(settings.private_key, settings.listen_port, FWMARK, tuple(tunnel_peers))
    host = HostState(
        settings.interface,
        settings.mtu,
        frozenset(addresses),
        frozenset(routes),
        settings.alias,
        True,
    )
    return Desired(device, host)


def _is_due(peer: Peer, me: str) -> bool:
    """Whether WireGuard should know this peer by now.

    A packet for a peer without endpoint makes userspace WireGuard count a handshake as sent and wait
    5 s for its answer. So a peer is told to WireGuard with its endpoint, or when the other side is the
    one to start the handshake, which then brings the endpoint.
    """
    if peer.endpoint is not None or peer.handshake_wall is not None:
        return True
    return peer.heard is not None and not peer.starts_handshake(me)


def _tunnel_peer(peer: Peer, roster: Roster, keepalive: int, now: float) -> TunnelPeer:
    assert peer.wireguard_key is not None
    address = roster.address(peer.public_key)
    held = peer.held_until is not None and now < peer.held_until
    endpoint = None if held else peer.endpoint
    return TunnelPeer(
        peer.wireguard_key,
        frozenset({ip_network(f"{address.ipv6}/128"), ip_network(f"{address.ipv4}/32")}),
        # Keepalive begins with the endpoint: WireGuard then starts the handshake at once.
        keepalive if endpoint is not None else 0,
        endpoint,
        0 if endpoint is None else peer.endpoint_generation,
        None,
    )
