"""Tags of public events, read with bounds: each helper gives a value or ``PeerMisbehaved``."""

from __future__ import annotations

import re

from nostrvpn.cashu.mint_url import BadMintUrl, parse_mint_url
from nostrvpn.config.addresses import check_relay_url
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.nostr.event import Event, is_public_key

__all__ = [
    "FUTURE_S",
    "check_date",
    "keys",
    "matching",
    "mint_url",
    "number",
    "one",
    "relay_urls",
]

# How far ahead a clock may be.
FUTURE_S = 300
# A number in a tag is at most 2**63, in decimal without a sign or leading zeros.
_NUMBER = re.compile(r"(0|[1-9][0-9]{0,18})\Z")


def one(event: Event, name: str) -> str | None:
    """Return the only value of a tag, None if there is none; given twice it is malformed."""
    values = event.tag_values(name)
    if len(values) > 1:
        raise PeerMisbehaved("malformed_tag", f"{name} is given twice")
    return values[0] if values else None


def number(text: str | None, name: str, bounds: tuple[int, int], default: int | None = None) -> int:
    """Return a whole number within ``bounds`` (both included)."""
    if text is None and default is not None:
        return default
    if text is None or not _NUMBER.match(text):
        raise PeerMisbehaved("malformed_tag", f"{name} is missing or no whole number")
    value = int(text)
    if not bounds[0] <= value <= bounds[1]:
        raise PeerMisbehaved("malformed_tag", f"{name} is not {bounds[0]} to {bounds[1]}")
    return value


def matching(event: Event, name: str, pattern: re.Pattern[str], most: int) -> tuple[str, ...]:
    """Return the values of a repeated tag, each once; each must match."""
    values = tuple(dict.fromkeys(event.tag_values(name)))
    if len(values) > most or not all(pattern.match(value) for value in values):
        raise PeerMisbehaved("malformed_tag", f"{name} is malformed or given too often")
    return values


def keys(event: Event, name: str = "p") -> frozenset[str]:
    """Return the public keys that tags name; what is none is passed over."""
    return frozenset(value for value in event.tag_values(name) if is_public_key(value))


def mint_url(text: str) -> str:
    """Return a mint's URL in the spelling in which URLs are compared."""
    try:
        return parse_mint_url(text)
    except BadMintUrl as error:
        raise PeerMisbehaved("malformed_tag", "a mint's URL is malformed") from error


def relay_urls(event: Event, most: int) -> tuple[str, ...]:
    """Return the relays that ``relay`` tags name, each once, in its one spelling."""
    try:
        urls = dict.fromkeys(check_relay_url(url) for url in event.tag_values("relay"))
    except ValueError as error:
        raise PeerMisbehaved("malformed_tag", "a relay's URL is malformed") from error
    if len(urls) > most:
        raise PeerMisbehaved("malformed_tag", f"more than {most} relays")
    return tuple(urls)


def check_date(event: Event, now: int) -> None:
    """Refuse what is dated more than five minutes ahead."""
    if event.created_at > now + FUTURE_S:
        raise PeerMisbehaved("future", "it is dated in the future")
