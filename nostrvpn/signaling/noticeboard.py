"""The noticeboard: what anybody may read, left on relays by whoever volunteers.

A notice is a gift wrap like every other message, to a mailbox whose secret everybody can compute, a
new one each day. So a relay sees nothing new, readers need no other subscription than for their own
post, and who wrote a notice is proven by its seal: a key that its author has for nothing else.

Anybody can write here, any amount: readers spend a bounded effort, and believe nothing but that the
author of a seal said so.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment
from nostrvpn.nostr import nip44
from nostrvpn.nostr.event import Event, decode_json, public_key
from nostrvpn.nostr.nip59 import (
    STORED_WRAP,
    Rumor,
    gift_wrap,
    open_seal,
    open_wrap,
    seal_rumor,
)
from nostrvpn.signaling.mailboxes import Mailbox, noticeboard_mailboxes_around

__all__ = ["NOTICE_KIND", "Notice", "Noticeboard", "post_notice"]

# Never published bare; only has to be told from messages (21910).
NOTICE_KIND = 21911
# An offer with two endpoints and a URL.
MAX_NOTICE = 2048
# Notices looked at: each costs two decryptions and a signature, about 2 ms.
NOTICES_PER_MINUTE = 60.0
BURST = 120.0
SKEW_S = 600


@dataclass(frozen=True, slots=True)
class Notice:
    """What ``author`` (64 hex digits, a key for this purpose) wrote at ``created`` (Unix time)."""

    author: str
    body: dict[str, object] = field(repr=False)
    created: int


def post_notice(
    secret: bytes, body: dict[str, object], moment: Moment, *, expires_s: int
) -> dict[int, Event]:
    """Return the wraps (by kind) of a notice by the author with this secret."""
    now, entropy = int(moment.wall), moment.entropy
    board = noticeboard_mailboxes_around(moment.wall, overlap_s=0)[0]
    rumor = Rumor(public_key(secret), now, NOTICE_KIND, (), json.dumps(body))
    conversation = nip44.conversation_key(secret, board.public_key)
    seal = seal_rumor(rumor, secret, conversation, created_at=now, entropy=entropy)
    wrap = gift_wrap(
        seal,
        board.public_key,
        kind=STORED_WRAP,
        created_at=now,
        expiration=now + expires_s,
        entropy=entropy,
    )
    return {STORED_WRAP: wrap}


class Noticeboard:
    """Reads notices; ``dropped`` counts what was none, by reason."""

    def __init__(self) -> None:
        self._boards: dict[str, Mailbox] = {}
        self._allowance = BURST
        self._spent_at = 0.0
        self.dropped: Counter[str] = Counter()

    def open(self, wall: float) -> tuple[str, ...]:
        """Read the boards of now; return their addresses (public keys)."""
        boards = noticeboard_mailboxes_around(wall)
        self._boards = {board.public_key: board for board in boards}
        return tuple(self._boards)

    def close(self) -> None:
        """Read nothing any more."""
        self._boards.clear()

    def owns(self, wrap: Event) -> bool:
        """Say whether a wrap was left on a board that is read."""
        return not self._boards.keys().isdisjoint(wrap.tag_values("p"))

    def read(self, wrap: Event, moment: Moment) -> Notice | None:
        """Return the notice in a wrap, or None after counting why it is none."""
        try:
            return self._read(wrap, moment)
        except PeerMisbehaved as exc:
            self.dropped[exc.code] += 1
            return None

    def _read(self, wrap: Event, moment: Moment) -> Notice:
        board = next(self._boards[key] for key in wrap.tag_values("p") if key in self._boards)
        self._spend(moment.now)
        seal = open_wrap(wrap, board.secret)
        rumor = open_seal(seal, board.secret)
        if rumor.kind != NOTICE_KIND or len(rumor.content) > MAX_NOTICE:
            raise PeerMisbehaved("bad_notice", "a rumor of a foreign kind, or a long one")
        if rumor.created_at > moment.wall + SKEW_S:
            raise PeerMisbehaved("clock_skew", "a notice of the future")
        body = decode_json(rumor.content)
        if not isinstance(body, dict):
            raise PeerMisbehaved("bad_notice", "a notice that is no object")
        return Notice(rumor.pubkey, body, rumor.created_at)

    def _spend(self, now: float) -> None:
        gained = (now - self._spent_at) * NOTICES_PER_MINUTE / 60
        self._allowance = min(BURST, self._allowance + gained)
        self._spent_at = now
        if self._allowance < 1:
            raise PeerMisbehaved("notice_flood", "more notices than anybody reads")
        self._allowance -= 1
