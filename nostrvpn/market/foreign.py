"""Offers in others' formats: read for an overview of prices, never bought from; and our own in one.

- nostr-vpn's kind 37196: JSON in the content, repeated in tags.
- "VPN Marketplace" listings, NIP-99 kind 30402 with ``t`` = vpn-marketplace.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from nostrvpn.errors import PeerMisbehaved, one_line
from nostrvpn.identity.keys import BadKey, parse_npub
from nostrvpn.machine import Moment
from nostrvpn.market import tags
from nostrvpn.market.offer import OFFER_LIFE_S, Offer
from nostrvpn.market.terms import GIB, MAX_MSAT, sat_text
from nostrvpn.nostr.event import Event, decode_json, sign_event

__all__ = [
    "CLASSIFIED_KIND",
    "CLASSIFIED_TOPIC",
    "PAID_ROUTE_KIND",
    "ForeignOffer",
    "mirror_event",
    "parse_foreign",
]

PAID_ROUTE_KIND: Final = 37196
CLASSIFIED_KIND: Final = 30402
CLASSIFIED_TOPIC: Final = "vpn-marketplace"

_ROUTE_LIFE_S = 3600
_CLASSIFIED_LIFE_S = 30 * 86_400
_GB = 10**9
_MAX_MINTS = 16
_COUNTRY = re.compile(r"[A-Za-z]{2}\Z")
_DECIMAL = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,11}))?\Z")
# msat in one of a unit.
_UNITS = {"sat": 1000, "sats": 1000, "msat": 1, "btc": 10**11}
_HOURS = {"hour": 1, "day": 24, "week": 24 * 7, "month": 24 * 30}
_SIZES = {"gib": GIB, "tib": 1024 * GIB, "gb": _GB, "tb": 1000 * _GB}
# Tags of 37196 that repeat what the content says, and where.
_REPEATED = {
    "price_msat_per_gb": ("pricing", "price_msat_per_gb"),
    "max_channel_capacity_sat": ("channel", "max_channel_capacity_sat"),
    "channel_expiry_secs": ("channel", "channel_expiry_secs"),
    "free_probe_units": ("channel", "free_probe_units"),
    "grace_units": ("channel", "grace_units"),
    "upstream": ("access", "upstream"),
    "private_vpn_access": ("access", "private_vpn_access"),
    "country": ("location", "country_code"),
    "network_class": ("location", "network_class"),
    "asn": ("location", "asn"),
}


@dataclass(frozen=True, slots=True)
class ForeignOffer:
    """``market``: whose format. Prices in msat, None: in no unit that compares. ``price``: as it was
    written. ``mirror_of``: the address of the offer of ours that it repeats, or empty."""

    market: str
    seller: str
    offer_id: str
    title: str
    price: str
    gib_msat: int | None
    hour_msat: int | None
    country: str
    mints: tuple[str, ...]
    versions: tuple[int, ...]
    created_at: int
    expires_at: int
    mirror_of: str = ""

    @property
    def address(self) -> str:
        """A key of its own among all offers."""
        kind = PAID_ROUTE_KIND if self.market == "nostr-vpn" else CLASSIFIED_KIND
        return f"{kind}:{self.seller}:{self.offer_id}"

    @property
    def ref(self) -> str:
        """A short name for people."""
        return f"{self.seller[:16]}/{self.offer_id}"


def parse_foreign(event: Event, now: int) -> ForeignOffer:
    """Read an offer of one of these kinds, whose signature was checked.

    PeerMisbehaved: "malformed_tag", "malformed_json", "unknown_offer", "expired", "future".
    """
    tags.check_date(event, now)
    if event.kind == PAID_ROUTE_KIND:
        made = _paid_route(event)
    elif event.kind == CLASSIFIED_KIND and CLASSIFIED_TOPIC in event.tag_values("t"):
        made = _classified(event)
    else:
        raise PeerMisbehaved("unknown_offer", f"kind {event.kind} is no foreign offer")
    if made.expires_at <= now:
        raise PeerMisbehaved("expired", "the offer has expired")
    return made


def _paid_route(event: Event) -> ForeignOffer:
    content = decode_json(event.content)
    if not isinstance(content, dict):
        raise PeerMisbehaved("malformed_tag", "the content is no object")
    for name, path in _REPEATED.items():
        said = tags.one(event, name)
        if said is not None and said != _text(_at(content, *path)):
            raise PeerMisbehaved("malformed_tag", f"{name} is not what the content says")
    if _at(content, "access", "private_vpn_access") != "denied":
        raise PeerMisbehaved("malformed_tag", "private_vpn_access is not denied")
    if content.get("offer_id") != tags.one(event, "d"):
        raise PeerMisbehaved("malformed_tag", "offer_id is not d")
    if _owner(content.get("seller_npub")) != event.pubkey:
        raise PeerMisbehaved("malformed_tag", "another than the seller signed")
    mints = _at(content, "channel", "accepted_mints")
    if not isinstance(mints, list) or len(mints) > _MAX_MINTS:
        raise PeerMisbehaved("malformed_tag", "accepted_mints is no list")
    msat = tags.number(
        _text(_at(content, "pricing", "price_msat_per_gb")), "price_msat_per_gb", (0, MAX_MSAT)
    )
    until = tags.number(tags.one(event, "expiration"), "expiration", (0, 1 << 53))
    return ForeignOffer(
        market="nostr-vpn",
        seller=event.pubkey,
        offer_id=_title(tags.one(event, "d")),
        title="paid route",
        price=f"{msat} msat/GB",
        gib_msat=-(-msat * GIB // _GB),
        hour_msat=None,
        country=_country(_at(content, "location", "country_code")),
        mints=tuple(tags.mint_url(mint) for mint in mints if isinstance(mint, str)),
        versions=tuple(
            version for version in (4, 6) if _at(content, "ip_support", f"ipv{version}") is True
        ),
        created_at=event.created_at,
        expires_at=min(until, event.created_at + _ROUTE_LIFE_S),
    )


def _classified(event: Event) -> ForeignOffer:
    if tags.one(event, "status") == "sold":
        raise PeerMisbehaved("expired", "it is sold")
    price = next((tag for tag in event.tags if tag[0] == "price" and len(tag) >= 3), None)
    if price is None:
        raise PeerMisbehaved("malformed_tag", "price is missing")
    amount, currency, per = price[1], price[2], price[3] if len(price) > 3 else ""
    until = tags.number(tags.one(event, "expiration"), "expiration", (0, 1 << 53), 1 << 53)
    gib, hour = _comparable(amount, currency.lower(), per.lower())
    payments = [tag for tag in event.tags if tag[0] == "payment" and len(tag) > 2]
    mints = [tag[2] for tag in payments if tag[1] == "cashu"][:_MAX_MINTS]
    mirrored = tags.one(event, "a") or ""
    is_own = mirrored.startswith(f"31900:{event.pubkey}:")
    return ForeignOffer(
        market=CLASSIFIED_TOPIC,
        seller=event.pubkey,
        offer_id=_title(tags.one(event, "d")),
        title=_title(tags.one(event, "title")),
        price=one_line(f"{amount} {currency}" + (f"/{per}" if per else "")),
        gib_msat=gib,
        hour_msat=hour,
        country=_country(tags.one(event, "location")),
        mints=tuple(tags.mint_url(mint) for mint in mints),
        versions=(),
        created_at=event.created_at,
        expires_at=min(until, event.created_at + _CLASSIFIED_LIFE_S),
        mirror_of=mirrored if is_own else "",
    )


def _comparable(amount: str, currency: str, per: str) -> tuple[int | None, int | None]:
    """Return what a GiB and what an hour costs, in msat, rounded up; None where it is not said."""
    found, unit = _DECIMAL.match(amount), _UNITS.get(currency)
    if found is None or unit is None:
        return None, None
    fraction = found[2] or ""
    scale = 10 ** len(fraction)
    msat = -(-int(found[1] + fraction) * unit // scale)
    if msat > MAX_MSAT:
        return None, None
    if per in _HOURS:
        return None, -(-msat // _HOURS[per])
    if per in _SIZES:
        return -(-msat * GIB // _SIZES[per]), None
    return None, None


def mirror_event(offer: Offer, secret: bytes, moment: Moment) -> Event:
    """Sign the same offer as a classified listing (NIP-99); its ``a`` tag leads to the offer itself."""
    now, msat = int(moment.wall), offer.terms.price.per_gib_msat
    where = f" in {offer.country}" if offer.country else ""
    made: list[tuple[str, ...]] = [
        ("d", offer.offer_id),
        ("title", f"WireGuard exit{where}"),
        ("summary", "An internet exit by the byte, paid in ecash. Buy it with nostrvpn."),
        ("published_at", str(now)),
        ("t", CLASSIFIED_TOPIC),
        ("t", "wireguard"),
        ("price", sat_text(msat), "sat", "GiB"),
        ("status", "active"),
        ("a", offer.address),
        ("expiration", str(now + OFFER_LIFE_S)),
    ]
    if offer.country:
        made.append(("location", offer.country))
    return sign_event(
        secret,
        kind=CLASSIFIED_KIND,
        tags=tuple(made),
        content="",
        created_at=now,
        aux=moment.entropy.take(32),
    )


def _at(content: Mapping[str, Any], section: str, key: str) -> object:
    inner = content.get(section)
    return inner.get(key) if isinstance(inner, dict) else None


def _text(value: object) -> str:
    """Return a value as a tag repeats it; what no tag says is empty."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if abs(value) < 1 << 63 else ""  # longer ones cost time
    return value if isinstance(value, str) else ""


def _title(text: str | None) -> str:
    return one_line(text or "")[:80]


def _country(value: object) -> str:
    return value.upper() if isinstance(value, str) and _COUNTRY.match(value) else ""


def _owner(value: object) -> str | None:
    try:
        return parse_npub(value) if isinstance(value, str) else None
    except BadKey:
        return None
