"""resolvconf, Debian's and openresolv: a record of ours among those it makes resolv.conf of. Blocking.

The record carries our mark in its name, so it is found and removed without saved state.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from nostrvpn.errors import SystemRefused, one_line
from nostrvpn.host.resolver import RECORD_ENDING, record_name

__all__ = ["add_record", "has_resolvconf", "remove_records"]

# Where both implementations keep the records, each in a directory of its own below.
_RECORDS = Path("/run/resolvconf")
# Its hooks restart programs. `down` waits 15 s, for three calls at worst.
_TIMEOUT_S = 4.0


def has_resolvconf() -> bool:
    """Whether a resolvconf is installed that is not systemd-resolved under another name."""
    program = shutil.which("resolvconf")
    return program is not None and Path(program).resolve().name != "resolvectl"


def add_record(interface: str, text: str, *, alone: bool = False) -> None:
    """Tell resolvconf our record, which goes before others; SystemRefused if it refuses.

    ``alone``: the others are left out meanwhile. openresolv has a word for it (``-x``); Debian's leaves
    them out beside a loopback address, and knows no such option.
    """
    words = ("-x",) if alone and _is_openresolv() else ()
    _run(*words, "-a", record_name(interface), text=text)


def remove_records(interface: str | None) -> list[str]:
    """Remove our record for an interface (None: all of ours); return their names."""
    if not has_resolvconf():
        return []
    # openresolv has a file for each that is alone, too, named by a number and the record's name.
    names = {path.name.rpartition(" ")[2] for path in _RECORDS.glob(f"*/*{RECORD_ENDING}")}
    wanted = sorted(names if interface is None else names & {record_name(interface)})
    for name in wanted:
        _run("-d", name)
    return wanted


def _is_openresolv() -> bool:
    """Whether it has options that only openresolv has: ``-h`` names them."""
    try:
        return "openresolv" in _run("--version")
    except SystemRefused:
        return False


def _run(*arguments: str, text: str = "") -> str:
    program = shutil.which("resolvconf")
    if program is None:
        raise SystemRefused("resolvconf is not installed")
    try:
        done = subprocess.run(
            (program, *arguments),
            input=text,
            capture_output=True,
            # In whatever language it speaks, and in the C locale: what it says is only quoted.
            encoding="utf-8",
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise SystemRefused(f"resolvconf does not end: {exc}") from exc
    if done.returncode != 0:
        said = one_line((done.stderr or done.stdout).strip())
        raise SystemRefused(f"resolvconf refused ({done.returncode}): {said}")
    return done.stdout
