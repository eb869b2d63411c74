"""One relay of the pool through its whole life: connecting, tested, in use, lost, tried again."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import assert_never

from nostrvpn.machine import Moment, earliest
from nostrvpn.nostr.nip59 import EPHEMERAL_WRAP, fresh_secret
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
from nostrvpn.signaling.dispatch import Answered, Dispatch, is_refused_ephemeral
from nostrvpn.signaling.fitness import Fitness, FitnessTest
from nostrvpn.signaling.outbox import Delivery
from nostrvpn.signaling.relay_events import RelayStatus
from nostrvpn.signaling.subscription import MailSubscription

__all__ = ["RelaySlot", "SlotOutput", "SlotState"]

# The first retry is fast (a restarted relay, a changed network), then doubling with jitter.
FIRST_RETRY_SECONDS = 0.5
# A connection that lasted this long ends a series of failures.
STABLE_SECONDS = 60.0
# After nonsense the relay is left alone for about this many doublings (8 s) before a new try.
HANGUP_FAILURES = 5
# An unfit relay is tested again after this time, doubling up to the second figure.
RETEST_SECONDS, MAX_RETEST_SECONDS = 60.0, 3600.0
# A relay that leaves so many publishes in a row unanswered is dead behind an open connection.
MAX_SILENCES = 3
# A mailbox subscription refused so often in a row makes the relay useless to us.
MAX_REFUSALS = 3
# After a network change a connection that shows no life within this time is given up: a new one costs
# three round trips, while nobody hears of our new address over a dead one.
PROBE_SECONDS = 1.0
PROBE_SUBSCRIPTION = "p"
# Weight of a new sample in the smoothed round-trip time (as in RFC 6298).
RTT_GAIN = 0.125


class SlotState(Enum):
    """Where a relay's connection is."""

    STANDBY = "standby"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    DOWN = "down"


SlotOutput = SendFrame | EventArrived | Answered | Hangup


class RelaySlot:
    """State of one relay; every method returns, in order, what the pool must do about it."""

    def __init__(self, url: str, *, is_tested: bool = True) -> None:
        self.url = url
        self._is_tested = is_tested
        self.state = SlotState.STANDBY
        self.is_closing = False  # CloseRelay was asked for, RelayClosed has not come yet
        self.fitness = Fitness.TESTING
        self.failures = 0
        self.retry_at: float | None = None
        self.counters: Counter[str] = Counter()
        self.dispatch = Dispatch(self.counters)
        self._reason = ""
        self._rtt: float | None = None
        self._connection: RelayConnection | None = None
        self._test: FitnessTest | None = None
        self._tested = False
        self._retest_at: float | None = None
        self._unfit_times = 0
        self._silences = 0
        self._probe_until: float | None = None
        self._since = 0.0
        self._is_excused = False  # the network changed: a dead connection is not the relay's fault
        self._mail = MailSubscription("m", authenticates=True)
        self._public = MailSubscription("n", authenticates=False)

    @property
    def deadline(self) -> float | None:
        """When ``tick`` is due."""
        retry_at = None if self.is_closing else self.retry_at
        if self._connection is None or self._test is None:
            return earliest(retry_at, self.dispatch.deadline)
        return earliest(
            self._connection.deadline,
            self._test.deadline,
            self._retest_at,
            self._probe_until,
            self._mail.deadline,
            self._public.deadline,
        )

    @property
    def retest_seconds(self) -> float:
        """How long an unfit relay is left alone."""
        doublings = min(max(self._unfit_times - 1, 0), 10)
        return min(MAX_RETEST_SECONDS, RETEST_SECONDS * 2.0**doublings)

    def status(self) -> RelayStatus:
        """Return the relay as the user sees it."""
        state, fitness, reason = self.shown
        rtt = None if self._rtt is None else self._rtt * 1000.0
        return RelayStatus(self.url, state, rtt, fitness, reason, dict(self.counters))

    @property
    def shown(self) -> tuple[str, str, str]:
        """State, fitness and reason: what a change of is worth telling."""
        unfit = self.state is SlotState.CONNECTED and self.fitness is Fitness.UNFIT
        reason = self._reason or self._mail.reason or self._public.reason
        return "unfit" if unfit else self.state.value, self.fitness.value, reason

    def connecting(self) -> None:
        """``OpenRelay`` was asked for."""
        self.state, self.retry_at = SlotState.CONNECTING, None
        self.counters["connects"] += 1

    def opened(self, mailboxes: Mapping[str, bytes], moment: Moment) -> list[SlotOutput]:
        """The connection is up: subscribe, send what waited, start the test."""
        self.state, self._since, self._silences = SlotState.CONNECTED, moment.now, 0
        if self.fitness is Fitness.UNFIT:
            self.fitness = Fitness.TESTING
        self._reason, self._is_excused = "", False
        throwaway = fresh_secret(moment.entropy)
        connection = RelayConnection(self.url, throwaway, self.counters)
        self._connection = connection
        self._mail = MailSubscription("m", authenticates=True)
        self._public = MailSubscription("n", authenticates=False)
        self._start_test(throwaway)
        out = self.listen(mailboxes, moment)
        out += self._digest(self.dispatch.flush(self.fitness, connection, moment), moment)
        return out + self._begin_test(moment) if self._is_tested else out

    def lost(self, reason: str, cap: float, moment: Moment) -> list[SlotOutput]:
        """The connection is gone or never came up: wait (at most ``cap`` seconds), then retry."""
        was_stable = self._connection is not None and moment.now - self._since >= STABLE_SECONDS
        self.failures = 1 if was_stable else self.failures + 1
        self.counters["losses" if self._connection else "failures"] += 1
        if self._is_excused or self._probe_until is not None:
            # Once for each change of network: being opened ends it.
            self.failures, self._is_excused = 0, False
            self.retry_at = moment.now
            self.state, self._reason = SlotState.DOWN, reason
            self._disconnect()
            return [*self.dispatch.expire(moment.now, reason)]
        # The exponent is bounded so that a long outage cannot overflow a float.
        delay = min(cap, FIRST_RETRY_SECONDS * 2.0 ** min(self.failures - 1, 20))
        self.retry_at = moment.now + delay * (0.5 + 0.5 * moment.entropy.fraction())
        self.state, self._reason = SlotState.DOWN, reason
        self._disconnect()
        return [*self.dispatch.expire(moment.now, reason)]

    def stand_by(self, reason: str, until: float | None) -> list[SlotOutput]:
        """The relay is not needed now, or not before ``until``."""
        self.state, self._reason, self.retry_at = SlotState.STANDBY, reason, until
        self._disconnect()
        return [*self.dispatch.give_up(reason)]

    def hung_up(self) -> None:
        """The pool closes the connection because of the relay's behaviour: back off further."""
        self.counters["hangups"] += 1
        self.failures = 0 if self._is_excused else max(self.failures, HANGUP_FAILURES)
        self._since = float("inf")  # however long it lasted, it does not count as stable

    def retry_now(self, moment: Moment) -> list[SlotOutput]:
        """Forget the backoff; ask an open connection for a sign of life."""
        self.failures = 0
        if self.state is SlotState.DOWN:
            self.retry_at = moment.now
        if self._connection is None:
            return []
        self._probe_until = moment.now + PROBE_SECONDS
        # Nothing is addressed to key zero: the answer is EOSE or CLOSED, both signs of life.
        flt = {"kinds": [EPHEMERAL_WRAP], "#p": ["0" * 64], "limit": 1}
        out = self._connection.subscribe(PROBE_SUBSCRIPTION, [flt], {}, moment)
        return self._digest(out, moment)

    def listen(self, mailboxes: Mapping[str, bytes], moment: Moment) -> list[SlotOutput]:
        """Receive from this complete set of mailboxes."""
        connection = self._connection
        if connection is None:
            return []
        private = {key: secret for key, secret in mailboxes.items() if secret}
        public = {key: secret for key, secret in mailboxes.items() if not secret}
        out = self._mail.update(private, connection, moment)
        return self._digest(out + self._public.update(public, connection, moment), moment)

    def text(self, text: str, moment: Moment) -> list[SlotOutput]:
        """One text of the relay arrived."""
        if self._connection is None:
            return []
        self._silences = 0
        out: list[ConnectionOutput] = []
        if self._probe_until is not None:
            self._probe_until = None
            out += self._connection.unsubscribe(PROBE_SUBSCRIPTION)
        return self._digest(self._connection.receive(text, moment) + out, moment)

    def charge(self, code: str, moment: Moment) -> list[SlotOutput]:
        """Count an offence of this relay that the pool found."""
        if self._connection is None:
            return []
        return self._digest(self._connection.charge(code, moment), moment)

    def deliver(self, delivery: Delivery, moment: Moment) -> list[SlotOutput]:
        """Send a message now, or as soon as the connection is up; one ``Answered`` follows."""
        if self._connection is not None:
            sent = self.dispatch.send(delivery, self.fitness, self._connection, moment)
            return self._digest(sent, moment)
        if self.retry_at is not None and self.retry_at > delivery.expires:
            return [Answered(delivery, False, f"not connected: {self._reason}")]
        return [*self.dispatch.enqueue(delivery)]

    def tick(self, moment: Moment) -> list[SlotOutput]:
        """Do what is due, except reconnecting, which is the pool's decision."""
        out: list[SlotOutput] = [*self.dispatch.expire(moment.now, self._reason)]
        connection, test = self._connection, self._test
        if connection is None or test is None:
            return out
        if self._probe_until is not None and self._probe_until <= moment.now:
            self._probe_until, self._is_excused = None, True
            return [*out, Hangup("no sign of life after a network change")]
        more = connection.tick(moment) + test.tick(connection, moment)
        more += self._mail.tick(connection, moment) + self._public.tick(connection, moment)
        out += self._digest(more, moment)
        if self._retest_at is not None and self._retest_at <= moment.now:
            self._start_test(fresh_secret(moment.entropy))
            out += self._begin_test(moment)
        return out

    def _digest(
        self, outputs: Iterable[ConnectionOutput | Answered], moment: Moment
    ) -> list[SlotOutput]:
        """Handle what concerns only this slot, pass the rest on, in order."""
        connection, test = self._connection, self._test
        if connection is None or test is None:
            return []
        out: list[SlotOutput] = []
        todo = deque(outputs)
        while todo or (more := self._judge(connection, test, moment)):
            if not todo:
                todo.extend(more)
            output = todo.popleft()
            if not isinstance(output, Answered) and test.owns(output):
                todo.extendleft(reversed(test.handle(output, connection, moment)))
                continue
            match output:
                case SendFrame() | EventArrived() | Answered() | Hangup():
                    out.append(output)
                case PublishAnswered():
                    todo.extend(self._on_answer(output, connection, moment))
                case SubscriptionLive(subscription):
                    todo.extend(self._mail.on_live(subscription, connection))
                    todo.extend(self._public.on_live(subscription, connection))
                case SubscriptionRefused(subscription, reason):
                    for mail in (self._mail, self._public):
                        if mail.owns(subscription):
                            mail.on_refused(subscription, reason, moment)
                case _:
                    assert_never(output)
        return out

    def _on_answer(
        self, answer: PublishAnswered, connection: RelayConnection, moment: Moment
    ) -> list[ConnectionOutput | Answered]:
        out: list[ConnectionOutput | Answered] = []
        if answer.elapsed is not None:
            self._sample(answer.elapsed)
        else:
            self._silences += 1
            if self._silences >= MAX_SILENCES:
                out.append(Hangup("does not answer"))
        if is_refused_ephemeral(answer) and self.fitness is Fitness.FIT and self._tested:
            # It changed its mind since the test: find out soon, but not with every message.
            self._retest_at = self._retest_at or moment.now + RETEST_SECONDS
        return self.dispatch.answered(answer, connection, moment) + out

    def _judge(
        self, connection: RelayConnection, test: FitnessTest, moment: Moment
    ) -> list[ConnectionOutput | Answered]:
        """Draw the conclusion from a finished test or from refused mailboxes, once."""
        is_new = not self._tested and test.result is not Fitness.TESTING
        if is_new:
            self._tested = True
            if test.rtt is not None:
                self._sample(test.rtt)
            self.fitness, self._reason = test.result, test.reason
            if self.fitness is Fitness.UNFIT:
                self._unfit(test.reason, moment)
        if self._mail.refusals >= MAX_REFUSALS and self.fitness is not Fitness.UNFIT:
            self._unfit(f"does not serve our mailboxes: {self._mail.reason}", moment)
        if not is_new:
            return []
        if self.fitness is not Fitness.UNFIT:
            self._unfit_times = 0
        return self.dispatch.resend_stored(test.result, connection, moment)

    def _unfit(self, reason: str, moment: Moment) -> None:
        self.fitness, self._reason = Fitness.UNFIT, reason
        self._unfit_times += 1
        self._retest_at = moment.now + self.retest_seconds
        self.counters["unfit"] += 1

    def _start_test(self, throwaway: bytes) -> None:
        self._test, self._tested, self._retest_at = FitnessTest(throwaway), False, None

    def _begin_test(self, moment: Moment) -> list[SlotOutput]:
        if self._connection is None or self._test is None:
            return []
        return self._digest(self._test.begin(self._connection, moment), moment)

    def _sample(self, seconds: float) -> None:
        self._rtt = seconds if self._rtt is None else self._rtt + RTT_GAIN * (seconds - self._rtt)

    def _disconnect(self) -> None:
        self._connection = self._test = self._retest_at = self._probe_until = None
        self.dispatch.disconnected()
