"""Nodes and words for an emulated machine, where each start of Python takes seconds.

The only programs are the daemons, the relay and the STUN server. The command line runs in this
process.
"""

from __future__ import annotations

import io
import json
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import Any

from nostrvpn.cli.entry import main
from nostrvpn.endpoint import IPAddress
from nostrvpn.lab.node import COMMAND_TIMEOUT, LabNode
from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.topology import Host

LIMIT = 20.0
# Where a site answers with the asker's address.
SITE_PORT = 80
# Times ten in an emulated machine, where an answer takes a tenth of a second.
ASKING_S = 0.15


class NearNode(LabNode):
    """A node that is talked to without starting a program each time."""

    def attempt(
        self, *arguments: str, timeout: float = COMMAND_TIMEOUT
    ) -> subprocess.CompletedProcess[str]:
        del timeout  # each command has its own
        options = [word for word in self.command if word.startswith("--")]
        out, err = io.StringIO(), io.StringIO()
        with self.namespace.enter(), redirect_stdout(out), redirect_stderr(err):
            code = main([*options, *arguments])
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    def link(self) -> dict[str, Any]:
        """Return the WireGuard link as the kernel shows it; empty if there is none."""
        shown = self.namespace.run("ip", "-d", "-j", "link", "show", "type", "wireguard").stdout
        links = [link for link in json.loads(shown or "[]") if link]
        assert len(links) <= 1
        return dict(links[0]) if links else {}

    def received_bytes(self, key: str) -> int:
        """Return what the device has received from the peer with this WireGuard key."""
        said = self.namespace.run("wg", "show", self.interface, "transfer").stdout
        received = {
            words[0]: int(words[1]) for line in said.splitlines() if (words := line.split())
        }
        return received[key]

    def asked(self, address: IPAddress) -> str:
        """Return whom a site sees when a program here asks it now; empty: nobody."""
        with self.namespace.enter():
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            sock = socket.socket(family)
        with sock, suppress(OSError):
            sock.settimeout(patient(ASKING_S))
            sock.connect((str(address), SITE_PORT))
            return sock.recv(100).decode().strip()
        return ""

    def seen_as(self, site: Host) -> set[str]:
        """Return the addresses that a site sees this node's host as, of both IP versions at once."""
        assert site.address6 is not None
        with ThreadPoolExecutor(2) as both:
            return set(both.map(self.asked, (site.address, site.address6)))

    def wait_seen(self, site: Host, *hosts: object) -> None:
        """Wait until the site sees it as these addresses and no others."""
        wanted = {str(address) for address in hosts}
        wait_until(
            lambda: self.seen_as(site) == wanted,
            f"to be seen as {wanted}",
            timeout=LIMIT,
            evidence=lambda: f"{self.name} is seen as {self.seen_as(site)}",
        )


_started = time.monotonic()


def told(step: str) -> None:
    """Say how long the test has run; pytest shows it when the test fails."""
    print(f"{time.monotonic() - _started:6.1f} s  {step}")  # noqa: T201


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return what differs between two looks at a machine: what there is no more, what is new."""
    return {
        key: (
            [item for item in before[key] if item not in after[key]],
            [item for item in after[key] if item not in before[key]],
        )
        for key in before
        if before[key] != after[key]
    }
