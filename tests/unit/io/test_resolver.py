"""STUN servers by name: addresses are taken as they are, what has none is named."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest

from nostrvpn.endpoint import parse_endpoint
from nostrvpn.io.resolver import MAX_LOOKUPS, HostLookup, StunResolver

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
