"""The fitness test of a relay: does it deliver a wrap to somebody who listens?

Relays differ: some refuse ephemeral kinds, some accept and lose them, some serve wraps only to
their authenticated reader. So each new connection tries it out with a throwaway mailbox: subscribe,
publish an ephemeral wrap, see it come back; if not, the same with a stored wrap that expires soon.
Real messages do not wait for the result.
"""

from __future__ import annotations

from enum import Enum

from nostrvpn.machine import Moment
from nostrvpn.nostr import nip44
from nostrvpn.nostr.event import Event, public_key, sign_event
from nostrvpn.nostr.frames import render_event
from nostrvpn.nostr.nip59 import EPHEMERAL_WRAP, STORED_WRAP, blurred, fresh_secret
from nostrvpn.nostr.relay import (
    ConnectionOutput,
    EventArrived,
    PublishAnswered,
    RelayConnection,
    SubscriptionLive,
    SubscriptionRefused,
)

__all__ = ["TEST_SUBSCRIPTION", "Fitness", "FitnessTest"]

TEST_SUBSCRIPTION = "t"
# Per step. A relay slower than this would make a poor introducer; it is used only if none is left.
STEP_SECONDS = 3.0
# A stored test wrap is of no use after the test; NIP-40 lets the relay delete it.
EXPIRES_SECONDS = 60


class Fitness(Enum):
    """What a relay is good for."""

    TESTING = "testing"
    FIT = "fit"
    STORED_ONLY = "stored-only"
    UNFIT = "unfit"


class FitnessTest:
    """One test over one connection; feed it every output it ``owns`` and its ``deadline``."""

    def __init__(self, secret: bytes) -> None:
        """``secret`` is the throwaway mailbox's."""
        self.result = Fitness.TESTING
        self.reason = ""
        self.rtt: float | None = None
        self._secret = secret
        self._mailbox = public_key(secret)
        self._sent: Event | None = None
        self._sent_at = 0.0
        self._kind: int | None = None
        self._until: float | None = None

    @property
    def deadline(self) -> float | None:
        """When ``tick`` is due."""
        return self._until

    def begin(self, connection: RelayConnection, moment: Moment) -> list[ConnectionOutput]:
        """Subscribe to the throwaway mailbox."""
        self._until = moment.now + STEP_SECONDS
        flt = {"kinds": [STORED_WRAP, EPHEMERAL_WRAP], "#p": [self._mailbox]}
        return connection.subscribe(TEST_SUBSCRIPTION, [flt], {self._mailbox: self._secret}, moment)

    def owns(self, output: ConnectionOutput) -> bool:
        """Whether an output of the connection belongs to this test."""
        match output:
            case EventArrived(subscription) | SubscriptionLive(subscription):
                return subscription == TEST_SUBSCRIPTION
            case SubscriptionRefused(subscription):
                return subscription == TEST_SUBSCRIPTION
            case PublishAnswered(event_id):
                return self._sent is not None and event_id == self._sent.id
            case _:
                return False

    def handle(
        self, output: ConnectionOutput, connection: RelayConnection, moment: Moment
    ) -> list[ConnectionOutput]:
        """Take one output this test owns."""
        if self.result is not Fitness.TESTING:
            again = isinstance(output, EventArrived)
            return connection.charge("unasked", moment) if again else []
        match output:
            case SubscriptionLive() if self._kind is None:
                return self._send(EPHEMERAL_WRAP, connection, moment)
            case SubscriptionRefused(_, reason):
                return self._finish(Fitness.UNFIT, f"refused to be read: {reason}", connection)
            case EventArrived(_, event) if event == self._sent:
                self.rtt = self.rtt or max(0.0, moment.now - self._sent_at)
                good = Fitness.FIT if event.kind == EPHEMERAL_WRAP else Fitness.STORED_ONLY
                return self._finish(good, self.reason, connection)
            case EventArrived():
                return connection.charge("unasked", moment)
            case PublishAnswered(_, True, _, elapsed):
                self.rtt = self.rtt or elapsed
                return []
            case PublishAnswered(_, False, reason):
                return self._failed(f"refused {self._name}: {reason}", connection, moment)
            case _:
                return []

    def tick(self, connection: RelayConnection, moment: Moment) -> list[ConnectionOutput]:
        """Go on without what did not come in time."""
        if self._until is None or moment.now < self._until:
            return []
        if self._kind is None:  # some relays never say EOSE
            return self._send(EPHEMERAL_WRAP, connection, moment)
        return self._failed(
            f"did not deliver {self._name} within {STEP_SECONDS:g} s", connection, moment
        )

    @property
    def _name(self) -> str:
        return "ephemeral events" if self._kind == EPHEMERAL_WRAP else "stored events"

    def _failed(
        self, why: str, connection: RelayConnection, moment: Moment
    ) -> list[ConnectionOutput]:
        self.reason = f"{self.reason}; {why}" if self.reason else why
        if self._kind == EPHEMERAL_WRAP:
            return self._send(STORED_WRAP, connection, moment)
        return self._finish(Fitness.UNFIT, self.reason, connection)

    def _finish(
        self, result: Fitness, reason: str, connection: RelayConnection
    ) -> list[ConnectionOutput]:
        self.result, self.reason, self._until = result, reason, None
        return connection.unsubscribe(TEST_SUBSCRIPTION)

    def _send(
        self, kind: int, connection: RelayConnection, moment: Moment
    ) -> list[ConnectionOutput]:
        entropy = moment.entropy
        # It must look like any other wrap, but nobody will open it: a random key will do.
        content = nip44.encrypt(entropy.take(32), entropy.take(300), entropy.take(32))
        dated = blurred(moment.wall, entropy)
        tags: tuple[tuple[str, ...], ...] = (("p", self._mailbox),)
        if kind == STORED_WRAP:
            tags = (*tags, ("expiration", str(dated + EXPIRES_SECONDS)))
        self._sent = sign_event(
            fresh_secret(entropy),
            kind=kind,
            tags=tags,
            content=content,
            created_at=dated,
            aux=entropy.take(32),
        )
        self._kind, self._sent_at = kind, moment.now
        self._until = moment.now + STEP_SECONDS
        return connection.publish(self._sent.id, render_event(self._sent), moment)
