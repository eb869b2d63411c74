"""A WireGuard device in a namespace, for the suites of the network stack."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest

from nostrvpn.host.diff import diff as host_diff
from nostrvpn.host.state import HostState
from nostrvpn.io.netlink import apply_host, observe_host
from nostrvpn.io.tun_owner import TunOwners
from nostrvpn.io.wireguard import Backend
from nostrvpn.wireguard.device import Device
from nostrvpn.wireguard.diff import Op, applied_generations, diff
from tests.contract.fault_room import room

__all__ = ["room"]  # a fixture


class Node:
    """A backend's device in a namespace, reconciled as the agent does it."""

    def __init__(self, netns: Any, backend: Backend, interface: str) -> None:
        self.netns = netns
        self.backend = backend
        self.interface = interface
        self.applied: dict[str, int] = {}

    def create(self, mtu: int = 1280) -> None:
        self.netns.call(self.backend.create, self.interface, mtu)

    def observe(self) -> Any:
        return self.netns.call(self.backend.observe, self.interface)

    def delete(self) -> None:
        self.netns.call(self.backend.delete, self.interface)

    def settle(self, device: Device) -> list[Op]:
        ops = diff(self.observe(), device, self.applied, interface=self.interface)
        self.netns.call(self.backend.apply, self.interface, ops, device)
        self.applied = applied_generations(device)
        return ops

    def up(self, *addresses: str, routes: tuple[str, ...] = ()) -> None:
        state = HostState(
            self.interface,
            1280,
            frozenset(map(ip_interface, addresses)),
            frozenset(map(ip_network, routes)),
        )
        found = self.netns.call(observe_host, self.interface)
        self.netns.call(apply_host, host_diff(found, state))

    def wg(self) -> dict[str, list[str]]:
        """What ``wg show dump`` says: the device under "", each peer under its public key."""
        lines = self.netns.run("wg", "show", self.interface, "dump").splitlines()
        rows = [line.split("\t") for line in lines]
        return {"": rows[0], **{row[0]: row[1:] for row in rows[1:]}}

    def pids(self) -> tuple[int, ...]:
        def read() -> tuple[int, ...]:
            with TunOwners(self.interface) as owners:
                return owners.pids

        pids: tuple[int, ...] = self.netns.call(read)
        return pids


@pytest.fixture
def make_node() -> Callable[..., Node]:
    """``make_node(netns, backend, interface)``: a device there, not created yet."""
    return Node
