"""Asking a domain for the public key of one of its names (NIP-05), over HTTPS.

It goes the way of any program of this host, through an exit too: whoever asks shows the answer to the
user, and nothing that keeps a tunnel up depends on it.
"""

from __future__ import annotations

import ssl

import aiohttp

from nostrvpn.errors import SystemRefused, one_line
from nostrvpn.io.http_way import PLAIN, TooLong, body_of
from nostrvpn.nostr.nip05 import MAX_DOCUMENT, Identifier, read_document

__all__ = ["ask_domain"]

_TIMEOUT = aiohttp.ClientTimeout(total=10.0)


async def ask_domain(identifier: Identifier, connector: aiohttp.BaseConnector | None = None) -> str:
    """Return the public key (64 hex) by the domain's word, within 10 s.

    SystemRefused if the domain does not answer, PeerMisbehaved if it says nothing useful. NIP-05
    forbids redirects: they would let one site speak for another.
    """
    try:
        async with (
            aiohttp.ClientSession(
                timeout=_TIMEOUT, connector=connector, headers=PLAIN, auto_decompress=False
            ) as session,
            session.get(identifier.url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise SystemRefused(f"{identifier.domain} answers with status {response.status}")
            text = await body_of(response, MAX_DOCUMENT)
    except TooLong as exc:
        too_much = f"{identifier.domain} answers with more than {MAX_DOCUMENT} bytes"
        raise SystemRefused(too_much) from exc
    except (aiohttp.ClientError, TimeoutError, OSError, ssl.SSLError, ValueError) as exc:
        reason = one_line(str(exc)) or "it took too long"
        raise SystemRefused(f"{identifier.domain} cannot be asked: {reason}") from exc
    return read_document(text, identifier)
