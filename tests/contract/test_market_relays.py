"""The market's relays: ordinary ones, those that ask who reads or are gone for a while, hostile ones."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import ThreadedResolver, web

from nostrvpn.io import market_link, market_relays
from nostrvpn.io.embedded_relay import EmbeddedRelay
from nostrvpn.io.market_relays import MarketRelays
from nostrvpn.io.relays import RelaySockets
from nostrvpn.machine import Entropy, Moment
from nostrvpn.nostr.event import Event, event_json, public_key, sign_event
from nostrvpn.nostr.nip44 import conversation_key
from nostrvpn.nostr.nip59 import STORED_WRAP, Rumor, gift_wrap, seal_rumor

KIND = 31900
SELLER, BUYER, OTHER = (bytes(31) + bytes([n]) for n in (1, 2, 3))
PATIENCE_S = 15.0


def moment() -> Moment:
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    return Moment(now, time.time(), Entropy(os.urandom(32)))


def event(name: str = "a", secret: bytes = SELLER, content: str = "") -> Event:
    return sign_event(
        secret,
        kind=KIND,
        tags=(("d", name), ("t", "x")),
        content=content,
        created_at=int(time.time()),
        aux=bytes(32),
    )


def wrap(to: bytes, *, expires_in: int = 3600) -> Event:
    now = moment()
    rumor = Rumor(public_key(BUYER), int(now.wall), 21900, (), "{}")
    shared = conversation_key(BUYER, public_key(to))
    seal = seal_rumor(rumor, BUYER, shared, created_at=int(now.wall), entropy=now.entropy)
    return gift_wrap(
        seal,
        public_key(to),
        kind=STORED_WRAP,
        created_at=int(now.wall),
        expiration=int(now.wall) + expires_in,
        entropy=now.entropy,
    )


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.fixture
async def relays() -> AsyncIterator[MarketRelays]:
    made = MarketRelays(moment)
    yield made
    await made.stop()


@contextlib.asynccontextmanager
async def running(port: int = 0, auth: str | None = None) -> AsyncIterator[str]:
    relay = EmbeddedRelay(port=port, auth=auth)
    await relay.start()
    try:
        yield relay.url
    finally:
        await relay.stop()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def test_publishing_counts_who_took_it_and_fetching_says_who_has_it(
    relays: MarketRelays,
) -> None:
    dead = f"ws://127.0.0.1:{free_port()}"
    async with running() as one, running() as two:
        both = event("both")
        assert await relays.publish(both, [one, two, dead], lane="sell") == 2
        only = event("only")
        assert await relays.publish(only, [one, one], lane="sell") == 1
        asked: list[dict[str, object]] = [{"kinds": [KIND], "#t": ["x"]}]
        began = time.monotonic()
        found = await relays.fetch(asked, [one, two, dead], 5.0, lane="list")
        # Neither the dead relay nor the limit was waited for.
        assert time.monotonic() - began < 3.0
        assert {one.event: set(one.relays) for one in found} == {both: {one, two}, only: {one}}
        lanes = {(status["url"], status["lane"]) for status in relays.status()}
        assert {(one, "sell"), (one, "list")} <= lanes


async def test_enough_is_not_waited_for(relays: MarketRelays) -> None:
    async with running() as one, Hostile(silent) as slow:
        began = time.monotonic()
        assert await relays.publish(event(), [one, slow.url], lane="sell", enough=1) == 1
        assert time.monotonic() - began < 3.0


async def test_no_relay_is_no_wait(relays: MarketRelays) -> None:
    assert await relays.publish(event(), [], lane="sell") == 0
    assert await relays.fetch([{"kinds": [KIND]}], [], 5.0, lane="list") == ()


async def test_wraps_come_to_the_keys_that_are_listened_for(relays: MarketRelays) -> None:
    heard: list[Event] = []
    async with running() as url:
        early = wrap(SELLER)
        assert await relays.publish(early, [url], lane="buy") == 1
        keys = {public_key(SELLER): SELLER}
        relays.listen("sell", [url], keys, lambda one, _: heard.append(one))
        await until(lambda: heard == [early])
        # Another key is added: what waits for it comes, what was heard does not come again.
        for_other = wrap(OTHER)
        await relays.publish(for_other, [url], lane="buy")
        keys[public_key(OTHER)] = OTHER
        relays.listen("sell", [url], keys, lambda one, _: heard.append(one))
        await until(lambda: for_other in heard)
        assert heard == [early, for_other]
        # And taken away again.
        relays.listen("sell", [url], {public_key(OTHER): OTHER}, lambda one, _: heard.append(one))
        unheard, last = wrap(SELLER), wrap(OTHER)
        await relays.publish(unheard, [url], lane="buy")
        await relays.publish(last, [url], lane="buy")
        await until(lambda: last in heard)
        await asyncio.sleep(0.2)
        late = [one for one in heard if one.id == unheard.id]
        assert len(late) <= 1  # the old subscription lives until the new one is there
        relays.listen("sell", [url], {}, lambda one, _: heard.append(one))
        count = len(heard)
        await relays.publish(wrap(OTHER), [url], lane="buy")
        await asyncio.sleep(0.3)
        assert len(heard) == count


async def test_after_a_loss_what_waited_is_fetched(relays: MarketRelays) -> None:
    port, heard = free_port(), list[Event]()
    keys = {public_key(SELLER): SELLER}
    async with running(port) as url:
        relays.listen("sell", [url], keys, lambda one, _: heard.append(one))
        await until(lambda: any(one["open"] for one in relays.status()))
    await until(lambda: not any(one["open"] for one in relays.status()))
    async with running(port):
        sender = MarketRelays(moment)
        waiting = wrap(SELLER)
        await until_accepted(sender, waiting, url)
        await until(lambda: heard == [waiting])
        await sender.stop()


async def until_accepted(sender: MarketRelays, one: Event, url: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await sender.publish(one, [url], lane="buy"):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_a_relay_that_asks_who_reads_is_told(relays: MarketRelays) -> None:
    heard: list[Event] = []
    async with running(auth="read") as url:
        waiting = wrap(SELLER)
        assert await relays.publish(waiting, [url], lane="buy") == 1
        keys = {public_key(SELLER): SELLER}
        relays.listen("sell", [url], keys, lambda one, _: heard.append(one))
        await until(lambda: heard == [waiting])


# -- hostile ----------------------------------------------------------------------------------

Behaviour = Callable[["Hostile", web.WebSocketResponse], Awaitable[None]]


class Hostile:
    """A relay that does as ``behave`` says once it was asked something."""

    def __init__(self, behave: Behaviour) -> None:
        self._behave = behave
        self.asked: list[Any] = []
        self.connections = 0
        self.sent = 0
        self.url = ""

    async def __aenter__(self) -> Hostile:
        app = web.Application()
        app.router.add_get("/", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        port = free_port()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.url = f"ws://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        self.connections += 1
        talk: asyncio.Task[None] | None = None
        try:
            async for message in ws:
                self.asked.append(json.loads(message.data))
                if talk is None:
                    talk = asyncio.ensure_future(self._talk(ws))
        finally:
            if talk is not None:
                talk.cancel()
        return ws

    async def _talk(self, ws: web.WebSocketResponse) -> None:
        with contextlib.suppress(aiohttp.ClientError, ConnectionError, RuntimeError):
            await self._behave(self, ws)

    async def say(self, ws: web.WebSocketResponse, *frame: object) -> None:
        await ws.send_str(json.dumps(frame))
        self.sent += 1
        await asyncio.sleep(0)


async def silent(self: Hostile, ws: web.WebSocketResponse) -> None:
    await asyncio.sleep(3600)


async def garbage(self: Hostile, ws: web.WebSocketResponse) -> None:
    for count in itertools.count():
        await ws.send_str("{[" + "x" * (count % 1000))
        self.sent += 1
        await asyncio.sleep(0)


async def oversized(self: Hostile, ws: web.WebSocketResponse) -> None:
    await ws.send_str("x" * 10_000_000)


async def forged(self: Hostile, ws: web.WebSocketResponse) -> None:
    for number in itertools.count():
        made = event_json(event()) | {"id": f"{number:064x}"}
        await self.say(ws, "EVENT", "f1", made)


async def unasked(self: Hostile, ws: web.WebSocketResponse) -> None:
    made = event_json(sign_event(SELLER, kind=1, tags=(), content="", created_at=1, aux=bytes(32)))
    for _ in itertools.count():
        await self.say(ws, "EVENT", "f1", made)


async def flood(self: Hostile, ws: web.WebSocketResponse) -> None:
    """Genuine events without end, each as large as may be."""
    text = "y" * 90_000
    for number in itertools.count():
        made = event(f"n{number}", secret=OTHER, content=text)
        await self.say(ws, "EVENT", "f1", event_json(made))


async def no_end(self: Hostile, ws: web.WebSocketResponse) -> None:
    """Says all it has, one by one, and never that this was all."""
    for number in itertools.count():
        await self.say(ws, "EVENT", "f1", event_json(event(f"n{number}", secret=OTHER)))
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "behave", [silent, garbage, oversized, forged, unasked, flood, no_end], ids=lambda f: f.__name__
)
async def test_a_hostile_relay_costs_little(relays: MarketRelays, behave: Behaviour) -> None:
    async with running() as good, Hostile(behave) as bad:
        genuine = event("genuine")
        assert await relays.publish(genuine, [good], lane="sell") == 1
        asked: list[dict[str, object]] = [{"kinds": [KIND], "#t": ["x"], "limit": 500}]
        began = time.monotonic()
        found = await relays.fetch(asked, [good, bad.url], 3.0, lane="list")
        # The good one has answered: the other is waited for a second more.
        assert time.monotonic() - began < 2.5
        assert genuine in [one.event for one in found]
        assert len(found) == 1 or behave in (flood, no_end)
        held = sum(len(one.event.content) for one in found)
        assert held <= market_link.MAX_BYTES + 131_072
        assert all(one.event.kind == KIND for one in found)
        # Who goes on talking is left; who says little costs little.
        if behave not in (silent, no_end):
            await until(lambda: not bad_is_open(relays, bad))
        assert await relays.fetch([{"kinds": [KIND]}], [good], 3.0, lane="list")


def bad_is_open(relays: MarketRelays, bad: Hostile) -> bool:
    return any(one["open"] for one in relays.status() if one["url"] == bad.url)


async def test_who_broke_the_rules_is_left_alone_for_a_while(relays: MarketRelays) -> None:
    async with Hostile(garbage) as bad:
        assert await relays.fetch([{"kinds": [KIND]}], [bad.url], 3.0, lane="list") == ()
        began = time.monotonic()
        assert await relays.fetch([{"kinds": [KIND]}], [bad.url], 0.5, lane="list") == ()
        assert await relays.publish(event(), [bad.url], lane="list", enough=1) == 0
        assert time.monotonic() - began < 1.0  # nor waited for
        assert bad.connections == 1


async def test_lanes_share_no_connection_and_show_no_foreign_key(relays: MarketRelays) -> None:
    async def challenge(self: Hostile, ws: web.WebSocketResponse) -> None:
        await self.say(ws, "AUTH", f"who are you, {self.connections}")
        await asyncio.sleep(3600)

    async with Hostile(challenge) as curious:
        relays.listen("sell", [curious.url], {public_key(SELLER): SELLER}, lambda *_: None)
        relays.listen("buy-1", [curious.url], {public_key(BUYER): BUYER}, lambda *_: None)
        await relays.fetch([{"kinds": [KIND]}], [curious.url], 0.5, lane="list")

        def told() -> set[str]:
            return {one[1]["pubkey"] for one in curious.asked if one[0] == "AUTH"}

        await until(lambda: told() == {public_key(SELLER), public_key(BUYER)})
        assert curious.connections == 3


async def test_expired_and_foreign_wraps_are_not_passed_on(relays: MarketRelays) -> None:
    heard: list[Event] = []
    good, old, foreign = wrap(SELLER), wrap(SELLER, expires_in=-5), wrap(OTHER)
    broken = event_json(wrap(SELLER)) | {"sig": "0" * 128}

    async def mixed(self: Hostile, ws: web.WebSocketResponse) -> None:
        for made in (event_json(old), event_json(foreign), broken):
            await self.say(ws, "EVENT", "m1", made)
        for _ in range(3):
            await self.say(ws, "EVENT", "m1", event_json(good))
        await asyncio.sleep(3600)

    async with Hostile(mixed) as bad:
        keys = {public_key(SELLER): SELLER}
        relays.listen("sell", [bad.url], keys, lambda one, _: heard.append(one))
        await until(lambda: heard)
        request = next(one for one in bad.asked if one[0] == "REQ")
        # Whole days, a month back: what waits for us is not lost, and no clock shows.
        since = request[2]["since"]
        assert since % 86_400 == 0
        assert 30 * 86_400 < time.time() - since < 33 * 86_400
        await until(lambda: counted(relays, "duplicate") == 2)
        assert heard == [good]
        assert counted(relays, "unasked") == 1
        assert counted(relays, "bad_signature") == 1


def counted(relays: MarketRelays, code: str) -> int:
    counters: Any = [one["counters"] for one in relays.status()]
    return sum(one.get(code, 0) for one in counters)


@contextlib.asynccontextmanager
async def counting(status: int = 404, location: str = "") -> AsyncIterator[tuple[int, list[str]]]:
    """An HTTP server on this host: its port, and the paths that were asked for."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=status, headers={"Location": location} if location else {})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port := free_port())
    await site.start()
    try:
        yield port, asked
    finally:
        await runner.cleanup()


async def test_a_stranger_leads_to_public_addresses_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is written there, and whatever its name resolves to."""

    class Everywhere(ThreadedResolver):
        async def resolve(self, host: str, port: int = 0, family: Any = 0) -> Any:
            return await super().resolve("127.0.0.1", port, socket.AF_INET)

    monkeypatch.setattr("nostrvpn.io.http_way.HostLookup", Everywhere)
    async with counting() as (port, asked):
        urls = [
            *(f"ws://{host}:{port}/x" for host in ("127.0.0.1", "localhost", "relay.example")),
            *(f"ws://[{ip}]:{port}/x" for ip in ("::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1")),
            *(f"ws://{ip}:{port}/x" for ip in ("10.0.0.1", "169.254.169.254", "224.0.0.1")),
            *(f"{scheme}://relay.example:{port}/x" for scheme in ("http", "https", "file")),
            f"ws://relay.example:{port}/x#lane",
        ]
        made = MarketRelays(moment, own=())
        for url in urls:
            assert await made.publish(event(), [url], lane="sell") == 0
        assert asked == []
        assert made.counters["refused_relay"] == len(urls) - 1  # one had to be looked up
        await made.stop()
        # The user's own word is another matter.
        made = MarketRelays(moment, own=(urls[0],))
        assert await made.publish(event(), [urls[0]], lane="sell") == 0
        assert asked == ["/x"]
        await made.stop()


async def test_a_relay_leads_nowhere_else() -> None:
    """A redirect would have us ask for whatever this host reaches."""
    async with (
        counting() as (inside, asked),
        counting(302, f"http://127.0.0.1:{inside}/reboot") as (port, first),
    ):
        made = MarketRelays(moment)
        assert await made.publish(event(), [f"ws://127.0.0.1:{port}"], lane="sell") == 0
        assert first == ["/"]
        assert asked == []
        await made.stop()


async def test_strangers_name_few_relays_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the user find room whatever strangers name."""
    monkeypatch.setattr(RelaySockets, "open", lambda self, url: None)  # for ever on the way
    own = "ws://own.example"
    made = MarketRelays(moment, own=(own,))
    tasks = [
        asyncio.create_task(made.publish(event(), [f"ws://r{n}.example"], lane="sell"))
        for n in range(200)
    ]
    await asyncio.sleep(0)
    assert len(made.status()) == market_relays.MAX_STRANGE
    made.listen("sell", [own], {public_key(SELLER): SELLER}, lambda event, url: None)
    assert own in {link["url"] for link in made.status()}
    await made.stop()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
