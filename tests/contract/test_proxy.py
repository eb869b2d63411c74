"""Nostr relays through a SOCKS5 proxy: a real one, and one that writes down what it is asked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nostrvpn.io.embedded_relay import EmbeddedRelay
from nostrvpn.io.proxy import SocksProxy
from nostrvpn.io.relays import RelaySockets
from nostrvpn.machine import Entropy, Moment, Tick
from nostrvpn.nostr.event import public_key
from nostrvpn.nostr.nip44 import conversation_key
from nostrvpn.nostr.nip59 import STORED_WRAP, Rumor, gift_wrap, seal_rumor
from nostrvpn.signaling.lanes import Lanes
from nostrvpn.signaling.relays import (
    CloseRelay,
    Listen,
    OpenRelay,
    Publish,
    Published,
    Received,
    SendText,
)

PATIENCE = 15.0
NAME = "relay.nowhere.invalid"  # RFC 2606: no resolver of ours can know it
SECRETS = [bytes(31) + bytes([n]) for n in (1, 2)]


class Proxy:
    """SOCKS5 (RFC 1928, 1929) in few lines: every name leads to the relay's port on loopback."""

    def __init__(self, relay_port: int) -> None:
        self.relay_port = relay_port
        self.asked: list[tuple[str, str]] = []  # (user, host)
        self.sources: set[int] = set()  # our ports towards the relay
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        out: asyncio.StreamWriter | None = None
        try:
            _, count = await reader.readexactly(2)
            await reader.readexactly(count)
            writer.write(b"\x05\x02")
            _, size = await reader.readexactly(2)
            user = (await reader.readexactly(size)).decode()
            await reader.readexactly((await reader.readexactly(1))[0])
            writer.write(b"\x01\x00")
            _, _, _, kind = await reader.readexactly(4)
            assert kind == 3, "an address, where a name was to be resolved here"
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
            await reader.readexactly(2)
            self.asked.append((user, host))
            inward, out = await asyncio.open_connection("127.0.0.1", self.relay_port)
            self.sources.add(out.get_extra_info("sockname")[1])
            writer.write(b"\x05\x00\x00\x01" + bytes(6))
            await asyncio.gather(copy(reader, out), copy(inward, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for end in (writer, out):
                if end is not None:
                    end.close()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


class Agent:
    """Lanes over sockets: what the daemon's loop does."""

    def __init__(self, url: str, proxy: SocksProxy) -> None:
        self.lanes = Lanes([url], active=1, is_isolated=True)
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.sockets = RelaySockets(self.inbox.put, proxy)
        self.heard: list[object] = []
        self.task = asyncio.create_task(self.loop())

    def step(self, event: Any) -> None:
        moment = Moment(time.monotonic(), time.time(), Entropy(os.urandom(32)))
        for effect in self.lanes.step(event, moment):
            match effect:
                case OpenRelay(url):
                    self.sockets.open(url)
                case CloseRelay(url):
                    self.sockets.close(url)
                case SendText(url, text):
                    self.sockets.send(url, text)
                case Published() | Received():
                    self.heard.append(effect)

    async def loop(self) -> None:
        while True:
            deadline = self.lanes.deadline
            wait = None if deadline is None else max(0.0, deadline - time.monotonic())
            event: Any = Tick()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    event = await self.inbox.get()
            self.step(event)

    async def wait_for(self, holds) -> None:
        async with asyncio.timeout(PATIENCE):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.sockets.stop()


@pytest.fixture
async def relay() -> AsyncIterator[EmbeddedRelay]:
    relay = EmbeddedRelay("127.0.0.1", 0)
    await relay.start()
    yield relay
    await relay.stop()


def wrap_for(mailbox: str):
    entropy = Entropy(os.urandom(32))
    author, now = bytes(31) + b"\x09", int(time.time())
    rumor = Rumor(public_key(author), now, 21_910, (), "x")
    shared = conversation_key(author, mailbox)
    seal = seal_rumor(rumor, author, shared, created_at=now, entropy=entropy)
    return gift_wrap(
        seal, mailbox, kind=STORED_WRAP, created_at=now, expiration=now + 600, entropy=entropy
    )


def port_of(relay: EmbeddedRelay) -> int:
    return int(relay.url.rpartition(":")[2])


async def exchange(agent: Agent) -> None:
    """Read two mailboxes, publish to one of them twice, and get both."""
    boxes = {public_key(secret): secret for secret in SECRETS}
    agent.step(Tick())
    agent.step(Listen(boxes))
    await agent.wait_for(lambda: agent.lanes.connected == 1)
    target = next(iter(boxes))
    for number in range(2):
        agent.step(Publish(f"m{number}", {STORED_WRAP: wrap_for(target)}))
    await agent.wait_for(
        lambda: (
            sum(isinstance(e, Received) for e in agent.heard) == 2
            and sum(isinstance(e, Published) for e in agent.heard) == 2
        )
    )
    assert all(e.accepted for e in agent.heard if isinstance(e, Published))


async def test_names_are_the_proxys_business_and_each_purpose_has_its_own_connection(relay):
    proxy = Proxy(port_of(relay))
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    agent = Agent(f"ws://{NAME}:7777", SocksProxy(*address[:2]))
    looked_up: list[str] = []
    original = socket.getaddrinfo

    def watched(host, *args, **kwargs):
        looked_up.append(str(host))
        return original(host, *args, **kwargs)

    socket.getaddrinfo = watched
    try:
        await exchange(agent)
    finally:
        socket.getaddrinfo = original
        await agent.stop()
        server.close()
    # The host does not know the name, so every connection came by the proxy; nobody here asked for it.
    assert NAME not in looked_up
    assert {host for _, host in proxy.asked} == {NAME}
    users = [user for user, _ in proxy.asked]
    # One that tests the relay, one for each of two mailboxes, one for each of two publications.
    assert len(users) == len(set(users)) == 5


@pytest.mark.skipif(shutil.which("microsocks") is None, reason="needs the package microsocks")
async def test_a_real_proxy_carries_everything(relay):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        "microsocks", "-i", "127.0.0.1", "-p", str(port), stderr=asyncio.subprocess.DEVNULL
    )
    agent = None
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.05)
        agent = Agent(f"ws://localhost:{port_of(relay)}", SocksProxy("127.0.0.1", port))
        await exchange(agent)
    finally:
        if agent is not None:
            await agent.stop()
        process.kill()
        await process.wait()


@pytest.mark.parametrize("is_silent", [False, True])
async def test_a_dead_proxy_is_named_and_nothing_goes_around_it(relay, is_silent, monkeypatch):
    monkeypatch.setattr("nostrvpn.io.relays.PROXIED_CONNECT_SECONDS", 1.0)
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        if is_silent:
            dead.listen(1)
        agent = Agent(relay.url, SocksProxy(*dead.getsockname()))
        try:
            agent.step(Tick())
            await agent.wait_for(
                lambda: any("the proxy" in r.reason for r in agent.lanes.snapshot())
            )
        finally:
            await agent.stop()
    assert agent.lanes.connected == 0


async def test_a_relay_that_the_proxy_cannot_reach_is_not_the_proxys_fault():
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2)
        writer.write(b"\x05\x00")
        await reader.read(512)
        writer.write(b"\x05\x04\x00\x01" + bytes(6))  # RFC 1928: host unreachable
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    agent = Agent(f"ws://{NAME}", SocksProxy(*server.sockets[0].getsockname()[:2]))
    try:
        agent.step(Tick())
        await agent.wait_for(
            lambda: any("through the proxy" in r.reason for r in agent.lanes.snapshot())
        )
    finally:
        await agent.stop()
        server.close()
