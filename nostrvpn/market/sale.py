"""What the owner of an exit decided about selling it to strangers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nostrvpn.cashu.mint_url import parse_mint_url
from nostrvpn.errors import PeerMisbehaved, UsageError, UserError, one_line
from nostrvpn.exits.limits import ExitLimits
from nostrvpn.exits.offer import parse_country
from nostrvpn.exits.policy import ExitPolicy
from nostrvpn.market.opening import Quiet
from nostrvpn.market.terms import MAX_MSAT, PayMode, Price, Terms
from nostrvpn.nostr.event import is_public_key

__all__ = [
    "DUTIES",
    "MAX_ARBITERS",
    "MAX_CONTACT",
    "MAX_MINTS",
    "Sale",
    "parse_contact",
    "parse_place",
]

# Buyers compare them one by one; a seller must trust each with what it did not redeem yet.
MAX_MINTS = 8
# Leases at a time: each holds an address, a WireGuard peer and a quota in the kernel.
MAX_SESSIONS = 4096
# NIP-13: 28 bits take a laptop a minute.
MAX_POW_BITS = 28
MAX_CONTACT = 200
MAX_BUYERS = 1000
MAX_ARBITERS = 8
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]{1,253}):([0-9]{1,5})\Z")

# What whoever sells to strangers takes upon himself; docs/providers.md says more of each.
DUTIES = (
    "Strangers' traffic leaves with your address. What they do with it is asked of you first: by your "
    "hoster, by those who were harmed, perhaps by the police.",
    "Many hosters forbid exits. Read your contract; a home connection is the wrong place.",
    "You keep no record of where guests went, so you can name nobody. In some countries who sells "
    "access must register, keep records or answer within days: ask somebody who knows.",
    "An address that sells exits ends on blocklists. Do not use one that your mail or your sites need.",
    "Answer complaints: say in --contact where they reach you, and end a lease that does harm "
    "(nostrvpn market deny).",
    "Tokens are the mint's promise. Withdraw what you earned often; a mint that ends takes it along.",
)


@dataclass(frozen=True, slots=True)
class Sale:
    """``limits``: of each lease (``client_rate``, ``connections``) and of all together.

    ``endpoint``: HOST:PORT where buyers reach this host, or empty for its own public address; ``port``:
    where WireGuard listens for them, 0: drawn once. ``pow_bits``: work asked for with a request
    (NIP-13). ``contact``: where complaints go. ``mirror``: also as a classified listing (NIP-99).
    ``only``: these buyers alone, none: all; ``never``: not these (x-only keys). ``escrow``: arbiters
    that buyers may name (x-only keys). ``quiet``: hours of the day in which nobody is served.
    """

    terms: Terms
    policy: ExitPolicy = field(default_factory=ExitPolicy)
    limits: ExitLimits = field(default_factory=ExitLimits)
    country: str = ""
    ipv6: bool = True
    max_sessions: int = 100
    endpoint: str = ""
    port: int = 0
    pow_bits: int = 0
    contact: str = ""
    mirror: bool = False
    only: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    escrow: tuple[str, ...] = ()
    quiet: Quiet | None = None

    def to_json(self) -> dict[str, object]:
        """Return what is stored."""
        price, terms = self.terms.price, self.terms
        return {
            "step_bytes": price.step_bytes,
            "step_msat": price.step_msat,
            "hour_msat": price.hour_msat,
            "mints": list(terms.mints),
            "pay": [mode.value for mode in terms.pay],
            "free_bytes": terms.free_bytes,
            "grace_bytes": terms.grace_bytes,
            "max_slice_sat": terms.max_slice_sat,
            "policy": self.policy.to_json(),
            "limits": self.limits.to_json(),
            "country": self.country,
            "ipv6": self.ipv6,
            "max_sessions": self.max_sessions,
            "endpoint": self.endpoint,
            "port": self.port,
            "pow_bits": self.pow_bits,
            "contact": self.contact,
            "mirror": self.mirror,
            "only": list(self.only),
            "never": list(self.never),
            "escrow": list(self.escrow),
            "quiet": str(self.quiet or ""),
        }

    @classmethod
    def from_json(cls, stored: object) -> Sale:
        """Rebuild from :meth:`to_json`; PeerMisbehaved if the record is damaged."""
        values: Mapping[str, Any] = stored if isinstance(stored, Mapping) else {}
        try:
            price = Price(
                _whole(values, "step_bytes", 1, 1 << 50),
                _whole(values, "step_msat", 0, MAX_MSAT),
                _whole(values, "hour_msat", 0, MAX_MSAT),
            )
            terms = Terms(
                price,
                tuple(parse_mint_url(url) for url in _list(values, "mints", MAX_MINTS)),
                tuple(PayMode(word) for word in _list(values, "pay", len(PayMode))),
                _whole(values, "free_bytes", 0, 1 << 40),
                _whole(values, "grace_bytes", 0, 1 << 40),
                _whole(values, "max_slice_sat", 1, MAX_MSAT // 1000),
            )
            country = _text(values, "country")
            endpoint = _text(values, "endpoint")
            quiet = _text({"quiet": "", **values}, "quiet")
            # A sale of before there was escrow knows no arbiters.
            values = {"escrow": [], **values}
            lists = tuple(_keys(values, name) for name in ("only", "never", "escrow"))
            return cls(
                terms,
                ExitPolicy.from_json(values.get("policy")),
                ExitLimits.from_json(values.get("limits")),
                parse_country(country) if country else "",
                values.get("ipv6") is True,
                _whole(values, "max_sessions", 1, MAX_SESSIONS),
                parse_place(endpoint) if endpoint else "",
                _whole(values, "port", 0, 65535),
                _whole(values, "pow_bits", 0, MAX_POW_BITS),
                parse_contact(_text(values, "contact")),
                values.get("mirror") is True,
                lists[0],
                lists[1],
                lists[2],
                Quiet.parse(quiet) if quiet else None,
            )
        except (UserError, ValueError) as exc:
            raise PeerMisbehaved("bad_record", f"not a sale: {exc}") from exc


def parse_place(text: str) -> str:
    """Return HOST:PORT as given; UsageError."""
    found = _HOST.match(text.strip())
    if found is None or not 0 < int(found[2]) < 65536:
        raise UsageError(
            f"{one_line(text)!r} is no HOST:PORT", "for example: vpn.example.org:51821"
        )
    return text.strip()


def parse_contact(text: str) -> str:
    """Return where complaints go, one line; UsageError."""
    if len(text) > MAX_CONTACT or not text.isprintable():
        raise UsageError("a contact is one line", "for example: abuse@example.org")
    return text.strip()


def _whole(values: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = values.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise PeerMisbehaved("bad_record", f"not a sale: {name}")
    return value


def _keys(values: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = _list(values, name, MAX_BUYERS)
    if not all(map(is_public_key, found)):
        raise PeerMisbehaved("bad_record", f"not a sale: {name}")
    return tuple(found)


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str):
        raise PeerMisbehaved("bad_record", f"not a sale: {name}")
    return value


def _list(values: Mapping[str, Any], name: str, most: int) -> list[str]:
    value = values.get(name)
    is_list = isinstance(value, list) and len(value) <= most
    if not is_list or not all(isinstance(word, str) for word in value or ()):
        raise PeerMisbehaved("bad_record", f"not a sale: {name}")
    return list(value or ())
