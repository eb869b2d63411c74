"""A host's forwarding settings: remembered in a table, and put back whatever became of the table."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Any

import pytest

from nostrvpn.errors import SystemRefused
from nostrvpn.host.subnet_gateway import Gateway, gateway_table
from nostrvpn.io import relay_routing
from nostrvpn.io.own_tables import delete_own_tables
from nostrvpn.io.relay_routing import RoutingMemory
from nostrvpn.io.subnet_gateway import apply_gateway

LAN4, LAN6 = ip_network("192.168.5.0/24"), ip_network("fd55::/64")
OVERLAY = frozenset({ip_network("10.77.0.0/16"), ip_network("fdaa::/48")})
OFFICE = Gateway(frozenset({LAN4, LAN6}), OVERLAY)
TABLE = gateway_table("nv0")
SETTINGS = (
    "net.ipv4.conf.nv0.forwarding",
    "net.ipv4.conf.lan.forwarding",
    "net.ipv6.conf.all.forwarding",
    "net.ipv6.conf.lan.accept_ra",
)


class Router:
    """A host with a tunnel, a LAN and an uplink; it forwards nothing by itself."""

    def __init__(self, netns: Any) -> None:
        self.netns = netns
        self.memory = RoutingMemory(TABLE)
        for name in ("nv0", "lan", "wan"):
            netns.ip("link", "add", name, "type", "veth", "peer", "name", f"{name}-far")
        netns.run("sysctl", "-q", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
        netns.run("sysctl", "-q", "net.ipv6.conf.lan.accept_ra=1")
        for name in ("nv0", "lan", "wan"):
            netns.ip("link", "set", name, "up")
        netns.ip("addr", "add", "192.168.5.1/24", "dev", "lan")
        netns.ip("addr", "add", "fd55::1/64", "dev", "lan", "nodad")
        self.before = self.settings()
        assert self.before == ["0", "0", "0", "1"]

    def settings(self) -> list[str]:
        return [self.netns.run("sysctl", "-n", name).strip() for name in SETTINGS]

    def open(self, gateway: Gateway = OFFICE) -> bool:
        return bool(self.netns.call(apply_gateway, gateway, "nv0", self.memory))

    def flush(self) -> None:
        self.netns.run("nft", "flush", "ruleset")

    def listed(self) -> str:
        return str(self.netns.run("nft", "list", "table", "inet", TABLE, check=False))


@pytest.fixture
def router(netns: Any) -> Router:
    made = Router(netns)
    assert made.open()
    assert made.settings() == ["1", "1", "1", "2"]
    return made


def keeps_others_out(router: Router) -> bool:
    """Whether the drops for everybody else have something to act on."""
    text = " ".join(router.listed().split())
    [names] = re.findall(r"set routed4 { type ifname elements = { ([^}]*) }", text)
    return set(names.split(", ")) == {'"lan"', '"nv0"'} and "elements = { ipv6 }" in text


@pytest.mark.parametrize("is_new_process", [False, True])
def test_a_flush_does_not_make_the_host_everybodys_router(
    router: Router, is_new_process: bool
) -> None:
    assert keeps_others_out(router)
    if is_new_process:
        router.memory = RoutingMemory(TABLE)
        assert not router.open()
    router.flush()
    assert router.open()
    assert keeps_others_out(router)
    assert not router.open()
    assert router.open(Gateway())
    assert router.settings() == router.before


def test_what_was_off_is_turned_off_although_the_table_was_flushed(router: Router) -> None:
    router.flush()
    assert router.open(Gateway())
    assert router.settings() == router.before
    assert not router.open(Gateway())


def test_one_setting_that_is_refused_keeps_no_other_and_is_remembered(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = relay_routing._write

    def refuse(path: Any, value: str) -> None:
        if path.parent.name == "lan" and path.name == "forwarding":
            raise SystemRefused("setting it is refused")
        write(path, value)

    monkeypatch.setattr(relay_routing, "_write", refuse)
    with pytest.raises(SystemRefused, match="refused"):
        router.netns.call(delete_own_tables, "nv0")
    assert router.settings() == ["0", "1", "0", "1"]
    assert TABLE in router.listed()
    monkeypatch.undo()
    assert router.netns.call(delete_own_tables, "nv0") == (TABLE,)
    assert router.settings() == router.before
    assert router.listed() == ""


def test_the_table_goes_last(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in between, whoever comes next still finds what was off."""

    def killed(_name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(relay_routing, "delete_table", killed)
    with pytest.raises(KeyboardInterrupt):
        router.netns.call(delete_own_tables, "nv0")
    assert TABLE in router.listed()
    assert router.settings() == router.before


def test_an_interface_that_went_is_passed_over(router: Router) -> None:
    router.netns.ip("link", "del", "lan")
    assert router.open(Gateway())
    assert router.netns.run("sysctl", "-n", SETTINGS[0]).strip() == "0"
    assert router.listed() == ""
