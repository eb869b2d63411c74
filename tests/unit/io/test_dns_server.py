"""The name server's sockets: who is answered, how often, and what noise does."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from ipaddress import ip_address, ip_network
from typing import Any

import dns.asyncresolver
import dns.message
import dns.resolver
import pytest

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import SystemRefused
from nostrvpn.io import dns_server
from nostrvpn.io.dns_server import BURST, MAX_CONNECTIONS, MAX_OF_ONE_GUEST, DnsServer, Reply
from nostrvpn.mesh.zone import Resident, make_zone
from nostrvpn.mesh.zone_answers import answer

NAS = Resident("a" * 64, "nas", "", (ip_address("fd00::7"), ip_address("10.91.0.7")))
MANY = Resident("b" * 64, "many", "", tuple(ip_address(f"10.91.1.{i}") for i in range(60)))
ZONE = make_zone("home", [NAS, MANY], [ip_network("10.91.0.0/16")])
QUERY = dns.message.make_query("nas.home.nvpn", "A").to_wire()
LIMIT = 10.0


def free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.118.112.1", 0))
        number: int = tried.getsockname()[1]
        return number


@pytest.fixture
async def server() -> AsyncIterator[DnsServer]:
    made = DnsServer(lambda query, tcp: answer(query, ZONE, tcp=tcp))
    yield made
    await made.stop()


async def started(server: DnsServer) -> Endpoint:
    return await server.start(port=free_port(), other_port=free_port())


async def test_a_real_resolver_finds_names_over_udp_tcp_and_after_truncation(server):
    endpoint = await started(server)
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = [dns.nameserver.Do53Nameserver(str(endpoint.ip), endpoint.port)]
    resolver.lifetime = LIMIT
    resolver.search = [dns.name.from_text("home.nvpn")]
    for tcp in (False, True):
        found = await resolver.resolve("nas.home.nvpn", "A", tcp=tcp)
        assert [str(item) for item in found] == ["10.91.0.7"]
    assert len(await resolver.resolve("many.home.nvpn", "A")) == 60  # by TCP, after a short answer
    assert str((await resolver.resolve("nas", "AAAA", search=True))[0]) == "fd00::7"
    assert str((await resolver.resolve_address("10.91.0.7"))[0]) == "nas.home.nvpn."
    with pytest.raises(dns.resolver.NXDOMAIN):
        await resolver.resolve("nobody.home.nvpn", "A")
    with pytest.raises(dns.resolver.NoAnswer):
        await resolver.resolve("nas.home.nvpn", "MX")
    with pytest.raises(dns.resolver.NoNameservers):
        await resolver.resolve("example.org", "A")


async def test_a_second_node_takes_the_next_address_and_then_another_port(server):
    port, other = free_port(), free_port()
    servers = [server, *(DnsServer(lambda query, tcp: None) for _ in range(8))]
    try:
        endpoints = [await item.start(port=port, other_port=other) for item in servers]
    finally:
        for item in servers[1:]:
            await item.stop()
    assert [str(endpoint) for endpoint in endpoints[:2]] == [
        f"127.118.112.1:{port}",
        f"127.118.112.2:{port}",
    ]
    assert endpoints[8] == Endpoint(ip_address("127.118.112.1"), other)


async def test_where_everything_is_taken_it_says_so(server):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("0.0.0.0", 0))
        taken = udp.getsockname()[1]
        with pytest.raises(SystemRefused, match=f"port {taken}: .*in use"):
            await server.start(port=taken, other_port=taken)


async def test_only_this_host_is_answered(server):
    assert server.respond(QUERY, ("127.0.0.1", 9), tcp=False)
    for source in (("192.0.2.1", 9), ("fe80::1%eth0", 9, 0, 2), ("10.91.0.9", 9), None, ("x", 1)):
        assert server.respond(QUERY, source, tcp=False) is None
    assert server.counters["not_local"] == 5


async def test_at_an_address_of_the_mesh_that_address_alone_is_answered(server):
    own, port = ip_address("127.99.0.1"), free_port()
    await server.offer_at([own], "lo", port=port)
    await server.offer_at([own], "lo", port=port)  # a second time does nothing
    assert server.respond(QUERY, (str(own), 9), tcp=False)
    assert server.respond(QUERY, ("10.91.0.9", 9), tcp=False) is None
    with pytest.raises(SystemRefused, match=r"198\.51\.100\.9"):
        await server.offer_at([ip_address("198.51.100.9")], "lo", port=port)


async def test_a_flood_costs_a_bounded_number_of_answers():
    now = 1000.0
    server = DnsServer(lambda query, tcp: answer(query, ZONE, tcp=tcp), lambda: now)
    answered = [server.respond(QUERY, ("127.0.0.1", 9), tcp=False) for _ in range(2000)]
    assert len([item for item in answered if item]) == BURST
    assert server.counters["too_many"] == 2000 - BURST
    now += 1.0
    assert server.respond(QUERY, ("127.0.0.1", 9), tcp=False)


async def test_connections_are_bounded_in_number_length_and_time(server, monkeypatch):
    monkeypatch.setattr(dns_server, "IDLE_S", 0.2)
    endpoint = await started(server)
    where = (str(endpoint.ip), endpoint.port)
    opened = [await asyncio.open_connection(*where) for _ in range(MAX_CONNECTIONS + 3)]
    ended = await asyncio.wait_for(asyncio.gather(*(reader.read() for reader, _ in opened)), LIMIT)
    assert ended == [b""] * len(opened)  # nobody said anything
    assert server.counters["connections_refused"] == 3
    for _, writer in opened:
        writer.close()
    reader, writer = await asyncio.open_connection(*where)
    writer.write(b"\xff\xff")
    assert await asyncio.wait_for(reader.read(), LIMIT) == b""
    assert server.counters["dropped"] == 1
    writer.close()
    # Several questions on one connection, the second in pieces.
    reader, writer = await asyncio.open_connection(*where)
    framed = len(QUERY).to_bytes(2, "big") + QUERY
    writer.write(framed + framed[:5])
    await writer.drain()
    writer.write(framed[5:])
    for _ in range(2):
        length = int.from_bytes(await asyncio.wait_for(reader.readexactly(2), LIMIT), "big")
        assert (await reader.readexactly(length))[:2] == QUERY[:2]
    writer.close()


async def test_noise_is_dropped_and_the_next_question_answered(server):
    endpoint = await started(server)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setblocking(False)
        asking.bind(("127.0.0.1", 0))
        asking.connect((str(endpoint.ip), endpoint.port))
        for noise in (b"", b"\x00", bytes(12), b"\xff" * 5000, QUERY[:20]):
            asking.send(noise)
        asking.send(QUERY)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(LIMIT):
            while dns.message.from_wire(found := await loop.sock_recv(asking, 4096)).rcode():
                pass
    assert found[:2] == QUERY[:2]
    assert len(dns.message.from_wire(found).answer) == 1


async def ask(endpoint: Endpoint, *, tcp: bool = False) -> bytes:
    """Ask the server one question by a socket of this host."""
    loop = asyncio.get_running_loop()
    kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as asking:
        asking.setblocking(False)
        await loop.sock_connect(asking, (str(endpoint.ip), endpoint.port))
        await loop.sock_sendall(asking, len(QUERY).to_bytes(2, "big") + QUERY if tcp else QUERY)
        return (await loop.sock_recv(asking, 4096))[2 if tcp else 0 :]


@pytest.mark.parametrize("tcp", [False, True])
async def test_an_answer_that_takes_its_time_keeps_no_other_waiting(tcp):
    slow = asyncio.Event()

    async def later(query: bytes) -> bytes | None:
        await slow.wait()
        return answer(query, ZONE)

    asked: list[bytes] = []

    def told(query: bytes, _tcp: bool) -> Reply:
        asked.append(query)
        return later(query) if len(asked) == 1 else answer(query, ZONE)

    server = DnsServer(told)
    try:
        endpoint = await started(server)
        async with asyncio.timeout(LIMIT):
            waiting = asyncio.create_task(ask(endpoint, tcp=tcp))
            while not asked:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            assert (await ask(endpoint, tcp=tcp))[:2] == QUERY[:2]
            assert not waiting.done()
            slow.set()
            assert (await waiting)[:2] == QUERY[:2]
    finally:
        await server.stop()


async def test_guests_are_answered_from_their_interface_alone_and_until_dismissed(server):
    own, port = ip_address("127.99.0.2"), free_port()
    heard: list[str] = []

    def guest(query: bytes, asker: Any, tcp: bool) -> Reply:
        heard.append(str(asker))
        return answer(query, ZONE, tcp=tcp)

    with pytest.raises(SystemRefused, match="no name server"):
        await server.offer_at([own], "nvpn-none", guests=guest, port=port)
    await server.offer_at([own], "lo", port=port)  # for our own programs first
    await server.offer_at([own], "lo", guests=guest, port=port)
    await server.offer_at([own], "lo", guests=guest, port=port)  # a second time does nothing
    endpoint = Endpoint(own, port)
    async with asyncio.timeout(LIMIT):
        for tcp in (False, True):
            assert (await ask(endpoint, tcp=tcp))[:2] == QUERY[:2]
    assert len(heard) == 2
    await server.offer_at([], "lo")
    await asyncio.sleep(0)
    with pytest.raises(OSError, match="failed"):
        await ask(endpoint, tcp=True)


async def test_one_guest_takes_no_connections_from_the_others(server):
    own, port = ip_address("127.99.0.3"), free_port()
    await server.offer_at([own], "lo", guests=lambda query, _asker, tcp: None, port=port)
    opened = [await asyncio.open_connection(str(own), port) for _ in range(MAX_OF_ONE_GUEST + 2)]
    async with asyncio.timeout(LIMIT):
        while server.counters["connections_refused"] < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        reader, writer = await asyncio.open_connection(str(own), port, local_addr=("127.99.0.4", 0))
        writer.write(len(QUERY).to_bytes(2, "big") + QUERY)
        assert await reader.read() == b""  # heard, though not answered
    assert server.counters["connections_refused"] == 2
    for _, each in [*opened, (reader, writer)]:
        each.close()
