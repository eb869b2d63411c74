"""A router that means harm, at the real sockets: one clear error or a counted drop, and few requests."""

from __future__ import annotations

import asyncio
import itertools
import os
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest

from nostrvpn.io import upnp
from nostrvpn.io.port_mapping import DefaultGateway, PortMapping
from nostrvpn.io.upnp import UpnpFailure, UpnpRouter
from nostrvpn.lab.patience import patient
from nostrvpn.portmap import gateway as machine
from nostrvpn.portmap.gateway import PROBE_WAIT

HERE = IPv4Address("127.0.0.1")
PORT = 40_000
PUBLIC = "11.0.1.2"
Json = dict[str, Any]
Answer = Callable[[bytes, int], list[bytes]]
"""From a request and its number to the datagrams that answer it."""


def pcp(
    request: bytes, epoch: int, *, ip: str = PUBLIC, lifetime: int = 7200, wrong: int = 0
) -> bytes:
    """Answer a PCP request; ``wrong`` is added to the internal port."""
    head = struct.pack("!BBBBII12x", 2, 0x80 | request[1], 0, 0, lifetime, epoch)
    if request[1] == 0:
        return head
    nonce, protocol, internal, external = struct.unpack_from("!12sB3xHH", request, 24)
    there = ip_address(ip)
    packed = there.packed if there.version == 6 else bytes(10) + b"\xff\xff" + there.packed
    where = struct.pack("!12sB3xHH16s", nonce, protocol, internal + wrong, external, packed)
    return head + where


def nat_pmp(request: bytes, epoch: int, *, ip: str = PUBLIC, lifetime: int = 7200) -> bytes:
    if request[1] == 0:
        return struct.pack("!BBHI4s", 0, 0x80, 0, epoch, IPv4Address(ip).packed)
    internal, external = struct.unpack_from("!HH", request, 4)
    return struct.pack("!BBHIHHI", 0, 0x81, 0, epoch, internal, external, lifetime)


def only(version: int, render: Callable[..., bytes], **lies: Any) -> Answer:
    """Speak one protocol, and lie."""
    return lambda request, number: (
        [render(request, 5000 + number, **lies)] if request[0] == version else []
    )


def falling(version: int, render: Callable[..., bytes]) -> Answer:
    """The epoch goes back with each answer: the router pretends to restart all the time."""
    return lambda request, number: (
        [render(request, max(0, 900_000 - 1000 * number))] if request[0] == version else []
    )


class Liar(asyncio.DatagramProtocol):
    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.requests.append(data)
        for one in self.answer(data, len(self.requests)):
            self.transport.sendto(one, address)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PROBE_AGAIN", (0.05, 0.05, 600.0))
    monkeypatch.setattr(machine, "RETRANSMIT", (0.05, 0.05))
    monkeypatch.setattr(machine, "UPNP_WAIT", 1.0)
    monkeypatch.setattr(upnp, "SEARCH_WAITS", (0.05, 0.05))
    monkeypatch.setattr(upnp, "HTTP_TIMEOUT", 0.3)


def asked(netns: Any, answer: Answer, seconds: float) -> tuple[Liar, Json, list[Any], Any]:
    """Map against such a router for so long; return it, the report, what was told, the drops."""

    async def work() -> tuple[Liar, Json, list[Any], Any]:
        loop = asyncio.get_running_loop()
        transport, liar = await loop.create_datagram_endpoint(
            lambda: Liar(answer), (str(HERE), 5351)
        )
        told: list[Any] = []
        made = PortMapping(PORT, 0, told.append)
        made.gateways_changed([DefaultGateway(HERE, HERE, "lo")])
        await asyncio.sleep(seconds)
        report = made.report()
        counters = made.counters
        seen = list(told)
        await made.close()
        transport.close()
        return liar, report, seen, counters

    found: tuple[Liar, Json, list[Any], Any] = netns.call(lambda: asyncio.run(work()))
    return found


LIES: dict[str, tuple[Answer, str]] = {
    "PCP lends for 0 s": (only(2, pcp, lifetime=0), "PCP: the router gives a mapping for 0 s only"),
    "NAT-PMP lends for 0 s": (
        only(0, nat_pmp, lifetime=0),
        "NAT-PMP: the router gives a mapping for",
    ),
    "PCP gives loopback": (only(2, pcp, ip="127.0.0.1"), "the router is behind a NAT itself"),
    "PCP gives multicast": (only(2, pcp, ip="224.0.0.1"), "the router is behind a NAT itself"),
    "PCP gives nothing": (only(2, pcp, ip="0.0.0.0"), "PCP: the router gives no external address"),
    "PCP gives IPv6": (only(2, pcp, ip="2d00::1"), "PCP: the router gives no external address"),
    "PCP maps another's port": (only(2, pcp, wrong=1), "PCP: the router does not answer"),
    "NAT-PMP gives a private address": (
        only(0, nat_pmp, ip="192.168.9.9"),
        "the router is behind a NAT itself",
    ),
    "garbage": (lambda r, _: [os.urandom(60)] * 3 + [r[:1] + os.urandom(1100)], "the router"),
    "everything it can": (
        lambda r, _: [bytes([v, o]) + bytes(58) for v in (0, 2) for o in range(256)],
        "",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_router_that_lies_about_a_mapping_gets_few_questions_and_no_belief(
    netns: Any, lie: str
) -> None:
    answer, reason = LIES[lie]
    liar, report, told, counters = asked(netns, answer, 3 * PROBE_WAIT + 1.0)
    assert not [endpoints for endpoints in told if endpoints]
    assert reason in report["error"]
    assert report["error"].isprintable()
    assert len(liar.requests) <= 24
    if lie == "PCP maps another's port":
        assert counters["foreign_mapping"] > 0
    if lie == "garbage":
        assert counters["malformed_pcp"] + counters["malformed_nat_pmp"] > 0


def _is_map(request: bytes, version: int) -> bool:
    """Say whether this asks for a mapping; the goodbye asks for none."""
    lifetime = request[4:8] if version else request[8:12]
    return request[:2] == bytes((version, 1)) and lifetime != bytes(4)


@pytest.mark.parametrize(("version", "render"), [(2, pcp), (0, nat_pmp)])
def test_a_router_whose_epoch_goes_back_each_time_is_mapped_at_no_greater_pace(
    netns: Any, monkeypatch: pytest.MonkeyPatch, version: int, render: Callable[..., bytes]
) -> None:
    monkeypatch.setattr(machine, "CHECK", 0.05)
    monkeypatch.setattr(machine, "MIN_PAUSE", 0.5)
    liar, report, told, _ = asked(netns, falling(version, render), 2.6)
    maps = [request for request in liar.requests if _is_map(request, version)]
    assert 2 <= len(maps) <= 2 + 2.6 / 0.5
    assert [endpoints for endpoints in told if endpoints] == told[:1]  # nobody heard of a change
    assert report["external"] == f"{PUBLIC}:{PORT}"


PLACE = (
    b"HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n"
    b"LOCATION: http://127.0.0.1:5000/d.xml\r\n\r\n"
)
OK = b"HTTP/1.1 200 OK\r\n\r\n"
BOMB = (
    b'<!DOCTYPE b [<!ENTITY a "aaaaaaaaaa">'
    + b"".join(b'<!ENTITY %c "&%c;&%c;&%c;&%c;">' % (b + 1, b, b, b, b) for b in range(97, 120))
    + b"]><b>&x;</b>"
)


async def flood(writer: asyncio.StreamWriter, piece: bytes, pause: float = 0.0) -> None:
    """Send ``piece`` for ever."""
    with suppress(ConnectionError):
        for _ in itertools.count():
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)


async def once(writer: asyncio.StreamWriter, text: bytes) -> None:
    writer.write(text)
    writer.close()
    await writer.wait_closed()


async def body_without_end(writer: asyncio.StreamWriter) -> None:
    writer.write(OK)
    await flood(writer, b"x" * 4096)


async def body_in_drips(writer: asyncio.StreamWriter) -> None:
    writer.write(OK)
    await flood(writer, b"x", 0.05)


async def headers_without_end(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    await flood(writer, b"x-more: yes\r\n" * 100)


async def continues_without_end(writer: asyncio.StreamWriter) -> None:
    await flood(writer, b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 0.001)


Serve = Callable[[asyncio.StreamWriter], Awaitable[None]]
PAGES: dict[str, tuple[Serve, str]] = {
    "a bomb": (lambda w: once(w, OK + BOMB), "sends an unusable description"),
    "a deep tree": (lambda w: once(w, OK + b"<a>" * 40_000), "sends an unusable description"),
    "a deep whole tree": (
        lambda w: once(w, OK + b"<a>" * 18_000 + b"</a>" * 18_000),
        "has no connection to the internet itself",
    ),
    "an end never": (body_without_end, "sends an answer too long"),
    "drips": (body_in_drips, "does not answer by HTTP"),
    "headers without end": (headers_without_end, "does not answer by HTTP"),
    "100 Continue without end": (continues_without_end, "does not answer by HTTP"),
    "a foreign encoding": (
        lambda w: once(w, OK + b'<?xml version="1.0" encoding="utf-32"?><a/>'),
        "sends an unusable description",
    ),
    "services without end": (
        lambda w: once(
            w,
            OK
            + b"<a>"
            + b"<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>"
            b"<controlURL>/c</controlURL></service>" * 800 + b"</a>",
        ),
        "has no connection to the internet itself",
    ),
}


@pytest.mark.parametrize("page", PAGES)
def test_what_a_upnp_router_serves_is_bounded_in_time_and_size(netns: Any, page: str) -> None:
    serve_page, reason = PAGES[page]
    requests = 0
    handlers: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        requests += 1
        handlers.add(asyncio.current_task())
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                await serve_page(writer)
        finally:
            writer.transport.abort()

    async def work() -> tuple[str, float]:
        loop = asyncio.get_running_loop()
        ssdp, _ = await loop.create_datagram_endpoint(
            lambda: Liar(lambda *_: [PLACE]), (str(HERE), 1900)
        )
        server = await asyncio.start_server(serve, str(HERE), 5000)
        router = UpnpRouter(HERE, HERE, "lo", 0)
        began = loop.time()
        with pytest.raises(UpnpFailure) as failed:
            await router.find()
        took = loop.time() - began
        await router.close()
        ssdp.close()
        server.close()
        for handler in handlers:
            assert handler is not None
            handler.cancel()
        await asyncio.gather(*filter(None, handlers), return_exceptions=True)
        await asyncio.sleep(0)
        return str(failed.value), took

    said, took = netns.call(lambda: asyncio.run(work()))
    assert said == reason
    assert took < patient(5 * 0.3 + 0.5)
    assert requests <= 5


def test_a_flood_of_search_answers_is_not_read_for_ever(netns: Any) -> None:
    """Answers that lead to another host, without end."""
    elsewhere = PLACE.replace(b"127.0.0.1", b"127.0.0.9")

    async def work() -> str:
        loop = asyncio.get_running_loop()
        ssdp, _ = await loop.create_datagram_endpoint(
            lambda: Liar(lambda *_: [elsewhere] * 200), (str(HERE), 1900)
        )
        router = UpnpRouter(HERE, HERE, "lo", 0)
        with pytest.raises(UpnpFailure) as failed:
            async with asyncio.timeout(patient(2)):
                await router.find()
        await router.close()
        ssdp.close()
        return str(failed.value)

    assert netns.call(lambda: asyncio.run(work())) == ""
