"""Hosts that lack what a relay would like: disk, IPv6, raw sockets. It says so, and goes on."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from nostrvpn.lab.core import Internet
from nostrvpn.lab.gateway import Gateway
from nostrvpn.lab.gathering import gather
from nostrvpn.lab.nat import NatKind
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.topology import Lab, Server
from nostrvpn.lab.transfer import transfer
from tests.lab.homes import machine, peer_of, ping, problems, watched

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(120))]

# More than a hundredth of the month's gigabyte, which is when the count is stored at once.
SIZE = 12_000_000
GIGABYTES = 1


class Relayed(Lab):
    """A relay outside, and two laptops that need it."""

    server: Server

    def build(self) -> None:
        self.server = self.server_host()
        self.vps = self.host("vps")
        relay = {"offer": "members", "gigabytes": GIGABYTES}
        self.relay = self.node(self.vps, self.server, relay=relay)
        self.a, self.b = (
            self.node(
                self.host(f"laptop-{end}", self.router(f"nat-{end}", NatKind.SYMMETRIC)),
                self.server,
                paths={"hard_nat_search": False},
            )
            for end in "ab"
        )

    def wait_relayed(self) -> None:
        for node, other in ((self.a, self.b), (self.b, self.a)):
            node.wait_for_peer(other.npub, path="relayed")


def busy_s(node: LabNode) -> float:
    """Return the seconds of processor time that the daemon took so far."""
    words = Path(f"/proc/{node.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def test_a_relay_with_a_full_disk_goes_on_and_forgets_nothing_that_it_stored_later() -> None:
    with Relayed(Internet(delay=0.002)) as lab:
        state = lab.relay.directory / "state"
        state.mkdir(mode=0o700)
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(state)]
        subprocess.run(mount, check=True, timeout=10)
        lab.stack.callback(subprocess.run, ["umount", "-l", str(state)], check=True, timeout=10)
        gather(lab.relay, [lab.a, lab.b])
        lab.wait_relayed()
        filler = state / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        address = ip_address(lab.b.status()["addresses"][0])
        assert transfer(lab.a.namespace, lab.b.namespace, address, size=SIZE).intact
        status = lab.relay.wait_for(
            lambda status: {"not_saved", "relay_not_saved"} & set(problems(status)), "the disk"
        )
        codes = Counter(problem["code"] for problem in status["problems"])
        assert codes["not_saved"] + codes["relay_not_saved"] == 1
        ping(lab.a, lab.b)
        before, began = busy_s(lab.relay), time.monotonic()
        wait_until(lambda: time.monotonic() - began > 2, "two seconds", timeout=5)
        assert busy_s(lab.relay) - before < 1.0
        log = lab.relay.log.read_text()
        assert log.count("what was relayed could not be stored") == 1
        filler.unlink()
        assert transfer(lab.a.namespace, lab.b.namespace, address, size=SIZE).intact
        lab.relay.wait_for(
            lambda status: not {"not_saved", "relay_not_saved"} & set(problems(status)), "room"
        )
        carried = lab.relay.query("netcheck")["relay_service"]["bytes"]
        assert carried > 2 * SIZE
        lab.relay.kill()
        lab.relay.start()
        again = lab.relay.query("netcheck")["relay_service"]["bytes"]
        # What was carried since the last store, by the share that provokes one.
        assert carried - GIGABYTES * 10**9 // 100 < again


def test_a_relay_without_ipv6_relays_by_ipv4() -> None:
    with watched(Relayed(Internet(delay=0.002))) as lab:
        lab.vps.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        before = machine(lab.relay)
        gather(lab.relay, [lab.a, lab.b])
        lab.wait_relayed()
        assert peer_of(lab.a, lab.b)["via"] == lab.relay.name
        ping(lab.a, lab.b)
        assert not {"relay_refused", "tunnel_refused"} & set(problems(lab.relay.status()))
        lab.relay.stop()
        assert machine(lab.relay) == before


def test_without_raw_sockets_a_relay_with_a_mapped_port_refuses_to_start_and_leaves_nothing() -> (
    None
):
    with Lab() as lab:
        server = lab.server_host()
        router = lab.router("home")
        node = lab.node(lab.host("poor", router), server, relay={"offer": "members"})
        gateway = Gateway(lab, router, natpmp=False, upnp=False)
        node.init()
        before = machine(node)
        drop = ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw")
        refused = node.namespace.run(*drop, *node.command, "daemon", check=False)
        assert refused.returncode == 1
        assert "CAP_NET_RAW" in refused.stderr
        assert len(refused.stderr.splitlines()) == 2  # the error, and a hint
        assert machine(node) == before
        assert gateway.mappings() == {}
