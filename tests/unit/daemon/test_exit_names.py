"""Names that go around the exit, and those that must not."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from types import SimpleNamespace
from typing import Any

import dns.message
import dns.rcode
import pytest

from nostrvpn.daemon import exit_names
from nostrvpn.daemon.exit_names import LEAST_S, MOST_S, SLACK_S, ExitNames
from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.errors import SystemRefused
from nostrvpn.exits.kill_switch import ExitState
from nostrvpn.host.state import FWMARK
from nostrvpn.io.dns_forwarder import Way
from tests.unit.io.name_server import name_server, reply

PUBLIC = "198.51.100.7"
RESOLVER = ip_address("192.0.2.53")


class Ways(ExitNames):
    """As the daemon has it, but the servers are the test's own, on loopback."""

    def __init__(self, node: Any, outside: Endpoint, tunnelled: Endpoint) -> None:
        super().__init__(node, "lo")
        self.asked_outside = outside
        self.asked_tunnelled = tunnelled

    def _outside(self) -> Way:
        return Way((self.asked_outside,))

    def _tunnelled(self) -> Way:
        return Way((self.asked_tunnelled,) if self.upstream else ())


@pytest.fixture
def let(monkeypatch) -> list[dict[IPAddress, int]]:
    calls: list[dict[IPAddress, int]] = []
    monkeypatch.setattr(exit_names, "add_bypassed", lambda _i, wanted: calls.append(dict(wanted)))
    overlay = frozenset([ip_network("10.91.0.0/16"), ip_network("fd00::/64")])
    monkeypatch.setattr(exit_names, "overlay_networks", lambda _node: overlay)
    return calls


def node(state: ExitState = ExitState.CONNECTED, *domains: str) -> Any:
    exits = SimpleNamespace(
        state=state, bypass_domains=frozenset(domains), resolvers=lambda _node: (RESOLVER,), link=""
    )
    return SimpleNamespace(exits=exits)


def query(name: str) -> bytes:
    return dns.message.make_query(name, "A").to_wire()


async def asked(names: ExitNames, name: str) -> dns.message.Message:
    found = await names.answer(query(name), False)
    assert found is not None
    return dns.message.from_wire(found)


async def test_names_that_go_around_are_asked_outside_and_their_addresses_let_through_first(let):
    at_the_time: list[int] = []
    async with (
        name_server(lambda wire, _: [reply(wire, PUBLIC, ttl=86_400)]) as outside,
        name_server(lambda wire, _: [reply(wire, "203.0.113.9")]) as tunnelled,
    ):
        names = Ways(node(ExitState.CONNECTED, "bank.example"), outside, tunnelled)
        for name in ("bank.example", "www.Bank.example"):
            found = await asked(names, name)
            at_the_time.append(len(let))
            assert str(found.answer[0][0]) == PUBLIC
            assert found.answer[0].ttl == MOST_S  # no program keeps it for longer
        for name in ("example", "notbank.example", "bank.example.org"):
            assert str((await asked(names, name)).answer[0][0]) == "203.0.113.9"
    assert at_the_time == [1, 2]
    assert len(let) == 2
    assert all(MOST_S <= call[ip_address(PUBLIC)] <= MOST_S + SLACK_S for call in let)


async def test_an_address_goes_around_for_a_minute_at_least_and_is_never_cut_short(let):
    ttl = 5
    async with name_server(lambda wire, _: [reply(wire, PUBLIC, ttl=ttl)]) as outside:
        names = Ways(node(ExitState.CONNECTED, "bank.example"), outside, outside)
        await asked(names, "bank.example")
        assert LEAST_S <= let[-1][ip_address(PUBLIC)] <= LEAST_S + SLACK_S
        ttl = 600
        await asked(names, "bank.example")
        ttl = 5
        await asked(names, "bank.example")
        assert let[-1][ip_address(PUBLIC)] > 500


async def test_no_name_leads_around_to_this_host_the_mesh_or_the_resolver(let):
    bad = ("127.0.0.1", "10.91.0.7", "224.0.0.1", "169.254.169.254", "0.0.0.0", str(RESOLVER))
    async with name_server(lambda wire, _: [reply(wire, *bad, "fd00::7", PUBLIC)]) as outside:
        names = Ways(node(ExitState.CONNECTED, "evil.example"), outside, outside)
        await asked(names, "evil.example")
    assert [set(call) for call in let] == [{ip_address(PUBLIC)}]


async def test_addresses_that_go_around_are_bounded_in_number(let, monkeypatch):
    monkeypatch.setattr(exit_names, "MAX_AROUND", 3)
    many = [f"198.51.100.{number}" for number in range(1, 20)]
    async with name_server(lambda wire, _: [reply(wire, *many)]) as outside:
        names = Ways(node(ExitState.CONNECTED, "evil.example"), outside, outside)
        assert len((await asked(names, "evil.example")).answer[0]) >= 19
    assert len(let[0]) == 3
    assert len(names._around) == 3


async def test_a_filter_that_refuses_only_sends_it_through_the_exit(let, monkeypatch):
    def refuses(*_: object) -> None:
        raise SystemRefused("no such table")

    monkeypatch.setattr(exit_names, "add_bypassed", refuses)
    async with name_server(lambda wire, _: [reply(wire, PUBLIC)]) as outside:
        names = Ways(node(ExitState.CONNECTED, "bank.example"), outside, outside)
        assert str((await asked(names, "bank.example")).answer[0][0]) == PUBLIC


@pytest.mark.parametrize("state", list(ExitState))
async def test_who_is_asked_in_each_state(state):
    names = ExitNames(node(state, "bank.example"), "nvpn0")
    names.servers.outside = lambda: (Endpoint(RESOLVER, 5353),)  # type: ignore[method-assign]
    wanted = state not in (ExitState.OFF, ExitState.LOCKDOWN)
    assert names.everything is wanted
    assert bool(names.domains) is wanted
    assert names.upstream == ((Endpoint(RESOLVER, 53),) if state is ExitState.CONNECTED else ())
    # The agent's own lookups leave marked whenever something is held back.
    way = names.outside()
    if state is ExitState.OFF:
        assert way is None
    else:
        assert way == Way((Endpoint(RESOLVER, 5353),), FWMARK)
    # Through the tunnel, by its interface alone and never marked.
    assert names._tunnelled() == Way(names.upstream, 0, "nvpn0")


async def test_a_bent_answer_for_a_name_that_goes_around_is_a_failure(let):
    def told(wire: bytes, _tcp: bool) -> list[bytes]:
        made = bytearray(reply(wire, PUBLIC))
        at = made.index(b"\xc0\x0c")
        made[at : at + 2] = (0xC000 | at).to_bytes(2, "big")
        return [bytes(made)]

    async with name_server(told) as outside:
        names = Ways(node(ExitState.CONNECTED, "bank.example"), outside, outside)
        assert (await asked(names, "bank.example")).rcode() == dns.rcode.SERVFAIL
    assert let == []
