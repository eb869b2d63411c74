"""Being an exit, with real daemons: what a guest reaches through it, and what it does not."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from nostrvpn.lab.namespaces import Namespace
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.processes import Process
from tests.lab.abroad import PROGRAMS, Abroad, name_server
from tests.lab.homes import join, problems, watched

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(120))]

LIMIT = 20.0
# Nothing is far, and what is refused is refused at once.
PATIENCE_S = 1.0
METADATA = "169.254.169.254"
INSIDE = ("192.168.77.10", "fd77::10")
RESOLVER = INSIDE[0]
MAIL = 25
OPEN = ("--policy", "tor-default")


class Provider(Abroad):
    """The first exit's network has a service, a metadata address and the exit's own resolver."""

    def __init__(self) -> None:
        super().__init__(exits=1)

    def build(self) -> None:
        super().build()
        exit_node = self.exits[0]
        self.inside.ip(f"addr add {METADATA}/32 dev lan")
        exit_node.namespace.ip(f"route add {METADATA}/32 via {INSIDE[0]}")
        for namespace, port in ((self.inside, 80), (exit_node.namespace, 80)):
            self.answer(namespace, port)
        self.answer(self.site.namespace, MAIL)
        blocklist = self.directory / "blocked"
        blocklist.write_text("bad.example\n")
        configuration = yaml.safe_load(exit_node.config.read_text())
        configuration["exit"] = {"blocklists": [str(blocklist)]}
        exit_node.config.write_text(yaml.safe_dump(configuration))
        directory = Path("/etc/netns") / exit_node.namespace.name
        directory.mkdir(parents=True)
        self.stack.callback(shutil.rmtree, directory)
        (directory / "resolv.conf").write_text(f"nameserver {RESOLVER}\n")
        name_server(self, self.inside, RESOLVER, self.site, ["good.example", "bad.example"])

    def answer(self, namespace: Namespace, port: int) -> None:
        """Have a program there answer on a port, with the asker's address."""
        argv = (sys.executable, str(PROGRAMS / "answering.py"), str(port))
        process = Process(namespace, argv, log=self.directory / f"{namespace.label}-{port}.log")
        self.stack.callback(process.kill)
        process.wait_for_text("listening everywhere")

    @property
    def provider(self) -> LabNode:
        return self.exits[0]

    @property
    def sites(self) -> tuple[str, str]:
        """The addresses of the site, of both IP versions."""
        return str(self.site.address), str(self.site.address6)

    def offer(self, *arguments: str) -> None:
        """Be an exit for all members, in these words."""
        self.provider.cli("exit", "offer", "--to", "members", *(arguments or OPEN))


def asked(namespace: Namespace, address: str, port: int = 80) -> str:
    """Return what a server says of who asks from a namespace; empty if nobody answers."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with namespace.enter():
        sock = socket.socket(family)
    with sock, suppress(OSError):
        sock.settimeout(patient(PATIENCE_S))
        sock.connect((address, port))
        return sock.recv(100).decode().strip()
    return ""


@pytest.fixture(scope="module")
def provider_lab() -> Iterator[Provider]:
    with watched(Provider()) as lab:
        join(lab.laptop, *lab.exits)
        lab.offer()
        wait_until(lambda: lab.laptop.ask("exit_list")["exits"], "an offer", timeout=LIMIT)
        yield lab


@pytest.fixture
def lab(provider_lab: Provider) -> Provider:
    """The laptop leaves through the exit, which has no limits."""
    lab = provider_lab
    lab.offer()
    lab.laptop.cli("exit", "use", lab.provider.name, "--yes")
    abroad = {str(lab.hosts_abroad[0].address), str(lab.hosts_abroad[0].address6)}
    wait_until(
        lambda: {asked(lab.laptop.namespace, site) for site in lab.sites} == abroad,
        "the site through the exit",
        timeout=LIMIT,
    )
    return lab


def test_guests_reach_the_internet_and_nothing_of_the_provider(lab: Provider) -> None:
    exit_host = lab.hosts_abroad[0]
    own = (str(exit_host.address), str(exit_host.address6), "192.168.77.1", "fd77::1")
    near = (*INSIDE, METADATA, *own)
    assert "" not in {asked(lab.provider.namespace, address) for address in near}
    guest = lab.laptop.namespace
    assert {address: asked(guest, address) for address in near} == dict.fromkeys(near, "")
    assert "" not in {asked(guest, site) for site in lab.sites}
    lab.offer(*OPEN, "--allow", f"{INSIDE[0]}/32,tcp/80")
    wait_until(lambda: asked(guest, INSIDE[0]), "what the provider opened", timeout=LIMIT)
    # Now this host forwards from there, and it is the policy that holds back the rest.
    closed = [address for address in near if address != INSIDE[0]]
    assert {address: asked(guest, address) for address in closed} == dict.fromkeys(closed, "")


def test_a_policy_lets_its_ports_through_and_no_others(lab: Provider) -> None:
    guest = lab.laptop.namespace
    lab.offer("--policy", "open")
    for site in lab.sites:
        wait_until(lambda: asked(guest, site, MAIL), "any port", timeout=LIMIT)  # noqa: B023
    lab.offer("--policy", "web")
    for site in lab.sites:
        wait_until(lambda: not asked(guest, site, MAIL), "the policy", timeout=LIMIT)  # noqa: B023
        assert asked(guest, site, 443)


def test_a_permission_taken_away_cuts_within_a_second(lab: Provider) -> None:
    flow = Flow(lab)
    flow.start()
    try:
        # A guest that does not listen: its tunnel goes on without its daemon.
        lab.laptop.kill()
        killed = time.monotonic()
        wait_until(lambda: (flow.answered_at or 0) > killed, "answers", timeout=LIMIT)
        began = time.monotonic()
        lab.provider.cli("deny", lab.laptop.npub, "exit")
        denied = time.monotonic()
        wait_until(lambda: flow.silent_s() > 3 * PATIENCE_S, "silence", timeout=LIMIT)
        assert flow.answered_at is not None
        assert flow.answered_at < denied + 1.0, f"{flow.answered_at - began:.2f} s from the command"
        clients = lab.provider.query("exit", "clients")["clients"]
        assert not any(one["allowed"] for one in clients)
    finally:
        lab.provider.cli("allow", lab.laptop.npub, "exit")
        flow.end()
        lab.laptop.start()


class Flow(threading.Thread):
    """One flow of datagrams from the guest to the site, each of which the site answers."""

    def __init__(self, lab: Provider) -> None:
        super().__init__(daemon=True)
        with lab.laptop.namespace.enter():
            self._socket = socket.socket(type=socket.SOCK_DGRAM)
        self._socket.connect((lab.sites[0], 443))
        self._socket.settimeout(0.02)
        self._ended = threading.Event()
        self._began = time.monotonic()
        self.answered_at: float | None = None

    def run(self) -> None:
        while not self._ended.is_set():
            with suppress(OSError):
                self._socket.send(b"?")
                self._socket.recv(100)
                self.answered_at = time.monotonic()
            self._ended.wait(0.02)
        self._socket.close()

    def silent_s(self) -> float:
        return time.monotonic() - (self.answered_at or self._began)

    def end(self) -> None:
        self._ended.set()
        self.join(2)


def test_a_spent_budget_ends_the_service_and_says_so(lab: Provider) -> None:
    guest = lab.laptop.namespace
    used = lab.provider.query("exit", "clients")["month_bytes"]
    lab.offer(*OPEN, "--budget", f"{(used + 300_000) / 1e9:.6f}")
    assert asked(guest, lab.sites[0])
    with guest.enter():
        sock = socket.socket(type=socket.SOCK_DGRAM)
    with sock:
        sock.connect((lab.sites[0], 443))

        def is_spent() -> bool:
            # Not so many that nothing else of the guest's gets through.
            for _ in range(10):
                with suppress(OSError):
                    sock.send(os.urandom(1000))
            return "budget" in lab.provider.query("exit", "clients")["text"]

        wait_until(is_spent, "the budget to be spent", timeout=3 * LIMIT)
    for site in lab.sites:
        wait_until(lambda: not asked(guest, site), "the end of service", timeout=LIMIT)  # noqa: B023


def test_the_exit_answers_names_and_keeps_its_blocklist(lab: Provider) -> None:
    for server in lab.provider.status()["addresses"]:

        def dig(name: str, at: str = server) -> str:
            argv = ("dig", f"@{at}", name, "A", "+tries=2", "+time=3")
            return lab.laptop.namespace.run(*argv, check=False, timeout=20).stdout

        assert lab.sites[0] in dig("good.example"), server
        assert "NXDOMAIN" in dig("bad.example"), server
        assert "NXDOMAIN" in dig("ads.bad.example"), server
    # The exit's own resolver knows it, and no guest asks that one itself.
    argv = ("dig", f"@{RESOLVER}", "bad.example", "A", "+tries=1", "+time=1")
    assert lab.sites[0] in lab.provider.namespace.run(*argv).stdout
    assert lab.sites[0] not in lab.laptop.namespace.run(*argv, check=False).stdout


DOCKER = """
table ip filter {
chain DOCKER-USER { }
chain FORWARD {
type filter hook forward priority filter; policy drop;
jump DOCKER-USER
}
}
"""
FIREWALLD = """
table inet firewalld {
chain filter_FORWARD {
type filter hook forward priority filter + 10; policy accept;
ct state { established, related } accept
reject with icmpx admin-prohibited
}
}
"""


@pytest.mark.parametrize(
    ("table", "ruleset", "chain", "remedy"),
    [
        ("ip filter", DOCKER, "FORWARD", "DOCKER-USER"),
        ("inet firewalld", FIREWALLD, "filter_FORWARD", "firewall-cmd"),
    ],
)
def test_a_firewall_that_drops_what_is_forwarded_is_named(
    lab: Provider, table: str, ruleset: str, chain: str, remedy: str
) -> None:
    provider = lab.provider
    assert not [text for text in problems(provider.status()).values() if chain in text]
    provider.cli("exit", "offer", "--stop")
    provider.namespace.nft(ruleset)
    try:
        lab.offer()
        status = provider.wait_for(
            lambda status: any(chain in text for text in problems(status).values()),
            "the firewall's name",
            timeout=LIMIT,
        )
        assert chain in provider.query("exit", "clients")["text"]
        hints = [p["hint"] for p in status["problems"] if chain in p["text"]]
        assert all(remedy in hint for hint in hints)
        assert not asked(lab.laptop.namespace, lab.sites[0])
    finally:
        provider.namespace.nft(f"delete table {table}")
    provider.wait_for(
        lambda status: not any(chain in text for text in problems(status).values()),
        "the problem's end",
        timeout=60,
    )
