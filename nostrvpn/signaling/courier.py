"""The courier seals what a node sends, and opens what relays deliver.

Outgoing: rumor -> seal (signed by the node's own key, encrypted to the recipient's) -> gift wrap
(signed by a throwaway key, encrypted and addressed to the mailbox), NIP-59 over NIP-44. Wraps are
dated now: relays refuse what is dated far off. Incoming: the reverse, then the rules below.

- Clock: a live message (kind 21059) must be at most ``LIVE_SKEW_S`` from our clock; a stored one
  (1059) at most ``STORED_AGE_S`` old.
- Once: a rumor is accepted once, whatever wraps it came in and over how many relays.
- Newest: where a type replaces, a sequence number not above the last accepted one is old news.
- Bounded: each sender may spend ``SENDER_BURST`` messages at once, refilled at ``SENDER_RATE``.

Every drop has a counter, and the counters are in the status.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment
from nostrvpn.nostr.event import Event
from nostrvpn.nostr.nip44 import conversation_key
from nostrvpn.nostr.nip59 import Rumor, gift_wrap, open_seal, open_wrap, seal_rumor
from nostrvpn.signaling.mailboxes import Mailbox
from nostrvpn.signaling.messages import (
    RUMOR_KIND,
    Message,
    MessageType,
    parse_message,
    render_message,
)

__all__ = ["LIVE_KIND", "STORED_KIND", "Courier", "Delivery"]

LIVE_KIND = 21059  # ephemeral gift wrap: relays pass it on and keep nothing (NIP-01 kind ranges)
STORED_KIND = 1059  # gift wrap (NIP-59): kept until its NIP-40 expiration
LIVE_SKEW_S = 600
STORED_AGE_S = 8 * 86_400
FALLBACK_EXPIRES_S = 300  # a live message to a relay that refuses ephemeral kinds
SEEN_RUMORS = 8_192  # more than a node accepts within LIVE_SKEW_S at the allowed rates
SENDERS = 1_024
SENDER_BURST = 60.0
SENDER_RATE = 2.0  # messages a second: a busy join sends three
_REPLACING = frozenset({MessageType.DESCRIBE})

_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class Delivery:
    """An accepted message: who wrote it, and when by the writer's clock (Unix seconds)."""

    sender: str
    message: Message
    created: int


class Courier:
    """Sealing and opening for one node. Pure: entropy and clocks come with the moment."""

    def __init__(self, secret: bytes, public_key: str, reserved_seq: int = 0) -> None:
        self._secret = secret
        self._public_key = public_key
        self._seq = reserved_seq
        self._keys: dict[str, bytes] = {}
        self._mailboxes: Mapping[str, Mailbox] = {}
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._newest: OrderedDict[tuple[str, str, MessageType], int] = OrderedDict()
        self._allowance: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self.dropped: Counter[str] = Counter()
        self.clock_offsets: dict[str, float] = {}  # sender -> seconds its last late message was off

    def shared_key(self, peer: str) -> bytes:
        """Return the pair's NIP-44 conversation key, computed once (PeerMisbehaved: not a point)."""
        key = self._keys.get(peer)
        if key is None:
            key = self._keys[peer] = conversation_key(self._secret, peer)
            while len(self._keys) > SENDERS:
                del self._keys[next(iter(self._keys))]
        return key

    def listen(self, mailboxes: Mapping[str, Mailbox]) -> None:
        """Set the complete set of own mailboxes, by public key."""
        self._mailboxes = mailboxes

    def next_seq(self, moment: Moment) -> int:
        """Return this node's next sequence number, above all before it."""
        self._seq = max(self._seq + 1, int(moment.wall * 1000))
        return self._seq

    def seal(
        self,
        recipient: str,
        mailbox: str,
        message: Message,
        moment: Moment,
        *,
        expires_s: int | None,
    ) -> dict[int, Event]:
        """Return the message's wraps by kind.

        ``expires_s`` None makes it live: an ephemeral wrap, and a briefly stored one for relays that
        refuse ephemeral kinds. A number makes it stored for so many seconds.
        """
        now, entropy = int(moment.wall), moment.entropy
        rumor = Rumor(self._public_key, now, RUMOR_KIND, (), render_message(message))
        seal = seal_rumor(
            rumor, self._secret, self.shared_key(recipient), created_at=now, entropy=entropy
        )
        expiration = now + (FALLBACK_EXPIRES_S if expires_s is None else expires_s)
        wraps = {
            STORED_KIND: gift_wrap(
                seal,
                mailbox,
                kind=STORED_KIND,
                created_at=now,
                expiration=expiration,
                entropy=entropy,
            )
        }
        if expires_s is None:
            wraps[LIVE_KIND] = gift_wrap(
                seal, mailbox, kind=LIVE_KIND, created_at=now, expiration=None, entropy=entropy
            )
        return wraps

    def open(self, wrap: Event, moment: Moment) -> Delivery | None:
        """Return the message in a wrap, or None after counting why it was dropped."""
        try:
            return self._open(wrap, moment)
        except PeerMisbehaved as exc:
            self.dropped[exc.code] += 1
            return None

    def _open(self, wrap: Event, moment: Moment) -> Delivery | None:
        address = next((tag[1] for tag in wrap.tags if len(tag) > 1 and tag[0] == "p"), "")
        mailbox = self._mailboxes.get(address)
        if mailbox is None:
            raise PeerMisbehaved("not_our_mailbox")
        if _has_expired(wrap, moment.wall):
            raise PeerMisbehaved("expired", "a wrap kept or replayed beyond its expiration")
        seal = open_wrap(wrap, mailbox.secret)
        if seal.pubkey == self._public_key:
            raise PeerMisbehaved("own_message")
        if seal.id in self._seen:
            return None  # the same message in another wrap: expected, not a fault
        self._spend(seal.pubkey, moment.now)
        rumor = open_seal(seal, self._secret, self.shared_key(seal.pubkey))
        if rumor.kind != RUMOR_KIND:
            raise PeerMisbehaved("bad_message", "a rumor of a foreign kind")
        age = moment.wall - rumor.created_at
        if age < -LIVE_SKEW_S or age > (LIVE_SKEW_S if wrap.kind == LIVE_KIND else STORED_AGE_S):
            if wrap.kind == LIVE_KIND or age < 0:
                self.clock_offsets[seal.pubkey] = age
                while len(self.clock_offsets) > SENDERS:
                    del self.clock_offsets[next(iter(self.clock_offsets))]
            raise PeerMisbehaved("clock_skew", "a message dated too far from our clock")
        message = parse_message(rumor.content)
        _remember(self._seen, seal.id, None, SEEN_RUMORS)
        if message.type in _REPLACING:
            stream = (seal.pubkey, message.network_id, message.type)
            if message.seq <= self._newest.get(stream, 0):
                raise PeerMisbehaved("old_message", "replayed, or overtaken by a newer one")
            _remember(self._newest, stream, message.seq, SENDERS)
        self.clock_offsets.pop(seal.pubkey, None)
        return Delivery(seal.pubkey, message, rumor.created_at)

    def _spend(self, sender: str, now: float) -> None:
        """Charge one message to the sender's allowance (a token bucket)."""
        left, at = self._allowance.get(sender, (SENDER_BURST, now))
        left = min(SENDER_BURST, left + (now - at) * SENDER_RATE)
        if left < 1:
            raise PeerMisbehaved("sender_flood", "too many messages from one sender")
        _remember(self._allowance, sender, (left - 1, now), SENDERS)


def _has_expired(wrap: Event, wall: float) -> bool:
    """Say whether a wrap's NIP-40 expiration is past, by more than clocks may differ."""
    return any(
        not text.isdecimal() or not text.isascii() or int(text[:16]) + LIVE_SKEW_S < wall
        for text in wrap.tag_values("expiration")
    )


def _remember(store: OrderedDict[_K, _V], key: _K, value: _V, bound: int) -> None:
    """Put the newest entry last and let the oldest ones go beyond ``bound``."""
    store[key] = value
    store.move_to_end(key)
    while len(store) > bound:
        store.popitem(last=False)
