"""An invoice of a lightning address: two questions by HTTPS to the address's host (LUD-06, LUD-16).

Where the second one goes to, the first one's answer says: a stranger's word. It leads to the address's
own host or out to the internet, never into this host or a private network, unless the user's address
itself is there.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import aiohttp

from nostrvpn.errors import PeerMisbehaved, SystemRefused, one_line
from nostrvpn.host.state import FWMARK
from nostrvpn.io.http_way import PLAIN, TooLong, body_of, connector_for, is_inside, leads_inside
from nostrvpn.lightning.bolt11 import Invoice
from nostrvpn.lightning.lnurl import address_url, check_invoice, invoice_url, parse_pay_terms

if TYPE_CHECKING:
    from collections.abc import Callable

    from nostrvpn.endpoint import IPAddress
    from nostrvpn.io.proxy import SocksProxy

__all__ = ["invoice_of"]

TIMEOUT_S: Final = 20.0
MAX_ANSWER: Final = 64 * 1024  # the metadata may hold a picture


async def invoice_of(
    address: str, amount_msat: int, *, proxy: SocksProxy | None = None, mark: int = FWMARK
) -> Invoice:
    """Return an invoice over this amount for a lightning address; within 40 s.

    UserError if the address is none, or its host does not want it; PeerMisbehaved if the answer is not
    what was asked for; SystemRefused if the host cannot be reached.
    """
    url = address_url(address)

    async def ask(url: str, *, refuses: Callable[[IPAddress], bool] | None) -> object:
        lane = f"lightning {address}"
        connector = connector_for(lane, proxy, mark, refuses=refuses)
        if proxy is None:
            return await _get(connector, url)
        try:
            return await _get(connector, url)
        except proxy.errors as error:
            told = proxy.describe(error)
            raise SystemRefused(f"the address's host cannot be reached: {told}") from error

    terms = parse_pay_terms(await ask(url, refuses=None))
    is_strange = _is_strange(terms.callback, url)
    if is_strange and is_inside(urlsplit(terms.callback).hostname or ""):
        raise PeerMisbehaved("bad_lnurl", "the address sends us into a private network")
    refuses = leads_inside if is_strange else None
    answer = await ask(invoice_url(terms, amount_msat), refuses=refuses)
    return check_invoice(terms, amount_msat, answer)


def _is_strange(callback: str, url: str) -> bool:
    """Whether a callback leads away from the host at ``url``, which the user named, to anywhere."""
    own, other = urlsplit(url), urlsplit(callback)
    is_own = (own.scheme, own.hostname, own.port) == (other.scheme, other.hostname, other.port)
    return not is_own and not is_inside(own.hostname or "")


async def _get(connector: aiohttp.BaseConnector, url: str) -> object:
    try:
        async with (
            aiohttp.ClientSession(
                connector=connector,
                headers=PLAIN,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            ) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            answer: object = json.loads(await body_of(response, MAX_ANSWER))
    except TooLong as error:
        raise SystemRefused("the address's host answers with too much") from error
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        reason = one_line(str(error)) or "no answer in time"
        raise SystemRefused(f"the address's host cannot be reached: {reason}") from error
    except (ValueError, RecursionError) as error:
        raise SystemRefused("the address's host answers with no JSON") from error
    return answer
