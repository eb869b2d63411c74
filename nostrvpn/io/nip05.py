"""Asking a domain for the public key of one of its names (NIP-05), over HTTPS."""

from __future__ import annotations

import ssl

import aiohttp

from nostrvpn.errors import SystemRefused, one_line
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
            aiohttp.ClientSession(timeout=_TIMEOUT, connector=connector) as session,
            session.get(identifier.url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise SystemRefused(f"{identifier.domain} answers with status {response.status}")
            text = await response.content.read(MAX_DOCUMENT)
            while len(text) < MAX_DOCUMENT and not response.content.at_eof():
                text += await response.content.read(MAX_DOCUMENT - len(text))
            if not response.content.at_eof():
                raise SystemRefused(
                    f"{identifier.domain} answers with more than {MAX_DOCUMENT} bytes"
                )
    except (aiohttp.ClientError, TimeoutError, OSError, ssl.SSLError, ValueError) as exc:
        reason = one_line(str(exc)) or "it took too long"
        raise SystemRefused(f"{identifier.domain} cannot be asked: {reason}") from exc
    return read_document(text, identifier)
