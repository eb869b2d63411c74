"""Connections through a SOCKS5 proxy (RFC 1928), Tor's for one; names are resolved by the proxy.

Each purpose (a *lane*) gives a user name of its own (RFC 1929): Tor then uses another circuit for it
(its ``IsolateSOCKSAuth``, on by default), so that a relay cannot tell two lanes to be of one client.

The library costs a twentieth of a start; this module is imported only where a proxy is used.
"""

from __future__ import annotations

from typing import Final

import aiohttp
from aiohttp_socks import ProxyConnectionError, ProxyConnector, ProxyError, ProxyTimeoutError

from nostrvpn.errors import one_line

__all__ = ["SocksProxy"]

# What a proxy needs beside the user name; Tor tells streams apart by both.
_PASSWORD: Final = "nostrvpn"


class SocksProxy:
    """The proxy at ``host``:``port``; ``errors`` are what connecting by it may raise besides."""

    errors: tuple[type[Exception], ...] = (ProxyConnectionError, ProxyTimeoutError, ProxyError)

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port

    def connector(self, lane: str) -> aiohttp.BaseConnector:
        """Return what connects by this proxy, for one lane."""
        return ProxyConnector(
            self._host,
            self._port,
            username=lane,
            password=_PASSWORD,
            rdns=True,
            force_close=True,
        )

    def describe(self, error: BaseException) -> str | None:
        """Return in words what is wrong with the proxy; None if the error is another."""
        name = f"{self._host}:{self._port}"
        match error:
            case ProxyConnectionError():
                return f"the proxy {name} does not take connections"
            case ProxyTimeoutError() | TimeoutError():
                return f"the proxy {name} gives no connection in time"
            case ProxyError():
                # A proxy that works says so of a relay that cannot be reached.
                return one_line(f"not reached through the proxy: {error}")
            case _:
                return None
