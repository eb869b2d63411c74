"""IPv4 and IPv6 side by side: the better one carries, a broken one costs nothing but itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from nostrvpn.endpoint import parse_endpoint
from nostrvpn.lab.core import Internet
from nostrvpn.lab.gathering import gather
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.topology import Lab, Router, Server
from tests.lab.homes import Pinging, peer_of, ping, watched

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(120))]

BROKEN = {"no-ipv4": "meta nfproto ipv4", "no-ipv6": "meta nfproto ipv6"}
"""Hosts with addresses and routes of both families, whose router drops all packets of one."""
ONLY = {"six-a": 6, "six-b": 6, "four": 4}


class Families(Lab):
    """Homes of every kind, and a member with public addresses of both families that relays."""

    def __init__(self) -> None:
        super().__init__(Internet(delay=0.005))

    server: Server

    def build(self) -> None:
        self.server = self.server_host()
        self.routers: dict[str, Router] = {}
        self.at: dict[str, LabNode] = {}
        relays = {"urls": [self.server.relay_url, self.server.relay_url6]}
        for name in ("dual", *BROKEN, *ONLY):
            router = self.routers[name] = self.router(f"nat-{name}", ipv6=True)
            host = self.host(name, router, only=ONLY.get(name))
            own = {} if name in ONLY else {"relays": relays}
            self.at[name] = self.node(host, self.server, **own)
        for name, match in BROKEN.items():
            self.routers[name].block(match)
        self.relay = self.node(self.host("vps"), self.server, relay={"offer": "members"})


@pytest.fixture(scope="module")
def lab() -> Iterator[Families]:
    with watched(Families()) as lab:
        gather(lab.relay, lab.at.values())
        yield lab


def family(node: LabNode, other: LabNode, path: str) -> int:
    """Return the IP version by which ``node`` reaches ``other``, once it takes ``path``."""
    peer = node.wait_for_peer(other.npub, path=path)
    return parse_endpoint(peer["endpoint"]).ip.version


DIRECT = [
    ("dual", "six-a", 6),
    ("dual", "four", 4),
    ("six-a", "six-b", 6),  # both behind stateful firewalls
    ("no-ipv4", "dual", 6),
    ("no-ipv6", "dual", 4),
]


@pytest.mark.parametrize(("one", "other", "version"), DIRECT)
def test_the_family_that_both_have_is_direct(
    lab: Families, one: str, other: str, version: int
) -> None:
    a, b = lab.at[one], lab.at[other]
    assert family(a, b, "direct") == family(b, a, "direct") == version
    ping(a, b)


@pytest.mark.parametrize(("one", "other"), [("six-a", "four"), ("no-ipv4", "no-ipv6")])
def test_without_a_common_family_a_relay_with_both_carries(
    lab: Families, one: str, other: str
) -> None:
    a, b = lab.at[one], lab.at[other]
    before = lab.relay.query("netcheck")["relay_service"]["bytes"]
    assert (family(a, b, "relayed"), family(b, a, "relayed")) == (6, 4)
    ping(a, b)
    assert peer_of(a, b)["via"] == "vps"
    assert lab.relay.query("netcheck")["relay_service"]["bytes"] > before


def test_with_both_families_ipv6_is_preferred_and_ipv4_takes_over(lab: Families) -> None:
    a, b = lab.at["dual"], lab.relay

    def is_by(version: int) -> bool:
        peer = peer_of(a, b)
        endpoint = parse_endpoint(peer["endpoint"])
        return peer["path"] == "direct" and endpoint.ip.version == version

    wait_until(lambda: is_by(6), "IPv6")
    with Pinging(a, b) as pinging:
        pinging.wait_more()
        lab.routers["dual"].block("meta nfproto ipv6")
        pinging.wait_more(10, timeout=20)
        gap = pinging.gap()
        assert is_by(4)
    sys.stdout.write(f"IPv6 breaks: {gap:.2f} s without an echo\n")
    assert gap < patient(7.0)
