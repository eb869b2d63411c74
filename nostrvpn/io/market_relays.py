"""Nostr relays as the market uses them: publish, fetch, listen, on connections of their own.

None of them is shared with the mesh, and each *lane* (selling, one lease, the list, whom the user
follows) has its own: a relay that sees one key does not learn that another is the same host's. Behind a
proxy each lane has a circuit of its own too; without one the address tells, as it does for any program.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from nostrvpn.config.addresses import check_relay_url
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.host.state import FWMARK
from nostrvpn.io.http_way import is_inside
from nostrvpn.io.market_link import Fetch, MarketLink
from nostrvpn.io.relays import RelaySockets
from nostrvpn.machine import Moment, earliest
from nostrvpn.nostr.event import Event, verify_event
from nostrvpn.nostr.filters import Filter
from nostrvpn.nostr.frames import render_event
from nostrvpn.nostr.nip59 import EPHEMERAL_WRAP, STORED_WRAP
from nostrvpn.signaling.relay_events import RelayClosed, RelayOpened, RelayText

if TYPE_CHECKING:
    from nostrvpn.io.proxy import SocksProxy

__all__ = ["Found", "MarketRelays"]

# Of one call: more relays than anybody waits for.
MAX_RELAYS: Final = 12
# Connections at a time, of all lanes; and of those, to relays that only a stranger named.
MAX_LINKS: Final = 96
MAX_STRANGE: Final = 32
# Connecting, an answer, and both once more with AUTH.
PUBLISH_S: Final = 12.0
# Once half of the relays have answered, the others get this much longer.
SETTLE_S: Final = 1.0
MAX_SEEN: Final = 4096

_WRAPS = frozenset((STORED_WRAP, EPHEMERAL_WRAP))
_Heard = Callable[[Event, str], None]


@dataclass(frozen=True, slots=True)
class Found:
    """A genuine event, and the relays that have it."""

    event: Event
    relays: frozenset[str]


@dataclass(slots=True)
class _Lane:
    heard: _Heard | None = None
    keys: Mapping[str, bytes] = field(default_factory=dict)
    urls: tuple[str, ...] = ()
    seen: OrderedDict[str, None] = field(default_factory=OrderedDict)


class MarketRelays:
    """Opened by use, ended by ``stop``. All methods belong on one event loop."""

    def __init__(
        self,
        moment: Callable[[], Moment],
        proxy: SocksProxy | None = None,
        mark: int = FWMARK,
        own: Collection[str] | None = None,
    ) -> None:
        """``mark`` is the packets' fwmark, which needs CAP_NET_ADMIN; 0: none.

        ``own``: the relays that the user chose, None: all. Any other is a stranger's word: buyers and
        sellers say where they listen. It may lead to public addresses only, and to few at a time.
        """
        self._moment, self._own = moment, own
        self.counters: Counter[str] = Counter()
        self.sockets = RelaySockets(self._deliver, proxy, mark, self._is_strange)
        self._links: dict[str, MarketLink] = {}
        self._lanes: dict[str, _Lane] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_stopping = False

    async def publish(
        self, event: Event, relays: Sequence[str], *, lane: str, enough: int = 0
    ) -> int:
        """Send an event to relays; return how many took it, after 12 s at most.

        ``enough``: return as soon as so many did; the others are told all the same.
        """
        frame, moment = render_event(event), self._moment()
        links = self._use(relays, lane)
        pending = {link.publish(event.id, frame, moment) for link in links}
        self._plan()
        accepted = 0
        end = asyncio.get_running_loop().time() + PUBLISH_S
        while pending and (not enough or accepted < enough):
            left = end - asyncio.get_running_loop().time()
            done, pending = await asyncio.wait(
                pending, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                break
            accepted += sum(future.result() for future in done)
        return accepted

    async def fetch(
        self, filters: Sequence[Filter], relays: Sequence[str], seconds: float, *, lane: str
    ) -> tuple[Found, ...]:
        """Return what relays have, each event once, verified and within the filters.

        Waits until all have answered, ``seconds`` at most, or one second after half of them have.
        """
        links = self._use(relays, lane)
        fetch = Fetch(filters, waiting={link.url for link in links})
        moment = self._moment()
        for link in links:
            link.ask(fetch, moment)
        self._plan()
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        try:
            while fetch.waiting and loop.time() < end:
                fetch.changed.clear()
                if 2 * len(fetch.waiting) <= len(links) and fetch.found:
                    end = min(end, loop.time() + SETTLE_S)
                try:
                    async with asyncio.timeout_at(end):
                        await fetch.changed.wait()
                except TimeoutError:
                    break
        finally:
            moment = self._moment()
            for link in links:
                link.forget(fetch, moment)
            self._plan()
        return tuple(Found(event, frozenset(urls)) for event, urls in fetch.found.values())

    def listen(
        self, lane: str, relays: Sequence[str], keys: Mapping[str, bytes], heard: _Heard
    ) -> None:
        """Pass on gift wraps to this complete set of keys (public key -> secret), until told otherwise.

        ``heard(event, url)`` gets each once, verified, not expired. The keys answer a relay's AUTH
        (NIP-42). Without keys the lane is let go.
        """
        known = self._lanes.setdefault(lane, _Lane())
        before = set(known.urls)
        known.heard, known.keys = heard, dict(keys)
        known.urls = _distinct(relays) if keys else ()
        moment = self._moment()
        for link in self._use(known.urls, lane):
            link.listen(keys, moment)
        for url in before - set(known.urls):
            link_there = self._links.get(f"{url}#{lane}")
            if link_there is not None:
                link_there.listen({}, moment)
        if not keys:
            del self._lanes[lane]
        self._plan()

    def retry_now(self) -> None:
        """The network changed: connect anew what is wanted and not connected."""
        moment = self._moment()
        for link in self._links.values():
            link.retry_now(moment)
        self._plan()

    def status(self) -> list[dict[str, object]]:
        """Return each connection: ``url``, ``lane``, ``open``, ``reason``, ``counters``."""
        return [
            {
                "url": link.url,
                "lane": name.partition("#")[2],
                "open": link.is_open,
                "reason": link.reason,
                "counters": dict(link.counters),
            }
            for name, link in self._links.items()
        ]

    async def stop(self) -> None:
        """Close every connection; who still waits is told that nothing came."""
        self._is_stopping = True
        if self._timer is not None:
            self._timer.cancel()
        await self.sockets.stop()
        for link in self._links.values():
            link.give_up()
        self._links.clear()

    def _use(self, relays: Sequence[str], lane: str) -> list[MarketLink]:
        """Return the links of a lane; none while stopping, and no more than there may be."""
        found = []
        for url in _distinct(relays):
            name = f"{url}#{lane}"
            link = self._links.get(name)
            if link is None:
                if self._is_strange(url) and not self._may_be_met(url):
                    self.counters["refused_relay"] += 1
                    continue
                if self._is_stopping or not self._has_room():
                    continue
                link = MarketLink(name, self.sockets, partial(self._hear, lane))
                self._links[name] = link
            found.append(link)
        return found

    def _is_strange(self, url: str) -> bool:
        return self._own is not None and url not in self._own

    def _may_be_met(self, url: str) -> bool:
        """Whether a relay that a stranger named may be connected to: well-formed, public, one of few.

        What a name resolves to is looked at when it is connected to (``RelaySockets``).
        """
        try:
            if check_relay_url(url) != url:
                return False
        except ValueError:
            return False
        if is_inside(urlsplit(url).hostname or ""):
            return False
        for name in [name for name, link in self._links.items() if link.is_quiet]:
            if self._is_strange(name.partition("#")[0]):
                del self._links[name]
        known = sum(self._is_strange(name.partition("#")[0]) for name in self._links)
        return known < MAX_STRANGE

    def _has_room(self) -> bool:
        """Whether there may be one more link; the oldest that rests makes room."""
        if len(self._links) >= MAX_LINKS:
            resting = next((name for name, link in self._links.items() if link.is_quiet), None)
            if resting is None:
                return False
            del self._links[resting]
        return True

    def _hear(self, lane: str, event: Event, url: str) -> str | None:
        """Pass on a new, genuine wrap to one of the lane's keys; return the offence otherwise."""
        known = self._lanes.get(lane)
        if known is None or known.heard is None:
            return "duplicate"  # on its way when the lane was let go
        if event.kind not in _WRAPS or known.keys.keys().isdisjoint(event.tag_values("p")):
            return "unasked"
        if event.id in known.seen:
            return "duplicate"
        try:
            verify_event(event)
        except PeerMisbehaved as exc:
            return exc.code
        known.seen[event.id] = None
        if len(known.seen) > MAX_SEEN:
            known.seen.popitem(last=False)
        if not _is_expired(event, self._moment().wall):
            known.heard(event, url)
        return None

    async def _deliver(self, happened: RelayOpened | RelayClosed | RelayText) -> None:
        link = self._links.get(happened.url)
        if link is None:
            return
        moment = self._moment()
        match happened:
            case RelayText(_, text):
                link.text(text, moment)
            case RelayOpened():
                link.opened(moment)
            case RelayClosed(_, reason):
                link.closed(reason, moment)
                link.tick(moment)
        self._plan()
        # A relay whose texts are all here already must not hold up everything else.
        await asyncio.sleep(0)

    def _plan(self) -> None:
        """Wake up when the next link is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = earliest(*(link.deadline for link in self._links.values()))
        if due is not None and not self._is_stopping:
            delay = max(0.0, due - self._moment().now)
            self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        moment = self._moment()
        for link in list(self._links.values()):
            if link.deadline is not None and link.deadline <= moment.now:
                link.tick(moment)
        self._plan()


def _distinct(relays: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(relays))[:MAX_RELAYS]


def _is_expired(event: Event, wall: float) -> bool:
    said = next(iter(event.tag_values("expiration")), "")
    return said.isdecimal() and len(said) < 16 and int(said) <= wall
