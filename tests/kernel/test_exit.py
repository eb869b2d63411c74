"""Leaving through an exit on the kernel's own WireGuard: in no state does anything stray.

A laptop at home, an exit and a site, as in ``tests/lab/test_leaks.py``, whose checks these are, with
strict reverse-path filters from the beginning and WireGuard's packets in IPv4, which these are for.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from nostrvpn.control.client import ControlClient
from nostrvpn.endpoint import IPAddress
from nostrvpn.host.shield import shield_table
from nostrvpn.io.wireguard_kernel import KernelBackend
from nostrvpn.lab.leftovers import leftovers
from nostrvpn.lab.node import STATUS_POLL, LabNode
from nostrvpn.lab.patience import patient, wait_until
from tests.kernel.near import NearNode, told
from tests.kernel.test_meeting import changes
from tests.lab.abroad import NOBODY, Abroad, strays
from tests.lab.homes import FAILURE, machine

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(patient(60))]

LIMIT = 20.0
STRICT = ("net.ipv4.conf.all.rp_filter", "net.ipv4.conf.eth0.rp_filter")
# Where the site answers with the asker's address.
SITE_PORT = 80
# Times ten in an emulated machine, where an answer takes a tenth of a second.
ASKING_S = 0.15


class KernelAbroad(Abroad):
    """One exit; both daemons may use nothing but the kernel's WireGuard."""

    node_type = NearNode

    def __init__(self) -> None:
        super().__init__(exits=1, wireguard={"backend": "kernel"})

    def build(self) -> None:
        super().build()
        self.host_laptop.run("sysctl", "-q", "-w", *(f"{name}=1" for name in STRICT))
        # Ports that the agents draw: they meet over IPv4.
        ports = "20000-32767"
        self.core.namespace.nft(
            "table ip6 lab_ipv4_only {\nchain c {\ntype filter hook prerouting priority -500;\n"
            f"udp sport {ports} udp dport {ports} drop\n}}\n}}\n"
        )

    def asked(self, address: IPAddress) -> str:
        """Return whom the site sees when a program on the laptop asks it now; empty: nobody."""
        with self.laptop.namespace.enter():
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            sock = socket.socket(family)
        with sock, suppress(OSError):
            sock.settimeout(patient(ASKING_S))
            sock.connect((str(address), SITE_PORT))
            return sock.recv(100).decode().strip()
        return ""

    def seen_as(self) -> set[str]:
        """Return the addresses that the site sees the laptop as, of both IP versions at once."""
        assert self.site.address6 is not None
        with ThreadPoolExecutor(2) as both:
            return set(both.map(self.asked, (self.site.address, self.site.address6)))

    def wait_seen(self, *hosts: object) -> None:
        """Wait until the site sees the laptop as these addresses and no others."""
        wanted = {str(address) for address in hosts}
        wait_until(lambda: self.seen_as() == wanted, f"to be seen as {wanted}", timeout=LIMIT)

    def wait_state(self, wanted: str) -> None:
        """Wait until the daemon says so."""

        def holds() -> bool:
            return bool(self.laptop.ask("exit_status")["state"] == wanted)

        wait_until(holds, f"the state {wanted}", timeout=LIMIT, poll=STATUS_POLL)


def test_nothing_strays_on_kernel_wireguard(needs: Callable[[bool, str], None]) -> None:
    needs(not KernelBackend().unavailable(), "the kernel module wireguard")
    with KernelAbroad() as lab:
        told("the network stands")
        exit_host = lab.hosts_abroad[0]
        abroad = (exit_host.address, exit_host.address6)
        an_exit_is_offered(lab)
        footprint, before, at_home = lab.footprint(), machine(lab.laptop), lab.seen_as()
        assert not at_home & {str(address) for address in abroad}
        assert "" not in at_home
        what_a_program_sends_is_recorded(lab)
        connected_all_goes_through_the_exit(lab, abroad)
        strict_reverse_path_filters_let_the_answers_in(lab, abroad)
        an_exit_that_dies_leaves_nothing_open(lab, abroad)
        a_killed_daemon_leaves_the_block(lab, abroad)
        in_lockdown_nothing_leaves_without_an_exit(lab)
        decide(lab, "exit_off", kill_switch="off")
        lab.wait_seen(*at_home)
        told("exit off")
        # Another process with the same words runs now, and it may measure a path again.
        settled = {"nft", "rules", "rules6", "sysctls", "links"}
        changed = changes(before, machine(lab.laptop))
        assert {key: what for key, what in changed.items() if key in settled} == {}
        nodes = (lab.laptop, *lab.exits)
        with ThreadPoolExecutor(2) as both:
            assert list(both.map(LabNode.stop, nodes)) == [0, 0]
        for node in nodes:
            log = node.log.read_text().splitlines()
            assert [line for line in log if FAILURE.search(line)] == []
    assert leftovers(footprint) == []
    told("nothing left")


def an_exit_is_offered(lab: KernelAbroad) -> None:
    """Bring both up; the exit joins the laptop's network and offers itself to it."""
    laptop, exit_node = lab.laptop, lab.exits[0]
    for node in (laptop, exit_node):
        node.init()
    with ThreadPoolExecutor(2) as both:
        list(both.map(LabNode.start, (laptop, exit_node)))
        list(both.map(LabNode.wait_for_relay, (laptop, exit_node)))
    exit_node.query("join", laptop.query("invite", exit_node.npub)["link"])
    for node, other in ((laptop, exit_node), (exit_node, laptop)):
        node.wait_for_peer(other.npub, path="direct", timeout=30)
        assert node.status()["backend"] == "kernel"
    exit_node.cli("exit", "offer", "--to", "members")
    offered = lambda: laptop.ask("exit_list")["exits"]  # noqa: E731
    wait_until(offered, "the offer", timeout=LIMIT, poll=STATUS_POLL)
    lab.own_port()
    told("an exit is offered")


def decide(lab: KernelAbroad, command: str, **arguments: object) -> None:
    """Say it to the daemon, which answers when the kernel has it: longer than the command line waits."""
    client = ControlClient(lab.laptop.environment["NOSTRVPN_RUNTIME_DIR"] + "/control.sock")
    client.call(command, timeout=patient(LIMIT), **arguments)


def use(lab: KernelAbroad, kill_switch: str) -> None:
    """Use the exit; return when the packet filter stands."""
    npub = lab.exits[0].npub
    more = {"allow_lan": False, "resolver": None}
    decide(lab, "exit_use", peer=npub, dry_run=False, kill_switch=kill_switch, **more)
    table = shield_table(lab.laptop.interface)

    def stands() -> bool:
        return table in lab.laptop.namespace.run("nft", "list", "tables").stdout

    # On so slow a machine it may answer before.
    wait_until(stands, "the packet filter", timeout=LIMIT)


@contextmanager
def nothing_strays(lab: KernelAbroad, *uids: int) -> Iterator[None]:
    """Record the cable meanwhile; in the end a program of each user sends all that it can."""
    capture = lab.watch()
    yield
    with ThreadPoolExecutor(max(1, len(uids))) as all_of_them:
        list(all_of_them.map(lambda uid: lab.talk(uid=uid), uids))
    capture.stop()
    found = strays(lab, capture)
    assert not found, f"{len(found)} packets strayed: {sorted(set(found))[:20]}"


def what_a_program_sends_is_recorded(lab: KernelAbroad) -> None:
    capture = lab.watch()
    lab.talk(uid=NOBODY)
    capture.stop()
    assert len(strays(lab, capture)) > 50
    told("recorded where nothing holds it back")


def connected_all_goes_through_the_exit(lab: KernelAbroad, abroad: tuple[object, ...]) -> None:
    with nothing_strays(lab, 0, NOBODY):
        use(lab, "on")
        lab.wait_seen(*abroad)
    endpoint = lab.laptop.wait_for_peer(lab.exits[0].npub, path="direct")["endpoint"]
    assert endpoint.startswith(f"{abroad[0]}:")
    told("connected")


def strict_reverse_path_filters_let_the_answers_in(
    lab: KernelAbroad, abroad: tuple[object, ...]
) -> None:
    """And it is the mark that does it."""
    mark = "net.ipv4.conf.all.src_valid_mark"
    assert lab.host_laptop.run("sysctl", "-n", *STRICT, mark).split() == ["1", "1", "1"]
    lab.host_laptop.run("sysctl", "-q", "-w", f"{mark}=0")
    assert lab.seen_as() == {""}
    lab.host_laptop.run("sysctl", "-q", "-w", f"{mark}=1")
    lab.wait_seen(*abroad)
    told("strict reverse-path filters")


def an_exit_that_dies_leaves_nothing_open(lab: KernelAbroad, abroad: tuple[object, ...]) -> None:
    with nothing_strays(lab, 0, NOBODY):
        lab.cut(0)
        lab.wait_state("connecting")
        assert lab.seen_as() == {""}
    lab.mend(0)
    lab.wait_seen(*abroad)
    told("cut off and back")


def a_killed_daemon_leaves_the_block(lab: KernelAbroad, abroad: tuple[object, ...]) -> None:
    with nothing_strays(lab, 0, NOBODY):
        lab.laptop.kill()
    with nothing_strays(lab):
        lab.laptop.start()
        lab.wait_seen(*abroad)
    told("killed and back")


def in_lockdown_nothing_leaves_without_an_exit(lab: KernelAbroad) -> None:
    use(lab, "lockdown")
    with nothing_strays(lab, 0, NOBODY):
        decide(lab, "exit_off", kill_switch=None)
        lab.wait_state("lockdown")
        assert lab.seen_as() == {""}
    told("lockdown")
