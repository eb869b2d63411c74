"""The numbers of our routing tables: the first byte says what for, the rest comes from the interface.

So whoever cleans up needs no record of them.
"""

from __future__ import annotations

import zlib
from enum import IntEnum

__all__ = ["RoutingTable"]

_MASK = 0xFF000000


class RoutingTable(IntEnum):
    """What a table is for; the value is the first byte of its number."""

    BOOTHS = 0x9C
    OUTER_LIMITS = 0x9D
    EXIT = 0x9E
    UPSTREAM = 0x9F

    def number(self, interface: str) -> int:
        """Return the number of the table of this kind for an interface."""
        return self << 24 | zlib.crc32(interface.encode()) & ~_MASK

    def includes(self, table: int) -> bool:
        """Whether a routing table with this number is one of these."""
        return table & _MASK == self << 24
