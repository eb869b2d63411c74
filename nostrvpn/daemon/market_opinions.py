"""What is said of sellers, fetched and kept: whom the user follows and mutes, ratings, reports, ranks.

Ratings are asked for by author, and only of those who count. So whatever strangers write about a seller
is not even downloaded. Which authors these are tells whom the user follows, which is public already; it
is asked on a lane of its own, apart from what this host buys and sells.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeVar

import msgspec

from nostrvpn.config.model import Market
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.identity.keys import parse_npub
from nostrvpn.io.market_relays import MarketRelays
from nostrvpn.io.store import Record, Store
from nostrvpn.machine import Moment
from nostrvpn.market import ranks, ratings
from nostrvpn.market.follows import (
    ALLOW_SET,
    CONTACTS_KIND,
    DENY_SET,
    MUTES_KIND,
    SETS_KIND,
    Circle,
    Lists,
    latest,
    parse_contacts,
    parse_mutes,
    parse_set,
)
from nostrvpn.market.ratings import RATING_KIND, RATING_WINDOW_S, REPORT_KIND, Rating
from nostrvpn.nostr.event import Event

__all__ = ["BOARD_SPACE", "BoardSettings", "Opinions"]

BOARD_SPACE: Final = "board"
# Contact lists change seldom.
CIRCLE_AGE_S: Final = 6 * 3600
FETCH_S: Final = 4.0
_AUTHORS_PER_FILTER: Final = 200
_KEYS_PER_FILTER: Final = 100
# Whose contact lists are read for distance 2, and so many at a time: each may be 128 KiB.
_MAX_READ: Final = 240
_BATCH: Final = 12
_MAX_AUTHORS: Final = 2000
_MAX_RATINGS: Final = 5000
# All that is asked in one go; what is not answered by then is asked the next time.
_REFRESH_S: Final = 15.0
_HOUR_S: Final = 3600

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class BoardSettings:
    """``relays``: URLs; ``main``: the user's own key on Nostr, or None; ``lists``: whose lists count."""

    relays: tuple[str, ...]
    main: str | None = None
    lists: tuple[str, ...] = ()
    reach: int = 1

    @classmethod
    def of(cls, market: Market, relays: tuple[str, ...]) -> BoardSettings:
        """Read the configuration; BadKey if an npub is none. ``relays``: those of ``relays.urls``."""
        return cls(
            relays=market.relays or relays,
            main=parse_npub(market.follow) if market.follow else None,
            lists=tuple(parse_npub(text) for text in market.lists if text),
            reach=market.reach,
        )


class Opinions:
    """``own``: the keys that this host rates with. What was fetched is kept over restarts."""

    def __init__(
        self,
        relays: MarketRelays,
        store: Store,
        settings: BoardSettings,
        own: frozenset[str],
        moment: Callable[[], Moment],
    ) -> None:
        self._relays, self._store, self._settings = relays, store, settings
        self._own, self._moment = own, moment
        self._people: dict[str, Any] = _object(store.get(BOARD_SPACE, "people"))
        self.denied = _keys(store.get(BOARD_SPACE, "denied"))
        self.allowed = _keys(store.get(BOARD_SPACE, "allowed"))
        # Ours, by seller: they count at once, also where no relay takes them.
        self._given = {
            seller: msgspec.convert(value, Rating)
            for seller, value in _object(store.get(BOARD_SPACE, "given")).items()
        }
        self._ratings: tuple[Rating, ...] = ()
        self._reporters: Mapping[str, frozenset[str]] = {}
        self.ranks: Mapping[str, int] = {}
        self._until = 0.0

    @property
    def circle(self) -> Circle:
        """Whose word counts."""
        people = _object(self._people.get("contacts"))
        contacts = {author: frozenset(listed) for author, listed in people.items()}
        main, reach = self._settings.main, self._settings.reach
        return Circle.of(self._own, main, contacts, muted=self._muted, reach=reach)

    @property
    def lists(self) -> Lists:
        """Who is refused."""
        others = _object(self._people.get("lists"))
        return Lists(
            denied=self.denied,
            allowed=self.allowed | _keys(self._people.get("allowed")),
            muted=self._muted,
            lists={author: frozenset(keys) for author, keys in others.items()},
            reporters=self._reporters,
        )

    @property
    def _muted(self) -> frozenset[str]:
        return _keys(self._people.get("muted"))

    def ratings(self) -> Mapping[str, list[Rating]]:
        """Return the ratings that may count, by seller."""
        found: dict[str, list[Rating]] = {}
        for rating in (*self._ratings, *self._given.values()):
            found.setdefault(rating.seller, []).append(rating)
        return found

    def given(self, seller: str) -> Rating | None:
        """Return our own last rating of a seller."""
        return self._given.get(seller)

    def give(self, rating: Rating) -> None:
        """Remember a rating of ours."""
        self._given[rating.seller] = rating
        value = {seller: asdict(one) for seller, one in self._given.items()}
        self._store.put([Record(BOARD_SPACE, "given", value)])

    def set_list(self, name: str, seller: str, *, remove: bool) -> None:
        """Put a seller on this host's list ``denied`` or ``allowed``, and off the other one."""
        for one in ("denied", "allowed"):
            keys: frozenset[str] = getattr(self, one)
            changed = keys | {seller} if one == name and not remove else keys - {seller}
            setattr(self, one, changed)
        values = {"denied": sorted(self.denied), "allowed": sorted(self.allowed)}
        self._store.put([Record(BOARD_SPACE, key, value) for key, value in values.items()])

    async def refresh(self, sellers: Collection[str], *, force: bool = False) -> None:
        """Fetch what is due: people every six hours, ratings and ranks each time."""
        moment = self._moment()
        now, self._until = int(moment.wall), moment.now + _REFRESH_S
        fetched = self._people.get("at")
        is_old = not isinstance(fetched, int) or not 0 <= now - fetched < CIRCLE_AGE_S
        if (is_old or force) and (self._settings.main or self._settings.lists):
            await self._read_people(now)
        await self._read_ratings(now)
        await self._read_ranks(sellers, now)

    async def _fetch(
        self, filters: list[dict[str, object]], relays: tuple[str, ...] = (), lane: str = "follow"
    ) -> list[Event]:
        left = min(FETCH_S, self._until - self._moment().now)
        if left <= 0:
            return []
        urls = relays or self._settings.relays
        return [one.event for one in await self._relays.fetch(filters, urls, left, lane=lane)]

    async def _read_people(self, now: int) -> None:
        main, others = self._settings.main, self._settings.lists
        sets: dict[str, object] = {"kinds": [SETS_KIND], "#d": [DENY_SET, ALLOW_SET]}
        asked = [{**sets, "authors": [*((main,) if main else ()), *others]}]
        if main:
            kinds = [CONTACTS_KIND, MUTES_KIND, ranks.SERVICES_KIND]
            asked.append({"kinds": kinds, "authors": [main]})
        newest = latest(await self._fetch(asked))
        if not newest and self._people:
            return  # no relay had anything: what was known stays
        people: dict[str, Any] = {"at": now, "lists": dict(self._people.get("lists") or {})}
        people |= {key: self._people.get(key) or [] for key in ("muted", "allowed", "services")}
        people["contacts"] = dict(self._people.get("contacts") or {})
        muted = newest.get((main or "", MUTES_KIND, ""))
        denied = newest.get((main or "", SETS_KIND, DENY_SET))
        if muted or denied:
            keys = _read(parse_mutes, muted) or frozenset()
            people["muted"] = sorted(keys | (_read(parse_set, denied) or ("", frozenset()))[1])
        allowed = _read(parse_set, newest.get((main or "", SETS_KIND, ALLOW_SET)))
        if allowed:
            people["allowed"] = sorted(allowed[1])
        services = _read(ranks.parse_services, newest.get((main or "", ranks.SERVICES_KIND, "")))
        if services is not None:
            people["services"] = [list(one) for one in services]
        for author in others:
            listed = _read(parse_set, newest.get((author, SETS_KIND, DENY_SET)))
            if listed:
                people["lists"][author] = sorted(listed[1])
        people["lists"] = {a: keys for a, keys in people["lists"].items() if a in others}
        await self._read_contacts(people, newest)
        self._people = people
        self._store.put([Record(BOARD_SPACE, "people", people)])

    async def _read_contacts(
        self, people: dict[str, Any], newest: Mapping[tuple[str, int, str], Event]
    ) -> None:
        main, contacts = self._settings.main, people["contacts"]
        if main is None:
            contacts.clear()
            return
        own = _read(parse_contacts, newest.get((main, CONTACTS_KIND, "")))
        if own is not None:
            contacts[main] = sorted(own)
        first = contacts.get(main, [])[:_MAX_READ] if self._settings.reach > 1 else []
        for start in range(0, len(first), _BATCH):
            authors = first[start : start + _BATCH]
            found = latest(await self._fetch([{"kinds": [CONTACTS_KIND], "authors": authors}]))
            for (author, _, _), event in found.items():
                contacts[author] = sorted(_read(parse_contacts, event) or ())
        people["contacts"] = {one: contacts[one] for one in (main, *first) if one in contacts}

    async def _read_ratings(self, now: int) -> None:
        circle = self.circle
        # Not our own: that would tie the key that we rate with to whom the user follows.
        near = [self._settings.main] if self._settings.main is not None else []
        near += sorted(circle.follows - circle.muted)
        authors = (near + sorted(circle.second - circle.muted))[:_MAX_AUTHORS]
        if not authors:
            return
        since = (now - RATING_WINDOW_S) // _HOUR_S * _HOUR_S
        given: dict[tuple[str, str], Rating] = {}
        reports: list[ratings.Report] = []
        step = 2 * _AUTHORS_PER_FILTER
        for part in _slices(authors, step):
            asked: list[dict[str, object]] = [
                {"kinds": [RATING_KIND, REPORT_KIND], "since": since, "authors": some}
                for some in _slices(part, _AUTHORS_PER_FILTER)
            ]
            for event in await self._fetch(asked):
                if event.kind == REPORT_KIND:
                    reports += _read(lambda one: ratings.parse_report(one, now), event) or ()
                    continue
                rating = _read(lambda one: ratings.parse_rating(one, now), event)
                if rating is not None and len(given) < _MAX_RATINGS:
                    key = rating.author, rating.seller
                    if key not in given or given[key].created_at < rating.created_at:
                        given[key] = rating
        self._ratings = tuple(given.values())
        self._reporters = Lists.count_reports(reports, circle)

    async def _read_ranks(self, sellers: Collection[str], now: int) -> None:
        services: dict[str, str] = dict(self._people.get("services") or [])
        if not services or not sellers:
            return
        found: list[tuple[str, str, int]] = []
        for service, url in services.items():
            asked: list[dict[str, object]] = [
                {"kinds": [ranks.RANK_KIND], "authors": [service], "#d": some}
                for some in _slices(sorted(sellers), _KEYS_PER_FILTER)
            ]
            newest = latest(await self._fetch(asked, (url,), "rank")).values()
            read = (_read(lambda one: ranks.parse_rank(one, now), event) for event in newest)
            found += [rank for rank in read if rank is not None]
        self.ranks = ranks.mean_ranks(found, services)


def _slices(keys: list[str], size: int) -> Iterable[list[str]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))


def _read(parse: Callable[[Event], _T], event: Event | None) -> _T | None:
    """Return what an event says, None if there is none or it is malformed."""
    if event is None:
        return None
    try:
        return parse(event)
    except PeerMisbehaved:
        return None


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _keys(value: object) -> frozenset[str]:
    return frozenset(value) if isinstance(value, list) else frozenset()
