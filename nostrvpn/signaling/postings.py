"""What is left on a board: a gift wrap like every other, to a mailbox that many can read.

A board's address, its secret and its seals' key follow from one secret: that of the network's key of
the day, or what everybody knows. Who wrote is proven by the seal. Nobody is asked who may write to
such a mailbox, so readers spend a bounded effort.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment
from nostrvpn.nostr.event import Event, public_key
from nostrvpn.nostr.nip59 import STORED_WRAP, Rumor, blurred, gift_wrap, open_seal, open_wrap
from nostrvpn.signaling.allowance import Allowance
from nostrvpn.signaling.mailboxes import Mailbox
from nostrvpn.signaling.sealing import make_seal

__all__ = ["Boards", "make_posting"]


def make_posting(
    board: Mailbox, secret: bytes, kind: int, content: str, moment: Moment, *, expires_s: int
) -> dict[int, Event]:
    """Return the wraps (by kind) of a posting by the author with this secret; ValueError: too large."""
    now, entropy = int(moment.wall), moment.entropy
    rumor = Rumor(public_key(secret), now, kind, (), content)
    seal = make_seal(rumor, secret, board.salt, entropy)
    dated = blurred(moment.wall, entropy)
    wrap = gift_wrap(
        seal,
        board.public_key,
        kind=STORED_WRAP,
        created_at=dated,
        expiration=dated + expires_s,
        entropy=entropy,
    )
    return {STORED_WRAP: wrap}


class Boards:
    """The boards that are read, and how much effort goes into them."""

    def __init__(self, allowance: Allowance) -> None:
        """``allowance``: of each board, so that who only knows a former one cannot crowd the others."""
        self._boards: dict[str, Mailbox] = {}
        self._allowance = allowance
        self._allowances: dict[str, Allowance] = {}

    def open(self, boards: Iterable[Mailbox]) -> tuple[str, ...]:
        """Read these and no others; return their addresses (public keys)."""
        self._boards = {board.public_key: board for board in boards}
        self._allowances = {
            key: self._allowances.get(key) or replace(self._allowance) for key in self._boards
        }
        return tuple(self._boards)

    def close(self) -> None:
        """Read nothing any more; what was spent is spent, should the same be read again."""
        self._boards.clear()

    def owns(self, wrap: Event) -> bool:
        """Say whether a wrap was left on a board that is read."""
        return not self._boards.keys().isdisjoint(wrap.tag_values("p"))

    def board_of(self, wrap: Event) -> Mailbox:
        """Return the board on which a wrap was left; only if this ``owns`` it."""
        return next(self._boards[key] for key in wrap.tag_values("p") if key in self._boards)

    def read(self, wrap: Event, now: float) -> Event:
        """Return the seal of a posting, its author verified; PeerMisbehaved if it is none."""
        board = self.board_of(wrap)
        if not self._allowances[board.public_key].spend(now):
            raise PeerMisbehaved("notice_flood", "more notices than anybody reads")
        return open_wrap(wrap, board.secret)

    def unseal(self, wrap: Event, seal: Event) -> Rumor:
        """Return what is in the seal of a posting; PeerMisbehaved if it is none."""
        return open_seal(seal, b"", self.board_of(wrap).salt)
