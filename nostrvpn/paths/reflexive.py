"""Our address as STUN servers see it, kept fresh, and what our NAT does.

The first answer is usable at once. The kind of mapping needs two servers of one family (RFC 5780
section 4.3 asks a second address of one server, which public servers do not have any more), and how
a NAT with dependent mapping chooses its ports needs three.
"""

from __future__ import annotations

from dataclasses import dataclass

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Moment, earliest
from nostrvpn.paths.candidates import is_private, refusal
from nostrvpn.paths.events import SendDatagram
from nostrvpn.paths.hard_nat.ports import MIN_SAMPLES, steps_of
from nostrvpn.paths.settings import PathSettings
from nostrvpn.paths.snapshot import Mapping, NatReport, ServerReport
from nostrvpn.stun.binding import TRANSACTION, StunKind, StunMessage, render_query

__all__ = ["REFRESH", "ReflexiveProbe", "next_on_grid"]

# Ours: below the 30 s after which the most impatient NATs forget a UDP mapping (RFC 4787 REQ-5
# allows 2 minutes, reality is about 30 s).
REFRESH = 25.0
# Gaps between the sends of one query (Tailscale's netcheck: 100 ms first); then the server is dead.
RETRANSMIT = (0.1, 0.2, 0.4, 0.8, 1.5)
# Servers asked at once per family: two make the mapping's kind, the third covers a dead one.
PARALLEL = 3
# How often the kind of mapping is asked again.
RECLASSIFY = 600.0
# Servers kept; more are ignored.
MAX_SERVERS = 16
# A server that was not asked for this long sees a new mapping, made in the order of asking (RFC 4787
# REQ-5: mappings live 2 minutes, many NATs take 5).
FORGOTTEN = 310.0
# The packet to our own outside address: when after our address was learnt, how often, how long apart.
HAIRPIN_AFTER = 1.0
HAIRPIN_TRIES = 2
HAIRPIN_GAP = 0.5
# Changes of one move come within this time.
JUST_BEGAN = 0.3
# Links that lose an answer may make us ask so often.
DOUBT_GAP = 2.0


def next_on_grid(now: float, interval: float) -> float:
    """Return the next multiple of ``interval``: timers on one grid share their wake-ups."""
    return (now // interval + 1) * interval


@dataclass(slots=True)
class _Server:
    endpoint: Endpoint
    mapped: Endpoint | None = None
    rtt: float | None = None
    tries: int = 0
    retry_at: float | None = None
    dead: bool = False
    asked_at: float | None = None
    order: int | None = None
    fresh: bool = False


@dataclass(slots=True)
class _Hairpin:
    """The test whether our NAT sends back what we send to our own outside address."""

    result: bool | None = None
    due: float | None = None
    tries: int = 0
    transaction: bytes = b""


class ReflexiveProbe:
    """Asks STUN servers. ``answered`` says whether our address changed; raises PeerMisbehaved."""

    def __init__(self, servers: tuple[Endpoint, ...], settings: PathSettings) -> None:
        self._settings = settings
        self._servers: dict[Endpoint, _Server] = {}
        self._sent: dict[bytes, tuple[Endpoint, float]] = {}
        self._current: dict[int, Endpoint] = {}
        self._primary: dict[int, Endpoint] = {}
        self._waiting: set[int] = set()
        self._searching: set[int] = set()
        self._versions: frozenset[int] = frozenset()
        self.refresh_at: float | None = None
        """When our address is to be asked again, if anybody needs it."""
        self._classify_at = 0.0
        self._asked = 0
        self._answers: dict[int, bool] = {}
        self._hairpin = _Hairpin()
        self._filtering = "unknown"
        self._verdict: Mapping | None = None
        self._began_at = self._doubted_at = float("-inf")
        self._keep(servers)

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Our reflexive endpoints, IPv6 first."""
        return tuple(self._current[version] for version in (6, 4) if version in self._current)

    @property
    def pending(self) -> bool:
        """Whether a first answer is on its way that a description should wait for."""
        return bool(self._waiting) and (4 in self._waiting or not self._current)

    @property
    def deadline(self) -> float | None:
        """When ``tick`` is due next."""
        return earliest(self.refresh_at, self.urgent)

    @property
    def urgent(self) -> float | None:
        """When what cannot be put off is due: an answer is awaited."""
        first = self._hairpin.due
        for server in self._servers.values():
            if server.retry_at is not None:
                first = earliest(first, server.retry_at)
        return first

    @property
    def mapping(self) -> Mapping:
        """How our NAT maps, as far as it is known."""
        return self._mapping()

    @property
    def mapping_servers(self) -> tuple[Endpoint, ...]:
        """The IPv4 servers that answered."""
        return tuple(
            server.endpoint
            for server in self._servers.values()
            if server.mapped is not None and server.endpoint.ip.version == 4
        )

    def report(self) -> NatReport:
        """Return what is known of our NAT."""
        mapping = self._mapping()
        steps = steps_of(self._samples()) if mapping is Mapping.PREDICTABLE else None
        return NatReport(
            mapping=mapping.value,
            reflexive_v4=self._current.get(4),
            reflexive_v6=self._current.get(6),
            servers=tuple(
                ServerReport(s.endpoint, s.mapped, None if s.rtt is None else s.rtt * 1000)
                for s in self._servers.values()
            ),
            step=None if steps is None else steps.step,
            last_port=None if steps is None else steps.last,
            sure=None if steps is None else steps.sure,
            filtering=self._filtering,
            hairpin=self._hairpin.result,
            udp_v4=self._answers.get(4),
            udp_v6=self._answers.get(6),
        )

    def saw_unsolicited(self, source: Endpoint, *, address_known: bool) -> None:
        """Something authentic came from an endpoint to which nothing of ours had gone.

        ``address_known``: other ports of its address had been sent to. Tells the NAT's filtering.
        """
        if source.ip.version != 4 or is_private(source.ip):
            return
        if not address_known:
            self._filtering = "independent"
        elif self._filtering == "unknown":
            self._filtering = "address-dependent"

    def saw_request(self, transaction: bytes) -> bool:
        """Say whether a request that came in is our own, sent back by our NAT (a hairpin)."""
        if not transaction or transaction != self._hairpin.transaction:
            return False
        self._hairpin.result, self._hairpin.due = True, None
        return True

    def knows(self, transaction: bytes) -> bool:
        """Say whether a query with this transaction id is open."""
        return transaction in self._sent

    def use_servers(self, servers: tuple[Endpoint, ...], moment: Moment) -> list[SendDatagram]:
        """Replace the servers; ask the new ones unless nothing changed."""
        if servers[:MAX_SERVERS] == tuple(self._servers):
            return []
        self._keep(servers)
        return self.start(self._versions, moment)

    def just_began(self, versions: frozenset[int], now: float) -> bool:
        """Say whether the servers are being asked afresh, in these families, since a moment."""
        return versions == self._versions and now - self._began_at < JUST_BEGAN

    def start(
        self, versions: frozenset[int], moment: Moment, *, forget: bool = False
    ) -> list[SendDatagram]:
        """Ask afresh, in the families this host has.

        Addresses known so far stay meanwhile, unless we ``forget`` them.
        """
        self._versions, self._began_at = versions, moment.now
        if forget:
            self._current.clear()
        self._sent.clear()
        self._waiting.clear()
        self._searching.clear()
        self._classify_at = moment.now + RECLASSIFY
        effects: list[SendDatagram] = []
        for server in self._servers.values():
            server.retry_at, server.dead, server.mapped, server.order = None, False, None, None
        for version in [version for version in self._current if version not in versions]:
            del self._current[version]
            self._answers.pop(version, None)
        for version in sorted(versions):
            asked = [s for s in self._servers.values() if s.endpoint.ip.version == version]
            if asked:
                self._waiting.add(version)
            effects += [self._query(server, moment, tries=0) for server in asked[:PARALLEL]]
        self.refresh_at = next_on_grid(moment.now, REFRESH) if effects else None
        return effects

    def answered(self, message: StunMessage, source: Endpoint, moment: Moment) -> bool:
        """Take a server's answer; return whether our candidates changed by it."""
        server_endpoint, sent_at = self._sent[message.transaction]
        if source != server_endpoint:
            raise PeerMisbehaved("wrong_source", "a STUN answer from another address")
        server = self._servers[server_endpoint]
        self._forget(server)
        mapped = message.mapped
        if (
            message.kind is not StunKind.RESPONSE
            or mapped is None
            or mapped.ip.version != source.ip.version
            or refusal(mapped, self._settings) is not None
        ):
            server.dead = True
            raise PeerMisbehaved("useless_stun_answer", f"the STUN server {source} gave no address")
        if server.mapped not in (None, mapped) and self._mapping() is Mapping.INDEPENDENT:
            # The NAT has begun anew: what others saw before is no sign that each sees another port.
            for other in self._servers.values():
                other.mapped = None
            self._classify_at = moment.now
        server.dead, server.mapped, server.rtt = False, mapped, moment.now - sent_at
        version = source.ip.version
        self._answers[version] = True
        primary = self._servers.get(self._primary.get(version, source))
        first = version in self._waiting
        self._waiting.discard(version)
        self._searching.discard(version)
        # One server speaks for a family: another one's view through a dependent NAT is no news.
        if not first and primary is not None and primary is not server and not primary.dead:
            return False
        self._primary[version] = source
        known = self._current.get(version)
        self._current[version] = mapped
        if known != mapped and version == 4:
            self._hairpin = _Hairpin(due=moment.now + HAIRPIN_AFTER)
            if known is None or known.ip != mapped.ip:
                self._moved()
        return known != mapped

    def tick(self, moment: Moment) -> tuple[list[SendDatagram], bool]:
        """Repeat, refresh, give up: return what to send, and whether our candidates changed."""
        now = moment.now
        effects: list[SendDatagram] = []
        changed = False
        for server in list(self._servers.values()):
            if server.retry_at is None or server.retry_at > now:
                continue
            if server.tries < len(RETRANSMIT):
                effects.append(self._query(server, moment, tries=server.tries))
            else:
                gave_up, more = self._give_up(server, moment)
                changed |= gave_up
                effects += more
        effects += self._test_hairpin(moment)
        if self.refresh_at is not None and self.refresh_at <= now:
            if now >= self._classify_at:
                return effects + self.start(self._versions, moment), changed
            self.refresh_at = next_on_grid(now, REFRESH)
            effects += self._refresh(moment)
        return effects, changed

    def doubt(self, moment: Moment) -> list[SendDatagram]:
        """A path was interrupted: see whether our NAT has given us another port, but rarely."""
        if moment.now - self._doubted_at < DOUBT_GAP or not self._current:
            return []
        self._doubted_at = moment.now
        return self._refresh(moment)

    def freshen(self, moment: Moment) -> list[SendDatagram]:
        """Somebody needs our address: ask again if refreshes were left out meanwhile."""
        if self.refresh_at is None or self.refresh_at > moment.now:
            return []
        return self.start(self._versions, moment)

    def _refresh(self, moment: Moment) -> list[SendDatagram]:
        """Ask one server a family, which also keeps the NAT's mapping open."""
        effects = []
        for version in sorted(self._versions):
            family = [s for s in self._servers.values() if s.endpoint.ip.version == version]
            chosen = self._primary.get(version)
            # Without a primary nobody answered yet: ask the first again, as the network may be back.
            for server in family:
                if chosen in (None, server.endpoint):
                    if server.retry_at is None:
                        effects.append(self._query(server, moment, tries=0))
                    break
        return effects

    def _moved(self) -> None:
        """Another NAT: nothing that was found of the last one holds, and all its mappings are new."""
        self._filtering, self._verdict = "unknown", None
        for server in self._servers.values():
            server.fresh = True

    def _test_hairpin(self, moment: Moment) -> list[SendDatagram]:
        test, ours = self._hairpin, self._current.get(4)
        if test.due is None or test.due > moment.now:
            return []
        if ours is None or test.tries == HAIRPIN_TRIES:
            test.due = None
            test.result = None if ours is None else False
            return []
        test.transaction = test.transaction or moment.entropy.take(TRANSACTION)
        test.tries += 1
        test.due = moment.now + HAIRPIN_GAP
        return [SendDatagram(render_query(test.transaction), ours)]

    def _give_up(self, server: _Server, moment: Moment) -> tuple[bool, list[SendDatagram]]:
        """Count a silent server out, ask the next; drop the address once none is left to ask."""
        self._forget(server)
        server.dead = True
        version = server.endpoint.ip.version
        family = [s for s in self._servers.values() if s.endpoint.ip.version == version]
        if server.endpoint == self._primary.get(version):
            self._searching.add(version)
        if version not in self._waiting | self._searching:
            return False, []
        if any(s.retry_at is not None for s in family):
            return False, []
        others = [s for s in family if not s.dead][:PARALLEL]
        if others:
            return False, [self._query(other, moment, tries=0) for other in others]
        for other in family:
            other.dead = False
        self._waiting.discard(version)
        self._searching.discard(version)
        self._primary.pop(version, None)
        self._answers[version] = False
        return self._current.pop(version, None) is not None, []

    def _query(self, server: _Server, moment: Moment, *, tries: int) -> SendDatagram:
        transaction = moment.entropy.take(TRANSACTION)
        self._sent[transaction] = (server.endpoint, moment.now)
        if server.order is None:
            self._asked += 1
            server.order = self._asked
            server.fresh = server.asked_at is None or moment.now - server.asked_at > FORGOTTEN
        server.asked_at = moment.now
        server.tries = tries + 1
        server.retry_at = moment.now + RETRANSMIT[tries]
        return SendDatagram(render_query(transaction), server.endpoint)

    def _forget(self, server: _Server) -> None:
        server.retry_at = None
        for transaction in [t for t, sent in self._sent.items() if sent[0] == server.endpoint]:
            del self._sent[transaction]

    def _keep(self, servers: tuple[Endpoint, ...]) -> None:
        known = self._servers
        self._servers = {e: known.get(e, _Server(e)) for e in servers[:MAX_SERVERS]}
        self._primary = {v: e for v, e in self._primary.items() if e in self._servers}

    def _mapping(self) -> Mapping:
        seen = [
            server.mapped
            for server in self._servers.values()
            if server.mapped is not None and server.endpoint.ip.version == 4
        ]
        if len(seen) < 2:
            return Mapping.UNKNOWN
        if len(set(seen)) == 1:
            self._verdict = None
            return Mapping.INDEPENDENT
        if len(self._samples()) >= MIN_SAMPLES:
            counts = len({mapped.ip for mapped in seen}) == 1 and steps_of(self._samples())
            self._verdict = Mapping.PREDICTABLE if counts else Mapping.RANDOM
        # What was found once is found again with fewer fresh mappings.
        return self._verdict or Mapping.DEPENDENT

    def _samples(self) -> list[int]:
        """Return the ports of the mappings that were made now, in the order in which they were."""
        fresh = [
            (server.order, server.mapped.port)
            for server in self._servers.values()
            if server.fresh and server.mapped is not None and server.mapped.ip.version == 4
        ]
        return [port for _, port in sorted(fresh)]
