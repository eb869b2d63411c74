"""The courier seals what a node sends, and opens what relays deliver.

Outgoing: rumor -> seal (signed by the node's own key, encrypted to the recipient's) -> gift wrap
(signed by a throwaway key, encrypted and addressed to the mailbox), NIP-59 over NIP-44; which key a
seal has is said in ``sealing``. Wraps are dated now: relays refuse what is dated far off. Incoming: the
reverse, then the rules below.

- Place: first contact brings joins, refusals and welcomes, and an inbox brings everything else.

- Clock: a live message (kind 21059) must be at most ``LIVE_SKEW_S`` from our clock; a stored one
  (1059) at most ``STORED_AGE_S`` old.
- Once: a rumor is accepted once, whatever wraps it came in and over how many relays.
- Newest: where a type replaces, a sequence number not above the last accepted one is old news.
- Bounded: each sender may spend ``SENDER_BURST`` messages at once, refilled at ``SENDER_RATE``.

Every drop has a counter, and the counters are in the status.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment
from nostrvpn.nostr.event import Event
from nostrvpn.nostr.nip44 import conversation_key
from nostrvpn.nostr.nip59 import (
    EPHEMERAL_WRAP,
    STORED_WRAP,
    Rumor,
    blurred,
    gift_wrap,
    open_seal,
    open_wrap,
)
from nostrvpn.signaling.allowance import Allowance
from nostrvpn.signaling.mailboxes import Mailbox
from nostrvpn.signaling.messages import (
    RUMOR_KIND,
    Message,
    MessageType,
    parse_message,
    render_message,
)
from nostrvpn.signaling.pair_secret import PairEffect, PairSecrets
from nostrvpn.signaling.rekey import entry_key
from nostrvpn.signaling.sealing import (
    key_of_day,
    make_seal,
    make_welcome_seal,
    open_welcome_seal,
)

__all__ = ["LIVE_SKEW_S", "Courier", "Delivery"]

LIVE_SKEW_S = 600  # seconds that clocks may differ by
STORED_AGE_S = 8 * 86_400
FALLBACK_EXPIRES_S = 300  # a live message to a relay that refuses ephemeral kinds
SEEN_RUMORS = 8_192  # more than a node accepts within LIVE_SKEW_S at the allowed rates
SENDERS = 1_024
SENDER_BURST = 60.0
SENDER_RATE = 2.0  # messages a second: a busy join sends three
_REPLACING = frozenset({MessageType.DESCRIBE})
_FIRST_CONTACT = frozenset({MessageType.JOIN, MessageType.WELCOME, MessageType.REFUSED})
_ON_BOARDS = frozenset({MessageType.PRESENCE, MessageType.NEWS})

_WELCOME = "welcome"

_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class Delivery:
    """An accepted message: who wrote it, and when by the writer's clock (Unix seconds).

    ``mailbox`` is where it came to.
    """

    sender: str
    message: Message
    created: int
    mailbox: Mailbox


class Courier:
    """Sealing and opening for one node. Pure: entropy and clocks come with the moment."""

    def __init__(
        self,
        secret: bytes,
        public_key: str,
        reserved_seq: int = 0,
        pairs: PairSecrets | None = None,
    ) -> None:
        self._secret = secret
        self._pairs = pairs if pairs is not None else PairSecrets(public_key)
        # The X25519 secret that welcomes are sealed to, while this node applies to join.
        self.ephemeral: bytes | None = None
        self.learned: list[PairEffect] = []  # what opened messages showed about pairs' secrets
        self._public_key = public_key
        self._seq = reserved_seq
        self._keys: dict[str, bytes] = {}
        self._mailboxes: Mapping[str, Mailbox] = {}
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._newest: OrderedDict[tuple[str, str, MessageType], int] = OrderedDict()
        self._allowances: OrderedDict[str, Allowance] = OrderedDict()
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
        mailbox: Mailbox,
        message: Message,
        moment: Moment,
        *,
        expires_s: int | None,
        ephemeral: bytes | None = None,
    ) -> dict[int, Event]:
        """Return the message's wraps by kind; ValueError if it is too large.

        ``expires_s`` None makes it live: an ephemeral wrap, and a briefly stored one for relays that
        refuse ephemeral kinds. A number makes it stored for so many seconds. ``ephemeral`` is the
        recipient's X25519 public key, for a welcome.
        """
        now, entropy = int(moment.wall), moment.entropy
        rumor = Rumor(self._public_key, now, RUMOR_KIND, (), render_message(message))
        shared = self.shared_key(mailbox.public_key if mailbox.is_shared else recipient)
        if ephemeral is not None:
            seal = make_welcome_seal(rumor, self._secret, shared, ephemeral, entropy)
        else:
            if mailbox.salt:
                secret = self._pairs.writing(recipient, mailbox.day)
                shared = key_of_day(shared, mailbox.salt, secret)
            seal = make_seal(rumor, self._secret, shared, entropy)
        dated = blurred(moment.wall, entropy)
        expiration = dated + (FALLBACK_EXPIRES_S if expires_s is None else expires_s)
        wraps = {
            STORED_WRAP: gift_wrap(
                seal,
                mailbox.public_key,
                kind=STORED_WRAP,
                created_at=dated,
                expiration=expiration,
                entropy=entropy,
            )
        }
        if expires_s is None:
            wraps[EPHEMERAL_WRAP] = gift_wrap(
                seal,
                mailbox.public_key,
                kind=EPHEMERAL_WRAP,
                created_at=dated,
                expiration=None,
                entropy=entropy,
            )
        return wraps

    def entry_keys(self, peers: Iterable[str], board: Mailbox) -> dict[str, bytes]:
        """Return the keys by which to hand each peer something of its own on a board."""
        found = {}
        for peer in peers:
            try:
                shared = self.shared_key(peer)
            except PeerMisbehaved:
                continue  # not a point of the curve: nobody reads there
            found[peer] = entry_key(shared, board.salt, self._pairs.writing(peer, board.day))
        return found

    def entry_keys_of(self, author: str, board: Mailbox) -> list[bytes]:
        """Return the keys that ``author`` may have used to hand this node something on a board."""
        shared = self.shared_key(author)
        candidates = self._pairs.reading(author, board.day)
        return [entry_key(shared, board.salt, secret) for _, secret in candidates]

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
        self.spend(seal.pubkey, moment.now)
        rumor, name = self._unseal(seal, mailbox)
        if rumor.kind != RUMOR_KIND:
            raise PeerMisbehaved("bad_message", "a rumor of a foreign kind")
        age = moment.wall - rumor.created_at
        if age < -LIVE_SKEW_S or age > (
            LIVE_SKEW_S if wrap.kind == EPHEMERAL_WRAP else STORED_AGE_S
        ):
            if wrap.kind == EPHEMERAL_WRAP or age < 0:
                self.clock_offsets[seal.pubkey] = age
                while len(self.clock_offsets) > SENDERS:
                    del self.clock_offsets[next(iter(self.clock_offsets))]
            raise PeerMisbehaved("clock_skew", "a message dated too far from our clock")
        message = parse_message(rumor.content)
        is_welcome = name == _WELCOME
        if (
            (message.type in _FIRST_CONTACT) == bool(mailbox.salt)
            or (message.type is MessageType.WELCOME) != is_welcome
            or message.type in _ON_BOARDS
        ):
            raise PeerMisbehaved("wrong_place", "a message that does not belong in this mailbox")
        _remember(self._seen, seal.id, None, SEEN_RUMORS)
        if message.type in _REPLACING:
            stream = (seal.pubkey, message.network_id, message.type)
            if message.seq <= self._newest.get(stream, 0):
                raise PeerMisbehaved("old_message", "replayed, or overtaken by a newer one")
            _remember(self._newest, stream, message.seq, SENDERS)
        self.clock_offsets.pop(seal.pubkey, None)
        if mailbox.salt:
            self.learned += self._pairs.heard(seal.pubkey, name, rumor.created_at)
        return Delivery(seal.pubkey, message, rumor.created_at, mailbox)

    def _unseal(self, seal: Event, mailbox: Mailbox) -> tuple[Rumor, str]:
        """Return the rumor, and the name of the secret that it was sealed with."""
        if mailbox.is_shared:
            return open_seal(seal, mailbox.secret), ""
        shared = self.shared_key(seal.pubkey)
        if not mailbox.salt:
            if "." not in seal.content[:64]:
                return open_seal(seal, self._secret, shared), ""
            if self.ephemeral is None:
                raise PeerMisbehaved("welcome_unasked", "a welcome, and this node applies nowhere")
            return open_welcome_seal(seal, self.ephemeral, self._secret, shared), _WELCOME
        candidates = self._pairs.reading(seal.pubkey, mailbox.day)
        for name, secret in candidates[:-1]:
            try:
                key = key_of_day(shared, mailbox.salt, secret)
                return open_seal(seal, self._secret, key), name
            except PeerMisbehaved as exc:
                if exc.code != "bad_payload":
                    raise
        name, secret = candidates[-1]
        return open_seal(seal, self._secret, key_of_day(shared, mailbox.salt, secret)), name

    def spend(self, sender: str, now: float) -> None:
        """Charge one message to the sender's allowance (a token bucket)."""
        allowance = self._allowances.get(sender) or Allowance(SENDER_BURST, SENDER_RATE)
        _remember(self._allowances, sender, allowance, SENDERS)
        if not allowance.spend(now):
            raise PeerMisbehaved("sender_flood", "too many messages from one sender")


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
