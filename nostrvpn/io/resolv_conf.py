"""resolv.conf itself, where the user allowed to edit it. Blocking.

A symbolic link is followed and stays one. What somebody else wrote meanwhile is kept: the file is read
right before it is written, and only our own blocks ever change.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from nostrvpn.errors import SystemRefused
from nostrvpn.host.resolver import DesiredNames, FoundResolver, with_blocks, without_blocks
from nostrvpn.io.durable_file import delete_drafts, refusal, write_durably
from nostrvpn.io.resolvconf import has_resolvconf
from nostrvpn.io.resolved import is_running

__all__ = ["find_resolver", "put_blocks", "read_resolv_conf", "read_text", "take_blocks"]

PATH = Path("/etc/resolv.conf")
_NSSWITCH = Path("/etc/nsswitch.conf")
# A resolver's configuration is some lines; more is not one.
_MAX_BYTES = 64 * 1024


def find_resolver() -> FoundResolver:
    """Return what this host resolves names with."""
    return FoundResolver(
        read_text(PATH),
        os.path.realpath(PATH),
        read_text(_NSSWITCH),
        is_running(),
        has_resolvconf(),
    )


def read_resolv_conf() -> str:
    """Return the text of resolv.conf; empty if there is none."""
    return read_text(PATH)


def put_blocks(desired: DesiredNames, interface: str) -> bool:
    """Put our blocks into resolv.conf, or mend them; return whether anything was to do."""
    text = read_text(PATH)
    wanted = with_blocks(text, desired, interface)
    if wanted == text:
        return False
    _write(text, wanted)
    return True


def take_blocks(interface: str | None) -> bool:
    """Take our blocks (None: of every interface) out of resolv.conf; return whether there were any."""
    delete_drafts(os.path.realpath(PATH))
    text = read_text(PATH)
    wanted = without_blocks(text, interface)
    if wanted == text:
        return False
    _write(text, wanted)
    return True


def read_text(path: Path) -> str:
    """Return a file's text, byte for byte (latin-1); empty if there is none or it is no text file."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode("latin-1")
    except OSError:
        return ""


def _write(expected: str, text: str) -> None:
    real = Path(os.path.realpath(PATH))
    try:
        status = real.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
            raise SystemRefused(f"{real} is no file to edit")
        if read_text(PATH) != expected:
            raise SystemRefused(f"{real} is being changed by another program")
        data = text.encode("latin-1")
        try:
            write_durably(real, data, mode=stat.S_IMODE(status.st_mode), replace=True)
            os.chown(real, status.st_uid, status.st_gid)
        except SystemRefused as exc:
            # A file that is mounted (a container's, a network namespace's) cannot be replaced.
            if not isinstance(exc.__cause__, OSError) or exc.__cause__.errno != errno.EBUSY:
                raise
            _overwrite(real, data)
    except OSError as exc:
        raise refusal("write", real, exc) from exc


def _overwrite(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        file.truncate()
        os.fsync(descriptor)
