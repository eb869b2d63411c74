"""Messages through the tunnel: taken or said to have failed, and nobody else gets in."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address, ip_address
from typing import Any

import pytest

from nostrvpn.endpoint import IPAddress
from nostrvpn.io.peer_channel import MAX_INCOMING_PER_PEER, PeerChannel
from tests.contract.namespaced import LIMIT, Loop

PORT = 4116
LEFT, RIGHT = IPv6Address("fd00:1::1"), IPv6Address("fd00:1::2")


class End(Loop):
    """One end of a cable that stands for the tunnel; ``out`` is another cable of the same host."""

    def __init__(self, netns: Any, address: IPAddress) -> None:
        super().__init__(netns)
        self.address = address
        self.heard: list[tuple[IPAddress, str]] = []
        self.failed: list[str] = []
        self.channel = PeerChannel(PORT, lambda *said: self.heard.append(said), self.failed.append)
        place = (
            (f"{address}/64", "dev", "tun", "nodad")
            if address.version == 6
            else (f"{address}/24", "dev", "tun")
        )
        netns.ip("addr", "add", *place)
        netns.ip("link", "set", "tun", "up")
        self.do(self.channel.use("tun", address))

    def say(self, to: IPAddress, text: str, token: str = "1") -> None:
        self.call(self.channel.send, to, text, token)

    def end(self) -> None:
        self.do(self.channel.close())
        self.stop()


@pytest.fixture
def ends(
    make_netns: Callable[[], Any], request: pytest.FixtureRequest
) -> Iterator[tuple[End, End]]:
    at: tuple[IPAddress, IPAddress] = getattr(request, "param", (LEFT, RIGHT))
    left, right = make_netns(), make_netns()
    for cable in ("tun", "out"):
        left.ip("link", "add", cable, "type", "veth", "peer", cable, "netns", right.name)
    made = End(left, at[0]), End(right, at[1])
    yield made
    for end in made:
        end.end()


@pytest.mark.parametrize(
    "ends", [(ip_address("198.51.100.1"), ip_address("198.51.100.2"))], indirect=True
)
def test_messages_by_ipv4(ends: tuple[End, End]) -> None:
    left, right = ends
    left.say(right.address, "hello")
    right.until(lambda: right.heard)
    assert right.heard == [(left.address, "hello")]
    left.until(lambda: left.channel.counters["sent"] == 1)


def test_a_message_is_taken_and_its_sender_is_the_address(ends: tuple[End, End]) -> None:
    left, right = ends
    text = "ü" * 15_000
    left.say(RIGHT, text)
    right.until(lambda: right.heard)
    assert right.heard == [(LEFT, text)]
    left.until(lambda: left.channel.counters["sent"] == 1)
    assert left.failed == []


def test_what_nobody_takes_is_said_to_have_failed(ends: tuple[End, End]) -> None:
    left, right = ends
    right.do(right.channel.use("tun", None))
    left.say(RIGHT, "hello", "a")
    left.until(lambda: left.failed)
    left.say(IPv6Address("2001:db8::1"), "hello", "b")
    left.until(lambda: left.failed == ["a", "b"])
    left.do(left.channel.use("tun", None))
    left.say(RIGHT, "hello", "c")
    left.until(lambda: left.failed == ["a", "b", "c"])
    assert right.heard == []


def test_nobody_gets_in_by_another_interface(ends: tuple[End, End]) -> None:
    left, right = ends
    for end, address in ((left, "fd00:2::1"), (right, "fd00:2::2")):
        end.netns.ip("addr", "add", f"{address}/64", "dev", "out", "nodad")
        end.netns.ip("link", "set", "out", "up")
    left.netns.ip("route", "add", f"{RIGHT}/128", "via", "fd00:2::2", "dev", "out")

    def connect() -> None:
        with pytest.raises((ConnectionError, TimeoutError)):
            socket.create_connection((str(RIGHT), PORT), 2, ("fd00:2::1", 0))

    left.netns.call(connect)
    assert right.channel.counters == {}


def test_malformed_and_idle_connections_are_bounded(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nostrvpn.io.peer_channel.SECONDS", 1.0)
    left, right = ends

    def abuse() -> None:
        for data in (struct.pack("!I", 1 << 31), struct.pack("!I", 2) + b"\xff\xff", b"GET /"):
            with socket.create_connection((str(RIGHT), PORT), LIMIT) as sock:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionError):
                    assert sock.recv(2) == b""
        idle = [socket.create_connection((str(RIGHT), PORT), LIMIT) for _ in range(8)]
        right.until(lambda: right.channel.counters["crowded"] == 8 - MAX_INCOMING_PER_PEER)
        right.until(lambda: right.channel.counters["slow"] == MAX_INCOMING_PER_PEER)
        for sock in idle:
            sock.close()

    left.netns.call(abuse)
    assert right.channel.counters["bad_frame"] == 3
    left.say(RIGHT, "still here")
    right.until(lambda: right.heard == [(LEFT, "still here")])


def test_what_was_taken_is_heard_though_its_sender_never_closes(ends: tuple[End, End]) -> None:
    """The end of a connection may be lost on a full link; who was told "taken" says it no more."""
    left, right = ends

    def say() -> None:
        with socket.create_connection((str(RIGHT), PORT), LIMIT) as sock:
            sock.sendall(struct.pack("!I", 5) + b"hello")
            assert sock.recv(1) == b"\x06"
            right.until(lambda: right.heard)  # while it is open

    left.netns.call(say)
    assert right.heard == [(LEFT, "hello")]


def test_it_listens_before_the_address_is_there(make_netns: Callable[[], Any]) -> None:
    netns = make_netns()
    netns.ip("link", "add", "tun", "type", "veth", "peer", "far")
    loop = Loop(netns)
    channel = PeerChannel(PORT, lambda *_: None, lambda _: None)
    loop.do(channel.use("tun", LEFT))
    errors = [channel.error]
    loop.do(channel.use("missing", LEFT))
    errors.append(channel.error)
    assert errors == [None, "no socket for messages through the tunnel: No such device"]
    loop.do(channel.close())
    loop.stop()
