"""The sweep: new flows one after the other, until our NAT's counter stands at a port foretold."""

from __future__ import annotations

from collections.abc import Callable

from nostrvpn.endpoint import Endpoint
from nostrvpn.paths.hard_nat.plan import PortSpan, SearchPlan
from nostrvpn.paths.hard_nat.ports import PORTS, port_distance
from nostrvpn.paths.hard_nat.shots import Shot
from nostrvpn.paths.hard_nat.task import SearchTask

__all__ = ["Sweep", "targets_of"]

# How many steps ahead ports are foretold. The nearest must still be ahead when the plans have been
# exchanged, other hosts' traffic counted; the farthest are for slow signaling in busy homes.
AHEAD = (12, 20, 32, 48, 72, 104)
# Flows of a sweep, and how many a second.
MAX_FLOWS = 128
RATE = 50
# Every so many flows one is a query that tells where the counter stands.
SAMPLE = 8


def targets_of(last: int, step: int) -> tuple[int, ...]:
    """Return the peer's coming ports to open flows towards."""
    ports = (last + step * ahead for ahead in AHEAD)
    return tuple(port for port in ports if port in PORTS)


class Sweep:
    """``last`` and ``step`` are our own NAT's, as foretold.

    ``next_at`` None: it is over. ``made`` are its flows: they keep their ports if sent once more.
    ``missed``: steps that went by between forecast and sweep beyond the nearest port foretold.
    """

    def __init__(self, plan: SearchPlan, last: int, step: int, now: float) -> None:
        self.next_at: float | None = now
        self._spans = plan.ports
        self._lattice = max(1, abs(plan.step))
        self._step = step
        self._known = (last, 0)
        self._flows = 0
        self._last = last
        self.made: list[Shot] = []
        self.missed = 0

    def sampled(self, flow: int, port: int) -> None:
        """Flow number ``flow`` of this sweep got ``port``; later ones count from there."""
        if not self._known[1]:
            moved = port_distance(self._last, port) // self._step - flow
            self.missed = max(0, moved - AHEAD[0])
        if flow >= self._known[1]:
            self._known = (port, flow)

    def next_shot(self, task: SearchTask, now: float, new_port: Callable[[], int]) -> Shot | None:
        """Return the next flow, or None: every port foretold is behind us."""
        port, flow = self._known
        counter = port + self._step * (self._flows - flow)
        ahead = [
            (distance, span)
            for span in self._spans
            if (distance := port_distance(counter, span.towards) * self._step) > 0
        ]
        if not ahead or self._flows >= MAX_FLOWS:
            self.next_at = None
            return None
        self.next_at = now + 1 / RATE
        self._flows += 1
        if self._flows % SAMPLE == 1:
            server = task.servers[0]
            return Shot(server, new_port(), is_query=True, tag=self._flows)
        _, span = min(ahead, key=lambda item: item[0])
        shot = Shot(Endpoint(task.target.ip, self._port_in(span)), new_port())
        self.made.append(shot)
        return shot

    def _port_in(self, span: PortSpan) -> int:
        """Take the ports of an opening in turn: which of them is right is not known."""
        inside = range(span.first, span.last + 1, self._lattice)
        return inside[self._flows % len(inside)]
