"""Two laptops meet: what a user then sees, and what happens behind each kind of NAT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from wgconfig import WGConfig

from nostrvpn.endpoint import parse_endpoint
from nostrvpn.lab.node import LabNode, Status
from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.scenarios import SCENARIOS
from nostrvpn.lab.topologies import Pair
from nostrvpn.lab.transfer import transfer
from tests.lab.homes import (
    Homes,
    admit,
    homes,
    join,
    launch,
    peer_of,
    ping,
    problems,
    wait_direct,
    watched,
)

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(90))]

NUMBER = (int, float)
STATUS = {
    "npub": str,
    "wireguard_public_key": str,
    "addresses": list,
    "interface": str,
    "backend": str,
    "listen_port": int,
    "relays": list,
    "peers": list,
    "problems": list,
}
RELAY = {"url": str, "state": str, "rtt_ms": NUMBER}
PEER = {
    "npub": str,
    "name": str,
    "state": str,
    "path": str,
    "endpoint": str,
    "rtt_ms": NUMBER,
    "rx_bytes": int,
    "tx_bytes": int,
    "last_handshake_age_s": NUMBER,
    "connected_in_ms": NUMBER,
}
CALM = 3
"""Seconds over which a node without a path is watched: it waits half a minute between rounds."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Homes]:
    """Two homes whose laptops have met."""
    with homes(2) as lab:
        join(*lab.nodes)
        yield lab


@pytest.fixture
def pair(lab: Homes) -> tuple[LabNode, LabNode]:
    """The nodes of ``lab``, in contact."""
    wait_direct(*lab.nodes)
    return lab.nodes[0], lab.nodes[1]


def conforms(document: dict[str, Any], shape: dict[str, Any]) -> bool:
    """Say whether all keys are there with their types, and no truth value passes for a number."""
    return all(
        isinstance(document[key], kind) and not isinstance(document[key], bool)
        for key, kind in shape.items()
    )


def test_status_tells_what_is_documented(lab: Homes, pair: tuple[LabNode, LabNode]) -> None:
    node, other = pair
    # Two relay round trips measure a relay, and a check measures a path.
    status = node.wait_for(lambda s: s["relays"][0]["rtt_ms"] is not None, "a relay's round trip")
    assert conforms(status, STATUS)
    (relay,), (peer,) = status["relays"], status["peers"]
    assert conforms(relay, RELAY)
    assert conforms(peer, PEER)
    assert status["npub"] == node.npub
    assert status["interface"] == node.interface
    assert status["backend"] in ("kernel", "userspace")
    assert {ip_address(address).version for address in status["addresses"]} == {4, 6}
    assert (relay["url"], relay["state"]) == (lab.server.relay_url, "connected")
    assert (peer["npub"], peer["name"]) == (other.npub, "laptop-b")
    assert (peer["state"], peer["path"]) == ("connected", "direct")
    assert peer["endpoint"] == f"{lab.routers[1].address}:{other.status()['listen_port']}"
    assert 0 <= peer["last_handshake_age_s"] < 180
    assert min(peer["rx_bytes"], peer["tx_bytes"]) > 0
    assert status["problems"] == []


def test_ping_and_ten_megabytes_cross_the_tunnel(pair: tuple[LabNode, LabNode]) -> None:
    ping(*pair)
    ping(*reversed(pair))
    for address in pair[1].status()["addresses"]:
        done = transfer(pair[0].namespace, pair[1].namespace, ip_address(address), size=10_000_000)
        assert done.intact
    assert peer_of(*pair)["tx_bytes"] > 20_000_000


def test_ping_until_direct(pair: tuple[LabNode, LabNode]) -> None:
    told = pair[0].query("ping", "laptop-b", "--until-direct")
    assert (told["npub"], told["path"], told["received"]) == (pair[1].npub, "direct", told["sent"])
    assert 0 < told["rtt_ms"]["min"] <= told["rtt_ms"]["max"]
    assert "via direct" in pair[0].cli("ping", pair[1].npub, "--count", "1")


def test_netcheck_behind_masquerade(lab: Homes, pair: tuple[LabNode, LabNode]) -> None:
    told = pair[0].query("netcheck")
    outside = f"{lab.routers[0].address}:{told['listen_port']}"
    known = {"mapping": "independent", "reflexive_v4": outside, "reflexive_v6": None}
    assert told["nat"].items() >= known.items()
    assert set(told["nat"]) == {*known, "step", "filtering", "hairpin"}
    assert (told["udp"], told["udp_v4"], told["udp_v6"]) == (True, True, None)
    assert {server["mapped"] for server in told["stun"]} == {outside}
    assert all(server["rtt_ms"] > 0 for server in told["stun"])
    assert [relay["fitness"] for relay in told["relays"]] == ["fit"]


def test_wg_quick_export_is_what_runs(pair: tuple[LabNode, LabNode], tmp_path: Path) -> None:
    node, other = pair
    file = tmp_path / "wg.conf"
    node.cli("export", "wg-quick", "--output", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    parsed = WGConfig(str(file))
    parsed.read_file()
    status, theirs = node.status(), other.status()
    interface, peer = parsed.get_interface(), parsed.get_peer(theirs["wireguard_public_key"])
    assert interface["ListenPort"] == status["listen_port"]
    assert {address.split("/")[0] for address in interface["Address"]} == set(status["addresses"])
    assert {ip_network(p)[0].compressed for p in peer["AllowedIPs"]} == set(theirs["addresses"])
    assert peer["Endpoint"] == status["peers"][0]["endpoint"]
    public = node.namespace.run("wg", "pubkey", stdin=interface["PrivateKey"]).stdout.strip()
    assert public == status["wireguard_public_key"]


def test_rename_is_for_this_node_alone(pair: tuple[LabNode, LabNode]) -> None:
    node, other = pair
    assert node.query("peer", "rename", "laptop-b", "kitchen")["name"] == "kitchen"
    assert peer_of(node, other)["name"] == "kitchen"
    assert node.query("ping", "kitchen", "--count", "1")["npub"] == other.npub
    node.restart()
    assert peer_of(node, other)["name"] == "kitchen"
    assert peer_of(other, node)["name"] == "laptop-a"
    assert node.query("peer", "rename", other.npub[:20], "laptop-b")["name"] == "laptop-b"


@contextmanager
def meeting(scenario: str, **settings: object) -> Iterator[Pair]:
    """Run a registered scenario with a node on each laptop."""
    with watched(SCENARIOS[scenario].build()) as lab:
        for host in (lab.laptop_a, lab.laptop_b):
            lab.node(host, lab.server, **settings)
        yield lab


def is_at(node: LabNode, address: IPv4Address) -> bool:
    """Say whether ``node`` reaches its only peer at ``address``."""
    endpoint = parse_endpoint(node.status()["peers"][0]["endpoint"])
    return endpoint.ip == address


def test_on_one_lan_they_use_the_lan() -> None:
    with meeting("same-lan") as lab:
        join(*lab.nodes)
        for node, host in zip(lab.nodes, (lab.laptop_b, lab.laptop_a), strict=True):
            wait_until(partial(is_at, node, host.address), "the LAN address")
        ping(*lab.nodes)


def test_a_router_that_moves_the_port_of_whoever_is_probed_early() -> None:
    with meeting("accept-input") as lab:
        join(*lab.nodes)
        ping(*lab.nodes)
        # The trap did not spring: both are reached at the port that is their own.
        for node, other in (lab.nodes, reversed(lab.nodes)):
            endpoint = parse_endpoint(peer_of(node, other)["endpoint"])
            assert endpoint.port == other.status()["listen_port"]


def test_no_way_through_is_said_and_borne_calmly() -> None:
    # Both at a time: it is waiting for the most part. A search for ports could find a way.
    unsought = {"hard_nat_search": False}
    with (
        meeting("hard-and-easy", paths=unsought) as easy,
        meeting("two-hard", paths=unsought) as hard,
    ):
        for lab in (easy, hard):
            launch(*lab.nodes)
            admit(*lab.nodes)
        for lab in (easy, hard):
            assert_given_up(*lab.nodes)
            assert "hard_nat" in problems(lab.nodes[0].status())
            assert lab.nodes[0].query("netcheck")["nat"]["mapping"] in ("dependent", "random")
        assert "hard_nat" not in problems(easy.nodes[1].status())
        assert "hard_nat" in problems(hard.nodes[1].status())
        argv = ("ping", "laptop-b", "--until-direct", "--deadline=1", "--timeout=1")
        refused = easy.nodes[0].attempt(*argv)
        assert refused.returncode == 1
        assert refused.stderr.startswith("error: no echo came back from laptop-b")
        nodes = (*easy.nodes, *hard.nodes)
        before = [cpu_seconds(node) for node in nodes]
        argv = ("ping", "-q", "-w", str(CALM), str(easy.server.address))
        easy.laptop_a.run(*argv, timeout=CALM + 10)
        spent = [cpu_seconds(node) - b for node, b in zip(nodes, before, strict=True)]
        assert max(spent) < patient(0.05 * CALM)


def assert_given_up(*nodes: LabNode) -> None:
    """Wait until both say that there is no path; whatever they say on the way, never "direct"."""
    for node in nodes:
        claims: list[str] = []

        def gave_up(status: Status, claims: list[str] = claims) -> bool:
            claims.append(status["peers"][0]["path"])
            return bool(status["peers"][0]["state"] == "failed")

        status = node.wait_for(gave_up, "the path given up", timeout=40)
        assert set(claims) == {"none"}
        missed = "laptop-b" if node is nodes[0] else "laptop-a"
        assert missed in problems(status)["peer_unreachable"]


def cpu_seconds(node: LabNode) -> float:
    """Return the processor time that the node's daemon has used (proc(5), 14 and 15 of stat)."""
    fields = Path(f"/proc/{node.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
