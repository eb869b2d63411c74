"""The packets of a search: paced, counted, and known again by their answers."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from nostrvpn.endpoint import Endpoint
from nostrvpn.machine import Moment
from nostrvpn.paths.candidates import CandidateKind, candidate_priority
from nostrvpn.paths.events import SendDatagram
from nostrvpn.paths.open_checks import Credentials
from nostrvpn.stun.binding import TRANSACTION, Check, render_check, render_query

__all__ = ["MAX_PACKETS", "RATE", "Shot", "Shots"]

# Packets a second at most, to the peer's address and to STUN servers together. What Tailscale
# describes for this search; a home router's table takes it, and so does a scanner's alarm.
RATE = 100
# Late wake-ups may send so many at once.
CATCH_UP = 8
# Packets of one search at most: 256 openers, 1,024 guesses, samples, checks back, or a sweep.
MAX_PACKETS = 1_400
# Answers awaited: all guesses, because an answer may take a second.
MAX_AWAITED = 1_100


@dataclass(frozen=True, slots=True)
class Shot:
    """A packet to send when its turn comes: a check of the peer, or a query of a STUN server.

    ``source_port`` None is WireGuard's. ``tag`` comes back with the answer of a query.
    """

    destination: Endpoint
    source_port: int | None = None
    ttl: int | None = None
    is_query: bool = False
    tag: int = 0


@dataclass(slots=True)
class Shots:
    """The queue of one search. ``sent`` counts all packets, ``awaited`` maps transactions to shots."""

    credentials: Credentials
    controlling: bool
    tie_breaker: int
    sent: int = 0
    awaited: OrderedDict[bytes, Shot] = field(default_factory=OrderedDict)
    _queue: deque[Shot] = field(default_factory=deque)
    _next_at: float = 0.0
    _rate: float = RATE

    @property
    def deadline(self) -> float | None:
        """When the next packet is due."""
        return self._next_at if self._queue else None

    def put(self, shots: list[Shot], now: float, *, rate: float = RATE) -> None:
        """Queue packets, at ``rate`` a second from now on."""
        self._queue.extend(shots)
        self._rate = min(rate, RATE)
        self._next_at = max(self._next_at, now)

    def clear(self) -> None:
        """Forget what was not sent yet."""
        self._queue.clear()

    def at_once(self, shots: list[Shot], moment: Moment) -> list[SendDatagram]:
        """Send a short burst whose order and closeness matter; what is queued waits for it."""
        self._next_at = max(self._next_at, moment.now + len(shots) / self._rate)
        return [effect for shot in shots for effect in self._send(shot, moment)]

    def tick(self, moment: Moment) -> list[SendDatagram]:
        """Send what is due."""
        effects: list[SendDatagram] = []
        self._next_at = max(self._next_at, moment.now - CATCH_UP / self._rate)
        while self._queue and self._next_at <= moment.now:
            self._next_at += 1 / self._rate
            effects += self._send(self._queue.popleft(), moment)
        return effects

    def _send(self, shot: Shot, moment: Moment) -> list[SendDatagram]:
        if self.sent >= MAX_PACKETS:
            return []
        self.sent += 1
        transaction = moment.entropy.take(TRANSACTION)
        self.awaited[transaction] = shot
        if len(self.awaited) > MAX_AWAITED:
            self.awaited.popitem(last=False)
        if shot.is_query:
            data = render_query(transaction)
        else:
            check = Check(
                transaction=transaction,
                username=self.credentials.username,
                password=self.credentials.password,
                priority=candidate_priority(CandidateKind.PEER_REFLEXIVE, 4),
                controlling=self.controlling,
                tie_breaker=self.tie_breaker,
                use_candidate=False,
            )
            data = render_check(check)
        return [SendDatagram(data, shot.destination, shot.ttl, None, source_port=shot.source_port)]
