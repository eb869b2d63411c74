"""Nodes and words for an emulated machine, where each start of Python takes seconds.

The only programs are the daemons, the relay and the STUN server. The command line runs in this
process.
"""

from __future__ import annotations

import io
import json
import subprocess
import time
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from nostrvpn.cli.entry import main
from nostrvpn.lab.node import COMMAND_TIMEOUT, LabNode


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

    def received_bytes(self) -> int:
        """Return what the device has received from its only peer."""
        said = self.namespace.run("wg", "show", self.interface, "transfer").stdout
        return int(said.split()[1])


_started = time.monotonic()


def told(step: str) -> None:
    """Say how long the test has run; pytest shows it when the test fails."""
    print(f"{time.monotonic() - _started:6.1f} s  {step}")  # noqa: T201
