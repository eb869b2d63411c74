"""How a buyer reaches the exit it was granted: part of a grant, never of an offer."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from nostrvpn.endpoint import IPAddress, parse_endpoint
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.exits.policy import is_public
from nostrvpn.market.service import Access
from nostrvpn.wireguard.device import is_peer_key

__all__ = ["ExitAccess"]

_Key = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=\Z")]
_Endpoints = Annotated[tuple[str, ...], Meta(min_length=1, max_length=4)]
# What a seller may take for its tunnel: of no LAN, no mesh of ours by IPv4 (RFC 2544, RFC 4193). A host
# that has one of these all the same must look before it takes a lease's.
_TUNNELS = (ip_network("198.18.0.0/15"), ip_network("fd00::/8"))
_Address = Annotated[str, Meta(max_length=45)]


class ExitAccess(Struct, frozen=True, kw_only=True):
    """``endpoints`` of the seller's WireGuard (literal addresses, the best first), its ``key``, the
    ``psk`` of this lease, the buyer's addresses ``ipv4`` and ``ipv6`` (empty: no IPv6), ``control``:
    the seller's addresses in the tunnel, with ``port`` for lease messages; ``dns``: who answers names.
    """

    endpoints: _Endpoints
    key: _Key
    psk: _Key
    ipv4: _Address
    control: Annotated[tuple[_Address, ...], Meta(min_length=1, max_length=2)]
    ipv6: _Address = ""
    port: Annotated[int, Meta(gt=0, lt=65536)] = 7117
    dns: Annotated[tuple[_Address, ...], Meta(max_length=4)] = ()
    mtu: Annotated[int, Meta(ge=1280, le=1500)] = 1420

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """The buyer's addresses in the tunnel."""
        four = (IPv4Address(self.ipv4),)
        return (*four, IPv6Address(self.ipv6)) if self.ipv6 else four

    def to_json(self) -> dict[str, str | int | list[str]]:
        """Return what a grant has."""
        built: dict[str, str | int | list[str]] = msgspec.to_builtins(self)
        return {name: value for name, value in built.items() if value not in ("", [])}

    @classmethod
    def parse(cls, access: Access) -> ExitAccess:
        """Read what a grant has, every address included; PeerMisbehaved "malformed_access"."""
        try:
            found = msgspec.convert(dict(access), cls)
            for text in found.endpoints:
                parse_endpoint(text)
            for text in (*found.control, *found.dns, found.ipv6 or found.ipv4):
                _parsed(text)
            if not found.addresses:
                raise ValueError("no address")
        except ValueError as exc:  # msgspec's errors are ValueErrors too
            raise PeerMisbehaved("malformed_access", f"not an exit's access: {exc}") from exc
        return found

    def check(self) -> None:
        """PeerMisbehaved "hostile_access" for what no buyer takes of a stranger.

        It becomes addresses, routes and packets of the buyer's host. So it may name public endpoints and
        the tunnel's own addresses, and nothing that may be a LAN's, a mesh's or this host's.
        """
        if not is_peer_key(self.key):
            raise PeerMisbehaved("hostile_access", "a WireGuard key that is none")
        own, control, dns = self.addresses, _all(self.control), _all(self.dns)
        if not all(is_public(parse_endpoint(text).ip) for text in self.endpoints):
            raise PeerMisbehaved("hostile_access", "an endpoint that is nobody's on the internet")
        if not all(any(ip in network for network in _TUNNELS) for ip in (*own, *control)):
            raise PeerMisbehaved("hostile_access", "tunnel addresses that may be somebody else's")
        if {*own} & {*control} or not _are_beside(own, control):
            raise PeerMisbehaved("hostile_access", "control addresses outside of the tunnel")
        if not all(ip in control or is_public(ip) for ip in dns):
            raise PeerMisbehaved("hostile_access", "a resolver that is not the seller's")


def _all(texts: tuple[str, ...]) -> tuple[IPAddress, ...]:
    return tuple(map(_parsed, texts))


def _parsed(text: str) -> IPAddress:
    if "%" in text:
        raise ValueError("an address of one link only")
    return IPv6Address(text) if ":" in text else IPv4Address(text)


def _are_beside(own: tuple[IPAddress, ...], control: tuple[IPAddress, ...]) -> bool:
    """Whether each control address is in the network of one of ours: /16, or /64."""
    around = [ip_network(f"{ip}/{16 if ip.version == 4 else 64}", strict=False) for ip in own]
    return all(any(ip in network for network in around) for ip in control)
