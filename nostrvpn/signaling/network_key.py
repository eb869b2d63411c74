"""The network key: what members have and others have not, one step further each day.

From it come every member's inbox and the network's board, and it goes into the key of each seal. It is
made at random when a network is created and whenever somebody was removed, handed over with the
welcome, and moves one way, once a day (``ratchet``): who takes a node's disk today cannot compute
yesterday's mailboxes, and cannot open what was recorded from them.

After a change of the key the old ones are kept for a while, so that members who were away can still be
heard, and told.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Entropy
from nostrvpn.signaling.mailboxes import Mailbox, network_board, node_inbox
from nostrvpn.signaling.ratchet import DAY_S, MAX_STEPS, days_around, standing_day, step_to

__all__ = ["MAX_FORMER", "Keyring", "NetworkKey", "make_key", "received_key"]

# Keys before the current one: each costs a reader one board and one inbox a day.
MAX_FORMER = 4
FORMER_S = 60 * DAY_S
# A key that was handed over may have waited on a relay for a week, and clocks differ.
MAX_AGE_DAYS, MAX_AHEAD_DAYS = 9, 2
_ID = re.compile(r"[0-9a-f]{16}")
_MEMBER = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class NetworkKey:
    """A network key as it stands at ``day`` (since 1970): ``secret`` is 32 bytes, ``id`` 16 hex digits.

    ``left_at``: since when (Unix seconds) it is no longer the current one; None while it is.
    ``told_by``: the plain member (public key) on whose word alone it is held. Nothing in the key shows
    that it is the right one; that an admin, or who made it, writes under it does. Empty: it is known
    to be.
    """

    id: str
    day: int
    secret: bytes = field(repr=False)
    left_at: int | None = None
    told_by: str = ""

    def at(self, day: int) -> NetworkKey:
        """Return the key of a day; the same if that is before the key's own: it only moves forward."""
        if day <= self.day:
            return self
        return replace(self, day=day, secret=step_to(self.secret, self.day, day))

    def told(self, member: str) -> NetworkKey:
        """Return the key as held on the word of ``member`` (public key), or of nobody ("")."""
        return replace(self, told_by=member)

    def inbox(self, node: str) -> Mailbox:
        """Return the day's inbox of ``node`` (public key)."""
        return node_inbox(self.secret, self.id, self.day, node)

    def board(self) -> Mailbox:
        """Return the day's board."""
        return network_board(self.secret, self.id, self.day)

    def to_json(self) -> dict[str, object]:
        """Return the key as it is stored and, without its past, as it is handed over."""
        left = {} if self.left_at is None else {"left": self.left_at}
        told = {"by": self.told_by} if self.told_by else {}
        return {"id": self.id, "day": self.day, "secret": self.secret.hex()} | left | told

    @classmethod
    def from_json(cls, value: object) -> NetworkKey:
        """Read what ``to_json`` wrote; PeerMisbehaved("bad_key") if it is none."""
        if not isinstance(value, dict):
            raise PeerMisbehaved("bad_key", "no network key")
        name, day, text, left = (value.get(part) for part in ("id", "day", "secret", "left"))
        if type(name) is not str or not _ID.fullmatch(name) or type(text) is not str:
            raise PeerMisbehaved("bad_key", "a network key without its name or secret")
        if type(day) is not int or not 0 <= day < 1 << 20 or len(text) != 64:
            raise PeerMisbehaved("bad_key", "a network key with a wrong day or length")
        if left is not None and (type(left) is not int or not 0 <= left < 1 << 53):
            raise PeerMisbehaved("bad_key", "a network key with a wrong date")
        told_by = value.get("by", "")
        if type(told_by) is not str or (told_by and not _MEMBER.fullmatch(told_by)):
            raise PeerMisbehaved("bad_key", "a network key told by nobody")
        try:
            return cls(name, day, bytes.fromhex(text), left, told_by)
        except ValueError as exc:
            raise PeerMisbehaved("bad_key", "a network key that is not in hex") from exc


def make_key(key_id: str, wall: float, entropy: Entropy) -> NetworkKey:
    """Return a new network key (id: 16 hex digits), as of the day that ends last around ``wall``."""
    # The earliest day of those around: a member whose clock is behind must not be ahead of the key.
    return NetworkKey(key_id, days_around(wall)[0], entropy.take(32))


def received_key(value: object, wall: float) -> NetworkKey:
    """Return the key that somebody handed over; PeerMisbehaved("bad_key") if it is none of these days.

    It only moves forward, so one of another day would be of no use, and could not be mended.
    """
    key = NetworkKey.from_json(value)
    if not -MAX_AGE_DAYS <= key.day - standing_day(wall) <= MAX_AHEAD_DAYS:
        raise PeerMisbehaved("bad_key", "a network key of another day")
    return replace(key, left_at=None, told_by="")


@dataclass(frozen=True, slots=True)
class Keyring:
    """The network keys a node holds, a value: the current one first, then those before it."""

    keys: tuple[NetworkKey, ...] = ()

    @property
    def current(self) -> NetworkKey | None:
        """The newest key; None outside a network."""
        return self.keys[0] if self.keys and self.keys[0].left_at is None else None

    @property
    def writing(self) -> NetworkKey | None:
        """The key that everything new is written under: the newest that is known to be right."""
        return next((key for key in self.keys if not key.told_by), self.current)

    def get(self, key_id: str) -> NetworkKey | None:
        """Return the key with this id, if it is held."""
        return next((key for key in self.keys if key.id == key_id), None)

    def adopt(self, key: NetworkKey, wall: float) -> Keyring:
        """Return the ring with ``key`` as the current one; one that is known to be right stays as it is.

        One that was held on a plain member's word gives way to what somebody else says; it is known to
        be right when it comes from somebody whose word is enough.
        """
        held = self.get(key.id)
        if held is not None and not held.told_by:
            key = held
        elif held is not None and self.is_same(held, key):
            key = held.told(held.told_by if key.told_by else "")
        former = tuple(
            other if other.left_at is not None else replace(other, left_at=int(wall))
            for other in self.keys
            if other.id != key.id
        )
        return Keyring((replace(key, left_at=None), *former[:MAX_FORMER]))

    @staticmethod
    def is_same(one: NetworkKey, other: NetworkKey) -> bool:
        """Whether two keys come to the same on the later one's day."""
        day = max(one.day, other.day)
        near = day - min(one.day, other.day) <= MAX_STEPS
        return near and one.at(day).secret == other.at(day).secret

    def confirm(self, key_id: str) -> Keyring:
        """Return the ring after somebody who has the right key wrote under this one."""
        return Keyring(tuple(key.told("") if key.id == key_id else key for key in self.keys))

    def advance(self, wall: float, *, behind: int = 0) -> Keyring:
        """Return the ring at the day of ``wall``, without what is no longer needed.

        ``behind`` days are kept: for who was away and has not read the boards of those days yet. A day
        more than ``MAX_STEPS`` ahead is not believed, and nothing moves.
        """
        day = standing_day(wall) - behind
        kept = (
            key.at(day) if day - key.day <= MAX_STEPS else key
            for key in self.keys
            if key.left_at is None or wall - key.left_at < FORMER_S
        )
        return Keyring(tuple(kept))

    def today(self, key: NetworkKey, wall: float) -> NetworkKey:
        """Return ``key`` as of the day of ``wall``: for writing."""
        return key.at(int(wall) // DAY_S) if self.is_near(key, wall) else key

    def reading(self, wall: float) -> tuple[NetworkKey, ...]:
        """Return every key at every day to read at ``wall``: from where it stands to tomorrow's edge."""
        found = []
        for key in self.keys:
            last = days_around(wall)[-1] if self.is_near(key, wall) else key.day
            for day in range(key.day, max(key.day, last) + 1):
                key = key.at(day)
                found.append(key)
        return tuple(found)

    @staticmethod
    def is_near(key: NetworkKey, wall: float) -> bool:
        """Whether the clock shows a day that this key may be moved to."""
        return int(wall) // DAY_S - key.day < MAX_STEPS

    def lag(self, wall: float) -> int:
        """Return by how many days the current key stands behind ``wall``."""
        return 0 if self.current is None else max(0, standing_day(wall) - self.current.day)

    def welcome_fields(self, wall: float) -> dict[str, object]:
        """Return what a welcome hands over: the key in use as of today; empty if there is none."""
        key = self.writing
        if key is None:
            return {}
        # Not of an earlier day: the new member shall not read what was said before it came.
        today = key.at(max(key.day, standing_day(wall))) if self.is_near(key, wall) else key
        return {"key": replace(today, left_at=None, told_by="").to_json()}

    def to_json(self) -> list[object]:
        """Return the ring as it is stored."""
        return [key.to_json() for key in self.keys]

    @classmethod
    def from_json(cls, value: object) -> Keyring:
        """Read what ``to_json`` wrote; PeerMisbehaved("bad_key") if it is none."""
        if not isinstance(value, list) or len(value) > 1 + MAX_FORMER:
            raise PeerMisbehaved("bad_key", "no keyring, or one with too many keys")
        keys = tuple(NetworkKey.from_json(item) for item in value)
        current = sum(1 for key in keys if key.left_at is None)
        if len({key.id for key in keys}) != len(keys) or current > 1:
            raise PeerMisbehaved("bad_key", "a keyring that holds a key twice")
        if current and keys[0].left_at is not None:
            raise PeerMisbehaved("bad_key", "a keyring out of order")
        return cls(keys)
