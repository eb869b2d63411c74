"""The directory of the control sockets, given to the account that the daemon is about to become."""

from __future__ import annotations

import os
from pathlib import Path

from nostrvpn.io.durable_file import refusal
from nostrvpn.io.privilege import Account

__all__ = ["give_runtime_directory"]


def give_runtime_directory(path: str, account: Account) -> None:
    """Make the directory if it is not there, and give it away with all that root put there.

    Call it as root. One that already belongs to somebody else is left as it is.
    """
    directory = Path(path)
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        if directory.stat().st_uid != 0:
            return
        # Nobody but root could write there until now: no link can lead elsewhere.
        for place in (*directory.rglob("*"), directory):
            os.chown(place, account.uid, account.gid, follow_symlinks=False)
    except OSError as error:
        raise refusal("prepare the directory", directory, error) from error
