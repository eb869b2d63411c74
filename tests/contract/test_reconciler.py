"""The reconciler reads again what may have changed, and no more than that."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest

from nostrvpn.daemon import reconcile, settled
from nostrvpn.daemon.reconcile import Reconciler
from nostrvpn.endpoint import parse_endpoint
from nostrvpn.host.firewall import Firewall, Guard
from nostrvpn.host.state import HostState
from nostrvpn.io.netlink import observe_host as read_host
from nostrvpn.io.nftables import apply_firewall as settle_firewall
from nostrvpn.io.nftables import own_tables
from nostrvpn.io.wireguard_userspace import UserspaceBackend
from nostrvpn.node.desired import Desired
from nostrvpn.wireguard.device import Device, SecretKey

ROUTE = "10.9.0.0/24"


class Tunnel:
    """A tunnel of its own, kept as desired by a Reconciler; counts how often the host is read."""

    def __init__(self, netns: Any, interface: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.netns, self.interface = netns, interface
        self.reconciler = Reconciler(UserspaceBackend(), interface, 1280)
        self.reads = self.firewall_reads = 0

        def observe_host(name: str) -> HostState | None:
            self.reads += 1
            return read_host(name)

        def apply_firewall(desired: Firewall, name: str) -> bool:
            self.firewall_reads += 1
            return settle_firewall(desired, name)

        monkeypatch.setattr(reconcile, "observe_host", observe_host)
        monkeypatch.setattr(reconcile, "apply_firewall", apply_firewall)

    def settle(self, *, mtu: int = 1280, firewall: Firewall | None = None) -> None:
        addresses = frozenset({ip_interface("10.9.0.1/32")})
        host = HostState(self.interface, mtu, addresses, frozenset({ip_network(ROUTE)}))
        device = Device(SecretKey(b"\1" * 32), 23456, 1, ())
        self.netns.call(
            self.reconciler.reconcile_now, Desired(device, host, firewall or Firewall())
        )

    def routes(self) -> str:
        return str(self.netns.ip("route", "show", "dev", self.interface))


@pytest.fixture
def tunnel(netns: Any, interface: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tunnel]:
    made = Tunnel(netns, interface, monkeypatch)
    yield made
    netns.call(UserspaceBackend().delete, interface)


def test_what_was_found_as_desired_is_not_read_again(tunnel: Tunnel) -> None:
    tunnel.settle()  # changes the host
    tunnel.settle()  # sees that it is done
    assert tunnel.reads == 2
    tunnel.settle()
    assert (tunnel.reads, tunnel.firewall_reads) == (2, 1)
    tunnel.settle(mtu=1300)
    assert tunnel.reads == 3
    assert "mtu 1300" in tunnel.netns.ip("link", "show", "dev", tunnel.interface)


def test_a_change_of_the_host_is_looked_at(tunnel: Tunnel) -> None:
    tunnel.settle()
    tunnel.settle()
    tunnel.netns.ip("route", "del", ROUTE)
    tunnel.settle()
    assert ROUTE not in tunnel.routes()
    tunnel.reconciler.host_changed()
    tunnel.settle()
    assert ROUTE in tunnel.routes()


def test_everything_is_looked_at_again_after_a_while(
    tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = Guard(parse_endpoint("192.0.2.1:1000"), parse_endpoint("192.0.2.2:2000"))
    firewall = Firewall(guards=frozenset({guard}))
    tunnel.settle(firewall=firewall)
    tunnel.settle(firewall=firewall)
    tunnel.netns.ip("route", "del", ROUTE)
    tunnel.netns.run("nft", "flush", "ruleset")
    assert tunnel.netns.call(own_tables) == ()
    monkeypatch.setattr(settled, "TRUSTED_S", 0.0)
    tunnel.settle(firewall=firewall)
    assert ROUTE in tunnel.routes()
    assert tunnel.netns.call(own_tables) != ()
    tunnel.settle()  # without the guard no table is left
    assert tunnel.netns.call(own_tables) == ()


def test_a_tunnel_that_went_is_made_anew_with_its_routes(tunnel: Tunnel) -> None:
    tunnel.settle()
    tunnel.settle()
    # With its process, which may not answer any more when the next one is started.
    tunnel.netns.call(UserspaceBackend().delete, tunnel.interface)
    tunnel.settle()
    assert ROUTE in tunnel.routes()
