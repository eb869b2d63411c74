"""One peer: from its first description to a path that carries data, and back when the path dies.

How two nodes meet is drawn in the package's docstring. A session (credentials) lives until a round
is started over: the path was lost, a round failed, a user asked. The tunnel's endpoint is only ever
replaced by one that was just proven.
"""

from __future__ import annotations

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment
from nostrvpn.paths.candidates import PathKind, Surroundings, places, refusal
from nostrvpn.paths.description import Description
from nostrvpn.paths.events import (
    Describe,
    PathEffect,
    SendDatagram,
    TunnelObserved,
    Unpin,
)
from nostrvpn.paths.link_sleep import LinkSleep
from nostrvpn.paths.patience import ANSWER_GAP, HOLD_UNANSWERED, ROUND_GAP
from nostrvpn.paths.remote import News
from nostrvpn.paths.states import LIVE, LinkState
from nostrvpn.stun.binding import StunMessage, render_response

__all__ = ["Link"]


class Link(LinkSleep):
    """The machine of one peer. Every method takes a moment and returns effects."""

    def restart(self, moment: Moment) -> list[PathEffect]:
        """Start over with a new session; a live path stays in use meanwhile."""
        self.rounds.reset()
        return self._begin(moment, renew=True)

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
        if self._cached is not None and self._cached.endpoint is not None:
            self.detours.relays.demand.be_patient(moment.now)
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
        candidates, plan = self._surroundings.candidates, self.hard.plan
        description = self.announcer.describe(candidates, known, moment, tickets, nat, plan)
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
        hard = description.nat is not None and description.nat.mapping.is_dependent
        if known is None or places(description.candidates, hard) != places(known.candidates, hard):
            # Only other addresses are news: offers alone would keep two nodes trying for ever.
            self.rounds.reset()
        self._record.stage("remote_described", now)
        self.checks.withdraw(() if known is None else known.candidates, description.candidates, now)
        self._authorize(description)
        self.detours.relays.take_tickets(description.relays, now)
        hold = 0.0 if answered else self._settings.hold
        over = self.state in (LinkState.FAILED, LinkState.ASLEEP)
        if news is not News.UPDATE or not was_answered or over:
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
        effects += self._react(moment, must_answer=not answered or news is News.SESSION)
        return effects + self._take_plan(description, moment)

    def _take_plan(self, description: Description, moment: Moment) -> list[PathEffect]:
        """Take our part in the search for a path through hard NATs."""
        task = self._search_task()
        direct = self.state in LIVE and self._selection.kind is PathKind.DIRECT
        if task is None or direct:
            return []
        if description.search is None:
            # The search may have waited for what the peer now says of its NAT.
            return self._search_ports(moment) if self.rounds.failures else []
        try:
            effects = self.hard.told(description.search, task, moment)
        except PeerMisbehaved as exc:
            self._record.counters[exc.code] += 1
            return []
        return self._hard_done(effects, moment)

    def _react(self, moment: Moment, *, must_answer: bool) -> list[PathEffect]:
        """Open our NATs, then answer (or let the answer wait for STUN), then check."""
        if self.state in LIVE:
            self._selection.probe(moment.now, quick=self._selection.withdrawn)
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
        arrived_at: tuple[IPAddress | None, int | None],
        moment: Moment,
    ) -> list[PathEffect]:
        """Answer the peer's authentic check, and check back (RFC 8445 section 7.3).

        ``arrived_at``: our address and port; port None is WireGuard's. PeerMisbehaved if it is a
        replay from elsewhere, claims our own role, or came to a port that is not listened on any more.
        The answer to a nomination says that we follow, so there is none if we do not.
        """
        now, (ip, port) = moment.now, arrived_at
        if port is not None and not self.hard.listens(port):
            raise PeerMisbehaved("stale_port", "a check at a port of a search that is over")
        self._remote.admit(message, source, controlling=self.controlling)
        password = self.announcer.password(message.username.partition(":")[0])
        if password is None:
            raise PeerMisbehaved("unknown_session", "a check of a session that is gone")
        response = render_response(message.transaction, source, password)
        answer = SendDatagram(response, source, None, ip, source_port=port)
        effects: list[PathEffect] = [answer]
        nominates = message.use_candidate and not self.controlling
        if port is not None:
            return effects + self._hard_done(self.hard.asked(source, port, moment), moment)
        self._record.stage("first_inbound", now)
        self._selection.heard(source, now)
        self.detours.standby.heard(source, now)
        if refusal(source, self._settings) is not None and source not in self.detours.routes:
            self._record.counters["refused_source"] += 1
            return [] if nominates else effects
        if self._remote.description is None:
            self._remote.note_early(source)
            return effects
        if self.state is LinkState.ASLEEP:
            return effects
        effects += self._hard_done(self.hard.asked(source, None, moment), moment)
        pair = self.checks.trigger(source, now)
        if pair is None:
            self._record.counters["no_room_for_pair"] += 1
            return [] if nominates else effects
        self.detours.recognize(self.checks, self._remote.description.candidates)
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
        if nominates and not self._selection.take_nomination(pair, message):
            effects.remove(answer)
        elif nominates and pair.works:
            effects += self._consider(pair, moment)
        return effects + self._tick_checks(moment)

    def answered(self, message: StunMessage, source: Endpoint, moment: Moment) -> list[PathEffect]:
        """The peer answered a check of ours. PeerMisbehaved if the answer is not its own."""
        pair, sent = self.checks.match(message, source, moment.now)
        self._record.stage("first_answer", moment.now)
        self.detours.standby.answered(pair.endpoint, moment.now)
        self._mtu.answered(message.transaction, moment.now)
        if self.state is LinkState.ASLEEP:
            return []
        if pair.own_route:
            self.detours.relays.proved(pair.endpoint, moment.now - sent.at, moment.now)
        if sent.nomination is not None and pair is self._selection.pair:
            self._record.stage("nominated", moment.now)
            self._selection.nominated(sent.nomination)
        effects: list[PathEffect] = []
        if self.rounds.answered(sent.round):
            self._search(moment.now, hold=0.0)
            self.checks.open_nats(moment.now, times=1)
            effects += self._tick_checks(moment)
        return effects + self._consider(pair, moment) + self._tick_selection(moment)

    def search_answered(
        self, message: StunMessage, source: Endpoint, moment: Moment
    ) -> list[PathEffect]:
        """A packet of the search through hard NATs was answered. PeerMisbehaved as ``answered``."""
        return self._hard_done(self.hard.answered(message, source, moment), moment)

    def relay_answered(
        self, message: StunMessage, source: Endpoint, moment: Moment
    ) -> list[PathEffect]:
        """A relay answered a request of ours. PeerMisbehaved if the answer is not its own."""
        effects = self.detours.relays.answered(message, source, self._surroundings.versions, moment)
        pair = self.checks.pairs.get(source)
        if pair is not None and pair.own_route and pair.works:
            # It did not know our address: what it let fall is repeated now.
            effects += self.checks.send(pair, moment)
        return effects

    def observed(self, event: TunnelObserved, moment: Moment) -> list[PathEffect]:
        """Take WireGuard's counters: they alone make a path "direct" or "relayed"."""
        effects = self._follow(event.endpoint, moment)
        effects += self._selection.observe(event, moment.now)
        if self.state is LinkState.ASLEEP and self._selection.active:
            return effects + self.wake(moment)
        if self.state is LinkState.VALIDATED and self._selection.proven:
            self._record.stage("proven", moment.now)
            effects += self._enter(LinkState.CONNECTED, "data flowed")
        elif self.state is LinkState.CONNECTED and not self._selection.proven:
            effects += self._enter(LinkState.VALIDATED, "data stopped")
        # Only now: between two readings of the counters nobody knows whether it is in use.
        return effects + self._fall_asleep(moment)

    def _follow(self, endpoint: Endpoint | None, moment: Moment) -> list[PathEffect]:
        """WireGuard may have roamed to where the peer is now: check that, before it is brought back."""
        if endpoint is None or endpoint == self.endpoint or self.state not in LIVE:
            return []
        if refusal(endpoint, self._settings) is not None:
            return []
        if not self._selection.roamed(self.checks.pairs.get(endpoint), moment.now):
            return []
        self._selection.follow(endpoint)
        pair = self.checks.trigger(endpoint, moment.now)
        if pair is not None and pair.works:
            return self._consider(pair, moment)
        return self._tick_checks(moment)

    def surroundings_changed(self, new: Surroundings, moment: Moment) -> list[PathEffect]:
        """Our own addresses changed, or the first STUN answer came (or will not come)."""
        old, self._surroundings = self._surroundings, new
        if self.state is LinkState.IDLE:
            return self._begin(moment) if new.candidates else []
        effects: list[PathEffect] = []
        hard = self._book.maps_by_destination
        known = places(old.candidates, hard) == places(new.candidates, hard)
        resting = self.state is LinkState.ASLEEP or (known and self.state is LinkState.FAILED)
        if old.candidates != new.candidates and not resting:
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
        if self.announcer.latest is None:
            return []
        if moved and self._surroundings.reflexive_pending:
            # Half of the news would cost a message, and the peer nothing but tries.
            self._gather_until = moment.now + self._settings.gather_wait
        elif self._gather_until is None:
            self.announcer.hurry(moment.now)
        return []

    def network_changed(self, moment: Moment, *, slept: bool = False) -> list[PathEffect]:
        """Routes changed: doubt the path in use, and hurry where there is none."""
        self.rounds.reset()
        if self.state in LIVE:
            self._selection.probe(moment.now, quick=slept)
            if slept:
                self.detours.standby.probe(moment.now)
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
        if self.state not in LIVE:
            effects += self._fall_asleep(moment)
        if self.rounds.due(now):
            if self.state in LIVE:
                self.rounds.call(moment)
            else:
                effects += self._begin(moment, renew=not self.announcer.is_offering)
        effects += self._call_round(moment)
        if self.announcer.deadline is not None and self.announcer.deadline <= now:
            effects += self._repeat(moment)
        effects += self.detours.check_standby(self.checks, moment)
        effects += self._hard_done(self.hard.tick(moment), moment)
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
        effects = self._ask_relays(moment)
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
        if said and self.detours.relays.demand.wanted and self._has_news:
            self.announcer.hurry(moment.now)
        return effects + self._probe_mtu(moment) + self._tick_checks(moment) + self._unpin()

    def close(self) -> list[PathEffect]:
        """The peer was removed: undo what outlives this object."""
        self.hard.stop()
        unpinned: list[PathEffect] = [] if self._pin is None else [Unpin(self.peer)]
        return self._selection.close() + self.detours.close() + unpinned
