"""The store's backup: one text file, whole and under its own digest; behind it what changed since.

A change is one line under a digest that also is of all before it. So keeping up costs as much as the
change, not as much as the backup; a line that a crash cut off is none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from nostrvpn.io.durable_file import refusal, write_durably
from nostrvpn.io.privilege import as_owner

__all__ = ["Backup", "Rows", "backup_path", "delete_remains", "read_backup"]

_FORMAT = 1
# So many bytes of changes are added at least before all is written anew.
_LEAST_ADDED = 64 * 1024

Rows = dict[tuple[str, str], str]
"""Records by space and key, as JSON text."""


def backup_path(path: Path) -> Path:
    """Return the path of the backup that belongs to a database."""
    return path.with_name(path.name + ".backup")


class Backup:
    """The backup of the database at ``path``, written by this process."""

    def __init__(self, path: Path) -> None:
        self._path = backup_path(path)
        self._digest = ""  # of what is in the file, if this process wrote it
        self._room = 0

    def write(self, count: int, rows: Rows) -> None:
        """Replace the backup, durably; ``count`` is the number of changes it includes."""
        self._digest = ""
        records = [[space, key, text] for (space, key), text in sorted(rows.items())]
        body = json.dumps({"format": _FORMAT, "count": count, "records": records})
        digest = hashlib.sha256(body.encode()).hexdigest()
        data = f"{digest}\n{body}\n".encode()
        write_durably(self._path, data, mode=0o600, replace=True)
        self._digest, self._room = digest, max(_LEAST_ADDED, len(data))

    def follow(self, count: int, changes: Mapping[tuple[str, str], str | None]) -> bool:
        """Add a change, durably (None: a record that is gone); False: all is to be written anew."""
        text = json.dumps([count, [[space, key, text] for (space, key), text in changes.items()]])
        line = f"{_next(self._digest, text)} {text}\n".encode()
        if not self._digest or len(line) > self._room:
            return False
        digest, self._digest = self._digest, ""
        try:
            with as_owner(self._path.parent):
                flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
                with os.fdopen(os.open(self._path, flags), "ab") as file:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
        except OSError:
            return False
        self._digest, self._room = _next(digest, text), self._room - len(line)
        return True


def _next(digest: str, text: str) -> str:
    return hashlib.sha256(f"{digest} {text}".encode()).hexdigest()


def read_backup(path: Path) -> tuple[int, Rows] | None:
    """Return the backup's change count and records; None if there is none or it is damaged."""
    try:
        head, body, *more = backup_path(path).read_bytes().split(b"\n")
        if head.decode("ascii", "replace") != hashlib.sha256(body).hexdigest():
            return None
        content = json.loads(body)
        if content["format"] != _FORMAT:
            return None
    except (FileNotFoundError, ValueError):  # less than two lines are no backup
        return None
    except OSError as error:
        raise refusal("read", backup_path(path), error) from error
    count = int(content["count"])
    rows: Rows = {(space, key): text for space, key, text in content["records"]}
    digest = head.decode()
    for line in more:
        said, _, change = line.decode("utf-8", "replace").partition(" ")
        digest = _next(digest, change)
        if said != digest:
            break
        count, changed = json.loads(change)
        for space, key, text in changed:
            if text is None:
                rows.pop((space, key), None)
            else:
                rows[space, key] = text
    return count, rows


def delete_remains(path: Path) -> None:
    """Delete what damaged databases and interrupted writes have left beside a database."""
    for pattern in (f"{path.name}.damaged-*", f".{path.name}.*new"):
        for remains in path.parent.glob(pattern):
            remains.unlink(missing_ok=True)
