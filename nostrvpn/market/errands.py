"""Requests to the wallet that have no answer yet: asked again with the same ref until they have one."""

from __future__ import annotations

from dataclasses import dataclass

from nostrvpn.machine import earliest
from nostrvpn.market.channel_effects import CloseChannel
from nostrvpn.market.effects import EndHold, GiveBack, MakeInvoice, Redeem

__all__ = ["Errands", "Request"]

Request = Redeem | GiveBack | MakeInvoice | EndHold | CloseChannel

# Seconds until a request that failed is made again, twice as long each time: mints count requests.
FIRST_RETRY_S, LAST_RETRY_S = 2.0, 300.0
# An answer that does not come: the wallet is idempotent, so asking again does no harm.
ANSWER_S = 600.0
LATE_S = 60.0


@dataclass(slots=True)
class _Errand:
    request: Request
    due: float
    failures: int = 0
    asked_at: float | None = None


class Errands:
    """All open requests of a machine. Times are ``Moment.now``'s."""

    def __init__(self) -> None:
        self._open: dict[str, _Errand] = {}

    def __contains__(self, ref: str) -> bool:
        return ref in self._open

    @property
    def deadline(self) -> float | None:
        """When the next one is asked again."""
        return earliest(*(errand.due for errand in self._open.values()))

    def ask(self, request: Request, now: float) -> list[Request]:
        """Return the request, to be carried out now, and remember it."""
        self._open[request.ref] = _Errand(request, now + ANSWER_S, asked_at=now)
        return [request]

    def owe(self, request: Request) -> None:
        """Remember a request of an earlier run: it is made at the next look."""
        self._open[request.ref] = _Errand(request, float("-inf"))

    def finish(self, ref: str) -> bool:
        """The answer is there, and is the last one; return whether it was waited for."""
        return self._open.pop(ref, None) is not None

    def retry(self, ref: str, now: float) -> None:
        """It failed for now."""
        errand = self._open[ref]
        errand.due = now + min(LAST_RETRY_S, FIRST_RETRY_S * 2**errand.failures)
        errand.failures += 1

    def is_late(self, ref: str, now: float) -> bool:
        """Whether a request failed, or waits for its answer longer than a mint needs."""
        errand = self._open.get(ref)
        if errand is None or errand.asked_at is None:
            return False
        return errand.failures > 0 or now - errand.asked_at > LATE_S

    def due(self, now: float) -> list[Request]:
        """Return what is to be asked (again) now."""
        found = [errand for errand in self._open.values() if errand.due <= now]
        for errand in found:
            errand.due = now + ANSWER_S
            errand.asked_at = now if errand.asked_at is None else errand.asked_at
        return [errand.request for errand in found]
