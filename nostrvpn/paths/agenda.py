"""What is due on which link, and which link asked what: a link that sleeps costs nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from nostrvpn.paths.events import PathEffect, SendDatagram
from nostrvpn.stun.binding import HEADER, TRANSACTION

__all__ = ["Agenda"]

# Requests of all links whose answers may come; one search through a hard NAT has a thousand.
MAX_ASKED = 4096


class Agenda:
    """The links by their deadlines and by their open requests, so that none has to be searched."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._asked: OrderedDict[bytes, str] = OrderedDict()

    @property
    def deadline(self) -> float | None:
        """When the first link is due."""
        return min(self._due.values(), default=None)

    def due(self, now: float) -> list[str]:
        """Return the peers whose links are due."""
        return [peer for peer, at in self._due.items() if at <= now]

    def note(self, peer: str, deadline: float | None, effects: Iterable[PathEffect]) -> None:
        """A link changed: note when it is due, and what it asks."""
        if deadline is None:
            self._due.pop(peer, None)
        else:
            self._due[peer] = deadline
        for effect in effects:
            # A request's first byte is zero (RFC 8489 section 5), a response's is not.
            if isinstance(effect, SendDatagram) and effect.data[:1] == b"\0":
                self._asked[effect.data[HEADER - TRANSACTION : HEADER]] = peer
        while len(self._asked) > MAX_ASKED:
            self._asked.popitem(last=False)

    def forget(self, peer: str) -> None:
        """The link is gone."""
        self._due.pop(peer, None)

    def asked_by(self, transaction: bytes) -> str | None:
        """Return whose link sent the request that an answer belongs to."""
        return self._asked.get(transaction)
