"""What must hold after a day of a big mesh: conversations, calm, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.sim.big_day import Day, Talk

HOUR = 3600.0
# The engine's own share of a beginning, by the share of packets lost; a lost handshake of WireGuard
# costs 5 s more, and is lost with a chance of twice the loss on each path.
CONNECTED = {0.0: 6.0, 0.05: 11.0, 0.1: 16.0, 0.2: 26.0}
# A path that breaks is replaced in 6 s and a round trip or two; with loss a search has tries to spare.
PAUSE = {0.0: 7.5, 0.05: 9.0, 0.1: 12.0, 0.2: 20.0}
# Something happened that takes longer: a search for another path, with signaling.
DISTURBED = 15.0
CHANGES_AN_HOUR = 24
MESSAGES_AN_HOUR = 120
# Of a node at rest, in ten minutes: a round towards somebody who cannot be reached, at most.
IDLE_DATAGRAMS = 60


def _bound(table: dict[float, float], loss: float) -> float:
    return table[max(known for known in table if known <= loss)]


def verdict(day: Day) -> list[str]:
    """Return every violation, in words."""
    found = [text for talk in day.talks for text in _talk(day, talk)]
    return [*found, *_calm(day), *_rest(day)]


def _talk(day: Day, talk: Talk) -> Iterator[str]:
    kinds = "+".join(talk.kinds)
    who = f"talk {talk.number} {talk.first.name}-{talk.second.name} ({kinds}) at {talk.began:.1f}"
    if not talk.possible:
        return
    loss = day.settings.loss
    bound, lasted = _bound(CONNECTED, loss), talk.ended - talk.began
    early = [(round(at - talk.began, 1), what) for at, what in talk.events]
    if talk.connected is None:
        if lasted > bound and not [at for at, _ in early if at < bound]:
            yield f"{who}: no data in {lasted:.1f} s; {early} {talk.states}"
    elif talk.connected > bound and not [at for at, _ in early if at < talk.connected]:
        yield f"{who}: data after {talk.connected:.1f} s; {early}"
    for begin, length, way in talk.gaps:
        before = [what for at, what in talk.events if begin - 15.0 <= at <= begin + length]
        mended = DISTURBED if {"roam", "outage", "relay dies"} & set(before) else 0.0
        if length > _bound(PAUSE, loss) + mended:
            yield f"{who}: pause of {length:.1f} s after {begin - talk.began:.1f}, {way}; {early}"


def _calm(day: Day) -> Iterator[str]:
    for host in day.hosts:
        ledger = day.sim.ledgers[host.key]
        for peer, told in ledger.endpoints.items():
            most = _most_in_an_hour([at for at, _ in told])
            if most > CHANGES_AN_HOUR:
                yield f"{host.name}: {most} endpoints for {day.sim.keys[peer].name} in an hour"
        most = _most_in_an_hour(ledger.said_at)
        if most > MESSAGES_AN_HOUR:
            yield f"{host.name}: {most} messages in an hour, {dict(ledger.said)}"


def _most_in_an_hour(times: list[float]) -> int:
    most = first = 0
    for index, at in enumerate(times):
        while at - times[first] > HOUR:
            first += 1
        most = max(most, index - first + 1)
    return most


def _rest(day: Day) -> Iterator[str]:
    """Nobody talks any more: what still goes on, and what was left lying about."""
    for host in day.hosts:
        sent = host.counts["SendDatagram"] - day.datagrams[host.name]
        if sent > IDLE_DATAGRAMS:
            seen = [host.paths.snapshot(peer) for peer in host.paths.peers]
            states = {link.state for link in seen if link is not None and not link.asleep}
            yield f"{host.name}: {sent} datagrams at rest, links {states}"
        for code in ("unknown_transaction", "stale_description", "late_answer", "rate_limited"):
            if host.paths.counters[code] > 20 + 3 * len(day.talks):
                yield f"{host.name}: dropped {host.paths.counters[code]} {code}"
    for relay in day.sim.carriers.relays:
        if relay.channels:
            yield f"{relay.url}: {len(relay.channels)} WebSockets open at rest"
        if len(relay.ports) > 4:
            yield f"{relay.url}: {len(relay.ports)} ports lent at rest"
