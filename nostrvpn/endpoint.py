"""A UDP endpoint (IP address and port) as one hashable value."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

__all__ = ["Endpoint", "IPAddress", "parse_endpoint"]

IPAddress = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An IP address and a UDP port. An IPv4-mapped IPv6 address must be unmapped before it gets here."""

    ip: IPAddress
    port: int

    def __hash__(self) -> int:
        # An address's own hash goes by way of text, and endpoints are looked up for each packet.
        return hash((int(self.ip), self.port))

    def __str__(self) -> str:
        return f"{self.ip}:{self.port}" if self.ip.version == 4 else f"[{self.ip}]:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """Parse ``192.0.2.1:51820`` or ``[2001:db8::1]:51820``; raise ValueError for anything else."""
    host, separator, port_text = text.rpartition(":")
    if not separator or not (port_text.isascii() and port_text.isdigit()) or len(port_text) > 5:
        raise ValueError(f"not an endpoint: {text!r}")
    bracketed = host.startswith("[") and host.endswith("]")
    ip = ip_address(host[1:-1] if bracketed else host)
    if bracketed != (ip.version == 6) or "%" in host:
        raise ValueError(f"not an endpoint: {text!r}")
    port = int(port_text)
    if not 0 < port < 65536:
        raise ValueError(f"port out of range: {text!r}")
    return Endpoint(ip, port)
