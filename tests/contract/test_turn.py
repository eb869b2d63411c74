"""TURN against coturn: over UDP, TCP and TLS, from end to end, and when the server fails us."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, ClassVar

import pytest

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import UserError
from nostrvpn.io import turn as module
from nostrvpn.io.turn import TurnCalls, TurnServers
from nostrvpn.io.turn_wire import TurnServer, TurnWire, parse_turn_url
from nostrvpn.lab.namespaces import Namespace
from nostrvpn.lab.turn import PASSWORD, USERNAME, Coturn
from nostrvpn.stun.binding import render_query
from tests.contract.namespaced import PORT, Loop, join, make_site, until
from tests.contract.test_relay_websocket import certificate

pytestmark = pytest.mark.skipif(shutil.which("turnserver") is None, reason="needs coturn")

SERVER_IP = "10.1.0.1"


class Told:
    """TURN allocations with what they told us."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None, mark: int = 0) -> None:
        self.allocated: dict[str, Endpoint] = {}
        self.lost: list[str] = []
        self.heard: list[tuple[str, Endpoint]] = []
        self.opened: dict[int, Endpoint] = {}
        self.closed: dict[int, str] = {}
        calls = TurnCalls(
            self.allocated.__setitem__,
            lambda server, reason: self.lost.append(reason),
            lambda server, remote, _ufrag: self.heard.append((server, remote)),
            self.opened.__setitem__,
            self.closed.__setitem__,
        )
        self.turn = TurnServers(port, calls, tls=tls, mark=mark)


@pytest.fixture(autouse=True)
def retry_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", (0.1,))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture
def ends(make_netns: Callable[[], Any]) -> tuple[Any, Any, Any]:
    """A server's namespace, and two clients' with a cable each to it."""
    server, left, right = make_netns(), make_netns(), make_netns()
    join(server, left, "10.1.0")
    join(server, right, "10.2.0")
    server.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    return server, left, right


def told_in(loop: Loop, stack: ExitStack, **settings: Any) -> Told:
    told = loop.call(lambda: Told(PORT, **settings))
    stack.callback(lambda: loop.do(told.turn.stop()))
    return told


def loop_in(netns: Any, stack: ExitStack) -> Loop:
    loop = Loop(netns)
    stack.callback(loop.stop)
    return loop


def coturn_in(netns: Any, stack: ExitStack, directory: Path, **settings: Any) -> Coturn:
    namespace = Namespace(netns.name)
    return stack.enter_context(Coturn(namespace, IPv4Address(SERVER_IP), directory, **settings))


def server_of(coturn: Coturn, transport: str, password: str = PASSWORD) -> TurnServer:
    return parse_turn_url(coturn.url(transport), USERNAME, password)


def udp_socket(netns: Any, ip: str, port: int) -> socket.socket:
    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.settimeout(10)
        made.bind((ip, port))
        return made

    made: socket.socket = netns.call(make)
    return made


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
def test_packets_pass_both_ways(
    ends: tuple[Any, Any, Any], stack: ExitStack, tmp_path: Path, transport: str
) -> None:
    server, left, right = ends
    files = certificate(tmp_path, SERVER_IP)
    coturn = coturn_in(server, stack, tmp_path, certificate=files)
    loop = loop_in(left, stack)
    # What is not marked as WireGuard's own traffic would run into its tunnel.
    left.run("nft", "add table inet marks")
    left.run("nft", "add chain inet marks out { type filter hook output priority 0; }")
    left.run("nft", "add rule inet marks out oifname eth0 meta mark != 0x00a50000 drop")
    trusted = ssl.create_default_context(cafile=files[0])
    told = told_in(loop, stack, tls=trusted, mark=0x00A50000)
    name = server_of(coturn, transport).name
    assert name == coturn.url(transport)
    loop.call(told.turn.allocate, server_of(coturn, transport))
    relayed = loop.until(lambda: told.allocated.get(name))
    wireguard = stack.enter_context(udp_socket(left, "0.0.0.0", PORT))
    far = stack.enter_context(udp_socket(right, "10.2.0.2", 7000))
    loop.call(told.turn.open, 5, name, Endpoint(IPv4Address("10.2.0.2"), 7000))
    near = loop.until(lambda: told.opened.get(5))
    for size in (1, 33, 148, 1452):
        wireguard.sendto(bytes([4]) * size, (str(near.ip), near.port))
        assert far.recvfrom(2048) == (bytes([4]) * size, (str(relayed.ip), relayed.port))
        far.sendto(bytes([5]) * size, (str(relayed.ip), relayed.port))
        assert wireguard.recvfrom(2048) == (bytes([5]) * size, (str(near.ip), near.port))
    # From another port of the same address: checks are heard, other packets are not.
    other = stack.enter_context(udp_socket(right, "10.2.0.2", 7001))
    other.sendto(b"\4\0\0\0 early", (str(relayed.ip), relayed.port))
    query = render_query(os.urandom(12))
    for _ in range(20):
        other.sendto(query, (str(relayed.ip), relayed.port))
    remote = Endpoint(IPv4Address("10.2.0.2"), 7001)
    loop.until(lambda: told.heard)
    loop.call(told.turn.open, 6, name, remote)
    second = loop.until(lambda: told.opened.get(6))
    assert wireguard.recvfrom(2048) == (query, (str(second.ip), second.port))
    wireguard.sendto(b"answer", (str(second.ip), second.port))
    assert other.recvfrom(2048)[0] == b"answer"
    assert told.heard == [(name, remote)]
    assert told.turn.counters["unknown remote"] == 1
    loop.call(told.turn.open, 8, name, remote)
    loop.until(lambda: 8 in told.closed)
    assert "leads there already" in told.closed[8]
    loop.call(told.turn.close, 5)
    loop.call(told.turn.close, 6)
    loop.until(lambda: 6 in told.closed)
    assert told.closed[5] == told.closed[6] == "closed by us"
    # A closed channel to the same remote can be opened again.
    loop.call(told.turn.open, 7, name, Endpoint(IPv4Address("10.2.0.2"), 7000))
    near = loop.until(lambda: told.opened.get(7))
    wireguard.sendto(b"again", (str(near.ip), near.port))
    assert far.recvfrom(2048)[0] == b"again"
    # Whatever its number of ports, a remote costs a bounded memory.
    for number in range(2 * module.MAX_HEARD):
        with udp_socket(right, "10.2.0.2", 8000 + number) as one:
            one.sendto(query, (str(relayed.ip), relayed.port))
    loop.until(lambda: len(told.heard) == 1 + 2 * module.MAX_HEARD)
    assert len(told.turn._allocations[name]._heard) == module.MAX_HEARD
    loop.call(told.turn.release, name)
    loop.do(told.turn.stop())
    assert not told.turn._tasks
    loop.until(lambda: 7 in told.closed)
    assert not told.lost


def test_each_failure_has_its_reason(
    ends: tuple[Any, Any, Any], stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, left, _ = ends
    files = certificate(tmp_path, SERVER_IP)
    coturn = coturn_in(
        server,
        stack,
        tmp_path,
        certificate=files,
        settings=("denied-peer-ip=10.2.0.2", "user-quota=1"),
    )
    loop = loop_in(left, stack)

    def reason(one: TurnServer) -> str:
        told = told_in(loop, stack)
        loop.call(told.turn.allocate, one)
        loop.until(lambda: told.lost or told.allocated)
        assert not told.allocated
        loop.call(told.turn.release, one.name)
        return told.lost[0]

    for transport in ("udp", "tcp"):
        assert "user name or the password" in reason(server_of(coturn, transport, "wrong"))
    # Nobody vouches for this certificate but the test that passes it.
    assert "certificate of 10.1.0.1 is not valid" in reason(server_of(coturn, "tls"))
    nobody = TurnServer(SERVER_IP, 9, "tcp", USERNAME, PASSWORD)
    assert "no connection" in reason(nobody)
    monkeypatch.setattr("nostrvpn.io.turn_wire.CONNECT_SECONDS", 0.5)
    assert "within" in reason(TurnServer(SERVER_IP, 9, "udp", USERNAME, PASSWORD))
    monkeypatch.setattr("nostrvpn.io.turn_wire.CONNECT_SECONDS", 10.0)
    told = told_in(loop, stack)
    one = server_of(coturn, "udp")
    loop.call(told.turn.allocate, one)
    loop.until(lambda: told.allocated)
    assert "quota" in reason(server_of(coturn, "tcp"))
    # A remote that the server forbids closes that channel, and nothing else.
    wireguard = stack.enter_context(udp_socket(left, "0.0.0.0", PORT))
    loop.call(told.turn.open, 1, one.name, Endpoint(IPv4Address("10.2.0.2"), 7000))
    near = loop.until(lambda: told.opened.get(1))
    wireguard.sendto(b"x", (str(near.ip), near.port))
    loop.until(lambda: 1 in told.closed)
    assert "forbids" in told.closed[1]
    loop.call(told.turn.open, 2, "turn:unknown:1?transport=udp", near)
    loop.until(lambda: 2 in told.closed)
    assert "no allocation" in told.closed[2]
    assert not told.lost
    for number in range(5):
        loop.call(told.turn.allocate, TurnServer(SERVER_IP, 10 + number, "tcp", "a", "b"))
    loop.until(lambda: any("more than 4 TURN servers" in reason for reason in told.lost))


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_restarted_server_is_noticed(
    ends: tuple[Any, Any, Any],
    stack: ExitStack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    transport: str,
) -> None:
    monkeypatch.setattr(module, "KEEPALIVE_SECONDS", 0.3)
    server, left, _ = ends
    coturn = coturn_in(server, stack, tmp_path)
    loop = loop_in(left, stack)
    told = told_in(loop, stack)
    one = server_of(coturn, transport)
    loop.call(told.turn.allocate, one)
    loop.until(lambda: told.allocated)
    loop.call(told.turn.open, 1, one.name, Endpoint(IPv4Address("10.2.0.2"), 7000))
    loop.until(lambda: 1 in told.opened)
    loop.do(asyncio.sleep(1))  # three keepalives
    assert not told.lost
    told.allocated.clear()
    coturn.kill()
    coturn.start()
    loop.until(lambda: told.lost)
    loop.until(lambda: told.allocated)
    assert "TURN server" in told.lost[0]
    assert "gone" in told.closed[1]
    loop.call(told.turn.open, 1, one.name, Endpoint(IPv4Address("10.2.0.2"), 7000))
    assert loop.until(lambda: told.opened.get(1))


def test_wireguard_with_both_ends_on_one_server(
    ends: tuple[Any, Any, Any],
    make_node: Callable[..., Any],
    interface: str,
    stack: ExitStack,
    tmp_path: Path,
) -> None:
    server, left, right = ends
    coturn = coturn_in(server, stack, tmp_path)
    one = server_of(coturn, "tcp")
    sites, all_told = [], []
    for number, netns in enumerate((left, right), 1):
        site = make_site(make_node, netns, interface, f"{number}{3 - number}")
        stack.callback(site.stop)
        told = told_in(site, stack)
        site.call(told.turn.allocate, one)
        site.until(partial(told.allocated.get, one.name))
        sites.append(site)
        all_told.append(told)
    for number in (0, 1):
        site, told = sites[number], all_told[number]
        remote = all_told[1 - number].allocated[one.name]
        site.call(told.turn.open, 1, one.name, remote)
        near = site.until(partial(told.opened.get, 1))
        site.use(near)
        # A check opens the permission, as the path engine's would.
        assert site.call(site.tap.send, render_query(os.urandom(12)), near) is None
    sites[0].until(lambda: sites[0].heard)
    assert sites[0].ping(2)
    for site, told in zip(sites, all_told, strict=True):
        assert site.node.wg()[site.peer][1] == str(told.opened[1])
        assert not told.heard


async def test_a_channel_closed_while_it_is_bound_does_not_lock_its_remote() -> None:
    from aioice import stun

    answered = asyncio.Event()
    bound: list[bytes] = []

    class Client:
        """aioice's client as far as sending goes; what is cancelled in it stays half done."""

        peer_to_channel: ClassVar[dict[object, int]] = {}

        async def send_data(self, data: bytes, _address: object) -> None:
            await answered.wait()
            bound.append(data)

    wire = TurnWire(Client(), stun)
    sending = asyncio.create_task(wire.send(b"check", ("192.0.2.1", 9)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    sending.cancel()
    await asyncio.wait([sending])
    answered.set()
    await until(lambda: bound == [b"check"])


async def test_a_server_that_talks_nonsense_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(PORT)
    rubbish = [
        os.urandom(100),
        bytes(100),
        b"\x01\x03" + os.urandom(98),
        bytes.fromhex("0103000821 12a442".replace(" ", "")) + bytes(20),
        b"\x40\x00\xff\xff" + bytes(70000),
    ]
    said = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal said
        await reader.read(100)
        writer.write(rubbish[said % len(rubbish)])
        said += 1
        await asyncio.sleep(0.05)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    one = TurnServer("127.0.0.1", port, "tcp", "a", "b")
    monkeypatch.setattr("nostrvpn.io.turn_wire.CONNECT_SECONDS", 0.2)
    told.turn.allocate(one)
    async with asyncio.timeout(20):
        while len(told.lost) < len(rubbish):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not told.allocated
    await told.turn.stop()
    server.close()
    await server.wait_closed()


def test_urls() -> None:
    def parse(url: str) -> TurnServer:
        return parse_turn_url(url, "user", "secret")

    assert parse("turn:example.org") == TurnServer("example.org", 3478, "udp", "user", "secret")
    assert parse("turn:10.0.0.1:99?transport=tcp").transport == "tcp"
    assert parse("turns:example.org").port == 5349
    assert parse("turns:[2001:db8::1]:443?transport=tcp").name == (
        "turns:[2001:db8::1]:443?transport=tcp"
    )
    assert "secret" not in repr(parse("turn:example.org"))
    for bad in ("stun:x", "turn:", "turn:x:0", "turn:x:65536", "turn:x:1:2", "turn:x?transport=x",
                "turns:x?transport=udp", "turn:x\n", "turn://x", "turn:x y", ""):  # fmt: skip
        with pytest.raises(UserError):
            parse(bad)
