"""The states of a link, and what may follow what."""

from __future__ import annotations

from enum import Enum

__all__ = ["LIVE", "TRANSITIONS", "LinkState"]


class LinkState(Enum):
    """What a link is doing. ``TRANSITIONS`` says what may follow."""

    IDLE = "idle"
    """No address of our own, nothing to offer."""
    GATHERING = "gathering"
    """A description waits for the first STUN answer."""
    OFFERED = "offered"
    """Described; nothing of the peer's yet."""
    CHECKING = "checking"
    """Both descriptions known, checks run."""
    VALIDATED = "validated"
    """A path answered checks and WireGuard uses it; no data of WireGuard's seen yet."""
    CONNECTED = "connected"
    """Data flowed."""
    DEGRADED = "degraded"
    """The path stopped answering; a new round runs."""
    FAILED = "failed"
    """The last round found no path; the next one is due later."""
    ASLEEP = "asleep"
    """Nobody uses the tunnel: no endpoint, no heartbeat; traffic or the peer's description wake it."""


TRANSITIONS: dict[LinkState, frozenset[LinkState]] = {
    # From IDLE at once: the answer to a check that left before the addresses went.
    LinkState.IDLE: frozenset(
        {
            LinkState.GATHERING,
            LinkState.OFFERED,
            LinkState.CHECKING,
            LinkState.VALIDATED,
            LinkState.ASLEEP,
        }
    ),
    LinkState.GATHERING: frozenset(
        {LinkState.IDLE, LinkState.OFFERED, LinkState.CHECKING, LinkState.VALIDATED}
    ),
    LinkState.OFFERED: frozenset(
        {LinkState.IDLE, LinkState.GATHERING, LinkState.CHECKING, LinkState.ASLEEP}
    ),
    LinkState.CHECKING: frozenset({LinkState.IDLE, LinkState.VALIDATED, LinkState.FAILED}),
    LinkState.VALIDATED: frozenset({LinkState.CONNECTED, LinkState.DEGRADED, LinkState.ASLEEP}),
    LinkState.CONNECTED: frozenset({LinkState.VALIDATED, LinkState.DEGRADED, LinkState.ASLEEP}),
    LinkState.ASLEEP: frozenset(
        {
            LinkState.IDLE,
            LinkState.GATHERING,
            LinkState.OFFERED,
            LinkState.CHECKING,
            LinkState.VALIDATED,
        }
    ),
    LinkState.DEGRADED: frozenset({LinkState.VALIDATED, LinkState.FAILED}),
    LinkState.FAILED: frozenset(
        {LinkState.IDLE, LinkState.CHECKING, LinkState.VALIDATED, LinkState.ASLEEP}
    ),
}
LIVE = (LinkState.VALIDATED, LinkState.CONNECTED)
