"""The lab's Nostr relay process: the embedded relay, and on request a recorder in front of it.

``python -m nostrvpn.lab.relay --host 192.0.2.1 --port 7777 [--record FILE]``

With ``--record`` a WebSocket proxy listens on the public port and the relay itself on a loopback
port. Every frame is written to FILE before it is passed on, one JSON object a line::

    {"at": 1732180000.1, "connection": 3, "peer": "192.0.2.9", "from": "client", "frame": "[...]"}

so that a test can search all that a relay operator could ever have seen.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import sys
import time
from pathlib import Path
from typing import TextIO

import aiohttp
from aiohttp import web

from nostrvpn.io.embedded_relay import EmbeddedRelay

__all__ = ["Recorder", "main"]

FRAME_LIMIT = 1 << 20
"""The proxy passes on more than any sane relay would, so that it never hides a mistake of ours."""


class Recorder:
    """A WebSocket proxy that writes down what passes, in both directions."""

    def __init__(self, upstream: str, log: TextIO) -> None:
        self._upstream = upstream
        self._log = log
        self._numbers = itertools.count(1)

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        """Serve one client until either side closes."""
        number = next(self._numbers)
        client = web.WebSocketResponse(max_msg_size=FRAME_LIMIT)
        await client.prepare(request)
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(self._upstream, max_msg_size=FRAME_LIMIT) as relay,
        ):
            seen = {"connection": number, "peer": request.remote or ""}
            pumps = [
                asyncio.create_task(self._pump(client, relay, {**seen, "from": "client"})),
                asyncio.create_task(self._pump(relay, client, {**seen, "from": "relay"})),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        with contextlib.suppress(ConnectionError):
            await client.close()
        return client

    async def _pump(
        self,
        source: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
        sink: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
        seen: dict[str, object],
    ) -> None:
        async for message in source:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            record = {"at": time.time(), **seen, "frame": message.data}
            self._log.write(json.dumps(record) + "\n")
            self._log.flush()
            await sink.send_str(message.data)


async def _serve(host: str, port: int, record: Path | None) -> None:
    relay = EmbeddedRelay("127.0.0.1" if record else host, 0 if record else port)
    await relay.start()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(relay.stop)
        if record:
            log = stack.enter_context(record.open("a", encoding="utf-8"))
            application = web.Application()
            application.router.add_get("/", Recorder(relay.url, log).handle)
            runner = web.AppRunner(application)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, host, port).start()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


def main() -> None:
    """Start the relay, say ``ready`` on standard output, and serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--record", type=Path, help="write every frame to this file")
    options = parser.parse_args()
    asyncio.run(_serve(options.host, options.port, options.record))


if __name__ == "__main__":
    main()
