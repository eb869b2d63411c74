"""Ranks that services the user trusts give to keys (NIP-85)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from nostrvpn.config.addresses import check_relay_url
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.market import tags
from nostrvpn.nostr.event import Event, is_public_key

__all__ = ["RANK_KIND", "SERVICES_KIND", "mean_ranks", "parse_rank", "parse_services"]

RANK_KIND: Final = 30382
SERVICES_KIND: Final = 10040
_MAX_SERVICES = 4


def parse_services(event: Event) -> tuple[tuple[str, str], ...]:
    """Return key and relay of each service whose ranks the author of a kind 10040 trusts."""
    if event.kind != SERVICES_KIND:
        raise PeerMisbehaved("malformed_tag", f"kind {event.kind} names no services")
    found: dict[str, str] = {}
    for tag in event.tags:
        match tag:
            case ("30382:rank", key, relay, *_) if is_public_key(key):
                try:
                    found[key] = check_relay_url(relay)
                except ValueError:
                    continue
    return tuple(found.items())[:_MAX_SERVICES]


def parse_rank(event: Event, now: int) -> tuple[str, str, int]:
    """Return service, subject and rank (0 … 100) of a kind 30382; PeerMisbehaved."""
    subject = tags.one(event, "d")
    if event.kind != RANK_KIND or not is_public_key(subject):
        raise PeerMisbehaved("malformed_tag", "it is no rank")
    assert subject is not None
    tags.check_date(event, now)
    return event.pubkey, subject, tags.number(tags.one(event, "rank"), "rank", (0, 100))


def mean_ranks(ranks: Iterable[tuple[str, str, int]], services: Iterable[str]) -> Mapping[str, int]:
    """Return each subject's mean rank (0 … 100) by these services only; one rank a service."""
    trusted = frozenset(services)
    given: dict[str, dict[str, int]] = {}
    for service, subject, rank in ranks:
        if service in trusted:
            given.setdefault(subject, {})[service] = rank
    return {subject: sum(by.values()) // len(by) for subject, by in given.items()}
