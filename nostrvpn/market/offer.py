"""A public offer to sell an exit: an addressable event of kind 31900, refreshed and expiring.

It says what is sold for how much and where to ask, never where the exit is: an endpoint and a
WireGuard key are in the sealed grant only. ``docs/protocol/market.md`` has it field by field.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from coincurve import PublicKeyXOnly

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment
from nostrvpn.market import tags
from nostrvpn.market.sale import MAX_ARBITERS, MAX_CONTACT, MAX_MINTS, MAX_POW_BITS
from nostrvpn.market.terms import GIB, MAX_MSAT, PayMode, Price, Terms
from nostrvpn.nostr.event import Event, Tags, public_key, sign_event

__all__ = [
    "DELETION_KIND",
    "NETWORK_CLASSES",
    "OFFER_KIND",
    "OFFER_LIFE_S",
    "OFFER_TOPIC",
    "Offer",
    "offer_event",
    "parse_offer",
    "withdrawal_event",
]

OFFER_KIND: Final = 31900
OFFER_TOPIC: Final = "nostrvpn-exit"
OFFER_LIFE_S: Final = 1800
DELETION_KIND: Final = 5  # NIP-09
# However far off a seller puts the expiration: who is gone must leave the list.
MAX_LIFE_S: Final = 3600
NETWORK_CLASSES: Final = ("residential", "datacenter", "mobile", "business")

_VERSION = "1"
_COUNTRIES = "ISO-3166-1"
_MAX_STEP = 1 << 50
_MAX_RELAYS = 8
_MAX_POLICIES = 8
_MAX_BPS = 10**13
_MAX_SESSIONS = 65_535
_MAX_SLICE_SAT = 10_000_000
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_COUNTRY = re.compile(r"[A-Z]{2}\Z")
_WORD = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")
_VERSIONS = {"ipv4": 4, "ipv6": 6}
_KEY = re.compile(r"[0-9a-f]{64}\Z")
_RECEIVER = re.compile(r"(02)?([0-9a-f]{64})\Z")


@dataclass(frozen=True, slots=True)
class Offer:
    """What a seller offers. ``seller``: its market key (64 hex); ``receiver_pubkey``: what money is
    locked to ("02" and 64 hex). ``relays``: where to write to it. ``pow_bits``: work asked for with a
    request (NIP-13). ``contact``: where complaints go, one line. ``country``, ``asn``, ``network_class``
    and the rates are claims; "" or 0: none.
    ``escrow``: arbiters that the buyer may name (64 hex).
    ``created_at`` and ``expires_at`` (Unix time) and ``event_id`` are the event's; a seller that makes
    an offer leaves them out."""

    seller: str
    offer_id: str
    terms: Terms
    receiver_pubkey: str
    relays: tuple[str, ...] = ()
    country: str = ""
    versions: tuple[int, ...] = (4,)
    policies: tuple[str, ...] = ()
    pow_bits: int = 0
    max_sessions: int = 0
    network_class: str = ""
    asn: int = 0
    down_bps: int = 0
    up_bps: int = 0
    contact: str = ""
    escrow: tuple[str, ...] = ()
    created_at: int = 0
    expires_at: int = 0
    event_id: str = ""

    @property
    def address(self) -> str:
        """The offer's address (NIP-01): kind, author and ``d``."""
        return f"{OFFER_KIND}:{self.seller}:{self.offer_id}"

    @property
    def ref(self) -> str:
        """A short name for people; ``Book.find`` takes it."""
        return f"{self.seller[:16]}/{self.offer_id}"


def offer_event(offer: Offer, secret: bytes, moment: Moment) -> Event:
    """Sign an offer by the market key, good for half an hour; ValueError if the key is another's."""
    if public_key(secret) != offer.seller:
        raise ValueError("an offer is signed by its seller")
    now = int(moment.wall)
    return sign_event(
        secret,
        kind=OFFER_KIND,
        tags=_tags(offer, now + OFFER_LIFE_S),
        content="",
        created_at=now,
        aux=moment.entropy.take(32),
    )


def withdrawal_event(address: str, secret: bytes, moment: Moment) -> Event:
    """Sign the deletion of an addressable event of ours (NIP-09)."""
    kind = address.partition(":")[0]
    return sign_event(
        secret,
        kind=DELETION_KIND,
        tags=(("a", address), ("k", kind)),
        content="",
        created_at=int(moment.wall),
        aux=moment.entropy.take(32),
    )


def _tags(offer: Offer, expires_at: int) -> Tags:
    terms, price = offer.terms, offer.terms.price
    made: list[tuple[str, ...]] = [
        ("d", offer.offer_id),
        ("v", _VERSION),
        ("t", OFFER_TOPIC),
        ("service", "exit"),
        ("metric", "bytes"),
        ("step_size", str(price.step_bytes)),
        *(("price_per_step", "cashu", *_amount(price.step_msat), mint) for mint in terms.mints),
        ("receiver_pubkey", offer.receiver_pubkey),
        *(("pay", mode.value) for mode in terms.pay),
        ("free_bytes", str(terms.free_bytes)),
        ("grace_bytes", str(terms.grace_bytes)),
        ("max_slice_sat", str(terms.max_slice_sat)),
        *(("ip", f"ipv{version}") for version in offer.versions),
        *(("policy", name) for name in offer.policies),
        *(("relay", url) for url in offer.relays),
        *(("escrow", key) for key in offer.escrow),
    ]
    if price.hour_msat:
        made.append(("price_per_hour", *_amount(price.hour_msat)))
    if offer.country:
        made += [("L", _COUNTRIES), ("l", offer.country, _COUNTRIES)]
    if PayMode.BOLT11 in terms.pay:
        made.append(("ln", PayMode.BOLT11.value))
    if offer.contact:
        made.append(("contact", offer.contact))
    if offer.network_class:
        made.append(("network_class", offer.network_class))
    numbers = {"max_sessions": offer.max_sessions, "asn": offer.asn, "pow": offer.pow_bits}
    numbers |= {"down_bps": offer.down_bps, "up_bps": offer.up_bps}
    made += [(name, str(value)) for name, value in numbers.items() if value]
    made += [("expiration", str(expires_at)), ("alt", "An internet exit for sale, by the byte")]
    return tuple(made)


def _amount(msat: int) -> tuple[str, str]:
    return (str(msat), "msat") if msat % 1000 else (str(msat // 1000), "sat")


def parse_offer(event: Event, now: int) -> Offer:
    """Read an offer whose signature was checked; ``now`` is Unix time.

    PeerMisbehaved: "malformed_tag" (anything missing, doubled or out of bounds), "unknown_offer"
    (another version or service), "expired", "future".
    """
    if event.kind != OFFER_KIND:
        raise PeerMisbehaved("unknown_offer", f"kind {event.kind} is no offer")
    tags.check_date(event, now)
    for name, value in (("v", _VERSION), ("service", "exit"), ("metric", "bytes")):
        if tags.one(event, name) != value:
            raise PeerMisbehaved("unknown_offer", f"{name} is not {value}")
    expiration = tags.number(tags.one(event, "expiration"), "expiration", (0, 1 << 53))
    expires_at = min(expiration, event.created_at + MAX_LIFE_S)
    if expires_at <= now:
        raise PeerMisbehaved("expired", "the offer has expired")
    country = _optional(event, "l", _COUNTRY)
    network_class = tags.one(event, "network_class") or ""
    if network_class and network_class not in NETWORK_CLASSES:
        raise PeerMisbehaved("malformed_tag", "network_class is unknown")
    return Offer(
        seller=event.pubkey,
        offer_id=_required(event, "d", _ID),
        terms=_terms(event),
        receiver_pubkey=_receiver(event),
        relays=tags.relay_urls(event, _MAX_RELAYS),
        country=country,
        versions=_ip_versions(event),
        policies=tags.matching(event, "policy", _WORD, _MAX_POLICIES),
        pow_bits=_number(event, "pow", MAX_POW_BITS),
        max_sessions=_number(event, "max_sessions", _MAX_SESSIONS),
        network_class=network_class,
        asn=_number(event, "asn", 0xFFFF_FFFF),
        down_bps=_number(event, "down_bps", _MAX_BPS),
        up_bps=_number(event, "up_bps", _MAX_BPS),
        contact=_contact(event),
        escrow=tags.matching(event, "escrow", _KEY, MAX_ARBITERS),
        created_at=event.created_at,
        expires_at=expires_at,
        event_id=event.id,
    )


def _required(event: Event, name: str, pattern: re.Pattern[str]) -> str:
    value = tags.one(event, name)
    if value is None or not pattern.match(value):
        raise PeerMisbehaved("malformed_tag", f"{name} is missing or malformed")
    return value


def _optional(event: Event, name: str, pattern: re.Pattern[str]) -> str:
    return _required(event, name, pattern) if event.tag_values(name) else ""


def _contact(event: Event) -> str:
    """Return what is shown to people: one line that no terminal obeys."""
    text = tags.one(event, "contact") or ""
    if len(text) > MAX_CONTACT or not text.isprintable():
        raise PeerMisbehaved("malformed_tag", "contact is no line of 200 characters")
    return text


def _number(event: Event, name: str, most: int) -> int:
    return tags.number(tags.one(event, name), name, (0, most), default=0)


def _ip_versions(event: Event) -> tuple[int, ...]:
    values = set(event.tag_values("ip"))
    if not values or not values <= _VERSIONS.keys():
        raise PeerMisbehaved("malformed_tag", "ip is neither ipv4 nor ipv6")
    return tuple(sorted(_VERSIONS[value] for value in values))


def _receiver(event: Event) -> str:
    """Return the key that money is locked to: one that exists, or the money would be nobody's."""
    found = _RECEIVER.match(tags.one(event, "receiver_pubkey") or "")
    if found is None:
        raise PeerMisbehaved("malformed_tag", "receiver_pubkey is missing or malformed")
    try:
        PublicKeyXOnly(bytes.fromhex(found[2]))
    except ValueError as error:
        raise PeerMisbehaved("malformed_tag", "receiver_pubkey is no point") from error
    return f"02{found[2]}"


def _terms(event: Event) -> Terms:
    price, mints = _price(event)
    known = {mode.value: mode for mode in PayMode}
    # A mode of later versions is nothing to us; with none that we know it cannot be bought.
    pay = tuple(dict.fromkeys(known[word] for word in event.tag_values("pay") if word in known))
    return Terms(
        price=price,
        mints=mints,
        pay=pay,
        free_bytes=_number(event, "free_bytes", GIB),
        grace_bytes=_number(event, "grace_bytes", GIB),
        max_slice_sat=tags.number(
            tags.one(event, "max_slice_sat"), "max_slice_sat", (1, _MAX_SLICE_SAT)
        ),
    )


def _price(event: Event) -> tuple[Price, tuple[str, ...]]:
    """Return the price, the same at every mint, and the mints."""
    step = tags.number(tags.one(event, "step_size"), "step_size", (1, _MAX_STEP))
    mints: dict[str, int] = {}
    for tag in event.tags:
        if tag[0] != "price_per_step":
            continue
        match tag[1:]:
            case ("cashu", amount, unit, mint, *_):
                mints[tags.mint_url(mint)] = _msat(amount, unit, "price_per_step")
            case _:
                raise PeerMisbehaved("malformed_tag", "price_per_step is malformed")
    if not mints or len(mints) > MAX_MINTS or len(set(mints.values())) != 1:
        raise PeerMisbehaved("malformed_tag", "no mint, too many, or prices that differ")
    hours = [tag for tag in event.tags if tag[0] == "price_per_hour"]
    hour = 0
    if hours:
        if len(hours) > 1 or len(hours[0]) < 3:
            raise PeerMisbehaved("malformed_tag", "price_per_hour is malformed")
        hour = _msat(hours[0][1], hours[0][2], "price_per_hour")
    return Price(step, next(iter(mints.values())), hour), tuple(mints)


def _msat(amount: str, unit: str, name: str) -> int:
    if unit not in ("sat", "msat"):
        raise PeerMisbehaved("malformed_tag", f"{name}: the unit is unknown")
    factor = 1000 if unit == "sat" else 1
    return tags.number(amount, name, (0, MAX_MSAT // factor)) * factor
