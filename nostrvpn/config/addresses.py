"""The two kinds of address a user writes: a relay's URL and a server's ``host:port``."""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from urllib.parse import urlsplit

__all__ = ["check_host_port", "check_relay_url"]

# Longer than any relay in use, short enough for an invite link to carry several.
_MAX_URL = 200
# RFC 1035, section 2.3.1, and the underscore that some names hold all the same.
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_MAX_HOST = 253  # RFC 1035, section 2.3.4


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


def _is_host(host: str) -> bool:
    labels = host.removesuffix(".").split(".")
    return len(host) <= _MAX_HOST and all(_LABEL.fullmatch(label) for label in labels)


def _ipv6(text: str) -> str:
    address = IPv6Address(text)
    if address.scope_id is not None:
        raise ValueError(f"{text!r} has a zone, which another machine cannot use")
    return str(address)
