"""A nostrvpn node in the lab: the real daemon as a subprocess, and its real command line.

Each node has its own state, runtime and configuration directory and its own interface name, so many
nodes run on one machine as they would on many. Interface names differ between all labs, because the
control sockets of userspace WireGuard (/run/wireguard/NAME.sock) are shared by all namespaces.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from nostrvpn.config.options import Options
from nostrvpn.control.client import ControlClient
from nostrvpn.errors import NostrvpnError, UserError
from nostrvpn.lab.leftovers import WIREGUARD_SOCKETS
from nostrvpn.lab.namespaces import Namespace
from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.processes import Process, python_module

__all__ = ["STATUS_POLL", "LabNode", "Status"]

Status = dict[str, Any]
"""What ``nostrvpn status --json`` prints."""

COMMAND_TIMEOUT = 30.0
START_TIMEOUT = 15.0
CONTROL_TIMEOUT = 10.0
STATUS_POLL = 0.1
"""Seconds between two looks at the status: a daemon works for each, and CPUs are shared."""


class LabNode:
    """One node; ``start`` runs its daemon in the foreground of a child process."""

    def __init__(
        self,
        namespace: Namespace,
        *,
        directory: Path,
        interface: str,
        relays: tuple[str, ...],
        stun: tuple[str, ...],
        settings: Mapping[str, object],
    ) -> None:
        self.name = namespace.label
        self.namespace = namespace
        self.directory = directory
        self.interface = interface
        self.config = directory / "config.yaml"
        self._options = Options(
            state_dir=str(directory / "state"),
            runtime_dir=str(directory / "run"),
            config=str(self.config),
            interface=interface,
        )
        self.log = directory / "daemon.log"
        self.npub = ""
        self._process: Process | None = None
        self._status: Status | None = None
        directory.mkdir()
        configuration: dict[str, object] = {
            "name": self.name,
            "relays": {"urls": list(relays)},
            "stun": list(stun),
            # Labs measure what carries data; those about permissions set this back.
            "permissions": {"inbound": "all"},
        }
        _merge(configuration, settings)
        self.config.write_text(yaml.safe_dump(configuration, sort_keys=False))
        self.prepare()

    def prepare(self) -> None:
        """Make what such a node needs on its machine besides its directory."""

    def __repr__(self) -> str:
        return f"LabNode({self.name!r}, {self.interface!r})"

    @property
    def command(self) -> tuple[str, ...]:
        """The ``nostrvpn`` command line of this node, without a subcommand."""
        return python_module(
            "nostrvpn",
            f"--state-dir={self._options.state_dir}",
            f"--runtime-dir={self._options.runtime_dir}",
            f"--config={self._options.config}",
            f"--interface={self.interface}",
        )

    def daemon_command(self) -> tuple[str, ...]:
        """What ``start`` runs."""
        return (*self.command, "daemon")

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that select this node, in place of the options of ``command``."""
        return {
            "NOSTRVPN_STATE_DIR": self._options.state_dir,
            "NOSTRVPN_RUNTIME_DIR": self._options.runtime_dir,
            "NOSTRVPN_CONFIG": self._options.config,
            "NOSTRVPN_INTERFACE": self.interface,
        }

    @property
    def process(self) -> Process:
        """The running (or last) daemon."""
        if self._process is None:
            raise UserError(f"the daemon of {self.name} was not started")
        return self._process

    def attempt(
        self, *arguments: str, timeout: float = COMMAND_TIMEOUT
    ) -> subprocess.CompletedProcess[str]:
        """Run a command and return how it ended, whatever the exit code."""
        return self.namespace.run(*self.command, *arguments, check=False, timeout=timeout)

    def cli(self, *arguments: str, timeout: float = COMMAND_TIMEOUT) -> str:
        """Run a command and return its standard output; raise UserError when it fails."""
        done = self.attempt(*arguments, timeout=timeout)
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            raise UserError(
                f"{self.name}: nostrvpn {arguments[0]} failed ({done.returncode}): {said}",
            )
        return done.stdout

    def query(self, *arguments: str, timeout: float = COMMAND_TIMEOUT) -> Any:
        """Run a command with ``--json`` and return what it printed, parsed."""
        text = self.cli(*arguments, "--json", timeout=timeout)
        try:
            return json.loads(text)
        except ValueError as exc:
            raise UserError(f"{self.name}: {arguments[0]} printed no JSON: {text[:200]!r}") from exc

    def ask(self, command: str, **arguments: object) -> Any:
        """Return the daemon's answer to a control command, as ``query`` does but for its program.

        For waits: to start a program for each look would be most of what a lab's machine does.
        """
        client = ControlClient(self._options.control_socket)
        return client.call(command, timeout=patient(CONTROL_TIMEOUT), **arguments)

    def init(self) -> str:
        """Create the node's identity and return its npub."""
        self.npub = str(self.query("init")["npub"])
        return self.npub

    def start(self, *, timeout: float = START_TIMEOUT, **environment: str) -> Process:
        """Start the daemon and return when it answers."""
        self._process = Process(
            self.namespace,
            self.daemon_command(),
            log=self.log,
            environment={"PYTHONUNBUFFERED": "1", **environment},
        )
        wait_until(
            lambda: self._try_status() is not None,
            f"the daemon of {self.name} to answer",
            timeout=timeout,
            evidence=self._last_seen,
            poll=STATUS_POLL,
        )
        return self._process

    def stop(self) -> int:
        """Stop the daemon with SIGTERM; return its exit code."""
        return self.process.stop()

    def kill(self) -> None:
        """Stop the daemon with SIGKILL: what it made in the kernel stays."""
        self.process.kill()

    def restart(self) -> Process:
        """Stop the daemon (if it runs) and start it again."""
        if self.process.alive:
            self.stop()
        return self.start()

    def status(self) -> Status:
        """Return ``status --json``."""
        status: Status = self.query("status")
        return status

    def wait_for(
        self, predicate: Callable[[Status], object], what: str, *, timeout: float = 20.0
    ) -> Status:
        """Return the first status that satisfies ``predicate``; raise LabTimeout with the log."""

        def satisfied() -> Status | None:
            status = self._try_status()
            return status if status is not None and predicate(status) else None

        return wait_until(
            satisfied,
            f"{self.name}: {what}",
            timeout=timeout,
            evidence=self._last_seen,
            poll=STATUS_POLL,
        )

    def wait_for_relay(self, *, timeout: float = 20.0) -> Status:
        """Return the status once at least one relay is connected."""
        return self.wait_for(
            lambda status: any(relay["state"] == "connected" for relay in status["relays"]),
            "a connected relay",
            timeout=timeout,
        )

    def wait_for_peer(
        self, npub: str, *, path: str | None = None, timeout: float = 20.0
    ) -> dict[str, Any]:
        """Return the peer's entry in the status once it is there (and takes ``path``, if given)."""

        def entry(status: Status) -> dict[str, Any] | None:
            found = (p for p in status["peers"] if p["npub"] == npub)
            return next((p for p in found if path in (None, p["path"])), None)

        what = f"{npub[:12]}… as a peer" + (f" with a {path} path" if path else "")
        peer = entry(self.wait_for(entry, what, timeout=timeout))
        assert peer is not None
        return peer

    def report(self) -> str:
        """Return the daemon's last log lines, for an error message."""
        if self._process is None:
            return f"{self.name}: the daemon was not started"
        state = "running" if self.process.alive else f"ended ({self.process.exit_code})"
        return f"{self.name}: daemon {state}; {self.process.tail()}"

    def close(self) -> None:
        """End the daemon, and remove the socket of a userspace WireGuard that outlives it."""
        if self._process is not None and self.process.alive:
            self.stop()
        for directory in WIREGUARD_SOCKETS:
            with contextlib.suppress(FileNotFoundError):
                (directory / f"{self.interface}.sock").unlink()

    def _last_seen(self) -> str:
        """What the last status said, in a line."""
        status = self._status or {}
        peers = [(p.get("name"), p.get("state"), p.get("path")) for p in status.get("peers", [])]
        problems = [problem.get("code") for problem in status.get("problems", [])]
        return f"{self.name}: peers {peers}, problems {problems}"

    def _try_status(self) -> Status | None:
        if not self.process.alive:
            last = self.process.output().strip().rpartition("\n")[2]
            raise UserError(f"the daemon of {self.name} ended early: {last}")
        try:
            self._status = self.ask("status")
        except NostrvpnError:
            self._status = None
        return self._status


def _merge(into: dict[str, object], settings: Mapping[str, object]) -> None:
    """Overlay ``settings``, mapping by mapping."""
    for key, value in settings.items():
        present = into.get(key)
        if isinstance(present, dict) and isinstance(value, Mapping):
            _merge(present, value)
        else:
            into[key] = value
