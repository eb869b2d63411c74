"""How long a link waits: before a retry, an early check, a fallback."""

from __future__ import annotations

__all__ = [
    "ANSWER_GAP",
    "CONTROLLED_LATER",
    "FALLBACK_AGE",
    "HOLD_UNANSWERED",
    "HUSHED_ROUNDS",
    "LOST_AGAIN",
    "ROUND_GAP",
    "retry_gap",
]

# After a failed round: conntrack forgets an unanswered flow in 30 s, and a retry before that keeps
# a bad entry alive; then ever more rarely, as news (a description, a network change) resets it.
BACKOFF = (35.0, 60.0, 300.0, 1800.0, 3600.0)
# After this many rounds in vain WireGuard sends nothing meanwhile, so that NATs can forget; later it
# does: should the lost path work again, it notices before the next of rounds that have become rare.
HUSHED_ROUNDS = 2
# A direct path broke and a relay took over: the next search for one, after the first, second, …
# loss within an hour. A path that comes and goes is worse than a relay.
LOST_AGAIN = (1.0, 35.0, 300.0, 1800.0)
# Our offer is not answered yet, but the peer is known from before: check NATed pairs only after
# this, so that usually its answer (and so its openers) comes first; without any relay this is how
# two nodes find each other again, as the later one meets the mappings of the earlier.
HOLD_UNANSWERED = 3.0
# A restart by news (network, addresses) comes no sooner after the last one.
ROUND_GAP = 2.0
# Another pair that worked this recently takes over when the selected one is lost.
FALLBACK_AGE = 10.0
# The controlled side retries later, so that usually one side offers.
CONTROLLED_LATER = 10.0
# A second answer to a peer that repeats itself comes no sooner.
ANSWER_GAP = 0.5


def retry_gap(failures: int, *, controlling: bool) -> float:
    """Return the seconds until the next round after ``failures`` rounds before this one failed."""
    gap = BACKOFF[min(failures, len(BACKOFF) - 1)]
    return gap if controlling else gap + CONTROLLED_LATER
