"""One daemon per state directory: an flock that the kernel drops when its holder dies."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from nostrvpn.errors import SystemRefused
from nostrvpn.io.durable_file import make_private_directory, refusal

__all__ = ["AlreadyRunning", "StateLock", "lock_holder"]

# lock_holder() below holds the lock for microseconds; a daemon that starts just then tries again.
_ATTEMPTS = 10
_PAUSE = 0.02


class AlreadyRunning(SystemRefused):
    """Another daemon works on this state directory."""

    code = "already_running"


class StateLock:
    """The exclusive lock on a state directory, held until ``release`` or the process's end."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock and write our pid into it; raise AlreadyRunning naming the holder's pid."""
        make_private_directory(self._path.parent)
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise refusal("open the lock", self._path, error) from error
        for attempt in range(_ATTEMPTS):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if not isinstance(error, BlockingIOError):
                    os.close(descriptor)
                    raise refusal("take the lock", self._path, error) from error
                if attempt + 1 < _ATTEMPTS:
                    time.sleep(_PAUSE)
        else:
            holder = _read_pid(descriptor)
            os.close(descriptor)
            who = f"pid {holder}" if holder else "another process"
            raise AlreadyRunning(
                f"a daemon already runs on {self._path.parent} ({who})",
                "stop it with: nostrvpn down; or give this one another --state-dir",
            )
        self._descriptor = descriptor
        # Who holds it is only shown: a full disk keeps no daemon from starting.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back; the file stays, since removing it would race with a new holder."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def lock_holder(path: str) -> int | None:
    """Return the pid of the daemon that holds a lock, 0 if it is unknown, None if nobody does."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refusal("read the lock", path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_pid(descriptor)
    else:
        return None
    finally:
        os.close(descriptor)


def _read_pid(descriptor: int) -> int:
    text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    return int(text) if text.isdigit() else 0
