"""Names for an exit's guests: who is answered, how often, and what they never hear."""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import pytest

from nostrvpn.endpoint import IPAddress
from nostrvpn.io.blocklists import Blocklists
from nostrvpn.io.dns_forwarder import Way
from nostrvpn.io.guest_names import BURST, GuestNames
from tests.unit.io.name_server import name_server, reply

GUEST, STRANGER = ip_address("10.91.0.7"), ip_address("10.91.0.8")


def query(name: str, kind: str = "A") -> bytes:
    return dns.message.make_query(name, kind).to_wire()


def names(way: Way, lists: Blocklists | None = None, **options: Any) -> GuestNames:
    def may_ask(asker: IPAddress) -> bool:
        return asker == GUEST

    searched = frozenset(["corp.example"])
    return GuestNames(may_ask, lambda: way, lambda: searched, lists or Blocklists(()), **options)


async def rcode(made: GuestNames, wire: bytes) -> str:
    found: Any = made.answer(wire, GUEST, False)
    if not isinstance(found, bytes):
        found = await found
    return dns.rcode.to_text(dns.message.from_wire(found).rcode())


async def test_only_members_that_may_use_the_exit_are_answered():
    made = names(Way(()))
    assert made.answer(query("example.org"), STRANGER, False) is None
    assert made.counters["no_guest"] == 1


async def test_guests_hear_nothing_of_the_providers_lan(tmp_path):
    asked: list[bytes] = []

    def told(wire: bytes, _tcp: bool) -> list[bytes]:
        asked.append(wire)
        return [reply(wire, "192.168.1.7")]

    async with name_server(told) as server:
        made = names(Way((server,)))
        for name in ("printer", "nas.lan", "wiki.corp.example", "1.1.168.192.in-addr.arpa"):
            assert await rcode(made, query(name)) == "REFUSED"
        assert asked == []
        # DNS rebinding: a public name with an address of the LAN.
        assert await rcode(made, query("evil.example")) == "REFUSED"
        assert made.counters["private_address"] == 1
        allowed = names(Way((server,)), private=True)
        assert await rcode(allowed, query("nas.lan")) == "NOERROR"


async def test_an_answer_that_cannot_be_read_goes_to_no_guest():
    def told(wire: bytes, _tcp: bool) -> list[bytes]:
        made = bytearray(reply(wire, "198.51.100.7"))
        at = made.index(b"\xc0\x0c")
        made[at : at + 2] = (0xC000 | at).to_bytes(2, "big")  # a name that leads into itself
        return [bytes(made)]

    async with name_server(told) as server:
        made = names(Way((server,)))
        assert await rcode(made, query("example.org")) == "SERVFAIL"
    assert made.counters["unreadable"] == 1


async def test_a_guest_that_floods_gets_its_share_and_keeps_none_from_others():
    now = 100.0
    other = ip_address("10.91.0.9")
    made = GuestNames(
        lambda _asker: True,
        lambda: Way(()),
        frozenset,
        Blocklists(()),
        clock=lambda: now,
    )
    found = [made.answer(query("printer"), GUEST, False) for _ in range(2000)]
    assert len([item for item in found if item]) == BURST
    assert made.counters["too_many"] == 2000 - BURST
    assert made.answer(query("printer"), other, False)
    now += 0.1
    assert made.answer(query("printer"), GUEST, False)


async def test_blocked_names_do_not_exist_for_guests_and_lists_are_read_again(tmp_path):
    path = tmp_path / "list"
    path.write_text("0.0.0.0 ads.example\n")
    lists = Blocklists((str(path),))
    assert lists.refresh()
    assert not lists.refresh()
    async with name_server(lambda wire, _: [reply(wire, "198.51.100.7")]) as server:
        made = names(Way((server,)), lists)
        assert await rcode(made, query("x.ads.example")) == "NXDOMAIN"
        assert await rcode(made, query("fine.example")) == "NOERROR"
        path.write_text("fine.example\n")
        os.utime(path, (1, 1))
        assert lists.refresh()
        assert await rcode(made, query("x.ads.example")) == "NOERROR"
        assert await rcode(made, query("fine.example")) == "NXDOMAIN"


@pytest.mark.timeout(10)
def test_a_list_that_cannot_be_read_is_told_and_the_last_one_stays(tmp_path: Path):
    path = tmp_path / "list"
    path.write_text("ads.example\n")
    lists = Blocklists((str(path),))
    lists.refresh()
    path.unlink()
    assert not lists.refresh()
    assert str(path) in lists.problem
    assert lists.current.blocks(("ads", "example"))
    os.mkfifo(path)  # which nobody ever writes to
    assert not lists.refresh()
    assert "not a file" in lists.problem
    path.unlink()
    path.write_text("other.example\n")
    assert lists.refresh()
    assert lists.problem == ""
    assert not lists.current.blocks(("ads", "example"))
