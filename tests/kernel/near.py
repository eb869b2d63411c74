"""Nodes and words for an emulated machine, where each start of Python takes seconds.

The only programs are the daemons, the relay and the STUN server. The command line runs in this
process, and statuses are asked for at the control sockets.
"""

from __future__ import annotations

import io
import json
import subprocess
import time
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from nostrvpn.cli.entry import main
from nostrvpn.control.client import ControlClient, DaemonNotRunning
from nostrvpn.errors import UserError
from nostrvpn.lab.node import COMMAND_TIMEOUT, LabNode, Status
from nostrvpn.lab.patience import patient

CONTROL_TIMEOUT = 10.0


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

    def _try_status(self) -> Status | None:
        if not self.process.alive:
            raise UserError(f"the daemon of {self.name} ended early", self.process.tail())
        client = ControlClient(self.environment["NOSTRVPN_RUNTIME_DIR"] + "/control.sock")
        try:
            self._status = client.call("status", timeout=patient(CONTROL_TIMEOUT))
        except DaemonNotRunning:
            self._status = None
        return self._status

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
