"""Daemons that run as the service does: an unprivileged user, three capabilities, nothing to gain.

Commands are root's, as people run them. The rest of the unit's sandbox is not laid on here.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from nostrvpn.host.subnet_gateway import gateway_table
from nostrvpn.lab.nat import NatKind
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.service import ServiceNode
from nostrvpn.lab.transfer import transfer
from tests.lab.abroad import Abroad
from tests.lab.homes import Homes, join, machine, peer_of, ping, problems, wait_direct, watched
from tests.lab.test_leaks import nothing_strays, outside, seen_as, use
from tests.lab.test_permissions import Guarded, addresses, connect, listening
from tests.lab.test_relayed import RELAYS, SIZE, Relayed
from tests.lab.test_subnets import BOX4, BOX6, Office, answers, routes, share

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(180))]

OPEN = 2200
# Spec: linux/capability.h: NET_BIND_SERVICE, NET_ADMIN, NET_RAW.
THREE = f"{1 << 10 | 1 << 12 | 1 << 13:016x}"


class ServiceHomes(Guarded):
    node_type = ServiceNode


class ServiceOffice(Office):
    node_type = ServiceNode


class ServiceRelayed(Relayed):
    node_type = ServiceNode


class ServiceAbroad(Abroad):
    node_type = ServiceNode


@pytest.fixture(scope="module")
def lab() -> Iterator[Homes]:
    with watched(ServiceHomes(2)) as lab:
        closed = lab.nodes[1].config
        closed.write_text(f"{closed.read_text()}dns:\n  resolv_conf: true\n")
        join(*lab.nodes)
        yield lab


def facts(pid: int) -> dict[str, str]:
    """What the kernel says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def is_restricted(pid: int) -> bool:
    said = facts(pid)
    sets = {said[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
    return "0" not in said["Uid"].split() and sets == {THREE} and said["NoNewPrivs"] == "1"


def behind(interface: str) -> set[int]:
    """The processes of this user's that run a userspace WireGuard for an interface."""
    found = set()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if interface.encode() in words and not any(b"python" in word for word in words):
                found.add(int(process.name))
    return found


def test_the_daemon_and_what_it_starts_have_three_capabilities_and_no_user_of_rank(lab: Homes):
    for node in lab.nodes:
        assert is_restricted(node.process.pid)
        for pid in behind(node.interface):
            assert is_restricted(pid)


def test_two_nodes_connect(lab: Homes):
    a, b = lab.nodes
    wait_direct(a, b)
    ping(a, b)
    with listening(b, addresses(b)[0], OPEN):
        assert connect(a, addresses(b)[0], OPEN, 1.5) is None
        b.cli("allow", a.npub, f"inbound:tcp/{OPEN}")
        made = wait_until(lambda: connect(a, addresses(b)[0], OPEN, 1.5), "a permitted connection")
        made.close()
        b.cli("allow", a.npub, f"inbound:tcp/{OPEN}", "--undo")


def test_names_are_answered_and_a_resolv_conf_that_is_closed_is_a_problem(lab: Homes):
    a, b = lab.nodes
    if shutil.which("dig") is None:
        pytest.skip("NOT RUN: bind9-dnsutils is not installed")
    dns = a.wait_for(lambda status: status["dns"]["server"], "a server of names")["dns"]
    # Port 53 of a loopback address: CAP_NET_BIND_SERVICE.
    server, _, port = dns["server"].rpartition(":")
    assert port == "53"
    told = a.namespace.run("dig", f"@{server}", "+short", f"{b.name}.{dns['domain']}", "A").stdout
    assert told.split() == [addresses(b)[1]]
    b.wait_for(lambda status: "names_failed" in problems(status), "a word on resolv.conf")


def test_files_have_one_owner_whoever_made_them(lab: Homes):
    node = lab.nodes[0]
    node.cli("network", "create", "work")
    state = node.directory / "state"
    owners = {path.lstat().st_uid for path in (state, *state.rglob("*"))}
    assert owners == {state.stat().st_uid} != {0}
    assert (state / "identity").stat().st_mode & 0o777 == 0o600
    node.cli("network", "switch", "default")


def test_root_and_the_group_may_call_and_nobody_else(lab: Homes):
    node = lab.nodes[0]
    assert isinstance(node, ServiceNode)
    path = node.directory / "run/control.sock"
    assert path.stat().st_mode & 0o777 == 0o660

    def as_user(*options: str) -> int:
        user = ("setpriv", "--reuid=12345", "--regid=12345", *options, "--")
        argv = (*node.opening, *user, *LabNode.command.__get__(node), "status")
        return node.namespace.run(*argv, check=False).returncode

    assert as_user("--clear-groups") == 1
    assert as_user(f"--groups={path.stat().st_gid}") == 0


def test_relays_carry_what_has_no_direct_path():
    with watched(ServiceRelayed(NatKind.SYMMETRIC)) as lab:
        lab.meet()
        lab.wait_for_path("relayed")
        a, b = lab.laptops
        assert peer_of(a, b)["via"] in RELAYS
        target = ip_address(b.status()["addresses"][0])
        before = lab.carried()
        assert transfer(a.namespace, b.namespace, target, size=SIZE).intact
        assert lab.carried() - before > SIZE


@pytest.fixture
def office() -> Iterator[Office]:
    with watched(ServiceOffice()) as lab:
        yield lab


def test_a_subnet_router_forwards_and_leaves_the_host_as_it_was(office: Office):
    before = {node.name: machine(node) for node in office.nodes}
    join(office.client, office.first, office.second)
    share(office, office.first)
    wait_until(lambda: routes(office.client) != set(), "a route", timeout=20.0)
    assert answers(office.client, BOX4)
    assert answers(office.client, BOX6)
    rules = office.first.namespace.run("nft", "list", "tables").stdout
    assert gateway_table(office.first.interface) in rules
    for node in (office.client, office.first):
        assert node.stop() == 0
        assert machine(node) == before[node.name]
    # SIGKILL leaves everything; root's cleanup takes it away.
    office.second.kill()
    office.second.cli("cleanup")
    assert machine(office.second) == before[office.second.name]


def test_an_exit_is_offered_and_used_and_nothing_leaves_beside_it():
    with watched(ServiceAbroad(exits=1)) as lab:
        before = {node.name: machine(node) for node in lab.nodes}
        laptop, provider = lab.laptop, lab.exits[0]
        join(laptop, provider)
        provider.cli("exit", "offer", "--to", "members", "--bandwidth", "100", "--budget", "10")
        wait_until(lambda: laptop.ask("exit_list")["exits"], "an offer", timeout=20.0)
        lab.own_port()
        exec_ = ("exec", "--exit", provider.name, "--user", "root", "--", "ip", "route")
        assert "default" in laptop.cli(*exec_)
        use(lab)
        with nothing_strays(lab) as talk:
            wait_until(lambda: seen_as(lab) == outside(lab, 0), "the exit", timeout=20.0)
            laptop.cli("exit", "use", provider.name, "--yes", "--kill-switch", "lockdown")
            laptop.cli("exit", "off")
            wait_until(lambda: seen_as(lab) == set(), "nothing to leave", timeout=20.0)
            use(lab)
            laptop.kill()
            talk()
        for node in lab.nodes:
            if node.process.alive:
                node.kill()
            node.cli("cleanup")
            assert machine(node) == before[node.name]
        assert seen_as(lab) & {str(lab.home.address)}


def test_a_daemon_that_root_starts_gives_root_up(office: Office):
    node = office.client
    node.init()
    assert node.cli("up", "--timeout", "20")
    holder = int((node.directory / "state/daemon.lock").read_text())
    assert is_restricted(holder)
    node.cli("down")
    # It gives its lock back, which "down" waits for, a moment before it ends.
    wait_until(lambda: not Path(f"/proc/{holder}/exe").exists(), "its end", timeout=20.0)


def test_the_watchdog_hears_of_a_daemon_that_turns(office: Office, tmp_path: Path):
    node = office.client
    node.init()
    place = node.directory / "run/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(place))
        os.chmod(place, 0o777)
        manager.settimeout(patient(20.0))
        process = node.start(NOTIFY_SOCKET=str(place))
        heard = {manager.recv(100), manager.recv(100)}
        assert heard == {b"READY=1", b"WATCHDOG=1"}
        process.signal(signal.SIGTERM)
        while manager.recv(100) != b"STOPPING=1":
            pass
        node.stop()
