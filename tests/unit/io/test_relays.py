"""The WebSocket shell and the pool over it, on loopback: a real relay, and hostile ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_address

import nostr_sdk
import pytest
from aiohttp import WSMsgType, web

from nostrvpn.io.embedded_relay import EmbeddedRelay
from nostrvpn.io.relays import MAX_OUTGOING, RelaySockets
from nostrvpn.machine import Entropy, Moment, Tick
from nostrvpn.nostr import nip44
from nostrvpn.nostr.event import Event, event_json, public_key, sign_event
from nostrvpn.nostr.nip59 import Rumor, gift_wrap, open_seal, open_wrap, seal_rumor
from nostrvpn.signaling.relays import (
    CloseRelay,
    Listen,
    OpenRelay,
    Publish,
    Published,
    Received,
    RelayClosed,
    RelayEvent,
    RelayOpened,
    RelayPool,
    RelayStatus,
    RelayText,
    SendText,
    UseRelays,
)

# Generous, for a loaded machine; nothing waits this long when all is well.
PATIENCE = 15.0
ALICE, BOB, MAILBOX_SECRET = (bytes(31) + bytes([n]) for n in (1, 2, 3))
MAILBOX = public_key(MAILBOX_SECRET)
Handler = Callable[[web.WebSocketResponse], Awaitable[None]]


def moment() -> Moment:
    return Moment(time.monotonic(), time.time(), Entropy(os.urandom(32)))


class Agent:
    """The smallest driver of a pool: what the daemon's loop does."""

    def __init__(self, urls: list[str], active: int = 3) -> None:
        self.pool = RelayPool(urls, active=active)
        self.inbox: asyncio.Queue[RelayEvent] = asyncio.Queue(16)
        self.sockets = RelaySockets(self.inbox.put)
        self.received: asyncio.Queue[Received] = asyncio.Queue()
        self.published: asyncio.Queue[Published] = asyncio.Queue()
        self.task = asyncio.create_task(self.loop())

    async def loop(self) -> None:
        while True:
            event: RelayEvent = Tick()
            deadline = self.pool.deadline
            wait = None if deadline is None else max(0.0, deadline - time.monotonic())
            # Not wait_for, which in Python 3.11 may swallow a cancellation.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    event = await self.inbox.get()
            for effect in self.pool.step(event, moment()):
                match effect:
                    case OpenRelay(url):
                        self.sockets.open(url)
                    case CloseRelay(url):
                        self.sockets.close(url)
                    case SendText(url, text):
                        self.sockets.send(url, text)
                    case Received():
                        self.received.put_nowait(effect)
                    case Published():
                        self.published.put_nowait(effect)

    async def wait_for(self, holds: Callable[[tuple[RelayStatus, ...]], bool]) -> None:
        """Wait until the snapshot is as wanted."""
        async with asyncio.timeout(PATIENCE):
            # The pool knows no asyncio that one could wait with.
            while not holds(self.pool.snapshot()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def wait_tested(self) -> None:
        await self.wait_for(lambda relays: all(relay.fitness != "testing" for relay in relays))

    async def publish(self, token: str, wraps: dict[int, Event]) -> Published:
        await self.inbox.put(Publish(token, wraps))
        told = await asyncio.wait_for(self.published.get(), PATIENCE)
        assert told.token == token
        return told

    async def receive(self) -> Event:
        return (await asyncio.wait_for(self.received.get(), PATIENCE)).event

    async def stop(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        await self.sockets.stop()


@contextlib.asynccontextmanager
async def agents(*urls: str, count: int = 2) -> AsyncIterator[list[Agent]]:
    """Agents on the same relays; the last one listens to the mailbox, the others to their own."""
    made = [Agent(list(urls)) for _ in range(count)]
    try:
        for number, agent in enumerate(made, start=1):
            secret = MAILBOX_SECRET if number == count else bytes(30) + bytes([1, number])
            await agent.inbox.put(Listen({public_key(secret): secret}))
        yield made
    finally:
        for agent in made:
            assert not agent.task.done(), "the agent's loop died"
            await agent.stop()


@contextlib.asynccontextmanager
async def server(handler: Handler, port: int = 0) -> AsyncIterator[str]:
    """A WebSocket server that does what the test wants."""

    async def accept(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        await handler(socket)
        return socket

    app = web.Application()
    app.router.add_get("/", accept)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    try:
        yield f"ws://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def real_relay(auth: str | None = None) -> AsyncIterator[str]:
    relay = EmbeddedRelay(auth=auth)
    await relay.start()
    try:
        yield relay.url
    finally:
        await relay.stop()


def message(text: str) -> dict[int, Event]:
    """A sealed message from Alice to Bob in both kinds of wrap."""
    now, entropy = int(time.time()), Entropy(os.urandom(32))
    rumor = Rumor(public_key(ALICE), now, 14, (), text)
    key = nip44.conversation_key(ALICE, public_key(BOB))
    seal = seal_rumor(rumor, ALICE, key, created_at=now, entropy=entropy)
    return {
        kind: gift_wrap(
            seal, MAILBOX, kind=kind, created_at=now, expiration=now + 600, entropy=entropy
        )
        for kind in (21059, 1059)
    }


def opened(wrap: Event) -> str:
    return open_seal(open_wrap(wrap, MAILBOX_SECRET), BOB).content


# --- with a real relay -------------------------------------------------------------------------


@pytest.mark.parametrize("auth", [None, "read", "write", "both"])
async def test_a_message_crosses_a_real_relay(auth: str | None) -> None:
    async with real_relay(auth) as url, agents(url) as (alice, bob):
        await alice.wait_tested()
        await bob.wait_tested()
        assert [status.fitness for status in bob.pool.snapshot()] == ["fit"]
        told = await alice.publish("t", {21059: message("hello")[21059]})
        assert told.accepted == 1
        wrap = await bob.receive()
        assert wrap.kind == 21059
        assert opened(wrap) == "hello"


async def test_several_relays_deliver_one_copy_and_nothing_is_lost() -> None:
    async with real_relay() as one, real_relay() as two, agents(one, two) as (alice, bob):
        await alice.wait_tested()
        await bob.wait_tested()
        wraps = [{21059: message(str(number))[21059]} for number in range(200)]
        for number, wrap in enumerate(wraps):
            await alice.inbox.put(Publish(str(number), wrap))
        told = [await asyncio.wait_for(alice.published.get(), PATIENCE) for _ in wraps]
        assert all(published.accepted == 1 for published in told)
        assert [opened(await bob.receive()) for _ in wraps] == [str(n) for n in range(200)]
        await bob.wait_for(
            lambda relays: sum(r.counters.get("duplicate", 0) for r in relays) == 200
        )
        assert bob.received.empty()


async def test_a_stored_message_waits_for_its_reader() -> None:
    async with real_relay() as url:
        async with agents(url) as (alice, _):
            await alice.wait_tested()
            assert (await alice.publish("t", {1059: message("later")[1059]})).accepted == 1
        async with agents(url) as (_, bob):
            assert opened(await bob.receive()) == "later"


async def test_a_relay_killed_and_restarted_is_used_again() -> None:
    relay = EmbeddedRelay()
    await relay.start()
    port = int(relay.url.rpartition(":")[2])
    async with agents(relay.url) as (alice, bob):
        await alice.wait_tested()
        await bob.wait_tested()
        await relay.stop()
        await alice.wait_for(lambda relays: relays[0].state != "connected")
        await bob.wait_for(lambda relays: relays[0].state != "connected")
        again = EmbeddedRelay("127.0.0.1", port)
        async with asyncio.timeout(PATIENCE):
            while not again.url:  # the kernel may hold the port for a moment
                with contextlib.suppress(Exception):
                    await again.start()
        await bob.wait_for(lambda relays: relays[0].state == "connected")
        await bob.wait_tested()
        # Published while Alice may still be connecting: it waits, it is not lost.
        assert (await alice.publish("t", message("back"))).accepted == 1
        assert opened(await bob.receive()) == "back"
        await again.stop()


async def test_no_relay_there_is_a_reason_and_a_substitute() -> None:
    async with real_relay() as url:
        alice = Agent(["ws://127.0.0.1:1", "not a url", url], active=1)
        try:
            await alice.wait_for(lambda relays: relays[2].fitness == "fit")
            relays = alice.pool.snapshot()
            assert relays[0].state in {"down", "connecting"}
            assert "127.0.0.1" in relays[0].reason
            assert (await alice.publish("t", message("x"))).accepted == 1
        finally:
            await alice.stop()


async def test_removing_a_relay_closes_its_connection() -> None:
    async with real_relay() as url, agents(url, count=1) as (alice,):
        await alice.wait_tested()
        await alice.inbox.put(UseRelays([]))
        await alice.wait_for(lambda relays: relays == ())
        await alice.wait_for(lambda _: not alice.sockets._links)


class NoEphemeral(nostr_sdk.WritePolicy):  # type: ignore[misc]  # the library has no types
    """A relay operator who keeps no ephemeral events."""

    async def admit_event(
        self, event: nostr_sdk.Event, socket_addr: str
    ) -> nostr_sdk.WritePolicyResult:
        if event.kind().is_ephemeral():
            return nostr_sdk.WritePolicyResult.REJECT("blocked: ephemeral")
        return nostr_sdk.WritePolicyResult.ACCEPT()


async def test_a_relay_without_ephemeral_events_is_stored_only() -> None:
    relay = EmbeddedRelay(write_policy=NoEphemeral())
    await relay.start()
    async with agents(relay.url) as (alice, bob):
        await alice.wait_tested()
        await bob.wait_tested()
        (status,) = alice.pool.snapshot()
        assert status.fitness == "stored-only"
        assert "ephemeral" in status.reason
        assert (await alice.publish("t", message("stored"))).accepted == 1
        wrap = await bob.receive()
        assert wrap.kind == 1059
        assert opened(wrap) == "stored"
    await relay.stop()


# --- with hostile ones -------------------------------------------------------------------------


async def test_a_relay_that_closes_at_once_is_counted_and_backed_off_from() -> None:
    async def close(socket: web.WebSocketResponse) -> None:
        await socket.close(code=1008, message=b"go away")

    async with server(close) as url, agents(url, count=1) as (alice,):
        await alice.wait_for(lambda relays: relays[0].counters.get("losses", 0) >= 2)
        (status,) = alice.pool.snapshot()
        assert "closed by the relay (code 1008)" in status.reason or status.state == "connected"


async def test_junk_is_counted_and_a_flood_ends_the_connection() -> None:
    async def flood(socket: web.WebSocketResponse) -> None:
        await socket.send_bytes(b"\x00\x01")
        with contextlib.suppress(ConnectionError):
            for number in range(10_000):
                await socket.send_str("[" * (number % 50))

    async with server(flood) as url, agents(url, count=1) as (alice,):
        await alice.wait_for(lambda relays: relays[0].counters.get("hangups", 0) >= 1)
        (status,) = alice.pool.snapshot()
        assert status.state == "down"
        assert "breaks the rules" in status.reason
        assert status.counters["malformed_json"] < 100


async def test_an_oversized_message_ends_the_connection() -> None:
    async def oversized(socket: web.WebSocketResponse) -> None:
        with contextlib.suppress(ConnectionError):
            await socket.send_str('["NOTICE","' + "x" * 200_000 + '"]')
        await socket.receive()

    async with server(oversized) as url, agents(url, count=1) as (alice,):
        await alice.wait_for(lambda relays: "oversized" in relays[0].reason)


async def test_forged_and_repeated_events_are_counted_and_real_ones_arrive() -> None:
    real = message("real")[21059]
    other = sign_event(
        ALICE, kind=1, tags=(("p", MAILBOX),), content="", created_at=1, aux=bytes(32)
    )
    forged = {**event_json(real), "content": "forged"}

    async def replay(socket: web.WebSocketResponse) -> None:
        async for frame in socket:
            assert frame.type is WSMsgType.TEXT
            match json.loads(frame.data):
                case ["REQ", str(name), *_] if name.startswith("m"):
                    for event in (forged, event_json(other), event_json(real), event_json(real)):
                        await socket.send_json(["EVENT", name, event])

    async with server(replay) as url, agents(url, count=1) as (alice,):
        assert opened(await alice.receive()) == "real"
        await alice.wait_for(lambda relays: relays[0].counters.get("duplicate", 0) == 1)
        (status,) = alice.pool.snapshot()
        assert status.counters["bad_id"] == 1
        assert status.counters["unasked"] == 1
        assert alice.received.empty()


async def test_a_relay_that_reads_nothing_overflows_visibly() -> None:
    release = asyncio.Event()

    async def deaf(socket: web.WebSocketResponse) -> None:
        await release.wait()

    events: asyncio.Queue[RelayEvent] = asyncio.Queue()
    sockets = RelaySockets(events.put)
    async with server(deaf) as url:
        sockets.open(url)
        assert await asyncio.wait_for(events.get(), PATIENCE) == RelayOpened(url)
        for _ in range(MAX_OUTGOING + 1):
            sockets.send(url, "x")
        closed = await asyncio.wait_for(events.get(), PATIENCE)
        assert closed == RelayClosed(url, "does not take what we send (512 texts wait)")
        # Gone, so a late text is of no consequence and the same URL can be opened again.
        sockets.send(url, "x")
        sockets.open(url)
        assert await asyncio.wait_for(events.get(), PATIENCE) == RelayOpened(url)
        release.set()
        await sockets.stop()


async def test_closing_while_connecting_is_answered_once() -> None:
    events: asyncio.Queue[RelayEvent] = asyncio.Queue()
    sockets = RelaySockets(events.put)
    # A listener that never answers the handshake.
    mute = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    url = f"ws://127.0.0.1:{mute.sockets[0].getsockname()[1]}"
    sockets.open(url)
    sockets.open(url)
    await asyncio.sleep(0)
    sockets.close(url)
    sockets.close(url)
    assert await asyncio.wait_for(events.get(), PATIENCE) == RelayClosed(url, "closed by us")
    await sockets.stop()
    assert events.empty()
    mute.close()


async def test_a_slow_reader_loses_nothing() -> None:
    total = 500

    async def burst(socket: web.WebSocketResponse) -> None:
        for number in range(total):
            await socket.send_str(str(number))
        await socket.close()

    events: asyncio.Queue[RelayEvent] = asyncio.Queue(1)
    sockets = RelaySockets(events.put)
    async with server(burst) as url:
        sockets.open(url)
        texts = []
        async with asyncio.timeout(PATIENCE):
            while not isinstance(event := await events.get(), RelayClosed):
                if isinstance(event, RelayText):
                    texts.append(event.text)
        assert texts == [str(number) for number in range(total)]
    await sockets.stop()


async def test_what_is_no_websocket_is_said() -> None:
    events: asyncio.Queue[RelayEvent] = asyncio.Queue()
    sockets = RelaySockets(events.put)
    async with server(lambda socket: asyncio.sleep(0)) as url:
        sockets.open(f"{url}/missing")
        closed = await asyncio.wait_for(events.get(), PATIENCE)
    assert closed == RelayClosed(f"{url}/missing", "no WebSocket there (HTTP 404)")
    await sockets.stop()


# --- a change of network -----------------------------------------------------------------------


async def quiet(socket: web.WebSocketResponse) -> None:
    """A relay that only reads."""
    async for _ in socket:
        pass


async def test_a_connection_ends_at_once_with_its_address_and_others_live(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: asyncio.Queue[RelayEvent] = asyncio.Queue()
    sockets = RelaySockets(events.put)
    home = ip_address("127.0.0.1")
    async with server(quiet) as url:
        sockets.open(url)
        assert await asyncio.wait_for(events.get(), PATIENCE) == RelayOpened(url)
        sockets.moved({home: "lo"}, restart=True)
        sockets.moved({}, restart=True)  # an interface that is not looked at, such as loopback
        await asyncio.sleep(0.05)
        assert events.empty()
        monkeypatch.setattr("nostrvpn.io.relays.is_ours", lambda address: address != home)
        began = time.monotonic()
        sockets.moved({}, restart=False)
        closed = await asyncio.wait_for(events.get(), PATIENCE)
        assert closed == RelayClosed(url, "the network changed")
        assert time.monotonic() - began < 1.0
    await sockets.stop()


async def test_a_connection_ends_when_another_interface_leads_to_its_relay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: asyncio.Queue[RelayEvent] = asyncio.Queue()
    sockets = RelaySockets(events.put)
    wifi, wired = ip_address("127.0.0.1"), ip_address("127.0.0.2")
    async with server(quiet) as url:
        sockets.open(url)
        assert await asyncio.wait_for(events.get(), PATIENCE) == RelayOpened(url)
        monkeypatch.setattr("nostrvpn.io.relays.source_towards", lambda *_: wired)
        sockets.moved({wifi: "eth0", wired: "eth0"}, restart=False)  # one interface's other address
        await asyncio.sleep(0.05)
        assert events.empty()
        sockets.moved({wifi: "wlan0", wired: "eth0"}, restart=False)
        closed = await asyncio.wait_for(events.get(), PATIENCE)
        assert closed == RelayClosed(url, "the network changed")
    await sockets.stop()


async def test_what_is_being_connected_begins_anew_and_nobody_hears_of_it() -> None:
    events: asyncio.Queue[RelayEvent] = asyncio.Queue()
    sockets = RelaySockets(events.put)
    tried: asyncio.Queue[bytes] = asyncio.Queue()
    writers = []

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        tried.put_nowait(await reader.readuntil(b"\r\n"))

    listener = await asyncio.start_server(mute, "127.0.0.1", 0)
    url = f"ws://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    sockets.open(url)
    for _ in range(3):
        await asyncio.wait_for(tried.get(), PATIENCE)
        sockets.moved({}, restart=True)
    await asyncio.wait_for(tried.get(), PATIENCE)
    sockets.moved({}, restart=False)
    await asyncio.sleep(0.05)
    assert tried.empty()
    assert events.empty()
    sockets.close(url)
    assert await asyncio.wait_for(events.get(), PATIENCE) == RelayClosed(url, "closed by us")
    await sockets.stop()
    for writer in writers:
        writer.close()
        await writer.wait_closed()
    listener.close()
