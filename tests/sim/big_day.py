"""A day of a big mesh: conversations, and everything that networks do meanwhile; what must hold.

A conversation sends both ways from its begin to its end. Whatever happens to the two nodes or to
the relays is written down, so that a pause can be judged by what there was to mend.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from nostrvpn.paths.events import NetworkChanged, RelayOffers, Wake
from tests.sim.big_nats import DEPENDENT, MIXTURE, STRICT, spoils
from tests.sim.big_network import BigNetwork
from tests.sim.big_talk import Talk
from tests.sim.network import Conditions, Host
from tests.sim.relays import Relay

HOUR = 3600.0
# A conversation sends this often, each way.
EVERY = 0.5
# What still arrives after a relay's death had passed it.
ON_THE_WAY = 0.1
LOOK = 0.05
# How soon the first packet gets through is measured by so much, if it does so within this time.
CLOSELY = 20.0
# Where phones and laptops go.
ELSEWHERE = ("symmetric", "counting", "port-restricted", "linux", "double", "no-udp")
# After this long without an answer WireGuard asks again (whitepaper, 5.4: Rekey-Timeout).
HANDSHAKE_RETRY = 5.0


@dataclass(frozen=True)
class DaySettings:
    """What a day brings. Rates are events a day: of each node, or of each relay."""

    nodes: int = 200
    hours: float = 24.0
    talks: int = 200
    loss: float = 0.01
    relays: int = 4
    always: int = 1
    websockets: bool = True
    rebinds: float = 1.0
    roams: float = 0.5
    naps: float = 0.5
    outages: float = 4.0
    in_talk: float = 0.4

    @classmethod
    def drawn(cls, seed: int, nodes: int, hours: float, talks: int = 0) -> DaySettings:
        """Draw the loss and the number of relays."""
        rng = random.Random(f"day {seed}")
        loss = rng.choice((0.01, 0.01, 0.02, 0.05, 0.1, 0.2))
        relays = rng.choice((0, 1, 2, 3, 4, 6))
        return cls(
            nodes=nodes,
            hours=hours,
            talks=talks or nodes,
            loss=loss,
            relays=relays,
            always=min(1, relays),
        )


class Day:
    def __init__(self, seed: int, settings: DaySettings) -> None:
        self.seed = seed
        self.settings = settings
        delays = Conditions(
            loss=settings.loss, jitter=0.01, signal_loss=settings.loss / 10, signal_jitter=0.05
        )
        self.sim = BigNetwork(seed, delays)
        self.rng = random.Random(f"events {seed}")
        self.talks: list[Talk] = []
        self.happened: Counter[str] = Counter()
        self._numbers = itertools.count(1)
        self._current: list[Talk] = []
        self._people()

    # --- the mesh ---------------------------------------------------------------------------

    def _people(self) -> None:
        sim, s = self.sim, self.settings
        kinds = list(MIXTURE)
        chosen = self.rng.choices(kinds, [MIXTURE[kind] for kind in kinds], k=s.nodes)
        for kind in chosen:
            sim.node(kind)
        self.hosts = list(sim.hosts.values())
        self.mobile = [host for host in self.hosts if self.rng.random() < 0.2]
        for number in range(s.relays):
            sim.relay(websocket=s.websockets, delay=0.005 * number)
        for host in self.hosts:
            sim.at(self.rng.uniform(0, 5.0), partial(self._start, host))

    def _start(self, host: Host) -> None:
        self.sim.boot(host)
        self._offer(host)

    def _offer(self, host: Host, without: Relay | None = None) -> None:
        offers = tuple(r.offer(host) for r in self.sim.carriers.relays if r is not without)
        if offers or without is not None:
            self.sim.step(host, RelayOffers(offers))

    def is_possible(self, first: Host, second: Host) -> bool:
        """Whether there is a way now: by a relay, or direct by the kinds of NATs."""
        kinds = {self.sim.kinds[host.name] for host in (first, second)}
        if any(relay.alive for relay in self.sim.carriers.relays):
            return "no-udp" not in kinds or self.settings.websockets
        if "no-udp" in kinds:
            return False
        if first.v6 and second.v6:
            return True
        if not (first.has_v4 and second.has_v4):
            return False
        pair = [self.sim.kinds[host.name] for host in (first, second)]
        return not any(
            one in DEPENDENT and other in STRICT for one, other in (pair, reversed(pair))
        )

    # --- what happens -----------------------------------------------------------------------

    def live(self) -> None:
        """Let the day pass."""
        sim, s = self.sim, self.settings
        length = s.hours * HOUR
        sim.run(10.0)
        self.begin = sim.now
        for at in self._times(s.talks * s.hours / 24, length):
            sim.at(at, self._talk)
        days = s.nodes * s.hours / 24
        for rate, of, happen in (
            (s.rebinds, self.hosts, self._rebind),
            (s.roams, self.mobile, self._roam),
            (s.naps, self.mobile, self._nap),
            (s.outages, self.hosts, self._outage),
        ):
            for at in self._times(rate * days, length):
                if of:
                    sim.at(at, partial(self._to_one, of, happen))
        for relay in sim.carriers.relays[s.always :]:
            for at in self._times(4 * s.hours / 24, length):
                sim.at(at, partial(self.kill, relay))
        sim.run(length)
        for talk in list(self._current):
            self._end(talk)
        # Whoever may sleep sleeps by now.
        sim.run(2400.0)
        self.settled = sim.now
        self.datagrams = {host.name: host.counts["SendDatagram"] for host in self.hosts}
        self.steps = {host.name: host.wakeups for host in self.hosts}
        sim.run(600.0)

    def _to_one(self, of: list[Host], happen: Callable[[Host], None]) -> None:
        happen(self.rng.choice(of))

    def _times(self, expected: float, length: float) -> Iterator[float]:
        at = 0.0
        while expected and (at := at + self.rng.expovariate(expected / length)) < length:
            yield at

    def _note(self, what: str, *hosts: Host) -> None:
        self.happened[what] += 1
        for talk in self._current:
            if not hosts or talk.first in hosts or talk.second in hosts:
                talk.events.append((self.sim.now, what))

    def _look_for_ways(self) -> None:
        """Nothing can be asked of a conversation while there is no way."""
        for talk in self._current:
            way = self._way(*talk.hosts)
            if talk.ways[-1][1] != way:
                talk.ways.append((self.sim.now, way))

    def _way(self, first: Host, second: Host) -> str:
        if not self.is_possible(first, second):
            return "none"
        return "open" if first.signaling and second.signaling else "mute"

    def _note_spoilt(self, moved: Host) -> None:
        """What ``moved`` sends from its new place comes unasked: some NATs take offence."""
        if any(relay.alive for relay in self.sim.carriers.relays):
            return
        for talk in self._current:
            if moved in talk.hosts and any(spoils(host.nat) for host in talk.hosts):
                talk.events.append((self.sim.now, "spoilt"))

    def _rebind(self, host: Host) -> None:
        self._note("rebind", host)
        self.sim.rebind(host)
        self._note_spoilt(host)

    def _roam(self, host: Host) -> None:
        if host.online:
            self._note("roam", host)
            self._note_spoilt(host)
            self.sim.roam(host, self.rng.choice(ELSEWHERE))
            self._note_spoilt(host)
            self._mute(host, self.rng.uniform(0.2, 1.0))

    def _outage(self, host: Host) -> None:
        """No relay of signaling can be reached for a while."""
        if host.signaling:
            self._note("outage", host)
            self._mute(host, self.rng.uniform(5.0, 60.0))

    def _mute(self, host: Host, duration: float) -> None:
        def speak() -> None:
            host.signaling = True
            self._look_for_ways()

        host.signaling = False
        self._look_for_ways()
        self.sim.at(duration, speak)

    def _nap(self, host: Host) -> None:
        """A laptop is closed, and opened after a while."""
        if not host.online:
            return
        self._note("nap", host)
        for talk in [talk for talk in self._current if host in talk.hosts]:
            self._end(talk)
        host.online = False
        self.sim.at(self.rng.choice((60.0, 600.0, 7200.0)), lambda: self._open(host))

    def _open(self, host: Host) -> None:
        host.online = True
        self.sim.step(host, NetworkChanged())

    def kill(self, relay: Relay) -> None:
        """A relay dies, and comes back after a while."""
        if not relay.alive:
            return
        self._note("relay dies")
        for talk in self._current:
            talk.doomed += [
                (self.sim.now, key)
                for host, peer, key in talk.directions
                if talk.connected is not None and self.sim.stands_by(host, peer, relay)
            ]
        relay.die()
        self._look_for_ways()
        back = self.rng.choice((20.0, 300.0, 1800.0))
        if self.rng.random() < 0.3:  # it said goodbye
            for host in self.hosts:
                self.sim.at(0.1, partial(self._offer, host, relay))
        self.sim.at(back, lambda: self._revive(relay))

    def _revive(self, relay: Relay) -> None:
        relay.alive = True
        relay.restart()
        self._note("relay comes")
        self._look_for_ways()
        for host in self.hosts:
            self.sim.at(self.rng.uniform(0.1, 2.0), partial(self._offer, host))

    # --- conversations ----------------------------------------------------------------------

    def _talk(self) -> None:
        free = [h for h in self.hosts if h.online and h.signaling]
        if len(free) < 2:
            return
        self.talk(*self.rng.sample(free, 2))

    def talk(self, first: Host, second: Host) -> None:
        """Let two nodes have a conversation from now on."""
        if any({first.name, second.name} == {h.name for h in t.hosts} for t in self._current):
            return
        now = self.sim.now
        duration = min(900.0, 20.0 + self.rng.expovariate(1 / 100.0))
        ways = [(now, self._way(first, second))]
        talk = Talk(next(self._numbers), first, second, now, now + duration, ways)
        talk.kinds = (self.sim.kinds[first.name], self.sim.kinds[second.name])
        self.talks.append(talk)
        self._current.append(talk)
        for key in talk.keys:
            self.sim.heard[key] = [now]
        self._want(talk)
        if self.rng.random() < self.settings.in_talk:
            happen = self.rng.choice((self._rebind, self._roam, self._outage))
            host = self.rng.choice(talk.hosts)
            self.sim.at(self.rng.uniform(5.0, duration), lambda: happen(host))
        self._go_on(talk)

    def _want(self, talk: Talk) -> None:
        """There is something to send: WireGuard rings for whom it has no endpoint."""
        talk.rang_at = self.sim.now
        for host, peer, _ in talk.directions:
            snapshot = host.paths.snapshot(peer.key)
            if snapshot is None and host is talk.first:
                self.sim.add(host, peer)
                snapshot = host.paths.snapshot(peer.key)
            if snapshot is not None and host.tunnels[peer.key].endpoint is None:
                self.sim.step(host, Wake(peer.key))

    def _go_on(self, talk: Talk) -> None:
        sim = self.sim
        if talk.over:
            return
        if sim.now >= talk.until:
            self._end(talk)
            return
        for host, peer, _ in talk.directions:
            if sim.is_up(host, peer):
                sim._wg_send(host, peer.key, "flow", 200)
            elif sim.now - talk.rang_at >= HANDSHAKE_RETRY:
                self._want(talk)
        if talk.connected is None and all(len(sim.heard[key]) > 1 for key in talk.keys):
            talk.connected = sim.now - talk.began
        closely = talk.connected is None and sim.now - talk.began < CLOSELY
        sim.at(LOOK if closely else EVERY, lambda: self._go_on(talk))

    def _end(self, talk: Talk) -> None:
        sim = self.sim
        talk.over, talk.ended = True, sim.now
        self._current.remove(talk)
        for host, peer, key in talk.directions:
            times = [*sim.heard.pop(key), sim.now]
            for died_at in [at for at, where in talk.doomed if where == key]:
                back = next(at for at in times if at >= min(died_at + ON_THE_WAY, sim.now))
                talk.replaced.append((died_at, back - died_at))
            seen = host.paths.snapshot(peer.key)
            told = None if seen is None else (seen.state, seen.path, seen.carrier)
            talk.states = (
                *talk.states,
                (told, str(host.tunnels[peer.key].endpoint)) if seen else None,
            )
            if talk.connected is None:
                continue
            since = talk.began + talk.connected
            snapshot = host.paths.snapshot(peer.key)
            way = "none" if snapshot is None else f"{snapshot.state} {snapshot.path}"
            for before, after in itertools.pairwise([at for at in times if at >= since]):
                if after - before > 2.0:
                    talk.gaps.append((before, after - before, way))

    # --- what must hold ---------------------------------------------------------------------

    def violations(self) -> list[str]:
        from tests.sim.big_verdict import verdict

        return verdict(self)

    def totals(self) -> Counter[str]:
        sim = self.sim
        total = Counter({"talks": len(self.talks)}) + self.happened
        for host in self.hosts:
            total.update({f"said {k}": n for k, n in sim.ledgers[host.key].said.items()})
            total.update({f"dropped {k}": n for k, n in host.paths.counters.items()})
        return total

    def summary(self) -> str:
        connects = sorted(t.connected for t in self.talks if t.connected is not None)
        gaps = sorted(gap for t in self.talks for _, gap, _ in t.gaps)
        said = [len(sim_said.said_at) for sim_said in self.sim.ledgers.values()]
        words = [f"{self.settings.loss:.0%} loss, {self.settings.relays} relays"]
        words.append(f"{len(self.talks)} talks")
        if connects:
            p50, p99 = connects[len(connects) // 2], connects[int(len(connects) * 0.99)]
            words.append(f"connected p50 {p50:.2f} p99 {p99:.2f} worst {connects[-1]:.2f} s")
        words.append(f"{len(gaps)} pauses, worst {gaps[-1] if gaps else 0:.1f} s")
        replaced = [took for t in self.talks for _, took in t.replaced]
        if replaced:
            words.append(f"{len(replaced)} relays replaced, worst {max(replaced):.1f} s")
        words.append(f"messages a node {sum(said) / len(said):.1f}, most {max(said)}")
        return ", ".join(words)
