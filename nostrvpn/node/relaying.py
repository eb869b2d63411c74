"""Relays among the members: what this node offers to whom, and whose offers it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.node.events import LendTo, NodeEffect
from nostrvpn.node.peers import Peer
from nostrvpn.paths.candidates import LocalAddress
from nostrvpn.paths.relay_offers import RelayOffer
from nostrvpn.stun.relaying import relay_user

__all__ = ["WEBSOCKET_PATH", "MeshRelays", "RelayRole"]

WEBSOCKET_PATH = "/nostrvpn"


@dataclass(frozen=True, slots=True)
class RelayRole:
    """What this node is as a relay. ``addresses`` empty: those of the interfaces that are public.

    ``websocket_url`` empty and ``websocket_port`` set: by our own address, without TLS.
    """

    secret: bytes = field(repr=False)
    port: int
    for_anyone: bool = False
    addresses: tuple[IPAddress, ...] = ()
    websocket_url: str = ""
    websocket_port: int = 0

    def endpoints(self, local: Iterable[LocalAddress]) -> tuple[Endpoint, ...]:
        """Return where Allocates reach us: one endpoint a family, IPv4 first."""
        candidates = self.addresses or tuple(
            address.ip for address in sorted(local, key=str) if address.ip.is_global
        )
        by_version: dict[int, Endpoint] = {}
        for ip in candidates:
            by_version.setdefault(ip.version, Endpoint(ip, self.port))
        return tuple(by_version[version] for version in sorted(by_version))

    def offer_for(self, recipient: str, local: Iterable[LocalAddress]) -> RelayOffer | None:
        """Return what ``recipient`` (a member's public key) is told; None without a public address."""
        endpoints = self.endpoints(local)
        url = self.websocket_url or None
        if url is None and self.websocket_port and endpoints:
            url = f"ws://{Endpoint(endpoints[0].ip, self.websocket_port)}{WEBSOCKET_PATH}"
        if not endpoints and url is None:
            return None
        return RelayOffer("", endpoints, relay_user(self.secret, recipient), url)

    def users(self, members: Iterable[str]) -> frozenset[str]:
        """Return the names under which ``members`` may ask for ports."""
        return frozenset(relay_user(self.secret, member).name for member in members)


class MeshRelays:
    """The relays among ``peers``, and this node as one of them if it has a ``role``."""

    def __init__(self, role: RelayRole | None, peers: Mapping[str, Peer]) -> None:
        self._role = role
        self._peers = peers
        self._members: frozenset[str] = frozenset()
        self.local: tuple[LocalAddress, ...] = ()
        self.strangers: tuple[RelayOffer, ...] = ()

    @property
    def of_members(self) -> tuple[RelayOffer, ...]:
        """The members that relay for us."""
        return tuple(p.relay_offer for p in self._peers.values() if p.relay_offer is not None)

    @property
    def offers(self) -> tuple[RelayOffer, ...]:
        """The relays that this node may use: the members', and strangers' only if there are none."""
        return self.of_members or self.strangers

    def offer_for(self, recipient: str) -> RelayOffer | None:
        """Return what ``recipient`` is offered; an applicant nothing, before it is a member."""
        if self._role is None or recipient not in self._members:
            return None
        return self._role.offer_for(recipient, self.local)

    def lend(self, members: Iterable[str]) -> list[NodeEffect]:
        """Relay for these members (public keys) from now on."""
        known, self._members = self._members, frozenset(members)
        if self._role is None or known == self._members:
            return []
        return [LendTo(self._role.users(self._members))]
