"""The board of offers: publishes this host's own, finds others', and says how far each is trusted."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, Final

import msgspec

from nostrvpn.daemon.market_opinions import BOARD_SPACE, BoardSettings, Opinions
from nostrvpn.errors import PeerMisbehaved, UserError
from nostrvpn.identity.keys import RootSecret
from nostrvpn.io.market_relays import Found, MarketRelays
from nostrvpn.io.store import Record, Store
from nostrvpn.machine import Moment
from nostrvpn.market.book import AnyOffer, Book
from nostrvpn.market.foreign import (
    CLASSIFIED_KIND,
    CLASSIFIED_TOPIC,
    PAID_ROUTE_KIND,
    mirror_event,
    parse_foreign,
)
from nostrvpn.market.listing import Asked, Row, Viewer, rows
from nostrvpn.market.offer import (
    OFFER_KIND,
    OFFER_TOPIC,
    Offer,
    offer_event,
    parse_offer,
    withdrawal_event,
)
from nostrvpn.market.ratings import RATING_PAUSE_S, Rating, rating_event, report_event
from nostrvpn.market.terms import PayMode
from nostrvpn.market.trust import Evidence, History, Probe, Trust, judge
from nostrvpn.market.wish import Candidate
from nostrvpn.nostr.event import Event, public_key

__all__ = ["LANE_SELL", "REFRESH_S", "MarketBoard"]

LANE_SELL: Final = "sell"
# How often the own offer is published, and again where no relay took it.
REFRESH_S: Final = 600.0
RETRY_S: Final = 30.0
FETCH_S: Final = 4.0
# Who looks twice within this time sees the same list.
FRESH_S: Final = 20.0
WITHDRAW_S: Final = 4.0
_PAST_SPACE: Final = "past"
_PROBE_SPACE: Final = "probe"
_MAX_PAST: Final = 1000
_HOUR_S: Final = 3600
_LIMIT: Final = 500
_NAMED: Final = 100

_log = logging.getLogger("nostrvpn.market")


class MarketBoard:
    """``mints``: where the wallet may hold money, None: not known; ``pay``: modes that this host can."""

    def __init__(
        self,
        relays: MarketRelays,
        store: Store,
        root: RootSecret,
        settings: BoardSettings,
        moment: Callable[[], Moment],
    ) -> None:
        self.mints: frozenset[str] | None = None
        self.pay = frozenset(PayMode) - {PayMode.ESCROW}
        self._relays, self._store, self._root = relays, store, root
        self._settings, self._moment = settings, moment
        own = frozenset((root.public_key, public_key(root.rating_key())))
        self.opinions = Opinions(relays, store, settings, own, moment)
        self._book = Book(self._salt(), first_seen=_numbers(store.get(BOARD_SPACE, "first_seen")))
        self._saved = dict(self._book.first_seen)
        self._past = [msgspec.convert(value, History) for value in store.all(_PAST_SPACE).values()]
        self._probes = _probes(store.all(_PROBE_SPACE))
        self._seller = public_key(root.market_key())
        self._own: Offer | None = None
        self._has_mirror = False
        self._out: set[str] = set()  # addresses that relays may have
        self._signed_at = 0
        self._changed = asyncio.Event()
        self._lock = asyncio.Lock()
        self._fetched_at: float | None = None
        self.accepted = 0  # relays that took the own offer last
        # Of the own offer, of late: as long as one lasts, and for who was slow.
        self.events: deque[str] = deque(maxlen=8)

    def _salt(self) -> bytes:
        known = self._store.get(BOARD_SPACE, "salt")
        if isinstance(known, str):
            return bytes.fromhex(known)
        salt = os.urandom(16)
        self._store.put([Record(BOARD_SPACE, "salt", salt.hex())])
        return salt

    # -- the own offer ------------------------------------------------------------------------

    def offer(self, offer: Offer | None, *, mirror: bool = False) -> None:
        """Publish this offer from now on, or with None take back what is out."""
        if (offer, mirror) != (self._own, self._has_mirror):
            self._own, self._has_mirror = offer, mirror
            self._changed.set()

    async def run(self) -> None:
        """Keep the offer published until cancelled; then ``withdraw`` takes it back."""
        while True:
            self._changed.clear()
            if self._own is None:
                await self.withdraw()
                await self._changed.wait()
                continue
            self.accepted = await self._publish_own(self._own)
            if not self.accepted:
                _log.warning("no relay took the offer")
            try:
                async with asyncio.timeout(REFRESH_S if self.accepted else RETRY_S):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _publish_own(self, offer: Offer) -> int:
        secret = self._root.market_key()
        mirrored = f"{CLASSIFIED_KIND}:{offer.seller}:{offer.offer_id}"
        wanted = {offer.address, mirrored} if self._has_mirror else {offer.address}
        await self._take_back(self._out - wanted)
        await self._next_second()
        moment = self._moment()
        self._signed_at = int(moment.wall)
        event = offer_event(offer, secret, moment)
        self._out |= wanted
        self.events.append(event.id)
        accepted = await self._publish(event, LANE_SELL)
        if self._has_mirror:
            await self._publish(mirror_event(offer, secret, moment), LANE_SELL)
        return accepted

    async def withdraw(self) -> None:
        """Take back what is out (NIP-09), within four seconds; what no relay hears of expires."""
        if self._out:
            await self._take_back(self._out)
            self.accepted = 0

    async def _take_back(self, addresses: set[str]) -> None:
        moment = self._moment()
        for address in sorted(addresses):
            event = withdrawal_event(address, self._root.market_key(), moment)
            self._signed_at = event.created_at
            try:
                async with asyncio.timeout(WITHDRAW_S):
                    await self._publish(event, LANE_SELL)
            except TimeoutError:
                _log.warning("no relay heard that the offer was taken back; it expires")
        self._out = self._out - addresses

    async def _next_second(self) -> None:
        """Of two events of one second relays keep either, and a deletion covers its own second."""
        left = self._signed_at + 1 - self._moment().wall
        if 0 < left <= 1:
            await asyncio.sleep(left)

    async def _publish(self, event: Event, lane: str) -> int:
        return await self._relays.publish(event, self._settings.relays, lane=lane)

    # -- others' offers -----------------------------------------------------------------------

    async def refresh(self, *, force: bool = False) -> None:
        """Fetch offers and opinions of their sellers, unless that was done just now."""
        async with self._lock:
            now = self._moment().now
            is_fresh = self._fetched_at is not None and now - self._fetched_at < FRESH_S
            if is_fresh and not force:
                return
            await self._fetch_offers()
            await self.opinions.refresh(self.sellers(), force=force)
            self._fetched_at = self._moment().now
            if self._book.first_seen != self._saved:
                self._saved = dict(self._book.first_seen)
                self._store.put([Record(BOARD_SPACE, "first_seen", self._saved)])

    async def _fetch_offers(self) -> None:
        # By the whole hour: to the second it would tell whose clock it is.
        since = (int(self._moment().wall) - _HOUR_S) // _HOUR_S * _HOUR_S
        # Asked for by name, sellers of before are found however many new ones push them off the end.
        names = sorted(self._known())[:_NAMED] + list(self._book.oldest(_NAMED))
        asked: list[dict[str, object]] = [
            {"kinds": [OFFER_KIND], "#t": [OFFER_TOPIC], "since": since, "limit": _LIMIT},
            {"kinds": [OFFER_KIND], "authors": sorted(set(names)), "since": since},
            {"kinds": [PAID_ROUTE_KIND], "since": since, "limit": 100},
            {"kinds": [CLASSIFIED_KIND], "#t": [CLASSIFIED_TOPIC], "limit": 100},
        ]
        found = await self._relays.fetch(asked, self._settings.relays, FETCH_S, lane="list")
        now = int(self._moment().wall)
        brought = [(offer, one.relays) for one in found if (offer := self._parsed(one, now))]
        counts = Counter(url for one in found for url in one.relays)
        # With as many as that a relay may have left some out.
        complete = [url for url, count in counts.items() if count < _LIMIT // 2]
        self._book.keep_only([offer.address for offer, _ in brought], complete)
        self._book.add(brought, self._known(), now)

    def _parsed(self, found: Found, now: int) -> AnyOffer | None:
        try:
            if found.event.kind == OFFER_KIND:
                return parse_offer(found.event, now)
            return parse_foreign(found.event, now)
        except PeerMisbehaved as exc:
            self._book.counters[exc.code] += 1
            return None

    def _known(self) -> frozenset[str]:
        """Return the sellers that are no strangers: they keep their place whatever floods the relays."""
        opinions = self.opinions
        bought = {one.seller for one in self._past} | self._probes.keys()
        rated = opinions.ratings().keys() | opinions.ranks.keys()
        return frozenset(bought | rated | opinions.allowed | {self._seller})

    def sellers(self) -> frozenset[str]:
        """Return whose offers are on the board."""
        return frozenset(one.offer.seller for one in self._book.offers(self._wall))

    @property
    def _wall(self) -> int:
        return int(self._moment().wall)

    def candidates(self, *, by_invoice: bool = False) -> tuple[Candidate, ...]:
        """Return the offers that a buyer may take: bought with what we have, by none that is refused.

        ``by_invoice``: whatever mints they take.
        """
        listed = self._rows(Asked(), None if by_invoice else self.mints)
        return tuple(
            Candidate(row.offer, row.trust.score)
            for row in listed
            if row.is_usable and isinstance(row.offer, Offer)
        )

    def why_not(self, offer: AnyOffer, *, by_invoice: bool) -> str:
        """Return why an offer is none of ``candidates``, in words; empty if it is one."""
        listed = self._rows(Asked(), None if by_invoice else self.mints)
        row = next((row for row in listed if row.offer.address == offer.address), None)
        return (
            "it is this host's own" if row is None else "; ".join(text for _, text in row.why_not)
        )

    def rows(self, asked: Asked) -> tuple[Row, ...]:
        """Return the list as it is now; ``refresh`` fetches."""
        return self._rows(asked, self.mints)

    def _rows(self, asked: Asked, mints: frozenset[str] | None) -> tuple[Row, ...]:
        now, trust = self._wall, self._trusts()
        judged = [
            (one.offer, trust(one.offer))
            for one in self._book.offers(now)
            if one.offer.seller != self._seller
        ]
        probes = {key: probe for key, probe in self._probes.items() if not probe.is_old(now)}
        places = {key: probe.place for key, probe in probes.items() if probe.place}
        viewer = Viewer(mints, self.pay, self.opinions.lists, places, probes)
        return rows(judged, asked, viewer, now)

    def find(self, ref: str) -> tuple[AnyOffer, Trust]:
        """Return the offer that a reference means, and how far it is trusted; UserError."""
        offer = self._book.find(ref, self._wall)
        return offer, self._trusts()(offer)

    def _trusts(self) -> Callable[[AnyOffer], Trust]:
        ratings, circle, now = self.opinions.ratings(), self.opinions.circle, self._wall
        past: dict[str, list[History]] = {}
        for one in self._past:
            past.setdefault(one.seller, []).append(one)

        def trust(offer: AnyOffer) -> Trust:
            evidence = Evidence(
                seller=offer.seller,
                history=past.get(offer.seller, ()),
                ratings=ratings.get(offer.seller, ()),
                rank=self.opinions.ranks.get(offer.seller),
                first_seen=self._book.first_seen.get(offer.seller),
                probe=self._probes.get(offer.seller),
                claimed=offer.country,
            )
            return judge(evidence, circle, now)

        return trust

    # -- what this host itself found ----------------------------------------------------------

    def record(self, history: History) -> None:
        """Remember how a lease ended; the same lease again replaces what was known of it."""
        self._past = [one for one in self._past if one.lease_id != history.lease_id]
        self._past.append(history)
        value = asdict(history) | {"outcome": history.outcome.value}
        records = [Record(_PAST_SPACE, history.lease_id, value)]
        self._past.sort(key=lambda one: one.at)
        gone, self._past = self._past[:-_MAX_PAST], self._past[-_MAX_PAST:]
        self._store.put(records + [Record(_PAST_SPACE, one.lease_id, None) for one in gone])

    def probed(self, seller: str, probe: Probe) -> None:
        """Remember what was measured of a seller, beside what was known of it."""
        known = self._probes.pop(seller, Probe())
        made = self._probes[seller] = known.then(replace(probe, at=self._wall))
        records = [Record(_PROBE_SPACE, seller, asdict(made))]
        while len(self._probes) > _MAX_PAST:
            oldest = next(iter(self._probes))
            del self._probes[oldest]
            records.append(Record(_PROBE_SPACE, oldest, None))
        self._store.put(records)

    def lease(self, ref: str) -> History | None:
        """Return the lease whose id this is or begins with (6 characters at least), None if none."""
        found = [one for one in self._past if one.lease_id.startswith(ref)] if len(ref) > 5 else []
        return found[0] if len(found) == 1 else None

    # -- what it says of others ---------------------------------------------------------------

    async def rate(self, rating: Rating, *, as_main: bool = False) -> int:
        """Publish a rating; return how many relays took it. UserError if the last is too young."""
        now = self._wall
        before = self.opinions.given(rating.seller)
        if before is not None and now - before.created_at < RATING_PAUSE_S:
            text = "you rated this seller less than an hour ago"
            raise UserError(text, "ratings are dated by the hour: try again in the next one")
        secret = self._rating_secret(as_main=as_main)
        event = rating_event(rating, secret, self._moment())
        dated = replace(rating, author=event.pubkey, created_at=event.created_at)
        self.opinions.give(dated)
        return await self._publish(event, "rating-main" if as_main else "rating")

    async def report(self, seller: str, kind: str, *, as_main: bool = False) -> int:
        """Publish a report of abuse (NIP-56); return how many relays took it."""
        secret = self._rating_secret(as_main=as_main)
        event = report_event(seller, kind, secret, self._moment())
        return await self._publish(event, "rating-main" if as_main else "rating")

    def _rating_secret(self, *, as_main: bool) -> bytes:
        return self._root.reveal() if as_main else self._root.rating_key()

    def summary(self) -> Mapping[str, Any]:
        """Return what is known of relays and people, for the list's foot."""
        circle = self.opinions.circle
        age = None if self._fetched_at is None else self._moment().now - self._fetched_at
        return {
            "fetched_age_s": age,
            "follows": len(circle.follows),
            "reach": circle.reach,
            "dropped": dict(self._book.counters),
        }


def _numbers(value: object) -> dict[str, int]:
    found = value if isinstance(value, dict) else {}
    return {key: number for key, number in found.items() if isinstance(number, int)}


def _probes(stored: Mapping[str, object]) -> dict[str, Probe]:
    """Return what was measured, the oldest first; what is damaged counts as nothing."""
    found = {}
    for seller, value in stored.items():
        with suppress(msgspec.ValidationError):
            found[seller] = msgspec.convert(value, Probe)
    return dict(sorted(found.items(), key=lambda item: item[1].at))
