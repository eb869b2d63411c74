"""The processes behind a TUN interface, held so that waiting for them can hit no other process."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["TunOwners"]

# Ours: how long a process may take to die of a signal.
_SIGNAL_TIMEOUT_S = 2.0


class TunOwners:
    """Every process that has the TUN interface open, in this thread's network namespace.

    A process is held by a pidfd from when it was found, so its number cannot be reused under us.
    Make it while the interface exists: afterwards nothing tells who had it.
    """

    def __init__(self, interface: str) -> None:
        self._pidfds: dict[int, int] = {}
        here = os.readlink("/proc/thread-self/ns/net")
        for process in Path("/proc").iterdir():
            if not process.name.isdigit() or int(process.name) == os.getpid():
                continue
            with suppress(OSError):
                pidfd = os.pidfd_open(int(process.name))
                is_owner = False
                try:
                    # A process that ends meanwhile has nothing to read any more.
                    is_owner = _namespace(process) == here and _has_open(process, interface)
                finally:
                    if is_owner:
                        self._pidfds[int(process.name)] = pidfd
                    else:
                        os.close(pidfd)

    def __enter__(self) -> TunOwners:
        return self

    def __exit__(self, *_: object) -> None:
        for pidfd in self._pidfds.values():
            os.close(pidfd)
        self._pidfds.clear()

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes' numbers."""
        return tuple(self._pidfds)

    def wait_gone(self, timeout: float) -> None:
        """Wait for all to exit, for ``timeout`` seconds; then end them, at last by SIGKILL."""
        if self._wait(timeout):
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pidfd in self._pidfds.values():
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, number)
            if self._wait(_SIGNAL_TIMEOUT_S):
                return

    def _wait(self, timeout: float) -> bool:
        waiting = set(self._pidfds.values())
        poll = select.poll()
        for pidfd in waiting:
            poll.register(pidfd, select.POLLIN)
        deadline = time.monotonic() + timeout
        while waiting:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            for pidfd, _ in poll.poll(remaining * 1000):
                poll.unregister(pidfd)
                waiting.discard(pidfd)
        return True


def _namespace(process: Path) -> str:
    return os.readlink(process / "ns" / "net")


def _has_open(process: Path, interface: str) -> bool:
    """Whether a process has a descriptor of /dev/net/tun that is attached to the interface."""
    for descriptor in (process / "fd").iterdir():
        with suppress(OSError):
            # Seen from a container or a chroot, a path may stand before it.
            if not os.readlink(descriptor).endswith("/dev/net/tun"):
                continue
            info = (process / "fdinfo" / descriptor.name).read_text()
            if f"iff:\t{interface}\n" in info:
                return True
    return False
