"""One peer: from its first description to a path that carries data, and back when the path dies.

How two nodes meet is drawn in the package's docstring. A session (credentials) lives until a round
is started over: the path was lost, a round failed, a user asked. The tunnel's endpoint is only ever
replaced by one that was just proven.
"""

from __future__ import annotations

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment
from nostrvpn.paths.candidates import PathKind, Surroundings, refusal
from nostrvpn.paths.description import Description
from nostrvpn.paths.events import (
    Describe,
    PathEffect,
    SendDatagram,
    TunnelObserved,
)
from nostrvpn.paths.link_path import LinkPath
from nostrvpn.paths.patience import ANSWER_GAP, HOLD_UNANSWERED, ROUND_GAP
from nostrvpn.paths.remote import News
from nostrvpn.paths.states import LIVE, LinkState
from nostrvpn.stun.binding import StunMessage, render_response

__all__ = ["Link"]


class Link(LinkPath):
    """The machine of one peer. Every method takes a moment and returns effects."""

    def start(self, surroundings: Surroundings, moment: Moment) -> list[PathEffect]:
        """Begin with the peer: offer, and check a cached path at once."""
        self._surroundings = surroundings
        return self._begin(moment)

    def restart(self, moment: Moment) -> list[PathEffect]:
        """Start over with a new session; a live path stays in use meanwhile."""
        self.rounds.reset()
        return self._begin(moment, renew=True)

    def wake(self, moment: Moment) -> list[PathEffect]:
        """There is traffic for a peer whose link sleeps."""
        return self._begin(moment, renew=True) if self.state is LinkState.ASLEEP else []

    def _begin(self, moment: Moment, *, renew: bool = False) -> list[PathEffect]:
        self.rounds.retry_at = None
        if not self._surroundings.candidates:
            # A path in use is only given up when it stops answering.
            kept = self.state in (*LIVE, LinkState.DEGRADED)
            return [] if kept else self._enter(LinkState.IDLE, "no addresses")
        if renew:
            self.announcer.renew(moment)
            self._offering_anew = True
            self._record.begin(moment.now)
            self.detours.relays.revive(moment.now)
        effects = self._ask_relays(moment)
        remote = self._remote.description
        if remote is not None:
            self._authorize(remote)
            self._search(moment.now, hold=HOLD_UNANSWERED)
            if self._cached is not None:
                self.detours.relays.take_tickets(remote.relays, moment.now)
                if self._cached.endpoint is not None:
                    self.checks.trigger(self._cached.endpoint, moment.now)
            self._cached = None
            if self.state not in (*LIVE, LinkState.DEGRADED):
                effects += self._enter(LinkState.CHECKING, "known peer")
            effects += self.checks.tick(moment)
        if self._gathering:
            self._gather_until = moment.now + self._settings.gather_wait
            if remote is None:
                effects += self._enter(LinkState.GATHERING, "waiting for STUN and relays")
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
        tickets, nat = self.detours.relays.tickets, self._book.nat
        candidates = self._surroundings.candidates
        description = self.announcer.describe(candidates, known, moment, tickets, nat)
        self._record.stage("described", moment.now)
        effects.append(Describe(self.peer, description))
        if remote is None:
            effects += self._enter(LinkState.OFFERED, "described")
        return effects

    def described(self, description: Description, moment: Moment) -> list[PathEffect]:
        """The peer described itself. PeerMisbehaved("stale_description") if it is old news."""
        known, now = self._remote.description, moment.now
        news = self._remote.take(description)
        if news is News.REPEAT:
            return self._repeat_answer(description, moment)
        was_answered = self.announcer.answered
        answered = self.announcer.acknowledge(description.answers)
        self._offering_anew = False
        self.rounds.retry_at = None
        if known is None or description.candidates != known.candidates:
            # Only other addresses are news: offers alone would keep two nodes trying for ever.
            self.rounds.reset()
        self._record.stage("remote_described", now)
        self._authorize(description)
        self.detours.relays.take_tickets(description.relays, now)
        hold = 0.0 if answered else self._settings.hold
        if news is not News.UPDATE or not was_answered or self.state is LinkState.FAILED:
            self._search(now, hold=hold)
        else:
            self.checks.resume(now, hold=hold)
        for source in self._remote.take_early():
            self.checks.trigger(source, now)
        if not self._surroundings.candidates:
            return []
        effects = self._ask_relays(moment)
        if self.state not in (*LIVE, LinkState.DEGRADED):
            effects += self._enter(LinkState.CHECKING, "described by the peer")
        # A session that replaces another one asks for an answer, whatever it says it knows.
        return effects + self._react(moment, must_answer=not answered or news is News.SESSION)

    def _react(self, moment: Moment, *, must_answer: bool) -> list[PathEffect]:
        """Open our NATs, then answer (or let the answer wait for STUN), then check."""
        if self.state in LIVE:
            self._selection.probe(moment.now)
        if must_answer and self._gathering:
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
        if self.state in (LinkState.FAILED, LinkState.ASLEEP):
            self._search(moment.now, hold=self._settings.hold)
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
        self._record.stage("first_inbound", now)
        self._selection.heard(source, now)
        self.detours.standby.heard(source, now)
        if refusal(source, self._settings) is not None and source not in self.detours.routes:
            self._record.counters["refused_source"] += 1
            return effects
        if self._remote.description is None:
            self._remote.note_early(source)
            return effects
        if self.state is LinkState.ASLEEP:
            return effects
        pair = self.checks.trigger(source, now)
        if pair is None:
            self._record.counters["no_room_for_pair"] += 1
            return effects
        if self.rounds.called(message.round, now):
            # The peer holds its checks back until this is answered: our NATs are to be open by then.
            self.checks.open_nats(now)
            effects = [*self.checks.tick(moment), *effects]
            self._search(now, hold=self._settings.hold)
        elif not pair.is_relayed:
            self.checks.release(now)
        if self.state is LinkState.FAILED:
            effects += self._enter(LinkState.CHECKING, "the peer checks")
            self.rounds.retry_at = None
        pair.nominated = message.use_candidate
        if pair.nominated and not self.controlling and pair.works:
            effects += self._consider(pair, moment)
        return effects + self._tick_checks(moment)

    def answered(self, message: StunMessage, source: Endpoint, moment: Moment) -> list[PathEffect]:
        """The peer answered a check of ours. PeerMisbehaved if the answer is not its own."""
        pair, sent = self.checks.match(message, source, moment.now)
        self._record.stage("first_answer", moment.now)
        self.detours.standby.answered(pair.endpoint, moment.now)
        self._mtu.answered(message.transaction, moment.now)
        if pair.own_route:
            self.detours.relays.proved(pair.endpoint, moment.now - sent.at, moment.now)
        if sent.use_candidate and pair is self._selection.pair:
            self._record.stage("nominated", moment.now)
            self._selection.nominated()
        effects: list[PathEffect] = []
        if self.rounds.answered(sent.round):
            self._search(moment.now, hold=0.0)
            self.checks.open_nats(moment.now, times=1)
            effects += self._tick_checks(moment)
        return effects + self._consider(pair, moment) + self._tick_selection(moment)

    def relay_answered(
        self, message: StunMessage, source: Endpoint, moment: Moment
    ) -> list[PathEffect]:
        """A relay answered a request of ours. PeerMisbehaved if the answer is not its own."""
        effects = self.detours.relays.answered(message, source, self._surroundings.versions, moment)
        pair = self.checks.pairs.get(source)
        if pair is not None and pair.own_route and pair.works:
            # It did not know our address: what it let fall is repeated now.
            effects += self.checks.send(pair, moment, use_candidate=False)
        return effects

    def observed(self, event: TunnelObserved, moment: Moment) -> list[PathEffect]:
        """Take WireGuard's counters: they alone make a path "direct" or "relayed"."""
        effects: list[PathEffect] = [*self._selection.observe(event, moment.now)]
        if self.state is LinkState.ASLEEP and self._selection.active:
            return effects + self.wake(moment)
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
        if old.candidates != new.candidates and self.state is not LinkState.ASLEEP:
            effects += self._candidates_changed(moment, moved=old.hosts != new.hosts)
        return effects + self.tick(moment)

    def _candidates_changed(self, moment: Moment, *, moved: bool) -> list[PathEffect]:
        if remote := self._remote.description:
            self._authorize(remote)
        if moved:
            self.detours.relays.revive(moment.now)
        if self.state in LIVE:
            self._selection.probe(moment.now, quick=moved)
            if moved:
                self.detours.standby.probe(moment.now)
                self._search(moment.now, hold=self._settings.hold)
        elif not self._surroundings.candidates:
            if self.state is LinkState.DEGRADED:
                return []
            self._gather_until = self.rounds.retry_at = None
            self.announcer.rest()
            return self._enter(LinkState.IDLE, "no addresses")
        elif self.state is LinkState.FAILED:
            return self.network_changed(moment)
        if self.announcer.latest is not None:
            self.announcer.hurry(moment.now)
        return []

    def network_changed(self, moment: Moment) -> list[PathEffect]:
        """Routes changed: doubt the path in use, and hurry where there is none."""
        self.rounds.reset()
        if self.state in LIVE:
            self._selection.probe(moment.now)
            if self._selection.kind is PathKind.RELAYED and not self._searching:
                self.rounds.hurry(moment.now, self._record.began_at)
        elif self.state is LinkState.FAILED:
            self.rounds.hurry(moment.now, self._record.began_at)
        elif self.state is LinkState.OFFERED:
            self.announcer.hurry(moment.now, gap=ROUND_GAP)
        return self.tick(moment)

    def tick(self, moment: Moment) -> list[PathEffect]:
        """Do what is due."""
        now = moment.now
        effects = self._selection.lift_guard(now)
        if self.rounds.due(now):
            if self.state in LIVE:
                self.rounds.call(moment)
            else:
                effects += self._begin(moment, renew=not self.announcer.is_offering)
        effects += self._call_round(moment)
        if self.announcer.deadline is not None and self.announcer.deadline <= now:
            effects += self._repeat(moment)
        effects += self.detours.check_standby(self.checks, moment)
        return effects + self._tick_checks(moment) + self._tick_selection(moment)

    def _repeat(self, moment: Moment) -> list[PathEffect]:
        """Describe again if the peer may have missed it, or if there is something new to say."""
        missed = self.state not in LIVE and (
            self.announcer.is_offering or self.state in (LinkState.CHECKING, LinkState.DEGRADED)
        )
        if self._surroundings.candidates and (self._has_news or missed):
            return self._describe(moment)
        self.announcer.rest()
        return []

    def settle(self, moment: Moment) -> list[PathEffect]:
        """Draw the consequences of whatever happened; to be called after each event."""
        self._now = moment.now
        effects = self._fall_asleep(moment) + self._ask_relays(moment)
        waited = self._gather_until is not None and self._gather_until <= moment.now
        if waited or (self._gather_until is not None and not self._gathering):
            effects += self._describe(moment)
        selected = self._selection.pair
        if selected is not None and selected.endpoint not in self.checks.pairs:
            self._selection.drop()
            effects += self._replace(selected, moment)
        self.detours.keep_warm(self.checks, self._selection, moment.now)
        relayed = self.state in LIVE and self._selection.kind is PathKind.RELAYED
        if relayed and not self._searching and self.rounds.deadline is None:
            self.rounds.failed(moment.now)
        said = self.announcer.latest is not None and self._gather_until is None
        if said and self.detours.relays.wanted and self._has_news:
            self.announcer.hurry(moment.now)
        return effects + self._probe_mtu(moment) + self._tick_checks(moment)

    def close(self) -> list[PathEffect]:
        """The peer was removed: undo what outlives this object."""
        return self._selection.close() + self.detours.close()
