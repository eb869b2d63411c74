"""How long a buyer waits for what, and how often it asks again: seconds and counts."""

from __future__ import annotations

from nostrvpn.market.bought_lease import BoughtLease, Phase

__all__ = [
    "AGAIN_S",
    "MONEY_AGAIN_S",
    "PATIENCE_S",
    "PROBE_AGAIN_S",
    "PROBE_FAILURES",
    "PROBE_S",
    "PROBE_SOON_S",
    "SLOW_PROBES",
    "answer_s",
    "money_again_s",
]

# Without an answer, a message is said again after these seconds, then each time the last of them.
AGAIN_S = (3, 6, 12, 24, 60, 300)
# For how long an answer is waited for, by phase (seconds): a mint may be slow, a receipt bring money.
PATIENCE_S = {
    Phase.ASKING: 10,
    Phase.QUOTED: 45,
    Phase.TRYING: 20,
    Phase.PROBING: 25,
    Phase.PAYING: 90,
    Phase.CLOSING: 3600,
}
_ANSWER_S, _HELD_S = 60, 180
# How often the tunnel in use is tried, and how often it may fail or be slow in a row.
PROBE_S, PROBE_SOON_S, PROBE_AGAIN_S = 60, 8, 3
PROBE_FAILURES, SLOW_PROBES = 2, 3
# How often money is asked for again that the ceilings, or the mint, did not give; of a lease that ended
# ever more seldom, as it may take days until a payment by Lightning is over.
MONEY_AGAIN_S, _SELDOM_S = 30, 3600


def answer_s(lease: BoughtLease) -> int:
    """Return how long a seller may take to answer for a payment: one by Lightning has its way to go."""
    return _HELD_S if lease.is_holding else _ANSWER_S


def money_again_s(lease: BoughtLease, wall: float, least: int = MONEY_AGAIN_S) -> float:
    """Return in how many seconds it is asked again what became of money."""
    since = wall - lease.ended_at if lease.ended_at else 0.0
    return min(max(float(least), since / 8), _SELDOM_S)
