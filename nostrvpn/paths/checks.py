"""The check list of one link: which endpoints of the peer are tried, when, and with what result.

WireGuard has one socket and the kernel chooses its source address, so a pair (RFC 8445 section 6.1.2)
is told by its remote endpoint alone. There is no freezing: there is one component, and pairs are few.

Three kinds of sends, all of them genuine checks:

- openers, with a TTL too small to arrive: they open our own NAT's mapping before anything of the
  peer's can meet that NAT (a Linux NAT that accepts input would otherwise give our flow another port)
- ordinary checks, best pair first, a burst and then paced
- triggered checks, at once, towards whoever just sent an authentic check (RFC 8445 section 7.3.1.4)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment, earliest
from nostrvpn.paths.budgets import Budget
from nostrvpn.paths.candidates import (
    TYPE_PREFERENCE,
    Candidate,
    CandidateKind,
    Surroundings,
    candidate_priority,
    needs_opener,
)
from nostrvpn.paths.events import SendDatagram
from nostrvpn.paths.open_checks import Credentials, OpenChecks, Sent
from nostrvpn.paths.pair import Pair, PairState
from nostrvpn.paths.path_mtu import Probe
from nostrvpn.paths.settings import PathSettings
from nostrvpn.paths.snapshot import PairResult
from nostrvpn.stun.binding import StunMessage

__all__ = ["CheckList"]

# Gaps after each try: seven tries in 3.5 s (NetBird and pion: 7 tries), dense at first, because the
# two sides' mappings open within the first hundred milliseconds.
RETRY = (0.1, 0.15, 0.25, 0.5, 1.0, 1.5)
MAX_TRIES = len(RETRY) + 1
# How long a round lasts: the last try at 3.5 s and 1.5 s for its answer.
ROUND = 5.0
# Checks sent at once when a round begins: one of each kind and family.
BURST = 6
# Openers per pair, against loss, and the gap between them (measured recipe: 0, 100, 200 ms).
OPENERS = 3
OPENER_GAP = 0.1
# A pair is not triggered more often: one check per check of the peer, duplicates aside.
TRIGGER_GAP = 0.02
# Pairs kept: the peer's 16 candidates and as many peer-reflexive ones.
MAX_PAIRS = 32
# Relayed pairs of our own ends, beside those.
MAX_ROUTES = 16
# A relayed path is chosen by its carrier before its round trip: nothing is lost or held up in UDP.
CARRIER_RANK = {"udp": 8, "turn": 3, "websocket": 1}
# Behind a hard NAT with a port that its router opened for us: how long the peer's check, which comes
# to that port, is waited for.
MAPPED_HOLD = 0.5


class CheckList:
    """Pairs and their schedule. ``tick`` sends what is due; ``match`` takes answers."""

    def __init__(
        self, *, controlling: bool, tie_breaker: int, settings: PathSettings, probes: Budget
    ) -> None:
        self.tie_breaker = tie_breaker
        self._open = OpenChecks(controlling=controlling, tie_breaker=tie_breaker)
        self._settings = settings
        self._probes = probes
        self._credentials: Credentials | None = None
        self._surroundings = Surroundings()
        self._burst = 0
        self._slot = 0.0
        self.pairs: dict[Endpoint, Pair] = {}
        self.ends_at: float | None = None
        self.let_come = False
        """Nothing may go to NATed pairs before the peer's own check: it would spoil a port of ours
        that our hard NAT's router opened, as the NAT gives what we send another port, and then has
        two flows between the same ends."""

    @property
    def deadline(self) -> float | None:
        """When ``tick`` is due next."""
        first = self.ends_at
        for pair in self.pairs.values():
            if pair.openers_left:
                first = earliest(first, pair.opener_at)
            if pair.due is not None:
                unpaced = pair.triggered or self._burst > 0
                first = earliest(first, pair.due if unpaced else max(pair.due, self._slot))
        return first

    def knows(self, transaction: bytes) -> bool:
        """Say whether a check with this transaction id is open."""
        return transaction in self._open

    def forget(self) -> None:
        """The link falls asleep: no answer is awaited any more."""
        self._open.clear()

    def results(self) -> tuple[PairResult, ...]:
        """Return every pair's result, best pair first, for ``why``."""
        ordered = sorted(self.pairs.values(), key=lambda pair: pair.rank, reverse=True)
        return tuple(pair.result() for pair in ordered)

    def authorize(self, credentials: Credentials) -> None:
        """Use the peer's (new) credentials from now on."""
        self._credentials = credentials

    def set_remote(self, candidates: tuple[Candidate, ...], surroundings: Surroundings) -> None:
        """Take the peer's candidates; pairs that were tried keep their state.

        Endpoints that the peer no longer names and that do not work are dropped; where its own
        checks came from is not its to name, and stays until it failed.
        """
        self._surroundings = surroundings
        named = {candidate.endpoint for candidate in candidates}
        for endpoint, pair in list(self.pairs.items()):
            learnt = (
                pair.kind is CandidateKind.PEER_REFLEXIVE and pair.state is not PairState.FAILED
            )
            kept = pair.works or learnt or pair.own_route
            if endpoint not in named and not kept:
                del self.pairs[endpoint]
        ours = {candidate.endpoint for candidate in surroundings.candidates}
        for candidate in candidates:
            endpoint = candidate.endpoint
            if endpoint in ours or endpoint.ip.version not in surroundings.versions:
                continue
            known = self.pairs.get(endpoint)
            if known is not None and known.own_route:
                continue
            if known is not None:
                known.kind, known.rank = candidate.kind, self._rank(candidate)
            elif self._has_room():
                self.pairs[endpoint] = Pair(endpoint, candidate.kind, self._rank(candidate))

    def withdraw(
        self, was: Iterable[Candidate], now_named: Iterable[Candidate], now: float
    ) -> None:
        """Note which endpoints the peer named before, or their addresses, and does not any more."""
        before, after = {c.endpoint for c in was}, {c.endpoint for c in now_named}
        ips = {endpoint.ip for endpoint in before} - {endpoint.ip for endpoint in after}
        for endpoint, pair in self.pairs.items():
            if endpoint in after:
                pair.withdrawn_at = None
            elif endpoint in before or (endpoint.ip in ips and not pair.is_relayed):
                pair.withdrawn_at = now

    def set_routes(self, carriers: Mapping[Endpoint, str], now: float) -> None:
        """Take the endpoints that lead through relays: check the new ones, forget the old ones."""
        for endpoint in [
            e for e, pair in self.pairs.items() if pair.own_route and e not in carriers
        ]:
            del self.pairs[endpoint]
        for endpoint, carrier in carriers.items():
            pair = self.pairs.get(endpoint)
            if pair is not None and pair.own_route:
                continue
            if pair is None and len(self.pairs) >= MAX_PAIRS + MAX_ROUTES:
                return
            if pair is None:
                pair = Pair(endpoint, CandidateKind.RELAYED, (False, 0, 0, 0))
                self.pairs[endpoint] = pair
            # The peer's checks may have come through before we knew what they come through.
            self.count_as_relayed(pair, carrier)
            pair.own_route = True
            if self._credentials is not None and not pair.works:
                self._hasten(pair, now)

    @staticmethod
    def count_as_relayed(pair: Pair, carrier: str = "udp") -> None:
        """Note that a pair leads through a relay."""
        pair.kind = CandidateKind.RELAYED
        pair.rank = (False, TYPE_PREFERENCE[pair.kind], CARRIER_RANK[carrier], 0)

    def begin(self, now: float, *, hold: float, keep: Endpoint | None) -> None:
        """Start a round. NATed pairs wait ``hold`` seconds for the peer; ``keep``: the pair in use.

        Relayed pairs that work have a heartbeat of their own, and stay what they are.
        """
        for pair in self.pairs.values():
            if pair.endpoint != keep and not (pair.is_relayed and pair.works):
                pair.restart()
        self._burst = BURST
        self.resume(now, hold=hold)

    def resume(self, now: float, *, hold: float) -> None:
        """Schedule the pairs that wait: those of a new round, or those that were just named."""
        for pair in self.pairs.values():
            if pair.state is not PairState.WAITING or pair.tries or pair.due is not None:
                continue
            pair.due = now
            # What a router opened is open: there nobody's NAT is to be surprised.
            wait = hold if pair.kind is not CandidateKind.MAPPED else 0.0
            wait = max(wait, MAPPED_HOLD) if self.let_come else wait
            if wait and _meets_nat(pair):
                pair.state, pair.due = PairState.HELD, now + wait
        self.ends_at = now + hold + ROUND

    def open_nats(self, now: float, *, times: int = OPENERS) -> None:
        """Schedule openers towards everything that a NAT of ours lies before."""
        if self.let_come:
            return
        for pair in self.pairs.values():
            if _meets_nat(pair) and not pair.works:
                pair.openers_left, pair.opener_at = times, now

    def release(self, now: float) -> None:
        """The peer moved first: check what was held."""
        for pair in self.pairs.values():
            if pair.state is PairState.HELD:
                pair.state, pair.due = PairState.WAITING, now

    def trigger(self, endpoint: Endpoint, now: float) -> Pair | None:
        """An authentic check came from ``endpoint``: check it at once; None if there is no room."""
        pair = self.pairs.get(endpoint)
        if pair is None:
            if not self._has_room():
                return None
            kind = CandidateKind.PEER_REFLEXIVE
            candidate = Candidate(kind, endpoint, candidate_priority(kind, endpoint.ip.version))
            pair = self.pairs[endpoint] = Pair(endpoint, kind, self._rank(candidate))
        pair.heard_at = now
        recent = pair.last_sent is not None and now - pair.last_sent < TRIGGER_GAP
        if not pair.works and not recent:
            self._hasten(pair, now)
        return pair

    def try_anew(self, endpoint: Endpoint, now: float) -> Pair | None:
        """Begin again with the checks of one endpoint: those before left from another port of ours."""
        if (pair := self.pairs.get(endpoint)) is not None and not pair.works:
            pair.restart()
            pair.last_sent = None
        return self.trigger(endpoint, now)

    def settle(self, best: Pair) -> None:
        """A pair works: stop trying worse ones."""
        for pair in self.pairs.values():
            if pair.rank < best.rank and not pair.works and not pair.is_relayed:
                pair.due, pair.openers_left = None, 0
                pair.reason = pair.reason or "not needed: a better path was found first"

    def better_may_come(self, pair: Pair) -> bool:
        """Say whether a better pair than ``pair`` is still being tried."""
        return any(
            other.rank > pair.rank and other.due is not None and other.tries < 3
            for other in self.pairs.values()
            if not other.works
        )

    def working(self) -> list[Pair]:
        """Return the pairs whose last check was answered."""
        return [pair for pair in self.pairs.values() if pair.works]

    def tick(self, moment: Moment) -> list[SendDatagram]:
        """Send the openers and checks that are due; end the round when its time is over."""
        now = moment.now
        effects: list[SendDatagram] = []
        first = self.deadline
        if first is None or first > now:
            return effects
        ordered = sorted(self.pairs.values(), key=lambda pair: pair.rank, reverse=True)
        for pair in ordered:
            if pair.openers_left and pair.opener_at <= now:
                pair.openers_left -= 1
                pair.opener_at = now + OPENER_GAP
                effects += self.send(pair, moment, ttl=self._settings.opener_ttl)
        kinds: set[tuple[CandidateKind, int]] = set()
        due: list[tuple[tuple[bool, int, bool], Pair]] = []
        for pair in ordered:
            if pair.due is not None and pair.due <= now:
                kind = (pair.kind, pair.endpoint.ip.version)
                # The best of each kind first: one of them is the path, rarely the second best.
                due.append(((not pair.triggered, pair.tries, kind in kinds), pair))
                kinds.add(kind)
        for _, pair in sorted(due, key=lambda item: item[0]):
            if not pair.triggered and not self._take_slot(now):
                break
            effects += self._try(pair, moment)
        if self.ends_at is not None and now >= self.ends_at:
            self._end()
        return effects

    def send(
        self,
        pair: Pair,
        moment: Moment,
        *,
        ttl: int | None = None,
        nomination: int | None = None,
        calls: int | None = None,
        probe: Probe | None = None,
    ) -> list[SendDatagram]:
        """Send one check now, unless the endpoint's probe budget is spent.

        ``nomination``, ``calls`` and ``probe`` are as in ``OpenChecks.render``.
        """
        if self._credentials is None:
            return []
        proven = pair.works or pair.own_route
        if not proven and not self._probes.spend(pair.endpoint.ip, moment.now):
            pair.reason = "too many probes to this address"
            return []
        data = self._open.render(
            pair.endpoint,
            self._credentials,
            moment,
            nomination=nomination,
            calls=calls,
            probe=probe,
        )
        pair.contacted = True
        return [SendDatagram(data, pair.endpoint, ttl, dont_fragment=probe is not None)]

    def has_contacted(self, endpoint: Endpoint) -> tuple[bool, bool]:
        """Say whether anything was sent to the endpoint, and whether to its address at all."""
        known = self.pairs.get(endpoint)
        if known is not None and known.contacted:
            return True, True
        ip = endpoint.ip
        return False, any(at.ip == ip for at, pair in self.pairs.items() if pair.contacted)

    def match(self, message: StunMessage, source: Endpoint, now: float) -> tuple[Pair, Sent]:
        """Take an authentic answer: return its pair, now succeeded, and the check it answers.

        PeerMisbehaved for answers that are forged, from elsewhere (RFC 8445 section 7.2.5.2.1), or
        errors.
        """
        sent = self._open.authenticate(message)
        pair = self.pairs.get(sent.endpoint)
        if source != sent.endpoint:
            if pair is not None and not pair.works:
                pair.reason = f"answered from another address, {source}"
            raise PeerMisbehaved("wrong_source", "an answer from another address")
        self._open.close(message.transaction)
        if pair is None:
            raise PeerMisbehaved("late_answer", "an answer for a pair that is gone")
        if message.error_code is not None:
            pair.reason = f"the peer answered with error {message.error_code}"
            raise PeerMisbehaved("error_answer", pair.reason)
        pair.answered(now - sent.at, now)
        return pair, sent

    def _hasten(self, pair: Pair, now: float) -> None:
        """Check a pair at once, and as often as in a round."""
        pair.due, pair.triggered = now, True
        if pair.state is PairState.FAILED:
            pair.state, pair.tries, pair.reason = PairState.WAITING, 0, ""
        self.ends_at = max(self.ends_at or 0.0, now + ROUND)

    def _try(self, pair: Pair, moment: Moment) -> list[SendDatagram]:
        effects = self.send(pair, moment)
        pair.triggered = False
        pair.state = PairState.IN_PROGRESS
        pair.last_sent = moment.now
        pair.tries += 1
        pair.due = moment.now + RETRY[pair.tries - 1] if pair.tries < MAX_TRIES else None
        return effects

    def _take_slot(self, now: float) -> bool:
        """Pace ordinary checks: the burst is free, then one each interval (RFC 8445, 14.2)."""
        if self._burst:
            self._burst -= 1
        elif now < self._slot:
            return False
        self._slot = now + self._settings.check_interval
        return True

    def _end(self) -> None:
        self.ends_at = None
        for pair in self.pairs.values():
            pair.due, pair.openers_left, pair.triggered = None, 0, False
            if not pair.works:
                pair.fail(pair.reason or f"no answer to {pair.tries} checks")

    def _has_room(self) -> bool:
        if len(self.pairs) < MAX_PAIRS:
            return True
        for endpoint, pair in self.pairs.items():
            if pair.kind is CandidateKind.PEER_REFLEXIVE and pair.state is PairState.FAILED:
                del self.pairs[endpoint]
                return True
        return False

    def _rank(self, candidate: Candidate) -> tuple[bool, int, int, int]:
        ip = candidate.endpoint.ip
        on_link = any(
            prefix.version == ip.version and ip in prefix for prefix in self._surroundings.prefixes
        )
        return (on_link, TYPE_PREFERENCE[candidate.kind], ip.version, candidate.priority)


def _meets_nat(pair: Pair) -> bool:
    """Say whether a NAT that does not expect us may be at the pair's far end."""
    return needs_opener(pair.endpoint) and not pair.is_relayed
