"""One endpoint of the peer and how its checks go."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from nostrvpn.endpoint import Endpoint
from nostrvpn.paths.candidates import CandidateKind
from nostrvpn.paths.snapshot import PairResult

__all__ = ["Pair", "PairState"]

# How much of a new round trip enters the smoothed one (RFC 6298 section 2: an eighth; ours are rare).
SMOOTHING = 0.25


class PairState(Enum):
    """RFC 8445 section 6.1.2.6, without Frozen; HELD waits for the peer's first check."""

    HELD = "held"
    WAITING = "waiting"
    IN_PROGRESS = "in-progress"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(slots=True)
class Pair:
    """One endpoint of the peer and how its checks go. ``rank``: higher is better.

    ``withdrawn_at``: since when the peer does not name it any more; an answer later than that says that
    it still is the peer's. ``own_route``: the endpoint is a relay's or a channel's that we made
    usable ourselves, so nobody else chose it as a target. ``refuted``: nothing answered there when it
    was tried last; a check that runs again does not lift this, its answer does.
    """

    endpoint: Endpoint
    kind: CandidateKind
    rank: tuple[bool, int, int, int]
    own_route: bool = False
    state: PairState = PairState.WAITING
    due: float | None = None
    triggered: bool = False
    tries: int = 0
    last_sent: float | None = None
    openers_left: int = 0
    opener_at: float = 0.0
    rtt: float | None = None
    smooth: float | None = None
    succeeded_at: float | None = None
    heard_at: float | None = None
    refuted: bool = False
    contacted: bool = False
    withdrawn_at: float | None = None
    reason: str = ""

    @property
    def is_relayed(self) -> bool:
        """Whether somebody else is on the way."""
        return self.kind is CandidateKind.RELAYED

    @property
    def works(self) -> bool:
        """Whether its last check was answered."""
        return self.state is PairState.SUCCEEDED

    @property
    def withdrawn(self) -> bool:
        """Whether the peer named it once, does not any more, and has not answered there since."""
        return self.withdrawn_at is not None

    @property
    def alive_at(self) -> float:
        """When it was last known to work: an answer came, or the peer's own check."""
        return max(self.succeeded_at or 0.0, self.heard_at or 0.0)

    def restart(self) -> None:
        """Wait for the checks of a new round."""
        self.state, self.tries, self.reason = PairState.WAITING, 0, ""
        self.due, self.triggered, self.refuted = None, False, False

    def answered(self, rtt: float, now: float) -> None:
        """An authentic answer came."""
        self.state, self.reason, self.due, self.triggered = PairState.SUCCEEDED, "", None, False
        self.openers_left, self.refuted = 0, False
        self.rtt, self.succeeded_at = rtt, now
        if self.withdrawn_at is not None and now - rtt >= self.withdrawn_at:
            self.withdrawn_at = None
        self.smooth = rtt if self.smooth is None else self.smooth + SMOOTHING * (rtt - self.smooth)

    def fail(self, reason: str) -> None:
        """Nothing answers."""
        self.state, self.reason, self.due, self.refuted = PairState.FAILED, reason, None, True

    def result(self) -> PairResult:
        """Return what ``why`` shows."""
        return PairResult(
            endpoint=self.endpoint,
            kind=self.kind.value,
            state=self.state.value,
            tries=self.tries,
            rtt_ms=None if self.rtt is None else self.rtt * 1000,
            reason=self.reason,
        )
