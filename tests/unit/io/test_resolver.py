"""STUN servers by name: addresses are taken as they are, what has none is named."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nostrvpn.endpoint import parse_endpoint
from nostrvpn.io import resolver as module
from nostrvpn.io.channels import ChannelCalls, Channels
from nostrvpn.io.dns_forwarder import Way
from nostrvpn.io.resolver import MAX_LOOKUPS, HostLookup, StunResolver, ask_outside, look_up
from nostrvpn.io.turn_wire import connect_turn, parse_turn_url
from nostrvpn.paths.events import WebSocketTarget
from tests.unit.io.name_server import name_server, reply

LONG = f"{'x' * 300}:3478"


async def test_addresses_need_no_lookup():
    servers = ("192.0.2.1:3478", "[2001:db8::1]:3478")
    found, unresolved = await StunResolver().resolve(servers)
    assert found == tuple(parse_endpoint(server) for server in servers)
    assert unresolved == ()


async def test_names_get_one_address_of_each_family():
    found, unresolved = await StunResolver().resolve(("localhost:3478",))
    assert unresolved == ()
    assert found
    assert all(endpoint.ip.is_loopback and endpoint.port == 3478 for endpoint in found)
    versions = [endpoint.ip.version for endpoint in found]
    assert len(versions) == len(set(versions))


async def test_what_does_not_resolve_is_named():
    servers = ("no-such-host.invalid:3478", "192.0.2.1:3478", LONG)
    found, unresolved = await StunResolver().resolve(servers)
    assert found == (parse_endpoint("192.0.2.1:3478"),)
    assert "no-such-host.invalid:3478" in unresolved
    assert LONG in unresolved


async def test_an_address_outlives_the_silence_of_the_name_server(monkeypatch: pytest.MonkeyPatch):
    resolver = StunResolver()
    (known, _) = await resolver.resolve(("localhost:3478",))

    def silent(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    assert await resolver.resolve(("localhost:3478",)) == (known, ("localhost:3478",))
    # What is not asked for any more is not given either.
    assert await resolver.resolve(()) == ((), ())


async def begun(count: int) -> None:
    """Wait until so many lookups of slow names are under way."""
    while sum(t.name.startswith("lookup slow") for t in threading.enumerate()) < count:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def test_lookups_that_hang_keep_nobody_waiting(monkeypatch: pytest.MonkeyPatch):
    hanging = threading.Event()
    genuine = socket.getaddrinfo

    def slow(host: str, *arguments: Any) -> Any:
        if host.startswith("slow"):
            hanging.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return genuine(host, *arguments)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    stuck = [
        asyncio.create_task(StunResolver().resolve((f"slow{n}.invalid:1",)))
        for n in range(MAX_LOOKUPS - 1)
    ]
    async with asyncio.timeout(10):
        await begun(MAX_LOOKUPS - 1)
        [answer] = await HostLookup().resolve("127.0.0.1", 80)
        assert (answer["host"], answer["port"]) == ("127.0.0.1", 80)
        stuck.append(asyncio.create_task(StunResolver().resolve(("slow.invalid:1",))))
        await begun(MAX_LOOKUPS)
        with pytest.raises(OSError, match="lookups wait"):
            await HostLookup().resolve("127.0.0.1", 80)
    hanging.set()
    for _, unresolved in await asyncio.gather(*stuck):
        assert len(unresolved) == 1


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """While an exit is used: whoever asks the host's resolver now asks through the tunnel."""

    def inside(*_: object, **__: object) -> None:
        raise AssertionError("the host's resolver was asked")

    monkeypatch.setattr(socket, "getaddrinfo", inside)
    hosts = tmp_path / "hosts"
    monkeypatch.setattr(module, "_HOSTS", hosts)
    yield hosts
    ask_outside(lambda: None)


async def test_while_an_exit_is_used_our_own_lookups_go_to_the_servers_outside(outside):
    def told(query: bytes, tcp: bool) -> list[bytes]:
        if b"\x04many" in query and not tcp:
            cut = bytearray(reply(query))
            cut[2] |= 2
            return [bytes(cut)]
        is_v6 = b"\0\x1c\0\1" in query
        return [reply(query, "2001:db8::7" if is_v6 else "198.51.100.7")]

    async with name_server(told) as server:
        ask_outside(lambda: Way((server,)))
        found, unresolved = await StunResolver().resolve(("stun.example:3478",))
        assert [str(e) for e in found] == ["198.51.100.7:3478", "[2001:db8::7]:3478"]
        assert unresolved == ()
        [answer] = await HostLookup().resolve("relay.example", 443)
        assert (answer["host"], answer["port"], answer["family"]) == ("198.51.100.7", 443, 2)
        [_, ipv6] = await look_up("many.example", 1, socket.SOCK_DGRAM)  # by TCP, as it was cut
        assert ipv6[4] == ("2001:db8::7", 1, 0, 0)
        assert (await look_up("192.0.2.3", 1, socket.SOCK_STREAM))[0][4] == ("192.0.2.3", 1)


async def test_names_in_the_hosts_file_are_asked_of_nobody(outside):
    outside.write_text(
        "# 192.0.2.1 relay.example\n192.0.2.2\tother Relay.Example # here\n2001:db8::2 relay.example.\n"
        "192.0.2.9 xrelay.example relay.example.org\nnonsense relay.example\n"
    )
    async with name_server(lambda query, _: [reply(query, "198.51.100.7")]) as server:
        ask_outside(lambda: Way((server,)))
        found = await look_up("relay.example", 443, socket.SOCK_STREAM)
        assert [item[4][0] for item in found] == ["192.0.2.2", "2001:db8::2"]
        assert (await look_up("example", 443, socket.SOCK_STREAM))[0][4][0] == "198.51.100.7"


async def test_this_host_is_asked_of_nobody(outside):
    async with name_server(lambda query, _: [reply(query, "198.51.100.7")]) as server:
        ask_outside(lambda: Way((server,)))
        for host in ("localhost", "LocalHost.", "mint.localhost"):
            found = await look_up(host, 443, socket.SOCK_STREAM)
            assert [item[4][0] for item in found] == ["127.0.0.1", "::1"]


async def test_a_name_that_no_server_outside_knows_is_said_so(outside):
    async with name_server(lambda query, _: [reply(query, rcode=3)]) as server:
        ask_outside(lambda: Way((server,)))
        for host in ("nobody.example", "x" * 70, "b\xfccher.example"):
            with pytest.raises(OSError, match="no name server outside"):
                await look_up(host, 1, socket.SOCK_STREAM)


async def test_where_no_server_outside_is_known_the_hosts_resolver_is_asked():
    ask_outside(lambda: Way(()))
    try:
        assert (await look_up("127.0.0.1", 1, socket.SOCK_STREAM))[0][4][0] == "127.0.0.1"
    finally:
        ask_outside(lambda: None)


async def test_names_of_turn_servers_and_relays_do_not_keep_the_program_from_ending(monkeypatch):
    """A name server that is gone: asyncio would wait at its end for threads of its own."""
    hanging, closed = threading.Event(), asyncio.Event()

    def slow(*_: Any) -> Any:
        hanging.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    calls = ChannelCalls(lambda *_: None, lambda *_: None, lambda *_: closed.set())
    channels = Channels(1, calls)
    target = WebSocketTarget("ws://slow-relay.invalid/", b"hello")
    try:
        turn = parse_turn_url("turn:slow-turn.invalid:3478", "user", "password")
        allocating = asyncio.create_task(connect_turn(turn, 0, None))
        channels.open(1, target)
        async with asyncio.timeout(10):
            await begun(2)
        allocating.cancel()
        await asyncio.gather(allocating, return_exceptions=True)
        channels.close(1)
        await asyncio.wait_for(closed.wait(), 10)
        began = time.monotonic()
        await asyncio.get_running_loop().shutdown_default_executor()  # as asyncio.run does
        assert time.monotonic() - began < 10
    finally:
        await channels.close_all()
        hanging.set()
