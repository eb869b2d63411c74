"""One daemon per state directory, and the lock of a killed one is free at once."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nostrvpn.errors import SystemRefused
from nostrvpn.io.lock import AlreadyRunning, StateLock, lock_holder

HOLDER = """
import sys, time
from nostrvpn.io.lock import StateLock
lock = StateLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(30)
"""


def test_acquire_release_and_look(tmp_path: Path) -> None:
    path = str(tmp_path / "state" / "daemon.lock")
    assert lock_holder(path) is None
    lock = StateLock(path)
    lock.acquire()
    assert lock_holder(path) == os.getpid()
    lock.release()
    lock.release()
    assert lock_holder(path) is None
    again = StateLock(path)
    again.acquire()
    again.release()


def test_a_second_daemon_is_refused_and_sigkill_frees(tmp_path: Path) -> None:
    path = str(tmp_path / "daemon.lock")
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(AlreadyRunning, match=f"pid {holder.pid}") as caught:
            StateLock(path).acquire()
        assert "nostrvpn down" in caught.value.hint
        assert lock_holder(path) == holder.pid
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(timeout=10)
        holder.stdout.close()
    assert lock_holder(path) is None
    lock = StateLock(path)
    lock.acquire()
    lock.release()


def test_a_look_at_the_lock_does_not_stop_a_daemon_from_starting(tmp_path: Path) -> None:
    path = str(tmp_path / "daemon.lock")
    looker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\nfrom nostrvpn.io.lock import lock_holder\n"
            "print('ready', flush=True)\nwhile True: lock_holder(sys.argv[1])",
            path,
        ],
        stdout=subprocess.PIPE,
    )
    assert looker.stdout is not None
    try:
        assert looker.stdout.readline() == b"ready\n"
        for _ in range(50):
            lock = StateLock(path)
            lock.acquire()
            lock.release()
    finally:
        looker.kill()
        looker.wait(timeout=10)
        looker.stdout.close()


def test_a_full_disk_keeps_nobody_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("nostrvpn.io.lock.os.pwrite", full)
    path = str(tmp_path / "daemon.lock")
    lock = StateLock(path)
    lock.acquire()
    assert lock_holder(path) == 0
    lock.release()
    assert lock_holder(path) is None


def test_a_file_system_without_locks_is_said_and_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("nostrvpn.io.lock.fcntl.flock", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SystemRefused, match="lock"):
        StateLock(str(tmp_path / "daemon.lock")).acquire()
    assert len(os.listdir("/proc/self/fd")) == before
