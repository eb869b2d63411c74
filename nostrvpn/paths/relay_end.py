"""Our end of one pair on one relay: asking for the port, binding our address there, and again.

A request is repeated, from one of the relay's addresses to the next, until it is answered or given
up. An address that is bound already gets no answer to a bind: the relay forwards it to the peer. So
silence after a first bind proves nothing, and the checks through the relay have the last word.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from nostrvpn.endpoint import Endpoint
from nostrvpn.machine import Moment
from nostrvpn.paths.relay_offers import RelayOffer, RelayTicket
from nostrvpn.stun.binding import TRANSACTION
from nostrvpn.stun.relaying import RelayUser, Side, render_allocate, render_bind, side_key

__all__ = ["End", "RelayEnd", "end_from_offer", "end_from_ticket"]

# Gaps after each request: five in 2 s, one of them when silence starts to mean that UDP is blocked.
RETRY = (0.25, 0.5, 0.3, 1.0)
MAX_TRIES = len(RETRY) + 1
LAST_GAP = 0.75
# After silence or refusal: until it is asked again.
PENALTY = (30.0, 60.0, 300.0, 900.0)


class End(Enum):
    """What an end waits for."""

    ALLOCATING = "allocating"
    BINDING = "binding"
    BOUND = "bound"
    SILENT = "silent"
    REFUSED = "refused"


@dataclass(slots=True)
class RelayEnd:
    """One end. ``usable`` are the endpoints at which checks may go through the relay."""

    relay: str
    side: Side
    pair: str
    key: str = field(repr=False)
    control: tuple[Endpoint, ...]
    endpoints: tuple[Endpoint, ...]
    websocket: str | None
    user: RelayUser | None = None
    state: End = End.BINDING
    tries: int = 0
    due: float | None = None
    began_at: float = 0.0
    nonce: bytes | None = None
    bound_at: Endpoint | None = None
    channel: int | None = None
    channel_endpoint: Endpoint | None = None
    rtt: float | None = None
    reason: str = ""
    failures: int = 0
    proven_at: float | None = None
    lifetime: float = 300.0
    asked_anew: bool = False
    by_channel: bool = False
    """Whether its WebSocket answered where UDP did not."""
    _ticket: RelayTicket | None = field(default=None, repr=False)

    @property
    def is_ours(self) -> bool:
        """Whether we allocated it, so that the peer needs a ticket from us."""
        return self.user is not None

    @property
    def is_down(self) -> bool:
        """Whether it was given up, until its penalty is over."""
        return self.state in (End.SILENT, End.REFUSED)

    @property
    def usable(self) -> dict[Endpoint, str]:
        """The endpoints to check through, with their carriers."""
        found = {}
        if self.bound_at is not None:
            found[self.bound_at] = "udp"
        if self.channel_endpoint is not None:
            found[self.channel_endpoint] = "websocket"
        return found

    @property
    def ticket(self) -> RelayTicket | None:
        """What the peer needs, if the port was lent to us."""
        if self.user is None or not self.endpoints:
            return None
        if self._ticket is None or self._ticket.endpoints != self.endpoints:
            key = side_key(self.user.key, self.pair, Side.OTHER)
            self._ticket = RelayTicket(self.pair, self.endpoints, Side.OTHER, key, self.websocket)
        return self._ticket

    def targets(self, versions: frozenset[int]) -> list[Endpoint]:
        """Return where the next request may go, in our families; IPv4 first, as both sides have it."""
        where = self.control if self.state is End.ALLOCATING else self.endpoints
        usable = [endpoint for endpoint in where if endpoint.ip.version in versions]
        return sorted(usable, key=lambda endpoint: endpoint.ip.version)

    def request(self, moment: Moment) -> tuple[bytes, bytes]:
        """Return the transaction and the message to send now."""
        transaction = moment.entropy.take(TRANSACTION)
        if self.state is End.ALLOCATING and self.user is not None:
            return transaction, render_allocate(transaction, self.user, self.pair)
        nonce = self.nonce
        return transaction, render_bind(transaction, self.pair, self.side, self.key, nonce)

    def hello(self, moment: Moment) -> bytes:
        """Return the first frame of a WebSocket: the same request, without a nonce."""
        self.nonce = None
        return self.request(moment)[1]

    def begin(self, state: End, now: float) -> None:
        """Start asking."""
        self.state, self.tries, self.due, self.began_at = state, 0, now, now
        self.nonce, self.reason = None, ""

    def sent(self, now: float) -> None:
        """A request left, or could not."""
        self.due = now + (RETRY[self.tries] if self.tries < len(RETRY) else LAST_GAP)
        self.tries += 1

    def give_up(self, state: End, reason: str, now: float) -> None:
        """Leave it alone for a while."""
        penalty = PENALTY[min(self.failures, len(PENALTY) - 1)]
        self.failures += 1
        self.state, self.reason, self.due = state, reason, now + penalty
        self.bound_at = None

    def granted(self, port: int, lifetime: int | None, now: float) -> bool:
        """The relay lends ``port``; return whether the peer needs a new ticket."""
        endpoints = tuple(Endpoint(endpoint.ip, port) for endpoint in self.control)
        changed = endpoints != self.endpoints
        if changed:
            self.bound_at = None
        self.endpoints = endpoints
        self.lifetime = float(lifetime or self.lifetime)
        self.begin(End.BINDING, now)
        return changed

    def bound(self, source: Endpoint) -> None:
        """The relay answered the bind from ``source``, or a check came through."""
        self.state, self.due, self.reason = End.BOUND, None, ""
        self.bound_at = source
        self.failures, self.asked_anew = 0, False


def end_from_offer(offer: RelayOffer, moment: Moment) -> RelayEnd:
    """Return an end that asks ``offer``'s relay for a port."""
    pair = moment.entropy.take(8).hex()
    end = RelayEnd(
        relay=offer.relay,
        side=Side.ALLOCATOR,
        pair=pair,
        key=side_key(offer.user.key, pair, Side.ALLOCATOR),
        control=offer.endpoints,
        endpoints=(),
        websocket=offer.websocket,
        user=offer.user,
    )
    end.begin(End.ALLOCATING, moment.now)
    return end


def end_from_ticket(ticket: RelayTicket, relay: str, now: float) -> RelayEnd:
    """Return the end that the peer's ``ticket`` lets us bind."""
    end = RelayEnd(
        relay=relay,
        side=ticket.side,
        pair=ticket.pair,
        key=ticket.key,
        control=(),
        endpoints=ticket.endpoints,
        websocket=ticket.websocket,
    )
    end.begin(End.BINDING, now)
    return end
