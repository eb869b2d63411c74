"""Which network the host is in, and who else uses an exit, as the kernel says."""

from __future__ import annotations

from typing import Any

import pytest

from nostrvpn.host.routing_tables import RoutingTable
from nostrvpn.host.state import FWMARK
from nostrvpn.io.exit_rivals import exit_rivals
from nostrvpn.io.network_place import Place, ask_gateway, place_here
from tests.contract.namespaced import until

MAC = "02:11:22:33:44:55"


@pytest.fixture
def home(netns: Any) -> Any:
    """A host behind a gateway with a known hardware address."""
    netns.ip("link", "add", "e0", "type", "veth", "peer", "name", "e1")
    netns.ip("link", "set", "e1", "address", MAC)
    netns.ip("link", "set", "e1", "up")
    netns.ip("link", "set", "e0", "up")
    netns.ip("addr", "add", "192.168.7.9/24", "dev", "e0")
    return netns


def test_without_a_default_gateway_the_network_is_not_known(home: Any) -> None:
    assert home.call(place_here) == Place()


def test_a_network_is_known_by_its_gateways_hardware_address_and_prefix(home: Any) -> None:
    home.ip("route", "add", "default", "via", "192.168.7.1", "dev", "e0")
    found = home.call(place_here)
    assert found.network == ""
    assert str(found.unheard.ip) == "192.168.7.1"
    home.ip("neigh", "replace", "192.168.7.1", "lladdr", MAC, "dev", "e0", "nud", "stale")
    assert home.call(place_here) == Place(f"{MAC} 192.168.7.0/24")
    home.ip("neigh", "replace", "192.168.7.1", "dev", "e0", "nud", "failed")
    assert home.call(place_here).network == ""


def test_by_ipv6_where_there_is_no_ipv4(netns: Any) -> None:
    netns.ip("link", "add", "e0", "type", "veth", "peer", "name", "e1")
    netns.ip("link", "set", "e1", "up")
    netns.ip("link", "set", "e0", "up")
    netns.ip("addr", "add", "2001:db8:7::9/64", "dev", "e0", "nodad")
    netns.ip("route", "add", "default", "via", "fe80::1", "dev", "e0")
    netns.ip("neigh", "replace", "fe80::1", "lladdr", MAC, "dev", "e0", "nud", "stale")
    assert netns.call(place_here) == Place(f"{MAC} 2001:db8:7::/64")


async def test_a_gateway_that_was_not_heard_is_asked(home: Any) -> None:
    home.ip("route", "add", "default", "via", "192.168.7.1", "dev", "e0")
    unheard = home.call(place_here).unheard
    home.call(ask_gateway, unheard, FWMARK)

    def asked() -> bool:
        # The kernel keeps an entry while it asks, and for a while after nobody answered.
        return "192.168.7.1" in home.ip("neigh", "show", "dev", "e0")

    await until(asked)


def test_another_interface_with_an_exit_is_named(netns: Any) -> None:
    assert netns.call(exit_rivals, "nv0") == []
    for name in ("nv0", "nv1"):
        netns.ip("link", "add", name, "type", "veth", "peer", "name", f"{name}-far")
        netns.ip("link", "set", name, "alias", "nostrvpn home")
        rule = ("rule", "add", "pref", "4650", "not", "fwmark", "0xa50000/0xff0000")
        netns.ip(*rule, "table", str(RoutingTable.EXIT.number(name)), "protocol", "157")
    assert netns.call(exit_rivals, "nv0") == ["nv1"]
    netns.ip("link", "del", "nv1")
    assert netns.call(exit_rivals, "nv0") == [f"table {RoutingTable.EXIT.number('nv1')}"]
    netns.ip("rule", "del", "pref", "4650", "table", str(RoutingTable.EXIT.number("nv1")))
    assert netns.call(exit_rivals, "nv0") == []
