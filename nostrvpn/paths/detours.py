"""The ways around of one link: relays, TURN servers, and the relayed pairs that are kept warm."""

from __future__ import annotations

from nostrvpn.endpoint import Endpoint
from nostrvpn.machine import Moment, earliest
from nostrvpn.paths.candidates import Candidate, CandidateKind
from nostrvpn.paths.checks import CheckList
from nostrvpn.paths.events import CloseChannel, PathEffect
from nostrvpn.paths.pair import Pair
from nostrvpn.paths.patience import FALLBACK_AGE
from nostrvpn.paths.relay_book import RelayBook
from nostrvpn.paths.relays import LinkRelays, Route
from nostrvpn.paths.selection import Selection
from nostrvpn.paths.standby import FRESH, Standby
from nostrvpn.paths.turn_routes import TurnRoutes

__all__ = ["Detours"]

# A pair that answered this recently did so after the selected one fell silent.
SINCE_DOUBT = 1.6


class Detours:
    """What a link has beside the direct paths. ``relays`` and ``standby`` are its parts."""

    def __init__(self, peer: str, book: RelayBook, *, controlling: bool) -> None:
        self._peer, self._book = peer, book
        self.relays = LinkRelays(peer, book, controlling=controlling)
        self.turn = TurnRoutes(peer, book)
        self.standby = Standby(controlling=controlling)

    @property
    def deadline(self) -> float | None:
        """When something is due next."""
        return earliest(self.relays.deadline, self.standby.deadline)

    @property
    def routes(self) -> dict[Endpoint, Route]:
        """The endpoints that are not direct, with what is known of the way."""
        turn = self.turn.routes
        return self.relays.routes | turn if turn else self.relays.routes

    def update(
        self, candidates: tuple[Candidate, ...], versions: frozenset[int], moment: Moment
    ) -> list[PathEffect]:
        """Do what is due at relays and TURN servers."""
        effects = self.relays.tick(versions, moment)
        return effects + self.turn.update(candidates, wanted=self.relays.demand.wanted)

    def route(self, pair: Pair) -> Route | None:
        """Return how a pair is not direct, or None."""
        if not pair.is_relayed:
            return None
        # What is none of ours is the peer's: its port at a relay, or its address at a TURN server.
        via = self._book.name_of(pair.endpoint.ip) or f"turn {pair.endpoint.ip}"
        return self.routes.get(pair.endpoint) or Route(via, "udp")

    def recognize(self, checks: CheckList, named: tuple[Candidate, ...]) -> None:
        """See which of the peer's checks came through a relay though we use none of its ports yet.

        A restart forgets the ports, and the peer keeps its end warm. Taken for direct, such a pair would
        win over those that are. A peer that says that it is at the relay's address may be direct.
        """
        ips = {candidate.endpoint.ip for candidate in named}
        for pair in checks.pairs.values():
            ip = pair.endpoint.ip
            if pair.kind is not CandidateKind.PEER_REFLEXIVE or ip in ips:
                continue
            if self._book.name_of(ip) not in (None, self._peer):
                checks.count_as_relayed(pair)

    def doubt(self, pair: Pair, now: float) -> None:
        """The selected pair left a check unanswered: see what else lives, and bind it again."""
        self.standby.probe(now)
        self.relays.doubt(pair.endpoint, now)

    def keep_warm(self, checks: CheckList, selection: Selection, now: float) -> None:
        """Choose who waits beside the selected pair: the nearest relayed one that works."""
        selected = selection.pair
        waiting = [
            pair
            for pair in checks.pairs.values()
            if pair.is_relayed and pair.works and pair is not selected
        ]
        if len(waiting) > 1:
            waiting.sort(key=lambda pair: (-pair.rank[2], pair.smooth or 0.0, str(pair.endpoint)))
        needed = selected is not None and self.relays.demand.wanted
        self.standby.keep(waiting[:1] if needed else [], now)

    def check_standby(self, checks: CheckList, moment: Moment) -> list[PathEffect]:
        """Check the pairs that wait, and ask the relays about those that are lost."""
        effects: list[PathEffect] = []
        asked, lost = self.standby.tick(moment.now)
        for endpoint in asked:
            if pair := checks.pairs.get(endpoint):
                effects += checks.send(pair, moment)
        for endpoint in lost:
            if pair := checks.pairs.get(endpoint):
                pair.fail("stopped answering while it waited")
            self.relays.lost(endpoint, moment.now)
        return effects

    @staticmethod
    def takeover(checks: CheckList, now: float) -> Pair | None:
        """Return the pair that replaces a lost one: one that surely lives, the best of them."""
        alive = [
            pair
            for pair in checks.working()
            if now - pair.alive_at <= (FRESH if pair.is_relayed else FALLBACK_AGE)
        ]
        return max(
            alive,
            key=lambda p: (now - p.alive_at <= SINCE_DOUBT, p.rank, -(p.smooth or 0.0)),
            default=None,
        )

    def channel_opened(self, channel: int, endpoint: Endpoint) -> None:
        """A channel's loopback endpoint can be used."""
        self.relays.channel_opened(channel, endpoint)
        self.turn.opened(channel, endpoint)

    def channel_closed(self, channel: int, reason: str, now: float) -> None:
        """A channel ended."""
        self.relays.channel_closed(channel, reason, now)
        self.turn.closed(channel)

    def close(self) -> list[PathEffect]:
        """Close every channel; the link is over."""
        channels = (*self.relays.channels, *self.turn.channels)
        return [CloseChannel(channel) for channel in channels]
