"""Messages on their way: which relays still owe an answer, and what to tell the publisher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nostrvpn.nostr.event import Event
from nostrvpn.nostr.frames import render_event
from nostrvpn.nostr.nip59 import EPHEMERAL_WRAP, STORED_WRAP
from nostrvpn.signaling.relay_events import Published

__all__ = ["Delivery", "Outbox"]

# Messages at once; each is answered within DELIVERY_SECONDS, so this is sixty a second for long.
MAX_MESSAGES = 1024


@dataclass(slots=True, eq=False)
class Delivery:
    """One message for any relay: its wraps, encoded once, and when it stops being worth sending."""

    token: str
    wraps: Mapping[int, Event]
    expires: float
    _frames: dict[int, str] = field(default_factory=dict)

    @property
    def has_ephemeral(self) -> bool:
        """Whether there is a wrap that relays do not store."""
        return EPHEMERAL_WRAP in self.wraps

    @property
    def has_stored(self) -> bool:
        """Whether there is a wrap that relays store."""
        return STORED_WRAP in self.wraps

    def frame(self, kind: int) -> str:
        """Return the EVENT frame of the wrap of this kind."""
        if kind not in self._frames:
            self._frames[kind] = render_event(self.wraps[kind])
        return self._frames[kind]


@dataclass(slots=True)
class _Message:
    waiting: set[str]
    refused: dict[str, str] = field(default_factory=dict)
    told: bool = False


class Outbox:
    """Accounts for each message until every relay has answered; tells its fate exactly once."""

    def __init__(self) -> None:
        self._messages: dict[Delivery, _Message] = {}

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def is_full(self) -> bool:
        """Whether as many messages are on their way as may."""
        return len(self._messages) >= MAX_MESSAGES

    def add(self, delivery: Delivery, urls: set[str]) -> list[Published]:
        """Expect one answer from each of these relays."""
        if not urls:
            return [Published(delivery.token, 0, (("", "no relay is in use"),))]
        if self.is_full:
            return [Published(delivery.token, 0, (("", "too many messages on their way"),))]
        self._messages[delivery] = _Message(set(urls))
        return []

    def answered(
        self, delivery: Delivery, url: str, accepted: bool, reason: str
    ) -> list[Published]:
        """One relay accepted or finally refused a message; further answers of it are ignored."""
        message = self._messages.get(delivery)
        if message is None or url not in message.waiting:
            return []
        message.waiting.discard(url)
        if not accepted:
            message.refused[url] = reason
        if not message.waiting:
            del self._messages[delivery]
        if message.told or (message.waiting and not accepted):
            return []
        message.told = True
        return [Published(delivery.token, int(accepted), tuple(message.refused.items()))]
