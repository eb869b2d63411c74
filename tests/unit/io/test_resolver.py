"""STUN servers by name: addresses are taken as they are, what has none is named."""

from __future__ import annotations

from nostrvpn.endpoint import parse_endpoint
from nostrvpn.io.resolver import resolve_servers

LONG = f"{'x' * 300}:3478"


async def test_addresses_need_no_lookup():
    servers = ("192.0.2.1:3478", "[2001:db8::1]:3478")
    found, unresolved = await resolve_servers(servers)
    assert found == tuple(parse_endpoint(server) for server in servers)
    assert unresolved == ()


async def test_names_get_one_address_of_each_family():
    found, unresolved = await resolve_servers(("localhost:3478",))
    assert unresolved == ()
    assert found
    assert all(endpoint.ip.is_loopback and endpoint.port == 3478 for endpoint in found)
    versions = [endpoint.ip.version for endpoint in found]
    assert len(versions) == len(set(versions))


async def test_what_does_not_resolve_is_named():
    servers = ("no-such-host.invalid:3478", "192.0.2.1:3478", LONG)
    found, unresolved = await resolve_servers(servers)
    assert found == (parse_endpoint("192.0.2.1:3478"),)
    assert "no-such-host.invalid:3478" in unresolved
    assert LONG in unresolved
