"""Deciding for others: the arbiter's machine in a daemon, if its user said that it is one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from nostrvpn.daemon.market_machine import MarketMachine
from nostrvpn.daemon.market_parts import Parts
from nostrvpn.daemon.market_post import Correspondent
from nostrvpn.daemon.supervise import Supervisor
from nostrvpn.errors import PeerMisbehaved, SystemRefused
from nostrvpn.io.store import Record
from nostrvpn.market.arbiter import CASES, Arbiter
from nostrvpn.market.effects import Heard, MarketEffect, Tell
from nostrvpn.nostr.event import is_public_key

__all__ = ["Bench"]

_SPACE: Final = "arbiter"

_log = logging.getLogger("nostrvpn.market")


class Bench:
    """``is_open``: new claims are heard. ``error``: why nothing can be decided, or ""."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.error = ""
        stored = parts.store.get(_SPACE, "settings")
        self.is_open = isinstance(stored, Mapping)
        only = stored.get("only") if isinstance(stored, Mapping) else None
        keys = [key for key in only if is_public_key(key)] if isinstance(only, list) else []
        secret = parts.host.root.arbiter_key()
        self.arbiter = Arbiter(secret, keys)
        self._machine = MarketMachine(self.arbiter, parts.store, parts.host.moment, self._perform)
        self._who = Correspondent(secret, "arbitrate", self._heard, lambda effect: None)
        self._tasks = Supervisor()

    def start(self) -> None:
        """Go on with the cases that are known."""
        try:
            self.arbiter.restore(self._parts.store.all(CASES))
        except PeerMisbehaved as exc:
            self.error = f"the cases cannot be read: {exc}"
            _log.error("%s; nothing is decided", self.error)
            return
        self._parts.post.add(self._who)
        self._listen()
        self._tasks.start("arbiter", self._machine.run())

    async def stop(self) -> None:
        """End; cases are on disk."""
        await self._tasks.stop()

    def open(self, only: list[str]) -> None:
        """Hear claims from now on, of these sellers' leases if there are any (64 hex)."""
        self._require()
        self._parts.store.put([Record(_SPACE, "settings", {"only": only})])
        self.is_open, self.arbiter.only = True, frozenset(only)
        self._listen()

    def close(self) -> None:
        """Hear no more claims; cases that are there can still be decided while they are listed."""
        self._parts.store.put([Record(_SPACE, "settings", None)])
        self.is_open = False
        self._listen()

    def decide(self, case: str, side: str) -> None:
        """Give the money of a case to a side, and tell both; UserError."""
        self._require()
        moment = self._parts.host.moment()
        self._machine.carry_out(self.arbiter.decide(case, side, moment))
        if self._machine.error is not None:
            raise SystemRefused(f"the decision cannot be written: {self._machine.error}")

    def _require(self) -> None:
        if self.error:
            raise SystemRefused(self.error, "restore market.db, or move it away and begin anew")

    def _listen(self) -> None:
        self._parts.post.listen(self._who, self._parts.relays if self.is_open else ())

    def _heard(self, heard: Heard) -> None:
        if not self._machine.offer(heard):
            self.arbiter.counters["too_busy"] += 1

    def _perform(self, effect: MarketEffect) -> None:
        match effect:
            case Tell():
                self._parts.post.tell(self._who, effect)
            case _:
                raise AssertionError(f"not an arbiter's: {effect}")
