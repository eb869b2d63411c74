"""The node's memory: JSON records in SQLite, durable before ``put`` returns.

What may go wrong, and what then happens:

- SIGKILL or power loss at any moment: SQLite's write-ahead log with ``synchronous=FULL`` keeps
  every record whose ``put`` returned, and no half of one that did not.
- Disk full: ``put`` raises SystemRefused and changes nothing; what was there stays readable.
- A damaged database (SQLite's own check, a digest on every record, and a counter that shows a file
  older than its backup): on ``open`` it is moved aside. A new one is filled from the backup and from
  what is still readable, and ``restored`` tells.

The backup holds the spaces the caller names, those that matter (membership, sequence numbers). It
is written after each change to one of them, so it is never more than one change behind.

What goes from the *secret* spaces is gone from file, log, backup and remains when ``put`` returns.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from nostrvpn.errors import NostrvpnError, SystemRefused
from nostrvpn.io.durable_file import make_private_directory, refusal
from nostrvpn.io.store_backup import Backup, Rows, delete_remains, read_backup

__all__ = ["Record", "Recovery", "Store"]

# "nvpn": tells our databases from others (PRAGMA application_id).
_APPLICATION = 0x6E76706E
_FORMAT = 1
# One record is a roster, a session, a counter: kilobytes. This stops a runaway, not a use.
_MAX_VALUE = 4 * 1024 * 1024
# Pages of 4 KiB in the log before it is written back: the state itself is about that large.
_LOG_PAGES = 100
_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_FORMAT};
CREATE TABLE record (
  space TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, digest BLOB NOT NULL,
  PRIMARY KEY (space, key)
) WITHOUT ROWID, STRICT;
CREATE TABLE change (only INTEGER PRIMARY KEY CHECK (only = 1), count INTEGER NOT NULL) STRICT;
INSERT INTO change VALUES (1, 0);
"""


@dataclass(frozen=True, slots=True)
class Record:
    """One record: ``value`` is anything JSON can say, and None removes the record."""

    space: str
    key: str
    value: object = field(repr=False)  # invites and sessions hold secrets


@dataclass(frozen=True, slots=True)
class Recovery:
    """What happened when a damaged database was replaced. Counts are records."""

    reason: str
    moved_to: str
    from_backup: int
    salvaged: int

    def __str__(self) -> str:
        return (
            f"the state database was damaged ({self.reason}); {self.from_backup} records came back from "
            f"the backup, {self.salvaged} from itself; until a key changes it is kept as {self.moved_to}"
        )


class _Damage(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Store:
    """An open database, for one process at a time; calls from several threads are serialised."""

    def __init__(
        self,
        path: Path,
        backup_spaces: frozenset[str],
        secret_spaces: frozenset[str],
        recovery: Recovery | None,
    ) -> None:
        """Use ``Store.open``; this takes a path whose file is known to be sound."""
        self._path = path
        self._backup_spaces = backup_spaces
        self._secret_spaces = secret_spaces
        self._is_unclean = False
        self._lock = Lock()
        self._connection = _connect(path)
        self._backup = Backup(path)
        self.recovery = recovery
        self.backup_problem: str | None = None

    @classmethod
    def open(
        cls, path: str, backup_spaces: Iterable[str] = (), secret_spaces: Iterable[str] = ()
    ) -> Store:
        """Open or create a database (0600), replacing a damaged one; see ``restored``."""
        target, spaces = Path(path), frozenset(backup_spaces)
        make_private_directory(target.parent)
        recovery = None
        try:
            with _explained(target):
                _check(target)
        except _Damage as damage:
            recovery = _recover(target, spaces, damage.reason)
        with _explained(target):
            store = cls(target, spaces, frozenset(secret_spaces), recovery)
            store._empty_log()  # a run that was killed may have left traces of what it deleted
        if recovery is not None or secret_spaces:
            store.refresh_backup()
        return store

    @property
    def restored(self) -> str:
        """What happened to a damaged database, in words; empty if it was sound."""
        return str(self.recovery) if self.recovery is not None else ""

    def put(self, records: Sequence[Record]) -> None:
        """Write records, all or none, and return when they are on disk; SystemRefused if not."""
        rows = [(record, _encode(record)) for record in records]
        if not rows:
            return
        important = any(record.space in self._backup_spaces for record, _ in rows)
        self._is_unclean |= any(record.space in self._secret_spaces for record, _ in rows)
        with self._lock:
            with _explained(self._path):
                try:
                    self._write_rows(rows, important=important)
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorname != "SQLITE_FULL":
                        raise
                    # The log may hold room that the database itself no longer needs.
                    self._empty_log()
                    self._write_rows(rows, important=important)
                if self._is_unclean:
                    self._empty_log()
            if important:
                spaces = self._backup_spaces
                changes = {(r.space, r.key): text for r, text in rows if r.space in spaces}
                self._refresh_backup(None if self._is_unclean else changes)
            if self._is_unclean and self.backup_problem is None:
                with _explained(self._path):
                    delete_remains(self._path)
                self._is_unclean = False

    def _empty_log(self) -> None:
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _write_rows(self, rows: list[tuple[Record, str | None]], *, important: bool) -> None:
        with _transaction(self._connection) as cursor:
            for record, text in rows:
                _write(cursor, record.space, record.key, text)
            if important:
                cursor.execute("UPDATE change SET count = count + 1")

    def delete(self, space: str, *keys: str) -> None:
        """Remove records; one that is not there is no error. Durable on return, as ``put``."""
        self.put([Record(space, key, None) for key in keys])

    def get(self, space: str, key: str) -> object | None:
        """Return one record's value, None if there is none."""
        query = "SELECT value FROM record WHERE space = ? AND key = ?"
        with self._lock, _explained(self._path):
            row = self._connection.execute(query, (space, key)).fetchone()
        return None if row is None else json.loads(row[0])

    def all(self, space: str) -> dict[str, object]:
        """Return every record of a space, by key, in key order."""
        query = "SELECT key, value FROM record WHERE space = ? ORDER BY key"
        with self._lock, _explained(self._path):
            rows = self._connection.execute(query, (space,)).fetchall()
        return {key: json.loads(value) for key, value in rows}

    def refresh_backup(self) -> None:
        """Write the backup now; a failure is kept in ``backup_problem`` and tried again later."""
        with self._lock:
            self._refresh_backup()

    def close(self) -> None:
        """Close the database; everything already is on disk."""
        with self._lock, _explained(self._path):
            self._connection.close()

    def _refresh_backup(self, changes: dict[tuple[str, str], str | None] | None = None) -> None:
        """Write the backup; only ``changes`` of it where that is enough."""
        # The change itself is durable already, so a full disk must not turn it into a failure.
        try:
            with _explained(self._path):
                count = _count(self._connection)
                if changes is None or not self._backup.follow(count, changes):
                    self._backup.write(count, _rows(self._connection, self._backup_spaces))
        except NostrvpnError as error:
            self.backup_problem = str(error)
        else:
            self.backup_problem = None


def _connect(path: Path) -> sqlite3.Connection:
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=2.0)
    try:
        # One process only: no shared-memory file, and a second opener is told "locked".
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
        if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
    except BaseException:
        connection.close()
        raise
    return connection


def _check(path: Path) -> None:
    """Raise _Damage unless the file is absent and has no backup, or is sound and not outdated."""
    backup = read_backup(path)
    if not path.exists() or path.stat().st_size == 0:
        if backup is not None:
            raise _Damage("it is missing" if not path.exists() else "it is empty")
        return
    connection = None
    try:
        connection = sqlite3.connect(path, isolation_level=None, timeout=2.0)
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        problem = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if problem != "ok":
            raise _Damage(str(problem).splitlines()[-1])
        if connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
            tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            if tables == 0 and backup is None:
                return  # killed while it was created
            raise _Damage("it is not a database of nostrvpn")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version != _FORMAT:
            raise SystemRefused(
                f"{path} has format {version}, this program knows {_FORMAT}",
                "use the version of nostrvpn that wrote it, or a newer one",
            )
        _rows(connection, None)
        if backup is not None and _count(connection) < backup[0]:
            raise _Damage("it is older than its backup")
    except sqlite3.OperationalError as error:
        # Busy, full, unreadable: the world's fault. "No such table" and I/O on a cut file: damage.
        if error.sqlite_errorname in ("SQLITE_ERROR", "SQLITE_IOERR_SHORT_READ"):
            raise _Damage(str(error)) from error
        raise
    except sqlite3.DatabaseError as error:
        raise _Damage(str(error)) from error
    finally:
        if connection is not None:
            connection.close()


def _recover(path: Path, important: frozenset[str], reason: str) -> Recovery:
    """Move the damaged database aside and build a new one from its backup and its remains."""
    salvaged, count = _salvage(path)
    backup = read_backup(path)
    rows: Rows = {}
    if backup is not None and backup[0] >= count:
        # The backup is whole and as new: for what matters, remains of a damaged file count less.
        rows = {place: text for place, text in salvaged.items() if place[0] not in important}
        rows |= backup[1]
        count = backup[0]
    else:
        rows = (backup[1] if backup is not None else {}) | salvaged
    moved_to = path.with_name(f"{path.name}.damaged-{int(time.time())}-{os.getpid()}")
    with _explained(path):
        for suffix in ("", "-wal", "-shm", "-journal"):
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.replace(moved_to.with_name(moved_to.name + suffix))
        draft = path.with_name(f".{path.name}.new")
        for suffix in ("", "-wal"):
            draft.with_name(draft.name + suffix).unlink(missing_ok=True)
        connection = _connect(draft)
        with contextlib.closing(connection):
            with _transaction(connection) as cursor:
                for (space, key), text in rows.items():
                    _write(cursor, space, key, text)
                cursor.execute("UPDATE change SET count = ?", (count + 1,))
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        draft.replace(path)
    restored = len(backup[1]) if backup is not None else 0
    return Recovery(reason, str(moved_to), restored, len(rows) - restored)


def _salvage(path: Path) -> tuple[Rows, int]:
    """Return the records of a damaged file that still read whole, and its change count or -1."""
    found: Rows = {}
    count = -1
    if not path.exists():
        return found, count
    with contextlib.suppress(sqlite3.Error):
        connection = sqlite3.connect(path, isolation_level=None, timeout=2.0)
        with contextlib.closing(connection):
            with contextlib.suppress(sqlite3.Error, TypeError):
                count = _count(connection)
            for order in ("ASC", "DESC"):  # a broken page in the middle is reached from both ends
                query = f"SELECT * FROM record ORDER BY space {order}, key {order}"
                cursor = connection.cursor()
                with contextlib.closing(cursor), contextlib.suppress(sqlite3.Error):
                    for space, key, text, digest in cursor.execute(query):
                        if digest == _digest(space, key, text):
                            found[(space, key)] = text
    return found, count


def _rows(connection: sqlite3.Connection, spaces: frozenset[str] | None) -> Rows:
    """Return the records of some spaces (None: all); _Damage if one does not match its digest."""
    rows: Rows = {}
    for space, key, text, digest in connection.execute("SELECT * FROM record").fetchall():
        if digest != _digest(space, key, text):
            raise _Damage("a record does not match its digest")
        if spaces is None or space in spaces:
            rows[(space, key)] = text
    return rows


def _count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count FROM change").fetchall()[0][0])


def _write(cursor: sqlite3.Cursor, space: str, key: str, text: str | None) -> None:
    if text is None:
        cursor.execute("DELETE FROM record WHERE space = ? AND key = ?", (space, key))
    else:
        row = (space, key, text, _digest(space, key, text))
        cursor.execute("INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?)", row)


def _encode(record: Record) -> str | None:
    if record.value is None:
        return None
    text = json.dumps(record.value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if len(text) > _MAX_VALUE:
        raise ValueError(f"record {record.space}/{record.key} is too large")
    return text


def _digest(space: str, key: str, text: str) -> bytes:
    return hashlib.sha256("\0".join((space, key, text)).encode()).digest()[:8]


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Cursor]:
    cursor = connection.cursor()
    cursor.execute("BEGIN IMMEDIATE")
    try:
        yield cursor
        cursor.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                cursor.execute("ROLLBACK")
        raise
    finally:
        # A cursor that lives on (in a traceback) keeps its connection, and the lock, half open.
        cursor.close()


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn SQLite's and the system's errors into ours; _Damage passes through."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        if name == "SQLITE_FULL":
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise refusal("write", path, full) from error
        if name in ("SQLITE_BUSY", "SQLITE_LOCKED"):
            text, hint = "another process has it open", "is a second daemon running?"
        elif name in ("SQLITE_CORRUPT", "SQLITE_NOTADB"):
            text, hint = "it is damaged", "restart nostrvpn: it restores the backup by itself"
        else:
            text, hint = str(error), "check the disk and the rights of the state directory"
        raise SystemRefused(f"the state database {path}: {text}", hint) from error
    except OSError as error:
        raise refusal("use", path, error) from error
