"""The kinds of address a user writes: URLs of relays and TURN servers, ``host:port``, an IP, ports."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

__all__ = [
    "TurnAddress",
    "check_host_port",
    "check_ip_port",
    "check_port_range",
    "check_proxy_url",
    "check_public_ip",
    "check_relay_url",
    "parse_turn_url",
]

# Longer than any relay in use, short enough for an invite link to carry several.
_MAX_URL = 200
# RFC 1035, section 2.3.1, and the underscore that some names hold all the same.
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_MAX_HOST = 253  # RFC 1035, section 2.3.4
_TURN_PORTS = {"turn": 3478, "turns": 5349}  # RFC 7065 section 3.2


@dataclass(frozen=True, slots=True)
class TurnAddress:
    """Where a TURN server is. ``transport`` is ``udp`` or ``tcp``; ``tls`` only with ``tcp``."""

    host: str
    port: int
    transport: str
    tls: bool


def check_relay_url(text: str) -> str:
    """Return a relay URL in its one spelling (lower-case host, no bare ``/``), or ValueError."""
    if len(text) > _MAX_URL:
        raise ValueError(f"a relay URL has at most {_MAX_URL} characters")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"{text!r} holds a character that no URL may hold")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{text!r} is not a URL: {error}") from error
    if parts.scheme.lower() not in ("ws", "wss"):
        raise ValueError(f"{text!r} must start with wss:// (or ws://)")
    host = parts.hostname or ""
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ValueError("a relay URL has no user, password or #fragment")
    if ":" in host:
        host = f"[{_ipv6(host)}]"
    elif not _is_host(host):
        raise ValueError(f"{text!r} names no host")
    if port == 0:
        raise ValueError(f"{text!r} has port 0")
    netloc = host if port is None else f"{host}:{port}"
    path = "" if parts.path == "/" and not parts.query else parts.path
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme.lower()}://{netloc}{path}{query}"


def check_proxy_url(text: str) -> tuple[str, int]:
    """Return host and port of ``socks5h://HOST:PORT`` (or ``socks5://``), or ValueError.

    Names are resolved by the proxy either way. A user name is refused: it tells connections apart.
    """
    scheme, _, rest = text.partition("://")
    if scheme.lower() not in ("socks5", "socks5h"):
        raise ValueError(f"{text!r} must start with socks5h://")
    if "@" in rest:
        raise ValueError("a proxy has no user name here: it is used to keep connections apart")
    return check_host_port(rest.removesuffix("/"))


def check_host_port(text: str) -> tuple[str, int]:
    """Split ``host:port`` or ``[IPv6]:port``; ValueError says why not."""
    host, separator, port = text.rpartition(":")
    if not separator:
        raise ValueError(f"{text!r} has no port, write host:port")
    if not (port.isascii() and port.isdigit()) or not 0 < int(port[:6]) < 65536:
        raise ValueError(f"{text!r} has no valid port (1 to 65535)")
    if host.startswith("[") and host.endswith("]"):
        return _ipv6(host[1:-1]), int(port)
    if ":" in host:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets, [2001:db8::1]:3478")
    if not _is_host(host):
        raise ValueError(f"{text!r} names no host")
    return host.lower(), int(port)


def check_ip_port(text: str) -> str:
    """Return where to listen, ``IP:port`` or ``[IPv6]:port``, in its one spelling; or ValueError."""
    host, port = check_host_port(text)
    try:
        address = ip_address(host)
    except ValueError as error:
        raise ValueError(f"{text!r} is no IP address with a port") from error
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def check_public_ip(text: str) -> str:
    """Return an IP address that others can be told, in its one spelling; or ValueError.

    Private ones pass: a relay may serve one company's network.
    """
    try:
        address: IPv4Address | IPv6Address = ip_address(text)
    except ValueError as error:
        raise ValueError(f"{text[:60]!r} is not an IP address") from error
    if (
        address.is_unspecified
        or address.is_loopback
        or address.is_multicast
        or address.is_link_local
        or "%" in text
    ):
        raise ValueError(f"{text!r} is not an address at which others reach this node")
    return str(address)


def check_port_range(text: str) -> range:
    """Return the ports of ``first-last``, both included; or ValueError."""
    match = re.fullmatch(r"([0-9]{1,5})-([0-9]{1,5})", text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is no range of ports, write first-last")
    first, last = int(match[1]), int(match[2])
    if not 1024 <= first <= last < 65536:
        raise ValueError(f"{text!r} must rise, within 1024 to 65535")
    return range(first, last + 1)


def parse_turn_url(text: str) -> TurnAddress:
    """Return the server of a ``turn:`` or ``turns:`` URL (RFC 7065 section 3); or ValueError."""
    if "@" in text:  # not quoted: what stands before it may be a password
        raise ValueError("a TURN address has no user or password in it")
    scheme, separator, rest = text.partition(":")
    scheme = scheme.lower()
    if not separator or scheme not in _TURN_PORTS:
        raise ValueError(f"{text[:80]!r} must start with turn: or turns:")
    place, mark, query = rest.partition("?")
    transport = query.removeprefix("transport=") if mark else "tcp" if scheme == "turns" else "udp"
    if (mark and not query.startswith("transport=")) or transport not in ("udp", "tcp"):
        raise ValueError(f"{text[:80]!r} may end in ?transport=udp or ?transport=tcp only")
    if scheme == "turns" and transport == "udp":
        raise ValueError("turns: over UDP (DTLS) is not supported, use ?transport=tcp")
    if place.startswith("//"):
        raise ValueError(f"{text[:80]!r}: write {scheme}:host:port, without //")
    has_port = re.search(r"(\]|^[^:]*):[^\]]*$", place) is not None
    host, port = check_host_port(place if has_port else f"{place}:{_TURN_PORTS[scheme]}")
    return TurnAddress(host, port, transport, scheme == "turns")


def _is_host(host: str) -> bool:
    labels = host.removesuffix(".").split(".")
    return len(host) <= _MAX_HOST and all(_LABEL.fullmatch(label) for label in labels)


def _ipv6(text: str) -> str:
    address = IPv6Address(text)
    if address.scope_id is not None:
        raise ValueError(f"{text!r} has a zone, which another machine cannot use")
    return str(address)
