"""Node -> what the kernel should look like: the WireGuard device and the interface around it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network, ip_interface, ip_network
from types import MappingProxyType

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.host.booth import BoothWay
from nostrvpn.host.bought import Bought
from nostrvpn.host.exit_meter import ExitMeter
from nostrvpn.host.exit_routing import ExitRouting
from nostrvpn.host.firewall import Firewall, Guard, Pin
from nostrvpn.host.inbound import Inbound
from nostrvpn.host.shield import Shield
from nostrvpn.host.sold import Sold
from nostrvpn.host.state import (
    FWMARK,
    IPV6_MIN_MTU,
    MIN_MTU,
    HostState,
    IPInterface,
    IPNetwork,
    OuterLimit,
    RouteLimit,
)
from nostrvpn.host.subnet_gateway import Gateway
from nostrvpn.host.upstream import Upstream
from nostrvpn.mesh.addressing import host_networks, ipv4_prefix, ipv6_prefix
from nostrvpn.mesh.roster import Roster
from nostrvpn.node.peers import Peer
from nostrvpn.paths.path_mtu import LARGEST_PROBE, inner_mtu
from nostrvpn.wireguard.device import Device, SecretKey
from nostrvpn.wireguard.device import Peer as TunnelPeer

__all__ = ["FWMARK", "Desired", "TunnelSettings", "desired_state", "overlapping_route"]

# Spec: the headers of IPv6 and TCP without options.
IPV6_TCP_HEADERS = 60

EVERYWHERE: tuple[IPNetwork, ...] = (ip_network("0.0.0.0/0"), ip_network("::/0"))


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
    """The state the reconciler brings the kernel to.

    ``awake``: the endpoints in it that are a peer's own, by the peer's (Nostr) public key.
    ``inbound`` None: nobody asks for a filter. ``gateway``: what is forwarded into networks behind us.
    ``shield`` and ``exit_routing``: what may leave while an exit is used, and the way to it.
    ``shield_at_boot``: what may, when the host starts, until there is a daemon.
    ``exit_meter``: how much our own guests get. ``booths``: commands that run through an exit.
    ``upstream``: the provider that our guests leave by, and its WireGuard device; None if they leave by
    the host's own uplink. ``sold``: what strangers pay for; ``bought``: the exits that we pay for.
    """

    device: Device
    host: HostState
    firewall: Firewall = field(default_factory=Firewall)
    awake: Mapping[str, Endpoint] = field(default_factory=dict)
    inbound: Inbound | None = None
    gateway: Gateway = field(default_factory=Gateway)
    shield: Shield = field(default_factory=Shield)
    exit_routing: ExitRouting = field(default_factory=ExitRouting)
    shield_at_boot: Shield = field(default_factory=Shield)
    exit_meter: ExitMeter = field(default_factory=ExitMeter)
    booths: BoothWay = field(default_factory=BoothWay)
    upstream: Upstream | None = None
    upstream_device: Device | None = None
    sold: Sold | None = None
    bought: tuple[Bought, ...] = ()


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
    subnets: Mapping[IPNetwork, str] = MappingProxyType({}),
    exit_peer: str | None = None,
) -> Desired:
    """Return the device and interface for a node ``me``.

    ``ipv4`` False leaves the overlay's IPv4 out; ``complete`` lists also the peers that WireGuard is
    not told yet. ``subnets``: networks behind members, each with the member (public key) to send to.
    ``exit_peer``: the member that is given everything else.
    """
    addresses: list[IPInterface] = []
    routes: list[IPNetwork] = []
    tunnel_peers: list[TunnelPeer] = []
    awake: dict[str, Endpoint | None] = {}
    members: list[Peer] = []
    if roster is not None and me in roster.members:
        members = [peer for peer in peers if peer.public_key in roster.members]
        own = roster.address(me)
        addresses.append(ip_interface(f"{own.ipv6}/128"))
        routes.append(ipv6_prefix(roster.network_id))
        if ipv4:
            addresses.append(ip_interface(f"{own.ipv4}/32"))
            routes.append(ipv4_prefix(roster.network_id))
        routes += subnets
        behind = _behind(subnets)
        tunnel_peers = [
            _tunnel_peer(peer, _prefixes(peer, roster, behind), settings.keepalive, now)
            for peer in members
            if (complete and peer.wireguard_key is not None) or _is_due(peer, me)
        ]
        if exit_peer is not None:
            tunnel_peers = _with_exit(tunnel_peers, exit_peer, members, routes)
        awake = {peer.public_key: _endpoint(peer, now) for peer in members}
    device = Device(settings.private_key, settings.listen_port, FWMARK, tuple(tunnel_peers))
    limits = _peer_limits(members, roster, settings.mtu, _behind(subnets), ipv4=ipv4)
    if exit_peer is not None:
        limits = _within(limits, _exit_mtu(members, exit_peer, settings.mtu))
    mtu = max([settings.mtu, *(limit.mtu for limit in limits)])
    if mtu > settings.mtu:
        # One peer's wide path widens the link; to all others no more goes than was configured.
        limited = {limit.network for limit in limits}
        limits += [RouteLimit(route, settings.mtu) for route in routes if route not in limited]
    host = HostState(
        settings.interface,
        mtu,
        frozenset(addresses),
        frozenset(routes) | {limit.network for limit in limits},
        settings.alias,
        True,
        frozenset(limits),
        _outer_limits(members),
    )
    firewall = _firewall(members, settings.listen_port)
    return Desired(device, host, firewall, {k: e for k, e in awake.items() if e is not None})


def _firewall(peers: Iterable[Peer], listen_port: int) -> Firewall:
    guards = dict(peer.guard for peer in peers if peer.guard is not None)
    pins = {peer.pin[1]: peer.pin[0] for peer in peers if peer.pin is not None}
    return Firewall(
        listen_port if pins else 0,
        frozenset(Guard(old, new) for old, new in guards.items()),
        frozenset(Pin(port, remote) for remote, port in pins.items()),
    )


def _inner(peer: Peer) -> int | None:
    """Return the largest packet inside the tunnel that reaches the peer whole; None if unknown."""
    if peer.mtu is None or peer.endpoint is None:
        return None
    return inner_mtu(peer.mtu, ipv6=peer.endpoint.ip.version == 6)


def _behind(subnets: Mapping[IPNetwork, str]) -> dict[str, list[IPNetwork]]:
    """Return the networks behind each router, by its public key."""
    found: dict[str, list[IPNetwork]] = {}
    for network, router in subnets.items():
        found.setdefault(router, []).append(network)
    return found


def _prefixes(
    peer: Peer, roster: Roster, behind: Mapping[str, list[IPNetwork]]
) -> frozenset[IPNetwork]:
    """Return what WireGuard sends to a peer, and takes from it: its addresses and its subnets."""
    own = host_networks(roster.address(peer.public_key))
    return frozenset({*own, *behind.get(peer.public_key, ())})


def _with_exit(
    peers: Iterable[TunnelPeer],
    exit_peer: str,
    members: Iterable[Peer],
    routes: Iterable[IPNetwork],
) -> list[TunnelPeer]:
    """Return the peers with everything for the exit that nobody else has.

    Both versions always: what it does not carry is unreachable by routing. What is the mesh's own stays
    so: packets for a member that WireGuard is not told of must not go to the exit instead, nor may the
    exit send in the name of such a member. They belong to nobody.
    """
    key = next((p.wireguard_key for p in members if p.public_key == exit_peer), None)
    if key is None or all(peer.public_key != key for peer in peers):
        return list(peers)
    taken = frozenset(prefix for peer in peers for prefix in peer.allowed_ips)
    nobody = TunnelPeer(_nobodys_key("the mesh"), frozenset(routes) - taken, 0, None)
    found = [
        replace(peer, allowed_ips=peer.allowed_ips | set(EVERYWHERE))
        if peer.public_key == key
        else peer
        for peer in peers
    ]
    return [*found, nobody]


def _exit_mtu(members: Iterable[Peer], exit_peer: str, configured: int) -> int:
    """Return the largest packet (bytes) that fits an exit: what goes there has the link's MTU."""
    inner = next((_inner(peer) for peer in members if peer.public_key == exit_peer), None)
    return max(configured, inner or 0)


def _within(limits: Iterable[RouteLimit], most: int) -> list[RouteLimit]:
    return [replace(limit, mtu=min(limit.mtu, most)) for limit in limits]


def _peer_limits(
    peers: Iterable[Peer],
    roster: Roster | None,
    configured: int,
    behind: Mapping[str, list[IPNetwork]],
    *,
    ipv4: bool,
) -> list[RouteLimit]:
    """Return routes of its own for each peer whose packets need another limit than the link's."""
    limits = []
    for peer in peers:
        inner = _inner(peer)
        if roster is None or inner is None or peer.endpoint is None or inner == configured:
            continue
        most = inner_mtu(LARGEST_PROBE, ipv6=peer.endpoint.ip.version == 6)
        if most <= inner < configured:
            # More was not looked for, but somebody configured a larger link.
            continue
        own_ipv6, own_ipv4 = host_networks(roster.address(peer.public_key))
        mss = inner - IPV6_TCP_HEADERS if inner < IPV6_MIN_MTU else None
        targets: list[IPNetwork] = [own_ipv6, own_ipv4] if ipv4 else [own_ipv6]
        limits += [
            RouteLimit(network, max(inner, IPV6_MIN_MTU), mss)
            if network.version == 6
            else RouteLimit(network, max(inner, MIN_MTU))
            for network in [*targets, *behind.get(peer.public_key, ())]
        ]
    return limits


def _outer_limits(peers: Iterable[Peer]) -> frozenset[OuterLimit]:
    """Return what must leave in fragments: paths too small for the least IPv6 packet."""
    limits: dict[IPAddress, int] = {}
    # Where one peer's packets pass whole, another one behind the same address (of a relay, of a NAT)
    # may not have them cut: relays drop fragments.
    wide: set[IPAddress] = set()
    for peer in peers:
        inner = _inner(peer)
        if inner is None or peer.mtu is None or peer.endpoint is None:
            continue
        ip = peer.endpoint.ip
        if inner >= IPV6_MIN_MTU:
            wide.add(ip)
            continue
        # Known of a path of the other family, if it is less than any of this one can be.
        mtu = max(peer.mtu, IPV6_MIN_MTU if ip.version == 6 else MIN_MTU)
        if not ip.is_loopback:
            limits[ip] = min(mtu, limits.get(ip, mtu))
    return frozenset(OuterLimit(ip, mtu) for ip, mtu in limits.items() if ip not in wide)


def _is_due(peer: Peer, me: str) -> bool:
    """Whether WireGuard should know this peer by now.

    A packet for a peer without endpoint makes userspace WireGuard count a handshake as sent and wait
    5 s for its answer. So a peer is told to WireGuard with its endpoint, or when the other side is the
    one to start the handshake, which then brings the endpoint. A sleeping one's is the doorbell.
    """
    if peer.wireguard_key is None:
        return peer.doorbell is not None
    if peer.doorbell is not None:
        return True
    if peer.endpoint is not None or peer.handshake_wall is not None:
        return True
    return peer.heard is not None and not peer.starts_handshake(me)


def _tunnel_peer(
    peer: Peer, prefixes: frozenset[IPNetwork], keepalive: int, now: float
) -> TunnelPeer:
    endpoint, generation = _endpoint(peer, now), peer.endpoint_generation
    if endpoint is None:
        keepalive, generation = 0, 0 if peer.doorbell is None else -1 - generation
    return TunnelPeer(
        peer.wireguard_key or _nobodys_key(peer.public_key),
        prefixes,
        # Keepalive begins with the endpoint: WireGuard then starts the handshake at once.
        keepalive,
        endpoint or peer.doorbell,
        generation,
        None,
        # What the peer sends late must not lead our packets past the doorbell.
        peer.endpoint is None and peer.doorbell is not None,
    )


def _endpoint(peer: Peer, now: float) -> Endpoint | None:
    """Return the peer's own endpoint, if WireGuard is to know it."""
    held = peer.held_until is not None and now < peer.held_until
    return None if held else peer.endpoint


def _nobodys_key(public_key: str) -> str:
    """Return what stands for the WireGuard key of a sleeping peer that has not told it yet.

    A packet for the peer rings all the same. Nobody has the private key, so nothing ever gets through.
    """
    return b64encode(sha256(f"nostrvpn: asleep: {public_key}".encode()).digest()).decode()
