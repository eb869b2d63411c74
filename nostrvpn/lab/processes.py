"""A child process in a namespace, with a log file, a readiness condition and a sure end."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from nostrvpn.errors import SystemRefused
from nostrvpn.lab.namespaces import Namespace
from nostrvpn.lab.patience import patient, wait_until

__all__ = ["Process", "python_module"]

STOP_SECONDS = 5.0
"""SIGTERM to SIGKILL: an agent takes its interface down in well under a second."""

LOG_TAIL_LINES = 40


def python_module(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the command line that runs one of our modules with this very interpreter."""
    return (sys.executable, "-m", module, *arguments)


class Process:
    """A running program; both its outputs go to ``log``."""

    def __init__(
        self,
        namespace: Namespace,
        argv: tuple[str, ...],
        *,
        log: Path,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.argv = argv
        self.log = log
        self._offset = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self._popen = namespace.popen(argv, output=output, environment=environment)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal, None while it runs."""
        return self._popen.poll()

    def output(self) -> str:
        """Return what this process (not an earlier one with the same log) has written so far."""
        with self.log.open("rb") as file:
            file.seek(self._offset)
            return file.read().decode(errors="replace")

    def tail(self) -> str:
        """Return the last lines of the log, for an error report."""
        lines = self.output().splitlines()[-LOG_TAIL_LINES:]
        return f"{shlex.join(self.argv)} (log {self.log}):\n" + "\n".join(lines)

    def wait_for_text(self, text: str, *, timeout: float = 10.0) -> None:
        """Return when the log contains ``text``; raise if the process ends or time is up."""

        def seen() -> bool:
            if text in self.output():
                return True
            if not self.alive:
                raise SystemRefused(f"a lab process ended early: {self.tail()}")
            return False

        wait_until(seen, f"{text!r} from {self.argv}", timeout=timeout, evidence=self.tail)

    def stop(self) -> int:
        """End it: SIGTERM, and SIGKILL if that does not help in time; return its exit code."""
        self.signal(signal.SIGTERM)
        try:
            return self._popen.wait(patient(STOP_SECONDS))
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """End it with SIGKILL, as a crash would; return its exit code."""
        self.signal(signal.SIGKILL)
        return self._popen.wait(patient(STOP_SECONDS))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process alone; nothing happens when it has already ended."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
