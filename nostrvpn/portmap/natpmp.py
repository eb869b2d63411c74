"""NAT-PMP messages (RFC 6886): the requests we send and the responses we accept."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from nostrvpn.errors import PeerMisbehaved

__all__ = [
    "VERSION",
    "NatPmpAddress",
    "NatPmpMapped",
    "NatPmpRefused",
    "NatPmpResponse",
    "in_words",
    "parse_natpmp",
    "render_address",
    "render_map",
]

VERSION = 0

_ADDRESS = 0
_MAP_UDP = 1
_RESPONSE = 0x80
_MAP_REQUEST = struct.Struct("!BBHHHI")
_HEADER = struct.Struct("!BBH")
_HEADER_WITH_EPOCH = struct.Struct("!BBHI")
_ADDRESS_RESPONSE = struct.Struct("!BBHI4s")
_MAP_RESPONSE = struct.Struct("!BBHIHHI")

# Section 3.5, in words for the user.
_WORDS = {
    1: "speaks another version of NAT-PMP",
    2: "does not allow port mappings",
    3: "has no connection to the internet itself",
    4: "has no room for another mapping",
    5: "does not know the request",
}


@dataclass(frozen=True, slots=True)
class NatPmpAddress:
    """The router's external address (section 3.2)."""

    epoch: int
    ip: IPv4Address


@dataclass(frozen=True, slots=True)
class NatPmpMapped:
    """A mapping of UDP made or removed (section 3.3)."""

    epoch: int
    internal_port: int
    external_port: int
    lifetime_s: int


@dataclass(frozen=True, slots=True)
class NatPmpRefused:
    """A refusal; ``epoch`` is None in the short form without it (unsupported version)."""

    is_map: bool
    result: int
    epoch: int | None


NatPmpResponse = NatPmpAddress | NatPmpMapped | NatPmpRefused


def render_address() -> bytes:
    """Return a request for the external address."""
    return bytes((VERSION, _ADDRESS))


def render_map(port: int, external_port: int, lifetime_s: int) -> bytes:
    """Return a request to map UDP ``port``; ``lifetime_s`` 0 with external port 0 removes it."""
    return _MAP_REQUEST.pack(VERSION, _MAP_UDP, 0, port, external_port, lifetime_s)


def parse_natpmp(data: bytes) -> NatPmpResponse:
    """Parse a router's response; raise PeerMisbehaved("malformed_nat_pmp") for anything else."""
    if len(data) < _HEADER.size:
        raise PeerMisbehaved("malformed_nat_pmp", f"a NAT-PMP message of {len(data)} bytes")
    version, opcode, result = _HEADER.unpack_from(data)
    if version != VERSION or not opcode & _RESPONSE:
        raise PeerMisbehaved("malformed_nat_pmp", "no NAT-PMP response")
    if result:
        # To a PCP request a NAT-PMP router answers so too (RFC 6887 appendix A).
        has_epoch = len(data) >= _HEADER_WITH_EPOCH.size
        epoch = int(_HEADER_WITH_EPOCH.unpack_from(data)[3]) if has_epoch else None
        return NatPmpRefused(opcode == _RESPONSE | _MAP_UDP, result, epoch)
    if opcode == _RESPONSE | _ADDRESS and len(data) == _ADDRESS_RESPONSE.size:
        *_, epoch, ip = _ADDRESS_RESPONSE.unpack(data)
        return NatPmpAddress(epoch, IPv4Address(ip))
    if opcode == _RESPONSE | _MAP_UDP and len(data) == _MAP_RESPONSE.size:
        *_, epoch, internal, external, lifetime = _MAP_RESPONSE.unpack(data)
        return NatPmpMapped(epoch, internal, external, lifetime)
    raise PeerMisbehaved("malformed_nat_pmp", f"opcode {opcode}, {len(data)} bytes")


def in_words(result: int) -> str:
    """Return what a result code says about the router, to follow "the router"."""
    return _WORDS.get(result, f"refused (NAT-PMP result {result})")
