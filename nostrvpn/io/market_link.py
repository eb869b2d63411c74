"""One relay as the market uses it: what is asked of it, and what it may cost while it answers.

A link connects when something is wanted, retries later and later while keys are listened for, and lets
go when nothing is wanted any more. Whatever is asked ends in bounded time and memory: a relay that
floods, forges, sends what nobody asked for, or never says that it is done, is left.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, assert_never

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.io.relays import RelaySockets
from nostrvpn.machine import Moment, earliest
from nostrvpn.nostr.event import Event, verify_event
from nostrvpn.nostr.filters import Filter, matches
from nostrvpn.nostr.nip59 import fresh_secret
from nostrvpn.nostr.relay import (
    ConnectionOutput,
    EventArrived,
    Hangup,
    PublishAnswered,
    RelayConnection,
    SendFrame,
    SubscriptionLive,
    SubscriptionRefused,
)
from nostrvpn.signaling.subscription import MailSubscription

__all__ = ["Fetch", "MarketLink"]

# What one relay may bring for one question: events, and the characters of their frames.
MAX_EVENTS: Final = 3000
MAX_BYTES: Final = 2 * 1024 * 1024
# Publishes that wait for the connection.
MAX_WAITING: Final = 64
FIRST_RETRY_S: Final = 0.5
MAX_RETRY_S: Final = 60.0
# A relay that broke the rules is left alone so long, whatever is wanted.
PENALTY_S: Final = 30.0
# Whoever asks again soon finds the connection still there.
IDLE_S: Final = 20.0
STABLE_S: Final = 60.0
# A question is asked of a relay that just failed, but not more often.
AGAIN_S: Final = 1.0


@dataclass(slots=True)
class Fetch:
    """One question to several relays. ``found``: genuine events by id, and who has them."""

    filters: Sequence[Filter]
    found: dict[str, tuple[Event, set[str]]] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)  # relays that did not answer yet
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def finished(self, url: str) -> None:
        """A relay has said all that it will."""
        self.waiting.discard(url)
        self.changed.set()


@dataclass(slots=True)
class _Question:
    fetch: Fetch
    events: int = 0
    size: int = 0


class MarketLink:
    """``name``: ``URL#LANE``; ``heard``: takes what comes for the keys, and says what is wrong with it
    (an error code) or None."""

    def __init__(
        self, name: str, sockets: RelaySockets, heard: Callable[[Event, str], str | None]
    ) -> None:
        self.name = name
        self.url = name.partition("#")[0]
        self.counters: Counter[str] = Counter()
        self.reason = ""
        self._sockets, self._heard = sockets, heard
        self._connection: RelayConnection | None = None
        self._is_opening = self._is_closing = False
        self._mail = MailSubscription("m", authenticates=True)
        self._keys: Mapping[str, bytes] = {}
        self._questions: dict[str, _Question] = {}
        self._publishes: dict[str, tuple[str, list[asyncio.Future[bool]]]] = {}
        self._serial = 0
        self._failures = 0
        self._tried_at = self._opened_at = float("-inf")
        self._retry_at: float | None = None
        self._blocked_until = float("-inf")
        self._idle_at: float | None = None
        self._frame_size = 0
        self._late = 0  # characters that came for the last question after its end

    @property
    def is_open(self) -> bool:
        """Whether the relay is connected."""
        return self._connection is not None

    @property
    def is_wanted(self) -> bool:
        """Whether anything is asked of the relay."""
        return bool(self._keys or self._questions or self._publishes)

    @property
    def is_quiet(self) -> bool:
        """Whether it is not connected, and nothing is asked of it."""
        is_at_rest = not self._is_opening and not self._is_closing and self._connection is None
        return is_at_rest and not self.is_wanted

    @property
    def deadline(self) -> float | None:
        """When ``tick`` is due."""
        if self._connection is None:
            return None if self._is_opening or self._is_closing else self._retry_at
        return earliest(self._connection.deadline, self._mail.deadline, self._idle_at)

    # -- what is wanted -----------------------------------------------------------------------

    def publish(self, event_id: str, frame: str, moment: Moment) -> asyncio.Future[bool]:
        """Send an event; the future tells whether the relay took it."""
        future = asyncio.get_running_loop().create_future()
        known = self._publishes.get(event_id)
        if known is not None:
            known[1].append(future)
        elif len(self._publishes) >= MAX_WAITING or self._is_left(moment):
            future.set_result(False)
        else:
            self._publishes[event_id] = frame, [future]
            if self._connection is not None:
                self._digest(self._connection.publish(event_id, frame, moment), moment)
        self._wake(moment)
        return future

    def ask(self, fetch: Fetch, moment: Moment) -> None:
        """Ask a question; ``fetch.finished`` follows, or ``forget`` ends it."""
        if self._is_left(moment):
            fetch.finished(self.url)
            return
        self._serial += 1
        name = f"f{self._serial}"
        self._questions[name] = _Question(fetch)
        if self._connection is not None:
            self._digest(self._connection.subscribe(name, fetch.filters, {}, moment), moment)
        self._wake(moment)

    def _is_left(self, moment: Moment) -> bool:
        return moment.now < self._blocked_until

    def forget(self, fetch: Fetch, moment: Moment) -> None:
        """Expect no more answers to a question."""
        for name in [name for name, one in self._questions.items() if one.fetch is fetch]:
            self._end_question(name, moment)
        self._wake(moment)

    def listen(self, keys: Mapping[str, bytes], moment: Moment) -> None:
        """Receive gift wraps for this complete set of keys (public key -> secret)."""
        self._keys = dict(keys)
        if self._connection is not None:
            self._digest(self._mail.update(self._keys, self._connection, moment), moment)
        self._wake(moment)

    def retry_now(self, moment: Moment) -> None:
        """Forget what failed: the network changed."""
        self._failures, self._tried_at = 0, float("-inf")
        self._retry_at = moment.now if self.is_wanted else None
        self._wake(moment)

    def close(self) -> None:
        """End the connection; what is wanted stays wanted."""
        if (self._is_opening or self._connection is not None) and not self._is_closing:
            self._is_closing = True
            self._sockets.close(self.name)

    # -- what happens -------------------------------------------------------------------------

    def opened(self, moment: Moment) -> None:
        """The connection is up: ask for everything that is wanted."""
        if self._is_closing:
            return
        self._is_opening, self._retry_at, self.reason = False, None, ""
        self._opened_at = moment.now
        connection = RelayConnection(self.url, fresh_secret(moment.entropy), self.counters)
        self._connection = connection
        self._mail = MailSubscription("m", authenticates=True)
        self._digest(self._mail.update(self._keys, connection, moment), moment)
        for event_id, (frame, _) in list(self._publishes.items()):
            self._digest(connection.publish(event_id, frame, moment), moment)
        for name, one in list(self._questions.items()):
            self._digest(connection.subscribe(name, one.fetch.filters, {}, moment), moment)
        self._wake(moment)

    def text(self, text: str, moment: Moment) -> None:
        """One text of the relay arrived."""
        if self._connection is not None and not self._is_closing:
            self._frame_size = len(text)
            self._digest(self._connection.receive(text, moment), moment)
            self._wake(moment)

    def closed(self, reason: str, moment: Moment) -> None:
        """The connection is gone, or never came up: give up what waits, keep listening."""
        was_stable = self._connection is not None and moment.now - self._opened_at >= STABLE_S
        self._connection, self._is_opening, self._idle_at = None, False, None
        if self._is_closing and self._blocked_until <= moment.now:
            # Let go while idle: what was asked meanwhile is asked of the next connection.
            self._is_closing, self._failures, self._retry_at = False, 0, None
            return
        self.reason = self.reason if self._is_closing else reason
        self._is_closing = False
        self._failures = 1 if was_stable else self._failures + 1
        self.counters["losses"] += 1
        self.give_up()
        delay = min(MAX_RETRY_S, FIRST_RETRY_S * 2.0 ** min(self._failures - 1, 20))
        at = moment.now + delay * (0.5 + 0.5 * moment.entropy.fraction())
        self._retry_at = max(at, self._blocked_until) if self._keys else None

    def give_up(self) -> None:
        """Tell whoever waits that nothing comes."""
        for name in list(self._questions):
            self._questions.pop(name).fetch.finished(self.url)
        for event_id in list(self._publishes):
            self._answer(event_id, accepted=False)

    def tick(self, moment: Moment) -> None:
        """Do what is due."""
        connection = self._connection
        if connection is not None:
            self._digest(connection.tick(moment), moment)
            self._digest(self._mail.tick(connection, moment), moment)
            if self._idle_at is not None and self._idle_at <= moment.now:
                self.close()
        self._wake(moment)

    def _wake(self, moment: Moment) -> None:
        """Connect if something is wanted and may be tried, let go in a while if nothing is."""
        if self._connection is not None:
            if self.is_wanted:
                self._idle_at = None
            elif self._idle_at is None:
                self._idle_at = moment.now + IDLE_S
            return
        if not self.is_wanted or self._is_opening or self._is_closing:
            return
        soonest = max(self._blocked_until, self._tried_at + AGAIN_S)
        is_asked = bool(self._questions or self._publishes)
        due = soonest if is_asked or self._retry_at is None else max(soonest, self._retry_at)
        if due > moment.now:
            self._retry_at = due
            return
        self._tried_at, self._retry_at, self._is_opening = moment.now, None, True
        self.counters["connects"] += 1
        self._sockets.open(self.name)

    # -- what the relay says ------------------------------------------------------------------

    def _digest(self, outputs: Sequence[ConnectionOutput], moment: Moment) -> None:
        for output in outputs:
            match output:
                case SendFrame(text):
                    self._sockets.send(self.name, text)
                case EventArrived(subscription, event):
                    self._arrived(subscription, event, moment)
                case PublishAnswered(event_id, accepted, reason, _):
                    self.reason = self.reason if accepted else reason
                    self._answer(event_id, accepted=accepted)
                case SubscriptionLive(subscription):
                    self._end_question(subscription, moment)
                    if self._connection is not None:
                        self._digest(self._mail.on_live(subscription, self._connection), moment)
                case SubscriptionRefused(subscription, reason):
                    self.reason = reason
                    self._end_question(subscription, moment)
                    if self._mail.owns(subscription):
                        self._mail.on_refused(subscription, reason, moment)
                case Hangup(reason):
                    self._leave(reason, moment)
                case _:
                    assert_never(output)

    def _leave(self, reason: str, moment: Moment) -> None:
        self.reason = reason
        self.counters["hangups"] += 1
        self._blocked_until = moment.now + PENALTY_S
        self.close()

    def _arrived(self, subscription: str, event: Event, moment: Moment) -> None:
        question = self._questions.get(subscription)
        if question is not None:
            offence = self._found(question, event)
            if question.events > MAX_EVENTS or question.size > MAX_BYTES:
                self.counters["too_much"] += 1
                self._end_question(subscription, moment)
        elif subscription.startswith("f"):
            # Sent before the relay heard that we are done. Without end it is a flood all the same.
            self._late += self._frame_size
            if self._late > MAX_BYTES and not self._is_closing:
                self._leave("goes on and on", moment)
            return
        else:
            offence = self._heard(event, self.url)
        if offence is not None and self._connection is not None:
            self._digest(self._connection.charge(offence, moment), moment)

    def _found(self, question: _Question, event: Event) -> str | None:
        """Take one answer; return the offence (an error code) if it is none."""
        question.events += 1
        question.size += self._frame_size
        if not matches(question.fetch.filters, event):
            return "unasked"
        known = question.fetch.found.get(event.id)
        if known is not None:
            is_again = self.url in known[1]
            known[1].add(self.url)
            return "duplicate" if is_again else None
        try:
            verify_event(event)
        except PeerMisbehaved as exc:
            return exc.code
        question.fetch.found[event.id] = event, {self.url}
        return None

    def _end_question(self, name: str, moment: Moment) -> None:
        question = self._questions.pop(name, None)
        if question is None:
            return
        self._late = 0
        if self._connection is not None:
            self._digest(self._connection.unsubscribe(name), moment)
        question.fetch.finished(self.url)

    def _answer(self, event_id: str, *, accepted: bool) -> None:
        _, futures = self._publishes.pop(event_id, ("", []))
        for future in futures:
            if not future.done():
                future.set_result(accepted)
