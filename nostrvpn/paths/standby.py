"""Relayed pairs that wait beside the selected one: kept warm, so that they take over at once.

Each has the idle heartbeat of a selected pair: the controlling side checks every 25 s, which keeps
the bindings at the relay and the NATs' mappings, and the other side listens.
"""

from __future__ import annotations

from nostrvpn.endpoint import Endpoint
from nostrvpn.machine import earliest
from nostrvpn.paths.heartbeat import IDLE_INTERVAL, LISTENER_SLACK, Heartbeat, Pulse
from nostrvpn.paths.pair import Pair

__all__ = ["FRESH", "Standby"]

# A pair kept warm answered, or was heard, within this time.
FRESH = IDLE_INTERVAL + LISTENER_SLACK[False]


class Standby:
    """The heartbeats of the pairs beside the selected one."""

    def __init__(self, *, controlling: bool) -> None:
        self._controlling = controlling
        self._beats: dict[Endpoint, Heartbeat] = {}

    @property
    def deadline(self) -> float | None:
        """When ``tick`` is due next."""
        return earliest(*(beat.deadline for beat in self._beats.values()))

    def keep(self, pairs: list[Pair], now: float) -> None:
        """Keep these warm, and no others."""
        wanted = {pair.endpoint for pair in pairs}
        if wanted == set(self._beats):
            return
        self._beats = {at: beat for at, beat in self._beats.items() if at in wanted}
        for endpoint in wanted - set(self._beats):
            beat = self._beats[endpoint] = Heartbeat(controlling=self._controlling)
            beat.start(now)

    def answered(self, endpoint: Endpoint, now: float) -> None:
        """A check of one was answered."""
        if beat := self._beats.get(endpoint):
            beat.answered(now)

    def heard(self, endpoint: Endpoint, now: float) -> None:
        """The peer's own check came over one."""
        if beat := self._beats.get(endpoint):
            beat.heard(now)

    def probe(self, now: float) -> None:
        """The selected pair is doubtful: see now which of these lives."""
        for beat in self._beats.values():
            beat.probe(now, quick=True)

    def tick(self, now: float) -> tuple[list[Endpoint], list[Endpoint]]:
        """Return which to check now, and which are lost."""
        pulses = {at: beat.pulse(now) for at, beat in self._beats.items()}
        lost = [at for at, pulse in pulses.items() if pulse is Pulse.LOST]
        for endpoint in lost:
            del self._beats[endpoint]
        return [at for at, pulse in pulses.items() if pulse is Pulse.CHECK], lost
