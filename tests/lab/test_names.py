"""Members' names, asked by the host's own programs, between two real daemons.

``ip netns exec`` lays /etc/netns/NAME/resolv.conf over /etc/resolv.conf, for whatever runs inside: the
machine's own file is never touched.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import wait_until
from nostrvpn.lab.processes import Process
from tests.lab.homes import Homes, homes, join

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

# What the host used before: a server of its LAN, and no line break at the end.
LAN_SERVER, PRINTER = "127.0.0.9", "192.0.2.7"
ORIGINAL = f"# the user's own\nsearch lan\nnameserver {LAN_SERVER}\noptions timeout:1 attempts:1"


@pytest.fixture(scope="module")
def lab() -> Iterator[Homes]:
    if shutil.which("dig") is None or shutil.which("dnsmasq") is None:
        pytest.skip("NOT RUN: bind9-dnsutils and dnsmasq-base are not installed")
    directories: list[Path] = []
    try:
        with homes(2) as lab:
            for node in lab.nodes:
                directory = Path("/etc/netns") / node.namespace.name
                directory.mkdir(parents=True)
                directories.append(directory)
                (directory / "resolv.conf").write_text(ORIGINAL)
                lab.stack.callback(lan_server(node).stop)
                text = node.config.read_text()
                node.config.write_text(f"{text}dns:\n  resolv_conf: true\n")
            join(*lab.nodes)
            yield lab
    finally:
        for directory in directories:
            shutil.rmtree(directory)


def lan_server(node: LabNode) -> Process:
    """A real name server for the host's other names, which notes each question."""
    told: tuple[str, ...] = (
        "no-daemon",
        "no-hosts",
        "no-resolv",
        "conf-file=/dev/null",
        "user=root",
        "pid-file=",
    )
    told += ("bind-interfaces", f"listen-address={LAN_SERVER}", "log-queries", "log-facility=-")
    told += ("local=/lan/", "local=/org/", f"address=/printer.lan/{PRINTER}")
    argv = ("dnsmasq", *(f"--{word}" for word in told))
    server = Process(node.namespace, argv, log=node.directory / "dnsmasq.log")
    server.wait_for_text("started")
    return server


def resolv_conf(node: LabNode) -> Path:
    return Path("/etc/netns") / node.namespace.name / "resolv.conf"


def names_of(node: LabNode) -> dict[str, str]:
    """The node's ``dns`` once its host's resolver was told."""
    status = node.wait_for(lambda status: status["dns"]["manager"] == "resolv.conf", "names")
    dns: dict[str, str] = status["dns"]
    return dns


def dig(node: LabNode, *arguments: str) -> tuple[str, list[str]]:
    """The status (``NOERROR``) and the answers' data."""
    server = names_of(node)["server"].rpartition(":")[0]
    text = node.namespace.run("dig", f"@{server}", *arguments).stdout
    found = re.search(r"status: ([A-Z]+)", text)
    assert found is not None, text
    lines = [line for line in text.splitlines() if line and not line.startswith(";")]
    return found[1], [line.split()[4] for line in lines if line.split()[3] != "SOA"]


def test_a_members_name_is_its_address_over_udp_and_tcp_and_back(lab):
    a, b = lab.nodes
    domain = names_of(a)["domain"]
    ipv6, ipv4 = b.query("id")["addresses"]
    name = f"{b.name}.{domain}"
    for how in ("+notcp", "+tcp", "+noedns", "+bufsize=512"):
        assert dig(a, how, name, "A") == ("NOERROR", [ipv4])
        assert dig(a, how, name, "AAAA") == ("NOERROR", [ipv6])
    assert dig(a, f"{b.npub}.nvpn", "A") == ("NOERROR", [ipv4])
    assert dig(a, "-x", ipv4) == ("NOERROR", [f"{name}."])
    assert dig(a, "-x", ipv6) == ("NOERROR", [f"{name}."])
    assert dig(a, name, "MX") == ("NOERROR", [])
    assert dig(a, domain, "A") == ("NOERROR", [])
    assert dig(a, f"nobody.{domain}", "A") == ("NXDOMAIN", [])
    assert dig(a, "example.org", "A") == ("REFUSED", [])


def test_the_hosts_programs_know_them_and_short_names_too(lab):
    a, b = lab.nodes
    domain = names_of(a)["domain"]
    ipv4 = b.query("id")["addresses"][1]
    for name in (f"{b.name}.{domain}", b.name):
        found = a.namespace.run("getent", "ahostsv4", name).stdout
        assert found.split()[0] == ipv4
    # What was known before still is, by short name too, and no name of ours was asked there.
    for name in ("printer.lan", "printer"):
        assert a.namespace.run("getent", "ahostsv4", name).stdout.split()[0] == PRINTER
    asked = re.findall(r"query\[\w+\] (\S+)", (a.directory / "dnsmasq.log").read_text())
    assert "printer.lan" in asked
    assert not [name for name in asked if name.endswith("nvpn")]
    assert "bytes from" in a.namespace.run("ping", "-c1", "-W5", b.name, timeout=20).stdout


def test_an_alias_is_a_name_of_this_host_alone(lab):
    a, b = lab.nodes
    domain = names_of(a)["domain"]
    ipv4 = b.query("id")["addresses"][1]
    a.cli("peer", "rename", b.npub, "attic")
    assert dig(a, f"attic.{domain}", "A") == ("NOERROR", [ipv4])
    assert dig(a, "-x", ipv4) == ("NOERROR", [f"attic.{domain}."])
    assert dig(a, f"{b.name}.{domain}", "A") == (
        "NOERROR",
        [ipv4],
    )  # the roster's name still is one
    assert dig(b, f"attic.{domain}", "A") == ("NXDOMAIN", [])
    told = a.query("resolve", "attic")
    assert (told["npub"], told["answer"]) == (b.npub, "NOERROR")
    missing = a.attempt("resolve", "nobody")
    assert missing.returncode == 1
    assert "nobody in the network" in missing.stdout


def test_only_this_host_is_answered(lab):
    """Another member that asks at our address in the mesh meets no server."""
    a, b = lab.nodes
    names_of(a)
    ipv4 = a.query("id")["addresses"][1]
    asked = b.namespace.run(
        "dig", "+tries=1", "+time=1", f"@{ipv4}", "nvpn", "SOA", check=False, timeout=20
    )
    assert "status:" not in asked.stdout


def test_resolv_conf_is_left_as_it_was_by_down_and_by_cleanup_after_a_kill(lab):
    a, b = lab.nodes
    names_of(a)
    names_of(b)
    assert resolv_conf(a).read_text() != ORIGINAL
    assert a.stop() == 0
    assert resolv_conf(a).read_text() == ORIGINAL
    assert resolv_conf(b).read_text() != ORIGINAL
    b.kill()
    # What the user changes meanwhile stays.
    with resolv_conf(b).open("a") as file:
        file.write("# added by hand\n")
    removed = b.query("cleanup")["removed"]
    assert "lines in /etc/resolv.conf" in removed
    assert resolv_conf(b).read_text() == f"{ORIGINAL}# added by hand\n"
    a.start()
    b.start()
    names_of(a)
    b.kill()
    b.start()  # a killed daemon's lines are taken over, not doubled
    names_of(b)
    assert resolv_conf(b).read_text().count("nameserver 127.118.") == 1


def test_without_names_the_tunnel_stands(lab):
    """A file that nobody can write: a problem in words, and the mesh as before."""
    a, b = lab.nodes
    names_of(a)
    a.stop()
    a.namespace.run("chattr", "+i", str(resolv_conf(a)))
    try:
        a.start()
        status = a.wait_for(lambda status: status["dns"].get("failure"), "a failure")
        assert "resolv.conf" in status["dns"]["failure"]
        assert "names_failed" in {problem["code"] for problem in status["problems"]}
        a.wait_for_peer(b.npub, path="direct")
        ipv4 = b.query("id")["addresses"][1]
        wait_until(
            lambda: a.namespace.run("ping", "-c1", "-W2", ipv4, check=False).returncode == 0,
            "a ping",
        )
    finally:
        a.namespace.run("chattr", "-i", str(resolv_conf(a)))
    a.stop()
    assert resolv_conf(a).read_text() == ORIGINAL
    a.start()
