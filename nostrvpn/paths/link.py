"""One peer: from its first description to a path that carries data, and back when the path dies.

How two nodes meet is drawn in the package's docstring. A session (credentials) lives until a round
is started over: the path was lost, a round failed, a user asked. The tunnel's endpoint is only ever
replaced by one that was just proven.
"""

from __future__ import annotations

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment, earliest
from nostrvpn.paths.announcer import Announcer
from nostrvpn.paths.budgets import Budget
from nostrvpn.paths.candidates import PathKind, Surroundings, refusal
from nostrvpn.paths.checks import CheckList, Credentials, Pair, PairState
from nostrvpn.paths.description import Description
from nostrvpn.paths.events import (
    AddPeer,
    Describe,
    PathEffect,
    Remember,
    SendDatagram,
    Trace,
    TunnelObserved,
)
from nostrvpn.paths.patience import ANSWER_GAP, FALLBACK_AGE, HOLD_UNANSWERED, ROUND_GAP, retry_gap
from nostrvpn.paths.record import Record
from nostrvpn.paths.remote import News, RemoteSide
from nostrvpn.paths.selection import Due, Selection
from nostrvpn.paths.settings import PathSettings
from nostrvpn.paths.snapshot import LinkSnapshot
from nostrvpn.paths.states import LIVE, TRANSITIONS, LinkState
from nostrvpn.stun.binding import StunMessage, render_response

__all__ = ["TRANSITIONS", "Link", "LinkState"]


class Link:
    """The machine of one peer. Every method takes a moment and returns effects."""

    def __init__(
        self, added: AddPeer, settings: PathSettings, probes: Budget, moment: Moment
    ) -> None:
        self.peer = added.peer
        self.controlling = added.controlling
        self.state = LinkState.IDLE
        self._settings = settings
        self._surroundings = Surroundings()
        self.announcer = Announcer(added.cached, moment)
        self._cached = added.cached
        self._remote = RemoteSide(None if added.cached is None else added.cached.remote)
        self._record = Record(moment.now, added.cached)
        self.checks = CheckList(
            controlling=added.controlling,
            tie_breaker=int.from_bytes(moment.entropy.take(8), "big"),
            settings=settings,
            probes=probes,
        )
        self._selection = Selection(added.peer, controlling=added.controlling)
        self._offering_anew = not self.announcer.answered
        self._gather_until: float | None = None
        self._retry_at: float | None = None
        self._failures = 0

    @property
    def path(self) -> PathKind:
        """What the tunnel runs over, as far as data proved it."""
        return PathKind.DIRECT if self.state is LinkState.CONNECTED else PathKind.NONE

    @property
    def endpoint(self) -> Endpoint | None:
        """The selected endpoint of the peer."""
        return self._selection.endpoint

    @property
    def deadline(self) -> float | None:
        """When ``tick`` is due next."""
        return earliest(
            self.checks.deadline,
            self.announcer.deadline,
            self._selection.deadline,
            self._gather_until,
            self._retry_at,
        )

    def snapshot(self) -> LinkSnapshot:
        """Return what status and ``why`` show."""
        selected = self._selection.pair
        return LinkSnapshot(
            state=self.state.value,
            path=self.path.value,
            endpoint=self.endpoint,
            rtt_ms=None if selected is None or selected.rtt is None else selected.rtt * 1000,
            connected_in_ms=self._record.stages.get("proven"),
            stages=dict(self._record.stages),
            tried=self.checks.results(),
            counters=dict(self._record.counters),
        )

    def memory(self) -> Remember | None:
        """Return what to persist, if it changed since the last time: only proven paths count."""
        if self.state is not LinkState.CONNECTED:
            return None
        cached = self._record.memory(self.announcer.latest, self._remote.description, self.endpoint)
        return None if cached is None else Remember(self.peer, cached)

    def start(self, surroundings: Surroundings, moment: Moment) -> list[PathEffect]:
        """Begin with the peer: offer, and check a cached path at once."""
        self._surroundings = surroundings
        return self._begin(moment)

    def restart(self, moment: Moment) -> list[PathEffect]:
        """Start over with a new session; a live path stays in use meanwhile."""
        self._failures = 0
        return self._begin(moment, renew=True)

    def _begin(self, moment: Moment, *, renew: bool = False) -> list[PathEffect]:
        self._retry_at = None
        if not self._surroundings.candidates:
            # A path in use is only given up when it stops answering.
            kept = self.state in (*LIVE, LinkState.DEGRADED)
            return [] if kept else self._enter(LinkState.IDLE, "no addresses")
        if renew:
            self.announcer.renew(moment)
            self._offering_anew = True
            self._record.begin(moment.now)
        effects: list[PathEffect] = []
        remote = self._remote.description
        if remote is not None:
            self._authorize(remote)
            self.checks.begin(moment.now, hold=HOLD_UNANSWERED, keep=self.endpoint)
            if self._cached is not None and self._cached.endpoint is not None:
                self.checks.trigger(self._cached.endpoint, moment.now)
            self._cached = None
            if self.state not in (*LIVE, LinkState.DEGRADED):
                effects += self._enter(LinkState.CHECKING, "known peer")
            effects += self.checks.tick(moment)
        if self._surroundings.reflexive_pending:
            self._gather_until = moment.now + self._settings.gather_wait
            if remote is None:
                effects += self._enter(LinkState.GATHERING, "waiting for STUN")
            return effects
        return effects + self._describe(moment)

    def _describe(self, moment: Moment) -> list[PathEffect]:
        """Send our description; first open our NATs for the peer, if it is known."""
        self._gather_until = None
        effects: list[PathEffect] = []
        remote = self._remote.description
        if remote is not None and self.state not in LIVE:
            self.checks.open_nats(moment.now)
            effects += self.checks.tick(moment)
        known = None if remote is None or self._offering_anew else remote.session
        description = self.announcer.describe(self._surroundings.candidates, known, moment)
        self._record.stage("described", moment.now)
        effects.append(Describe(self.peer, description))
        if remote is None:
            effects += self._enter(LinkState.OFFERED, "described")
        return effects

    def described(self, description: Description, moment: Moment) -> list[PathEffect]:
        """The peer described itself. PeerMisbehaved("stale_description") if it is old news."""
        known = self._remote.description
        news = self._remote.take(description)
        if news is News.REPEAT:
            return self._repeat_answer(description, moment)
        was_answered = self.announcer.answered
        answered = self.announcer.acknowledge(description.answers)
        self._offering_anew = False
        self._retry_at = None
        if known is None or description.candidates != known.candidates:
            # Only other addresses are news: offers alone would keep two nodes trying for ever.
            self._failures = 0
        self._record.stage("remote_described", moment.now)
        self._authorize(description)
        hold = 0.0 if answered else self._settings.hold
        if news is not News.UPDATE or not was_answered or self.state is LinkState.FAILED:
            self.checks.begin(moment.now, hold=hold, keep=self.endpoint)
        else:
            self.checks.resume(moment.now, hold=hold)
        for source in self._remote.take_early():
            self.checks.trigger(source, moment.now)
        if not self._surroundings.candidates:
            return []
        effects: list[PathEffect] = []
        if self.state not in (*LIVE, LinkState.DEGRADED):
            effects += self._enter(LinkState.CHECKING, "described by the peer")
        # A session that replaces another one asks for an answer, whatever it says it knows.
        return effects + self._react(moment, must_answer=not answered or news is News.SESSION)

    def _react(self, moment: Moment, *, must_answer: bool) -> list[PathEffect]:
        """Open our NATs, then answer (or let the answer wait for STUN), then check."""
        if self.state in LIVE:
            self._selection.probe(moment.now)
        if must_answer and self._surroundings.reflexive_pending:
            self._gather_until = moment.now + self._settings.gather_wait
            self.checks.open_nats(moment.now)
        elif must_answer:
            return self._describe(moment) + self._tick_checks(moment)
        else:
            self.checks.open_nats(moment.now, times=1)
        return self._tick_checks(moment)

    def _repeat_answer(self, description: Description, moment: Moment) -> list[PathEffect]:
        """The peer repeats itself: if it does not know our session, our answer was lost."""
        if description.answers == self.announcer.session or not self._surroundings.candidates:
            return []
        if not self.announcer.may_repeat(moment.now, ANSWER_GAP):
            return []
        effects: list[PathEffect] = []
        if self.state is LinkState.FAILED:
            self.checks.begin(moment.now, hold=self._settings.hold, keep=None)
            effects += self._enter(LinkState.CHECKING, "asked again")
        return effects + self._describe(moment)

    def asked(
        self,
        message: StunMessage,
        source: Endpoint,
        destination_ip: IPAddress | None,
        moment: Moment,
    ) -> list[PathEffect]:
        """Answer the peer's authentic check, and check back (RFC 8445 section 7.3).

        PeerMisbehaved if it is a replay from elsewhere, or claims our own role.
        """
        now = moment.now
        self._remote.admit(message, source, controlling=self.controlling)
        password = self.announcer.password(message.username.partition(":")[0])
        if password is None:
            raise PeerMisbehaved("unknown_session", "a check of a session that is gone")
        response = render_response(message.transaction, source, password)
        effects: list[PathEffect] = [SendDatagram(response, source, None, destination_ip)]
        self._record.stage("first_inbound", moment.now)
        self._selection.heard(source, now)
        if refusal(source, self._settings) is not None:
            self._record.counters["refused_source"] += 1
            return effects
        if self._remote.description is None:
            self._remote.note_early(source)
            return effects
        self.checks.release(now)
        pair = self.checks.trigger(source, now)
        if pair is None:
            self._record.counters["no_room_for_pair"] += 1
            return effects
        if self.state is LinkState.FAILED:
            effects += self._enter(LinkState.CHECKING, "the peer checks")
            self._retry_at = None
        pair.nominated = message.use_candidate
        if pair.nominated and not self.controlling and pair.state is PairState.SUCCEEDED:
            effects += self._consider(pair, moment)
        return effects + self._tick_checks(moment)

    def answered(self, message: StunMessage, source: Endpoint, moment: Moment) -> list[PathEffect]:
        """The peer answered a check of ours. PeerMisbehaved if the answer is not its own."""
        pair, nominated = self.checks.match(message, source, moment.now)
        self._record.stage("first_answer", moment.now)
        if nominated and pair is self._selection.pair:
            self._record.stage("nominated", moment.now)
            self._selection.nominated()
        return self._consider(pair, moment) + self._tick_selection(moment)

    def observed(self, event: TunnelObserved, moment: Moment) -> list[PathEffect]:
        """Take WireGuard's counters: they alone make a path "direct"."""
        effects: list[PathEffect] = [*self._selection.observe(event, moment.now)]
        if self.state is LinkState.VALIDATED and self._selection.proven:
            self._record.stage("proven", moment.now)
            effects += self._enter(LinkState.CONNECTED, "data flowed")
        elif self.state is LinkState.CONNECTED and not self._selection.proven:
            effects += self._enter(LinkState.VALIDATED, "data stopped")
        return effects

    def surroundings_changed(self, new: Surroundings, moment: Moment) -> list[PathEffect]:
        """Our own addresses changed, or the first STUN answer came (or will not come)."""
        old, self._surroundings = self._surroundings, new
        if self.state is LinkState.IDLE:
            return self._begin(moment) if new.candidates else []
        effects: list[PathEffect] = []
        if old.candidates != new.candidates:
            effects += self._candidates_changed(moment, moved=old.hosts != new.hosts)
        return effects + self.tick(moment)

    def _candidates_changed(self, moment: Moment, *, moved: bool) -> list[PathEffect]:
        if remote := self._remote.description:
            self._authorize(remote)
        if self.state in LIVE:
            self._selection.probe(moment.now)
            if moved:
                hold = self._settings.hold
                self.checks.begin(moment.now, hold=hold, keep=self.endpoint)
        elif not self._surroundings.candidates:
            if self.state is LinkState.DEGRADED:
                return []
            self._gather_until = self._retry_at = None
            self.announcer.rest()
            return self._enter(LinkState.IDLE, "no addresses")
        elif self.state is LinkState.FAILED:
            return self.network_changed(moment)
        if self.announcer.latest is not None:
            self.announcer.hurry(moment.now)
        return []

    def network_changed(self, moment: Moment) -> list[PathEffect]:
        """Routes changed: doubt the path in use, and hurry where there is none."""
        self._failures = 0
        if self.state in LIVE:
            self._selection.probe(moment.now)
        elif self.state is LinkState.FAILED:
            self._retry_at = max(moment.now, self._record.began_at + ROUND_GAP)
        elif self.state is LinkState.OFFERED:
            self.announcer.hurry(moment.now, gap=ROUND_GAP)
        return self.tick(moment)

    def tick(self, moment: Moment) -> list[PathEffect]:
        """Do what is due."""
        now = moment.now
        effects: list[PathEffect] = []
        if self._retry_at is not None and self._retry_at <= now:
            effects += self._begin(moment, renew=not self.announcer.is_offering)
        if self._gather_until is not None and (
            self._gather_until <= now or not self._surroundings.reflexive_pending
        ):
            effects += self._describe(moment)
        if self.announcer.deadline is not None and self.announcer.deadline <= now:
            effects += self._repeat(moment)
        return effects + self._tick_checks(moment) + self._tick_selection(moment)

    def _repeat(self, moment: Moment) -> list[PathEffect]:
        """Describe again if the peer may have missed it, or if there is something new to say."""
        latest = self.announcer.latest
        news = latest is None or latest.candidates != self._surroundings.candidates
        missed = self.state not in LIVE and (
            self.announcer.is_offering or self.state in (LinkState.CHECKING, LinkState.DEGRADED)
        )
        if self._surroundings.candidates and (news or missed):
            return self._describe(moment)
        self.announcer.rest()
        return []

    def _tick_checks(self, moment: Moment) -> list[PathEffect]:
        effects: list[PathEffect] = [*self.checks.tick(moment)]
        if effects:
            self._record.stage("first_check", moment.now)
        waiting = self.state in (LinkState.CHECKING, LinkState.DEGRADED)
        if waiting and self.checks.ends_at is None and self._gather_until is None:
            gap = retry_gap(self._failures, controlling=self.controlling)
            self._failures += 1
            self._retry_at = moment.now + gap
            effects += self._enter(LinkState.FAILED, "no path answered")
        return effects

    def _tick_selection(self, moment: Moment) -> list[PathEffect]:
        pair = self._selection.pair
        due = self._selection.tick(moment.now)
        if pair is None or due is Due.NOTHING:
            return []
        if due is Due.CHECK:
            return [*self.checks.send(pair, moment, use_candidate=self.controlling)]
        pair.state, pair.reason = PairState.FAILED, "stopped answering"
        self._selection.drop()
        fallback = self.checks.best_since(moment.now - FALLBACK_AGE)
        if fallback is not None:
            return self._use(fallback, moment, keep_proof=False)
        effects = self._enter(LinkState.DEGRADED, "the path stopped answering")
        return effects + self._begin(moment, renew=True)

    def _consider(self, pair: Pair, moment: Moment) -> list[PathEffect]:
        """A pair works: use it if it is the first, the better or the nominated one."""
        if not self._selection.wants(pair, moment.now):
            return []
        return self._use(pair, moment, keep_proof=self.state is LinkState.CONNECTED)

    def _use(self, pair: Pair, moment: Moment, *, keep_proof: bool) -> list[PathEffect]:
        self._record.stage("validated", moment.now)
        self._retry_at = None
        self._failures = 0
        self.checks.settle(pair)
        wait = self.checks.better_may_come(pair)
        effects: list[PathEffect] = [
            self._selection.use(pair, moment.now, keep_proof=keep_proof, wait=wait)
        ]
        if not keep_proof:
            effects += self._enter(LinkState.VALIDATED, "a path answered")
        return effects + self._tick_selection(moment)

    def _authorize(self, remote: Description) -> None:
        """Give the check list what the peer's side and ours are now."""
        username = f"{remote.ufrag}:{self.announcer.ufrag}"
        self.checks.authorize(Credentials(username, remote.password))
        self.checks.set_remote(remote.candidates, self._surroundings)

    def _enter(self, state: LinkState, event: str) -> list[PathEffect]:
        """Change the state, if it changes; the only place that does."""
        if state is self.state:
            return []
        assert state in TRANSITIONS[self.state], f"{self.state} to {state}"
        old, self.state = self.state, state
        return [Trace(f"link {self.peer[:8]}", old.value, event, state.value)]
