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
from nostrvpn.nostr.event import Event, decode_json
from nostrvpn.signaling.allowance import Allowance
from nostrvpn.signaling.courier import LIVE_SKEW_S
from nostrvpn.signaling.mailboxes import noticeboard_mailboxes_around
from nostrvpn.signaling.postings import Boards, make_posting
from nostrvpn.signaling.ratchet import DAY_S

__all__ = ["NOTICE_KIND", "Notice", "Noticeboard", "post_notice"]

# Never published bare; only has to be told from messages (21910).
NOTICE_KIND = 21911
# An offer with two endpoints and a URL.
MAX_NOTICE = 2048
# Notices looked at: each costs two decryptions and a signature, about 2 ms.
NOTICES_PER_MINUTE = 60.0
BURST = 120.0


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
    today = int(moment.wall) // DAY_S
    boards = noticeboard_mailboxes_around(moment.wall)
    board = next(board for board in boards if board.day == today)
    return make_posting(board, secret, NOTICE_KIND, json.dumps(body), moment, expires_s=expires_s)


class Noticeboard:
    """Reads notices; ``dropped`` counts what was none, by reason."""

    def __init__(self) -> None:
        self._boards = Boards(Allowance(BURST, NOTICES_PER_MINUTE / 60))
        self.dropped: Counter[str] = Counter()

    def open(self, wall: float) -> tuple[str, ...]:
        """Read the boards of now; return their addresses (public keys)."""
        return self._boards.open(noticeboard_mailboxes_around(wall))

    def close(self) -> None:
        """Read nothing any more."""
        self._boards.close()

    def owns(self, wrap: Event) -> bool:
        """Say whether a wrap was left on a board that is read."""
        return self._boards.owns(wrap)

    def read(self, wrap: Event, moment: Moment) -> Notice | None:
        """Return the notice in a wrap, or None after counting why it is none."""
        try:
            return self._read(wrap, moment)
        except PeerMisbehaved as exc:
            self.dropped[exc.code] += 1
            return None

    def _read(self, wrap: Event, moment: Moment) -> Notice:
        rumor = self._boards.unseal(wrap, self._boards.read(wrap, moment.now))
        if rumor.kind != NOTICE_KIND or len(rumor.content) > MAX_NOTICE:
            raise PeerMisbehaved("bad_notice", "a rumor of a foreign kind, or a long one")
        if rumor.created_at > moment.wall + LIVE_SKEW_S:
            raise PeerMisbehaved("clock_skew", "a notice of the future")
        body = decode_json(rumor.content)
        if not isinstance(body, dict):
            raise PeerMisbehaved("bad_notice", "a notice that is no object")
        return Notice(rumor.pubkey, body, rumor.created_at)
