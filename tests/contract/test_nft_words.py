"""Our tables, made where the host has no names of protocols and services.

A small Debian lacks the package netbase: then nft knows only the words of its own grammar.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from nostrvpn.endpoint import Endpoint
from nostrvpn.exits.policy import ExitRule
from nostrvpn.host.booth import Booth, BoothWay, render_booths
from nostrvpn.host.exit_filter import ExitFilter
from nostrvpn.host.exit_meter import ExitMeter, render_meter
from nostrvpn.host.firewall import Firewall, Guard, Pin, render_firewall
from nostrvpn.host.inbound import EVERYTHING, Access, Inbound, Ports, render_inbound
from nostrvpn.host.shield import Bypass, Shield, ShieldKind, render_shield
from nostrvpn.host.state import IPNetwork
from nostrvpn.host.subnet_gateway import Gateway, render_gateway
from nostrvpn.io.relay_table import RelayTable

NV = "nv0"
OWN = frozenset(map(ip_address, ("10.64.0.1", "fd64::1")))
PEERS = tuple(map(ip_address, ("10.64.0.2", "fd64::2")))
OVERLAY: frozenset[IPNetwork] = frozenset(map(ip_network, ("10.64.0.0/16", "fd64::/48")))
BEHIND: frozenset[IPNetwork] = frozenset(map(ip_network, ("192.168.7.0/24", "2001:db8:7::/64")))
BOTH = frozenset({4, 6})
WEB: Ports = ((80, 443),)
OLD, NEW = Endpoint(ip_address("192.0.2.1"), 7000), Endpoint(ip_address("198.51.100.1"), 7001)
HIDE = "for file in protocols services; do mount --bind /dev/null /etc/$file || exit; done"


def inbound() -> str:
    kinds = (EVERYTHING, Access(ping=True, other=True), Access(tcp=WEB, udp=WEB))
    sources = {ip: kinds[i] for i, ip in enumerate((*PEERS, ip_address("10.64.0.3")))}
    rules = (ExitRule(False, (*BEHIND,)), ExitRule(True, (), WEB, WEB, ping=True, other=True))
    guests = ExitFilter(frozenset(PEERS), rules, dns=True)
    lan: dict[str, Any] = {"lan_sources": frozenset(PEERS), "lan_networks": BEHIND}
    more: dict[str, Any] = {"booths": frozenset({"nvx0"}), "outward": BOTH, "overlay": OVERLAY}
    return render_inbound(Inbound(OWN, sources, exit=guests, **lan, **more), NV)


def firewall() -> str:
    guards, pins = frozenset({Guard(OLD, NEW)}), frozenset({Pin(40000, NEW)})
    return render_firewall(Firewall(51820, guards, pins, clamp_forwarded=True), NV)


def shield(kind: ShieldKind) -> str:
    around = Bypass(BEHIND, frozenset({(1000, 1005)}), domains=True)
    behind = {"behind": BEHIND, "listen_port": 51820, "allow_lan": True}
    wanted = Shield(kind, OVERLAY, BOTH, frozenset(PEERS), bypass=around, **behind)  # type: ignore[arg-type]
    return render_shield(wanted, NV, named={PEERS[0]: 60})


def gateway() -> str:
    exits: dict[str, Any] = {
        "exit_versions": BOTH,
        "own": OWN,
        "listen_port": 51820,
        "booths": BOTH,
    }
    return render_gateway(Gateway(BEHIND, OVERLAY, **exits), NV, ["e0"], ["e0"], ["e0"])


def booths() -> str:
    way = BoothWay(frozenset({Booth(0)}), BOTH, frozenset(PEERS), OVERLAY)
    return render_booths(way, NV)


def meter() -> str:
    limits = {"rate": 1000, "bandwidth": 9000, "connections": 5, "budget": 10**9}
    return render_meter(ExitMeter(frozenset(PEERS), BEHIND, **limits), NV, anew=True)  # type: ignore[arg-type]


def relay(netns: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    made: list[str] = []
    monkeypatch.setattr("nostrvpn.io.relay_table.apply_ruleset", made.append)
    netns.call(RelayTable(NV, 100).create, ())
    return "".join(made)


TABLES: dict[str, Callable[[], str]] = {
    "inbound": inbound,
    "firewall": firewall,
    "blocked": lambda: shield(ShieldKind.BLOCKED),
    "open": lambda: render_shield(Shield(ShieldKind.OPEN, OVERLAY, BOTH), NV),
    "tunnelled": lambda: shield(ShieldKind.TUNNELLED),
    "gateway": gateway,
    "booths": booths,
    "meter": meter,
}


def refusal(script: str) -> str:
    """What nft says to a script in a network of its own, without the names."""
    inside = ("unshare", "-m", "-n", "sh", "-c", f"{HIDE}; exec nft -f -")
    done = subprocess.run(inside, input=script, capture_output=True, text=True, timeout=30)
    return done.stderr or str(done.returncode or "")


@pytest.mark.parametrize("table", TABLES)
def test_every_table_is_made_without_the_names_of_protocols(netns: Any, table: str) -> None:
    assert refusal(TABLES[table]()) == ""


def test_a_relays_table_is_too(netns: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = relay(netns, monkeypatch)
    assert "udp" in script
    assert refusal(script) == ""


def test_the_names_are_hidden_there(netns: Any) -> None:
    named = "table inet t {\nchain c {\nmeta l4proto ipv6-icmp accept\n}\n}\n"
    assert "resolve protocol" in refusal(named)
