"""When to act on a change of network: at once, but not again and again while an interface flaps.

Acting costs messages: STUN queries, descriptions to every peer, new connections to relays. A change of
network is two or three changes in a row (the old address goes, IPv4 comes, IPv6 comes a second later),
and each of them is worth acting on; a loose cable makes hundreds.
"""

from __future__ import annotations

from dataclasses import dataclass

from nostrvpn.endpoint import IPAddress
from nostrvpn.node.events import HostChanged
from nostrvpn.paths.candidates import LocalAddress

__all__ = ["Move", "Moves"]

# Changes that are acted on at once, and the seconds after which one more may be; what comes sooner is
# gathered until then.
BURST = 3
GATHER_S = 2.0

_Place = tuple[frozenset[tuple[str, IPAddress]], frozenset[IPAddress]]


@dataclass(frozen=True, slots=True)
class Move:
    """Act on this: ``addresses`` are the host's.

    ``is_first``: the host was not known before. ``is_cut``: no address leads out.
    """

    addresses: tuple[LocalAddress, ...]
    is_first: bool = False
    is_cut: bool = False


class Moves:
    """Says when to act on what. Interfaces that are never offered to peers are left out."""

    def __init__(self, skip_interfaces: tuple[str, ...]) -> None:
        self._skip = skip_interfaces
        self._addresses: tuple[LocalAddress, ...] = ()
        self._place: _Place | None = None  # where we were when we acted last
        self._tokens = float(BURST)
        self._filled_at = 0.0
        self._is_pending = False

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` is due."""
        return self._filled_at + (1 - self._tokens) * GATHER_S if self._is_pending else None

    def take(self, event: HostChanged, now: float) -> Move | None:
        """Take a change; return what to act on now, if anything."""
        self._addresses = event.addresses
        usable = frozenset(
            (address.interface, address.ip)
            for address in event.addresses
            if not address.ip.is_link_local and not address.interface.startswith(self._skip)
        )
        place = (usable, event.sources)
        if self._place is None:
            self._place = place
            return Move(event.addresses, is_first=True)
        if place == self._place and not event.interrupted:
            return None
        self._place = place
        if not usable:
            # Nothing can be sent: the old paths are given up, and the next address is news.
            self._is_pending = False
            return Move(event.addresses, is_cut=True)
        return self._act(now)

    def again(self, now: float) -> Move | None:
        """The network may be another one although it looks the same (after a sleep)."""
        return self._act(now) if self._place is not None and self._place[0] else None

    def tick(self, now: float) -> Move | None:
        """Act on what was gathered, if it is time."""
        due = self.deadline
        return self._act(now) if due is not None and due <= now else None

    def _act(self, now: float) -> Move | None:
        self._tokens = min(float(BURST), self._tokens + (now - self._filled_at) / GATHER_S)
        self._filled_at = now
        # A deadline that was computed from these figures must not be missed by a rounding error.
        self._is_pending = self._tokens < 1 - 1e-6
        if self._is_pending:
            return None
        self._tokens = max(0.0, self._tokens - 1)
        return Move(self._addresses)
