"""The main job on the kernel's own WireGuard: meet, carry data, survive a crash, leave nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any

import pytest

from nostrvpn.errors import SystemRefused
from nostrvpn.io.wireguard_kernel import KernelBackend
from nostrvpn.lab.core import Engine, Internet
from nostrvpn.lab.leftovers import leftovers
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.topologies import TwoNats
from nostrvpn.lab.topology import Host
from nostrvpn.lab.transfer import transfer
from tests.kernel.near import NearNode, told
from tests.lab.homes import FAILURE, machine

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(patient(60))]

DELAY = 0.02
"""Seconds, one way, between any two networks of the lab; netem holds the packets back."""

ROUND_TRIP_MS = 2 * DELAY * 1000
SIZE = 1_000_000
DOWN_TIMEOUT = 10.0
# Seconds without an answer to a SYN, after which there will be none.
REFUSED_S = 0.5


class KernelTwoNats(TwoNats):
    """Two laptops behind two NATs, whose nodes may use nothing but the kernel's WireGuard."""

    node_type = NearNode

    def near_node(self, host: Host) -> NearNode:
        """Put a node on ``host``, not yet started."""
        node = self.node(host, self.server, wireguard={"backend": "kernel"})
        assert isinstance(node, NearNode)
        return node


def wait_direct(node: LabNode, other: LabNode) -> dict[str, Any]:
    return node.wait_for_peer(other.npub, path="direct", timeout=30)


def ping(source: LabNode, address: str) -> float:
    """Return the fastest of three echoes through the tunnel, in ms."""
    argv = ("ping", "-n", "-c", "3", "-i", "0.2", "-w", "20", address)
    said = source.namespace.run(*argv, timeout=30).stdout
    return min(float(time) for time in re.findall(r"time=([0-9.]+) ms", said))


def test_two_laptops_meet_on_kernel_wireguard(needs: Callable[[bool, str], None]) -> None:
    needs(not KernelBackend().unavailable(), "the kernel module wireguard")
    with KernelTwoNats(internet=Internet(delay=DELAY, engine=Engine.NETEM)) as lab:
        told("the network stands")
        a, b = (lab.near_node(host) for host in (lab.laptop_a, lab.laptop_b))
        footprint = lab.footprint()
        before = machine(b)
        two_nodes_meet(lab, a, b)
        a_denied_member_only_pings(a, b)
        a_crashed_daemon_adopts_its_device(a, b)
        told("crash and restart")
        b.cli("down", f"--timeout={patient(DOWN_TIMEOUT)}")
        assert a.stop() == 0
        assert (a.link(), b.link()) == ({}, {})
        assert changes(before, machine(b)) == {}
        for node in (a, b):
            log = node.log.read_text().splitlines()
            assert [line for line in log if FAILURE.search(line)] == []
        told("both down")
    assert leftovers(footprint) == []
    told("nothing left")


def two_nodes_meet(lab: KernelTwoNats, a: NearNode, b: NearNode) -> None:
    """Bring both up, let b join a, and use their tunnel."""
    for node in (a, b):
        node.init()
    told("two identities")
    with ThreadPoolExecutor(2) as both:
        list(both.map(LabNode.start, (a, b)))
        list(both.map(LabNode.wait_for_relay, (a, b)))
    told("two daemons with a relay")
    b.query("join", a.query("invite", b.npub)["link"])
    for node, other, router in ((b, a, lab.nat_a), (a, b, lab.nat_b)):
        endpoint = wait_direct(node, other)["endpoint"]
        assert endpoint == f"{router.address}:{other.status()['listen_port']}"
        assert node.status()["backend"] == "kernel"
        assert node.link()["ifname"] == node.interface
    told("direct")
    for address in b.status()["addresses"]:
        assert ping(a, address) >= ROUND_TRIP_MS
        assert transfer(a.namespace, b.namespace, ip_address(address), size=SIZE).intact
    told("ping and transfer")


def a_denied_member_only_pings(a: NearNode, b: NearNode) -> None:
    """The packet filter judges what the kernel's own WireGuard brings."""
    address = ip_address(b.status()["addresses"][0])
    b.cli("deny", a.npub, "inbound:tcp")

    def is_refused() -> bool:
        try:
            transfer(a.namespace, b.namespace, address, size=1, patience=REFUSED_S)
        except SystemRefused:
            return True
        return False

    # The command is answered before the filter is set, and this machine is slow.
    wait_until(is_refused, "the packet filter")
    assert ping(a, str(address)) >= ROUND_TRIP_MS
    b.cli("allow", a.npub, "inbound:tcp")
    assert transfer(a.namespace, b.namespace, address, size=1).intact
    told("permissions")


def a_crashed_daemon_adopts_its_device(a: NearNode, b: NearNode) -> None:
    """Kill b's daemon: its tunnel stays, carries data, and is taken over by the next daemon."""
    index, received = b.link()["ifindex"], b.received_bytes()
    address = b.status()["addresses"][0]
    b.kill()
    assert ping(a, address) >= ROUND_TRIP_MS
    b.start()
    # A device made anew would have another index, and count from zero.
    assert b.link()["ifindex"] == index
    assert b.received_bytes() > received > SIZE
    wait_direct(b, a)
    assert ping(b, a.status()["addresses"][0]) >= ROUND_TRIP_MS


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return what differs between two looks at a machine: what there is no more, what is new."""
    return {
        key: (
            [item for item in before[key] if item not in after[key]],
            [item for item in after[key] if item not in before[key]],
        )
        for key in before
        if before[key] != after[key]
    }
