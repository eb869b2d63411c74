"""One connection to one relay, as a machine without I/O.

It owns what is particular to a connection: which subscriptions are open, which publishes wait for
an OK, who has answered the relay's challenge (NIP-42), how much nonsense the relay may still send.
The caller hands in every text that arrives and carries out the outputs in order. It is used for one
connection only: after a reconnect there is a new one.

Authentication. A challenge is answered with every key a subscription reads for, at once when the
challenge or the subscription appears, and the REQ follows without waiting for the OK: a relay
handles frames in order, so that costs no round trip. A relay that closes the subscription
nevertheless gets it again once the answers are in. Publishing, where it needs AUTH, uses a
throwaway key.

Error contract: no method raises for what a relay sends; it is counted in ``counters`` and charged
to the budget, and an exhausted budget gives ``Hangup``.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment, earliest
from nostrvpn.nostr.budget import Budget
from nostrvpn.nostr.event import Event, public_key, sign_event
from nostrvpn.nostr.frames import (
    AuthFrame,
    ClosedFrame,
    EoseFrame,
    EventFrame,
    NoticeFrame,
    OkFrame,
    parse_frame,
    render_auth,
    render_close,
    render_req,
)
from nostrvpn.nostr.nip59 import blurred

__all__ = [
    "ConnectionOutput",
    "EventArrived",
    "Hangup",
    "PublishAnswered",
    "RelayConnection",
    "SendFrame",
    "SubscriptionLive",
    "SubscriptionRefused",
]

# NIP-42: the kind of the event that answers a challenge.
AUTH_KIND = 22242

# An OK takes one round trip and the relay's database; slow public relays need two to three seconds.
ANSWER_SECONDS = 5.0
# Far more than a node has in flight (one message per peer and retry), still under 100 kB.
MAX_PENDING = 256
# How many closed subscriptions are remembered; more than are ever replaced within a round trip.
MAX_ENDED = 8
# How often a relay may answer one REQ with "auth-required" after all its keys were accepted.
MAX_AUTH_RETRIES = 2


@dataclass(frozen=True, slots=True)
class SendFrame:
    """Send this text to the relay."""

    text: str


@dataclass(frozen=True, slots=True)
class EventArrived:
    """An event came for an open subscription; form checked, signature not."""

    subscription: str
    event: Event


@dataclass(frozen=True, slots=True)
class PublishAnswered:
    """The relay answered a publish, or did not in time; ``elapsed`` is seconds, None if silent."""

    event_id: str
    accepted: bool
    reason: str
    elapsed: float | None


@dataclass(frozen=True, slots=True)
class SubscriptionLive:
    """All stored events of a subscription were sent; live ones follow."""

    subscription: str


@dataclass(frozen=True, slots=True)
class SubscriptionRefused:
    """The relay ended a subscription, or would not open it; it is forgotten here."""

    subscription: str
    reason: str


@dataclass(frozen=True, slots=True)
class Hangup:
    """The relay used up its budget for nonsense: close the connection."""

    reason: str


ConnectionOutput = (
    SendFrame | EventArrived | PublishAnswered | SubscriptionLive | SubscriptionRefused | Hangup
)


@dataclass(slots=True)
class _Subscription:
    filters: Sequence[Mapping[str, object]]
    keys: frozenset[str]
    # The keys that were authenticated, or whose answer was under way, when the REQ was last sent.
    covered: frozenset[str] = frozenset()
    blocked_until: float | None = None
    auth_retries: int = 0
    is_live: bool = False


@dataclass(slots=True)
class _Publish:
    frame: str
    sent_at: float
    deadline: float
    blocked: bool = False
    authenticated: bool = False
    reason: str = f"no answer within {ANSWER_SECONDS:g} s"


@dataclass(slots=True)
class _Authentication:
    challenge: str = ""
    accepted: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    # The id of each answer under way -> (its key, when we stop waiting).
    pending: dict[str, tuple[str, float]] = field(default_factory=dict)

    def under_way(self) -> set[str]:
        return {key for key, _ in self.pending.values()}


class RelayConnection:
    """The client's side of one open relay connection (NIP-01, NIP-42)."""

    def __init__(self, url: str, throwaway: bytes, counters: Counter[str]) -> None:
        """``throwaway`` is the secret that answers AUTH for publishing; ``counters`` is shared."""
        self.url = url
        self.counters = counters
        self._secrets: dict[str, bytes] = {}
        self._throwaway = public_key(throwaway)
        self._throwaway_secret = throwaway
        self._subscriptions: dict[str, _Subscription] = {}
        # Events sent before the relay saw our CLOSE are still under way and must not be lost.
        self._ended: deque[str] = deque(maxlen=MAX_ENDED)
        self._publishes: dict[str, _Publish] = {}
        self._auth = _Authentication()
        self._budget = Budget()
        self._hung_up = False

    @property
    def deadline(self) -> float | None:
        """When ``tick`` is due."""
        waits = [publish.deadline for publish in self._publishes.values()]
        waits += [until for _, until in self._auth.pending.values()]
        return earliest(*waits, *(sub.blocked_until for sub in self._subscriptions.values()))

    @property
    def is_full(self) -> bool:
        """Whether as many publishes wait for an answer as may."""
        return len(self._publishes) >= MAX_PENDING

    def subscribe(
        self,
        subscription: str,
        filters: Sequence[Mapping[str, object]],
        credentials: Mapping[str, bytes],
        moment: Moment,
    ) -> list[ConnectionOutput]:
        """Open a subscription; ``credentials`` (public key -> secret) may answer AUTH for it."""
        sub = _Subscription(filters, frozenset(credentials))
        self._subscriptions[subscription] = sub
        self._secrets.update(credentials)
        out: list[ConnectionOutput] = []
        if self._auth.challenge:
            out += self._authenticate(sorted(sub.keys), moment)
        out.append(self._request(subscription, sub))
        return out

    def unsubscribe(self, subscription: str) -> list[ConnectionOutput]:
        """Close a subscription; nothing if it is not open."""
        if self._subscriptions.pop(subscription, None) is None:
            return []
        self._ended.append(subscription)
        wanted: set[str] = set().union(*(sub.keys for sub in self._subscriptions.values()))
        self._secrets = {key: self._secrets[key] for key in self._secrets if key in wanted}
        return [SendFrame(render_close(subscription))]

    def publish(self, event_id: str, frame: str, moment: Moment) -> list[ConnectionOutput]:
        """Send an EVENT frame; one ``PublishAnswered`` follows (5 s; 15 s with AUTH).

        A second publish of an event still under way joins the first.
        """
        if event_id in self._publishes:
            return []
        if self.is_full:
            return [PublishAnswered(event_id, False, "too many unanswered events", None)]
        self._publishes[event_id] = _Publish(frame, moment.now, moment.now + ANSWER_SECONDS)
        return [SendFrame(frame)]

    def receive(self, text: str, moment: Moment) -> list[ConnectionOutput]:
        """Take one text message of the relay."""
        if self._hung_up:
            return []
        try:
            frame = parse_frame(text)
        except PeerMisbehaved as exc:
            return self.charge(exc.code, moment)
        match frame:
            case EventFrame(subscription, event):
                known = subscription in self._subscriptions or subscription in self._ended
                if not known:
                    return self.charge("unasked", moment)
                return [EventArrived(subscription, event)]
            case OkFrame():
                return self._on_ok(frame, moment)
            case EoseFrame(subscription):
                sub = self._subscriptions.get(subscription)
                if sub is None or sub.is_live:
                    return self.charge("unasked", moment)
                sub.is_live = True
                return [SubscriptionLive(subscription)]
            case ClosedFrame():
                return self._on_closed(frame, moment)
            case NoticeFrame():
                return self.charge("notice", moment)
            case AuthFrame(challenge):
                return self._on_challenge(challenge, moment)
            case _:
                assert_never(frame)

    def charge(self, code: str, moment: Moment) -> list[ConnectionOutput]:
        """Count one offence (an error code) and take its cost from the relay's budget."""
        self.counters[code] += 1
        if self._budget.spend(code, moment.now) or self._hung_up:
            return []
        self._hung_up = True
        return [Hangup(f"sent too much that breaks the rules, last: {code}")]

    def tick(self, moment: Moment) -> list[ConnectionOutput]:
        """Give up on what waited too long."""
        out: list[ConnectionOutput] = []
        late = [key for key, wait in self._auth.pending.items() if wait[1] <= moment.now]
        for key in late:
            pubkey, _ = self._auth.pending.pop(key)
            self._auth.failed[pubkey] = "no answer to AUTH"
        if late:
            out += self._resume(moment)
        for subscription, sub in list(self._subscriptions.items()):
            if sub.blocked_until is not None and sub.blocked_until <= moment.now:
                out.append(self._refuse(subscription, "auth-required: but no challenge came"))
        for event_id, publish in list(self._publishes.items()):
            if publish.deadline <= moment.now:
                del self._publishes[event_id]
                self.counters["publish_timeout"] += 1
                out.append(PublishAnswered(event_id, False, publish.reason, None))
        return out

    def _request(self, subscription: str, sub: _Subscription) -> SendFrame:
        sub.covered = frozenset(sub.keys & (self._auth.accepted | self._auth.under_way()))
        sub.blocked_until, sub.is_live = None, False
        return SendFrame(render_req(subscription, sub.filters))

    def _refuse(self, subscription: str, reason: str) -> SubscriptionRefused:
        del self._subscriptions[subscription]
        self.counters["subscription_refused"] += 1
        return SubscriptionRefused(subscription, reason)

    def _on_ok(self, frame: OkFrame, moment: Moment) -> list[ConnectionOutput]:
        answer = self._auth.pending.pop(frame.event_id, None)
        if answer is not None:
            if frame.accepted:
                self._auth.accepted.add(answer[0])
            else:
                self._auth.failed[answer[0]] = frame.reason
                self.counters["auth_refused"] += 1
            return self._resume(moment)
        publish = self._publishes.get(frame.event_id)
        if publish is None:
            # Usually the late answer to something we gave up on.
            return self.charge("unasked", moment)
        # A relay that has the event already did its part, whatever it calls it.
        accepted = frame.accepted or frame.reason.startswith("duplicate:")
        if not accepted and self._may_authenticate(publish, frame.reason):
            publish.blocked, publish.reason = True, frame.reason
            publish.deadline = moment.now + ANSWER_SECONDS
            if not self._auth.challenge:
                return []
            out = self._authenticate([self._throwaway], moment)
            return out + self._resume(moment)
        del self._publishes[frame.event_id]
        elapsed = max(0.0, moment.now - publish.sent_at)
        return [PublishAnswered(frame.event_id, accepted, frame.reason, elapsed)]

    def _may_authenticate(self, publish: _Publish, reason: str) -> bool:
        return (
            reason.startswith("auth-required:")
            and not publish.authenticated
            and self._throwaway not in self._auth.failed
        )

    def _on_closed(self, frame: ClosedFrame, moment: Moment) -> list[ConnectionOutput]:
        sub = self._subscriptions.get(frame.subscription)
        if sub is None:
            return self.charge("unasked", moment)
        wants_auth = frame.reason.startswith(("auth-required:", "restricted:"))
        failed = sorted(sub.keys & self._auth.failed.keys())
        # Some relays take one answer per challenge, and one is enough for them.
        if sub.keys & (self._auth.accepted | self._auth.under_way()):
            failed = []
        if not wants_auth or not sub.keys or sub.auth_retries >= MAX_AUTH_RETRIES:
            return [self._refuse(frame.subscription, frame.reason or "no reason given")]
        if failed:
            why = f"{frame.reason} (AUTH refused: {self._auth.failed[failed[0]]})"
            return [self._refuse(frame.subscription, why)]
        sub.auth_retries += 1
        # Two answers may follow each other (a slow AUTH, then the REQ); hence twice the time.
        sub.blocked_until = moment.now + 2 * ANSWER_SECONDS
        if not self._auth.challenge:
            return []
        if not sub.keys & self._auth.under_way():
            # Whatever was accepted did not do, perhaps because the challenge is another by now.
            self._auth.accepted -= sub.keys
        out = self._authenticate(sorted(sub.keys), moment)
        return out + self._resume(moment)

    def _on_challenge(self, challenge: str, moment: Moment) -> list[ConnectionOutput]:
        out = self.charge("challenge", moment)
        if out:
            return out
        if challenge != self._auth.challenge:
            # Some relays send one with every refusal; answers to the last one may still count.
            self._auth.challenge = challenge
            self._auth.failed.clear()
        wanted: set[str] = set().union(*(sub.keys for sub in self._subscriptions.values()))
        if any(publish.blocked for publish in self._publishes.values()):
            wanted.add(self._throwaway)
        return self._authenticate(sorted(wanted), moment)

    def _authenticate(self, keys: Iterable[str], moment: Moment) -> list[ConnectionOutput]:
        """Answer the challenge with each key that has not answered it."""
        known = self._auth.accepted | self._auth.under_way() | self._auth.failed.keys()
        out: list[ConnectionOutput] = []
        for key in keys:
            if key in known:
                continue
            own = key == self._throwaway
            answer = sign_event(
                self._throwaway_secret if own else self._secrets[key],
                kind=AUTH_KIND,
                tags=(("relay", self.url), ("challenge", self._auth.challenge)),
                content="",
                created_at=blurred(moment.wall, moment.entropy),
                aux=moment.entropy.take(32),
            )
            self._auth.pending[answer.id] = (key, moment.now + ANSWER_SECONDS)
            self.counters["auth_answered"] += 1
            out.append(SendFrame(render_auth(answer)))
        return out

    def _resume(self, moment: Moment) -> list[ConnectionOutput]:
        """Send again what waited for an answer to AUTH, or what a relay may now answer better."""
        under_way = self._auth.under_way()
        out: list[ConnectionOutput] = []
        for subscription, sub in self._subscriptions.items():
            if sub.keys & under_way:
                continue
            # Some relays do not refuse, they serve an unauthenticated reader nothing: ask again.
            gained = sub.keys & self._auth.accepted > sub.covered
            if gained or sub.blocked_until is not None:
                out.append(self._request(subscription, sub))
        if self._throwaway in under_way:
            return out
        for publish in self._publishes.values():
            if publish.blocked:
                publish.blocked = False
                publish.authenticated = True
                publish.deadline = moment.now + ANSWER_SECONDS
                out.append(SendFrame(publish.frame))
        return out
