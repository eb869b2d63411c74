"""What nodes tell each other about relays, and how it is JSON.

An offer goes from a relay to each peer that may use it, in its sealed messages::

    {"endpoints": ["203.0.113.5:24001", "[2001:db8::5]:24001"], "user": "<16 hex>", "key": "<32 hex>",
     "websocket": "wss://relay.example/nostrvpn" | null}

A ticket goes from the peer that allocated a port for a pair to the other one, in its description::

    {"pair": "<16 hex>", "endpoints": ["203.0.113.5:33001", "[2001:db8::5]:33001"],
     "key": "<32 hex>", "websocket": …}

Messages to the relay itself are in ``nostrvpn/stun/relaying.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import urlsplit

from nostrvpn.endpoint import Endpoint
from nostrvpn.paths.candidates import refusal
from nostrvpn.paths.fields import Fields
from nostrvpn.paths.settings import PathSettings
from nostrvpn.stun.relaying import PAIR_ID, RelayUser, Side

__all__ = [
    "MAX_TICKETS",
    "RelayOffer",
    "RelayTicket",
    "offer_to_json",
    "parse_offer",
    "parse_ticket",
    "ticket_to_json",
]

# Two relays a pair: the better one carries, the other takes over. One description may come from a
# node that allocates anew while the old ones still live.
MAX_TICKETS = 4
# One address a family.
MAX_ENDPOINTS = 2
_KEY = re.compile(r"[0-9a-f]{32}\Z")
_MAX_URL = 256
_FIELDS = Fields("bad_relay_offer")


@dataclass(frozen=True, slots=True)
class RelayOffer:
    """A relay that we may use. ``relay`` is its name here: a peer's public key, for status."""

    relay: str
    endpoints: tuple[Endpoint, ...]
    user: RelayUser
    websocket: str | None = None


@dataclass(frozen=True, slots=True)
class RelayTicket:
    """One end of a pair on a relay. ``key`` is the key of ``side``, which is the holder's."""

    pair: str
    endpoints: tuple[Endpoint, ...]
    side: Side
    key: str = field(repr=False)
    websocket: str | None = None


def offer_to_json(offer: RelayOffer) -> dict[str, object]:
    """Return a JSON-able form; it holds the recipient's key."""
    return {
        "endpoints": [str(endpoint) for endpoint in offer.endpoints],
        "user": offer.user.name,
        "key": offer.user.key,
        "websocket": offer.websocket,
    }


def parse_offer(obj: object, relay: str, settings: PathSettings) -> RelayOffer:
    """Parse the offer of ``relay``; PeerMisbehaved("bad_relay_offer") if it breaks a bound."""
    fields = _FIELDS.mapping(obj)
    user = RelayUser(
        _FIELDS.text(fields.get("user"), PAIR_ID), _FIELDS.text(fields.get("key"), _KEY)
    )
    endpoints = _endpoints(fields.get("endpoints"), settings)
    return RelayOffer(relay, endpoints, user, _url(fields.get("websocket"), settings))


def ticket_to_json(ticket: RelayTicket) -> dict[str, object]:
    """Return a JSON-able form; it holds the key of the ticket's side."""
    return {
        "pair": ticket.pair,
        "endpoints": [str(endpoint) for endpoint in ticket.endpoints],
        "key": ticket.key,
        "websocket": ticket.websocket,
    }


def parse_ticket(obj: object, settings: PathSettings) -> RelayTicket:
    """Parse a ticket that a peer made for us; PeerMisbehaved("bad_relay_offer") if it is none."""
    fields = _FIELDS.mapping(obj)
    return RelayTicket(
        pair=_FIELDS.text(fields.get("pair"), PAIR_ID),
        endpoints=_endpoints(fields.get("endpoints"), settings),
        side=Side.OTHER,
        key=_FIELDS.text(fields.get("key"), _KEY),
        websocket=_url(fields.get("websocket"), settings),
    )


def _endpoints(value: object, settings: PathSettings) -> tuple[Endpoint, ...]:
    if not isinstance(value, list) or len(value) > MAX_ENDPOINTS:
        raise _FIELDS.bad("not a short list of endpoints")
    found: dict[int, Endpoint] = {}
    for item in value:
        endpoint = _FIELDS.endpoint(item, settings)
        found.setdefault(endpoint.ip.version, endpoint)
    return tuple(found[version] for version in sorted(found))


def _url(value: object, settings: PathSettings) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > _MAX_URL or not value.isascii():
        raise _FIELDS.bad("a WebSocket address that is none")
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("ws", "wss") and parts.hostname and parts.port != 0
        usable = usable and not _is_refused(parts.hostname or "", settings)
    except ValueError:
        usable = False
    if not usable or any(char.isspace() or ord(char) < 32 for char in value):
        raise _FIELDS.bad("a WebSocket address that is none")
    return value


def _is_refused(host: str, settings: PathSettings) -> bool:
    """Say whether ``host`` is an address that nobody may make us connect to; names are resolved late."""
    try:
        ip = ip_address(host)
    except ValueError:
        return host == "localhost" and not settings.allow_loopback
    return refusal(Endpoint(ip, 1), settings) is not None
