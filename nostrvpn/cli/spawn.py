"""Start a detached daemon and watch it come up; see one down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nostrvpn.cli.relay_options import relay_command_line
from nostrvpn.config.options import JOIN_VARIABLE, Options
from nostrvpn.control.client import ControlClient, DaemonNotRunning
from nostrvpn.errors import NostrvpnError, SystemRefused
from nostrvpn.io.durable_file import make_private_directory, refusal
from nostrvpn.io.lock import lock_holder
from nostrvpn.io.privilege import as_owner

__all__ = [
    "daemon_command_line",
    "start_detached",
    "stop_daemon",
    "wait_answering",
    "wait_until",
]


# How often a wait looks again, seconds: a person does not feel it, a processor hardly.
_POLL = 0.05
# What is read of a log to explain a failed start.
_LOG_TAIL = 16 * 1024


def daemon_command_line(options: Options) -> list[str]:
    """Return the command that runs the daemon of these options; it never holds a secret."""
    line = [sys.executable, "-m", "nostrvpn"]
    line += ["--state-dir", options.state_dir, "--runtime-dir", options.runtime_dir]
    line += ["--config", options.config, "--network", options.network]
    if options.interface:
        line += ["--interface", options.interface]
    line += ["daemon", "--log-file", options.log_path]
    if options.name:
        line += ["--name", options.name]
    for relay in options.relays:
        line += ["--relay", relay]
    return line + relay_command_line(options.relay)


def start_detached(options: Options) -> tuple[subprocess.Popen[bytes], int]:
    """Start the daemon in a session of its own; return it and its log's size before the start."""
    make_private_directory(options.home)
    # A link by which to join is a secret, and the daemon is told it otherwise.
    environment = {name: value for name, value in os.environ.items() if name != JOIN_VARIABLE}
    try:
        with as_owner(options.home):
            log = Path(options.log_path).open("ab")  # noqa: SIM115  # closed below
        with log:
            size = log.seek(0, os.SEEK_END)  # before the start: the child shares this position
            process = subprocess.Popen(
                daemon_command_line(options),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=environment,
                start_new_session=True,
            )
            return process, size
    except OSError as error:
        raise refusal("write the log", options.log_path, error) from error


def wait_answering(
    options: Options, process: subprocess.Popen[bytes], log_start: int, deadline: float
) -> Any:
    """Return the first status of a starting daemon; raise with its own words if it ends instead."""
    client = ControlClient(options.control_socket)
    while True:
        try:
            return client.call("status", timeout=max(1.0, deadline - time.monotonic()))
        except DaemonNotRunning:
            pass
        if process.poll() is not None:
            raise _explain_end(options, process.returncode, log_start)
        if time.monotonic() > deadline:
            raise SystemRefused(
                f"the daemon (pid {process.pid}) does not answer yet", f"see {options.log_path}"
            )
        time.sleep(_POLL)


def wait_until(condition: Callable[[], bool], deadline: float) -> bool:
    """Wait until a condition holds; return False if it does not by ``deadline`` (monotonic)."""
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL)
    return True


def stop_daemon(options: Options, timeout: float) -> bool:
    """Stop the daemon and wait until it has gone; return False if none was running.

    A daemon that does not answer in half the time is sent SIGTERM, as a service manager would.
    """
    deadline = time.monotonic() + timeout
    holder = lock_holder(options.lock_path)
    try:
        ControlClient(options.control_socket).call("stop", timeout=timeout / 2)
    except DaemonNotRunning:
        if holder is None:
            return False
        _terminate(holder)
    except SystemRefused:
        if not holder:
            raise
        _terminate(holder)
    if wait_until(lambda: lock_holder(options.lock_path) is None, deadline):
        return True
    raise SystemRefused(
        f"the daemon (pid {lock_holder(options.lock_path)}) did not stop within {timeout:g} s",
        "kill it with SIGKILL, then: nostrvpn cleanup",
    )


def _terminate(pid: int) -> None:
    if pid <= 1:
        raise SystemRefused("a daemon runs, but its pid is unknown", "find it with: ps")
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise SystemRefused(f"you may not stop pid {pid}", "run it as root (sudo)") from error


def _explain_end(options: Options, code: int, log_start: int) -> NostrvpnError:
    """Return the error a daemon wrote last before it ended, as our own."""
    try:
        with Path(options.log_path).open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(min(log_start, size), size - _LOG_TAIL))
            lines = log.read().decode("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    text = next((line for line in reversed(lines) if line.startswith("error: ")), "")
    hint = next((line for line in reversed(lines) if line.startswith("hint: ")), "")
    if text:
        return SystemRefused(text.removeprefix("error: "), hint.removeprefix("hint: "))
    ended = f"by signal {-code}" if code < 0 else f"with code {code}"
    last = f": {lines[-1][:200]}" if lines else ""
    return SystemRefused(f"the daemon ended {ended}{last}", f"see {options.log_path}")
