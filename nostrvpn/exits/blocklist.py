"""Names that guests of an exit get no address for, with every name below them.

Kept as sorted 64-bit hashes: eight bytes a name, where a set of texts takes a hundred. The hash is
keyed, so that nobody can make a name that meets a listed one.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from ipaddress import ip_address

__all__ = ["MAX_NAMES", "Blocklist", "listed_names"]

MAX_NAMES = 2_000_000
_MAX_NAME = 253
_HASH_BYTES = 8


class Blocklist:
    """``names`` in lower case; those beyond MAX_NAMES are left out. ``key``: random bytes."""

    def __init__(self, names: Iterable[str] = (), key: bytes = b"") -> None:
        self._key = key[: blake2b.MAX_KEY_SIZE]
        hashes = set[int]()
        self.is_cut = False
        for name in names:
            if len(hashes) == MAX_NAMES:
                self.is_cut = True
                break
            hashes.add(self._hash(name))
        self._hashes = array("Q", sorted(hashes))

    def __len__(self) -> int:
        return len(self._hashes)

    def blocks(self, labels: tuple[str, ...]) -> bool:
        """Whether a name (its labels in lower case) or one above it is listed."""
        return bool(self._hashes) and any(
            self._has(self._hash(".".join(labels[at:]))) for at in range(len(labels))
        )

    def _has(self, wanted: int) -> bool:
        at = bisect_left(self._hashes, wanted)
        return at < len(self._hashes) and self._hashes[at] == wanted

    def _hash(self, name: str) -> int:
        text = name.encode("utf-8", "replace")
        return int.from_bytes(blake2b(text, digest_size=_HASH_BYTES, key=self._key).digest(), "big")


def listed_names(lines: Iterable[str]) -> Iterator[str]:
    """Return the names of a hosts file, or of a list with one domain a line.

    Comments begin with ``#`` or ``!``. Left out is what is no name with a dot: ``localhost`` in every
    hosts file, and a top-level domain, which nobody means to block.
    """
    for line in lines:
        words = line.partition("#")[0].split()
        if not words or words[0].startswith("!"):
            continue
        names = words[1:] if _is_address(words[0]) else words[:1]
        for word in names:
            name = word.lower().strip(".")
            if "." in name and len(name) <= _MAX_NAME and not _is_address(name):
                yield name


def _is_address(word: str) -> bool:
    try:
        ip_address(word.partition("%")[0])
    except ValueError:
        return False
    return True
