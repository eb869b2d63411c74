"""Names beside the loop: the way is chosen, changed, left and taken back; failures are only said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from types import SimpleNamespace
from typing import Any

import dns.message
import pytest

from nostrvpn.config.model import Dns
from nostrvpn.daemon import name_service
from nostrvpn.daemon.name_service import MAX_REWRITES, NameService
from nostrvpn.endpoint import IPAddress, parse_endpoint
from nostrvpn.errors import SystemRefused
from nostrvpn.exits.kill_switch import ExitState
from nostrvpn.host.resolver import FoundResolver, LinkNames
from nostrvpn.io.dns_server import DnsServer
from nostrvpn.mesh.zone import Resident, make_zone
from nostrvpn.node.names import NodeNames

NAS = Resident("a" * 64, "nas", "", (ip_address("10.91.0.7"),))
STUB = FoundResolver("nameserver 127.0.0.53\n", "/etc/resolv.conf", "", True, False)
PLAIN = FoundResolver("nameserver 192.0.2.1\n", "/etc/resolv.conf", "", False, False)
LIMIT = 10.0


class HostDouble:
    """What the adapters would find and do, with a record of what was done."""

    def __init__(self) -> None:
        self.found = STUB
        self.link = LinkNames()
        self.file = ""
        self.done: list[str] = []
        self.refuses = ""
        self.guests: frozenset[IPAddress] = frozenset()

    def apply(self, _index: int, operations: Any) -> None:
        if self.refuses:
            raise SystemRefused(self.refuses)
        for operation in operations:
            self.link = operation.value
            self.done.append(str(operation))

    def revert(self, _index: int) -> None:
        self.link = LinkNames()
        self.done.append("revert")

    def put(self, *_: Any) -> bool:
        was, self.file = self.file, "ours"
        return was != "ours"

    def record(self, _interface: str, text: str, *, alone: bool = False) -> None:
        self.file = text
        self.done.append(f"record{' alone' if alone else ''}")

    def forget(self, _interface: Any) -> list[str]:
        self.file = ""
        self.done.append("forget")
        return []


@pytest.fixture
def host(monkeypatch) -> HostDouble:
    made = HostDouble()
    for name, double in {
        "find_resolver": lambda: made.found,
        "observe_link": lambda _index: made.link,
        "apply_link": made.apply,
        "revert_link": made.revert,
        "put_blocks": made.put,
        "forget_names": made.forget,
        "flush_caches": lambda: made.done.append("flush"),
        "add_record": made.record,
        "remove_records": lambda _interface: made.done.append("remove"),
        "read_resolv_conf": lambda: made.file,
        "guest_addresses": lambda _node: made.guests,
        "own_addresses": lambda _node: (ip_address("10.91.0.1"),),
    }.items():
        monkeypatch.setattr(name_service, name, double)
    monkeypatch.setattr(NodeNames, "zone", lambda self: self._node.zone)

    async def start(_server: Any) -> Any:
        return parse_endpoint("127.118.112.1:53")

    monkeypatch.setattr(DnsServer, "start", start)
    return made


@pytest.fixture
async def run(host) -> AsyncIterator[Any]:
    services: list[NameService] = []

    def start(settings: Dns | None = None) -> NameService:
        zone = make_zone("home", [NAS], [ip_network("10.91.0.0/16")])
        exits = SimpleNamespace(
            state=ExitState.OFF,
            link="",
            bypass_domains=frozenset(),
            dns_error=None,
            resolvers=lambda _node: (ip_address("10.91.0.9"),),
        )
        offer = SimpleNamespace(answers_dns=False)
        node: Any = SimpleNamespace(dns={}, zone=zone, exits=exits, exit_offer=offer)
        service = NameService(node, settings or Dns(), "lo")
        services.append(service)
        service.start()
        return service

    yield start
    for service in services:
        await service.stop()


async def settled(service: NameService) -> dict[str, Any]:
    """Poke, and return what is shown once the poke was worked through."""
    while service._task is not None and service._wanted.is_set():  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    done = asyncio.Event()
    settle = service._settle

    async def once() -> Any:
        try:
            return await settle()
        finally:
            asyncio.get_running_loop().call_soon(done.set)

    service._settle = once  # type: ignore[method-assign]
    service.poke()
    await asyncio.wait_for(done.wait(), LIMIT)
    service._settle = settle  # type: ignore[method-assign]
    return service._node.dns


async def test_the_resolver_is_told_once_and_put_back_at_the_end(run, host):
    service = run()
    shown = await settled(service)
    assert (shown["manager"], shown["server"], shown["domain"]) == (
        "systemd-resolved",
        "127.118.112.1:53",
        "home.nvpn",
    )
    assert shown["problem"] is shown["failure"] is None
    told = list(host.done)
    assert told[0] == "forget"  # what a killed run left
    assert "resolvectl dns lo 127.118.112.1" in told
    await settled(service)
    assert host.done == told
    await service.stop()
    assert host.done[-1] == "revert"


async def test_a_new_name_of_the_network_is_told(run, host):
    service = run()
    await settled(service)
    service._node.zone = replace(service._node.zone, network="office")
    assert (await settled(service))["domain"] == "office.nvpn"
    assert ("office.nvpn", False) in host.link.domains
    service._node.zone = None  # removed from the network
    shown = await settled(service)
    assert (shown["domain"], shown["manager"]) == (None, "none")
    assert host.done[-1] == "revert"


async def test_a_refusal_is_said_and_tried_again(run, host):
    host.refuses = "the bus hangs"
    service = run()
    assert (await settled(service))["failure"] == "the bus hangs"
    host.refuses = ""
    shown = await settled(service)
    assert shown["failure"] is None
    assert shown["manager"] == "systemd-resolved"


async def test_an_unforeseen_error_ends_nothing(run, host, monkeypatch):
    def fails(_index: int) -> Any:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(name_service, "observe_link", fails)
    service = run()
    assert "unforeseen" in (await settled(service))["failure"]
    monkeypatch.setattr(name_service, "observe_link", lambda _index: host.link)
    assert (await settled(service))["failure"] is None


async def test_resolv_conf_is_edited_only_where_the_user_said_so(run, host):
    host.found = PLAIN
    shown = await settled(run())
    assert (shown["manager"], host.file) == ("none", "")
    assert "neither" in shown["problem"]
    service = run(Dns(resolv_conf=True))
    assert (await settled(service))["manager"] == "resolv.conf"
    assert host.file == "ours"
    await service.stop()
    assert host.file == ""


async def test_another_program_that_rewrites_resolv_conf_is_left_its_way_in_the_end(run, host):
    host.found = PLAIN
    service = run(Dns(resolv_conf=True))
    edits = 0
    for _ in range(3 * MAX_REWRITES):
        host.file = "theirs"
        shown = await settled(service)
        edits += host.file == "ours"
    assert edits == MAX_REWRITES
    assert "keeps rewriting" in shown["problem"]


async def test_whoever_takes_and_leaves_exits_often_does_not_pass_for_another_program(run, host):
    host.found = PLAIN
    service = run(Dns(resolv_conf=True))
    for number in range(3 * MAX_REWRITES):
        host.file = "of before"
        service._node.exits.state = (ExitState.CONNECTED, ExitState.OFF)[number % 2]
        shown = await settled(service)
        assert (host.file, shown["problem"]) == ("ours", None)


async def test_a_resolver_that_comes_later_takes_over(run, host, monkeypatch):
    host.found = PLAIN
    service = run(Dns(resolv_conf=True))
    await settled(service)
    host.found = STUB
    monkeypatch.setattr(name_service, "LOOK_EVERY_S", 0.0)
    assert (await settled(service))["manager"] == "systemd-resolved"
    assert host.file == ""


async def test_switched_off_nothing_listens_and_leftovers_go(run, host):
    service = run(Dns(enabled=False))
    shown = await settled(service)
    assert host.done == ["forget"]
    assert (shown["enabled"], shown["server"]) == (False, None)
    service._node.exits.state = ExitState.CONNECTED
    await settled(service)
    assert "dns.enabled" in await exit_error(service)
    assert host.done == ["forget"]


async def exit_error(service: NameService) -> str:
    """Return why names do not go through the exit, once it is told."""
    async with asyncio.timeout(LIMIT):
        while service._node.exits.dns_error is None:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return str(service._node.exits.dns_error)


async def test_while_an_exit_is_wanted_everything_is_asked_of_us_and_of_nobody_else(run, host):
    service = run()
    assert (await settled(service))["everything"] is False
    told = len(host.done)
    service._node.exits.state = ExitState.CONNECTING
    shown = await settled(service)
    assert (shown["everything"], shown["upstream"]) == (True, [])
    assert host.link.default_route
    assert (".", True) in host.link.domains
    assert host.done[-1] == "flush"  # what was answered outside
    service._node.exits.state = ExitState.CONNECTED
    told = len(host.done)
    shown = await settled(service)
    assert shown["upstream"] == ["10.91.0.9:53"]
    assert len(host.done) == told  # the resolver knew already
    service._node.exits.state = ExitState.OFF
    await settled(service)
    assert not host.link.default_route
    assert (".", True) not in host.link.domains


async def test_resolvconf_leaves_others_out_only_while_an_exit_is_wanted(run, host):
    text = "# Generated by resolvconf\nnameserver 192.0.2.1\n"
    host.found = replace(PLAIN, resolv_conf=text, has_resolvconf=True)
    service = run()
    offered = []

    async def offer_at(addresses: Any, _interface: str, *, guests: Any) -> None:
        offered.append([str(address) for address in addresses])

    service._server.offer_at = offer_at
    await settled(service)
    assert (host.done[-1], host.file.splitlines()[0]) == ("record", "nameserver 10.91.0.1")
    service._node.exits.state = ExitState.CONNECTED
    assert (await settled(service))["problem"] is None
    assert (host.done[-1], host.file.splitlines()[0]) == (
        "record alone",
        "nameserver 127.118.112.1",
    )
    service._node.exits.state = ExitState.OFF
    await settled(service)
    assert host.done[-2:] == ["remove", "record"]
    assert offered == [["10.91.0.1"], [], ["10.91.0.1"]]


async def test_where_the_resolver_cannot_be_told_of_an_exit_status_says_what_to_do(run, host):
    host.found = PLAIN
    service = run()
    service._node.exits.state = ExitState.CONNECTED
    await settled(service)
    assert "resolv_conf: true" in await exit_error(service)


@pytest.mark.parametrize("state", [ExitState.CONNECTING, ExitState.BLOCKED])
async def test_while_no_exit_carries_names_fail_at_once(run, host, state):
    service = run()
    service._node.exits.state = state
    query = dns.message.make_query("example.org", "A").to_wire()
    reply: Any = service._answer(query, False)
    found = dns.message.from_wire(await asyncio.wait_for(reply, 0.5))
    assert found.rcode() == dns.rcode.SERVFAIL
    ours = service._answer(dns.message.make_query("nas.home.nvpn", "A").to_wire(), False)
    assert isinstance(ours, bytes)
    assert len(dns.message.from_wire(ours).answer) == 1


async def test_without_an_exit_no_name_is_forwarded(run, host):
    reply = run()._answer(dns.message.make_query("example.org", "A").to_wire(), False)
    assert dns.message.from_wire(reply).rcode() == dns.rcode.REFUSED


async def test_what_cannot_be_put_back_does_not_keep_others_from_stopping(run, host, monkeypatch):
    service = run()
    await settled(service)

    def broken(_index: int) -> None:
        raise UnicodeDecodeError("ascii", b"\xff", 0, 1, "a word of the program's")

    monkeypatch.setattr(name_service, "revert_link", broken)
    await service.stop()  # and nothing is raised


async def test_guests_are_answered_while_there_may_be_some(run, host, monkeypatch):
    service, told = run(), []
    served: list[Any] = []

    async def serve(own: Any, _interface: str, *, guests: Any) -> None:
        if host.refuses:
            raise SystemRefused(host.refuses)
        if guests is not None:
            served.append(own)

    monkeypatch.setattr(service._server, "offer_at", serve)
    service.changed = lambda: told.append(service._node.exit_offer.answers_dns)
    await settled(service)
    assert (served, told) == ([], [])
    host.guests = frozenset([ip_address("10.91.0.7")])
    await settled(service)
    assert served == [(ip_address("10.91.0.1"),)]
    host.refuses = "port 53 is taken"
    assert (await settled(service))["failure"] == "port 53 is taken"
    assert told == [True, False]
