"""Lease messages sealed: by relays in a wrap (NIP-59), through the tunnel as the bare seal."""

from __future__ import annotations

from dataclasses import dataclass, field

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment
from nostrvpn.market.messages import MAX_MESSAGE, RUMOR_KIND
from nostrvpn.nostr import nip44
from nostrvpn.nostr.event import (
    Event,
    decode_json,
    encode_json,
    event_json,
    parse_event,
    public_key,
    verify_event,
)
from nostrvpn.nostr.nip59 import (
    EPHEMERAL_WRAP,
    SEAL,
    STORED_WRAP,
    Rumor,
    blurred,
    gift_wrap,
    open_seal,
    open_wrap,
    seal_rumor,
)

__all__ = [
    "KEPT_S",
    "Opened",
    "open_sealed",
    "open_wrapped",
    "seal_message",
    "sealed_text",
    "wrap_message",
]

KEPT_S = 3600
"""Seconds that relays keep money and grants: whoever is away longer begins anew."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A message: who sealed it (public key, proven), for which key of ours, its id (for replays)."""

    sender: str
    receiver: str
    id: str
    created_at: int
    text: str = field(repr=False)


def seal_message(text: str, secret: bytes, to: str, moment: Moment) -> Event:
    """Return a lease message sealed by ``secret`` for ``to``; PeerMisbehaved if that is no key."""
    now = int(moment.wall)
    rumor = Rumor(public_key(secret), now, RUMOR_KIND, (("p", to),), text)
    conversation = nip44.conversation_key(secret, to)
    return seal_rumor(rumor, secret, conversation, created_at=now, entropy=moment.entropy)


def wrap_message(seal: Event, to: str, moment: Moment, *, stored: bool) -> Event:
    """Return the seal as relays carry it; ``stored``: they are to keep it for an hour."""
    return gift_wrap(
        seal,
        to,
        kind=STORED_WRAP if stored else EPHEMERAL_WRAP,
        created_at=blurred(moment.wall, moment.entropy),
        expiration=int(moment.wall) + KEPT_S if stored else None,
        entropy=moment.entropy,
    )


def open_wrapped(event: Event, secret: bytes) -> Opened:
    """Return the message in a verified wrap for the key of ``secret``; PeerMisbehaved."""
    return _opened(open_wrap(event, secret), secret)


def open_sealed(text: str, secret: bytes) -> Opened:
    """Return the message of a seal that came through the tunnel; PeerMisbehaved."""
    seal = parse_event(decode_json(text))
    if seal.kind != SEAL or seal.tags:
        raise PeerMisbehaved("not_a_seal", "what came through the tunnel is no seal")
    verify_event(seal)
    return _opened(seal, secret)


def sealed_text(seal: Event) -> str:
    """Return a seal as it goes through the tunnel."""
    return encode_json(event_json(seal))


def _opened(seal: Event, secret: bytes) -> Opened:
    rumor = open_seal(seal, secret)
    receiver = public_key(secret)
    if rumor.kind != RUMOR_KIND or ("p", receiver) not in rumor.tags:
        # A seal names no receiver: without this a seller could pass a buyer's message on as his own.
        raise PeerMisbehaved("not_for_us", "the message is for somebody else")
    if len(rumor.content) > MAX_MESSAGE:
        raise PeerMisbehaved("oversized", "the message is too long")
    return Opened(seal.pubkey, receiver, rumor.id, rumor.created_at, rumor.content)
