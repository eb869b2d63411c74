"""Why a WebSocket could not be had, or ended, in words for the user."""

from __future__ import annotations

from typing import Final

import aiohttp

from nostrvpn.errors import one_line

__all__ = ["CONNECT_SECONDS", "describe_failure"]

# How long connecting may take.
CONNECT_SECONDS: Final = 10.0


def describe_failure(error: object, too_large: str) -> str:
    """Return one line about why a connection failed or ended.

    ``too_large`` is said of a message that is longer than was agreed to.
    """
    match error:
        case aiohttp.WebSocketError(code=aiohttp.WSCloseCode.MESSAGE_TOO_BIG):
            text = too_large
        case aiohttp.WSServerHandshakeError():
            text = f"no WebSocket there (HTTP {error.status})"
        case aiohttp.ClientConnectorCertificateError():
            text = f"the certificate of {error.host} is not valid"
        case aiohttp.ClientConnectorDNSError():
            text = f"unknown host name {error.host}"
        case aiohttp.ServerTimeoutError():
            text = "does not answer our pings"
        case TimeoutError():
            text = f"no connection within {CONNECT_SECONDS:g} s"
        case aiohttp.InvalidURL():
            text = "not a WebSocket URL"
        case _:
            text = str(error) or type(error).__name__
    return one_line(text)
