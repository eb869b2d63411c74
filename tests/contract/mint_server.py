"""The mint in memory behind HTTP on loopback: it does what it is asked, and answers as it likes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from tests.cashu_mint import MemoryMint

__all__ = ["MintServer", "Twist", "json_of", "mint_server"]

Twist = Callable[[web.Request, Any], Awaitable[web.StreamResponse]]


class MintServer:
    """``twists``: by the beginning of a path, what is answered instead of what ``mint`` says."""

    def __init__(self) -> None:
        self.mint = MemoryMint(now=time.time())
        self.twists: dict[str, Twist] = {}
        self.hung = asyncio.Event()

    @property
    def url(self) -> str:
        return self.mint.url

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.method == "POST" else None
        status, answer = self.mint.handle(request.method, request.path, body)
        for path, twist in self.twists.items():
            if request.path.startswith(path):
                return await twist(request, answer)
        return web.json_response(answer, status=status)

    async def hang(self, _request: web.Request, _answer: Any) -> web.StreamResponse:
        """Say nothing, for as long as anybody listens."""
        self.hung.set()
        await asyncio.sleep(3600)
        raise AssertionError("nobody waits for so long")


def json_of(change: Callable[[Any], Any]) -> Twist:
    """Answer with what ``change`` makes of the honest answer."""

    async def twist(_request: web.Request, answer: Any) -> web.StreamResponse:
        return web.json_response(change(answer))

    return twist


@asynccontextmanager
async def mint_server() -> AsyncIterator[MintServer]:
    made, site = MintServer(), web.Application(client_max_size=1 << 22)
    site.router.add_route("*", "/{path:.*}", made.answer)
    runner = web.AppRunner(site, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.mint.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()
