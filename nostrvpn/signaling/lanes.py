"""The relay pool, and behind a proxy: each mailbox and each publication on connections of its own.

On one connection a relay sees which mailboxes belong together. Without a proxy the address says so
anyway, so there is one pool, and one connection for each relay. With one, every mailbox that is read is
a *lane*: a pool of its own, whose connections the proxy is told to keep apart. Every publication is a
lane too, gone when it is answered. The first pool then only finds out which relays are fit.

To the outside a connection of a lane is named by the relay's URL and the lane's name, ``URL#lane``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from nostrvpn.machine import Moment, Tick, earliest
from nostrvpn.nostr.nip59 import STORED_WRAP
from nostrvpn.signaling.relays import (
    CloseRelay,
    Listen,
    OpenRelay,
    Publish,
    Published,
    Received,
    RelayClosed,
    RelayEffect,
    RelayEvent,
    RelayOpened,
    RelayPool,
    RelayStateChanged,
    RelayStatus,
    RelayText,
    RetryNow,
    SendText,
    UseRelays,
)

__all__ = ["Lanes"]

# A publication may take a proxy's connection (Tor: some seconds), a round trip, and that twice.
PUBLISHING_S = 45.0
# Publications at once; each holds a connection for each relay in use.
MAX_PUBLICATIONS = 32
# When the day changes every mailbox does. Each connection comes and goes at a time of its own, within
# so many seconds: tomorrow's are read an hour before midnight, yesterday's an hour after it.
SPREAD_S = 1_500.0


@dataclass(slots=True)
class _Lane:
    pool: RelayPool
    until: float | None = None  # of a publication: when it is given up


class Lanes:
    """Relays used as one; the same events and effects as a ``RelayPool``."""

    def __init__(self, urls: Sequence[str], *, active: int, is_isolated: bool) -> None:
        """``is_isolated``: a lane for each mailbox and publication."""
        self._main = RelayPool(urls, active=active)
        self._urls = tuple(urls)
        self._active = active
        self._is_isolated = is_isolated
        self._readers: dict[str, tuple[str, _Lane]] = {}  # mailbox -> its lane
        self._writers: dict[str, _Lane] = {}
        self._wanted: dict[str, bytes] = {}  # mailbox -> its secret
        self._turns: dict[str, float] = {}  # mailbox -> when its lane comes or goes
        self._used: tuple[str, ...] = ()

    @property
    def deadline(self) -> float | None:
        """When ``step(Tick())`` is due, in Moment.now's time."""
        pools = (lane.pool.deadline for _, lane in self._lanes())
        until = (lane.until for lane in self._writers.values())
        return earliest(self._main.deadline, *pools, *until, *self._turns.values())

    @property
    def connected(self) -> int:
        """How many relays are connected and not known to be unfit."""
        return self._main.connected

    def snapshot(self) -> tuple[RelayStatus, ...]:
        """Return every relay of the list, in order, as the user sees it."""
        return self._main.snapshot()

    def step(self, event: RelayEvent, moment: Moment) -> list[RelayEffect]:
        """Take one event; the effects are to be carried out in order."""
        if not self._is_isolated:
            return self._main.step(event, moment)
        out: list[RelayEffect] = []
        match event:
            case Listen(mailboxes, is_urgent):
                self._wanted = dict(mailboxes)
                self._plan(is_urgent, moment)
            case Publish():
                self._publish(event, moment, out)
            case RelayOpened(url) | RelayClosed(url) | RelayText(url):
                self._pass_on(url, event, moment, out)
            case UseRelays(urls):
                self._urls = tuple(urls)
                out += self._main.step(event, moment)
            case RetryNow() | Tick():
                out += self._main.step(event, moment)
                for name, lane in self._lanes():
                    out += _named(name, lane.pool.step(event, moment))
        self._read(moment, out)
        self._follow(moment, out)
        self._end(moment, out)
        return out

    def _lanes(self) -> list[tuple[str, _Lane]]:
        return [*self._readers.values(), *self._writers.items()]

    def _usable(self) -> tuple[str, ...]:
        """The relays that the first pool found fit; before it did, those it would use."""
        connected = (r.url for r in self._main.snapshot() if r.state == "connected")
        return tuple(connected) or self._urls[: self._active]

    def _pool(self, moment: Moment) -> tuple[str, _Lane]:
        name = moment.entropy.take(8).hex()
        return name, _Lane(RelayPool(self._usable(), active=self._active, is_tested=False))

    def _plan(self, is_urgent: bool, moment: Moment) -> None:
        """Say when each mailbox that changed has its turn; in any order, for the order tells too."""
        changed = self._readers.keys() ^ self._wanted.keys()
        turns = {}
        for address in changed:
            wait = 0.0 if is_urgent else SPREAD_S * moment.entropy.fraction()
            turns[address] = self._turns.get(address, moment.now + wait)
        self._turns = turns

    def _read(self, moment: Moment, out: list[RelayEffect]) -> None:
        """Open and close the lanes whose turn it is."""
        for address in [address for address, at in self._turns.items() if moment.now >= at]:
            del self._turns[address]
            if address not in self._wanted:
                name, lane = self._readers.pop(address)
                out += _named(name, lane.pool.step(UseRelays(()), moment))
                continue
            name, lane = self._readers[address] = self._pool(moment)
            listen = Listen({address: self._wanted[address]})
            out += _named(name, lane.pool.step(listen, moment))

    def _publish(self, event: Publish, moment: Moment, out: list[RelayEffect]) -> None:
        if len(self._writers) >= MAX_PUBLICATIONS:
            out.append(Published(event.token, 0, (("", "too many messages on their way"),)))
            return
        keeps_only = any(r.fitness == "stored-only" for r in self._main.snapshot())
        if keeps_only and STORED_WRAP in event.wraps:
            event = replace(event, wraps={STORED_WRAP: event.wraps[STORED_WRAP]})
        name, lane = self._pool(moment)
        lane.until = moment.now + PUBLISHING_S
        self._writers[name] = lane
        # Connecting first: a message goes to relays that are being connected.
        out += _named(name, lane.pool.step(Tick(), moment))
        out += _named(name, lane.pool.step(event, moment))

    def _pass_on(
        self,
        url: str,
        event: RelayOpened | RelayClosed | RelayText,
        moment: Moment,
        out: list[RelayEffect],
    ) -> None:
        plain, _, name = url.partition("#")
        if not name:
            out += self._main.step(event, moment)
            return
        for known, lane in self._lanes():
            if known == name:
                out += _named(name, lane.pool.step(replace(event, url=plain), moment))

    def _follow(self, moment: Moment, out: list[RelayEffect]) -> None:
        """Let every reader use the relays that are fit now."""
        used = self._usable()
        if used == self._used:
            return
        self._used = used
        for name, lane in self._readers.values():
            out += _named(name, lane.pool.step(UseRelays(used), moment))

    def _end(self, moment: Moment, out: list[RelayEffect]) -> None:
        """Close what has published."""
        for name, lane in list(self._writers.items()):
            late = lane.until is not None and lane.until <= moment.now
            if lane.pool.is_settled or late:
                del self._writers[name]
                out += _named(name, lane.pool.step(UseRelays(()), moment))


def _named(name: str, effects: Sequence[RelayEffect]) -> list[RelayEffect]:
    """Return a lane's effects as the outside sees them; its relays' states are nobody's concern."""
    found: list[RelayEffect] = []
    named: Callable[[str], str] = lambda url: f"{url}#{name}"  # noqa: E731
    for effect in effects:
        match effect:
            case OpenRelay(url) | CloseRelay(url) | SendText(url):
                found.append(replace(effect, url=named(url)))
            case RelayStateChanged():
                pass
            case Received() | Published():
                found.append(effect)
    return found
