"""Telling systemd how we are: sd_notify(3), one datagram on a Unix socket."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

__all__ = ["notify"]


def notify(state: str) -> None:
    """Send ``READY=1``, ``STOPPING=1``, ``STATUS=…`` or ``WATCHDOG=1``; nothing outside of systemd."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(), address)
