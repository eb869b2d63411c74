"""What must hold after a day of a big mesh: conversations, calm, and nothing left behind."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.sim.big_day import Day
    from tests.sim.big_talk import Talk

HOUR = 3600.0
# The engine's own share of a beginning, by the share of packets lost. Each packet of a WireGuard
# handshake that chance took costs 5 s more, and is counted.
HANDSHAKE_RETRY = 5.0
CONNECTED = {0.0: 6.0, 0.05: 11.0, 0.1: 16.0, 0.2: 26.0}
# A path that breaks is replaced in 6 s and a round trip or two; with loss a search has tries to spare.
PAUSE = {0.0: 7.5, 0.05: 9.0, 0.1: 12.0, 0.2: 20.0}
# Something happened that takes longer: a search for another path, with signaling.
DISTURBED = 15.0
# Events so long before still matter.
SETTLED = 15.0
# A NAT with an entry that stands in the way forgets it 30 s after the last packet, which is that of a
# round; the next one comes 35 s or, of the controlled side, 45 s after that.
SPOILT = 50.0
# Descriptions that nobody could hear are repeated after gaps that grow with the silence.
LONGEST_REPEAT = 60.0
# A relay that dies is replaced by the one beside it within 3 s; data is looked for each 0.5 s.
REPLACED = {0.0: 3.5, 0.05: 4.0, 0.1: 5.0, 0.2: 8.0}
CHANGES_AN_HOUR = 24
MESSAGES_AN_HOUR = 120
# Of a node at rest, in ten minutes; and for each round towards somebody who cannot be reached.
IDLE_DATAGRAMS = 45
ROUND_DATAGRAMS = 45


def _bound(table: dict[float, float], loss: float) -> float:
    return table[max(known for known in table if known <= loss)]


def verdict(day: Day) -> list[str]:
    """Return every violation, in words."""
    found = [text for talk in day.talks for text in _talk(day, talk)]
    return [*found, *_calm(day), *_rest(day)]


def _talk(day: Day, talk: Talk) -> Iterator[str]:
    kinds = "+".join(talk.kinds)
    who = f"talk {talk.number} {talk.first.name}-{talk.second.name} ({kinds}) at {talk.began:.1f}"
    loss = day.settings.loss
    early = [(round(at - talk.began, 1), what) for at, what in talk.events]
    first_data = talk.ended if talk.connected is None else talk.began + talk.connected
    for begin, end in _open_parts(talk, talk.began, first_data):
        if end - begin > _bound(CONNECTED, loss) + _excuse(day, talk, begin, end):
            yield f"{who}: no data in {end - begin:.1f} s; {early} {talk.ways} {talk.states}"
    for at, length, way in talk.gaps:
        for begin, end in _open_parts(talk, at, at + length):
            if end - begin > _bound(PAUSE, loss) + _excuse(day, talk, begin, end):
                after = begin - talk.began
                yield f"{who}: pause of {end - begin:.1f} s after {after:.1f}, {way}; {early}"
    for at, took in talk.replaced:
        alone = not [what for seen, what in talk.events if at - SETTLED <= seen <= at + took][1:]
        if alone and took > _bound(REPLACED, loss):
            yield f"{who}: relay replaced after {took:.1f} s, died {at - talk.began:.1f}; {early}"


def _open_parts(talk: Talk, begin: float, end: float) -> Iterator[tuple[float, float]]:
    """Cut out of a time what cannot be asked: while there was no way, or none could be told."""
    changes = [*talk.ways, (talk.ended, "none")]
    for (since, way), (until, _) in itertools.pairwise(changes):
        start, stop = max(begin, since), min(end, until)
        if way == "open" and start < stop:
            yield start, stop


def _excuse(day: Day, talk: Talk, begin: float, end: float) -> float:
    """Return how much longer it may take for what happened, in seconds."""
    seen = {what for at, what in talk.events if begin - SETTLED <= at <= end}
    before = [(since, way) for since, way in talk.ways if since <= begin]
    muted = begin - before[-2][0] if len(before) > 1 and before[-2][1] != "open" else 0.0
    news = bool(muted) or bool({"roam", "outage", "relay dies", "relay comes"} & seen)
    spoilt = (
        SPOILT if "spoilt" in {what for at, what in talk.events if begin - SPOILT <= at} else 0.0
    )
    times = [at for host in talk.hosts for at in day.sim.unlucky.get(host.key, [])]
    unlucky = HANDSHAKE_RETRY * len([at for at in times if begin <= at <= end])
    return (DISTURBED if news else 0.0) + spoilt + min(muted, LONGEST_REPEAT) + unlucky


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
        rounds = [at for at, trace in host.traces if trace.new == "failed" and at > day.settled]
        if sent > IDLE_DATAGRAMS + ROUND_DATAGRAMS * len(rounds):
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
