"""Fixtures of every suite: network namespaces of our own, and a loud word on what could not run.

A test that needs something of the machine (root, the wireguard module) and does not find it never
passes in silence: without root it fails; without the kernel module it is skipped and listed at the
end of the run, and with ``NOSTRVPN_STRICT=1`` it fails.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from nostrvpn.lab.namespaces import Namespace
from tests.warm_python import WarmPython

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
NETNS_DIRECTORY = Path("/run/netns")
# A namespace's work that takes longer than this hangs.
CALL_TIMEOUT_S = 50.0

# In the background of a script it is ignored, and each command of a test would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_missing: dict[str, set[str]] = {}
_numbers = itertools.count()


class Netns:
    """A network namespace of this test, with loopback up. Its name carries the pid."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ip("link", "set", "lo", "up")

    def ip(self, *arguments: str) -> str:
        """Run ``ip`` in the namespace and return what it prints."""
        return run("ip", "-n", self.name, *arguments)

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command in the namespace and return what it prints."""
        return run("ip", "netns", "exec", self.name, *command, check=check)

    def call(self, function: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
        """Call a blocking function in a thread that is in the namespace; return what it returns.

        Only the thread moves: what it opens or starts belongs to the namespace, the test stays.
        """
        results: list[T] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                self._enter()
                results.append(function(*arguments, **keywords))
            except BaseException as exc:  # handed to the caller below
                errors.append(exc)

        thread = threading.Thread(target=work, name=f"in {self.name}", daemon=True)
        thread.start()
        thread.join(CALL_TIMEOUT_S)
        if thread.is_alive():
            raise TimeoutError(f"{function!r} still runs in {self.name}")
        if errors:
            raise errors[0]
        return results[0]

    def _enter(self) -> None:
        # os.setns exists from Python 3.12 on.
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = os.open(NETNS_DIRECTORY / self.name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if libc.setns(descriptor, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"entering {self.name}")
        finally:
            os.close(descriptor)


def run(*command: str, check: bool = True) -> str:
    """Run a command and return its output; a failure shows what it wrote to stderr."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal out single tests where ``-n N --dist loadfile`` does whole files, but for those that share.

    Else a file of long tests is one process's work, long after the others have nothing left to do.
    """
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

    def scope_of(nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return path if _shares(config.rootpath / path) else nodeid

    scheduling = LoadFileScheduling(config, log)
    scheduling._split_scope = scope_of
    return scheduling


@functools.cache
def _shares(file: Path) -> bool:
    """Whether tests of a file share something that is made once."""
    return 'scope="module"' in file.read_text(encoding="utf-8")


@pytest.fixture
def make_netns() -> Iterator[Callable[[], Netns]]:
    """A function that makes network namespaces; all are removed at the end."""
    require_root()
    names: list[str] = []

    def make() -> Netns:
        name = f"nvt{os.getpid()}n{next(_numbers)}"
        run("ip", "netns", "add", name)
        names.append(name)
        return Netns(name)

    yield make
    for name in names:
        _end_processes(name)
        run("ip", "netns", "del", name, check=False)


def _end_processes(netns: str) -> None:
    """End what a test left running: it would keep the namespace alive without its name.

    Politely at first, so that a userspace WireGuard takes its control socket with it.
    """

    def pids() -> set[int]:
        listed = run("ip", "netns", "pids", netns, check=False).split()
        return {int(pid) for pid in listed} - {os.getpid()}

    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + 3
        while pids() and time.monotonic() < deadline:
            time.sleep(0.02)


@pytest.fixture
def netns(make_netns: Callable[[], Netns]) -> Netns:
    """One network namespace."""
    return make_netns()


@pytest.fixture
def interface() -> str:
    """A name for an interface that nobody else on this host uses (control sockets are shared)."""
    return f"nv{os.getpid()}x{next(_numbers)}"


def require_root() -> None:
    """Fail the test if it cannot make network namespaces."""
    if os.geteuid() != 0:
        pytest.fail("needs root: it makes network namespaces (run the tests with sudo)")


def require(is_there: bool, what: str, test: str) -> None:
    """Skip the test, to be listed at the end of the run, if the machine lacks something."""
    if is_there:
        return
    _missing.setdefault(what, set()).add(test)
    if os.environ.get("NOSTRVPN_STRICT"):
        pytest.fail(f"this machine lacks {what}")
    pytest.skip(f"this machine lacks {what}")


@pytest.fixture
def needs(request: pytest.FixtureRequest) -> Callable[[bool, str], None]:
    """``needs(condition, "the kernel module wireguard")`` skips the test loudly."""
    return lambda is_there, what: require(is_there, what, request.node.nodeid)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Name what could not run for want of something, so that nobody takes it for passed."""
    for what, tests in _missing.items():
        terminalreporter.section(
            f"NOT RUN: {len(tests)} tests, this machine lacks {what}", red=True
        )


@pytest.fixture(scope="session")
def warm_python() -> Iterator[None]:
    """The agent's programs in labs are forked from one that has imported it, which is most of a start.

    With ``NOSTRVPN_LAB_COLD=1`` each is started from the disk, as users start it.
    """
    if os.environ.get("NOSTRVPN_LAB_COLD") == "1":
        yield
        return
    Namespace.forks = WarmPython()
    yield
    Namespace.forks.close()
    Namespace.forks = None
