"""A web site that tells who comes: ``python -m nostrvpn.lab.website --listen IP:PORT``.

``GET /`` answers with the visitor's address, ``GET /bytes/N`` with N bytes.
"""

from __future__ import annotations

import asyncio
import sys

import click
from aiohttp import web

from nostrvpn.endpoint import parse_endpoint

__all__ = ["main"]

MAX_BYTES = 1 << 30
_CHUNK = bytes(1 << 16)


async def _address(request: web.Request) -> web.Response:
    return web.Response(text=f"{request.remote}\n")


async def _bytes(request: web.Request) -> web.StreamResponse:
    size = min(int(request.match_info["size"]), MAX_BYTES)
    answer = web.StreamResponse(headers={"Content-Length": str(size)})
    await answer.prepare(request)
    while size > 0:
        await answer.write(_CHUNK[:size])
        size -= len(_CHUNK)
    return answer


async def _serve(listen: tuple[str, ...]) -> None:
    site = web.Application()
    site.add_routes([web.get("/", _address), web.get(r"/bytes/{size:\d{1,12}}", _bytes)])
    runner = web.AppRunner(site)
    await runner.setup()
    for text in listen:
        endpoint = parse_endpoint(text)
        await web.TCPSite(runner, str(endpoint.ip), endpoint.port).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


@click.command()
@click.option("--listen", multiple=True, required=True, metavar="IP:PORT")
def main(listen: tuple[str, ...]) -> None:
    """Serve until killed."""
    asyncio.run(_serve(listen))


if __name__ == "__main__":
    main()
