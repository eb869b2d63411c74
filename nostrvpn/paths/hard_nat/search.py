"""The search for a path through a NAT that gives another port to each destination (a hard NAT).

One search of one link, started when the ordinary round found no direct path. It is pure, sends only
to STUN servers and to an address that the peer, a member, named as its own outside address, and it
counts as a hit nothing but an authentic check or answer. What it does depends on both NATs:

====================  ==========================================================================
one counts its ports  The hard side opens three new source ports towards the peer, and asks a STUN
the other is easy     server from other new ones before, between and after. So the answers bracket
                      the ports of the openings exactly, however late the peer hears of them. The
                      peer checks those few ports.
both count            The controlled side tells which ports come next. The controlling one opens
                      flows towards some of them, bracketed, and tells where they lead. The
                      controlled side then sends there from one new source port after the other,
                      until its NAT's counter stands at one of the ports foretold.
one draws its ports   Birthday paradox: the hard side opens 256 source ports towards the peer; the
the other is easy     peer checks up to 1,024 ports of the hard side, at 100 a second.
one draws, the other  Not attempted: 54,000 packets a side for an even chance (docs/hard-nats.md).
is hard as well
====================  ==========================================================================

A hit that came to another source port than WireGuard's is of use after WireGuard's packets are
rewritten to it: ``Found.local_port``. IPv4 only: nobody translates ports in IPv6.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment, earliest
from nostrvpn.paths.hard_nat.plan import PlanKind, PortSpan, SearchPlan
from nostrvpn.paths.hard_nat.ports import PortSteps, likely_range
from nostrvpn.paths.hard_nat.roles import Role, role_of
from nostrvpn.paths.hard_nat.samples import Samples, openings_of
from nostrvpn.paths.hard_nat.shots import RATE, Shot, Shots
from nostrvpn.paths.hard_nat.sweep import Sweep, targets_of
from nostrvpn.paths.hard_nat.task import Failed, Found, SearchEffect, SearchTask, Tell
from nostrvpn.stun.binding import StunKind, StunMessage

__all__ = ["SOURCE_PORTS", "Failed", "Found", "Search", "SearchEffect", "SearchTask", "Tell"]

SOURCE_PORTS = range(61_000, 65_536)
"""Where source ports are taken from: above the range Linux gives to sockets (32768 to 60999)."""
# Ports of one search: 256 that are opened, and those of the samples.
SOURCE_COUNT = 320
# Openings made between samples; one is enough unless its answer or its neighbours' are lost.
OPENINGS = 3
SCATTERED = 256
# While ports are opened, every so many packets one sample, to learn the NAT's range.
SCATTER_SAMPLE = 32
GUESSES = 1_024
# Checks a second towards ports that were told: a few, three times over, against loss.
SPRAY_RATE = 50
SPRAY_TIMES = 3
MAX_SPRAY = 200
# Seconds. How long answers of a burst of samples are waited for, and how many bursts there are.
BURST_WAIT = 1.0
MAX_BURSTS = 3
# Forecasts and sweeps of one search, where both NATs count.
MAX_ROUNDS = 2
# How long to wait for the peer's plan (signaling may take its time), and for hits after our part.
PLAN_PATIENCE = 30.0
HIT_PATIENCE = 25.0
ANSWER_PATIENCE = 2.0
# Several of the ports that were opened may be hit. The peer keeps the first whose answer it sees, and
# checks that again (CONFIRM, after the hit); whoever opened follows what was checked last, once
# nothing else came for SETTLE, and may still be moved for LINGER.
CONFIRM = (0.15, 0.35, 0.9)
SETTLE = 0.5
LINGER = 5.0
CHECK_BACK = (0.0, 0.2, 0.6)


class Search:
    """The machine. ``result`` is None while it runs; ``finished`` when it may be dropped.

    ``ports`` are the source ports in use, on which STUN must be taken (``Tap.listen_on``).
    """

    def __init__(self, task: SearchTask, moment: Moment) -> None:
        self.task = task
        self.result: Found | Failed | None = None
        room = len(SOURCE_PORTS) - SOURCE_COUNT
        first = SOURCE_PORTS.start + int(moment.entropy.fraction() * room)
        self.ports = range(first, first + SOURCE_COUNT)
        self._used = 0
        self._ttl = None if task.attempt % 2 else task.opener_ttl
        self._shots = Shots(task.credentials, task.controlling, task.tie_breaker)
        self._name = ""
        self._ip = IPv4Address(0)
        self._acted_on: tuple[str, PlanKind] | None = None
        self._samples: Samples | None = None
        self._bursts = self._rounds = self._skip = 0
        self._forecast: PortSteps | None = None
        self._scattering: list[int] | None = None
        self._sweep: Sweep | None = None
        self._again: list[tuple[float, Shot]] = []
        self._settling: tuple[float, Found] | None = None
        self._ends_at: float | None = None
        self._why_ended = ""
        self.role = role_of(task.own, task.peer, controlling=task.controlling)

    @property
    def packets(self) -> int:
        """Packets sent so far."""
        return self._shots.sent

    @property
    def finished(self) -> bool:
        """Whether nothing more will come of it."""
        return self.result is not None and self._ends_at is None

    @property
    def deadline(self) -> float | None:
        """When ``tick`` is due next."""
        return earliest(
            self._shots.deadline,
            None if self._samples is None else self._samples.until,
            None if self._sweep is None else self._sweep.next_at,
            min((at for at, _ in self._again), default=None),
            None if self._settling is None else self._settling[0],
            self._ends_at,
        )

    def start(self, moment: Moment) -> list[SearchEffect]:
        """Begin; sides that only react wait for the peer's plan."""
        match self.role:
            case Role.OPEN | Role.FORECAST:
                return self._begin(moment)
            case Role.FOLLOW | Role.ANSWER:
                self._end_at(moment.now + PLAN_PATIENCE, "the peer told no plan")
            case str() as refused:
                self._fail(refused)
        return []

    def told(self, plan: SearchPlan, moment: Moment) -> list[SearchEffect]:
        """The peer told a plan. PeerMisbehaved if it is not about the peer's own address."""
        if self.result is not None or self._acted_on == (plan.search, plan.kind):
            return []
        if plan.ip != self.task.target.ip:
            raise PeerMisbehaved("foreign_search_plan", "a search at an address not the peer's own")
        fits = {
            PlanKind.OPENED: (Role.FOLLOW, Role.FORECAST),
            PlanKind.SCATTERED: (Role.FOLLOW,),
            PlanKind.FORECAST: (Role.ANSWER,),
        }[plan.kind]
        if self.role not in fits or (self.role is Role.FORECAST and not self._is_ours(plan)):
            return []
        self._acted_on = (plan.search, plan.kind)
        self._name = plan.search
        if plan.kind is PlanKind.FORECAST:
            targets = targets_of(plan.ports[0].last, plan.step)
            return self._burst(moment, towards=targets)
        if self._forecast is not None:
            self._sweep = Sweep(plan, self._forecast.last, self._forecast.step, moment.now)
            self._end_at(moment.now + HIT_PATIENCE, "the ports foretold were missed")
            return self._run_sweep(moment)
        self._shots.clear()
        ports = self._guesses(plan, moment) if plan.kind is PlanKind.SCATTERED else _spray(plan)
        rate = RATE if plan.kind is PlanKind.SCATTERED else SPRAY_RATE
        self._shots.put([Shot(Endpoint(plan.ip, port)) for port in ports], moment.now, rate=rate)
        ends = moment.now + len(ports) / rate + ANSWER_PATIENCE
        self._end_at(ends, f"none of {len(ports)} ports of the peer answered")
        return self.tick(moment)

    def _is_ours(self, plan: SearchPlan) -> bool:
        return self._forecast is not None and plan.search == self._name

    def knows(self, transaction: bytes) -> bool:
        """Say whether a packet of the search with this transaction id awaits its answer."""
        return transaction in self._shots.awaited

    def answered(
        self, message: StunMessage, source: Endpoint, moment: Moment
    ) -> list[SearchEffect]:
        """An answer came. PeerMisbehaved if it is forged, from elsewhere, or an error."""
        shot = self._shots.awaited[message.transaction]
        if not shot.is_query and not message.is_authentic(self.task.credentials.password):
            raise PeerMisbehaved("forged_answer", "an answer that is not the peer's")
        if source != shot.destination:
            raise PeerMisbehaved("wrong_source", "an answer from another address")
        del self._shots.awaited[message.transaction]
        if message.kind is not StunKind.RESPONSE:
            raise PeerMisbehaved("error_answer", "an error for an answer")
        if shot.is_query:
            return self._sampled(shot, message.mapped, moment)
        if self.role is Role.OPEN:
            self._again = [(at, again) for at, again in self._again if again != shot]
        if self.role is Role.OPEN:
            found = Found(shot.source_port, source)
            self._settling = (moment.now + SETTLE, found) if found != self.result else None
        elif self.result is None:
            self._found(shot.source_port, source, moment)
            again = Shot(source, shot.source_port)
            self._again = [(moment.now + gap, again) for gap in CONFIRM]
        return []

    def asked(self, source: Endpoint, port: int | None, moment: Moment) -> list[SearchEffect]:
        """An authentic check of the peer came to ``port`` (None: WireGuard's): check back."""
        if source.ip != self.task.target.ip or self.finished or isinstance(self.result, Failed):
            return []
        if port is None:
            if self.role is Role.ANSWER and self._acted_on:
                self._found(None, source, moment)
            return []
        if port not in self.ports or self.role is not Role.OPEN:
            return []
        if self._settling is not None and self._settling[1].local_port != port:
            self._settling = None
        shot = Shot(source, port)
        self._again = [(moment.now + gap, shot) for gap in CHECK_BACK]
        return self.tick(moment)

    def tick(self, moment: Moment) -> list[SearchEffect]:
        """Do what is due."""
        now = moment.now
        effects: list[SearchEffect] = [*self._shots.tick(moment)]
        due = [shot for at, shot in self._again if at <= now]
        self._again = [(at, shot) for at, shot in self._again if at > now]
        effects += self._shots.at_once(due, moment)
        if self._scattering is not None and self._shots.deadline is None:
            effects += self._tell_scattered(moment)
        if self._samples is not None and self._samples.until <= now:
            effects += self._judge(moment)
        effects += self._run_sweep(moment)
        if self._settling is not None and self._settling[0] <= now:
            settled, self._settling = self._settling[1], None
            self._found(settled.local_port, settled.remote, moment)
        if self._ends_at is not None and self._ends_at <= now:
            self._ends_at = None
            if self._sweep is not None and self._rounds < MAX_ROUNDS:
                effects += self._begin(moment)
            elif self.result is None:
                self._fail(self._why_ended)
        return effects

    # -- the hard side -------------------------------------------------------------------------

    def _begin(self, moment: Moment) -> list[SearchEffect]:
        self._rounds += 1
        self._name = moment.entropy.take(4).hex()
        if self._sweep is not None:
            self._skip = self._sweep.missed
        self._forecast = self._sweep = None
        self._shots.clear()
        return self._burst(moment)

    def _burst(self, moment: Moment, towards: tuple[int, ...] = ()) -> list[SearchEffect]:
        """Ask a STUN server from new source ports, with openings in between, all in one go."""
        server = self.task.servers[self._bursts % len(self.task.servers)]
        self._bursts += 1
        target = self.task.target
        if self.role is Role.OPEN:
            openings = [Shot(target, self._new_port(), self._ttl) for _ in range(OPENINGS)]
        elif towards:
            openings = [Shot(Endpoint(target.ip, port), None, self._ttl) for port in towards]
        else:
            openings = []
        count = len(openings) + 1 if openings else OPENINGS + 1
        self._samples = Samples(count, towards, moment.now + BURST_WAIT)
        shots: list[Shot] = []
        for number in range(count):
            shots.append(Shot(server, self._new_port(), is_query=True, tag=number))
            shots += openings[number : number + 1]
        self._ends_at = None
        return [*self._shots.at_once(shots, moment)]

    def _sampled(self, shot: Shot, mapped: Endpoint | None, moment: Moment) -> list[SearchEffect]:
        if mapped is None or not isinstance(mapped.ip, IPv4Address):
            return []
        self._ip = mapped.ip
        if self._sweep is not None:
            self._sweep.sampled(shot.tag, mapped.port)
        elif self._scattering is not None:
            self._scattering.append(mapped.port)
        elif self._samples is not None:
            self._samples.seen[shot.tag] = mapped.port
            if self._samples.complete:
                return self._judge(moment)
        return []

    def _judge(self, moment: Moment) -> list[SearchEffect]:
        """The samples are in, or time is up: what kind of NAT is ours, and what follows?"""
        samples = self._samples
        assert samples is not None
        self._samples = None
        if samples.too_few:
            if self._bursts < MAX_BURSTS * max(1, self._rounds):
                return self._burst(moment, samples.towards)
            self._fail("STUN servers do not answer from other source ports")
            return []
        steps = samples.steps
        if self.role is Role.FORECAST:
            if steps is None:
                self._fail("both NATs are hard, and ours draws its ports")
                return []
            self._forecast = steps
            self._end_at(moment.now + PLAN_PATIENCE, "the peer opened no ports")
            # The second time it is known how far the counter goes while plans are on their way.
            coming = (steps.last + steps.step * self._skip) % 65536 or 1
            span = PortSpan(coming, coming)
            plan = SearchPlan(self._name, PlanKind.FORECAST, self._ip, steps.step, (span,))
            return [Tell(plan)]
        if steps is None:
            if self.role is Role.OPEN:
                return self._scatter(samples, moment)
            self._fail("both NATs are hard, and ours draws its ports")
            return []
        spans = openings_of(samples)
        if not spans and self._bursts < MAX_BURSTS:
            # The low TTL ended before our outermost NAT, it seems.
            self._ttl = None
            return self._burst(moment, samples.towards)
        if not spans:
            self._fail("our NAT does not count as it seemed to")
            return []
        self._end_at(moment.now + HIT_PATIENCE, "no check of the peer reached the ports we opened")
        return [Tell(SearchPlan(self._name, PlanKind.OPENED, self._ip, samples.lattice, spans))]

    def _scatter(self, samples: Samples, moment: Moment) -> list[SearchEffect]:
        """Open source ports by the hundred; those of the samples' burst count."""
        self._scattering = list(samples.ports)
        server = self.task.servers[self._bursts % len(self.task.servers)]
        shots: list[Shot] = []
        for number in range(OPENINGS * self._bursts, SCATTERED):
            shots.append(Shot(self.task.target, self._new_port(), self._ttl))
            if number % SCATTER_SAMPLE == 0:
                shots.append(Shot(server, self._new_port(), is_query=True))
        self._shots.put(shots, moment.now)
        return [*self._shots.tick(moment)]

    def _tell_scattered(self, moment: Moment) -> list[SearchEffect]:
        assert self._scattering is not None
        likely = likely_range(self._scattering)
        self._scattering = None
        self._end_at(moment.now + HIT_PATIENCE, "no guess of the peer hit a port we opened")
        span = PortSpan(likely.start, likely.stop - 1)
        return [Tell(SearchPlan(self._name, PlanKind.SCATTERED, self._ip, 0, (span,)))]

    def _run_sweep(self, moment: Moment) -> list[SearchEffect]:
        sweep = self._sweep
        if sweep is None or sweep.next_at is None or self.result is not None:
            return []
        effects: list[SearchEffect] = []
        while sweep.next_at is not None and sweep.next_at <= moment.now:
            shot = sweep.next_shot(self.task, moment.now, self._new_port)
            if shot is None:
                # One packet or its answer may have been lost: the same flows once more.
                self._shots.put(sweep.made, moment.now, rate=SPRAY_RATE)
                ends = moment.now + len(sweep.made) / SPRAY_RATE + ANSWER_PATIENCE
                self._end_at(ends, "the ports foretold were missed")
                break
            effects += self._shots.at_once([shot], moment)
        return effects

    # -- the easy side -------------------------------------------------------------------------

    def _guesses(self, plan: SearchPlan, moment: Moment) -> list[int]:
        """Draw distinct ports of the peer's range."""
        pool = list(range(plan.ports[0].first, plan.ports[0].last + 1))
        count = min(GUESSES, len(pool))
        for index in range(count):
            other = index + int(moment.entropy.fraction() * (len(pool) - index))
            pool[index], pool[other] = pool[other], pool[index]
        return pool[:count]

    # -- both ----------------------------------------------------------------------------------

    def _new_port(self) -> int:
        """Return a source port that this search has not used, as long as there is one."""
        port = self.ports[self._used % len(self.ports)]
        self._used += 1
        return port

    def _found(self, port: int | None, remote: Endpoint, moment: Moment) -> None:
        self.result = Found(port, remote)
        self._shots.clear()
        self._samples = self._sweep = self._scattering = None
        self._end_at(moment.now + LINGER, "")

    def _fail(self, reason: str) -> None:
        self.result = Failed(reason)
        self._shots.clear()
        self._samples = self._sweep = self._scattering = self._ends_at = None

    def _end_at(self, at: float, why: str) -> None:
        self._ends_at, self._why_ended = at, why


def _spray(plan: SearchPlan) -> list[int]:
    """The ports told, those of each opening in turn, several times over."""
    told = [list(range(span.first, span.last + 1, max(1, abs(plan.step)))) for span in plan.ports]
    longest = max(map(len, told))
    ports = [ports[index] for index in range(longest) for ports in told if index < len(ports)]
    return (ports * SPRAY_TIMES)[:MAX_SPRAY]
