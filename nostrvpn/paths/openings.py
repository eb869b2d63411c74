"""How often members make us open WebSockets: each names URLs in its offers and tickets, true or not.

A URL whose relay answered authentically is free. The others cost the member who named them: three
tries, then one after a minute, and ever more seldom down to one an hour, whatever it names next.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

__all__ = ["FREE", "PATIENCE", "PAUSES", "Openings"]

# Tries at once: one for each of two relays, and once more.
FREE = 3
PAUSES = (60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3600.0)
# A WebSocket, its TLS and its upgrade take some round trips.
PATIENCE = 10.0
# Without a try for so long, everything before is forgiven: less than one try an hour either way.
FORGIVEN = 4 * 3600.0
# Members, or relays of strangers; and URLs that one of them named in vain.
MAX_NAMERS = 256
MAX_URLS = 8
MAX_PROVEN = 64


@dataclass(slots=True)
class _Vain:
    """What one member made us open without an answer, by URL; ``at``: the last time."""

    at: float
    tries: OrderedDict[str, int] = field(default_factory=OrderedDict)


class Openings:
    """Shared by all links. ``namer`` is whoever named a URL: a peer's or a relay's public key."""

    def __init__(self) -> None:
        self._vain: OrderedDict[Hashable, _Vain] = OrderedDict()
        self._proven: OrderedDict[str, None] = OrderedDict()

    def may_open(self, namer: str, url: str, now: float) -> bool:
        """Say whether a URL may be opened now; it counts as in vain until ``answered``."""
        if url in self._proven:
            return True
        vain = self._vain.pop(namer, None)
        if vain is None or now - vain.at >= FORGIVEN:
            vain = _Vain(now)
        self._vain[namer] = vain
        if len(self._vain) > MAX_NAMERS:
            self._vain.popitem(last=False)
        tried = sum(vain.tries.values())
        if tried >= FREE and now - vain.at < PAUSES[min(tried - FREE, len(PAUSES) - 1)]:
            return False
        vain.at = now
        # Those named first are counted under what no URL is.
        key = url if url in vain.tries or len(vain.tries) < MAX_URLS else ""
        vain.tries[key] = vain.tries.get(key, 0) + 1
        return True

    def is_pending(self, namer: str, url: str, now: float) -> bool:
        """Say whether somebody opened it a moment ago, so that an answer may set it free soon."""
        vain = self._vain.get(namer)
        return vain is not None and url in vain.tries and now - vain.at < PATIENCE

    def answered(self, namer: str, url: str) -> None:
        """The relay behind it answered authentically."""
        self._proven[url] = None
        self._proven.move_to_end(url)
        if len(self._proven) > MAX_PROVEN:
            self._proven.popitem(last=False)
        if (vain := self._vain.get(namer)) is not None:
            vain.tries.pop(url, None)

    def failed(self, url: str) -> None:
        """It ended without an answer: whatever was known of it is old."""
        self._proven.pop(url, None)

    def clear(self) -> None:
        """Our own network changed: what failed may have been its fault."""
        self._vain.clear()
        self._proven.clear()
