"""A TURN server that means harm: one clear reason, few requests, and the loop goes on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aioice import stun

from nostrvpn.endpoint import Endpoint
from nostrvpn.io import turn as module
from nostrvpn.io import turn_wire
from nostrvpn.io.turn import TurnCalls, TurnServers, _Allocation
from nostrvpn.io.turn_wire import TurnServer
from nostrvpn.lab.patience import patient

RELAYED = ("192.0.2.7", 4000)
Answer = Callable[[stun.Message], list[bytes]]


def said(request: stun.Message, kind: stun.Class, **attributes: object) -> bytes:
    names = {name.replace("_", "-"): value for name, value in attributes.items()}
    answer = stun.Message(request.message_method, kind, request.transaction_id)
    answer.attributes.update(names)
    return bytes(answer)


def granted(request: stun.Message, lifetime: int, relayed: Any = RELAYED) -> bytes:
    return said(
        request,
        stun.Class.RESPONSE,
        LIFETIME=lifetime,
        XOR_MAPPED_ADDRESS=("192.0.2.9", 9),
        XOR_RELAYED_ADDRESS=relayed,
    )


def refused(request: stun.Message, code: int) -> bytes:
    nonce = os.urandom(8).hex().encode()
    return said(
        request, stun.Class.ERROR, ERROR_CODE=(code, "no\n\x1b[31m"), REALM="r", NONCE=nonce
    )


class Liar(asyncio.DatagramProtocol):
    """Answers each request as ``answer`` says."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[stun.Method] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        request = stun.parse_message(data)
        self.requests.append(request.message_method)
        for one in self.answer(request):
            self.transport.sendto(one, address)


class Told:
    def __init__(self) -> None:
        self.allocated: list[Endpoint] = []
        self.lost: list[str] = []
        nobody: Any = lambda *_: None  # noqa: E731
        self.calls = TurnCalls(
            lambda _, relayed: self.allocated.append(relayed),
            lambda _, reason: self.lost.append(reason),
            nobody,
            nobody,
            nobody,
        )


@asynccontextmanager
async def against(answer: Answer) -> AsyncIterator[tuple[Liar, Told]]:
    loop = asyncio.get_running_loop()
    transport, liar = await loop.create_datagram_endpoint(lambda: Liar(answer), ("127.0.0.1", 0))
    told = Told()
    servers = TurnServers(40_000, told.calls)
    port = transport.get_extra_info("sockname")[1]
    servers.allocate(TurnServer("127.0.0.1", port, "udp", "user", "password"))
    try:
        yield liar, told
    finally:
        await servers.stop()
        transport.close()


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", (0.05, 0.05, 600.0))
    monkeypatch.setattr(module, "KEEPALIVE_SECONDS", 0.05)
    monkeypatch.setattr(turn_wire, "CONNECT_SECONDS", 0.3)


ATTACKS: dict[str, tuple[Answer, str]] = {
    "never answers": (lambda _: [], "no answer from the TURN server within"),
    "garbage": (lambda _: [os.urandom(100)] * 3, "no answer from the TURN server within"),
    "huge": (lambda _: [b"\x01\x03\xff\x00" + bytes(60_000)] * 3, "no answer from the TURN"),
    "401 loop": (lambda r: [refused(r, 401)], "refuses the user name or the password"),
    "438 loop": (lambda r: [refused(r, 438)], "refuses the user name or the password"),
    "words": (lambda r: [refused(r, 499)], "the TURN server says 499 no  [31m"),
    "lifetime 0": (lambda r: [granted(r, 0)], "the TURN server lends for 0 s only"),
    "lifetime 1": (lambda r: [granted(r, 1)], "the TURN server lends for 1 s only"),
    "loopback": (lambda r: [granted(r, 600, ("127.0.0.1", 22))], "a loopback address"),
    "no port": (lambda r: [granted(r, 600, ("192.0.2.7", 0))], "port out of range"),
    "multicast": (lambda r: [granted(r, 600, ("224.0.0.1", 9))], "not a unicast address"),
    "no address": (
        lambda r: [said(r, stun.Class.RESPONSE, LIFETIME=600)],
        "the TURN server lends no address",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_hostile_turn_server_is_one_reason_and_few_requests(attack: str) -> None:
    answer, reason = ATTACKS[attack]
    async with against(answer) as (liar, told):
        async with asyncio.timeout(patient(10)):
            while len(told.lost) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        count = len(liar.requests)
        await asyncio.sleep(0.2)
        # And then it is left alone for long.
        assert len(liar.requests) == count <= 9
        assert not told.allocated
        assert len(told.lost) == 3
    assert all(reason in one for one in told.lost)
    assert all(one.isprintable() and len(one) < 300 for one in told.lost)


async def test_an_allocation_that_is_taken_back_at_once_is_not_asked_for_every_second() -> None:
    """Each is told to all peers; so it counts as a failure until one has lasted."""

    def answer(request: stun.Message) -> list[bytes]:
        is_first = request.message_method is stun.Method.ALLOCATE
        return [granted(request, 600 if is_first else 0)]

    async with against(answer) as (liar, told):
        async with asyncio.timeout(patient(10)):
            while len(told.lost) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert len(told.allocated) == len(told.lost) == 3
        assert liar.requests.count(stun.Method.ALLOCATE) == 3
        assert len(liar.requests) <= 9


async def test_an_allocation_is_refreshed_as_often_as_we_like_and_not_the_server() -> None:
    async with against(lambda request: [granted(request, 30)]) as (liar, told):
        async with asyncio.timeout(patient(10)):
            while not told.allocated:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        assert not told.lost
        assert len(liar.requests) <= 3


async def test_forged_icmp_errors_cause_no_storm_of_refreshes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SUSPICION_SECONDS", 0.1)
    refreshes = 0

    class Wire:
        suspicion = asyncio.Event()
        failure = ""

        async def refresh(self) -> None:
            nonlocal refreshes
            refreshes += 1
            self.suspicion.set()  # the answer came, and an ICMP error with it
            await asyncio.sleep(0)

    wire: Any = Wire()
    servers = TurnServers(40_000, Told().calls)
    watching = asyncio.create_task(_Allocation("s", wire, servers).watch())
    await asyncio.sleep(0.55)
    watching.cancel()
    await asyncio.wait([watching])
    assert 2 <= refreshes <= 6
