"""Routers that grant a port, routers that do not, and routers that forget a mapping in two seconds."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from functools import partial
from subprocess import CompletedProcess

import pytest

from nostrvpn.endpoint import Endpoint
from nostrvpn.lab.core import Internet
from nostrvpn.lab.gateway import Gateway
from nostrvpn.lab.gathering import gather
from nostrvpn.lab.nat import NatKind
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.topology import Host, Lab, Router, Server
from tests.lab.homes import admit, launch, peer_of, ping, wait_direct, watched

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(120))]

SHORT_TIMEOUT = 2
"""Seconds after which the impatient router forgets a mapping; the shortest that is seen."""
KEEPALIVE = 1
LAZY = 25
QUIET = 8


class Mapped(Lab):
    """Laptops behind symmetric NATs with PCP, with UPnP, without either; and one port-restricted.

    Nobody relays, and ports are not searched for, so only a granted port makes a path.
    """

    def __init__(self) -> None:
        super().__init__(Internet(delay=0.005))

    server: Server

    def build(self) -> None:
        self.server = self.server_host()
        self.routers: dict[str, Router] = {}
        self.hosts: dict[str, Host] = {}
        self.at: dict[str, LabNode] = {}
        for name in ("pcp", "upnp", "neither", "easy"):
            kind = NatKind.PORT_RESTRICTED if name == "easy" else NatKind.SYMMETRIC
            self.routers[name] = self.router(f"nat-{name}", kind)
            self.hosts[name] = self.host(name, self.routers[name])
            settings = {"hard_nat_search": False}
            self.at[name] = self.node(self.hosts[name], self.server, paths=settings)
        self.gateways = {
            "pcp": Gateway(self, self.routers["pcp"], natpmp=False, upnp=False),
            "upnp": Gateway(self, self.routers["upnp"], pcp=False, natpmp=False),
        }


@pytest.fixture(scope="module")
def lab() -> Iterator[Mapped]:
    with watched(Mapped()) as lab:
        first, *others = lab.at.values()
        gather(first, others)
        yield lab


@pytest.mark.parametrize(("name", "protocol"), [("pcp", "pcp"), ("upnp", "upnp")])
def test_a_granted_port_makes_a_symmetric_nat_easy(lab: Mapped, name: str, protocol: str) -> None:
    a, b = lab.at[name], lab.at["easy"]
    wait_direct(a, b)
    ping(a, b)
    told = a.query("netcheck")
    mapping = told["port_mapping"]
    assert told["nat"]["mapping"] in ("random", "dependent")
    assert mapping["protocol"] == protocol
    ((port, inner),) = lab.gateways[name].mappings().items()
    assert mapping["external"] == f"{lab.routers[name].address}:{port}"
    assert inner == Endpoint(lab.hosts[name].address, told["listen_port"])
    assert peer_of(b, a)["endpoint"] == mapping["external"]


def test_two_symmetric_nats_that_grant_ports_are_direct(lab: Mapped) -> None:
    wait_direct(lab.at["pcp"], lab.at["upnp"])
    ping(lab.at["pcp"], lab.at["upnp"])


def test_a_router_that_grants_nothing_is_told_from_one_that_does(lab: Mapped) -> None:
    a, b = lab.at["neither"], lab.at["easy"]
    told = a.wait_for(
        lambda _status: a.query("netcheck")["port_mapping"]["error"], "the router's silence"
    )
    mapping = a.query("netcheck")["port_mapping"]
    assert mapping["external"] is mapping["protocol"] is None
    assert "hard_nat" in {problem["code"] for problem in told["problems"]}
    assert peer_of(a, b)["path"] == "none"
    # Whoever has a granted port can be reached from there all the same.
    wait_direct(a, lab.at["pcp"])
    ping(a, lab.at["pcp"])


@pytest.mark.parametrize("name", ["pcp", "upnp"])
def test_down_gives_the_port_back(lab: Mapped, name: str) -> None:
    gateway = lab.gateways[name]
    assert len(gateway.mappings()) == 1
    lab.at[name].cli("down")
    wait_until(lambda: gateway.mappings() == {}, "the mapping to be gone")


class Impatient(Lab):
    """Two laptops; one's router forgets a mapping after two seconds without a packet."""

    def __init__(self, keepalive: int) -> None:
        super().__init__()
        self._keepalive = keepalive

    server: Server

    def build(self) -> None:
        self.server = self.server_host()
        self.homes = [self.router("nat-a"), self.router("nat-b", udp_timeout=SHORT_TIMEOUT)]
        for router in self.homes:
            host = self.host(f"laptop-{router.name[-1]}", router)
            self.node(host, self.server, wireguard={"keepalive": self._keepalive})


def flows_at(lab: Impatient) -> partial[CompletedProcess[str]]:
    """Return what lists the impatient router's entries for the tunnel."""
    outside = str(lab.homes[0].address)
    return partial(lab.homes[1].namespace.run, "conntrack", "-L", "-p", "udp", "-d", outside)


def one_ping(source: LabNode, address: str) -> str:
    """Send one echo request now, and return what ping says."""
    ping = ("ping", "-n", "-c", "1", "-W", "1", address)
    return source.namespace.run(*ping, check=False).stdout


def test_without_it_the_mapping_is_gone_and_nothing_gets_in() -> None:
    with watched(Impatient(LAZY)) as lab:
        a, b = lab.nodes
        launch(a, b)
        admit(a, b)
        wait_direct(a, b)
        ping(a, b)
        flows = flows_at(lab)
        assert "dport=" in flows().stdout

        # An agent sends heartbeats for a while after its tunnel was used: nearly every two seconds.
        address = b.status()["addresses"][0]
        b.process.signal(signal.SIGSTOP)
        try:
            wait_until(
                lambda: "dport=" not in flows().stdout, "the mapping to be forgotten", timeout=40
            )
            assert "0 received" in one_ping(a, address)
        finally:
            b.process.signal(signal.SIGCONT)


def test_a_keepalive_of_a_second_holds_a_mapping_that_lives_for_two() -> None:
    with watched(Impatient(KEEPALIVE)) as lab:
        a, b = lab.nodes
        launch(a, b)
        admit(a, b)
        wait_direct(a, b)
        ping(a, b)
        outside = lab.homes[0].address
        # Nobody says anything but what the agents and WireGuard say by themselves.
        flows = flows_at(lab)
        lab.server.run(
            "ping", "-q", "-w", str(QUIET), str(outside), timeout=QUIET + 10, check=False
        )
        listed = flows().stdout
        assert "dport=" in listed, listed
        assert "1 received" in one_ping(a, b.status()["addresses"][0])
        sys.stdout.write(f"idle for {QUIET} s behind a router of {SHORT_TIMEOUT} s\n")
