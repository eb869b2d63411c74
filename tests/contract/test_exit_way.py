"""Rules, routes and the kill switch's table: made, mended when others remove them, gone in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest

from nostrvpn.daemon.reconcile import Reconciler
from nostrvpn.errors import SystemRefused
from nostrvpn.host.exit_routing import ExitRouting
from nostrvpn.host.routing_tables import RoutingTable
from nostrvpn.host.shield import Shield, ShieldKind, shield_table
from nostrvpn.host.state import HostState
from nostrvpn.io.cleanup import remove_marked
from nostrvpn.io.exit_routing import apply_exit_routing, remove_exit_routing
from nostrvpn.io.nftables import own_tables
from nostrvpn.io.wireguard_userspace import UserspaceBackend
from nostrvpn.node.desired import Desired
from nostrvpn.wireguard.device import Device, SecretKey
from tests.contract.cable import OVERLAY, TUNNEL, Host

BOTH = frozenset({4, 6})
ACTIVE = ExitRouting(True, OVERLAY, BOTH, True, frozenset({ip_network("192.168.7.0/24")}))
BLOCKED = Shield(ShieldKind.BLOCKED, OVERLAY)
TUNNELLED = Shield(ShieldKind.TUNNELLED, OVERLAY, BOTH)


@pytest.fixture
def host(make_netns: Callable[[], Any]) -> Iterator[Host]:
    made = Host(make_netns)
    yield made
    made.close()


def looks(netns: Any, interface: str = TUNNEL) -> tuple[str, ...]:
    """All that routing through an exit may change."""
    table = str(RoutingTable.EXIT.number(interface))
    return (
        netns.ip("-4", "rule", "show"),
        netns.ip("-6", "rule", "show"),
        netns.run("ip", "-4", "route", "show", "table", table, check=False),
        netns.run("ip", "-6", "route", "show", "table", table, check=False),
        netns.ip("-4", "route", "show"),
        netns.run("sysctl", "net.ipv4.conf.all.src_valid_mark"),
        netns.run("nft", "list", "ruleset"),
    )


def route(host: Host, routing: ExitRouting) -> bool:
    changed: bool = host.netns.call(apply_exit_routing, routing, TUNNEL)
    return changed


@pytest.mark.kernel
def test_rules_and_routes_are_made_once_and_leave_nothing(host: Host) -> None:
    before = looks(host.netns)
    assert route(host, ACTIVE)
    made = looks(host.netns)
    assert not route(host, ACTIVE)
    assert made[4] == before[4]  # main is never touched
    for version, text in ((4, made[0]), (6, made[1])):
        assert "not from all fwmark 0xa50000/0xff0000 lookup" in text
        assert f"to {'10.64.0.0/16' if version == 4 else 'fd64::/48'} lookup main" in text
    assert "ipproto udp sport 68 dport 67" in made[0]
    assert "to 192.168.7.0/24 iif nv0 lookup main suppress_prefixlength 0" in made[0]
    assert f"default dev {TUNNEL}" in made[2]
    assert "unreachable default" in made[2]
    assert "unreachable default" in made[3]
    assert route(host, ExitRouting())
    assert looks(host.netns) == before
    assert not route(host, ExitRouting())


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_rules_that_others_remove_come_back(host: Host, family: str) -> None:
    route(host, ACTIVE)
    made = looks(host.netns)
    # As systemd-networkd does with rules that it did not make.
    host.netns.ip(family, "rule", "del", "priority", "4650")
    host.netns.ip(family, "rule", "del", "priority", "4630")
    assert looks(host.netns) != made
    assert route(host, ACTIVE)
    assert looks(host.netns) == made


def test_a_rule_of_ours_that_says_something_else_is_replaced(host: Host) -> None:
    route(host, ACTIVE)
    made = looks(host.netns)
    host.netns.ip("rule", "del", "priority", "4650")
    host.netns.ip("rule", "add", "priority", "4650", "lookup", "main", "protocol", "157")
    assert route(host, ACTIVE)
    assert looks(host.netns) == made


def test_a_link_that_vanishes_leaves_everything_unreachable_until_it_is_back(host: Host) -> None:
    route(host, ACTIVE)
    made = looks(host.netns)
    host.netns.ip("link", "set", TUNNEL, "down")
    route(host, ACTIVE)
    for text in looks(host.netns)[2:4]:
        assert text.split()[:2] == ["unreachable", "default"]
    host.netns.ip("link", "set", TUNNEL, "up")
    assert route(host, ACTIVE)
    assert looks(host.netns)[:4] == made[:4]


def test_a_change_of_what_the_exit_carries_changes_only_that(host: Host) -> None:
    route(host, ACTIVE)
    rules = looks(host.netns)[:2]
    assert route(host, replace(ACTIVE, versions=frozenset({4})))
    assert looks(host.netns)[:2] == rules
    assert f"dev {TUNNEL}" not in looks(host.netns)[3]
    assert route(host, replace(ACTIVE, versions=frozenset(), diverts=True))
    assert f"dev {TUNNEL}" in looks(host.netns)[3]
    assert route(host, replace(ACTIVE, allow_lan=False))
    assert "10.0.0.0/8" not in looks(host.netns)[0]


def test_another_networks_exit_is_left_alone(host: Host) -> None:
    route(host, ACTIVE)
    made = looks(host.netns)
    host.netns.call(apply_exit_routing, ExitRouting(), "other0")
    host.netns.call(remove_exit_routing, "other0")
    assert looks(host.netns) == made
    # Two at once are not meant to be; then neither takes the other's.
    host.netns.call(apply_exit_routing, ExitRouting(True), "other0")
    assert set(made[0].splitlines()) < set(looks(host.netns)[0].splitlines())
    assert host.netns.call(remove_exit_routing) > 0
    assert "4650" not in looks(host.netns)[0]
    assert "46" not in looks(host.netns)[1]


@pytest.mark.parametrize("interface", [None, TUNNEL])
def test_cleanup_frees_the_host_whatever_was_left(host: Host, interface: str | None) -> None:
    before = looks(host.netns)
    host.apply(ShieldKind.BLOCKED, allow_lan=True)
    assert "= 1" in looks(host.netns)[5]
    if interface is None:
        # Half of it is gone already.
        host.netns.ip("rule", "del", "priority", "4650")
    host.netns.call(remove_marked, interface=interface)
    assert looks(host.netns) == before


class Agent:
    """A reconciler with a tunnel of its own."""

    def __init__(self, netns: Any, interface: str) -> None:
        self.netns, self.interface = netns, interface
        self.backend = UserspaceBackend()
        self.reconciler = Reconciler(self.backend, interface, 1280)

    def settle(self, shield: Shield, routing: ExitRouting, key: int = 1) -> None:
        addresses = frozenset({ip_interface("10.64.0.1/32"), ip_interface("fd64::1/128")})
        state = HostState(self.interface, 1280, addresses, OVERLAY)
        device = Device(SecretKey(bytes([key]) * 32), 23456, 1, ())
        desired = Desired(device, state, shield=shield, exit_routing=routing)
        self.netns.call(self.reconciler.reconcile_now, desired)

    def error(self) -> str | None:
        return self.reconciler.finished(None).shield_error

    def has_shield(self) -> bool:
        return shield_table(self.interface) in self.netns.call(own_tables)

    def delete(self) -> None:
        self.netns.call(asyncio.run, self.reconciler.delete())


@pytest.fixture
def agent(netns: Any, interface: str) -> Iterator[Agent]:
    made = Agent(netns, interface)
    yield made
    netns.call(made.backend.delete, interface)
    made.reconciler.close()


def test_it_closes_before_anything_else_and_opens_after(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []

    def apply(backend: UserspaceBackend, *arguments: Any) -> None:
        closed = "4650" in agent.netns.ip("rule", "show")
        seen.append((agent.has_shield(), closed))
        original(backend, *arguments)

    original = UserspaceBackend.apply
    monkeypatch.setattr(UserspaceBackend, "apply", apply)
    agent.settle(TUNNELLED, ACTIVE)
    agent.settle(Shield(), ExitRouting(), key=2)
    assert seen == [(True, True), (True, True)]
    assert not agent.has_shield()
    assert "4650" not in agent.netns.ip("rule", "show")


def test_a_device_that_is_refused_opens_nothing(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise SystemRefused("no")

    agent.settle(TUNNELLED, ACTIVE)
    with monkeypatch.context() as patch:
        patch.setattr(UserspaceBackend, "apply", refuse)
        with pytest.raises(SystemRefused):
            agent.settle(Shield(), ExitRouting(), key=2)
        assert agent.has_shield()
    agent.settle(Shield(), ExitRouting(), key=2)
    assert not agent.has_shield()


def test_rules_that_cannot_be_removed_open_nothing(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise SystemRefused("no rules")

    agent.settle(TUNNELLED, ACTIVE)
    with monkeypatch.context() as patch:
        patch.setattr("nostrvpn.daemon.exit_way.apply_exit_routing", refuse)
        agent.settle(Shield(), ExitRouting())
        assert agent.error() == "no rules"
        assert agent.has_shield()
    agent.settle(Shield(), ExitRouting())
    assert agent.error() is None
    assert not agent.has_shield()


def test_without_nft_what_was_closed_stays_closed_and_the_rest_leads_nowhere(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise SystemRefused("nftables is not installed")

    table = str(RoutingTable.EXIT.number(agent.interface))
    with monkeypatch.context() as patch:
        patch.setattr("nostrvpn.io.nftables._run", missing)
        agent.settle(TUNNELLED, ACTIVE)
        assert agent.error() == "nftables is not installed"
        # What an exit would carry could not be told from what it may not.
        assert agent.netns.ip("route", "show", "table", table).split()[0] == "unreachable"
        # And lockdown does not undo it.
        agent.settle(BLOCKED, ExitRouting())
        assert "4650" in agent.netns.ip("rule", "show")
    agent.settle(TUNNELLED, ACTIVE)
    assert agent.error() is None
    assert f"default dev {agent.interface}" in agent.netns.ip("route", "show", "table", table)
    with monkeypatch.context() as patch:
        patch.setattr("nostrvpn.io.nftables._run", missing)
        agent.settle(BLOCKED, ACTIVE)
        assert agent.error() == "nftables is not installed"
        assert agent.has_shield()


def test_a_flushed_table_is_back_with_the_next_run_and_what_it_remembered_too(agent: Agent) -> None:
    before = agent.netns.run("sysctl", "net.ipv4.conf.all.src_valid_mark")
    agent.settle(TUNNELLED, ACTIVE)
    agent.netns.run("nft", "flush", "ruleset")
    agent.reconciler.tables_changed()
    agent.settle(TUNNELLED, ACTIVE)
    assert agent.has_shield()
    agent.netns.run("nft", "flush", "ruleset")
    agent.reconciler.end_with(Shield())
    agent.delete()
    assert agent.netns.run("sysctl", "net.ipv4.conf.all.src_valid_mark") == before


def test_rules_that_went_are_back_with_the_next_run(agent: Agent) -> None:
    agent.settle(TUNNELLED, ACTIVE)
    agent.settle(TUNNELLED, ACTIVE)
    agent.netns.ip("rule", "flush")
    agent.reconciler.host_changed()
    agent.settle(TUNNELLED, ACTIVE)
    assert "4650" in agent.netns.ip("rule", "show")


def test_a_signal_leaves_what_holds_traffic_back(agent: Agent) -> None:
    agent.settle(TUNNELLED, ACTIVE)
    agent.delete()
    assert agent.netns.call(own_tables) == (shield_table(agent.interface),)
    assert "4650" in agent.netns.ip("rule", "show")
    found = agent.netns.ip("route", "show", "table", str(RoutingTable.EXIT.number(agent.interface)))
    assert found.split()[0] == "unreachable"


def test_with_the_kill_switch_off_a_signal_leaves_nothing(agent: Agent) -> None:
    before = looks(agent.netns, agent.interface)
    agent.settle(Shield(versions=BOTH, listen_port=23456), ACTIVE)
    assert agent.has_shield()
    agent.delete()
    assert looks(agent.netns, agent.interface) == before


def test_down_leaves_nothing_but_the_block_of_lockdown(agent: Agent) -> None:
    before = looks(agent.netns, agent.interface)
    agent.settle(TUNNELLED, ACTIVE)
    agent.reconciler.end_with(Shield(ShieldKind.BLOCKED))
    agent.delete()
    after = looks(agent.netns, agent.interface)
    assert after[:5] == before[:5]
    assert agent.netns.call(own_tables) == (shield_table(agent.interface),)
    assert "10.64.0.0/16" not in after[6]
    agent.netns.call(remove_marked)
    assert looks(agent.netns, agent.interface) == before
    agent.settle(TUNNELLED, ACTIVE)
    agent.reconciler.end_with(Shield())
    agent.delete()
    assert looks(agent.netns, agent.interface) == before
