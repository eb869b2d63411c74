"""How far a seller is trusted: a score from 0 to 1 of five parts, each of which says why.

A part that nothing is known of counts as neutral (0.5), so a stranger has 0.5. What strangers say of a
seller counts nothing at all; ``docs/market.md`` states what follows from that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from nostrvpn.market.follows import Circle
from nostrvpn.market.ratings import RATING_WINDOW_S, Rating

__all__ = [
    "NEUTRAL",
    "PROBE_WINDOW_S",
    "Evidence",
    "History",
    "Outcome",
    "Part",
    "Probe",
    "Trust",
    "explain",
    "judge",
]

NEUTRAL: Final = 0.5
_WEIGHTS: Final[Mapping[str, float]] = {
    "history": 0.4,
    "ratings": 0.3,
    "rank": 0.1,
    "age": 0.1,
    "probe": 0.1,
}
# A rating without a receipt of its own counts half; so does one from distance 2.
_HALF = 0.5
# All who are only followed by those whom the user follows weigh together what one follow does.
_SECOND_WEIGHT = 1.0
# An opinion is drawn to the middle as if one more, neutral one had been given.
_PRIOR = 1.0
_OLD_S = 30 * 86_400
_SLOW_MS = 1000.0
_DAY_S = 86_400
PROBE_WINDOW_S: Final = 30 * _DAY_S
"""After these seconds what was measured counts no more: hosts move and are mended."""


class Outcome(Enum):
    """How a lease that we bought ended."""

    SERVED = "served"  # it did what it was paid for
    NO_SERVICE = "no-service"  # paid or tried, and nothing came through
    BROKE_OFF = "broke-off"  # it served and ended without a word
    OVERCHARGED = "overcharged"  # it asked for more than we counted


@dataclass(frozen=True, slots=True)
class History:
    """One lease that we bought. ``at``: Unix time of its end."""

    lease_id: str
    seller: str
    at: int
    bytes: int
    paid_msat: int
    outcome: Outcome
    offer: str = ""  # its address
    receipt: str = ""  # the hash of the receipt (64 hex), if it gave one


@dataclass(frozen=True, slots=True)
class Probe:
    """What this host itself measured. ``ok``: whether the last try through the tunnel worked, None:
    none was made; ``rtt_ms``: of the fastest connection through it; ``quote_ms``: how soon it answered a
    request, by relays. ``country`` and ``place`` ("203.0.113.0/24"): where the seller is, "" unknown.
    ``at``: Unix time."""

    ok: bool | None = None
    rtt_ms: float | None = None
    country: str = ""
    at: int = 0
    quote_ms: float | None = None
    place: str = ""

    def then(self, later: Probe) -> Probe:
        """Return what is known after a later one: what it does not tell stays as it was."""
        return Probe(
            self.ok if later.ok is None else later.ok,
            self.rtt_ms if later.rtt_ms is None else later.rtt_ms,
            later.country or self.country,
            later.at,
            self.quote_ms if later.quote_ms is None else later.quote_ms,
            later.place or self.place,
        )

    def is_old(self, now: int) -> bool:
        """Whether it is of so long ago that nothing follows from it any more."""
        return not 0 <= now - self.at + _DAY_S < PROBE_WINDOW_S


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of one seller. ``ratings``: anybody's; ``rank``: 0 … 100; ``first_seen``: when
    this host first saw an offer of it (Unix time); ``claimed``: the country that it claims."""

    seller: str
    history: Sequence[History] = ()
    ratings: Sequence[Rating] = ()
    rank: int | None = None
    first_seen: int | None = None
    probe: Probe | None = None
    claimed: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a score: ``value`` 0 … 1, None: nothing is known."""

    name: str
    weight: float
    value: float | None
    text: str


@dataclass(frozen=True, slots=True)
class Trust:
    """``score``: 0 … 1. ``is_known``: anything but its age speaks for or against it."""

    score: float
    parts: tuple[Part, ...]

    @property
    def is_known(self) -> bool:
        """Whether this host or its user's circle knows anything of the seller."""
        return any(part.value is not None for part in self.parts if part.name != "age")


def judge(evidence: Evidence, circle: Circle, now: int) -> Trust:
    """Weigh what is known of a seller; ``now`` is Unix time."""
    found = {
        "history": _history(evidence.history),
        "ratings": _ratings(evidence, circle, now),
        "rank": _rank(evidence.rank),
        "age": _age(evidence.first_seen, now),
        "probe": _probe(evidence.probe, evidence.claimed, now),
    }
    parts = tuple(Part(name, _WEIGHTS[name], *found[name]) for name in _WEIGHTS)
    score = sum(part.weight * (NEUTRAL if part.value is None else part.value) for part in parts)
    return Trust(min(1.0, max(0.0, score)), parts)


def explain(trust: Trust) -> tuple[str, ...]:
    """Return a line for each part of a score, and one for the sum."""
    lines = [f"trust {trust.score:.2f} of 1 (a stranger has {NEUTRAL:.2f})"]
    for part in trust.parts:
        value = NEUTRAL if part.value is None else part.value
        lines.append(f"{part.name}: {value:.2f} x {part.weight:.1f}, {part.text}")
    return tuple(lines)


def _history(history: Sequence[History]) -> tuple[float | None, str]:
    if not history:
        return None, "nothing bought there yet"
    cheated = sum(1 for one in history if one.outcome is Outcome.OVERCHARGED)
    if cheated:
        return 0.0, f"it overcharged {_times(cheated)}"
    good = sum(1 for one in history if one.outcome is Outcome.SERVED)
    # One more good and one more bad than there were: a single lease proves little.
    return (good + 1) / (len(history) + 2), f"{good} of {len(history)} leases served as paid"


def _ratings(evidence: Evidence, circle: Circle, now: int) -> tuple[float | None, str]:
    counted = _counted(evidence, circle, now)
    if not counted:
        return None, "no rating by you or anybody you follow"
    weights = _weights(counted)
    far = sum(weight for (near, _), weight in zip(counted, weights, strict=True) if near > 1)
    shrink = min(1.0, _SECOND_WEIGHT / far) if far else 1.0
    total, mass = NEUTRAL * _PRIOR, _PRIOR
    for (near, rating), weight in zip(counted, weights, strict=True):
        share = weight * shrink if near > 1 else weight
        total += share * (0.5 + rating.score / 200)
        mass += share
    mean = sum(rating.score for _, rating in counted) / len(counted)
    who = "person" if len(counted) == 1 else "people"
    return total / mass, f"rated {mean:+.0f} by {len(counted)} {who} of your circle"


def _counted(evidence: Evidence, circle: Circle, now: int) -> list[tuple[int, Rating]]:
    """Return the newest rating of each author who counts, with the author's distance."""
    newest: dict[str, Rating] = {}
    for rating in evidence.ratings:
        is_about = rating.seller == evidence.seller != rating.author
        if not is_about or not now - RATING_WINDOW_S < rating.created_at <= now + _DAY_S:
            continue
        before = newest.get(rating.author)
        if before is None or _order(rating) > _order(before):
            newest[rating.author] = rating
    near = [(circle.distance(rating.author), rating) for rating in newest.values()]
    return [(distance, rating) for distance, rating in near if distance is not None]


def _order(rating: Rating) -> tuple[int, int]:
    return rating.created_at, -rating.score


def _weights(counted: Sequence[tuple[int, Rating]]) -> list[float]:
    """A receipt that two show is nobody's; but nobody takes one from who is nearer by copying it."""
    near_by = Counter(rating.receipt for near, rating in counted if near <= 1)
    anywhere = Counter(rating.receipt for _, rating in counted)

    def weight(near: int, rating: Rating) -> float:
        shown = (near_by if near <= 1 else anywhere)[rating.receipt]
        is_own = bool(rating.receipt) and shown == 1
        return (1.0 if is_own else _HALF) * (_HALF if near > 1 else 1.0)

    return [weight(near, rating) for near, rating in counted]


def _rank(rank: int | None) -> tuple[float | None, str]:
    if rank is None:
        return None, "no rank by a service that you trust (NIP-85)"
    return rank / 100, f"rank {rank} of 100 by services that you trust"


def _age(first_seen: int | None, now: int) -> tuple[float | None, str]:
    if first_seen is None:
        return None, "never seen before"
    age = max(0, now - first_seen)
    value = NEUTRAL + (1 - NEUTRAL) * min(1.0, age / _OLD_S)
    return value, f"first seen here {age // _DAY_S} days ago"


def _probe(probe: Probe | None, claimed: str, now: int) -> tuple[float | None, str]:
    if probe is None or probe.is_old(now):
        return None, "not tried"
    said = "" if probe.quote_ms is None else f"; it quotes in {probe.quote_ms:.0f} ms"
    seen = f"; it is in {probe.country}" if probe.country else ""
    if claimed and probe.country and claimed != probe.country:
        return 0.1, f"it claims {claimed} and is in {probe.country}{said}"
    if probe.ok is None:
        return None, f"not tried{said}"
    if not probe.ok:
        return 0.0, f"the last try through it failed{seen}{said}"
    if probe.rtt_ms is None:
        return NEUTRAL, f"the last try worked{seen}{said}"
    slow = min(probe.rtt_ms, _SLOW_MS) / _SLOW_MS
    return 1.0 - NEUTRAL * slow, f"the last try worked, {probe.rtt_ms:.0f} ms{seen}{said}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
