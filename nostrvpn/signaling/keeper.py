"""The keeper of what must be kept, and deleted: network keys, pairs' secrets, the applicant's key.

Whatever changes is to be stored before anything that depends on it leaves: ``saves`` says what. What
is over is deleted, there as here; that is what makes recorded messages unreadable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment
from nostrvpn.signaling.network_key import Keyring, NetworkKey, make_key
from nostrvpn.signaling.pair_secret import PairEffect, PairSecrets, SayKeys
from nostrvpn.signaling.ratchet import DAY_S
from nostrvpn.signaling.sealing import public_half

__all__ = ["Keeper", "Save"]

# Who was away reads the boards of so many days before; news are stored no longer.
MAX_BEHIND = 30
_RING, _JOINING, _PAIR = "ring", "joining", "pair/"


@dataclass(frozen=True, slots=True)
class Save:
    """Store ``value`` (None deletes) under ``key``."""

    key: str
    value: object | None = field(repr=False)


class Keeper:
    """The keys of the node ``me`` (public key), from what was stored of them."""

    def __init__(self, me: str, stored: Mapping[str, object]) -> None:
        self.keyring = Keyring()
        self.pairs = PairSecrets(me)
        self.ephemeral: bytes | None = None
        self.damaged: list[str] = []  # sentences for the user
        self.saves: list[Save] = []
        self.says: list[SayKeys] = []
        try:
            self.keyring = Keyring.from_json(stored.get(_RING, []))
        except PeerMisbehaved as exc:
            self.damaged.append(f"the stored network keys are invalid: {exc}")
        pairs = {key[len(_PAIR) :]: stored[key] for key in stored if key.startswith(_PAIR)}
        for peer in self.pairs.restore(pairs):
            self.damaged.append(f"the secret kept for {peer[:8]} is invalid")
        joining = stored.get(_JOINING)
        if joining is not None:
            try:
                self.ephemeral = bytes.fromhex(joining) if isinstance(joining, str) else b""
                public_half(self.ephemeral)
            except ValueError:
                self.ephemeral = None
                self.damaged.append("the key of the application to join is invalid")

    def make(self, key_id: str, moment: Moment) -> NetworkKey:
        """Return a new network key, not yet in use."""
        return make_key(key_id, moment.wall, moment.entropy)

    def adopt(self, key: NetworkKey, wall: float) -> None:
        """Write under this network key from now on."""
        self._set(self.keyring.adopt(key, wall))

    def confirm(self, key_id: str) -> None:
        """Somebody who has the right key wrote under the one held by this name: it is the right one."""
        self._set(self.keyring.confirm(key_id))

    def leave(self) -> None:
        """This node is in no network any more."""
        self._set(Keyring())
        for peer in self.pairs.peers:
            self.apply(self.pairs.forget(peer))

    def advance(self, wall: float, *, caught_up: bool) -> None:
        """Move every secret to today; who has not read what it missed keeps the days until then."""
        behind = 0 if caught_up else min(MAX_BEHIND, self.keyring.lag(wall))
        self._set(self.keyring.advance(wall, behind=behind))
        self.apply(self.pairs.advance(wall - behind * DAY_S))

    def keep_only(self, members: frozenset[str]) -> None:
        """Forget the secrets of pairs with others than these."""
        for peer in self.pairs.peers - members:
            self.apply(self.pairs.forget(peer))

    def begin_application(self, moment: Moment) -> bytes:
        """Return the public key that a welcome is to be sealed to: one for the whole application."""
        if self.ephemeral is None:
            self.ephemeral = moment.entropy.take(32)
            self.saves.append(Save(_JOINING, self.ephemeral.hex()))
        return public_half(self.ephemeral)

    def end_application(self) -> None:
        """The application is over, well or badly: what was sealed to its key opens no more."""
        if self.ephemeral is not None:
            self.ephemeral = None
            self.saves.append(Save(_JOINING, None))

    def apply(self, effects: Iterable[PairEffect]) -> None:
        """Take note of what the pairs' machine wants stored and said."""
        for effect in effects:
            if isinstance(effect, SayKeys):
                self.says.append(effect)
            else:
                self.saves.append(Save(_PAIR + effect.peer, effect.value))

    def _set(self, ring: Keyring) -> None:
        if ring != self.keyring:
            self.keyring = ring
            self.saves.append(Save(_RING, ring.to_json() or None))
