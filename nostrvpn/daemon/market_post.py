"""Lease messages on their way: sealed, through the tunnel where there is one, by relays otherwise."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from nostrvpn.daemon.supervise import Supervisor
from nostrvpn.endpoint import IPAddress
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.host.sold import CONTROL_PORT
from nostrvpn.host.state import FWMARK
from nostrvpn.io.market_relays import MarketRelays
from nostrvpn.io.peer_channel import PeerChannel
from nostrvpn.machine import Moment
from nostrvpn.market.effects import Heard, Tell
from nostrvpn.market.pace import Pace
from nostrvpn.market.sealing import (
    KEPT_S,
    Opened,
    open_sealed,
    open_wrapped,
    seal_message,
    sealed_text,
    wrap_message,
)
from nostrvpn.nostr.event import Event, public_key

__all__ = ["Correspondent", "MarketPost"]

# Messages that were opened, so that a relay that repeats one is not heard: an hour of a busy seller's.
MAX_SEEN: Final = 20_000
# Wraps of relays that are opened for one key, a second and at once: each takes a millisecond or two, and
# whoever knows an offer may send any number. What comes through tunnels is not counted.
OPENED: Final = 50.0
OPENED_BURST: Final = 200.0
# A message through a tunnel is taken or has failed after eight seconds (``peer_channel.py``).
UNDER_WAY_S: Final = 60.0
# Of the sender's clock and ours.
SKEW_S: Final = 600

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Sent:
    effect: Tell
    seal: Event
    to: str
    at: float


@dataclass(slots=True)
class Correspondent:
    """One key of ours: its secret, the lane of its connections, and where it is reached in tunnels."""

    secret: bytes = field(repr=False)
    lane: str
    heard: Callable[[Heard], None]
    undelivered: Callable[[Tell], None]
    key: str = ""
    relays: tuple[str, ...] = ()
    channels: dict[tuple[str, IPAddress], PeerChannel] = field(default_factory=dict)
    pace: Pace = field(default_factory=lambda: Pace(OPENED, OPENED_BURST))


class MarketPost:
    """The post of one daemon, on the running loop. ``counters``: what was dropped, by reason."""

    def __init__(self, relays: MarketRelays, moment: Callable[[], Moment]) -> None:
        self._relays, self._moment = relays, moment
        self._here: dict[str, Correspondent] = {}
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._under_way: dict[str, tuple[Correspondent, _Sent]] = {}
        self._serial = 0
        self._tasks = Supervisor()
        self.counters: Counter[str] = Counter()

    def add(self, who: Correspondent) -> None:
        """Receive for a key of ours from now on, once ``listen`` says where."""
        who.key = public_key(who.secret)
        self._here[who.key] = who

    def listen(self, who: Correspondent, relays: Sequence[str]) -> None:
        """Receive by these relays; none: by no relay."""
        who.relays = tuple(relays)
        keys = {who.key: who.secret} if relays else {}
        self._relays.listen(who.lane, relays, keys, self._wrapped)

    async def use(self, who: Correspondent, link: str, addresses: Sequence[IPAddress]) -> None:
        """Receive through the tunnel at these own addresses of a link, and nowhere else."""
        wanted = {(link, address) for address in addresses}
        for place in who.channels.keys() - wanted:
            await who.channels.pop(place).close()
        for place in wanted:
            channel = who.channels.get(place)
            if channel is None:
                channel = who.channels[place] = self._channel(who)
            await channel.use(*place)

    async def remove(self, who: Correspondent) -> None:
        """Receive for a key no more."""
        self.listen(who, ())
        await self.use(who, "", ())
        self._here.pop(who.key, None)

    def tell(self, who: Correspondent, effect: Tell) -> None:
        """Send one message; ``who.undelivered`` if nobody took it."""
        moment = self._moment()
        try:
            sent = _Sent(
                effect,
                seal_message(effect.text, who.secret, effect.to, moment),
                effect.to,
                moment.now,
            )
        except PeerMisbehaved as exc:
            self.counters[exc.code] += 1
            return
        channel = self._channel_to(who, effect.via)
        if channel is None or effect.via is None:
            self._by_relays(who, sent)
            return
        self._serial += 1
        token = str(self._serial)
        self._under_way[token] = who, sent
        channel.send(effect.via, sealed_text(sent.seal), token)
        while (oldest := next(iter(self._under_way))) and (
            self._under_way[oldest][1].at < moment.now - UNDER_WAY_S
        ):
            # What was taken is not told; those are long gone one way or the other.
            del self._under_way[oldest]

    @property
    def is_busy(self) -> bool:
        """Whether messages are on their way to relays."""
        return len(self._tasks) > 0

    async def stop(self) -> None:
        """Send what is under way no further, and close all."""
        await self._tasks.stop()
        for who in list(self._here.values()):
            await self.remove(who)

    # -- out ----------------------------------------------------------------------------------

    def _channel_to(self, who: Correspondent, via: IPAddress | None) -> PeerChannel | None:
        if via is None:
            return None
        found = (c for (_, own), c in who.channels.items() if own.version == via.version)
        return next(found, None)

    def _channel(self, who: Correspondent) -> PeerChannel:
        def heard(address: IPAddress, text: str) -> None:
            try:
                self._opened(who, open_sealed(text, who.secret), address)
            except PeerMisbehaved as exc:
                self.counters[exc.code] += 1

        return PeerChannel(CONTROL_PORT, heard, self._not_taken, FWMARK)

    def _not_taken(self, token: str) -> None:
        found = self._under_way.pop(token, None)
        if found is not None:
            self._by_relays(*found)

    def _by_relays(self, who: Correspondent, sent: _Sent) -> None:
        self._tasks.start("lease message", self._publish(who, sent))

    async def _publish(self, who: Correspondent, sent: _Sent) -> None:
        effect = sent.effect
        relays = effect.relays or who.relays
        taken = 0
        if relays:
            wrap = wrap_message(sent.seal, sent.to, self._moment(), stored=effect.stored)
            taken = await self._relays.publish(wrap, relays, lane=who.lane, enough=1)
        if not taken:
            self.counters["undelivered"] += 1
            _log.debug("a lease message went nowhere: %s", effect.lease_id)
            who.undelivered(effect)

    # -- in -----------------------------------------------------------------------------------

    def _wrapped(self, event: Event, _url: str) -> None:
        for key in event.tag_values("p"):
            who = self._here.get(key)
            if who is None:
                continue
            if not who.pace.take(1.0, self._moment().now):
                self.counters["crowded"] += 1
                continue
            try:
                self._opened(who, open_wrapped(event, who.secret), None)
            except PeerMisbehaved as exc:
                self.counters[exc.code] += 1

    def _opened(self, who: Correspondent, opened: Opened, at: IPAddress | None) -> None:
        wall = self._moment().wall
        if not wall - KEPT_S - SKEW_S <= opened.created_at <= wall + SKEW_S:
            raise PeerMisbehaved("stale", "a message of another time")
        if opened.id in self._seen:
            raise PeerMisbehaved("replayed", "a message that was here before")
        self._seen[opened.id] = None
        if len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
        who.heard(Heard(opened.sender, opened.text, at))
