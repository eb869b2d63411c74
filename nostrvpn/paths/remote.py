"""What is known of the peer's side: its description, and what of it came before or comes twice."""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.paths.description import Description
from nostrvpn.stun.binding import StunMessage

__all__ = ["News", "RemoteSide"]

# Sources of checks that came before the peer's description.
MAX_EARLY = 4
# Transaction ids of the peer's checks, remembered against replay from elsewhere: 25 s of checks at
# the rate that is answered at all.
MAX_SEEN = 512
# Sessions of the peer that were replaced; a late description of one is not news.
MAX_RETIRED = 8


class News(Enum):
    """What a description is, compared with what was known."""

    FIRST = "first"
    SESSION = "session"
    UPDATE = "update"
    REPEAT = "repeat"


class RemoteSide:
    """The peer's current description and the memory against replays."""

    def __init__(self, description: Description | None) -> None:
        self.description = description
        self._retired: OrderedDict[str, None] = OrderedDict()
        self._early: dict[Endpoint, None] = {}
        self._seen: OrderedDict[bytes, Endpoint] = OrderedDict()

    def take(self, description: Description) -> News:
        """Adopt a description unless it repeats; PeerMisbehaved("stale_description") if replaced."""
        known = self.description
        if description.session in self._retired:
            raise PeerMisbehaved("stale_description", "a description of a replaced session")
        if known is None:
            news = News.FIRST
        elif description.session != known.session:
            news = News.SESSION
            self._retired[known.session] = None
            if len(self._retired) > MAX_RETIRED:
                self._retired.popitem(last=False)
        elif description.generation > known.generation:
            news = News.UPDATE
        else:
            return News.REPEAT
        self.description = description
        return news

    def admit(self, message: StunMessage, source: Endpoint, *, controlling: bool) -> None:
        """Check what an authentic check must also be; PeerMisbehaved if it is replayed or ours."""
        if self._seen.setdefault(message.transaction, source) != source:
            raise PeerMisbehaved("replayed_check", "a check of the peer, from another address")
        if len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
        if message.sender_controls is None or message.sender_controls is controlling:
            # Roles follow from the keys, so there is no conflict to solve (RFC 8445, 7.3.1.1).
            raise PeerMisbehaved("role_conflict", "a check that claims our own role")

    def note_early(self, source: Endpoint) -> None:
        """Remember who checked us before the description that lets us check back."""
        if len(self._early) < MAX_EARLY:
            self._early[source] = None

    def take_early(self) -> tuple[Endpoint, ...]:
        """Return those sources, once."""
        sources = tuple(self._early)
        self._early.clear()
        return sources
