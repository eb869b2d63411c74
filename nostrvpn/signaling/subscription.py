"""One standing subscription on one connection, whose mailboxes change without losing an event.

A changed set opens a new subscription and closes the old one only when the new one is live (or
took too long), so that at each moment at least one of them receives. A refused one is opened again,
later and later.
"""

from __future__ import annotations

from collections.abc import Mapping

from nostrvpn.machine import Moment
from nostrvpn.nostr.nip59 import EPHEMERAL_WRAP, STORED_WRAP
from nostrvpn.nostr.relay import ConnectionOutput, RelayConnection

__all__ = ["MailSubscription"]

# News wait on relays for up to thirty days; one day more for clocks that differ. Whole days, for to the
# second it would tell whose clock it was, and so which connections belong to one node.
DAY_SECONDS = 86_400
SINCE_SECONDS = 31 * DAY_SECONDS
# Relays limit the values of one filter (strfry: none, others from 100 to 1,000).
KEYS_PER_FILTER = 100
# Within this time a relay without EOSE is taken to have opened the subscription.
LIVE_SECONDS = 5.0
# A refused subscription is asked for again after 2 s, doubling up to two minutes.
RETRY_SECONDS, MAX_RETRY_SECONDS = 2.0, 120.0


class MailSubscription:
    """Keeps ``mailboxes`` (public key -> secret) subscribed on a connection."""

    def __init__(self, prefix: str, *, authenticates: bool) -> None:
        """``prefix`` starts the subscription ids; ``authenticates`` allows answers to AUTH."""
        self.refusals = 0
        self.reason = ""
        self._prefix = prefix
        self._authenticates = authenticates
        self._mailboxes: Mapping[str, bytes] = {}
        self._serial = 0
        self._current: str | None = None  # receives for sure
        self._next: str | None = None  # asked for, replaces the current one
        self._due: float | None = None

    @property
    def deadline(self) -> float | None:
        """When ``tick`` is due."""
        return self._due

    def owns(self, subscription: str) -> bool:
        """Whether a subscription id is one of this object's."""
        return subscription in (self._current, self._next)

    def update(
        self, mailboxes: Mapping[str, bytes], connection: RelayConnection, moment: Moment
    ) -> list[ConnectionOutput]:
        """Subscribe to this set instead; nothing if it is the same."""
        if mailboxes.keys() == self._mailboxes.keys():
            return []
        self._mailboxes = dict(mailboxes)
        return self._open(connection, moment)

    def on_live(self, subscription: str, connection: RelayConnection) -> list[ConnectionOutput]:
        """The relay sent all stored events of a subscription."""
        if subscription != self._next:
            return []
        self.refusals, self.reason = 0, ""
        return self._switch(connection)

    def on_refused(self, subscription: str, reason: str, moment: Moment) -> None:
        """The relay ended a subscription."""
        if subscription == self._current:
            self._current = None
            if self._next is not None:
                return
        else:
            self._next = None
        self.refusals += 1
        self.reason = reason
        delay = min(MAX_RETRY_SECONDS, RETRY_SECONDS * 2 ** min(self.refusals - 1, 10))
        self._due = moment.now + delay

    def tick(self, connection: RelayConnection, moment: Moment) -> list[ConnectionOutput]:
        """Retry what was refused; take as live what the relay did not answer."""
        if self._due is None or moment.now < self._due:
            return []
        if self._next is not None:
            return self._switch(connection)
        return self._open(connection, moment)

    def _open(self, connection: RelayConnection, moment: Moment) -> list[ConnectionOutput]:
        out: list[ConnectionOutput] = []
        if self._next is not None:
            out += connection.unsubscribe(self._next)
            self._next = None
        self._due = None
        if not self._mailboxes:
            if self._current is not None:
                out += connection.unsubscribe(self._current)
                self._current = None
            return out
        self._serial += 1
        self._next = f"{self._prefix}{self._serial}"
        self._due = moment.now + LIVE_SECONDS
        keys = sorted(self._mailboxes)
        since = int(moment.wall) - SINCE_SECONDS
        filters = [
            {
                "kinds": [STORED_WRAP, EPHEMERAL_WRAP],
                "#p": keys[start : start + KEYS_PER_FILTER],
                "since": max(0, since - since % DAY_SECONDS),
            }
            for start in range(0, len(keys), KEYS_PER_FILTER)
        ]
        credentials = self._mailboxes if self._authenticates else {}
        # Open the new one first, then let go of what it replaces.
        return connection.subscribe(self._next, filters, credentials, moment) + out

    def _switch(self, connection: RelayConnection) -> list[ConnectionOutput]:
        old, self._current = self._current, self._next
        self._next = self._due = None
        return connection.unsubscribe(old) if old is not None else []
