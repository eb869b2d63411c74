"""Names beside the loop: the way is chosen, changed, left and taken back; failures are only said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from types import SimpleNamespace
from typing import Any

import pytest

from nostrvpn.config.model import Dns
from nostrvpn.daemon import name_service
from nostrvpn.daemon.name_service import MAX_REWRITES, NameService
from nostrvpn.endpoint import parse_endpoint
from nostrvpn.errors import SystemRefused
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
        node: Any = SimpleNamespace(dns={}, zone=zone)
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
    assert service._task is not None
    await asyncio.wait_for(asyncio.shield(service._task), LIMIT)
    assert host.done == ["forget"]
    assert service._node.dns["enabled"] is False
    assert service._node.dns["server"] is None
