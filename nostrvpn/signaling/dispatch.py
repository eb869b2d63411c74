"""Getting messages through one relay: which kind it takes, what waits, what is under way."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

from nostrvpn.machine import Moment
from nostrvpn.nostr.nip59 import EPHEMERAL_WRAP, STORED_WRAP
from nostrvpn.nostr.relay import ConnectionOutput, PublishAnswered, RelayConnection
from nostrvpn.signaling.fitness import Fitness
from nostrvpn.signaling.outbox import Delivery

__all__ = ["Answered", "Dispatch"]

# Messages waiting for a relay that is connecting; a peer costs a few per minute.
MAX_QUEUE = 256


@dataclass(frozen=True, slots=True)
class Answered:
    """This relay's last word on a message."""

    delivery: Delivery
    accepted: bool
    reason: str


class Dispatch:
    """The messages of one relay; each ends in one ``Answered``, also across a reconnect."""

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._queue: deque[Delivery] = deque()
        self._flying: dict[str, list[tuple[Delivery, int]]] = {}
        # Ephemeral wraps sent before the test told whether they arrive; sent stored if they don't.
        self._unproven: deque[Delivery] = deque(maxlen=MAX_QUEUE)

    @property
    def deadline(self) -> float | None:
        """When ``expire`` is due."""
        return min((delivery.expires for delivery in self._queue), default=None)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return not self._queue and not self._flying

    def enqueue(self, delivery: Delivery) -> list[Answered]:
        """Keep a message until the connection is up."""
        if len(self._queue) >= MAX_QUEUE:
            self._counters["queue_overflow"] += 1
            return [Answered(delivery, False, "too many messages wait for this relay")]
        self._queue.append(delivery)
        return []

    def flush(
        self, fitness: Fitness, connection: RelayConnection, moment: Moment
    ) -> list[ConnectionOutput | Answered]:
        """The connection is up: send what waited."""
        waiting, self._queue = self._queue, deque()
        out: list[ConnectionOutput | Answered] = []
        for delivery in waiting:
            out += self.send(delivery, fitness, connection, moment)
        return out

    def send(
        self, delivery: Delivery, fitness: Fitness, connection: RelayConnection, moment: Moment
    ) -> list[ConnectionOutput | Answered]:
        """Send the wrap of the kind this relay is fit for."""
        if fitness is not Fitness.STORED_ONLY and delivery.has_ephemeral:
            if fitness is Fitness.TESTING and delivery.has_stored:
                self._unproven.append(delivery)
            return self._fly(delivery, EPHEMERAL_WRAP, connection, moment)
        if delivery.has_stored:
            return self._fly(delivery, STORED_WRAP, connection, moment)
        return [Answered(delivery, False, "this relay does not pass ephemeral events on")]

    def answered(
        self, answer: PublishAnswered, connection: RelayConnection, moment: Moment
    ) -> list[ConnectionOutput | Answered]:
        """The relay answered, or did not in time; a refused ephemeral wrap is tried stored."""
        out: list[ConnectionOutput | Answered] = []
        for delivery, kind in self._flying.pop(answer.event_id, ()):
            if answer.accepted:
                self._counters["accepted"] += 1
                out.append(Answered(delivery, True, answer.reason))
            elif is_refused_ephemeral(answer) and kind == EPHEMERAL_WRAP and delivery.has_stored:
                out += self._fly(delivery, STORED_WRAP, connection, moment)
            else:
                self._counters["refused"] += 1
                out.append(Answered(delivery, False, answer.reason))
        return out

    def resend_stored(
        self, fitness: Fitness, connection: RelayConnection, moment: Moment
    ) -> list[ConnectionOutput | Answered]:
        """The test is over: what went out ephemeral and may be lost goes out again, stored."""
        unproven, self._unproven = self._unproven, deque(maxlen=MAX_QUEUE)
        out: list[ConnectionOutput | Answered] = []
        if fitness is Fitness.STORED_ONLY:
            for delivery in unproven:
                self._counters["sent_again"] += 1
                out += self._fly(delivery, STORED_WRAP, connection, moment)
        return out

    def disconnected(self) -> None:
        """What was under way waits for the next connection; relays know duplicates by their id."""
        flying, self._flying = self._flying, {}
        again = dict.fromkeys(delivery for flights in flying.values() for delivery, _ in flights)
        self._queue.extendleft(reversed(list(again)))
        self._unproven.clear()

    def expire(self, now: float, reason: str) -> list[Answered]:
        """Give up on what waited too long."""
        if not self._queue or self.deadline is None or self.deadline > now:
            return []
        late = [delivery for delivery in self._queue if delivery.expires <= now]
        self._queue = deque(delivery for delivery in self._queue if delivery.expires > now)
        self._counters["expired"] += len(late)
        return [Answered(delivery, False, f"not connected: {reason}") for delivery in late]

    def give_up(self, reason: str) -> list[Answered]:
        """This relay will not be used: answer for all that waits."""
        gone, self._queue = self._queue, deque()
        return [Answered(delivery, False, reason) for delivery in gone]

    def _fly(
        self, delivery: Delivery, kind: int, connection: RelayConnection, moment: Moment
    ) -> list[ConnectionOutput | Answered]:
        event_id = delivery.wraps[kind].id
        self._flying.setdefault(event_id, []).append((delivery, kind))
        return [*connection.publish(event_id, delivery.frame(kind), moment)]


def is_refused_ephemeral(answer: PublishAnswered) -> bool:
    """Whether a refusal may be about the kind: the relay spoke, and not about load or identity."""
    passing = ("rate-limited:", "auth-required:", "restricted:", "error:")
    return (
        not answer.accepted and answer.elapsed is not None and not answer.reason.startswith(passing)
    )
