"""An invoice of a lightning address: two questions by HTTPS to the address's host (LUD-06, LUD-16)."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import aiohttp

from nostrvpn.errors import SystemRefused, one_line
from nostrvpn.host.state import FWMARK
from nostrvpn.lightning.bolt11 import Invoice
from nostrvpn.lightning.lnurl import address_url, check_invoice, invoice_url, parse_pay_terms

if TYPE_CHECKING:
    from nostrvpn.io.proxy import SocksProxy

__all__ = ["invoice_of"]

TIMEOUT_S: Final = 20.0
MAX_ANSWER: Final = 64 * 1024  # the metadata may hold a picture


async def invoice_of(address: str, amount_msat: int, *, proxy: SocksProxy | None = None) -> Invoice:
    """Return an invoice over this amount for a lightning address.

    UserError if the address is none, or its host does not want it; PeerMisbehaved if the answer is not
    what was asked for; SystemRefused if the host cannot be reached.
    """
    url = address_url(address)
    connector: aiohttp.BaseConnector
    if proxy is not None:
        connector = proxy.connector(f"lightning {address}")
    else:
        connector = aiohttp.TCPConnector(use_dns_cache=False, socket_factory=_socket)
    async with aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        terms = parse_pay_terms(await _get(session, url))
        answer = await _get(session, invoice_url(terms, amount_msat))
    return check_invoice(terms, amount_msat, answer)


async def _get(session: aiohttp.ClientSession, url: str) -> object:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    try:
        async with session.get(url, allow_redirects=False, timeout=timeout) as response:
            text = await response.content.read(MAX_ANSWER + 1)
            while len(text) <= MAX_ANSWER and (more := await response.content.read(MAX_ANSWER)):
                text += more
        if len(text) > MAX_ANSWER:
            raise SystemRefused("the address's host answers with too much")
        answer: object = json.loads(text)
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        reason = one_line(str(error)) or "no answer in time"
        raise SystemRefused(f"the address's host cannot be reached: {reason}") from error
    except (ValueError, RecursionError) as error:
        raise SystemRefused("the address's host answers with no JSON") from error
    return answer


def _socket(target: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = target
    made = socket.socket(family, kind, protocol)
    with suppress(PermissionError):  # around an exit; nobody without CAP_NET_ADMIN uses one
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, FWMARK)
    return made
