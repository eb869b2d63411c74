"""The URL of a mint, written in one way, or refused.

A token names its mint in the sender's words. Two ways to write one mint must be one entry of the list
of trusted mints, and what only looks like a trusted one must be none.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from nostrvpn.errors import UserError

__all__ = ["BadMintUrl", "parse_mint_url"]

MAX_LENGTH: Final = 200
_PORTS: Final = {"https": 443, "http": 80}


class BadMintUrl(UserError):
    """Text that should be a mint's URL is not one that money is sent to."""

    code = "bad_mint_url"


def parse_mint_url(text: str) -> str:
    """Return the URL as it is kept: lower case host, no default port, no slash at the end.

    ``https://`` only, but where nobody can be in between: an onion service, or an address of a private
    network (and of this host), may have ``http://``. BadMintUrl says what is wrong.
    """
    given = text.strip()
    if len(given) > MAX_LENGTH or not given.isascii() or not given.isprintable() or " " in given:
        raise _bad(text, "it must be plain characters, at most 200")
    try:
        parts = urlsplit(given)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise _bad(text, str(error)) from error
    scheme = parts.scheme.lower()
    if scheme not in _PORTS or not host:
        raise _bad(text, "it must be https://HOST")
    if "@" in parts.netloc or "?" in given or "#" in given or "\\" in given:
        raise _bad(text, "it must be a host and a path only")
    if scheme == "http" and not _is_private(host):
        raise _bad(text, "http:// would show and sell out what is sent; use https://")
    shown = f"[{host}]" if ":" in host else host
    if port is not None and port != _PORTS[scheme]:
        shown += f":{port}"
    path = parts.path.rstrip("/")
    if "//" in path or any(part in (".", "..") for part in path.split("/")):
        raise _bad(text, "its path is odd")
    return f"{scheme}://{shown}{path}"


def _is_private(host: str) -> bool:
    if host == "localhost" or host.endswith(".onion"):
        return True
    try:
        return not ip_address(host).is_global
    except ValueError:
        return False


def _bad(text: str, reason: str) -> BadMintUrl:
    return BadMintUrl(
        f"{text[:80]!r} is no mint's URL: {reason}", "copy it from the mint's operator"
    )
