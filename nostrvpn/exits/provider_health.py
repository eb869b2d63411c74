"""Whether a WireGuard provider answers, by the bytes of the link to it. Times are seconds.

WireGuard has no "connected". But whoever gets data answers within ``KEEPALIVE_TIMEOUT``, with an empty
packet if nothing else (whitepaper, section 6.5); and without keys that are valid, what is sent are
requests for new ones, which are answered at once. So where much is sent and nothing comes, nobody
is there, or what is sent does not arrive.
"""

from __future__ import annotations

__all__ = ["ProviderHealth"]

# Spec: WireGuard's KEEPALIVE_TIMEOUT (10 s) and REKEY_TIMEOUT (5 s): then WireGuard itself begins anew.
SILENT_S = 15.0
# Between two looks; more than a few keepalives (32 bytes each), which nobody answers, and less than a
# request for new keys (148 bytes).
ASKED_BYTES = 130
# Spec: a request for new keys. From a provider that hears nothing of us, these alone go on coming.
REQUEST_BYTES = 148


class ProviderHealth:
    """``is_silent``: what was sent for ``SILENT_S`` had no answer. Any answer ends it."""

    def __init__(self) -> None:
        self.is_silent = False
        self._received = self._sent = -1
        self._asked_at: float | None = None

    def seen(self, received: int, sent: int, now: float) -> bool:
        """Take the link's counters, in bytes; return whether ``is_silent`` changed."""
        before, was_known = self.is_silent, self._received >= 0
        grown, asked = received - self._received, sent - self._sent
        self._received, self._sent = received, sent
        if not was_known or grown < 0 or asked < 0:
            # The first look, or the link was made anew: what was counted says nothing.
            self._asked_at = None
        elif grown % REQUEST_BYTES:
            self._asked_at, self.is_silent = None, False
        elif self._asked_at is not None:
            self.is_silent = self.is_silent or now - self._asked_at >= SILENT_S
        elif asked >= ASKED_BYTES:
            self._asked_at = now
        return self.is_silent != before
