"""The list of offers as a user sees it: filtered, sorted, and why a row cannot be bought."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from nostrvpn.market.book import AnyOffer
from nostrvpn.market.follows import Lists
from nostrvpn.market.foreign import ForeignOffer
from nostrvpn.market.offer import Offer
from nostrvpn.market.terms import PayMode, sat_text
from nostrvpn.market.trust import Probe, Trust

__all__ = ["MAX_PER_PLACE", "SORTS", "Asked", "Row", "Viewer", "rows", "usable_relays"]

SORTS: Final = ("trust", "price", "latency", "country")
# Rows from one place that can be bought: a network (AS) or a /24.
MAX_PER_PLACE: Final = 5
_NOTHING = Probe()
_LOCAL_NAME = re.compile(r"(localhost|[^.]+|.*\.(local|internal|lan|home\.arpa))\.?\Z")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user asks for. ``countries`` and ``mints`` leave out other rows, the rest grey them."""

    countries: frozenset[str] = frozenset()
    mints: frozenset[str] = frozenset()
    max_gib_msat: int | None = None
    max_hour_msat: int | None = None
    version: int | None = None
    sort: str = "trust"


@dataclass(frozen=True, slots=True)
class Viewer:
    """What the user has. ``mints``: where the wallet may hold money, None: not known; ``pay``: the
    modes of this program; ``lists``: who is refused; ``places``: where sellers are known to be
    ("AS64500", "203.0.113.0/24"), by seller; ``probes``: what was measured of sellers."""

    mints: frozenset[str] | None = None
    pay: frozenset[PayMode] = frozenset((PayMode.LOCKED, PayMode.PLAIN))
    lists: Lists = field(default_factory=Lists)
    places: Mapping[str, str] = field(default_factory=dict)
    probes: Mapping[str, Probe] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """An offer as it is shown. ``why_not``: code and words of each reason against buying it; without
    any it can be bought. Prices in msat, None: not said. ``probe``: what was measured."""

    offer: AnyOffer
    trust: Trust
    gib_msat: int | None
    hour_msat: int | None
    probe: Probe
    why_not: tuple[tuple[str, str], ...]

    @property
    def is_usable(self) -> bool:
        """Whether it can be bought."""
        return not self.why_not


def rows(
    offers: Iterable[tuple[AnyOffer, Trust]], asked: Asked, viewer: Viewer, now: int
) -> tuple[Row, ...]:
    """Return the rows, those that can be bought first; ``now`` is Unix time."""
    made = [
        _row(offer, trust, asked, viewer, now)
        for offer, trust in offers
        if _is_asked_for(offer, asked, viewer)
    ]
    made.sort(key=lambda row: _order(row, asked.sort))
    return _spread(made, viewer)


def usable_relays(hints: Sequence[str], own: Sequence[str]) -> tuple[str, ...]:
    """Return which relays of an offer to write to: own ones first, none that is inside our networks.

    Whoever publishes an offer could otherwise make buyers knock at doors behind their own firewalls.
    """
    mine = [url for url in hints if url in own]
    return (*mine, *(url for url in hints if url not in own and not _is_local(url)))


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return not ip_address(host).is_global
    except ValueError:
        return _LOCAL_NAME.match(host.lower()) is not None


def _is_asked_for(offer: AnyOffer, asked: Asked, viewer: Viewer) -> bool:
    mints = offer.mints if isinstance(offer, ForeignOffer) else offer.terms.mints
    country = viewer.probes.get(offer.seller, _NOTHING).country or offer.country
    in_country = not asked.countries or country in asked.countries
    return in_country and (not asked.mints or not asked.mints.isdisjoint(mints))


def _row(offer: AnyOffer, trust: Trust, asked: Asked, viewer: Viewer, now: int) -> Row:
    if isinstance(offer, ForeignOffer):
        gib, hour = offer.gib_msat, offer.hour_msat
        against = [
            ("foreign", f"offered in the format of {offer.market}: shown for its price only")
        ]
    else:
        price = offer.terms.price
        gib, hour = price.per_gib_msat, price.hour_msat
        against = _terms_against(offer, viewer)
    against += _price_against(gib, hour, asked)
    if asked.version is not None and offer.versions and asked.version not in offer.versions:
        against.append(("ip_version", f"carries no IPv{asked.version}"))
    if offer.expires_at <= now:
        against.append(("expired", "expired"))
    refusal = viewer.lists.refusal(offer.seller)
    if refusal is not None:
        against.append(refusal)
    probe = viewer.probes.get(offer.seller, _NOTHING)
    is_false = probe.country and offer.country and probe.country != offer.country
    if is_false and offer.seller not in viewer.lists.allowed:
        words = f"claims to be in {offer.country}, and is in {probe.country}"
        against.append(("wrong_country", words))
    return Row(offer, trust, gib, hour, probe, tuple(against))


def _terms_against(offer: Offer, viewer: Viewer) -> list[tuple[str, str]]:
    against = []
    if not offer.terms.pay:
        against.append(("pay_mode", "is paid in a way that this version does not know"))
    elif viewer.pay.isdisjoint(offer.terms.pay):
        ways = ", ".join(mode.value for mode in offer.terms.pay)
        against.append(("pay_mode", f"is paid only by: {ways}"))
    if viewer.mints is not None and viewer.mints.isdisjoint(offer.terms.mints):
        against.append(("no_common_mint", "takes no mint that your wallet trusts"))
    return against


def _price_against(gib: int | None, hour: int | None, asked: Asked) -> list[tuple[str, str]]:
    against = []
    if asked.max_gib_msat is not None and gib is not None and gib > asked.max_gib_msat:
        against.append(("too_dear", f"more than {sat_text(asked.max_gib_msat)} sat a GiB"))
    if asked.max_hour_msat is not None and hour is not None and hour > asked.max_hour_msat:
        against.append(("too_dear", f"more than {asked.max_hour_msat / 1000:g} sat an hour"))
    return against


def _order(row: Row, sort: str) -> tuple[object, ...]:
    price = (row.gib_msat is None, row.gib_msat or 0, row.hour_msat or 0)
    rtt, quote = row.probe.rtt_ms, row.probe.quote_ms
    # Through the tunnel or by relays: these are not compared with each other.
    latency = (rtt is None, rtt or 0.0, quote is None, quote or 0.0)
    # Scores that differ by less than a hundredth are the same: then the price decides.
    trust = -round(row.trust.score, 2)
    first: tuple[object, ...] = {
        "price": price,
        "latency": latency,
        "country": (not row.offer.country, row.offer.country),
    }.get(sort, ())
    return (bool(row.why_not), *first, trust, *price, row.offer.address)


def _spread(ordered: Sequence[Row], viewer: Viewer) -> tuple[Row, ...]:
    """Grey out what one network has too much of: whoever runs it could be one seller many times."""
    there: Counter[str] = Counter()
    usable: list[Row] = []
    grey: list[Row] = []
    for row in ordered:
        place = _place(row.offer, viewer)
        if row.why_not:
            grey.append(row)
            continue
        there[place] += 1
        if place and there[place] > MAX_PER_PLACE and not row.trust.is_known:
            words = f"{MAX_PER_PLACE} others from {place} stand before it"
            against = (("crowded", words),)
            grey.append(replace(row, why_not=against))
        else:
            usable.append(row)
    return (*usable, *grey)


def _place(offer: AnyOffer, viewer: Viewer) -> str:
    known = viewer.places.get(offer.seller)
    claimed = f"AS{offer.asn}" if isinstance(offer, Offer) and offer.asn else ""
    return known or claimed
