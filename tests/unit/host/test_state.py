"""Marks, and what a link may be called."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from nostrvpn.host.state import HostState, OuterLimit, RouteLimit, is_interface_name, is_marked


@pytest.mark.parametrize("name", ["nvpn0", "a", "wg-home.1_x", "x" * 15])
def test_interface_names(name: str) -> None:
    assert is_interface_name(name)


@pytest.mark.parametrize(
    "name", ["", "x" * 16, "a/b", "..", ".", "-f", "a b", "a\n", "é", "a%d", "a:1"]
)
def test_names_no_interface_of_ours_has(name: str) -> None:
    assert not is_interface_name(name)
    with pytest.raises(ValueError, match="not an interface name"):
        HostState(name, mtu=1280)


def test_marks() -> None:
    assert is_marked("nostrvpn")
    assert is_marked("nostrvpn home")
    assert not is_marked("")
    assert not is_marked("my nostrvpn")


def test_an_alias_has_a_bound() -> None:
    with pytest.raises(ValueError, match="255"):
        HostState("nvpn0", 1280, alias="nostrvpn" + "é" * 124)


def test_limits_are_of_routes_and_one_each() -> None:
    network = ip_network("10.0.0.0/8")
    ip = ip_address("192.0.2.1")
    with pytest.raises(ValueError, match="limit for no route"):
        HostState("nvpn0", 1280, route_limits=frozenset([RouteLimit(network, 1280)]))
    two = frozenset([RouteLimit(network, 1280), RouteLimit(network, 1300)])
    with pytest.raises(ValueError, match="two for one"):
        HostState("nvpn0", 1280, routes=frozenset([network]), route_limits=two)
    with pytest.raises(ValueError, match="two outer limits"):
        HostState(
            "nvpn0", 1280, outer_limits=frozenset([OuterLimit(ip, 1280), OuterLimit(ip, 1000)])
        )
