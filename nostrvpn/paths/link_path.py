"""What a link consists of, how it shows itself, and the path it uses: chosen, lost, replaced.

The state changes here only. What comes from outside is ``link.py``'s.
"""

from __future__ import annotations

from nostrvpn.endpoint import Endpoint
from nostrvpn.machine import Moment, earliest
from nostrvpn.paths.announcer import Announcer
from nostrvpn.paths.budgets import Budget, LinkProbes
from nostrvpn.paths.candidates import (
    CandidateKind,
    PathKind,
    Surroundings,
    needs_opener,
    places,
)
from nostrvpn.paths.checks import CheckList
from nostrvpn.paths.description import Description, NatInfo
from nostrvpn.paths.detours import Detours
from nostrvpn.paths.events import (
    AddPeer,
    PathEffect,
    PathMtu,
    Pin,
    Remember,
    SendDatagram,
    Trace,
    Unpin,
)
from nostrvpn.paths.hard_nat.link_search import LinkSearch
from nostrvpn.paths.hard_nat.task import SearchTask
from nostrvpn.paths.open_checks import Credentials
from nostrvpn.paths.pair import Pair, PairState
from nostrvpn.paths.path_mtu import MtuProber
from nostrvpn.paths.patience import HUSHED_ROUNDS
from nostrvpn.paths.record import Record
from nostrvpn.paths.relay_book import RelayBook
from nostrvpn.paths.remote import RemoteSide
from nostrvpn.paths.rounds import Rounds
from nostrvpn.paths.selection import Due, Selection
from nostrvpn.paths.settings import PathSettings
from nostrvpn.paths.snapshot import LinkSnapshot, Mapping
from nostrvpn.paths.states import LIVE, TRANSITIONS, LinkState

__all__ = ["LinkPath"]


class LinkPath:
    """The parts of one link and its path in use; ``_begin`` is the conversation's part."""

    def __init__(
        self,
        added: AddPeer,
        settings: PathSettings,
        probes: Budget,
        book: RelayBook,
        moment: Moment,
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
            probes=LinkProbes(probes),
        )
        self._selection = Selection(added.peer, controlling=added.controlling)
        self.detours = Detours(added.peer, book, controlling=added.controlling)
        self.rounds = Rounds(controlling=added.controlling)
        self.hard = LinkSearch(added.peer, book.searches)
        self._pin: Pin | None = None
        self._mtu = MtuProber()
        self._told_mtu: int | None = None
        self._book = book
        self._offering_anew = not self.announcer.answered
        self._gather_until: float | None = None
        self._searching = False
        self._routed = False
        self._now = moment.now

    @property
    def path(self) -> PathKind:
        """What the tunnel runs over, as far as data proved it."""
        return self._selection.shown if self.state is LinkState.CONNECTED else PathKind.NONE

    @property
    def endpoint(self) -> Endpoint | None:
        """The selected endpoint of the peer."""
        return self._selection.endpoint

    @property
    def asleep(self) -> bool:
        """Whether the path was let go until somebody wants it."""
        return self.state is LinkState.ASLEEP

    @property
    def doubtful(self) -> bool:
        """Whether a direct path in use left a check unanswered."""
        return self._selection.doubtful and self._selection.kind is PathKind.DIRECT

    @property
    def crossed(self) -> bool:
        """Whether WireGuard's packets came in over the endpoint in use."""
        return self.state is LinkState.CONNECTED and self._selection.crossed

    @property
    def deadline(self) -> float | None:
        """When ``tick`` is due next."""
        return earliest(
            self.checks.deadline,
            self.announcer.deadline,
            self._selection.deadline,
            self.detours.deadline,
            self.rounds.deadline,
            self._mtu.deadline,
            self.hard.deadline,
            self._gather_until,
        )

    @property
    def peer_nat(self) -> NatInfo | None:
        """What the peer says of its NAT."""
        remote = self._remote.description
        return None if remote is None else remote.nat

    def snapshot(self) -> LinkSnapshot:
        """Return what status and ``why`` show."""
        selected, rounds = self._selection.pair, self.rounds
        route = None if selected is None else self.detours.route(selected)
        due = None if rounds.retry_at is None else max(0.0, rounds.retry_at - self._now)
        return LinkSnapshot(
            state=self.state.value,
            path=self.path.value,
            endpoint=self.endpoint,
            rtt_ms=None if selected is None or selected.rtt is None else selected.rtt * 1000,
            connected_in_ms=self._record.stages.get("proven"),
            stages=dict(self._record.stages),
            tried=self.checks.results(),
            counters=dict(self._record.counters),
            via=None if route is None else route.via,
            carrier="udp" if route is None else route.carrier,
            relays=self.detours.relays.results(),
            direct_rounds=rounds.failures,
            next_try_in_s=due,
            peer_nat=None if self.peer_nat is None else self.peer_nat.mapping.value,
            peer_udp=None if self.peer_nat is None else self.peer_nat.udp,
            search=self.hard.shown,
            crossed=self.crossed,
            mtu=self._mtu.mtu,
            asleep=self.asleep,
        )

    def memory(self) -> Remember | None:
        """Return what to persist, if it changed since the last time: only proven paths count."""
        if self.state is not LinkState.CONNECTED:
            return None
        # A relay's port or a loopback endpoint leads nowhere after a restart.
        direct = self.endpoint if self._selection.kind is PathKind.DIRECT else None
        cached = self._record.memory(self.announcer.latest, self._remote.description, direct)
        return None if cached is None else Remember(self.peer, cached)

    def _begin(self, moment: Moment, *, renew: bool = False) -> list[PathEffect]:
        """Offer ourselves and check what is known, with a new session if ``renew``."""
        raise NotImplementedError

    def _describe(self, moment: Moment) -> list[PathEffect]:
        """Send our description."""
        raise NotImplementedError

    @property
    def _gathering(self) -> bool:
        """Whether a description would soon hold more: answers of STUN servers or relays."""
        return self._surroundings.reflexive_pending or self.detours.relays.pending

    @property
    def _has_news(self) -> bool:
        """Whether the peer does not know all our candidates or tickets."""
        latest = self.announcer.latest
        if latest is None:
            return True
        if self._nat_is_news(latest.nat):
            return True
        said, now = latest.candidates, self._surroundings.candidates
        hard = self._book.maps_by_destination
        if said != now and places(said, hard) != places(now, hard):
            return True
        return any(ticket not in latest.relays for ticket in self.detours.relays.tickets)

    def _nat_is_news(self, said: NatInfo | None) -> bool:
        """Whether the peer has to know more of our NAT, to take its part in a search."""
        now = self._book.nat
        if now is None or not self.rounds.failures:
            return False
        if not now.udp and (said is None or said.udp):
            return True  # no wonder that nothing answers: that is worth a word
        if not self._settings.hard_nat_search:
            return False
        told = Mapping.UNKNOWN if said is None else said.mapping
        vague = told in (Mapping.UNKNOWN, Mapping.DEPENDENT)
        return now.mapping is not told and (vague or now.mapping is Mapping.INDEPENDENT)

    def _search(self, now: float, *, hold: float) -> None:
        """Begin a round of checks."""
        self._searching = True
        self.checks.begin(now, hold=hold, keep=self.endpoint)

    def _tick_checks(self, moment: Moment) -> list[PathEffect]:
        effects: list[PathEffect] = [*self.checks.tick(moment)]
        if effects:
            self._record.stage("first_check", moment.now)
        if self.checks.ends_at is not None or self._gather_until is not None:
            return effects
        searched, self._searching = self._searching, False
        if self.state in (LinkState.CHECKING, LinkState.DEGRADED):
            self.rounds.failed(moment.now)
            effects += self._enter(LinkState.FAILED, "no path answered")
            if self.announcer.answered and self.rounds.failures <= HUSHED_ROUNDS:
                effects += self._selection.hush(moment.now)
            else:
                effects += self._selection.speak(moment.now)
            effects += self._search_ports(moment)
        elif searched and self.state in LIVE and self._selection.kind is PathKind.RELAYED:
            self.rounds.failed(moment.now)
            effects += self._search_ports(moment)
        return effects

    def _search_task(self) -> SearchTask | None:
        """Return what a search through hard NATs starts from; None: the time is not ripe for one."""
        remote, nat, servers = self._remote.description, self._book.nat, self._book.stun_servers
        if remote is None or remote.nat is None or nat is None or not servers:
            return None
        known = Mapping.UNKNOWN not in (nat.mapping, remote.nat.mapping) or self.rounds.failures > 1
        kinds = (CandidateKind.REFLEXIVE, CandidateKind.HOST)
        public = [c for c in remote.candidates if c.kind in kinds and needs_opener(c.endpoint)]
        if not public or not known or not self._settings.hard_nat_search:
            return None
        return SearchTask(
            controlling=self.controlling,
            own=nat.mapping,
            peer=remote.nat.mapping,
            target=max(public, key=lambda c: c.kind is CandidateKind.REFLEXIVE).endpoint,
            servers=servers,
            credentials=Credentials(f"{remote.ufrag}:{self.announcer.ufrag}", remote.password),
            tie_breaker=self.checks.tie_breaker,
            attempt=self.hard.attempts,
            opener_ttl=self._settings.opener_ttl,
        )

    def _search_ports(self, moment: Moment) -> list[PathEffect]:
        """Ordinary checks found no direct path: search for one through hard NATs."""
        task = self._search_task()
        if task is None:
            return []
        effects = self._hard_done(self.hard.begin(task, moment), moment)
        if self.state in LIVE or self.announcer.answered:  # else there is nobody to search with
            self.rounds.no_later(self.hard.again_at, moment.now)
        return effects

    def _hard_done(self, effects: list[SendDatagram | Pin], moment: Moment) -> list[PathEffect]:
        """Tell the peer what the search did, and check what it found, over the port it found."""
        done: list[PathEffect] = [*effects]
        for effect in effects:
            if isinstance(effect, Pin):
                self._pin = effect
        if self.hard.take_news():
            done += self._describe(moment)
        found = self.hard.take_found()
        if found is not None and self.checks.try_anew(found, moment.now) is not None:
            done += self._tick_checks(moment)
        return done

    def _unpin(self) -> list[PathEffect]:
        """Give WireGuard its own port back once the path that needs another one is gone."""
        if self._pin is None or self.hard.running:
            return []
        pair = self.checks.pairs.get(self._pin.remote)
        if pair is not None and pair.state is not PairState.FAILED:
            return []
        self._pin = None
        return [Unpin(self.peer)]

    def _tick_selection(self, moment: Moment) -> list[PathEffect]:
        pair = self._selection.pair
        due = self._selection.tick(moment.now)
        if pair is None or due is Due.NOTHING:
            return []
        if due is Due.CHECK:
            if self._selection.doubtful:
                self.detours.doubt(pair, moment.now)
            return [*self.checks.send(pair, moment, nomination=self._selection.nomination)]
        pair.fail("stopped answering")
        self._selection.drop()
        if self._pin is not None and self._pin.remote == pair.endpoint:
            self.hard.stop()  # what is tried now is to leave from WireGuard's own port
        return self._unpin() + self._replace(pair, moment)

    def _replace(self, lost: Pair, moment: Moment) -> list[PathEffect]:
        """The path in use is lost: another one that works takes over, or a new session begins."""
        self.detours.relays.lost(lost.endpoint, moment.now)
        fallback = self.detours.takeover(self.checks, moment.now)
        if fallback is None:
            effects = self._enter(LinkState.DEGRADED, "the path stopped answering")
            return effects + self._begin(moment, renew=True)
        if fallback.is_relayed and not lost.is_relayed:
            self.rounds.lost(moment.now)
        return self._use(fallback, moment, keep_proof=False)

    def _consider(self, pair: Pair, moment: Moment) -> list[PathEffect]:
        """A pair works: use it if it is the first, the better or the nominated one."""
        if not self._selection.wants(pair, moment.now):
            return []
        return self._use(pair, moment, keep_proof=self.state is LinkState.CONNECTED)

    def _use(self, pair: Pair, moment: Moment, *, keep_proof: bool) -> list[PathEffect]:
        self._record.stage("validated", moment.now)
        if not pair.is_relayed:
            self.rounds.succeeded()
            if self.hard.seeking:
                self.hard.stop()
        self.checks.settle(pair)
        wait = self.checks.better_may_come(pair)
        if pair.endpoint.ip.is_loopback:
            self._mtu.stop()  # a channel's carrier cuts and joins as it likes
        else:
            self._mtu.start(moment.now, ipv6=pair.endpoint.ip.version == 6)
        effects = self._selection.use(pair, moment.now, keep_proof=keep_proof, wait=wait)
        if not keep_proof:
            effects += self._enter(LinkState.VALIDATED, "a path answered")
        return effects + self._tick_selection(moment)

    def _probe_mtu(self, moment: Moment) -> list[PathEffect]:
        """See how large a packet may be on the selected path."""
        pair = self._selection.pair
        if pair is None:
            self._mtu.stop()
        self._mtu.set_active(self._selection.active, moment.now)
        if self._selection.swallows(moment.now):
            self._mtu.suspect(moment.now)
        effects: list[PathEffect] = []
        probe = self._mtu.due(moment)
        if probe is not None and pair is not None:
            effects += self.checks.send(pair, moment, probe=probe)
        if self._mtu.mtu != self._told_mtu and (pair is None or self._mtu.mtu is not None):
            self._told_mtu = self._mtu.mtu
            effects.append(PathMtu(self.peer, self._told_mtu))
        return effects

    def _ask_relays(self, moment: Moment) -> list[PathEffect]:
        """Do what is due with relays, and check through those that were won."""
        now, live = moment.now, self.state in LIVE
        relays = self.detours.relays
        direct = live and self._selection.kind is PathKind.DIRECT
        asleep = self.state is LinkState.ASLEEP or not self._surroundings.candidates
        relays.demand.want(now, wanted=not asleep and (self._selection.active or not direct))
        relays.fill(moment, live=live, direct=direct)
        remote = self._remote.description
        candidates = () if remote is None else remote.candidates
        effects = self.detours.update(candidates, self._surroundings.versions, moment)
        self.detours.recognize(self.checks, candidates)  # the offers may have come later
        routes = self.detours.routes
        if routes or self._routed:
            carriers = {endpoint: route.carrier for endpoint, route in routes.items()}
            self.checks.set_routes(carriers, now)
            self._routed = bool(routes)
        return effects

    def _call_round(self, moment: Moment) -> list[PathEffect]:
        """Tell the peer over the relay that a round begins."""
        number, pair = self.rounds.next_call(moment.now), self._selection.pair
        if number is None or pair is None:
            return []
        nomination = self._selection.nomination
        return [*self.checks.send(pair, moment, nomination=nomination, calls=number)]

    def _authorize(self, remote: Description) -> None:
        """Give the check list what the peer's side and ours are now."""
        username = f"{remote.ufrag}:{self.announcer.ufrag}"
        self.checks.authorize(Credentials(username, remote.password))
        ours = self._surroundings.candidates
        lent = any(candidate.kind is CandidateKind.MAPPED for candidate in ours)
        self.checks.let_come = lent and self._book.maps_by_destination
        self.checks.set_remote(remote.candidates, self._surroundings)

    def _enter(self, state: LinkState, event: str) -> list[PathEffect]:
        """Change the state, if it changes; the only place that does."""
        if state is self.state:
            return []
        assert state in TRANSITIONS[self.state], f"{self.state} to {state}"
        old, self.state = self.state, state
        return [Trace(f"link {self.peer[:8]}", old.value, event, state.value)]
