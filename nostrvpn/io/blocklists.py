"""Blocklists of an exit, from files: read when they change, within bounds. Blocking."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from nostrvpn.exits.blocklist import MAX_NAMES, Blocklist, listed_names

__all__ = ["Blocklists"]

# The largest public lists have some 30 MB.
_MAX_BYTES = 64 << 20
_MAX_LINE = 4096
_KEY_BYTES = 16

_Look = tuple[int, int, int]


class Blocklists:
    """``current`` is what was read last; ``problem`` says in words what could not be, or is empty."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = [Path(path) for path in paths]
        self._seen: list[_Look | None] | None = None
        self._key = os.urandom(_KEY_BYTES)
        self.current = Blocklist()
        self.problem = ""

    def refresh(self) -> bool:
        """Read the files again if one has changed; return whether that was so.

        Where one cannot be read, what was read before stays, of all of them.
        """
        seen = [_look(path) for path in self._paths]
        if seen == self._seen:
            return False
        self._seen = seen
        unread: list[str] = []
        made = Blocklist(self._names(unread), self._key)
        if unread:
            self.problem = f"a blocklist cannot be read: {unread[0]}"
            if len(self.current):
                return False
        else:
            self.problem = f"only {MAX_NAMES} blocked names are kept" if made.is_cut else ""
        self.current = made
        return True

    def _names(self, unread: list[str]) -> Iterator[str]:
        for path in self._paths:
            try:
                yield from listed_names(_lines(path))
            except OSError as exc:
                unread.append(f"{path}: {exc.strerror or exc}")


def _look(path: Path) -> _Look | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _lines(path: Path) -> Iterator[str]:
    # A FIFO would keep us waiting.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "not a file")
        left = _MAX_BYTES
        while left > 0 and (line := file.readline(_MAX_LINE)):
            left -= len(line)
            yield line.decode("utf-8", "replace")
    if left <= 0:
        raise OSError(0, f"more than {_MAX_BYTES >> 20} MB")
