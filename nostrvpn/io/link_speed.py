"""How fast this host's uplinks are, as their drivers say. Blocking, a file for each."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from nostrvpn.io.relay_routing import uplinks

__all__ = ["DEFAULT_SPEED", "uplink_speed"]

DEFAULT_SPEED = 125_000_000
"""Bytes a second: a gigabit, what a virtual machine's uplink has whose driver says nothing."""
_MBIT = 125_000


def uplink_speed() -> int:
    """Return bytes a second of the fastest uplink; ``DEFAULT_SPEED`` if no driver knows."""
    found = []
    for name in uplinks():
        with suppress(OSError, ValueError):
            found.append(int(Path(f"/sys/class/net/{name}/speed").read_text(encoding="ascii")))
    known = [mbit for mbit in found if mbit > 0]
    return max(known) * _MBIT if known else DEFAULT_SPEED
