"""Our checks complete against aioice's ICE agent, in either role, in a namespace of its own."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from ipaddress import IPv4Address, ip_address

import aioice
import pytest

from nostrvpn.endpoint import Endpoint
from nostrvpn.machine import Entropy, Moment, Tick
from nostrvpn.paths.agent import (
    AddPeer,
    DatagramReceived,
    Describe,
    LocalAddress,
    LocalAddresses,
    PathEvent,
    Paths,
    RemoteDescription,
    SendDatagram,
    UseEndpoint,
)
from nostrvpn.paths.candidates import Candidate, CandidateKind
from nostrvpn.paths.description import Description, description_to_json, parse_description
from nostrvpn.stun.binding import looks_like_stun

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root")

ADDRESS = "10.99.0.1"
PEER = "ab" * 32
CLONE_NEWNET = 0x40000000
LIMIT = 15.0


def in_own_namespace(main: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run ``main`` on a loop in a thread whose network namespace dies with it."""
    failures: list[BaseException] = []

    def body() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "unshare")
            # A child inherits the namespace of the thread that starts it.
            for command in (f"ip addr add {ADDRESS}/24 dev lo", "ip link set lo up"):
                subprocess.run(command.split(), check=True, timeout=LIMIT)
            asyncio.run(asyncio.wait_for(main(), LIMIT))
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(LIMIT * 2)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


class OurSide:
    """The engine on a plain UDP socket."""

    def __init__(self, *, controlling: bool) -> None:
        self.controlling = controlling
        self.paths = Paths()
        self.described: asyncio.Future[Description] = asyncio.get_running_loop().create_future()
        self.chosen: asyncio.Future[Endpoint] = asyncio.get_running_loop().create_future()
        self.data: asyncio.Queue[bytes] = asyncio.Queue()
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((ADDRESS, 0))
        self.sock.setblocking(False)
        asyncio.get_running_loop().add_reader(self.sock, self._readable)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.sock)
        self.sock.close()

    def step(self, event: PathEvent) -> None:
        moment = Moment(time.monotonic(), time.time(), Entropy(os.urandom(32)))
        for effect in self.paths.step(event, moment):
            match effect:
                case SendDatagram(data, to, ttl):
                    level = (socket.IPPROTO_IP, socket.IP_TTL)
                    self.sock.setsockopt(*level, ttl or 64)
                    self.sock.sendto(data, (str(to.ip), to.port))
                case Describe(_, description) if not self.described.done():
                    self.described.set_result(description)
                case UseEndpoint(_, endpoint, _) if endpoint and not self.chosen.done():
                    self.chosen.set_result(endpoint)

    def start(self) -> None:
        local = LocalAddress(IPv4Address(ADDRESS), "lo0", 24)
        self.step(LocalAddresses((local,), self.sock.getsockname()[1]))
        self.step(AddPeer(PEER, self.controlling))

    async def keep_ticking(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            if self.paths.deadline is not None and self.paths.deadline <= time.monotonic():
                self.step(Tick())

    def _readable(self) -> None:
        data, (host, port) = self.sock.recvfrom(2048)
        if looks_like_stun(data):
            source = Endpoint(ip_address(host), port)
            self.step(DatagramReceived(data, source, IPv4Address(ADDRESS)))
        else:
            self.data.put_nowait(data)


async def describe(connection: aioice.Connection) -> Description:
    """Return the other agent's candidates and credentials in our own form, through our parser."""
    await connection.gather_candidates()
    description = Description(
        session="0123456789abcdef",
        generation=1,
        answers=None,
        ufrag=connection.local_username,
        password=connection.local_password,
        candidates=tuple(
            Candidate(
                CandidateKind(candidate.type),
                Endpoint(ip_address(candidate.host), candidate.port),
                candidate.priority,
            )
            for candidate in connection.local_candidates
        ),
    )
    return parse_description(description_to_json(description))


async def accept(connection: aioice.Connection, description: Description) -> None:
    connection.remote_username = description.ufrag
    connection.remote_password = description.password
    for index, candidate in enumerate(description.candidates):
        await connection.add_remote_candidate(
            aioice.Candidate(
                foundation=str(index),
                component=1,
                transport="udp",
                priority=candidate.priority,
                host=str(candidate.endpoint.ip),
                port=candidate.endpoint.port,
                type=candidate.kind.value,
            )
        )
    await connection.add_remote_candidate(None)


async def meet(*, controlling: bool) -> None:
    ours = OurSide(controlling=controlling)
    theirs = aioice.Connection(ice_controlling=not controlling, use_ipv6=False)
    ticking = asyncio.create_task(ours.keep_ticking())
    try:
        ours.start()
        await accept(theirs, await ours.described)
        ours.step(RemoteDescription(PEER, await describe(theirs)))
        await theirs.connect()
        endpoint = await ours.chosen
        await theirs.send(b"to us")
        assert await ours.data.get() == b"to us"
        ours.sock.sendto(b"to them", (str(endpoint.ip), endpoint.port))
        assert await theirs.recv() == b"to them"
        snapshot = ours.paths.snapshot(PEER)
        assert snapshot is not None
        assert snapshot.state == "validated"
        assert not ours.paths.counters
    finally:
        ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticking
        await theirs.close()
        ours.close()


def test_our_checks_complete_when_we_control():
    in_own_namespace(lambda: meet(controlling=True))


def test_our_checks_complete_when_the_other_agent_controls():
    in_own_namespace(lambda: meet(controlling=False))


async def stray(*, controlling: bool) -> None:
    """With a wrong password neither side may come to believe in a path."""
    ours = OurSide(controlling=controlling)
    theirs = aioice.Connection(ice_controlling=not controlling, use_ipv6=False)
    ticking = asyncio.create_task(ours.keep_ticking())
    try:
        ours.start()
        described = await ours.described
        await accept(theirs, described)
        theirs.remote_password = "x" * 32
        ours.step(RemoteDescription(PEER, replace(await describe(theirs), password="y" * 32)))
        connecting = asyncio.create_task(theirs.connect())
        await asyncio.sleep(1.5)
        assert not connecting.done()
        connecting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await connecting
        assert not ours.chosen.done()
        assert ours.paths.counters["forged_check"] > 0
    finally:
        ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticking
        await theirs.close()
        ours.close()


def test_an_agent_with_a_wrong_password_is_not_answered():
    in_own_namespace(lambda: stray(controlling=True))
