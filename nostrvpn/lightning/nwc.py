"""Nostr Wallet Connect (NIP-47): what is asked of somebody's Lightning wallet, and what it answers.

Encryption is NIP-44 only: a wallet that speaks just NIP-04 is refused. Amounts are msat.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from nostrvpn.errors import PeerMisbehaved, UserError
from nostrvpn.machine import Moment
from nostrvpn.nostr import nip44
from nostrvpn.nostr.event import (
    Event,
    decode_json,
    encode_json,
    is_public_key,
    public_key,
    sign_event,
)

__all__ = [
    "INFO",
    "NOTIFICATION",
    "REQUEST",
    "RESPONSE",
    "Answer",
    "Notification",
    "WalletError",
    "WalletInfo",
    "WalletLink",
    "filters",
    "parse_info",
    "parse_notification",
    "parse_response",
    "parse_wallet_link",
    "request_event",
]

INFO, REQUEST, RESPONSE, NOTIFICATION = 13194, 23194, 23195, 23197
# A wallet that is asleep must not pay an hour later what we have given up.
REQUEST_EXPIRES_S = 60
_MAX_LINK = 2000
_MAX_RELAYS = 4
_SCHEMES = ("nostr+walletconnect", "nostrwalletconnect")
_HEX = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class WalletLink:
    """A connection to a wallet: its public key, its relays, and the secret that may ask.

    ``lud16``: a lightning address that pays into it, or empty.
    """

    wallet: str
    relays: tuple[str, ...]
    secret: bytes = field(repr=False)
    lud16: str = ""

    @property
    def client(self) -> str:
        """The public key that asks."""
        return public_key(self.secret)


@dataclass(frozen=True, slots=True)
class WalletInfo:
    """What a wallet says of itself: ``methods`` that it knows, ``notifications`` that it sends."""

    methods: frozenset[str]
    notifications: frozenset[str]


@dataclass(frozen=True, slots=True)
class Answer:
    """A wallet's answer to the request of this event id."""

    request_id: str
    method: str
    result: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Notification:
    """Something happened in the wallet: ``payment_received``, ``payment_sent``,
    ``hold_invoice_accepted``."""

    kind: str
    what: Mapping[str, Any] = field(repr=False)


class WalletError(UserError):
    """The wallet refused; ``code`` is NIP-47's (``INSUFFICIENT_BALANCE``, ``QUOTA_EXCEEDED``, …)."""

    def __init__(self, request_id: str, code: str, text: str) -> None:
        super().__init__(f"the Lightning wallet refused: {text or code}")
        self.request_id = request_id
        self.code = code


def parse_wallet_link(text: str) -> WalletLink:
    """Return the connection that ``nostr+walletconnect://…`` describes; UserError without the text."""
    given = text.strip()
    try:
        parts = urlsplit(given)
        query = parse_qs(parts.query)
    except ValueError as exc:
        raise _no_link() from exc
    wallet = (parts.netloc or parts.path.strip("/")).lower()
    secret = query.get("secret", [""])[0].lower()
    relays = tuple(dict.fromkeys(query.get("relay", [])))[:_MAX_RELAYS]
    fits = (
        len(given) <= _MAX_LINK
        and parts.scheme in _SCHEMES
        and is_public_key(wallet)
        and _HEX.match(secret)
        and relays
        and all(url.startswith(("ws://", "wss://")) for url in relays)
    )
    if not fits:
        raise _no_link()
    try:
        link = WalletLink(wallet, relays, bytes.fromhex(secret), query.get("lud16", [""])[0])
        nip44.conversation_key(link.secret, link.wallet)
    except (ValueError, PeerMisbehaved) as exc:
        raise _no_link() from exc
    return link


def filters(link: WalletLink, since: int) -> list[dict[str, object]]:
    """Return what to ask a relay for: the wallet's answers and notifications to us, and its info."""
    told = {"kinds": [RESPONSE, NOTIFICATION], "authors": [link.wallet], "#p": [link.client]}
    return [told | {"since": since}, {"kinds": [INFO], "authors": [link.wallet], "limit": 1}]


def request_event(
    link: WalletLink, method: str, params: Mapping[str, object], moment: Moment
) -> Event:
    """Return a request, signed and sealed; it lapses after a minute (NIP-40)."""
    key = nip44.conversation_key(link.secret, link.wallet)
    text = encode_json({"method": method, "params": dict(params)})
    now = int(moment.wall)
    return sign_event(
        link.secret,
        kind=REQUEST,
        tags=(
            ("p", link.wallet),
            ("encryption", "nip44_v2"),
            ("expiration", str(now + REQUEST_EXPIRES_S)),
        ),
        content=nip44.encrypt(key, text.encode(), moment.entropy.take(32)),
        created_at=now,
        aux=moment.entropy.take(32),
    )


def parse_info(event: Event) -> WalletInfo:
    """Return what a wallet can do; UserError if it speaks no NIP-44."""
    spoken = " ".join(event.tag_values("encryption")).replace(",", " ").split()
    if "nip44_v2" not in spoken:
        raise UserError(
            "this Lightning wallet encrypts by NIP-04 only, which is not safe",
            "connect one that speaks NIP-44 (Alby Hub does)",
        )
    words = " ".join(event.tag_values("notifications")).split()
    return WalletInfo(frozenset(event.content.split()), frozenset(words))


def parse_response(link: WalletLink, event: Event) -> Answer:
    """Return an answer; WalletError if the wallet refused, PeerMisbehaved if it is none."""
    body = _open(link, event)
    asked = event.tag_values("e")
    method, error, result = body.get("result_type"), body.get("error"), body.get("result")
    if not asked or not isinstance(method, str):
        raise PeerMisbehaved("bad_wallet_answer", "an answer to nothing")
    if isinstance(error, dict):
        code, text = str(error.get("code", "OTHER"))[:64], str(error.get("message", ""))[:200]
        raise WalletError(asked[0], code, text)
    if not isinstance(result, dict):
        raise PeerMisbehaved("bad_wallet_answer", "an answer without a result")
    return Answer(asked[0], method, result)


def parse_notification(link: WalletLink, event: Event) -> Notification:
    """Return what happened; PeerMisbehaved if it says nothing."""
    body = _open(link, event)
    kind, what = body.get("notification_type"), body.get("notification")
    if not isinstance(kind, str) or not isinstance(what, dict):
        raise PeerMisbehaved("bad_wallet_answer", "a notification of nothing")
    return Notification(kind, what)


def _open(link: WalletLink, event: Event) -> Mapping[str, Any]:
    if event.pubkey != link.wallet or link.client not in event.tag_values("p"):
        raise PeerMisbehaved("bad_wallet_answer", "not from this wallet to us")
    key = nip44.conversation_key(link.secret, link.wallet)
    body = decode_json(nip44.decrypt(key, event.content))
    if not isinstance(body, dict):
        raise PeerMisbehaved("bad_wallet_answer", "not an object")
    return body


def _no_link() -> UserError:
    # Without the text: it holds a secret that spends.
    return UserError(
        "this is no connection to a Lightning wallet",
        "copy nostr+walletconnect://… from the wallet that is to pay",
    )
