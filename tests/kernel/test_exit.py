"""Leaving through an exit on the kernel's own WireGuard: in no state does anything stray.

A laptop at home, an exit and a site, as in ``tests/lab/test_leaks.py``, whose checks these are, with
strict reverse-path filters from the beginning and WireGuard's packets in IPv4, which these are for. A
command with a network of its own goes along through it all, and in the end the exit has a provider.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from nostrvpn.host.shield import shield_table
from nostrvpn.host.upstream import upstream_interface
from nostrvpn.io.wireguard_kernel import KernelBackend
from nostrvpn.lab.leftovers import leftovers
from nostrvpn.lab.node import STATUS_POLL, LabNode
from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.processes import Process
from tests.kernel.near import LIMIT, NearNode, changes, told
from tests.lab.abroad import NOBODY, Abroad, strays
from tests.lab.asking import NOTHING, asking_on, hears, links, nothing_of_it_outside, outside
from tests.lab.homes import FAILURE, machine
from tests.lab.provider import Provider

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(patient(90))]

STRICT = ("net.ipv4.conf.all.rp_filter", "net.ipv4.conf.eth0.rp_filter")


class KernelAbroad(Abroad):
    """One exit; both daemons may use nothing but the kernel's WireGuard."""

    node_type = NearNode
    laptop: NearNode

    def __init__(self) -> None:
        super().__init__(exits=1, wireguard={"backend": "kernel"})

    def build(self) -> None:
        super().build()
        self.provider = Provider(self, self.host("provider"), "provider0", kernel=True)
        # Who begins to forward IPv6 listens to what routers are told, and says so at once and again.
        once = "net.ipv6.conf.eth0.mldv2_unsolicited_report_interval=1"
        self.host_laptop.run("sysctl", "-q", "-w", once, *(f"{name}=1" for name in STRICT))
        # Ports that the agents draw: they meet over IPv4.
        ports = "20000-32767"
        self.core.namespace.nft(
            "table ip6 lab_ipv4_only {\nchain c {\ntype filter hook prerouting priority -500;\n"
            f"udp sport {ports} udp dport {ports} drop\n}}\n}}\n"
        )

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
        footprint, before, at_home = (
            lab.footprint(),
            machine(lab.laptop),
            lab.laptop.seen_as(lab.site),
        )
        assert not at_home & {str(address) for address in abroad}
        assert "" not in at_home
        what_a_program_sends_is_recorded(lab)
        with a_command(lab, at_home) as command:
            connected_all_goes_through_the_exit(lab, abroad)
            strict_reverse_path_filters_let_the_answers_in(lab, abroad)
            an_exit_that_dies_leaves_nothing_open(lab, abroad, command)
            a_killed_daemon_leaves_the_block(lab, abroad, command)
        guests_leave_by_a_provider_or_not_at_all(lab)
        no_provider_is_left(lab, abroad)
        in_lockdown_nothing_leaves_without_an_exit(lab)
        lab.laptop.ask("exit_off", kill_switch="off")
        lab.laptop.wait_seen(lab.site, *at_home)
        told("exit off")
        # Another process with the same words runs now, and it may measure a path again. Of our own link
        # the command's answers stay welcome, until it goes.
        settled = {"nft", "rules", "rules6", "sysctls", "links"}
        own = f"net.ipv4.conf.{lab.laptop.interface}.rp_filter"
        after = machine(lab.laptop)
        for look in (before, after):
            look["sysctls"] = [line for line in look["sysctls"] if not line.startswith(own)]
        changed = changes(before, after)
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


def use(lab: KernelAbroad, kill_switch: str) -> None:
    """Use the exit; return when the packet filter stands."""
    npub = lab.exits[0].npub
    more = {"allow_lan": False, "resolver": None}
    lab.laptop.ask("exit_use", peer=npub, dry_run=False, kill_switch=kill_switch, **more)
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


@contextmanager
def a_command(lab: KernelAbroad, at_home: set[str]) -> Iterator[Process]:
    """One that asks the site through the exit, on and on, while its host keeps its own way."""
    with ExitStack() as stack:
        with nothing_of_it_outside(lab):
            command = stack.enter_context(asking_on(lab))
        assert lab.laptop.seen_as(lab.site) == at_home
        hears(command, outside(lab, 0))
        told("a command leaves by the exit, its host does not")
        yield command


def connected_all_goes_through_the_exit(lab: KernelAbroad, abroad: tuple[object, ...]) -> None:
    with nothing_strays(lab, 0, NOBODY):
        use(lab, "on")
        lab.laptop.wait_seen(lab.site, *abroad)
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
    assert lab.laptop.seen_as(lab.site) == {""}
    lab.host_laptop.run("sysctl", "-q", "-w", f"{mark}=1")
    lab.laptop.wait_seen(lab.site, *abroad)
    told("strict reverse-path filters")


def an_exit_that_dies_leaves_nothing_open(
    lab: KernelAbroad, abroad: tuple[object, ...], command: Process
) -> None:
    with nothing_strays(lab, 0, NOBODY):
        lab.cut(0)
        lab.wait_state("connecting")
        assert lab.laptop.seen_as(lab.site) == {""}
        hears(command, NOTHING)
    lab.mend(0)
    lab.laptop.wait_seen(lab.site, *abroad)
    told("cut off and back")


def a_killed_daemon_leaves_the_block(
    lab: KernelAbroad, abroad: tuple[object, ...], command: Process
) -> None:
    """The command goes on as the kernel has it; the next daemon takes its network away."""
    with nothing_strays(lab, 0, NOBODY):
        lab.laptop.kill()
        hears(command, outside(lab, 0))
    with nothing_strays(lab):
        lab.laptop.start()
        lab.laptop.wait_seen(lab.site, *abroad)
        hears(command, NOTHING)
    assert links(lab) == []
    told("killed and back")


def guests_leave_by_a_provider_or_not_at_all(lab: KernelAbroad) -> None:
    """By a second link of the exit, on kernel WireGuard as the provider's own."""
    exit_node, provider, site = lab.exits[0], lab.provider, lab.site
    assert isinstance(exit_node, NearNode)
    exit_node.cli("exit", "offer", "--to", "members", "--upstream", str(provider.file))
    lab.laptop.wait_seen(site, *provider.outside)
    link = upstream_interface(exit_node.interface)
    shown = exit_node.namespace.run("ip", "-d", "link", "show", link).stdout
    assert "wireguard" in shown
    # The site itself may still answer what was asked before.
    to_it = f"dst host {site.address} or dst host {site.address6}"
    capture = lab.capture("exit-1", "eth0", to_it)
    told("by the provider")
    # While it is away, nothing of theirs goes by another way: with and without the link.
    provider.leave()
    assert lab.laptop.seen_as(site) == {""}
    exit_node.namespace.ip(f"link del {link}")
    assert lab.laptop.seen_as(site) == {""}
    provider.come_back()
    lab.laptop.wait_seen(site, *provider.outside)
    capture.stop()
    assert capture.packets() == []
    # What the exit's host itself sends has its own way all the while.
    host = lab.hosts_abroad[0]
    assert exit_node.seen_as(site) == {str(host.address), str(host.address6)}
    told("the provider away and back")


def no_provider_is_left(lab: KernelAbroad, abroad: tuple[object, ...]) -> None:
    exit_node = lab.exits[0]
    exit_node.cli("exit", "offer", "--to", "members")
    lab.laptop.wait_seen(lab.site, *abroad)

    def left() -> list[str]:
        run = lab.hosts_abroad[0].run
        link = upstream_interface(exit_node.interface)
        shown = [run("ip", "-o", "link"), run("ip", "rule"), run("ip", "-6", "rule")]
        lines = [line for text in shown for line in text.splitlines() if f"{link}" in line]
        return lines + [t for t in run("nft", "list", "tables").splitlines() if "upstream" in t]

    wait_until(lambda: not left(), "no trace", timeout=LIMIT, evidence=lambda: str(left()))
    told("no provider")


def in_lockdown_nothing_leaves_without_an_exit(lab: KernelAbroad) -> None:
    use(lab, "lockdown")
    with nothing_strays(lab, 0, NOBODY):
        lab.laptop.ask("exit_off", kill_switch=None)
        lab.wait_state("lockdown")
        assert lab.laptop.seen_as(lab.site) == {""}
    told("lockdown")
