"""One network namespace as an object: create it, run in it, enter it, configure it.

Every helper echoes the command that it stands for when the lab is verbose, so that a run can be
followed, and repeated by hand.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, ClassVar, Protocol

from nostrvpn.errors import SystemRefused
from nostrvpn.lab.patience import LabTimeout, patient, wait_until

__all__ = ["Child", "Echo", "Forks", "Namespace", "run_command"]

Echo = Callable[[str], None]
"""Receives one line per command that the lab runs."""

NETNS_DIRECTORY = Path("/run/netns")
COMMAND_TIMEOUT = 20.0
CLONE_NEWNET = 0x40000000
"""From linux/sched.h."""


class Child(Protocol):
    """A running program: what ``subprocess.Popen`` says of it."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...


class Forks(Protocol):
    """An interpreter that forks the agent's programs faster than they could be started."""

    def runs(self, argv: tuple[str, ...]) -> bool:
        """Whether this command line is one that it can run."""

    def popen(
        self,
        argv: tuple[str, ...],
        *,
        netns: Path,
        files: tuple[int, int, int],
        environment: Mapping[str, str],
    ) -> Child:
        """Start it in a network namespace, as ``ip netns exec`` would; ``files``: 0, 1, 2."""

    def run(
        self, argv: tuple[str, ...], *, netns: Path, stdin: str | None, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end; ``subprocess.TimeoutExpired`` if it takes longer (seconds)."""


def run_command(
    argv: tuple[str, ...], *, stdin: str | None = None, check: bool = True, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; raise SystemRefused if it fails and ``check`` is set."""

    def run(allowed: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=allowed,
        )

    return _finished(argv, run, check=check, timeout=timeout)


def _finished(
    argv: tuple[str, ...],
    run: Callable[[float], subprocess.CompletedProcess[str]],
    *,
    check: bool,
    timeout: float,
) -> subprocess.CompletedProcess[str]:
    try:
        done = run(patient(timeout))
    except FileNotFoundError as exc:
        raise SystemRefused(
            f"the lab needs the program {argv[0]!r}",
            "Install iproute2, nftables, tcpdump and iputils-ping.",
        ) from exc
    except subprocess.TimeoutExpired as exc:
        raise LabTimeout(f"{shlex.join(argv)!r} took longer than {exc.timeout:.0f} s") from exc
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise SystemRefused(f"{shlex.join(argv)!r} failed ({done.returncode}): {said}")
    return done


class Namespace:
    """A named network namespace; ``label`` is its short name (``laptop-a``) for people."""

    forks: ClassVar[Forks | None] = None
    """What the agent's own programs are forked from; without it they are started like all others."""

    def __init__(self, name: str, *, label: str = "", echo: Echo | None = None) -> None:
        self.name = name
        self.label = label or name
        self._echo = echo

    def __repr__(self) -> str:
        return f"Namespace({self.name!r})"

    @property
    def path(self) -> Path:
        """The file that names the namespace for ``setns`` and ``nsenter --net=``."""
        return NETNS_DIRECTORY / self.name

    def create(self) -> None:
        """Create the namespace with its loopback up."""
        self._say(f"ip netns add {self.name}")
        run_command(("ip", "netns", "add", self.name), timeout=COMMAND_TIMEOUT)
        self.ip("link set lo up")

    def delete(self) -> None:
        """Kill what still runs inside, then delete the namespace; does nothing when it is gone."""
        if not self.path.exists():
            return
        self.kill_processes()
        self._say(f"ip netns del {self.name}")
        argv = ("ip", "netns", "del", self.name)
        done = run_command(argv, check=False, timeout=COMMAND_TIMEOUT)
        if self.path.exists():  # two labs may sweep the same dead one at the same time
            raise SystemRefused(f"cannot delete {self.name}: {done.stderr.strip()}")

    def pids(self) -> list[int]:
        """Return the processes whose network namespace this is, without our own."""
        done = run_command(("ip", "netns", "pids", self.name), check=False, timeout=COMMAND_TIMEOUT)
        return [int(pid) for pid in done.stdout.split() if int(pid) != os.getpid()]

    def kill_processes(self) -> None:
        """SIGKILL every process inside, and wait until they are gone."""
        pids = self.pids()
        for pid in pids:
            self._say(f"kill -9 {pid}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if pids:
            wait_until(lambda: not self.pids(), f"the processes of {self.name} to end")

    def run(
        self,
        *argv: str,
        check: bool = True,
        timeout: float = COMMAND_TIMEOUT,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside to its end; raise SystemRefused if it fails and ``check`` is set."""
        self._say(shlex.join(argv))
        if self.forks is None or not self.forks.runs(argv):
            return run_command(self._inside(argv), stdin=stdin, check=check, timeout=timeout)
        run = partial(self.forks.run, argv, netns=self.path, stdin=stdin)
        return _finished(argv, lambda allowed: run(timeout=allowed), check=check, timeout=timeout)

    def popen(
        self,
        argv: tuple[str, ...],
        *,
        output: IO[bytes],
        environment: dict[str, str] | None = None,
    ) -> Child:
        """Start a program inside, in its own session, both outputs to ``output``."""
        self._say(shlex.join(argv) + " &")
        variables = {**os.environ, **(environment or {})}
        if self.forks is not None and self.forks.runs(argv):
            with Path(os.devnull).open("rb") as nothing:
                files = (nothing.fileno(), output.fileno(), output.fileno())
                return self.forks.popen(argv, netns=self.path, files=files, environment=variables)
        return subprocess.Popen(
            self._inside(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=variables,
        )

    def ip(self, *commands: str, family: int = 4) -> None:
        """Run ``ip`` commands inside (without the leading ``ip``), all in one batch.

        ``family`` 6 is for commands without an address to tell by, such as most of ``ip rule``.
        """
        for command in commands:
            self._say(f"ip {'-6 ' if family == 6 else ''}{command}")
        self._configure(
            ("ip", *(("-6",) if family == 6 else ()), "-batch", "-"), "\n".join(commands) + "\n"
        )

    def nft(self, ruleset: str) -> None:
        """Load an nftables ruleset inside, atomically."""
        for line in ruleset.strip().splitlines():
            self._say(f"nft: {line}")
        self._configure(("nft", "-f", "-"), ruleset)

    def sysctl(self, values: Mapping[str, int], *, if_present: bool = False) -> None:
        """Set sysctls inside, named below ``net/`` with slashes: ``{"ipv4/ip_forward": 1}``.

        ``if_present`` skips those that this kernel (with its modules loaded so far) lacks.
        """
        with self.enter():
            for key, value in values.items():
                path = Path("/proc/sys/net", key)
                if if_present and not path.exists():
                    continue
                self._say(f"sysctl -w net/{key}={value}")
                try:
                    path.write_text(str(value))
                except OSError as exc:
                    raise SystemRefused(f"cannot set {path}: {exc.strerror}") from exc

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """Move the calling thread inside; a socket opened there keeps this namespace afterwards."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            inside = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _setns(inside)
            finally:
                os.close(inside)
            try:
                yield
            finally:
                _setns(home)
        finally:
            os.close(home)

    def _configure(self, argv: tuple[str, ...], stdin: str) -> None:
        # A child is born in its parent's namespace. This spares what ``ip netns exec`` does besides
        # (its own mount namespace and /sys), which is most of the time of building a lab.
        with self.enter():
            run_command(argv, stdin=stdin, timeout=COMMAND_TIMEOUT)

    def _inside(self, argv: tuple[str, ...]) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name, *argv)

    def _say(self, line: str) -> None:
        if self._echo:
            self._echo(f"[{self.label}] {line}")


_libc = ctypes.CDLL(None, use_errno=True)


def _setns(descriptor: int) -> None:
    """Move the calling thread (os.setns exists only from Python 3.12)."""
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise SystemRefused(
            f"cannot enter a network namespace: {os.strerror(number)}", "The lab needs root."
        )
