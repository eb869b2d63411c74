"""What the kernel tells of changes to nftables: was something removed from a table of ours?

Whoever removes and makes a table in one transaction, as we do, is not noticed.
"""

from __future__ import annotations

import struct
from collections.abc import Collection

__all__ = ["GROUPS", "PROTOCOL", "TableNotices"]

# Spec: linux/netlink.h, linux/netfilter/nfnetlink.h and nf_tables.h.
PROTOCOL = 12
"""Of the netlink socket that is told: NETLINK_NETFILTER."""
GROUPS = 1 << (7 - 1)
"""That it listens to: NFNLGRP_NFTABLES."""
_SUBSYSTEM = 10
_NEW_TABLE, _NEW_GENERATION = 0, 15
_REMOVALS = frozenset({2, 5, 8})  # of a table, a chain, a rule
_FAMILY_INET = 1
_HEADER = struct.Struct("=IHHII")
_FAMILY_BYTES = 4
_ATTRIBUTE = struct.Struct("=HH")
# The name of the table, in the messages of tables, chains and rules alike.
_TABLE_NAME = 1


class TableNotices:
    """Reads datagrams in the order in which they come, for tables ``inet NAME`` of these names."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)
        # By the transaction that is being told; it may be longer than a datagram.
        self._gone: set[str] = set()

    def take(self, data: bytes) -> bool:
        """Return whether a transaction ended here that removed of a watched table and left it so."""
        is_removed, offset = False, 0
        while offset + _HEADER.size + _FAMILY_BYTES <= len(data):
            length, kind, *_ = _HEADER.unpack_from(data, offset)
            if kind >> 8 == _SUBSYSTEM:
                is_removed |= self._note(kind & 0xFF, data[offset + _HEADER.size : offset + length])
            offset += max(_HEADER.size, (length + 3) & ~3)
        return is_removed

    def _note(self, kind: int, message: bytes) -> bool:
        if kind == _NEW_GENERATION:
            is_removed, self._gone = bool(self._gone), set()
            return is_removed
        if kind in _REMOVALS or kind == _NEW_TABLE:
            name = _table_of(message)
            if name in self._names:
                (self._gone.discard if kind == _NEW_TABLE else self._gone.add)(name)
        return False


def _table_of(message: bytes) -> str:
    """Return the name of the table that a message is about; nothing if it is of another family."""
    if message[:1] != bytes([_FAMILY_INET]):
        return ""
    offset = _FAMILY_BYTES
    while offset + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, offset)
        if kind == _TABLE_NAME:
            text = message[offset + _ATTRIBUTE.size : offset + length]
            return text.rstrip(b"\0").decode("ascii", "replace")
        offset += max(_ATTRIBUTE.size, (length + 3) & ~3)
    return ""
