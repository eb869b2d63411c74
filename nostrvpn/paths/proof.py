"""What WireGuard's own counters say: did data cross the chosen path, and is the tunnel in use?"""

from __future__ import annotations

__all__ = ["TunnelProof"]

# A tunnel counts as in use for this long after its counters moved (Tailscale's session idle time).
IDLE_AFTER = 45.0
# Keepalives (32 bytes each way in 25 s) and handshakes (about 300 bytes in 120 s) are not use: a
# bucket leaks this many bytes a second, and use is what overflows it.
LEAK = 16.0
OVERFLOW = 512
# WireGuard rejects a session after 180 s (REJECT_AFTER_TIME); with a live peer and anything to
# send it has renewed it by then.
SESSION_LIFE = 200.0
# After so long without a reading the traffic in between says nothing about the present.
BLIND = 60.0
# Two keepalives and some: silence of the other side for less proves nothing.
SILENCE = 60.0


# WireGuard answers data with data, or with a keepalive after 10 s (its KEEPALIVE_TIMEOUT); a hole that
# swallows large packets takes more than this before that.
SWALLOWED = 4096
MUTE = 15.0


# What two keepalives come to, one more than lies between two readings of a quiet tunnel: the rest is
# data, or a handshake.
KEEPALIVES = 64


class TunnelProof:
    """Follows one peer's counters. ``proven``: WireGuard's packets came in since ``reset``."""

    def __init__(self) -> None:
        self.proven = False
        self.crossed = False
        """Whether anything came in since ``watch``: over the endpoint that was set then."""
        self._since: float | None = None
        self._rx: int | None = None
        self._tx = 0
        self._seen_at = 0.0
        self._level = 0.0
        self._used_at: float | None = None
        self._moved_at = float("-inf")
        self._chosen_at = 0.0
        self._rx_moved_at = 0.0
        self._tx_since_rx = 0

    def reset(self, now: float) -> None:
        """A new endpoint was set: what came in before proves nothing about it."""
        self.proven = False
        self._since = now
        self._rx = None
        self._rx_moved_at = now
        self._tx_since_rx = 0

    def watch(self, now: float) -> None:
        """The endpoint was set: wait for what comes in over the new one."""
        self.crossed, self._chosen_at = False, now

    def rest(self) -> None:
        """The tunnel goes to sleep: what it carried so far is no use any more."""
        self._used_at = None
        self._level = 0.0

    def is_active(self, now: float) -> bool:
        """Say whether the tunnel carried more than keepalives within the last 45 s."""
        return self._used_at is not None and now - self._used_at < IDLE_AFTER

    def swallows(self, now: float) -> bool:
        """Say whether WireGuard sends more than a little and nothing comes back, not even keepalives."""
        return self._tx_since_rx > SWALLOWED and now - self._rx_moved_at > MUTE

    def unused_for(self, now: float) -> float:
        """Return for how long it carried no more than keepalives, since its last path was chosen."""
        return now - max(self._chosen_at, self._used_at or self._chosen_at)

    def still_for(self, now: float) -> float:
        """Return for how long not even a little was seen to cross but keepalives."""
        return now - self._moved_at

    def observe(self, now: float, handshake_age: float | None, rx: int, tx: int) -> None:
        """Take one reading of the counters."""
        if self._rx is None or rx < self._rx or tx < self._tx:
            moved_rx, moved_tx = 0, 0
        else:
            moved_rx, moved_tx = rx - self._rx, tx - self._tx
        self._level = max(0.0, self._level - LEAK * max(0.0, now - self._seen_at))
        if self._used_at is not None or now - self._seen_at <= BLIND:
            self._level += moved_rx + moved_tx
        if self._level > OVERFLOW:
            self._used_at = now
            self._level = OVERFLOW
        if max(moved_rx, moved_tx) > KEEPALIVES:
            self._moved_at = now
        self._rx, self._tx, self._seen_at = rx, tx, now
        self.crossed = self.crossed or bool(moved_rx)
        if moved_rx:
            self._rx_moved_at, self._tx_since_rx = now, 0
        else:
            self._tx_since_rx += moved_tx
        if self._since is None:
            return
        fresh = handshake_age is not None and now - handshake_age > self._since
        if fresh or moved_rx:
            self.proven = self.crossed = True
        elif (
            self._tx_since_rx
            and now - self._rx_moved_at > SILENCE
            and (handshake_age is None or handshake_age > SESSION_LIFE)
        ):
            self.proven = False
