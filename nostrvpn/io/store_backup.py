"""The store's backup: one text file with its own digest, replaced whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from nostrvpn.io.durable_file import refusal, write_durably

__all__ = ["Rows", "backup_path", "delete_remains", "read_backup", "write_backup"]

_FORMAT = 1

Rows = dict[tuple[str, str], str]
"""Records by space and key, as JSON text."""


def backup_path(path: Path) -> Path:
    """Return the path of the backup that belongs to a database."""
    return path.with_name(path.name + ".backup")


def write_backup(path: Path, count: int, rows: Rows) -> None:
    """Replace the backup, durably; ``count`` is the number of changes it includes."""
    records = [[space, key, text] for (space, key), text in sorted(rows.items())]
    body = json.dumps({"format": _FORMAT, "count": count, "records": records})
    data = f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}\n".encode()
    write_durably(backup_path(path), data, mode=0o600, replace=True)


def read_backup(path: Path) -> tuple[int, Rows] | None:
    """Return the backup's change count and records; None if there is none or it is damaged."""
    try:
        head, _, body = backup_path(path).read_bytes().partition(b"\n")
        body = body.rstrip(b"\n")
        if head.decode("ascii", "replace") != hashlib.sha256(body).hexdigest():
            return None
        content = json.loads(body)
        if content["format"] != _FORMAT:
            return None
        return int(content["count"]), {
            (space, key): text for space, key, text in content["records"]
        }
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refusal("read", backup_path(path), error) from error


def delete_remains(path: Path) -> None:
    """Delete what damaged databases and interrupted writes have left beside a database."""
    for pattern in (f"{path.name}.damaged-*", f".{path.name}.*new"):
        for remains in path.parent.glob(pattern):
            remains.unlink(missing_ok=True)
