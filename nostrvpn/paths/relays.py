"""The relays of one link: allocating, handing out and taking tickets, binding, and the endpoints won.

At most two relays are wanted: the better one carries, the other one takes over. Whatever relay the
peer's tickets name counts, so usually only one side allocates.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment, earliest
from nostrvpn.paths.budgets import Budget
from nostrvpn.paths.events import (
    CloseChannel,
    OpenChannel,
    PathEffect,
    SendDatagram,
    WebSocketTarget,
)
from nostrvpn.paths.openings import PATIENCE
from nostrvpn.paths.relay_book import RelayBook
from nostrvpn.paths.relay_demand import RELAYS, RelayDemand
from nostrvpn.paths.relay_end import MAX_TRIES, End, RelayEnd, end_from_offer, end_from_ticket
from nostrvpn.paths.relay_offers import MAX_TICKETS, RelayTicket
from nostrvpn.paths.relay_requests import RelayRequest, refusal_text
from nostrvpn.paths.snapshot import RelayResult
from nostrvpn.stun.binding import StunKind, StunMessage, parse_stun

__all__ = ["LinkRelays", "Route"]

# Requests whose answers are awaited: eight ends with five tries of two kinds.
MAX_TRANSACTIONS = 96
# WebSockets opened for one link: its peer names their URLs, so more would make us a tool of its. Two
# relays need one each to allocate and one to bind, and once again.
OPENINGS = 8
OPENINGS_PER_MINUTE = 2
# Requests of one link: its peer's tickets say where to. Four ends with five tries each, some times.
REQUESTS = 120
REQUESTS_PER_SECOND = 2
# How soon to look again whether another link's WebSocket to the same relay was answered.
LOOK_AGAIN = 1.0


@dataclass(frozen=True, slots=True)
class Route:
    """How an endpoint is not direct: ``via`` whom, and by which carrier."""

    via: str
    carrier: str


class LinkRelays:
    """The ends of one link. Methods return effects, and raise PeerMisbehaved for bad answers."""

    def __init__(self, peer: str, book: RelayBook, *, controlling: bool) -> None:
        self._peer = peer
        self._book = book
        self._controlling = controlling
        self._ends: list[RelayEnd] = []
        self._sent: OrderedDict[bytes, RelayRequest] = OrderedDict()
        self._channels: dict[int, RelayRequest] = {}
        self._openings = Budget(OPENINGS_PER_MINUTE / 60, OPENINGS)
        self._requests = Budget(REQUESTS_PER_SECOND, REQUESTS)
        self.demand = RelayDemand(controlling=controlling)

    @property
    def deadline(self) -> float | None:
        """When ``tick`` is due next."""
        wanted = self.demand.wanted
        due = [end.due for end in self._ends if wanted or not end.is_down]
        return earliest(self.demand.deadline, *due)

    @property
    def tickets(self) -> tuple[RelayTicket, ...]:
        """What the peer needs to bind its ends of the pairs that we allocated."""
        found = [end.ticket for end in self._ends if not end.is_down]
        return tuple(ticket for ticket in found if ticket is not None)[:MAX_TICKETS]

    @property
    def pending(self) -> bool:
        """Whether an answer is on its way that a description should wait for."""
        return any(end.state is End.ALLOCATING and not end.asked_anew for end in self._ends)

    @property
    def routes(self) -> dict[Endpoint, Route]:
        """The endpoints to check through relays."""
        return {
            endpoint: Route(end.relay, carrier)
            for end in self._ends
            for endpoint, carrier in end.usable.items()
        }

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels that are open, or being opened."""
        return tuple(self._channels)

    def results(self) -> tuple[RelayResult, ...]:
        """Return every relay's result, for ``why``."""
        return tuple(
            RelayResult(
                end.relay,
                end.state.value,
                None if end.rtt is None else end.rtt * 1000,
                end.reason,
            )
            for end in self._ends
        )

    def knows(self, transaction: bytes) -> bool:
        """Say whether a request with this transaction id is open."""
        return transaction in self._sent

    def fill(self, moment: Moment, *, live: bool, direct: bool) -> None:
        """Ask for ports until enough relays are in sight."""
        now = moment.now
        count = self.demand.count(now, live=live, direct=direct)
        missing = count - len({end.relay for end in self._ends if not end.is_down})
        if missing <= 0:
            return
        asked = {end.relay for end in self._ends}
        if not self._book.udp_seems_blocked(now):
            # The peer is the relay. Where it can be reached by UDP, it is reached directly.
            asked.add(self._peer)
            if self._book.silent_at is not None:
                self.demand.wait_until(self._book.silent_at)
        for offer in self._book.ranked(asked, first=self._peer)[:missing]:
            self._ends.append(end_from_offer(offer, moment))

    def take_tickets(self, tickets: tuple[RelayTicket, ...], now: float) -> None:
        """The peer lends us its ports: bind there, and need fewer of our own."""
        named = {ticket.pair for ticket in tickets}
        self._ends = [
            end
            for end in self._ends
            if end.is_ours or end.pair in named or (end.proven_at is not None and not end.is_down)
        ]
        for ticket in tickets:
            if not ticket.endpoints:
                continue
            ip = ticket.endpoints[0].ip
            relay = self._book.name_of(ip) or str(ip)
            self._take(ticket, relay, now)
        lent = {end.relay for end in self._ends if not end.is_ours and not end.is_down}
        if len(lent) >= RELAYS:
            self._ends = [e for e in self._ends if e.state is not End.ALLOCATING or e.ticket]

    def _take(self, ticket: RelayTicket, relay: str, now: float) -> None:
        for end in self._ends:
            if end.pair == ticket.pair:
                if not end.is_ours and (end.endpoints != ticket.endpoints or end.is_down):
                    end.endpoints, end.bound_at = ticket.endpoints, None
                    end.begin(End.BINDING, now)
                return
            # Both sides asked the same relay: the controlling side's pair stays.
            if end.is_ours and end.relay == relay and self._controlling and not end.is_down:
                return
        lent = [end for end in self._ends if not end.is_ours]
        if len(lent) >= MAX_TICKETS:
            return
        if not self._controlling:
            self._ends = [
                end
                for end in self._ends
                if not (end.is_ours and end.relay == relay and end.proven_at is None)
            ]
        self._ends.append(end_from_ticket(ticket, relay, now))

    def doubt(self, endpoint: Endpoint, now: float) -> None:
        """Checks through ``endpoint`` stop being answered: our address may have moved, bind anew."""
        end = self._at(endpoint)
        if end is not None and end.bound_at == endpoint and end.state is End.BOUND:
            end.begin(End.BINDING, now)

    def lost(self, endpoint: Endpoint, now: float) -> None:
        """Nothing comes through ``endpoint`` any more: ask whether the relay still knows us."""
        end = self._at(endpoint)
        if end is None or end.bound_at != endpoint or end.is_down:
            return
        end.proven_at = None
        end.asked_anew = end.is_ours
        end.begin(End.ALLOCATING if end.is_ours else End.BINDING, now)

    def revive(self, now: float) -> None:
        """Our address changed, or everything is sought anew: bind every end again."""
        for end in self._ends:
            if end.is_ours and (not end.endpoints or now - (end.proven_at or 0.0) > end.lifetime):
                end.begin(End.ALLOCATING, now)
            else:
                end.begin(End.BINDING, now)

    def proved(self, endpoint: Endpoint, rtt: float, now: float) -> None:
        """A check through ``endpoint`` was answered."""
        end = self._at(endpoint)
        if end is None:
            return
        end.proven_at, end.rtt = now, rtt
        if endpoint == end.bound_at:
            end.bound(endpoint)

    def tick(self, versions: frozenset[int], moment: Moment) -> list[PathEffect]:
        """Send what is due, give up what stayed silent."""
        now = moment.now
        effects: list[PathEffect] = []
        if self.demand.take_release(now):
            effects += [effect for channel in self.channels for effect in self._forget(channel)]
            self._ends.clear()
        for end in list(self._ends):
            if end.due is None or end.due > now:
                continue
            if end.is_down:
                self._retry(end, now)
            elif end.tries >= MAX_TRIES:
                self._exhausted(end, moment, effects)
            else:
                effects += self._ask(end, versions, moment)
        return effects

    def answered(
        self, message: StunMessage, source: Endpoint, versions: frozenset[int], moment: Moment
    ) -> list[PathEffect]:
        """Take a relay's answer to a request of ours."""
        request = self._sent[message.transaction]
        end = request.end
        if source != request.target:
            raise PeerMisbehaved("wrong_source", "a relay's answer from another address")
        request.authenticate(message)
        del self._sent[message.transaction]
        if end not in self._ends or end.state is not request.state:
            return []
        rtt = moment.now - request.at
        self._book.heard(end.relay, source, rtt)
        end.rtt = end.rtt if end.proven_at is not None else rtt
        if message.kind is StunKind.RESPONSE:
            self._agreed(end, message, source, moment.now)
        elif request.is_challenged_by(message):
            # The address is bound when the repeated request arrives, so checks may follow at once.
            end.nonce, end.bound_at = message.nonce, source
            end.due = moment.now
        else:
            self._refused(end, message.error_code, moment.now)
        return self.tick(versions, moment)

    def channel_opened(self, channel: int, endpoint: Endpoint) -> None:
        """A channel's loopback endpoint can be used."""
        request = self._channels.get(channel)
        if request is not None and request.state is End.BINDING:
            request.end.channel_endpoint = endpoint

    def channel_answered(self, channel: int, data: bytes, now: float) -> list[PathEffect]:
        """The relay answered the hello of a channel."""
        request = self._channels.get(channel)
        if request is None:
            return []
        end, message = request.end, parse_stun(data)
        request.authenticate(message)
        if end.websocket is not None and message.kind is StunKind.RESPONSE:
            self._book.openings.answered(self._namer(end), end.websocket)
        if message.kind is StunKind.RESPONSE and request.state is End.BINDING:
            end.state, end.due, end.reason, end.failures = End.BOUND, None, "", 0
            return []
        effects = self._forget(channel)
        end.by_channel = True
        if end.state is not request.state or end not in self._ends:
            return effects
        if message.kind is StunKind.RESPONSE:
            self._agreed(end, message, request.target, now)
        else:
            self._refused(end, message.error_code, now)
        return effects

    def channel_closed(self, channel: int, reason: str, now: float) -> None:
        """A channel ended: try again at once, once."""
        request = self._channels.get(channel)
        if request is None:
            return
        self._forget(channel)
        end = request.end
        if end.websocket is not None and end.state is not End.BOUND:
            self._book.openings.failed(end.websocket)
        if end.state is not End.BOUND or end.failures:
            end.give_up(End.SILENT, reason, now)
        else:
            end.failures += 1
            end.begin(End.BINDING, now)

    def _at(self, endpoint: Endpoint) -> RelayEnd | None:
        return next((end for end in self._ends if endpoint in end.usable), None)

    def _ask(self, end: RelayEnd, versions: frozenset[int], moment: Moment) -> list[PathEffect]:
        effects: list[PathEffect] = []
        if end.by_channel or self._book.udp_seems_blocked(moment.now):
            effects += self._open(end, moment)
        targets = end.targets(versions)
        if not targets:
            end.sent(moment.now)
            return effects or self._open(end, moment)
        target = targets[end.tries % len(targets)]
        if end.bound_at in targets and (end.nonce is not None or end.proven_at is not None):
            # The challenge was for this way; or the pair in use would lose its endpoint to the other.
            target = end.bound_at
        end.sent(moment.now)
        allowed = self._requests.spend(self._peer, moment.now)
        if not allowed or not self._book.may_send(target, moment.now):
            end.reason = "too many probes to this address"
            return effects
        self._book.asked(moment.now)
        transaction, data = end.request(moment)
        self._sent[transaction] = RelayRequest(end, end.state, target, moment.now)
        if len(self._sent) > MAX_TRANSACTIONS:
            self._sent.popitem(last=False)
        return [*effects, SendDatagram(data, target)]

    def _open(self, end: RelayEnd, moment: Moment) -> list[PathEffect]:
        """Open a WebSocket for what ``end`` wants, if it has none and the relay offers it."""
        if end.websocket is None or end.channel is not None:
            return []
        if not self._openings.spend(self._peer, moment.now):
            return []
        if not self._book.openings.may_open(self._namer(end), end.websocket, moment.now):
            end.reason = "its WebSocket was tried too often in vain"
            return []
        end.channel = self._book.next_channel()
        where = (end.control or end.endpoints)[0]
        self._channels[end.channel] = RelayRequest(end, end.state, where, moment.now)
        target = WebSocketTarget(end.websocket, end.hello(moment))
        return [OpenChannel(end.channel, self._peer, target)]

    def _namer(self, end: RelayEnd) -> str:
        """Return who named the WebSocket of ``end``: the relay in its offer, or the peer in a ticket."""
        return end.relay if end.is_ours else self._peer

    def _forget(self, channel: int) -> list[PathEffect]:
        request = self._channels.pop(channel)
        request.end.channel = request.end.channel_endpoint = None
        return [CloseChannel(channel)]

    def _agreed(self, end: RelayEnd, message: StunMessage, source: Endpoint, now: float) -> None:
        if end.state is End.BINDING:
            end.bound(source)
        elif message.relayed is None:
            end.give_up(End.REFUSED, "it named no port", now)
        else:
            end.granted(message.relayed.port, message.lifetime, now)

    def _refused(self, end: RelayEnd, code: int | None, now: float) -> None:
        reason = refusal_text(code)
        if end.state is End.BINDING and end.is_ours and not end.asked_anew:
            end.asked_anew = True
            end.begin(End.ALLOCATING, now)
        else:
            end.give_up(End.REFUSED, reason, now)

    def _exhausted(self, end: RelayEnd, moment: Moment, effects: list[PathEffect]) -> None:
        """Nothing answered by UDP: the WebSocket, another port, or another relay."""
        now = moment.now
        opened = self._open(end, moment)
        if opened:
            effects += opened
            end.due = now + PATIENCE
        elif end.channel is not None:
            until = self._channels[end.channel].at + PATIENCE
            if now < until:
                end.due = until
                return
            effects += self._forget(end.channel)
            if end.websocket is not None:
                self._book.openings.failed(end.websocket)
            end.give_up(End.SILENT, "no answer by UDP or WebSocket", now)
        elif end.websocket is not None and self._book.openings.is_pending(
            self._namer(end), end.websocket, now
        ):
            end.due = now + LOOK_AGAIN
        elif end.state is End.BINDING and end.is_ours and not end.asked_anew:
            end.asked_anew = True
            end.begin(End.ALLOCATING, now)
        elif end.bound_at is not None and (
            end.is_ours or end.nonce is not None or end.proven_at is not None
        ):
            # The relay lives, and says nothing to an address that is bound already; or chance took
            # all requests, and the heartbeat has yet to find that the path is lost.
            end.state, end.due = End.BOUND, None
        else:
            end.give_up(End.SILENT, "no answer", now)

    def _retry(self, end: RelayEnd, now: float) -> None:
        if not end.is_ours:
            end.begin(End.BINDING, now)
        elif len({e.relay for e in self._ends if not e.is_down}) < RELAYS:
            end.begin(End.ALLOCATING, now)
        else:
            self._ends.remove(end)
