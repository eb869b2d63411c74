"""What leaves the laptop's cable in each state of an exit: what docs/security.md lists, no more.

In every test a program sends all it can, as root and as a user without privileges, while the cable is
recorded from before the state begins until after it has ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address

import pytest

from nostrvpn.config.options import BOOT_BLOCK
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from tests.lab.abroad import HOME_LAN6, NOBODY, PROGRAMS, Abroad, strays
from tests.lab.homes import join, watched

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(180))]

LIMIT = 20.0


@pytest.fixture(scope="module")
def abroad() -> Iterator[Abroad]:
    """The laptop owns a network; both exits offer themselves to it."""
    with watched(Abroad()) as lab:
        join(lab.laptop, *lab.exits)
        for exit_node in lab.exits:
            exit_node.cli("exit", "offer", "--to", "members")
        wait_until(lambda: len(offers(lab.laptop)) == len(lab.exits), "two offers", timeout=LIMIT)
        yield lab


@pytest.fixture
def lab(abroad: Abroad) -> Iterator[Abroad]:
    """Afterwards no exit is used, the daemons run, and the site is reached directly."""
    abroad.own_port()
    yield abroad
    for number, node in enumerate(abroad.exits):
        abroad.mend(number)
        if not node.process.alive:
            node.start()
    if not abroad.laptop.process.alive:
        abroad.laptop.start()
    abroad.laptop.cli("exit", "off", "--kill-switch", "on")
    wait_until(lambda: state(abroad.laptop) == "off", "the exit to be off", timeout=LIMIT)


def offers(node: LabNode) -> list[str]:
    return [one["npub"] for one in node.ask("exit_list")["exits"]]


def state(node: LabNode) -> str:
    return str(node.ask("exit_status")["state"])


def use(lab: Abroad, *arguments: str, who: str | None = None, wait: bool = True) -> None:
    """Use the first exit, or the one named; wait until it carries."""
    settings = ("--no-allow-lan", "--kill-switch", "on", *arguments)
    lab.laptop.cli("exit", "use", who or lab.exits[0].name, "--yes", *settings)
    if wait:
        wait_until(lambda: state(lab.laptop) == "connected", "an exit that carries", timeout=LIMIT)


@contextmanager
def nothing_strays(
    lab: Abroad, *, lan: bool = False, cable: str = "eth0"
) -> Iterator[Callable[[], None]]:
    """Record a cable meanwhile; the value sends all a program can, as root and as a user."""
    capture = lab.watch(cable)

    def talk() -> None:
        for uid in (0, NOBODY):
            lab.talk(uid=uid)

    yield talk
    # What was sent last is on the cable before these are.
    talk()
    capture.stop()
    found = strays(lab, capture, lan=lan, cable=cable)
    assert not found, f"{len(found)} packets strayed: {sorted(set(found))[:20]}"


def seen_as(lab: Abroad) -> set[str]:
    """Return the addresses that the site sees this laptop as."""
    answers = lab.talk(uid=NOBODY)
    sites = {str(lab.site.address), str(lab.site.address6)}
    by_way = [
        {said.split()[1] for said in answers.get(what, []) if said.split()[0] in sites}
        for what in ("tcp/80", "udp/443")
    ]
    return by_way[0] if by_way[0] == by_way[1] else set()


def outside(lab: Abroad, number: int) -> set[str]:
    host = lab.exits[number].namespace.label
    plug = next(h for h in lab.hosts_abroad if h.name == host)
    return {str(plug.address), str(plug.address6)}


@pytest.mark.parametrize("uid", [0, NOBODY])
def test_a_program_that_talks_is_recorded_where_nothing_holds_it_back(
    lab: Abroad, uid: int
) -> None:
    capture = lab.watch()
    lab.talk(uid=uid)
    capture.stop()
    found = set(strays(lab, capture))
    gateway = lab.host_laptop.plug.gateway
    public, local = (lab.site.address, lab.site.address6), (lab.printer.address, lab.printer6)
    for target in (*public, *local, gateway):
        echo = "ICMP" if ip_address(str(target)).version == 4 else "ICMPv6"
        sent = [one.partition(" > ")[2] for one in found if one.startswith(("TCP", "UDP"))]
        for port in (53, 80, 443, 853, 123, 5353):
            assert f"{target}:{port} 0" in sent, (target, port)
        assert any(one.startswith(f"{echo} ") and f" > {target}:" in one for one in found), target
    assert any(" > 224.0.0.251:" in one for one in found)


def test_connected_all_goes_through_the_exit(lab: Abroad) -> None:
    with nothing_strays(lab):
        use(lab)
        wait_until(partial(_sees, lab, 0), "the exit's addresses", timeout=LIMIT)


def test_connecting_to_an_exit_that_is_not_there_nothing_leaves(lab: Abroad) -> None:
    lab.cut(0)
    with nothing_strays(lab) as talk:
        use(lab, wait=False)
        wait_until(lambda: state(lab.laptop) == "connecting", "connecting", timeout=LIMIT)
        talk()


def test_in_lockdown_nothing_leaves_without_an_exit(lab: Abroad) -> None:
    use(lab, "--kill-switch", "lockdown")
    lab.laptop.cli("exit", "off")
    with nothing_strays(lab) as talk:
        assert state(lab.laptop) == "lockdown"
        talk()
        assert seen_as(lab) == set()


def test_an_exit_that_dies_leaves_nothing_open(lab: Abroad) -> None:
    use(lab)
    with nothing_strays(lab) as talk:
        lab.cut(0)
        talk()
        wait_until(lambda: state(lab.laptop) == "connecting", "the loss", timeout=LIMIT)
        talk()


def test_an_exit_is_switched_without_a_packet_outside(lab: Abroad) -> None:
    use(lab)
    with nothing_strays(lab) as talk:
        use(lab, who=lab.exits[1].name)
        talk()
        wait_until(partial(_sees, lab, 1), "the other exit", timeout=LIMIT)


def test_auto_fails_over_without_a_packet_outside(lab: Abroad) -> None:
    use(lab, who="auto")
    first = next(n for n in (0, 1) if seen_as(lab) == outside(lab, n))
    with nothing_strays(lab) as talk:
        lab.cut(first)
        talk()
        wait_until(partial(_sees, lab, 1 - first), "the other exit", timeout=LIMIT)


def test_a_killed_daemon_leaves_the_block(lab: Abroad) -> None:
    use(lab)
    with nothing_strays(lab) as talk:
        lab.laptop.kill()
        talk()
        lab.laptop.start()
        wait_until(partial(_sees, lab, 0), "the exit again", timeout=LIMIT)


def test_a_restarted_daemon_lets_nothing_out_meanwhile(lab: Abroad) -> None:
    use(lab)
    with nothing_strays(lab) as talk:
        lab.laptop.stop()
        talk()
        lab.laptop.start()
        talk()
        wait_until(partial(_sees, lab, 0), "the exit again", timeout=LIMIT)


def test_a_default_route_that_is_put_back_leads_nowhere(lab: Abroad) -> None:
    use(lab)
    cable = lab.host_laptop
    with nothing_strays(lab) as talk:
        cable.namespace.ip("route del default", f"route add default via {cable.plug.gateway}")
        talk()
        cable.namespace.ip(
            f"route add 0.0.0.0/1 via {cable.plug.gateway}",
            f"route add 128.0.0.0/1 via {cable.plug.gateway}",
            f"route add {lab.site.address}/32 via {cable.plug.gateway}",
        )
        talk()
        assert seen_as(lab) == outside(lab, 0)  # nor is it a way to cut the laptop off
        cable.namespace.ip(
            "route del 0.0.0.0/1", "route del 128.0.0.0/1", f"route del {lab.site.address}/32"
        )


def test_routes_that_a_dhcp_server_gives_lead_nowhere(lab: Abroad) -> None:
    """TunnelVision, CVE-2024-3661: routes that are narrower than a default one, by option 121."""
    use(lab)
    pushed = ["0.0.0.0/1", "128.0.0.0/1", f"{lab.site.address}/32"]
    with lab.dhcp_server(pushed), nothing_strays(lab) as talk:
        client = (
            "busybox",
            "udhcpc",
            "-i",
            "eth0",
            "-f",
            "-n",
            "-q",
            "-s",
            PROGRAMS / "take-lease",
        )
        lab.host_laptop.run(*map(str, client), "-O", "staticroutes")
        routes = lab.host_laptop.run("ip", "route")
        gateway = lab.host_laptop.plug.gateway
        assert all(f"{net.removesuffix('/32')} via {gateway}" in routes for net in pushed), routes
        talk()
        assert seen_as(lab) == outside(lab, 0)
    lab.host_laptop.namespace.ip(*(f"route del {net}" for net in pushed))


def test_a_home_that_claims_public_addresses_gets_nothing(lab: Abroad) -> None:
    use(lab, "--allow-lan")
    cable = lab.host_laptop.namespace
    prefix = f"{lab.site.address}/24"
    with nothing_strays(lab, lan=True) as talk:
        cable.ip(f"addr add {lab.site.address + 7}/24 dev eth0")
        talk()
        assert seen_as(lab) == outside(lab, 0), prefix
        cable.ip(f"addr del {lab.site.address + 7}/24 dev eth0")


def test_a_link_that_goes_down_and_up_lets_nothing_out(lab: Abroad) -> None:
    use(lab)
    with nothing_strays(lab) as talk:
        lab.host_laptop.namespace.ip("link set eth0 down")
        talk()
        lab.plug_in_again()
        talk()
        wait_until(partial(_sees, lab, 0), "the exit again", timeout=40)


def test_another_name_server_is_not_asked(lab: Abroad) -> None:
    use(lab)
    with nothing_strays(lab):
        answers = lab.talk(uid=NOBODY)
        asked = {said.split()[0] for what in ("udp/53", "tcp/53") for said in answers.get(what, [])}
        assert not asked & {str(lab.site.address), str(lab.site.address6)}


def test_with_allow_lan_the_home_is_reached_and_nothing_else(lab: Abroad) -> None:
    with nothing_strays(lab, lan=True):
        use(lab, "--allow-lan")
        answers = lab.talk(uid=NOBODY)
        reached = {said.split()[0] for said in answers["tcp/80"]}
        assert {str(lab.printer.address), str(lab.printer6)} <= reached
        wait_until(partial(_sees, lab, 0), "the exit's addresses", timeout=LIMIT)


def test_the_printer_is_out_of_reach_without_allow_lan(lab: Abroad) -> None:
    with nothing_strays(lab):
        use(lab)
        reached = {said.split()[0] for said in lab.talk(uid=NOBODY)["tcp/80"]}
        assert not reached & {str(lab.printer.address), str(lab.printer6)}


def test_down_opens_and_lockdown_outlives_it_until_cleanup(lab: Abroad) -> None:
    at_boot = lab.laptop.directory / "state" / BOOT_BLOCK
    assert not at_boot.exists()
    use(lab, "--kill-switch", "lockdown")
    wait_until(at_boot.exists, "what nft loads at the next boot", timeout=LIMIT)
    with nothing_strays(lab) as talk:
        lab.laptop.cli("down")
        talk()
    assert at_boot.exists()
    assert str(at_boot) in lab.laptop.cli("cleanup")
    assert not at_boot.exists()
    assert seen_as(lab) & {str(lab.home.address)}


def test_in_another_network_nothing_leaves_but_by_the_exit(lab: Abroad) -> None:
    use(lab)
    namespace = lab.host_laptop.namespace
    with nothing_strays(lab) as talk:
        talk()
        namespace.ip("link set eth0 down")
    lab.away.plug(namespace, "eth1")
    with nothing_strays(lab, cable="eth1") as talk:
        talk()
        wait_until(partial(_sees, lab, 0), "the exit again", timeout=40)
    namespace.ip("link del eth1")
    lab.plug_in_again()
    wait_until(partial(_sees, lab, 0), "the exit at home again", timeout=40)


def test_a_router_that_advertises_itself_gets_nothing(lab: Abroad) -> None:
    use(lab)
    lab.host_laptop.namespace.sysctl({"ipv6/conf/eth0/accept_ra": 2})
    with nothing_strays(lab) as talk:
        advertise(lab)
        routes = lambda: lab.host_laptop.run("ip", "-6", "route", "show", "proto", "ra")  # noqa: E731
        wait_until(routes, "the advertised route")
        talk()
        wait_until(partial(_sees, lab, 0), "the exit", timeout=LIMIT)
    lab.host_laptop.namespace.sysctl({"ipv6/conf/eth0/accept_ra": 0})
    lab.host_laptop.run("ip", "-6", "route", "flush", "proto", "ra")


def test_what_an_exit_without_ipv6_does_not_carry_does_not_leave(lab: Abroad) -> None:
    lab.exits[0].cli("exit", "offer", "--to", "members", "--no-ipv6")
    try:
        with nothing_strays(lab):
            use(lab)
            only = {str(lab.hosts_abroad[0].address)}
            wait_until(lambda: seen_as(lab) == only, "IPv4 alone", timeout=LIMIT)
    finally:
        lab.exits[0].cli("exit", "offer", "--to", "members")


def test_a_tunnel_that_hangs_leaves_nothing_open(lab: Abroad) -> None:
    use(lab)
    pid = lab.laptop.process.pid
    with nothing_strays(lab) as talk:
        os.kill(pid, signal.SIGSTOP)
        try:
            talk()
        finally:
            os.kill(pid, signal.SIGCONT)


def test_who_probes_the_tunnels_address_at_home_learns_nothing(lab: Abroad) -> None:
    """CVE-2019-14899: who can send to it learns from the answers what goes on in the tunnel."""
    inside = addresses(lab, lab.laptop.interface)
    ways = [HOME_LAN6 + "2" if ":" in one else lab.host_laptop.address for one in inside]
    lab.printer.namespace.ip(
        *(f"route replace {one} via {way}" for one, way in zip(inside, ways, strict=True))
    )
    # Without an exit the kernel answers by itself: for any address it has, on any link.
    assert probed(lab, inside) == {one: ["echo", "udp", "tcp"] for one in inside}
    use(lab)
    nothing: dict[str, list[str]] = {one: [] for one in inside}
    with nothing_strays(lab):
        assert probed(lab, inside) == nothing
        lab.cut(0)
        wait_until(lambda: state(lab.laptop) != "connected", "the block", timeout=2 * LIMIT)
        assert probed(lab, inside) == nothing


def addresses(lab: Abroad, link: str) -> list[str]:
    """Return the global addresses of a link of the laptop, of both IP versions."""
    found = json.loads(lab.host_laptop.run("ip", "-j", "addr", "show", "dev", link))
    return [one["local"] for one in found[0]["addr_info"] if one["scope"] == "global"]


def probed(lab: Abroad, targets: list[str]) -> dict[str, list[str]]:
    """Return which probes from the printer each of these addresses answers."""
    argv = (sys.executable, str(PROGRAMS / "probing.py"), *targets)
    found: dict[str, list[str]] = json.loads(lab.printer.run(*argv, timeout=30))
    return found


def advertise(lab: Abroad) -> None:
    """Have the router of the home say by ICMPv6 that it is one, for a minute (RFC 4861, 4.2)."""
    with lab.home.namespace.enter():
        mouth = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    with mouth:
        mouth.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        mouth.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lan")
        # Type, code, checksum (the kernel's), hop limit, flags, lifetime, reachable, retransmit.
        mouth.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 60, 0, 0), ("ff02::1", 0))


def _sees(lab: Abroad, number: int) -> bool:
    return seen_as(lab) == outside(lab, number)
