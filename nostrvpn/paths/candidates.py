"""Addresses a peer may try to reach us at, and which of the peer's addresses we agree to try."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.paths.settings import PathSettings

__all__ = [
    "MAX_CANDIDATES",
    "Candidate",
    "CandidateKind",
    "LocalAddress",
    "PathKind",
    "Surroundings",
    "candidate_priority",
    "is_private",
    "needs_opener",
    "places",
    "refusal",
    "survey",
]

# Ours. Bounds what one description can make a peer probe; a host with two interfaces and both
# families has about six addresses (innernet sends at most 10, Tailscale some more).
MAX_CANDIDATES = 16
# Ours: host addresses in a description, which leaves room for the reflexive and mapped ones.
MAX_HOST_CANDIDATES = 10

_PRIVATE = tuple(
    IPv4Network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "127.0.0.0/8")
)
_THIS_NETWORK = IPv4Network("0.0.0.0/8")
_CLASS_E = IPv4Network("240.0.0.0/4")


class PathKind(Enum):
    """What a path is, for status. RELAYED goes through a relay, a TURN server or a WebSocket."""

    NONE = "none"
    DIRECT = "direct"
    RELAYED = "relayed"


class CandidateKind(Enum):
    """Where a candidate was learnt (RFC 8445 section 5.1.1)."""

    HOST = "host"
    REFLEXIVE = "srflx"
    PEER_REFLEXIVE = "prflx"
    MAPPED = "mapped"
    STATIC = "static"
    RELAYED = "relay"


# RFC 8445 section 5.1.2.2 recommends 126, 110, 100 and 0; mapped and static are ours, between.
TYPE_PREFERENCE = {
    CandidateKind.HOST: 126,
    CandidateKind.STATIC: 120,
    CandidateKind.MAPPED: 115,
    CandidateKind.PEER_REFLEXIVE: 110,
    CandidateKind.REFLEXIVE: 100,
    CandidateKind.RELAYED: 0,
}


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """An address of this host."""

    ip: IPAddress
    interface: str
    prefixlen: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """An endpoint that may lead to its owner, with the owner's priority for it."""

    kind: CandidateKind
    endpoint: Endpoint
    priority: int


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What this node knows of its own addresses, as its links need it.

    ``reflexive_pending``: the first STUN answer is still on its way.
    """

    candidates: tuple[Candidate, ...] = ()
    prefixes: frozenset[IPv4Network | IPv6Network] = frozenset()
    versions: frozenset[int] = frozenset()
    reflexive_pending: bool = False

    @property
    def hosts(self) -> frozenset[Endpoint]:
        """The endpoints on this host's own interfaces."""
        return frozenset(c.endpoint for c in self.candidates if c.kind is CandidateKind.HOST)


def candidate_priority(kind: CandidateKind, version: int, index: int = 0) -> int:
    """Return the priority of RFC 8445 section 5.1.2.1 for component 1; IPv6 before IPv4."""
    local_preference = (60_000 if version == 6 else 30_000) - index
    return (TYPE_PREFERENCE[kind] << 24) | (local_preference << 8) | 255


def is_private(ip: IPAddress) -> bool:
    """Say whether an IPv4 address is private, so no NAT of ours lies before it."""
    return isinstance(ip, IPv4Address) and any(ip in network for network in _PRIVATE)


def needs_opener(endpoint: Endpoint) -> bool:
    """Say whether NATs may lie on the way: public IPv4. IPv6 meets stateful firewalls only."""
    return endpoint.ip.version == 4 and not is_private(endpoint.ip)


def places(candidates: Iterable[Candidate], hard: bool) -> frozenset[object]:
    """Return what must differ for candidates to be news.

    A ``hard`` NAT shows another port to STUN servers at each look, and the peer none of them.
    """
    return frozenset(
        candidate.endpoint.ip if hard and candidate.kind is CandidateKind.REFLEXIVE else candidate
        for candidate in candidates
    )


def refusal(endpoint: Endpoint, settings: PathSettings) -> str | None:
    """Return why nobody may make us send to ``endpoint``, or None if it is a fair target."""
    ip = endpoint.ip
    if not 0 < endpoint.port < 65536:
        return "port out of range"
    if ip.is_multicast or ip.is_unspecified or ip.is_link_local:
        return "not a unicast address that can be routed"
    if ip.is_loopback and not settings.allow_loopback:
        return "a loopback address"
    if isinstance(ip, IPv4Address):
        if ip in _THIS_NETWORK or ip in _CLASS_E:
            return "a reserved address"
    elif ip.ipv4_mapped is not None or ip.scope_id is not None:
        return "an address of another kind"
    if any(ip in network for network in settings.overlay):
        return "an address of the mesh itself"
    return None


def survey(
    addresses: Iterable[LocalAddress],
    port: int,
    elsewhere: Mapping[CandidateKind, Iterable[Endpoint]],
    settings: PathSettings,
    *,
    reflexive_pending: bool,
) -> Surroundings:
    """Turn this host's addresses and what it is reached at ``elsewhere`` into candidates, best first."""
    usable = [
        address
        for address in addresses
        if not address.interface.startswith(settings.skip_interfaces)
        and refusal(Endpoint(address.ip, port), settings) is None
    ]
    # Not the kernel's order: that may change without any change of the addresses.
    usable.sort(key=lambda address: (-address.ip.version, address.interface, int(address.ip)))
    found: dict[Endpoint, Candidate] = {}
    for index, address in enumerate(usable[:MAX_HOST_CANDIDATES]):
        _add(found, CandidateKind.HOST, Endpoint(address.ip, port), index)
    for kind, endpoints in elsewhere.items():
        for index, endpoint in enumerate(endpoints):
            if refusal(endpoint, settings) is None:
                _add(found, kind, endpoint, index)
    ordered = sorted(found.values(), key=lambda candidate: -candidate.priority)
    return Surroundings(
        candidates=tuple(ordered[:MAX_CANDIDATES]),
        prefixes=frozenset(
            ip_network((address.ip, address.prefixlen), strict=False) for address in usable
        ),
        versions=frozenset(address.ip.version for address in usable),
        reflexive_pending=reflexive_pending,
    )


def _add(
    found: dict[Endpoint, Candidate], kind: CandidateKind, endpoint: Endpoint, index: int
) -> None:
    if endpoint not in found:
        priority = candidate_priority(kind, endpoint.ip.version, index)
        found[endpoint] = Candidate(kind, endpoint, priority)
