"""An open rtnetlink socket, and what all of its users need: errors in our words, refusals that are none.

Blocking; acts in the calling thread's network namespace. pyroute2 is slow to import, so it is imported
on first use.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nostrvpn.errors import SystemRefused

if TYPE_CHECKING:
    from nostrvpn.io.pyroute import IPRoute

__all__ = ["GONE", "accepting", "family_of", "ip_versions", "refused", "rtnetlink"]

# What is said of a rule or a route that is there no more.
GONE = (errno.ESRCH, errno.ENOENT, errno.ENODEV)


@contextmanager
def rtnetlink(action: str) -> Iterator[IPRoute]:
    """Open rtnetlink; what the kernel refuses comes out as SystemRefused naming the action."""
    from nostrvpn.io.pyroute import IPRoute, NetlinkError

    try:
        with IPRoute() as route:
            yield route
    except NetlinkError as exc:
        raise refused(action, exc.code) from exc
    except OSError as exc:
        raise refused(action, exc.errno or errno.EIO) from exc


@contextmanager
def accepting(*codes: int) -> Iterator[None]:
    """Accept a refusal with one of these errnos: it is so already."""
    from nostrvpn.io.pyroute import NetlinkError

    try:
        yield
    except NetlinkError as exc:
        if exc.code not in codes:
            raise


def refused(action: str, code: int) -> SystemRefused:
    """Return the error for an action that the kernel refused with an errno."""
    hint = ""
    if code in (errno.EPERM, errno.EACCES):
        hint = "Run it as root, or with CAP_NET_ADMIN."
    elif code == errno.EADDRINUSE:
        hint = "Another program has the UDP port: choose another listen port."
    return SystemRefused(f"{action}: {os.strerror(code)}", hint)


def ip_versions() -> frozenset[int]:
    """Return the IP versions that this kernel speaks."""
    return frozenset({4, 6} if Path("/proc/sys/net/ipv6").exists() else {4})


def family_of(version: int) -> int:
    """Return the address family (AF_INET, AF_INET6) of an IP version."""
    return int(socket.AF_INET if version == 4 else socket.AF_INET6)
