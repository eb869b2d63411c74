"""Networks behind members: real daemons, a LAN behind two of them, and what is left afterwards."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address
from typing import Any

import pytest

from nostrvpn.host.subnet_gateway import gateway_table
from nostrvpn.identity.keys import parse_npub
from nostrvpn.lab.links import connect
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.processes import Process
from nostrvpn.lab.topology import Lab
from tests.lab.homes import Pinging, join, launch, machine, problems, watched

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(180))]

LAN4, LAN6 = "192.168.50.0/24", "fd50::/64"
BOX4, BOX6 = "192.168.50.10", "fd50::10"
OTHER4 = "192.168.60.10"
PORT = 2300
LIMIT = 20.0
# A path that dies silently is given up after some seconds; then a moment for the change itself.
FAILOVER_S = 10.0


class Office(Lab):
    """Two routers of one LAN with a box in it, a client elsewhere; behind one router another LAN.

    ::

        client --- core --- router-1 --- 192.168.50.0/24, fd50::/64 --- box
                     |         +-------- 192.168.60.0/24 ------------- other
                     +----- router-2 --- 192.168.50.0/24, fd50::/64
    """

    def build(self) -> None:
        server = self.server_host()
        hosts = [self.host(name) for name in ("client", "router-1", "router-2")]
        switch = self.namespace("switch")
        switch.ip("link add lan type bridge", "link set lan up")
        self.box, self.other = self.namespace("box"), self.namespace("other")
        for number, namespace in ((10, self.box), (1, hosts[1].namespace), (2, hosts[2].namespace)):
            connect((switch, f"to-{namespace.label}"), (namespace, "lan"))
            switch.ip(f"link set to-{namespace.label} master lan")
            namespace.ip(
                f"addr add 192.168.50.{number}/24 dev lan",
                f"addr add fd50::{number}/64 dev lan nodad",
            )
        connect((self.other, "lan"), (hosts[1].namespace, "lan2"))
        self.other.ip(f"addr add {OTHER4}/24 dev lan", "route add default via 192.168.60.1")
        hosts[1].namespace.ip("addr add 192.168.60.1/24 dev lan2")
        # As on a host that has its default route by advertisement.
        hosts[1].namespace.sysctl({"ipv6/conf/lan/accept_ra": 1})
        for host in hosts:
            self.node(host, server)
        self.client, self.first, self.second = self.nodes


@pytest.fixture(scope="module")
def office() -> Iterator[Office]:
    """The lab, its nodes direct to each other. The client is the owner: it approves."""
    with watched(Office()) as lab:
        join(lab.client, lab.first, lab.second)
        yield lab


@pytest.fixture
def routed(office: Office) -> Iterator[Office]:
    """Afterwards nobody shares, approves, accepts or allows anything."""
    yield office
    for router in (office.first, office.second):
        router.cli("routes", "advertise", LAN4, LAN6, "--withdraw", "--snat")
        office.client.cli("routes", "approve", router.npub, "--withdraw", LAN4, LAN6)
        rules = router.query("rules")["local"]
        if rules:
            router.cli("allow", office.client.npub, "lan", "--undo")
    office.client.cli("routes", "refuse", "all")
    wait_until(lambda: not routes(office.client), "no route", timeout=LIMIT)
    for router in (office.first, office.second):
        wait_until(partial(is_no_router, router), "no table", timeout=LIMIT)


def share(office: Office, *routers: LabNode) -> None:
    """Do all that is needed for the client to reach the LAN through these routers."""
    for router in routers:
        router.cli("routes", "advertise", LAN4, LAN6)
        office.client.cli("routes", "approve", router.npub, LAN4, LAN6)
        router.cli("allow", office.client.npub, "lan")
    office.client.cli("routes", "accept", "all")


def tables(node: LabNode) -> str:
    return node.namespace.run("nft", "list", "tables").stdout


def is_no_router(node: LabNode) -> bool:
    return gateway_table(node.interface) not in tables(node)


def routes(node: LabNode) -> set[str]:
    """Return what is routed into a node's tunnel, without the members' own addresses."""
    found = set()
    for family in ("-4", "-6"):
        listed = node.namespace.run("ip", family, "route", "show", "proto", "157").stdout
        found |= {line.split()[0] for line in listed.splitlines()}
    own = ("10.", "fd")
    return {text for text in found if not text.startswith(own) or text == LAN6}


def state(node: LabNode, router: LabNode, network: str = LAN4) -> dict[str, Any]:
    """Return how a network behind a router stands at a node."""
    found: dict[str, Any] = next(
        (
            one
            for one in node.ask("routes")["routes"]
            if (one["router"], one["network"]) == (router.npub, network)
        ),
        {"state": None},
    )
    return found


def wait_for_state(node: LabNode, router: LabNode, wanted: str, network: str = LAN4) -> None:
    wait_until(
        lambda: state(node, router, network)["state"] == wanted,
        f"{network} behind {router.name} to be {wanted}",
        timeout=LIMIT,
        evidence=lambda: str(node.query("routes")),
    )


def answers(node: LabNode, address: str, *, wait: int = 10) -> bool:
    """Say whether an echo comes back within so many seconds."""
    argv = ("ping", "-n", "-c1", "-i", "0.2", f"-w{wait}", address)
    return node.namespace.run(*argv, check=False, timeout=wait + 10).returncode == 0


def seen_from(office: Office, address: str) -> str:
    """Send a datagram from the client to the box; return the source that the box sees."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with office.box.enter():
        ear = socket.socket(family, socket.SOCK_DGRAM)
    with office.client.namespace.enter():
        mouth = socket.socket(family, socket.SOCK_DGRAM)
    with ear, mouth:
        ear.bind((address, PORT))
        ear.settimeout(0.3)
        heard: list[str] = []

        def arrives() -> bool:
            mouth.sendto(b"x", (address, PORT))
            try:
                heard.append(str(ear.recvfrom(10)[1][0]))
            except TimeoutError:
                return False
            return True

        wait_until(arrives, "a datagram", timeout=LIMIT)
        return heard[0]


@contextmanager
def replies_routed(office: Office, router: LabNode) -> Iterator[None]:
    """The box has a route to the members' addresses through ``router``."""
    number = 1 if router is office.first else 2
    v4, v6 = members(office)
    office.box.ip(f"route add {v4} via 192.168.50.{number}", f"route add {v6} via fd50::{number}")
    yield
    office.box.ip(f"route del {v4}", f"route del {v6}")


def members(office: Office) -> tuple[str, str]:
    addresses = sorted(office.client.status()["addresses"], key=lambda text: ":" in text)
    return f"{addresses[0]}/32", f"{addresses[1]}/128"


def test_a_network_is_reached_only_if_shared_approved_accepted_and_allowed(routed: Office) -> None:
    client, first = routed.client, routed.first
    first.cli("routes", "advertise", LAN4, LAN6)
    wait_for_state(client, first, "not_approved")
    client.cli("routes", "accept", "all")
    # Route theft: a member says that the network is behind it, and nothing comes of it.
    assert routes(client) == set()
    assert gateway_table(first.interface) not in tables(first)
    client.cli("routes", "refuse", "all")
    client.cli("routes", "approve", first.npub)
    wait_for_state(client, first, "not_accepted")
    assert routes(client) == set()
    client.cli("routes", "accept", first.name, LAN4, LAN6)
    wait_for_state(client, first, "in_use")
    wait_until(lambda: routes(client) == {LAN4, LAN6}, "the routes", timeout=LIMIT)
    wait_until(lambda: gateway_table(first.interface) in tables(first), "the router", timeout=LIMIT)
    told = client.query("policy", "test", "me", first.npub, "lan")
    assert not told["allowed"]
    for address in (BOX4, BOX6):
        assert not answers(client, address, wait=2)
    first.cli("allow", client.npub, "lan")
    for address in (BOX4, BOX6):
        assert answers(client, address)
    peer = next(peer for peer in client.status()["peers"] if peer["npub"] == first.npub)
    assert peer["routes"] == [LAN4, LAN6]
    first.cli("allow", client.npub, "lan", "--undo")
    assert not answers(client, BOX4, wait=2)


def test_only_the_shared_network_is_reached(routed: Office) -> None:
    """A member that sends more than it may, past its own daemon, gets no answer."""
    client, first = routed.client, routed.first
    share(routed, first)
    assert answers(client, BOX4)
    assert first.namespace.run("ping", "-c1", "-w5", OTHER4).returncode == 0
    key = first.query("id")["wireguard_public_key"]
    own = [prefix for prefix in allowed_ips(client, key) if prefix]
    pid = client.process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        listed = ",".join([*own, "192.168.60.0/24"])
        client.namespace.run("wg", "set", client.interface, "peer", key, "allowed-ips", listed)
        client.namespace.ip(f"route add 192.168.60.0/24 dev {client.interface}")
        assert answers(client, BOX4)
        assert not answers(client, OTHER4, wait=2)
    finally:
        os.kill(pid, signal.SIGCONT)
    client.namespace.run("ip", "route", "del", "192.168.60.0/24", check=False)
    wait_until(lambda: allowed_ips(client, key) == own, "what is allowed", timeout=60)


def allowed_ips(node: LabNode, key: str) -> list[str]:
    lines = node.namespace.run("wg", "show", node.interface, "allowed-ips").stdout.splitlines()
    return next(sorted(line.split()[1:]) for line in lines if line.split()[0] == key)


@pytest.mark.parametrize("address", [BOX4, BOX6])
def test_hosts_see_the_router_or_with_a_route_back_the_member_itself(
    routed: Office, address: str
) -> None:
    client, first = routed.client, routed.first
    share(routed, first)
    assert ip_address(seen_from(routed, address)) in map(ip_address, ("192.168.50.1", "fd50::1"))
    first.cli("routes", "advertise", "--no-snat")
    own = {text.partition("/")[0] for text in members(routed)}
    wait_until(lambda: seen_from(routed, address) in own, "its own address", timeout=LIMIT)
    assert not answers(client, address, wait=2)
    with replies_routed(routed, first):
        assert answers(client, address)
        # The box begins nothing in the mesh.
        done = routed.box.run(
            "ping", "-c1", "-w2", members(routed)[":" in address].partition("/")[0], check=False
        )
        assert done.returncode == 1


def test_another_router_takes_over_and_the_first_one_gets_it_back(routed: Office) -> None:
    client = routed.client
    share(routed, routed.first, routed.second)
    wait_until(lambda: routes(client) == {LAN4, LAN6}, "the routes", timeout=LIMIT)
    wait_until(lambda: in_use(routed) is not None, "a router", timeout=LIMIT)
    preferred = min((routed.first, routed.second), key=public_key)
    other = routed.second if preferred is routed.first else routed.first
    wait_until(lambda: in_use(routed) is preferred, "the better router", timeout=60)
    assert state(client, other)["state"] == "standby"
    assert answers(client, BOX4)
    with pinging(routed.client, BOX4) as pings:
        # The daemon looks every 10 s which tunnels are in use: those it watches closely.
        pings.wait_more(110, timeout=30)
        preferred.namespace.ip("link set eth0 down")
        wait_until(lambda: in_use(routed) is other, "the other router", timeout=LIMIT)
        pings.wait_more(10, timeout=LIMIT)
        gap = pings.gap()
        assert gap < FAILOVER_S * patient(1), gap
    print(f"failover: {gap:.1f} s")  # noqa: T201
    default4, default6 = (
        next(
            line
            for line in routed.core.namespace.run("ip", "-br", way, "addr").stdout.splitlines()
            if line.startswith(f"to-{preferred.name}")
        )
        .split()[2]
        .partition("/")[0]
        for way in ("-4", "-6")
    )
    up = time.monotonic()
    preferred.namespace.ip(
        "link set eth0 up",
        f"route replace default via {default4}",
    )
    preferred.namespace.run("ip", "-6", "addr", "replace", f"{default6[:-1]}2/64", "dev", "eth0")
    preferred.namespace.run("ip", "-6", "route", "replace", "default", "via", default6)
    wait_until(lambda: in_use(routed) is preferred, "the better router again", timeout=120)
    assert time.monotonic() - up > 25.0
    assert answers(client, BOX6)


def public_key(node: LabNode) -> str:
    return parse_npub(node.npub)


def in_use(office: Office) -> LabNode | None:
    used = (
        r for r in (office.first, office.second) if state(office.client, r)["state"] == "in_use"
    )
    return next(used, None)


@contextmanager
def pinging(node: LabNode, address: str) -> Iterator[Pinging]:
    class ToBox(Pinging):
        def __init__(self) -> None:
            argv = ("ping", "-n", "-D", "-i", "0.1", address)
            self._process = Process(node.namespace, argv, log=node.directory / "pinging.log")

    with ToBox() as pings:
        yield pings


def test_a_network_that_is_here_already_is_not_routed_away(routed: Office) -> None:
    client, first = routed.client, routed.first
    share(routed, first)
    wait_for_state(client, first, "in_use")
    client.namespace.ip(
        "link add home type bridge", "addr add 192.168.50.7/24 dev home", "link set home up"
    )
    try:
        wait_for_state(client, first, "here")
        wait_until(lambda: routes(client) == {LAN6}, "IPv4's route to go", timeout=LIMIT)
        client.namespace.ip("addr flush dev home", "addr add 192.168.48.1/21 dev home")
        wait_for_state(client, first, "hides")
        told = problems(client.status())["route_overlap"]
        assert "192.168.48.0/21" in told
        assert routes(client) == {LAN6}
        client.cli("routes", "accept", first.name, LAN4, "--force")
        wait_for_state(client, first, "in_use")
        assert "route_overlap" not in problems(client.status())
        assert answers(client, BOX4)
    finally:
        client.namespace.ip("link del home")


def test_after_a_crash_nothing_leaves_by_another_way(routed: Office) -> None:
    client, first = routed.client, routed.first
    share(routed, first)
    wait_until(lambda: routes(client) == {LAN4, LAN6}, "the routes", timeout=LIMIT)
    client.kill()
    began = client.log.stat().st_size
    client.start()
    client.wait_for_peer(first.npub, path="direct")
    assert answers(client, BOX4)
    with client.log.open() as log:
        log.seek(began)
        assert "route del 192.168.50.0/24" not in log.read()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("advertise", "0.0.0.0/0"), "what exits are for"),
        (("advertise", "::/0"), "what exits are for"),
        (("advertise", "64.0.0.0/3"), "too wide"),
        (("advertise", "10.0.0.0/8"), "the members' own addresses"),
        (("advertise", "127.0.0.0/8"), "loopback"),
        (("advertise", "fe80::/64"), "link-local"),
        (("advertise", "192.168.50.1/24"), "write 192.168.50.0/24"),
        (("advertise",), "which network?"),
        (("approve", "nobody", LAN4), "no peer is called"),
        (("approve", "client"), "no network to approve"),
        (("accept", "nobody"), "no peer is called"),
        (("accept", "me"), "no routes to it"),
    ],
)
def test_refusals_say_what_to_do(office: Office, arguments: tuple[str, ...], words: str) -> None:
    done = office.client.attempt("routes", *arguments)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "hint: " in done.stderr


def test_who_is_no_admin_approves_nothing(office: Office) -> None:
    done = office.first.attempt("routes", "approve", "me", LAN4)
    assert done.returncode == 1
    assert "only the network's owner and admins can approve routes" in done.stderr


def test_a_firewall_that_forwards_nothing_is_named(routed: Office) -> None:
    first = routed.first
    first.namespace.run(
        "nft",
        "add table ip filter; add chain ip filter DOCKER-USER; add chain ip filter FORWARD "
        "{ type filter hook forward priority 0; policy drop; }; "
        "add rule ip filter FORWARD jump DOCKER-USER",
    )
    try:
        share(routed, first)
        told = first.wait_for(lambda status: problems(status).get("routes_blocked"), "the firewall")
        hint = next(p["hint"] for p in told["problems"] if p["code"] == "routes_blocked")
        assert "sudo iptables -I DOCKER-USER -i" in hint
        assert first.query("routes")["shared"][0]["state"] == "blocked"
    finally:
        first.namespace.run("nft", "delete table ip filter")


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_the_host_is_left_as_it_was(how: str) -> None:
    with watched(Office()) as lab:
        before = machine(lab.first)
        launch(lab.client, lab.first)
        lab.first.query("join", lab.client.query("invite", lab.first.npub)["link"])
        lab.client.wait_for_peer(lab.first.npub, path="direct")
        share(lab, lab.first)
        wait_until(lambda: answers(lab.client, BOX4), "the network behind", timeout=LIMIT)
        assert answers(lab.client, BOX6)
        routing = lab.first.namespace.run("sysctl", "-n", *SETTINGS).stdout.split()
        assert routing == ["0", "1", "1", "2"]
        if how == "stop":
            lab.first.stop()
        else:
            lab.first.kill()
            assert gateway_table(lab.first.interface) in tables(lab.first)
            lab.first.cli("cleanup")
        after = machine(lab.first)
        assert {key for key in before if before[key] != after[key]} == set()


SETTINGS = (
    # Whatever else comes in is not forwarded: only the LAN's interface (and the tunnel's) was turned on.
    "net.ipv4.ip_forward",
    "net.ipv4.conf.lan.forwarding",
    "net.ipv6.conf.all.forwarding",
    "net.ipv6.conf.lan.accept_ra",
)


def test_the_router_routes_for_nobody_else(routed: Office) -> None:
    """A host of the LAN that takes the router for its gateway gets nowhere but back into the tunnel."""
    first = routed.first
    share(routed, first)
    assert answers(routed.client, BOX4)
    gate = "192.0.2.1"
    routed.box.ip(f"route add {gate}/32 via 192.168.50.1")
    try:
        arriving = routed.capture("router-1", "lan", f"dst host {gate}")
        leaving = routed.capture("router-1", "eth0", f"dst host {gate}")
        assert routed.box.run("ping", "-c3", "-i0.2", "-w2", gate, check=False).returncode == 1
        wait_until(lambda: arriving.count() >= 3, "the echoes at the router")
        # What the router sends by itself is seen: so the capture works, and nothing came before.
        first.namespace.run("ping", "-c1", "-w1", gate, check=False)
        wait_until(lambda: leaving.count() > 0, "the router's own echo")
        assert leaving.count() == leaving.count("icmp and src host " + own_address(first))
    finally:
        routed.box.ip(f"route del {gate}/32")


def own_address(node: LabNode) -> str:
    shown = node.namespace.run("ip", "-br", "-4", "addr", "show", "eth0").stdout
    return shown.split()[2].partition("/")[0]
