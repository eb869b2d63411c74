"""What a node that is an exit says of itself to those who may use it.

::

    {"v4": true, "v6": false, "dns": true, "policy": "web", "country": "DE" | null, "load": 0…100,
     "through": ["public key", …]}

``through`` is there where it leaves by another exit itself: that one, the one that this leaves by, and
so on. ``dns``: it answers DNS at its overlay address. ``"down": WHY`` is there where it carries nothing
for now: ``route`` (its host has no way out), ``provider`` (its WireGuard provider does not answer) or
``exit`` (the exit that it leaves by itself does not carry). All of it is a claim: what counts is what
is measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nostrvpn.errors import PeerMisbehaved, UsageError, one_line
from nostrvpn.exits.limits import ExitLimits
from nostrvpn.exits.policy import ExitPolicy

__all__ = [
    "EXIT_DNS_PORT",
    "MAX_HOPS",
    "ExitOffer",
    "OfferSettings",
    "offer_to_json",
    "parse_country",
    "parse_offer",
]

# Where an exit answers DNS, at its overlay addresses, over UDP and TCP.
EXIT_DNS_PORT = 53

# Spec: ISO 3166-1 alpha-2.
_COUNTRY = re.compile(r"[A-Z]{2}\Z")
_POLICY = re.compile(r"[a-z][a-z-]{0,31}\Z")
_MAX_LOAD = 100
_DOWN = re.compile(r"[a-z][a-z-]{0,31}\Z")
_KEY = re.compile(r"[0-9a-f]{64}\Z")
MAX_HOPS = 8
"""Of exits one behind the other. What goes in a circle is found long before."""


@dataclass(frozen=True, slots=True)
class ExitOffer:
    """``v4`` and ``v6``: what it carries to the internet. ``policy``: the name of what it lets through.
    ``country``: where it says it is. ``load``: percent of what it has. ``through``: the exits (public
    keys) that it leaves by itself, in order.
    ``down``: why it carries nothing, in one word, else empty."""

    v4: bool = True
    v6: bool = False
    dns: bool = False
    policy: str = "open"
    country: str | None = None
    load: int = 0
    through: tuple[str, ...] = ()
    down: str = ""

    @property
    def versions(self) -> frozenset[int]:
        """The IP versions that it carries to the internet."""
        return frozenset(v for v, carried in ((4, self.v4), (6, self.v6)) if carried)


@dataclass(frozen=True, slots=True)
class OfferSettings:
    """What the user of a node that is an exit decided. ``country``: where it says it is, or empty;
    ``ipv6``: whether it carries IPv6 where the host has it."""

    policy: ExitPolicy = field(default_factory=ExitPolicy)
    limits: ExitLimits = field(default_factory=ExitLimits)
    country: str = ""
    ipv6: bool = True

    def to_json(self) -> dict[str, object]:
        """Return what is stored."""
        return {
            "policy": self.policy.to_json(),
            "limits": self.limits.to_json(),
            "country": self.country,
            "ipv6": self.ipv6,
        }

    @classmethod
    def from_json(cls, stored: object) -> OfferSettings:
        """Rebuild from :meth:`to_json`; PeerMisbehaved if the record is damaged."""
        values: Mapping[str, Any] = stored if isinstance(stored, Mapping) else {}
        country, ipv6 = values.get("country"), values.get("ipv6")
        if not isinstance(country, str) or not isinstance(ipv6, bool):
            raise PeerMisbehaved("bad_record", "not what an exit offers")
        if country and not _COUNTRY.match(country):
            raise PeerMisbehaved("bad_record", "not a country")
        policy = ExitPolicy.from_json(values.get("policy"))
        return cls(policy, ExitLimits.from_json(values.get("limits")), country, ipv6)


def parse_country(text: str) -> str:
    """Return a country's code in capitals; UsageError if it is none."""
    if not _COUNTRY.match(code := text.strip().upper()):
        raise UsageError(f"{one_line(text)!r} is no country's code", "two letters, for example: DE")
    return code


def offer_to_json(offer: ExitOffer) -> dict[str, object]:
    """Return what is said of an offer."""
    more: dict[str, object] = {"through": list(offer.through)} if offer.through else {}
    if offer.down:
        more["down"] = offer.down
    return {
        "v4": offer.v4,
        "v6": offer.v6,
        "dns": offer.dns,
        "policy": offer.policy,
        "country": offer.country,
        "load": offer.load,
        **more,
    }


def parse_offer(value: object) -> ExitOffer | None:
    """Return a peer's offer; None where it makes none. PeerMisbehaved if it breaks a bound."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise PeerMisbehaved("bad_message", "not an exit's offer")
    flags = [value.get(name, False) for name in ("v4", "v6", "dns")]
    policy, country, load = value.get("policy", "open"), value.get("country"), value.get("load", 0)
    through, down = value.get("through", []), value.get("down", "")
    fits = (
        all(isinstance(flag, bool) for flag in flags)
        and isinstance(through, list)
        and len(through) <= MAX_HOPS
        and all(isinstance(key, str) and _KEY.match(key) for key in through)
        and isinstance(down, str)
        and (not down or _DOWN.match(down))
        and isinstance(policy, str)
        and _POLICY.match(policy)
        and (country is None or (isinstance(country, str) and _COUNTRY.match(country)))
        and isinstance(load, int)
        and not isinstance(load, bool)
        and 0 <= load <= _MAX_LOAD
    )
    if not fits:
        raise PeerMisbehaved("bad_message", "not an exit's offer")
    carries = flags[0] or flags[1]
    if not carries and not down:
        return None
    down = "" if carries else down
    return ExitOffer(flags[0], flags[1], flags[2], policy, country, load, tuple(through), down)
