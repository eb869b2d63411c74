"""Where the operator of this shell sits, if it is the shell of an SSH session."""

from __future__ import annotations

import os
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from nostrvpn.endpoint import IPAddress

__all__ = ["ssh_client"]

# sudo leaves the variable out of what it starts; a shell is rarely deeper.
_MAX_ANCESTORS = 32


def ssh_client(proc: str = "/proc") -> IPAddress | None:
    """Return the address of the SSH client whose session this process belongs to; None if none.

    Of ``SSH_CONNECTION`` (sshd(8)), in this process's environment or in an ancestor's.
    """
    found = _client(os.environ.get("SSH_CONNECTION", ""))
    pid = os.getpid()
    for _ in range(_MAX_ANCESTORS):
        if found is not None or pid <= 1:
            break
        try:
            status = Path(proc, str(pid), "status").read_text(encoding="utf-8", errors="replace")
            pid = int(status.partition("\nPPid:")[2].split(maxsplit=1)[0])
            words = Path(proc, str(pid), "environ").read_bytes().split(b"\0")
        except (OSError, ValueError, IndexError):
            break
        for word in words:
            if word.startswith(b"SSH_CONNECTION="):
                found = _client(word.partition(b"=")[2].decode("ascii", errors="replace"))
    return found


def _client(connection: str) -> IPAddress | None:
    """Return the client of ``CLIENT PORT SERVER PORT``."""
    with suppress(ValueError, IndexError):
        ip = ip_address(connection.split()[0].partition("%")[0])
        mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
        return mapped or ip
    return None
