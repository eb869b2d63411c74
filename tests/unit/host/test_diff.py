"""The difference between a found and a desired link; the host here is one in memory."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.host.diff import (
    AddAddress,
    AddRoute,
    HostOp,
    RemoveAddress,
    RemoveOuterLimit,
    RemoveRoute,
    SetLink,
    SetOuterLimit,
    diff,
)
from nostrvpn.host.state import HostState, IPNetwork, OuterLimit, RouteLimit

V4 = ip_interface("10.64.1.2/16")
V6 = ip_interface("fd00::2/128")
LINK_LOCAL = ip_interface("fe80::1234/64")
NETWORK = ip_network("10.64.0.0/16")
NETWORK6 = ip_network("fd00::/64")
PEER = ip_address("192.0.2.1")
PEER6 = ip_address("2001:db8::1")
DESIRED = HostState("nvpn0", 1280, frozenset([V4, V6]), frozenset([NETWORK, NETWORK6]))


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
                route_limits=state.route_limits if up else frozenset[RouteLimit](),
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
            assert op.replace == (op.network in state.routes)
            limits = without(state, op.network) | ({op.limit} if op.limit else frozenset())
            return replace(state, routes=state.routes | {op.network}, route_limits=limits)
        case RemoveRoute():
            assert op.network in state.routes
            limits = without(state, op.network)
            return replace(state, routes=state.routes - {op.network}, route_limits=limits)
        case SetOuterLimit():
            others = {limit for limit in state.outer_limits if limit.ip != op.ip}
            return replace(state, outer_limits=frozenset({*others, OuterLimit(op.ip, op.mtu)}))
        case RemoveOuterLimit():
            assert op.ip in {limit.ip for limit in state.outer_limits}
            kept = frozenset(limit for limit in state.outer_limits if limit.ip != op.ip)
            return replace(state, outer_limits=kept)


def without(state: HostState, network: IPNetwork) -> frozenset[RouteLimit]:
    return frozenset(limit for limit in state.route_limits if limit.network != network)


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


def test_limits_in_words() -> None:
    limited = replace(
        DESIRED,
        route_limits=frozenset([RouteLimit(NETWORK, 1056), RouteLimit(NETWORK6, 1280, 996)]),
        outer_limits=frozenset([OuterLimit(PEER, 1116)]),
    )
    assert [str(op) for op in diff(DESIRED, limited)] == [
        "ip route replace 10.64.0.0/16 dev nvpn0 proto 157 mtu 1056",
        "ip route replace fd00::/64 dev nvpn0 proto 157 mtu 1280 advmss 996",
        "ip route replace 192.0.2.1 mtu lock 1116 proto 157 (for marked packets of nvpn0)",
    ]
    assert [str(op) for op in diff(limited, DESIRED)] == [
        "ip route replace 10.64.0.0/16 dev nvpn0 proto 157",
        "ip route replace fd00::/64 dev nvpn0 proto 157",
        "ip route del 192.0.2.1 proto 157 (for marked packets of nvpn0)",
    ]


def test_a_limit_that_leads_elsewhere_by_now_is_set_again() -> None:
    wanted = replace(DESIRED, outer_limits=frozenset([OuterLimit(PEER, 1116)]))
    stale = replace(DESIRED, outer_limits=frozenset([OuterLimit(PEER, 0)]))
    assert diff(stale, wanted) == [SetOuterLimit("nvpn0", PEER, 1116)]


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
        (replace(DESIRED, route_limits=frozenset([RouteLimit(NETWORK, 575)])), "mtu"),
        (replace(DESIRED, route_limits=frozenset([RouteLimit(NETWORK6, 1279)])), "mtu"),
        (replace(DESIRED, outer_limits=frozenset([OuterLimit(PEER6, 1279)])), "mtu"),
    ],
)
def test_refuses_a_state_that_cannot_be(state: HostState, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diff(None, state)


def test_refuses_the_state_of_another_link() -> None:
    with pytest.raises(ValueError, match="wg0"):
        diff(replace(DESIRED, interface="wg0"), DESIRED)


addresses = st.frozensets(st.sampled_from([V4, V6, ip_interface("10.64.9.9/32")]))
mtus = st.sampled_from([1280, 1440])
limited = st.dictionaries(
    st.sampled_from([NETWORK, NETWORK6, ip_network("::/0")]),
    st.none() | st.tuples(mtus, st.sampled_from([None, 1000])),
)
outer = st.dictionaries(st.sampled_from([PEER, PEER6]), mtus)


@st.composite
def states(draw: st.DrawFn) -> HostState:
    routes = draw(limited)
    return HostState(
        "nvpn0",
        draw(st.sampled_from([1280, 1420])),
        draw(addresses),
        frozenset(routes),
        draw(st.sampled_from(["nostrvpn", "nostrvpn home"])),
        draw(st.booleans()),
        frozenset(RouteLimit(net, *limit) for net, limit in routes.items() if limit is not None),
        frozenset(OuterLimit(ip, mtu) for ip, mtu in draw(outer).items()),
    )


def as_down(state: HostState) -> HostState:
    """What is left of a state while its link is down."""
    if state.up:
        return state
    return replace(state, routes=frozenset[IPNetwork](), route_limits=frozenset[RouteLimit]())


@given(states(), states())
def test_applying_the_difference_reaches_the_desired_state(
    found: HostState, desired: HostState
) -> None:
    found = as_down(found)
    reached = apply_all(found, diff(found, desired))
    assert diff(reached, desired) == []
    if not desired.up:
        desired = replace(as_down(desired), outer_limits=frozenset())
    assert reached == desired
