"""Passing questions on: answers to others, forgers, servers that hang, and too many at once."""

from __future__ import annotations

import asyncio
import socket
import time
from ipaddress import ip_address
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import pytest

from nostrvpn.endpoint import Endpoint
from nostrvpn.io import dns_forwarder
from nostrvpn.io.dns_forwarder import MAX_IN_FLIGHT, MAX_WRONG, Forwarder, Unanswered, Way, exchange
from tests.unit.io.name_server import name_server, reply

QUERY = dns.message.make_query("Example.ORG", "A", use_edns=True, payload=1400).to_wire()
GOOD = "198.51.100.7"
DEAD = Endpoint(ip_address("127.0.0.1"), 9)


def addresses(wire: bytes | None) -> list[str]:
    assert wire is not None
    return [str(item) for rrset in dns.message.from_wire(wire).answer for item in rrset]


async def test_an_answer_comes_back_with_the_askers_number_and_spelling():
    heard: list[bytes] = []

    def told(query: bytes, _tcp: bool) -> list[bytes]:
        heard.append(query)
        return [reply(query, GOOD).replace(b"Example\x03ORG", b"example\x03org")]

    async with name_server(told) as server:
        for tcp in (False, True):
            found = await Forwarder().ask(QUERY, Way((server,)), tcp=tcp)
            assert addresses(found) == [GOOD]
            assert found is not None
            assert found[:2] == QUERY[:2]
            assert b"Example\x03ORG" in found
    assert {query[:2] for query in heard} != {QUERY[:2]}
    assert all(query[2:] == QUERY[2:] for query in heard)  # EDNS and all


async def test_each_question_has_a_port_of_its_own(monkeypatch):
    seen = set()
    async with name_server(lambda query, _tcp: [reply(query, GOOD)]) as server:
        loop = asyncio.get_running_loop()
        connect = loop.sock_connect

        async def noted(sock: Any, address: Any) -> None:
            await connect(sock, address)
            seen.add(sock.getsockname()[1])

        monkeypatch.setattr(loop, "sock_connect", noted)
        await asyncio.gather(*(exchange(QUERY, Way((server,))) for _ in range(20)))
    assert len(seen) > 15


def bent(query: bytes, how: str) -> bytes:
    """Return an answer that a forger would send: everything right but one thing."""
    wire = bytearray(reply(query, "203.0.113.66"))
    match how:
        case "number":
            wire[0] ^= 0x5A
        case "name":
            wire = bytearray(bytes(wire).replace(b"Example", b"Exbmple"))
        case "type":
            end = wire.index(b"\x03ORG\0") + 5
            wire[end : end + 2] = b"\0\x1c"
        case "query":
            wire[2] &= 0x7F
        case "questions":
            wire[4:6] = b"\0\0"
        case "compressed":
            wire[12:] = b"\xc0\x0c\0\1\0\1"
        case "short":
            del wire[11:]
    return bytes(wire)


@pytest.mark.parametrize(
    "how", ["number", "name", "type", "query", "questions", "compressed", "short"]
)
async def test_an_answer_to_another_question_is_passed_over(how):
    forwarder = Forwarder()
    async with name_server(lambda query, _: [bent(query, how), reply(query, GOOD)]) as server:
        found = await forwarder.ask(QUERY, Way((server,)), tcp=False)
    assert addresses(found) == [GOOD]
    assert forwarder.counters["wrong_answers"] == 1


async def test_whoever_guesses_numbers_drives_the_question_to_tcp():
    forwarder = Forwarder()

    def told(query: bytes, tcp: bool) -> list[bytes]:
        forged = [bent(query, "number")] * MAX_WRONG
        return [reply(query, GOOD)] if tcp else [*forged, reply(query, "203.0.113.66")]

    async with name_server(told) as server:
        found = await forwarder.ask(QUERY, Way((server,)), tcp=False)
    assert addresses(found) == [GOOD]
    assert forwarder.counters["guessed_at"] == 1


async def test_an_answer_from_another_source_is_not_heard(monkeypatch):
    """The right number and question, from an address that was not asked."""
    loop = asyncio.get_running_loop()
    send = loop.sock_sendall

    async with name_server(lambda query, _: [reply(query, GOOD)]) as server:

        async def forged_first(sock: Any, wire: bytes) -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forger:
                forger.bind(("127.0.0.2", 0))
                forger.sendto(reply(wire, "203.0.113.66"), sock.getsockname())
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forger:
                forger.bind((str(server.ip), 0))  # another port of the server's address
                forger.sendto(reply(wire, "203.0.113.67"), sock.getsockname())
            await send(sock, wire)

        monkeypatch.setattr(loop, "sock_sendall", forged_first)
        forwarder = Forwarder()
        found = await forwarder.ask(QUERY, Way((server,)), tcp=False)
    assert addresses(found) == [GOOD]
    assert not forwarder.counters["wrong_answers"]  # the kernel did not even give it to us


async def test_a_server_that_hangs_costs_one_try_and_the_next_is_asked(monkeypatch):
    monkeypatch.setattr(dns_forwarder, "TRY_S", 0.1)
    forwarder = Forwarder()
    async with (
        name_server(lambda *_: []) as silent,
        name_server(lambda query, _: [reply(query, GOOD)]) as server,
    ):
        way = Way((silent, server))
        began = time.monotonic()
        assert addresses(await forwarder.ask(QUERY, way, tcp=False)) == [GOOD]
        assert time.monotonic() - began >= 0.1
        assert forwarder.counters["unanswered_tries"] == 1
        assert addresses(await forwarder.ask(QUERY, way, tcp=False)) == [GOOD]
        assert forwarder.counters["unanswered_tries"] == 1  # the one that answers goes first now


@pytest.mark.parametrize("tcp", [False, True])
async def test_where_nobody_answers_a_program_hears_so_in_bounded_time(monkeypatch, tcp):
    monkeypatch.setattr(dns_forwarder, "TRY_S", 0.1)
    monkeypatch.setattr(dns_forwarder, "TOTAL_S", 0.25)
    async with name_server(lambda *_: []) as silent:
        async with asyncio.timeout(5):
            found = await Forwarder().ask(QUERY, Way((silent,) * 3), tcp=tcp)
    assert found is not None
    message = dns.message.from_wire(found)
    assert message.rcode() == dns.rcode.SERVFAIL
    assert str(message.question[0].name) == "Example.ORG."
    with pytest.raises(Unanswered):
        await exchange(QUERY, Way((DEAD,)))


async def test_a_refusal_is_given_back_where_no_other_server_knows_better():
    refusing = lambda query, _: [reply(query, rcode=dns.rcode.REFUSED)]  # noqa: E731
    async with (
        name_server(refusing) as one,
        name_server(lambda query, _: [reply(query, GOOD)]) as two,
    ):
        assert addresses(await exchange(QUERY, Way((one, two)))) == [GOOD]
        message = dns.message.from_wire(await exchange(QUERY, Way((one, DEAD))))
        assert message.rcode() == dns.rcode.REFUSED


async def test_questions_under_way_are_bounded_in_number():
    forwarder = Forwarder()
    async with name_server(lambda *_: []) as silent:
        way = Way((silent,))
        stuck = [
            asyncio.create_task(forwarder.ask(QUERY, way, tcp=False)) for _ in range(MAX_IN_FLIGHT)
        ]
        await asyncio.sleep(0)
        async with asyncio.timeout(1):
            found = await forwarder.ask(QUERY, way, tcp=False)
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
    assert found is not None
    assert dns.message.from_wire(found).rcode() == dns.rcode.SERVFAIL
    assert forwarder.counters["too_many"] == 1
    assert forwarder._in_flight == 0


async def test_what_is_too_large_for_the_asker_is_cut_and_had_by_tcp():
    many = [f"198.51.100.{number}" for number in range(1, 121)]
    async with name_server(lambda query, _: [reply(query, *many)]) as server:
        cut = await Forwarder().ask(QUERY, Way((server,)), tcp=False)
        whole = await Forwarder().ask(QUERY, Way((server,)), tcp=True)
    assert cut is not None
    assert len(cut) <= 1400
    assert dns.message.from_wire(cut).flags & dns.flags.TC
    assert len(addresses(whole)) == len(many)


async def test_a_cut_answer_is_passed_on_as_it_is():
    def told(query: bytes, _tcp: bool) -> list[bytes]:
        wire = bytearray(reply(query))
        wire[2] |= 0x02
        return [bytes(wire)]

    async with name_server(told) as server:
        found = await Forwarder().ask(QUERY, Way((server,)), tcp=False)
    assert found is not None
    assert dns.message.from_wire(found).flags & dns.flags.TC


async def test_a_tcp_server_that_says_nonsense_is_left():
    def told(query: bytes, tcp: bool) -> list[bytes]:
        return [b"\0" * 40] if tcp else []

    async with name_server(told) as server:
        with pytest.raises(Unanswered):
            await exchange(QUERY, Way((server,)), tcp=True)


async def test_noise_is_never_forwarded():
    asked: list[bytes] = []

    def told(query: bytes, _tcp: bool) -> list[bytes]:
        asked.append(query)
        return []

    async with name_server(told) as server:
        for noise in (b"", b"\0", bytes(12), QUERY[:20], reply(QUERY, GOOD), b"\xff" * 600):
            found = await Forwarder().ask(noise, Way((server,)), tcp=False)
            assert found is None or dns.message.from_wire(found, ignore_trailing=True).rcode()
        update = bytes([*QUERY[:2], QUERY[2] | 0x28, *QUERY[3:]])
        found = await Forwarder().ask(update, Way((server,)), tcp=False)
    assert found is not None
    assert found[3] & 0x0F == dns.rcode.NOTIMP
    assert asked == []
