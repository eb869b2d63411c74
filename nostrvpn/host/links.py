"""The names of our links beside the mesh's own, so that each is found without a record."""

from __future__ import annotations

import zlib

from nostrvpn.host.state import MAX_INTERFACE_NAME

__all__ = ["BOUGHT", "SOLD", "UPSTREAM", "link_beside", "own_links"]

# What each is for: a provider of guests, strangers who pay, exits that are paid for (one in use, and one
# that is being tried).
UPSTREAM, SOLD, BOUGHT = "u", "s", ("b", "c")


def link_beside(interface: str, letter: str) -> str:
    """Return the name of the link of ours for one of these purposes."""
    if len(interface) < MAX_INTERFACE_NAME:
        return f"{interface}{letter}"
    return f"{interface[:9]}{zlib.crc32(interface.encode()) & 0xFFFFF:05x}{letter}"


def own_links(interface: str) -> tuple[str, ...]:
    """Return the mesh's interface and all that may be beside it."""
    beside = (link_beside(interface, letter) for letter in (UPSTREAM, SOLD, *BOUGHT))
    return (interface, *beside)
