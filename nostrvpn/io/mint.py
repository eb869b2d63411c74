"""HTTP with Cashu mints: JSON there, JSON back, and what went wrong in three kinds.

A mint is asked and never believed: what it answers is checked by whoever asked. An answer is bounded in
size and time, and only the mint itself gives it (no redirects). It is reached around an exit: what pays
for one must not depend on it. What was sent and has no answer may
have been done; ``MintUnreachable.may_have_arrived`` says whether that can be.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from nostrvpn.cashu.answers import parse_refusal
from nostrvpn.errors import NostrvpnError, one_line
from nostrvpn.host.state import FWMARK
from nostrvpn.io.http_way import PLAIN, TooLong, body_of, connector_for

if TYPE_CHECKING:
    from nostrvpn.io.proxy import SocksProxy

__all__ = ["MintBusy", "MintClient", "MintRefused", "MintUnreachable"]

TIMEOUT_S: Final = 20.0
"""Of one call, Tor's circuits included; a swap takes 30 to 400 ms besides the way."""
MELT_TIMEOUT_S: Final = 60.0
"""A Lightning payment may take that long; the mint's answer can be asked for later."""
# A keyset has 64 keys (5 kB), an answer to a restore 100 signatures (60 kB).
MAX_ANSWER: Final = 2 * 1024 * 1024
MAX_CONNECTIONS: Final = 8
# Less than uvicorn's five: a request into a connection that is just being closed has no answer.
KEEPALIVE_S: Final = 3.0
# What 429 without Retry-After means to us: Nutshell counts by the minute.
BUSY_S: Final = 20.0
MAX_BUSY_S: Final = 600.0


class MintRefused(NostrvpnError):
    """The mint said no. ``number`` is its error code (the NUTs' list: 11001 spent …), or None."""

    code = "mint_refused"

    def __init__(self, number: int | None, text: str) -> None:
        shown = f" (code {number})" if number is not None else ""
        super().__init__(f"the mint refused: {text or 'no reason given'}{shown}")
        self.number = number


class MintUnreachable(NostrvpnError):
    """No answer of the mint's: it is down, far away, or speaks something else.

    ``is_cut``: the connection was there and broke, as an idle one does that the mint just closed.
    """

    code = "mint_unreachable"

    def __init__(self, text: str, *, may_have_arrived: bool = True, is_cut: bool = False) -> None:
        super().__init__(
            text, "nothing is lost: what was begun goes on by itself; else try again later"
        )
        self.may_have_arrived = may_have_arrived
        self.is_cut = is_cut


class MintBusy(NostrvpnError):
    """The mint takes no more calls for ``retry_after_s`` seconds (429, or 503 that says so).

    ``may_have_arrived``: a gateway says 503 also of what it passed on and heard nothing of.
    """

    code = "mint_busy"

    def __init__(self, retry_after_s: float, *, may_have_arrived: bool = False) -> None:
        super().__init__(
            f"the mint takes no more calls for now, for about {retry_after_s:.0f} s",
            "nothing is lost: what was begun goes on by itself; else try again later",
        )
        self.retry_after_s = retry_after_s
        self.may_have_arrived = may_have_arrived


class MintClient:
    """Speaks with the mint at one URL, as ``cashu.mint_url.parse_mint_url`` gave it.

    Close it. ``proxy`` (Tor's) takes every connection if given, under a user name of the mint's own.
    """

    def __init__(self, url: str, *, proxy: SocksProxy | None = None, mark: int = FWMARK) -> None:
        self.url = url
        self._proxy = proxy
        self._mark = mark
        self._session: aiohttp.ClientSession | None = None
        self._is_closed = False
        # Whoever waits for its turn has not left, and its time has not begun.
        self._turns = asyncio.Semaphore(MAX_CONNECTIONS)

    async def get(self, path: str) -> Any:
        """Return the answer to GET ``path`` (``/v1/info``); MintRefused, MintBusy, MintUnreachable."""
        return await self._ask("GET", path, None, TIMEOUT_S)

    async def post(self, path: str, body: object) -> Any:
        """Return the answer to POST ``path`` with ``body`` as JSON; errors as ``get``."""
        timeout = MELT_TIMEOUT_S if path.startswith("/v1/melt/") else TIMEOUT_S
        return await self._ask("POST", path, body, timeout)

    async def close(self) -> None:
        """Close the connections for good: who still waits, or asks, is told so."""
        self._is_closed = True
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _ask(self, method: str, path: str, body: object, timeout_s: float) -> Any:
        try:
            async with (
                self._turn(),
                self._connected().request(
                    method,
                    self.url + path,
                    json=body if method == "POST" else None,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=timeout_s),
                ) as response,
            ):
                return _answer(response, await body_of(response, MAX_ANSWER))
        except TimeoutError as error:
            raise MintUnreachable(f"{self.url} does not answer in time") from error
        except TooLong as error:
            text = f"the mint answers with more than {MAX_ANSWER} bytes"
            raise MintUnreachable(text) from error
        except (aiohttp.ClientError, OSError, ssl.SSLError, ValueError) as error:
            raise self._unreachable(error) from error
        except Exception as error:
            if self._proxy is not None and isinstance(error, self._proxy.errors):
                raise self._unreachable(error) from error
            raise

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        async with self._turns:
            if self._is_closed:
                raise MintUnreachable(f"{self.url} is asked no more", may_have_arrived=False)
            yield

    def _unreachable(self, error: Exception) -> MintUnreachable:
        by_proxy = self._proxy.describe(error) if self._proxy is not None else None
        reason = by_proxy or one_line(str(error)) or type(error).__name__
        is_sent = by_proxy is None and not isinstance(error, aiohttp.ClientConnectorError)
        is_cut = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
        return MintUnreachable(
            f"{self.url} cannot be reached: {reason}",
            may_have_arrived=is_sent,
            is_cut=is_sent and is_cut,
        )

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = connector_for(
                f"mint {self.url}",
                self._proxy,
                self._mark,
                limit=MAX_CONNECTIONS,
                keepalive_s=KEEPALIVE_S,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                headers={"Accept": "application/json", **PLAIN},
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session


def _answer(response: aiohttp.ClientResponse, text: bytes) -> Any:
    status = response.status
    if status == 429 or (status == 503 and "Retry-After" in response.headers):
        seconds = _retry_after(response.headers.get("Retry-After", ""))
        raise MintBusy(seconds, may_have_arrived=status == 503)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MintUnreachable(f"the mint answers with status {status} and no JSON") from error
    if status == 200:
        return document
    number, said = parse_refusal(document)
    detail = document.get("detail") if isinstance(document, dict) else None
    if 400 <= status < 500 and (detail or number):
        # FastAPI's list of what is malformed is no text.
        raise MintRefused(number, said or one_line(json.dumps(detail)))
    # Not the mint's own word on the matter: a gateway's, or a fault of its.
    raise MintUnreachable(f"the mint answers with status {status}{': ' * bool(said)}{said}")


def _retry_after(text: str) -> float:
    """Return seconds (RFC 9110 section 10.2.3; a date is not looked at)."""
    return min(float(text), MAX_BUSY_S) if text.isascii() and text.isdigit() else BUSY_S
