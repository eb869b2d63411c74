"""The network's board: what a member tells all others, in one message for all of them.

One mailbox a network key and day, whose secret every member has, so presence costs a network of N
members N messages and not N². Only members are believed; who was removed still knows the boards of the
key before, and is dropped and counted like any stranger that found one.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment
from nostrvpn.nostr.event import Event
from nostrvpn.signaling.allowance import Allowance, Allowances
from nostrvpn.signaling.courier import LIVE_SKEW_S
from nostrvpn.signaling.mailboxes import Mailbox
from nostrvpn.signaling.messages import (
    RUMOR_KIND,
    Message,
    MessageType,
    parse_message,
    render_message,
)
from nostrvpn.signaling.postings import Boards, make_posting

__all__ = ["NEWS_EXPIRES_S", "PRESENCE_EXPIRES_S", "Board", "Posting"]

PRESENCE_EXPIRES_S = 2 * 3600
NEWS_EXPIRES_S = 30 * 86_400
_STANDS_S = {MessageType.PRESENCE: PRESENCE_EXPIRES_S, MessageType.NEWS: NEWS_EXPIRES_S}
# All together: what 1,000 members leave in two hours is read at once after a start, at a
# millisecond and a half each; then ten a second.
BURST, RATE = 2_048.0, 10.0
# One author: presence once in 40 minutes, news in parts (a new key for 1,000 members is four). An admin
# who lets in many at once tells each by itself: who heard only the first of them would lack the rest.
AUTHOR_BURST, AUTHOR_RATE = 256.0, 0.5
# More than may be in a network are not kept in mind.
MAX_AUTHORS = 2_048
SEEN = 8_192

_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class Posting:
    """What a member (``author``, public key) said to all, and when by its clock (Unix seconds).

    ``key_id`` is the network key that it was written under.
    """

    author: str
    message: Message
    created: int
    key_id: str


class Board:
    """Writes and reads the network's boards; ``dropped`` counts what was refused, by reason."""

    def __init__(self, secret: bytes, public_key: str) -> None:
        self._secret = secret
        self._public_key = public_key
        self._boards = Boards(Allowance(BURST, RATE))
        self._members: frozenset[str] = frozenset()
        self._authors = Allowances(AUTHOR_BURST, AUTHOR_RATE, MAX_AUTHORS)
        self._newest: OrderedDict[str, int] = OrderedDict()
        self._seen: OrderedDict[str, None] = OrderedDict()
        self.dropped: Counter[str] = Counter()

    def open(self, boards: Iterable[Mailbox], members: frozenset[str]) -> None:
        """Read these boards, and believe ``members``."""
        self._members = members
        self._boards.open(boards)

    def owns(self, wrap: Event) -> bool:
        """Say whether a wrap was left on a board that is read."""
        return self._boards.owns(wrap)

    def post(self, board: Mailbox, message: Message, moment: Moment) -> dict[int, Event]:
        """Return the wraps (by kind) of a message to all; ValueError if it is too large."""
        text = render_message(message)
        stands = _STANDS_S[message.type]
        return make_posting(board, self._secret, RUMOR_KIND, text, moment, expires_s=stands)

    def read(self, wrap: Event, moment: Moment) -> Posting | None:
        """Return the message in a wrap, or None after counting why it was dropped."""
        try:
            return self._read(wrap, moment)
        except PeerMisbehaved as exc:
            self.dropped[exc.code] += 1
            return None

    def _read(self, wrap: Event, moment: Moment) -> Posting | None:
        seal = self._boards.read(wrap, moment.now)
        author = seal.pubkey
        if author == self._public_key or seal.id in self._seen:
            return None  # our own, or the same in another wrap: expected
        if author not in self._members:
            raise PeerMisbehaved("not_a_member", "a stranger, or one who was removed, on the board")
        if not self._authors.of(author).spend(moment.now):
            raise PeerMisbehaved("sender_flood", "too many messages from one sender")
        rumor = self._boards.unseal(wrap, seal)
        if rumor.kind != RUMOR_KIND:
            raise PeerMisbehaved("bad_message", "a rumor of a foreign kind")
        message = parse_message(rumor.content)
        stands = _STANDS_S.get(message.type)
        if stands is None:
            raise PeerMisbehaved("bad_message", "a message that is not for a board")
        age = moment.wall - rumor.created_at
        if not -LIVE_SKEW_S <= age <= stands + LIVE_SKEW_S:
            raise PeerMisbehaved("clock_skew", "a message dated too far from our clock")
        self._seen[seal.id] = None
        _bound(self._seen, seal.id, SEEN)
        if message.type is MessageType.PRESENCE:
            if message.seq <= self._newest.get(author, 0):
                raise PeerMisbehaved("old_message", "replayed, or overtaken by a newer one")
            self._newest[author] = message.seq
            _bound(self._newest, author, MAX_AUTHORS)
        key_id = self._boards.board_of(wrap).key_id
        return Posting(author, message, rumor.created_at, key_id)


def _bound(store: OrderedDict[str, _V], key: str, most: int) -> None:
    store.move_to_end(key)
    while len(store) > most:
        store.popitem(last=False)
