"""Whose word counts: the user's contacts (NIP-02), what the user and chosen others deny (NIP-51).

Distance 0 is the user, 1 whom the user follows, 2 whom those follow. Only contact lists make anybody
closer, never a rating and never a seller's good name: else a seller would choose its own judges.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.market import tags
from nostrvpn.market.ratings import Report
from nostrvpn.nostr.event import Event

__all__ = [
    "ALLOW_SET",
    "CONTACTS_KIND",
    "DENY_SET",
    "MUTES_KIND",
    "REPORTS_NEEDED",
    "SETS_KIND",
    "Circle",
    "Lists",
    "latest",
    "parse_contacts",
    "parse_mutes",
    "parse_set",
]

CONTACTS_KIND: Final = 3
MUTES_KIND: Final = 10000
SETS_KIND: Final = 30000
DENY_SET: Final = "exit-deny"
ALLOW_SET: Final = "exit-allow"
# So many different people of the circle must report a seller.
REPORTS_NEEDED: Final = 3
# Whom one follows, and all whom those follow: bounds on memory, far above what people have.
_MAX_FOLLOWS = 2000
_MAX_SECOND = 20_000


def parse_contacts(event: Event) -> frozenset[str]:
    """Return whom a contact list (kind 3) names."""
    if event.kind != CONTACTS_KIND:
        raise PeerMisbehaved("malformed_tag", f"kind {event.kind} is no contact list")
    return frozenset(sorted(tags.keys(event))[:_MAX_FOLLOWS])


def parse_mutes(event: Event) -> frozenset[str]:
    """Return whom a mute list (kind 10000) names openly; its sealed half is for its author's eyes."""
    if event.kind != MUTES_KIND:
        raise PeerMisbehaved("malformed_tag", f"kind {event.kind} is no mute list")
    return tags.keys(event)


def parse_set(event: Event) -> tuple[str, frozenset[str]]:
    """Return the name and the keys of a set of ours: ``exit-deny`` or ``exit-allow``."""
    name = tags.one(event, "d")
    if event.kind != SETS_KIND or name not in (DENY_SET, ALLOW_SET):
        raise PeerMisbehaved("malformed_tag", "it is none of the sets of exits")
    return name, tags.keys(event)


def latest(events: Iterable[Event]) -> dict[tuple[str, int, str], Event]:
    """Return the newest of each replaceable event (NIP-01), by author, kind and ``d``."""
    newest: dict[tuple[str, int, str], Event] = {}
    for event in events:
        name = next(iter(event.tag_values("d")), "") if event.kind >= SETS_KIND else ""
        key = (event.pubkey, event.kind, name)
        before = newest.get(key)
        # Of two of one second the lower id counts, so that all agree.
        if before is None or (-event.created_at, event.id) < (-before.created_at, before.id):
            newest[key] = event
    return newest


@dataclass(frozen=True, slots=True)
class Circle:
    """Whose ratings and reports count. ``own``: the user's keys, those it rates with too; ``reach``: the
    greatest distance that counts."""

    own: frozenset[str] = frozenset()
    follows: frozenset[str] = frozenset()
    second: frozenset[str] = frozenset()
    muted: frozenset[str] = frozenset()
    reach: int = 1

    @classmethod
    def of(
        cls,
        own: frozenset[str],
        main: str | None,
        contacts: Mapping[str, frozenset[str]],
        *,
        muted: frozenset[str] = frozenset(),
        reach: int = 1,
    ) -> Circle:
        """Return the circle around ``main``; ``contacts``: contact lists by author."""
        if main is None:
            return cls(own, muted=muted, reach=reach)
        follows = contacts.get(main, frozenset()) - own - {main}
        second: set[str] = set()
        if reach > 1:
            for one in sorted(follows):
                second |= contacts.get(one, frozenset())
                if len(second) >= _MAX_SECOND:
                    break
        far = frozenset(sorted(second)[:_MAX_SECOND]) - follows - own - {main}
        return cls(own | {main}, follows, far, muted, reach)

    def distance(self, author: str) -> int | None:
        """Return 0, 1 or 2; None for everybody who does not count."""
        if author in self.own:
            return 0
        if author in self.muted:
            return None
        if author in self.follows and self.reach >= 1:
            return 1
        return 2 if author in self.second and self.reach > 1 else None


@dataclass(frozen=True, slots=True)
class Lists:
    """Who is refused, and by whose word. ``denied`` and ``allowed``: on this host, ``allowed`` above
    all; ``lists``: other people's lists, by author; ``muted``: the user's mutes and ``exit-deny``."""

    denied: frozenset[str] = frozenset()
    allowed: frozenset[str] = frozenset()
    muted: frozenset[str] = frozenset()
    lists: Mapping[str, frozenset[str]] = field(default_factory=dict)
    reporters: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def refusal(self, seller: str) -> tuple[str, str] | None:
        """Return code and words of why a seller is refused, or None."""
        if seller in self.denied:
            return "denied", "denied on this host"
        if seller in self.allowed:
            return None
        if seller in self.muted:
            return "muted", "on your mute list"
        by = sorted(author for author, keys in self.lists.items() if seller in keys)
        if by:
            return "listed", f"on the list of {by[0][:8]}… that you subscribe to"
        count = len(self.reporters.get(seller, ()))
        if count >= REPORTS_NEEDED:
            return "reported", f"reported by {count} whom you follow"
        return None

    @staticmethod
    def count_reports(reports: Iterable[Report], circle: Circle) -> Mapping[str, frozenset[str]]:
        """Return who of the circle's inner part (distance 0 and 1) reported each seller, each once."""
        found: dict[str, set[str]] = {}
        for report in reports:
            near = circle.distance(report.author)
            if near is not None and near <= 1 and report.author != report.seller:
                found.setdefault(report.seller, set()).add(report.author)
        return {seller: frozenset(authors) for seller, authors in found.items()}
