"""How a buyer reaches the exit it was granted: part of a grant, never of an offer."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from nostrvpn.endpoint import IPAddress, parse_endpoint
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.market.service import Access

__all__ = ["ExitAccess"]

_Key = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=\Z")]
_Endpoints = Annotated[tuple[str, ...], Meta(min_length=1, max_length=4)]
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
            for text in (*found.control, *found.dns):
                IPv6Address(text) if ":" in text else IPv4Address(text)
            if not found.addresses:
                raise ValueError("no address")
        except ValueError as exc:  # msgspec's errors are ValueErrors too
            raise PeerMisbehaved("malformed_access", f"not an exit's access: {exc}") from exc
        return found
