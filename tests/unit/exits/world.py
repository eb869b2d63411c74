"""Exits that answer or not, in virtual time, and the echoes that the choice asks for."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from nostrvpn.exits.choice import ECHO_S, Candidate, ExitChoice
from nostrvpn.exits.offer import ExitOffer
from nostrvpn.exits.settings import AUTO

__all__ = ["A", "B", "C", "Exits"]

A, B, C = "a" * 64, "b" * 64, "c" * 64
STEP_S = 0.05


class Exits:
    """``rtts``: of each exit, in ms, by its key's letter. Echoes go as the daemon sends them.

    ``delay(key, now)``: the round trip in ms of an echo that is sent now, None if it is lost; set it for
    links that are not as plain as ``dead`` and ``cut_off``.
    """

    def __init__(self, **rtts: float) -> None:
        self.choice = ExitChoice()
        self.rtts = {key * 64: ms for key, ms in rtts.items()}
        self.offers = {key: ExitOffer() for key in self.rtts}
        self.dead: set[str] = set()
        self.cut_off = False
        self.delay: Callable[[str, float], float | None] = self._plain
        self.now = 100.0
        self.wanted = AUTO
        self.history: list[tuple[float, str | None]] = []
        self._begun: dict[str, float] = {}
        self._coming: list[tuple[float, int, str, float | None]] = []
        self._order = itertools.count()

    def used(self) -> str | None:
        return self.choice.used

    def carries(self) -> bool:
        return self.choice.carries

    def candidates(self) -> dict[str, Candidate]:
        return {key: Candidate(offer, True) for key, offer in self.offers.items()}

    def review(self) -> None:
        self.choice.review(self.wanted, self.candidates(), self.now)
        if not self.history or self.history[-1][1] != self.choice.used:
            self.history.append((self.now, self.choice.used))

    def run(self, seconds: float) -> None:
        """Let time pass in steps of 50 ms."""
        end = self.now + seconds
        while self.now < end:
            self.now = round(self.now + STEP_S, 6)
            while self._coming and self._coming[0][0] <= self.now:
                _, _, key, rtt = heapq.heappop(self._coming)
                self.choice.probed(key, rtt, self.now)
                self.review()
            self.review()
            for key in self.offers:
                # What a sum of floats lacks is not another step.
                due = self._begun.get(key, float("-inf")) + self.choice.interval(key) - 1e-6
                if self.now >= due:
                    self._begun[key] = self.now
                    self._ask(key)

    def _ask(self, key: str) -> None:
        rtt, late = self.delay(key, self.now), self.choice.late_after(key)
        if rtt is None or rtt / 1000 > late:
            heapq.heappush(self._coming, (self.now + late, next(self._order), key, None))
        if rtt is not None and rtt / 1000 < ECHO_S:
            heapq.heappush(self._coming, (self.now + rtt / 1000, next(self._order), key, rtt))

    def _plain(self, key: str, _now: float) -> float | None:
        return None if self.cut_off or key in self.dead else self.rtts[key]
