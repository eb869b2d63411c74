"""PCP messages (RFC 6887): the requests we send and the responses we accept.

Layout, section 7: a common header of 24 bytes, then the opcode's own data. IPv4 addresses are
IPv4-mapped IPv6 addresses (``::ffff:192.0.2.1``).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv6Address

from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import PeerMisbehaved

__all__ = [
    "NONCE",
    "SUCCESS",
    "VERSION",
    "PcpMapped",
    "PcpResponse",
    "in_words",
    "parse_pcp",
    "render_announce",
    "render_map",
]

VERSION = 2
NONCE = 12
"""Bytes of a mapping's nonce (section 11.1)."""

SUCCESS = 0
UNSUPPORTED_VERSION = 1

_MAX_BYTES = 1100  # section 7: a longer message is malformed
_ANNOUNCE = 0
_MAP = 1
_RESPONSE = 0x80
_UDP = 17
_REQUEST = struct.Struct("!BBHI16s")
_RESPONSE_HEADER = struct.Struct("!BBBBII12x")
_MAP_DATA = struct.Struct("!12sB3xHH16s")

# Section 7.4, in words for the user.
_WORDS = {
    1: "speaks another version of PCP",
    2: "does not allow port mappings",
    3: "found our request malformed",
    4: "does not know the request",
    5: "does not know an option",
    6: "found an option malformed",
    7: "has no connection to the internet itself",
    8: "has no room for another mapping",
    9: "does not map UDP",
    10: "allows us no further mapping",
    11: "cannot give an external port",
    12: "sees us under another address: there is a NAT before it",
    13: "allows fewer remote peers",
}


@dataclass(frozen=True, slots=True)
class PcpMapped:
    """The data of a MAP response: which mapping, and its external side."""

    nonce: bytes
    is_udp: bool
    internal_port: int
    external_ip: IPAddress
    external_port: int


@dataclass(frozen=True, slots=True)
class PcpResponse:
    """A response; ``lifetime_s`` of an error says how long it holds. ``mapped`` only for MAP.

    ``epoch`` is the seconds since the server lost its state (section 8.5).
    """

    result: int
    lifetime_s: int
    epoch: int
    mapped: PcpMapped | None


def render_announce(local: IPAddress) -> bytes:
    """Return an ANNOUNCE request (section 14.1), which asks for the epoch and changes nothing."""
    return _REQUEST.pack(VERSION, _ANNOUNCE, 0, 0, _packed(local))


def render_map(
    local: IPAddress, port: int, nonce: bytes, external: tuple[IPAddress, int], lifetime_s: int
) -> bytes:
    """Return a MAP request (section 11.1) for UDP; ``lifetime_s`` 0 removes the mapping.

    ``external`` is a wish: the unspecified address and port 0 where there is none.
    """
    ip, wished = external
    return _REQUEST.pack(VERSION, _MAP, 0, lifetime_s, _packed(local)) + _MAP_DATA.pack(
        nonce, _UDP, port, wished, _packed(ip)
    )


def parse_pcp(data: bytes) -> PcpResponse:
    """Parse a response of a PCP server; raise PeerMisbehaved("malformed_pcp") for anything else.

    Options are ignored: we ask for none.
    """
    if not _RESPONSE_HEADER.size <= len(data) <= _MAX_BYTES or len(data) % 4:
        raise PeerMisbehaved("malformed_pcp", f"a PCP message of {len(data)} bytes")
    version, opcode, _, result, lifetime, epoch = _RESPONSE_HEADER.unpack_from(data)
    if not opcode & _RESPONSE:
        raise PeerMisbehaved("malformed_pcp", "a PCP request")
    if version != VERSION:
        # A server of another version answers in its own (section 9), whatever its layout.
        return PcpResponse(UNSUPPORTED_VERSION, 0, 0, None)
    mapped = None
    if opcode == _RESPONSE | _MAP:
        if len(data) < _RESPONSE_HEADER.size + _MAP_DATA.size:
            raise PeerMisbehaved("malformed_pcp", "a MAP response without its data")
        nonce, protocol, internal, port, ip = _MAP_DATA.unpack_from(data, _RESPONSE_HEADER.size)
        mapped = PcpMapped(nonce, protocol == _UDP, internal, _unpacked(ip), port)
    elif opcode != _RESPONSE | _ANNOUNCE:
        raise PeerMisbehaved("malformed_pcp", f"a response to opcode {opcode & ~_RESPONSE}")
    return PcpResponse(result, lifetime, epoch, mapped)


def in_words(result: int) -> str:
    """Return what a result code says about the router, to follow "the router"."""
    return _WORDS.get(result, f"refused (PCP result {result})")


def _packed(ip: IPAddress) -> bytes:
    return ip.packed if ip.version == 6 else b"\0" * 10 + b"\xff\xff" + ip.packed


def _unpacked(data: bytes) -> IPAddress:
    ip = IPv6Address(data)
    return ip.ipv4_mapped or ip
