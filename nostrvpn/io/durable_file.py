"""Small files that survive: whole or not at all, on disk before the call returns."""

from __future__ import annotations

import errno
import glob
import os
import stat
from contextlib import suppress
from pathlib import Path

from nostrvpn.errors import NostrvpnError, SystemRefused, UserError
from nostrvpn.io.privilege import as_owner

__all__ = [
    "AlreadyExists",
    "delete_drafts",
    "make_private_directory",
    "refusal",
    "require_own_directory",
    "sync_directory",
    "write_durably",
]


class AlreadyExists(UserError):
    """The file to be created exists, and must not be overwritten."""

    code = "already_exists"


def refusal(action: str, path: str | Path, error: OSError) -> NostrvpnError:
    """Return the error to raise for an OSError: what was attempted, why it failed, what to do."""
    text = f"cannot {action} {path}: {error.strerror or error}"
    match error.errno:
        case errno.EACCES | errno.EPERM:
            return SystemRefused(text, "run it as root (sudo)" if os.geteuid() else "")
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return SystemRefused(text, "make room on that disk; nothing stored before is lost")
        case errno.EROFS:
            return SystemRefused(text, "choose a writable place with --state-dir or --config")
        case errno.ENOENT | errno.EISDIR | errno.ENOTDIR:
            return UserError(text, "check the path")
        case _:
            return SystemRefused(text)


def make_private_directory(path: str | Path) -> None:
    """Create a directory for secrets, mode 0700, if it is not there; parents get 0755.

    One that another user owns or can write to is refused: whoever can put files (or links) there
    chooses what a daemon run by root writes to. (In the service account's own, root acts as that
    account.)
    """
    directory = Path(path)
    with as_owner(directory):
        try:
            if not directory.is_dir():
                directory.parent.mkdir(parents=True, exist_ok=True)
                directory.mkdir(mode=0o700, exist_ok=True)
            status = directory.stat()
        except OSError as error:
            raise refusal("create the directory", directory, error) from error
        require_own_directory(directory, status)


def require_own_directory(directory: Path, status: os.stat_result) -> None:
    """Raise UserError if users other than root and we could put files into a directory."""
    if status.st_uid not in (0, os.geteuid()):
        raise UserError(
            f"the directory {directory} belongs to another user (uid {status.st_uid})",
            "choose another one, or give this one to root: chown root",
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(
            f"other users can write into the directory {directory}", f"chmod go-w {directory}"
        )


def write_durably(path: str | Path, data: bytes, *, mode: int, replace: bool) -> None:
    """Write a file in one step: a reader, or a crash, finds the old content or the new.

    With ``replace=False`` an existing file raises AlreadyExists, also when two writers race.
    """
    target = Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}.new")
    with as_owner(target.parent):
        try:
            try:
                _write_new(draft, data, mode)
                if replace:
                    draft.replace(target)
                else:
                    os.link(draft, target)  # unlike rename, this fails when the target exists
            except FileExistsError as error:
                raise AlreadyExists(f"{target} exists and is not overwritten") from error
            finally:
                with suppress(FileNotFoundError):
                    draft.unlink()
            sync_directory(target.parent)
        except OSError as error:
            raise refusal("write", target, error) from error


def delete_drafts(path: str | Path) -> None:
    """Delete what processes that were killed while they wrote a file have left beside it."""
    target = Path(path)
    with as_owner(target.parent), suppress(OSError):
        for draft in target.parent.glob(f".{glob.escape(target.name)}.*.new"):
            writer = draft.name.removesuffix(".new").rpartition(".")[2]
            if writer.isdecimal() and not Path("/proc", writer).exists():
                draft.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Make names in a directory durable: a new file's own fsync does not cover its name."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    with suppress(FileNotFoundError):
        path.unlink()  # left by a process that died with this pid
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # the umask may have taken bits away
        file.write(data)
        file.flush()
        os.fsync(descriptor)
