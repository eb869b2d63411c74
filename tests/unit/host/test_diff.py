"""The difference between a found and a desired link; the host here is one in memory."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.host.diff import (
    AddAddress,
    AddRoute,
    HostOp,
    RemoveAddress,
    RemoveRoute,
    SetLink,
    diff,
)
from nostrvpn.host.state import HostState, IPNetwork

V4 = ip_interface("10.64.1.2/16")
V6 = ip_interface("fd00::2/128")
LINK_LOCAL = ip_interface("fe80::1234/64")
NETWORK = ip_network("10.64.0.0/16")
DESIRED = HostState(
    "nvpn0", 1280, frozenset([V4, V6]), frozenset([NETWORK, ip_network("fd00::/64")])
)


def apply(state: HostState, op: HostOp) -> HostState:
    """Apply one operation as a kernel would: routes and IPv6 addresses go down with the link."""
    match op:
        case SetLink():
            up = state.up if op.up is None else op.up
            return replace(
                state,
                mtu=op.mtu or state.mtu,
                alias=state.alias if op.alias is None else op.alias,
                up=up,
                routes=state.routes if up else frozenset[IPNetwork](),
                addresses=frozenset(
                    a for a in state.addresses if op.up is not False or a.version == 4
                ),
            )
        case AddAddress():
            assert op.address not in state.addresses
            return replace(state, addresses=state.addresses | {op.address})
        case RemoveAddress():
            assert op.address in state.addresses
            return replace(state, addresses=state.addresses - {op.address})
        case AddRoute():
            assert state.up
            assert op.network not in state.routes
            return replace(state, routes=state.routes | {op.network})
        case RemoveRoute():
            assert op.network in state.routes
            return replace(state, routes=state.routes - {op.network})


def apply_all(state: HostState, ops: list[HostOp]) -> HostState:
    for op in ops:
        state = apply(state, op)
    return state


def test_a_new_link_in_an_order_that_works() -> None:
    assert [str(op) for op in diff(None, DESIRED)] == [
        'ip link set dev nvpn0 mtu 1280 alias "nostrvpn"',
        "ip addr add 10.64.1.2/16 dev nvpn0 noprefixroute",
        "ip addr add fd00::2/128 dev nvpn0 noprefixroute",
        "ip link set dev nvpn0 up",
        "ip route add 10.64.0.0/16 dev nvpn0 proto 157",
        "ip route add fd00::/64 dev nvpn0 proto 157",
    ]


def test_what_is_no_longer_wanted_goes_first() -> None:
    ops = diff(DESIRED, HostState("nvpn0", 1280, frozenset([V6])))
    assert [str(op) for op in ops] == [
        "ip route del 10.64.0.0/16 dev nvpn0 proto 157",
        "ip route del fd00::/64 dev nvpn0 proto 157",
        "ip addr del 10.64.1.2/16 dev nvpn0",
    ]


def test_the_kernels_own_link_local_address_stays() -> None:
    found = replace(DESIRED, addresses=DESIRED.addresses | {LINK_LOCAL})
    assert diff(found, DESIRED) == []


def test_taking_the_link_down() -> None:
    ops = diff(DESIRED, replace(DESIRED, up=False))
    assert SetLink("nvpn0", up=False) in ops
    assert not apply_all(DESIRED, ops).up


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (replace(DESIRED, alias="mine"), "mark"),
        (replace(DESIRED, mtu=1279), "mtu"),
        (replace(DESIRED, mtu=65536), "mtu"),
        (HostState("nvpn0", 575, frozenset([V4])), "mtu"),
    ],
)
def test_refuses_a_state_that_cannot_be(state: HostState, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diff(None, state)


def test_refuses_the_state_of_another_link() -> None:
    with pytest.raises(ValueError, match="wg0"):
        diff(replace(DESIRED, interface="wg0"), DESIRED)


addresses = st.frozensets(st.sampled_from([V4, V6, ip_interface("10.64.9.9/32")]))
routes = st.frozensets(st.sampled_from([NETWORK, ip_network("fd00::/64"), ip_network("::/0")]))
states = st.builds(
    HostState,
    st.just("nvpn0"),
    st.sampled_from([1280, 1420]),
    addresses,
    routes,
    st.sampled_from(["nostrvpn", "nostrvpn home"]),
    st.booleans(),
)


@given(states, states)
def test_applying_the_difference_reaches_the_desired_state(
    found: HostState, desired: HostState
) -> None:
    found = found if found.up else replace(found, routes=frozenset())
    reached = apply_all(found, diff(found, desired))
    assert diff(reached, desired) == []
    assert reached == (desired if desired.up else replace(desired, routes=frozenset()))
