"""What buyers say of sellers: ratings (kind 7900) and reports of abuse (NIP-56, kind 1984).

A rating names the seller and the offer, a number, and the hash of a receipt. Nothing in it tells what
was bought, when to the minute, for how much, or from where.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment
from nostrvpn.market import tags
from nostrvpn.nostr.event import Event, Tags, is_public_key, sign_event

__all__ = [
    "LABELS",
    "RATING_KIND",
    "RATING_PAUSE_S",
    "RATING_WINDOW_S",
    "REPORT_KIND",
    "REPORT_TYPES",
    "Rating",
    "Report",
    "parse_rating",
    "parse_report",
    "rating_event",
    "report_event",
]

RATING_KIND: Final = 7900
REPORT_KIND: Final = 1984
# Ratings older than this say nothing any more; relays may drop them then.
RATING_WINDOW_S: Final = 30 * 86_400
# Ratings are dated by the whole hour, so that they do not tell when a lease ended.
RATING_PAUSE_S: Final = 3600
LABELS: Final = ("speed", "country-mismatch", "overcharge", "blocked-ports", "no-service")
# Spec: NIP-56.
REPORT_TYPES: Final = (
    *("nudity", "malware", "profanity", "illegal", "spam", "impersonation", "other"),
)

_NAMESPACE = "nostrvpn.exit"
_MAX_LABELS = 8
_MAX_SCORE = 100
_SCORE = re.compile(r"-?(0|[1-9][0-9]{0,2})\Z")
_HASH = re.compile(r"[0-9a-f]{64}\Z")
_LABEL = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")
_ADDRESS = re.compile(r"31900:[0-9a-f]{64}:[A-Za-z0-9._-]{1,64}\Z")


@dataclass(frozen=True, slots=True)
class Rating:
    """``score``: -100 … 100. ``receipt``: the hash of a receipt (64 hex), or empty."""

    author: str
    seller: str
    offer: str
    score: int
    receipt: str = ""
    labels: tuple[str, ...] = ()
    created_at: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """``author`` says that ``seller`` did something of ``kind`` (NIP-56)."""

    author: str
    seller: str
    kind: str


def rating_event(rating: Rating, secret: bytes, moment: Moment) -> Event:
    """Sign a rating, dated by the hour; ``author`` and ``created_at`` of it do not count."""
    if not -_MAX_SCORE <= rating.score <= _MAX_SCORE:
        raise ValueError("a rating is -100 to 100")
    at = int(moment.wall) // RATING_PAUSE_S * RATING_PAUSE_S
    made: list[tuple[str, ...]] = [
        ("p", rating.seller),
        ("a", rating.offer),
        ("rating", str(rating.score)),
        *((("r", rating.receipt),) if rating.receipt else ()),
        *((("L", _NAMESPACE),) if rating.labels else ()),
        *(("l", label, _NAMESPACE) for label in rating.labels),
        ("expiration", str(at + RATING_WINDOW_S)),
    ]
    return _signed(RATING_KIND, tuple(made), at, secret, moment)


def report_event(seller: str, kind: str, secret: bytes, moment: Moment) -> Event:
    """Sign a report of abuse (NIP-56), dated by the hour; ``kind`` is one of ``REPORT_TYPES``."""
    if kind not in REPORT_TYPES:
        raise ValueError(f"{kind} is no type of report")
    at = int(moment.wall) // RATING_PAUSE_S * RATING_PAUSE_S
    return _signed(REPORT_KIND, (("p", seller, kind),), at, secret, moment)


def _signed(kind: int, made: Tags, at: int, secret: bytes, moment: Moment) -> Event:
    aux = moment.entropy.take(32)
    return sign_event(secret, kind=kind, tags=made, content="", created_at=at, aux=aux)


def parse_rating(event: Event, now: int) -> Rating:
    """Read a rating whose signature was checked; PeerMisbehaved, "expired" if it is too old."""
    if event.kind != RATING_KIND:
        raise PeerMisbehaved("malformed_tag", f"kind {event.kind} is no rating")
    tags.check_date(event, now)
    if event.created_at <= now - RATING_WINDOW_S:
        raise PeerMisbehaved("expired", "the rating is too old")
    seller, score = tags.one(event, "p"), tags.one(event, "rating")
    offer = tags.one(event, "a") or ""
    if not is_public_key(seller) or score is None or not _SCORE.match(score):
        raise PeerMisbehaved("malformed_tag", "a rating without seller or number")
    assert seller is not None
    if not -_MAX_SCORE <= int(score) <= _MAX_SCORE:
        raise PeerMisbehaved("malformed_tag", "a rating is -100 to 100")
    if not _ADDRESS.match(offer) or offer.split(":")[1] != seller:
        raise PeerMisbehaved("malformed_tag", "a rating of another's offer")
    receipt = tags.one(event, "r") or ""
    if receipt and not _HASH.match(receipt):
        raise PeerMisbehaved("malformed_tag", "r is no hash")
    labels = tags.matching(event, "l", _LABEL, _MAX_LABELS)
    return Rating(event.pubkey, seller, offer, int(score), receipt, labels, event.created_at)


def parse_report(event: Event, now: int) -> tuple[Report, ...]:
    """Read a report whose signature was checked: one for each key it names; PeerMisbehaved."""
    if event.kind != REPORT_KIND:
        raise PeerMisbehaved("malformed_tag", f"kind {event.kind} is no report")
    tags.check_date(event, now)
    named = [tag for tag in event.tags if tag[0] == "p" and len(tag) > 1 and is_public_key(tag[1])]
    return tuple(
        Report(event.pubkey, tag[1], tag[2] if len(tag) > 2 and tag[2] in REPORT_TYPES else "other")
        for tag in named[:_MAX_LABELS]
    )
