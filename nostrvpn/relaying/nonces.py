"""Challenges that need no memory: a nonce is a MAC over what it is good for.

It is bound to the source address, the pair, the side and how often that side was bound already; so
it is worthless at any other address, and a bind that was recorded on its way is worthless once the
side has moved on. The key changes each window, and the one before is still accepted.
"""

from __future__ import annotations

import hmac

from nostrvpn.endpoint import Endpoint
from nostrvpn.machine import Moment

__all__ = ["NONCE_SIZE", "Nonces"]

# Seconds: a client answers a challenge within one round trip; its last try comes within 10 s.
WINDOW_S = 120.0
# Up to 12 bytes keep the challenge no longer than the bind that asks for it; and nobody guesses 64
# bits with 20 tries a second.
NONCE_SIZE = 8


class Nonces:
    """Makes and judges nonces."""

    def __init__(self) -> None:
        self._keys: list[bytes] = []
        self._since = 0.0

    def make(self, source: Endpoint, subject: str, moment: Moment) -> bytes:
        """Return a nonce for ``source`` and ``subject`` that is good for one to two windows."""
        self._rotate(moment)
        return _mac(self._keys[0], source, subject)

    def accepts(self, nonce: bytes, source: Endpoint, subject: str, moment: Moment) -> bool:
        """Say whether ``make`` gave this nonce for the same, not too long ago."""
        self._rotate(moment)
        good = [_mac(key, source, subject) for key in self._keys]
        return any(hmac.compare_digest(nonce, one) for one in good)

    def _rotate(self, moment: Moment) -> None:
        if self._keys and moment.now - self._since < WINDOW_S:
            return
        # After a long silence, the older key is too old as well.
        kept = self._keys[:1] if moment.now - self._since < 2 * WINDOW_S else []
        self._keys = [moment.entropy.take(32), *kept]
        self._since = moment.now


def _mac(key: bytes, source: Endpoint, subject: str) -> bytes:
    return hmac.digest(key, f"{source} {subject}".encode(), "sha256")[:NONCE_SIZE]
