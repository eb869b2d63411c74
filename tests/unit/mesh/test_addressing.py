"""Overlay addresses: derived, inside their prefixes, and never shared."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.mesh.addressing import (
    ipv4_host,
    ipv4_prefix,
    ipv6_address,
    ipv6_prefix,
    overlay_address,
)

KEYS = st.binary(min_size=32, max_size=32).map(bytes.hex)


@given(KEYS, KEYS)
def test_addresses_lie_in_the_networks_prefixes(network, key):
    address = overlay_address(network, key, ipv4_host(network, key, ()))
    assert address.ipv6 in ipv6_prefix(network)
    assert address.ipv4 in ipv4_prefix(network)
    assert ipv6_prefix(network).prefixlen == 48
    assert ipv6_prefix(network).network_address.packed[0] == 0xFD
    prefix = ipv4_prefix(network)
    assert prefix.network_address <= address.ipv4 <= prefix.broadcast_address
    assert address.ipv4 not in (prefix.network_address, prefix.broadcast_address)


def test_the_derivation_is_fixed():
    network, key = "11" * 32, "22" * 32
    assert str(ipv6_prefix(network)) == "fdf5:3203:9ce0::/48"
    assert str(ipv6_address(network, key)) == "fdf5:3203:9ce0:fae0:768e:b8ef:5142:923b"
    assert str(ipv4_prefix(network)) == "10.127.0.0/16"
    assert ipv6_address(network, key) != ipv6_address("33" * 32, key)


def test_a_taken_host_number_moves_the_later_member_on():
    network, key = "11" * 32, "22" * 32
    first = ipv4_host(network, key, ())
    assert ipv4_host(network, key, {first}) == (first + 1) % 65_534
    assert ipv4_host(network, key, {first, first + 1}) == (first + 2) % 65_534


def test_the_last_host_number_wraps_to_the_first():
    network, key = "11" * 32, "22" * 32
    everything_above = set(range(ipv4_host(network, key, ()), 65_534))
    assert ipv4_host(network, key, everything_above) == 0
