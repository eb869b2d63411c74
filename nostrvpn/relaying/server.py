"""The relay: who may have a port, which addresses are bound to it, when it is taken back.

What a request must have (``nostrvpn/stun/relaying.py`` has the messages)::

    Allocate  USERNAME USER:PAIR, integrity by the user's key   -> the port, the same for the same pair
    Bind      USERNAME PAIR:SIDE, integrity by the side's key   -> 401 and a nonce for this address
              the same with the nonce                           -> bound; the old address is replaced
              of a pair that is not here                        -> 437: allocate anew

Nobody is sent more bytes than he sent, before he has shown that he receives at his address: each
answer is at most as long as its request, and there are budgets per address and in total, also for
looking at requests at all. Everything else is dropped and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from ipaddress import IPv4Address

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment, Tick, earliest
from nostrvpn.relaying.events import (
    AllocateReceived,
    Channel,
    ChannelClosed,
    ChannelOpened,
    ChannelReceived,
    CloseChannel,
    ClosePort,
    CountersRead,
    End,
    Forward,
    OpenPort,
    PortOpened,
    PortReceived,
    PortRefused,
    RelayEffect,
    RelayEvent,
    Source,
    Unforward,
    Users,
)
from nostrvpn.relaying.limits import Limits
from nostrvpn.relaying.metering import Meter, month_of
from nostrvpn.relaying.nonces import Nonces
from nostrvpn.relaying.pairs import Pair, Pairs, origin_of
from nostrvpn.relaying.requests import Request, parse_request
from nostrvpn.relaying.settings import RelaySettings
from nostrvpn.relaying.snapshot import RelaySnapshot, snapshot_of
from nostrvpn.stun.binding import render_response
from nostrvpn.stun.relaying import (
    ERROR_CAPACITY,
    ERROR_MISMATCH,
    ERROR_QUOTA,
    ERROR_STALE_NONCE,
    ERROR_UNAUTHORIZED,
    Side,
    render_allocated,
    render_relay_error,
    side_key,
    user_key,
)

__all__ = ["RelayServer"]

# The address in an Allocate's answer says nothing: ours are in the offer.
NO_ADDRESS = IPv4Address(0)


class RelayServer:
    """All pairs of one relay. ``secret`` is 32 bytes; all credentials follow from it.

    ``month`` ("2026-11") and ``month_bytes`` are what the last snapshot of an earlier run had.
    """

    def __init__(
        self, secret: bytes, settings: RelaySettings, month: str = "", month_bytes: int = 0
    ) -> None:
        self._secret = secret
        self._settings = settings
        self._users: frozenset[str] = frozenset()
        self._pairs = Pairs(settings)
        self._nonces = Nonces()
        self._channels: dict[int, IPAddress] = {}
        self._meter = Meter(settings.monthly_bytes, month, month_bytes)
        self._limits = Limits()
        # No pair is due earlier: their deadlines only move away.
        self._due: float | None = None
        self.counters: Counter[str] = Counter()

    @property
    def deadline(self) -> float | None:
        """When to look for ports to take back; not later than the first is due."""
        return self._due

    def step(self, event: RelayEvent, moment: Moment) -> list[RelayEffect]:
        """Take one event; return what to do, in this order."""
        effects = self._expire(moment)
        match event:
            case Users(names):
                effects += self._set_users(names)
            case AllocateReceived(data, source):
                effects += self._received(data, source, None, None, moment)
            case PortReceived(port, data, source, local_ip):
                effects += self._received(data, source, port, local_ip, moment)
            case ChannelReceived(number, data) if number in self._channels:
                effects += self._received(data, Channel(number), None, None, moment)
            case ChannelOpened(number, ip):
                if len(self._channels) >= self._settings.max_channels:
                    self.counters["too_many_channels"] += 1
                    return [*effects, CloseChannel(number)]
                self._channels[number] = ip
            case ChannelClosed(number):
                effects += self._channel_closed(number)
            case PortOpened(port):
                effects += self._port_opened(port)
            case PortRefused(port):
                effects += self._port_refused(port, moment)
            case CountersRead(carried):
                effects += self._count(carried, moment)
            case ChannelReceived() | Tick():
                pass
        return effects

    def snapshot(self, moment: Moment) -> RelaySnapshot:
        """Return what status shows, and what to give to the next run."""
        return RelaySnapshot(
            tuple(snapshot_of(pair, moment.now) for pair in self._pairs),
            len(self._channels),
            month_of(moment),
            self._meter.carried(moment),
            self._meter.is_used_up(moment),
            self._settings,
            dict(self.counters),
        )

    # Requests

    def _received(
        self,
        data: bytes,
        source: Source,
        port: int | None,
        local_ip: IPAddress | None,
        moment: Moment,
    ) -> list[RelayEffect]:
        ip = self._channels[source.number] if isinstance(source, Channel) else source.ip
        origin = origin_of(ip)
        limited = self._limits.refuse_request(origin, moment.now)
        if limited is not None:
            return self._drop(limited)
        try:
            request = parse_request(data, source, port, local_ip)
        except PeerMisbehaved as exc:
            return self._drop(exc.code)
        if request.side is not None:
            return self._bind(request, request.side, moment)
        return self._allocate(request, origin, moment)

    def _allocate(self, request: Request, origin: str, moment: Moment) -> list[RelayEffect]:
        user, name = request.user, request.pair
        key = user_key(self._secret, user)
        is_known = user in self._users
        if not (is_known or self._settings.for_anyone) or not request.message.is_authentic(key):
            return self._refuse_bare(request, ERROR_UNAUTHORIZED, moment)
        pair = self._pairs.named(name)
        if pair is not None and pair.user != user:
            return self._refuse(request, ERROR_MISMATCH, key)
        if pair is None:
            if self._meter.is_used_up(moment) or self._pairs.is_full_for(user, origin, is_known):
                return self._refuse(request, ERROR_QUOTA, key)
            port = self._pairs.free_port(moment.entropy)
            if port is None:
                return self._refuse(request, ERROR_CAPACITY, key)
            pair = Pair(name, user, origin, port, moment.now, moment.now)
            pair.waiting = request
            self._pairs.add(pair)
            self._due = earliest(self._due, pair.deadline(self._settings))
            self.counters["allocated"] += 1
            return [OpenPort(port)]
        if pair.waiting is not None:
            pair.waiting = request
            return []
        return self._answer(request, self._allocated(request, pair, key))

    def _allocated(self, request: Request, pair: Pair, key: str) -> bytes:
        relayed, lifetime = Endpoint(NO_ADDRESS, pair.port), int(self._settings.idle_s)
        return render_allocated(request.message.transaction, relayed, lifetime, key)

    def _port_opened(self, port: int) -> list[RelayEffect]:
        pair = self._pairs.at(port)
        if pair is None:
            return [ClosePort(port)]
        if pair.waiting is None:
            return []
        request, pair.waiting = pair.waiting, None
        return self._answer(
            request, self._allocated(request, pair, user_key(self._secret, pair.user))
        )

    def _port_refused(self, port: int, moment: Moment) -> list[RelayEffect]:
        self.counters["port_refused"] += 1
        pair = self._pairs.at(port)
        if pair is None:
            return []
        waiting = pair.waiting
        if waiting is not None and self._pairs.refuse(pair, moment.entropy):
            return [OpenPort(pair.port)]
        if waiting is None:
            return self._end(pair, "port_lost")
        return self._refuse(waiting, ERROR_CAPACITY, user_key(self._secret, pair.user))

    def _bind(self, request: Request, side: Side, moment: Moment) -> list[RelayEffect]:
        pair = self._pairs.named(request.pair)
        if pair is None or (request.port is not None and request.port != pair.port):
            return self._refuse_bare(request, ERROR_MISMATCH, moment)
        key = side_key(user_key(self._secret, pair.user), pair.name, side)
        if not request.message.is_authentic(key):
            return self._drop("bad_integrity")
        source, nonce = request.source, request.message.nonce
        if isinstance(source, Channel):
            return self._bound(
                request, pair, side, self._channel_bound_answer(request, key), moment
            )
        if nonce is None or not self._is_fresh(nonce, source, pair, side, moment):
            code = ERROR_UNAUTHORIZED if nonce is None else ERROR_STALE_NONCE
            if nonce is not None:
                self.counters["stale_nonce"] += 1
            fresh = self._nonces.make(source, _subject(pair, side, pair.binds[side]), moment)
            return self._refuse(request, code, key, fresh)
        other = pair.other(side)
        if other is not None and other.source == source:
            return self._drop("both_sides_at_one_address")
        answer = render_response(request.message.transaction, source, key)
        return self._bound(request, pair, side, answer, moment)

    def _channel_bound_answer(self, request: Request, key: str) -> bytes:
        # By WebSocket there is no mapped port; the address is the one that the server saw.
        assert isinstance(request.source, Channel)
        seen = Endpoint(self._channels[request.source.number], 1)
        return render_response(request.message.transaction, seen, key)

    def _is_fresh(
        self, nonce: bytes, source: Endpoint, pair: Pair, side: Side, moment: Moment
    ) -> bool:
        count = pair.binds[side]
        if self._nonces.accepts(nonce, source, _subject(pair, side, count), moment):
            return True
        # Our answer to it was lost: it changes nothing, so it may come again.
        end = pair.ends.get(side)
        return (
            end is not None
            and end.source == source
            and self._nonces.accepts(nonce, source, _subject(pair, side, count - 1), moment)
        )

    def _bound(
        self, request: Request, pair: Pair, side: Side, answer: bytes, moment: Moment
    ) -> list[RelayEffect]:
        effects = self._answer(request, answer)
        end = End(request.source, request.local_ip)
        before = pair.ends.get(side)
        pair.active_at = moment.now
        if before == end:
            return effects
        if isinstance(request.source, Channel):
            effects = [*self._leave(request.source), *effects]
        if before is None or before.source != end.source:
            pair.binds[side] += 1
        pair.ends[side] = end
        pair.was_bound = True
        self.counters["bound" if before is None else "rebound"] += 1
        if before is not None and isinstance(before.source, Channel):
            self._channels.pop(before.source.number, None)
            effects.append(CloseChannel(before.source.number))
        a, b = pair.ends.get(Side.ALLOCATOR), pair.ends.get(Side.OTHER)
        if a is not None and b is not None:
            effects.append(Forward(pair.port, a, b))
        return effects

    # Answers

    def _refuse(
        self, request: Request, code: int, key: str | None, nonce: bytes | None = None
    ) -> list[RelayEffect]:
        self.counters[f"refused_{code}"] += 1
        message = request.message
        answer = render_relay_error(message.method, message.transaction, code, key, nonce)
        return self._answer(request, answer)

    def _refuse_bare(self, request: Request, code: int, moment: Moment) -> list[RelayEffect]:
        if not self._limits.may_refuse(moment.now):
            return self._drop("limited_refusals")
        return self._refuse(request, code, None)

    def _answer(self, request: Request, data: bytes) -> list[RelayEffect]:
        effects = request.answer(data)
        return self._drop("answer_longer_than_request") if effects is None else effects

    def _drop(self, reason: str) -> list[RelayEffect]:
        self.counters[reason] += 1
        return []

    # Ends of pairs

    def _set_users(self, names: frozenset[str]) -> list[RelayEffect]:
        gone = self._users - names
        self._users = names
        ended = [pair for pair in self._pairs if pair.user in gone]
        return [effect for pair in ended for effect in self._end(pair, "user_gone")]

    def _channel_closed(self, number: int) -> list[RelayEffect]:
        self._channels.pop(number, None)
        return self._leave(Channel(number))

    def _leave(self, channel: Channel) -> list[RelayEffect]:
        """Unbind a WebSocket from the pair it was bound to."""
        for pair in self._pairs:
            for side, end in tuple(pair.ends.items()):
                if end.source == channel:
                    was_whole = len(pair.ends) == 2
                    del pair.ends[side]
                    return [Unforward(pair.port)] if was_whole else []
        return []

    def _expire(self, moment: Moment) -> list[RelayEffect]:
        if self._due is None or moment.now < self._due:
            return []
        due = [pair for pair in self._pairs if pair.deadline(self._settings) <= moment.now]
        effects = [
            effect
            for pair in due
            for effect in self._end(pair, "expired" if pair.was_bound else "expired_unbound")
        ]
        self._due = earliest(*(pair.deadline(self._settings) for pair in self._pairs))
        return effects

    def _end(self, pair: Pair, reason: str) -> list[RelayEffect]:
        self.counters[reason] += 1
        self._pairs.remove(pair)
        effects: list[RelayEffect] = [Unforward(pair.port)] if len(pair.ends) == 2 else []
        for end in pair.ends.values():
            if isinstance(end.source, Channel):
                self._channels.pop(end.source.number, None)
                effects.append(CloseChannel(end.source.number))
        return [*effects, ClosePort(pair.port)]

    def _count(self, carried: Mapping[int, int], moment: Moment) -> list[RelayEffect]:
        for pair in self._pairs:
            total = carried.get(pair.port, 0)
            if total > pair.carried:
                self._meter.add(total - pair.carried, moment)
                pair.carried = total
                pair.active_at = moment.now
        if not self._meter.is_used_up(moment):
            return []
        return [effect for pair in self._pairs for effect in self._end(pair, "month_used_up")]


def _subject(pair: Pair, side: Side, count: int) -> str:
    return f"{pair.user} {pair.name} {side.value} {count} {pair.made_at}"
