"""The peer's addresses as seen from our TURN servers: one channel for each that is worth a try."""

from __future__ import annotations

from nostrvpn.endpoint import Endpoint
from nostrvpn.paths.candidates import Candidate, is_private
from nostrvpn.paths.events import CloseChannel, OpenChannel, PathEffect, TurnTarget
from nostrvpn.paths.relay_book import RelayBook
from nostrvpn.paths.relays import Route

__all__ = ["TurnRoutes"]

# The peer's candidates tried from each of our servers.
BEST = 4
# Channels of one link: those of two servers, and addresses that only showed themselves there.
MAX_CHANNELS = 12


class TurnRoutes:
    """The TURN channels of one link."""

    def __init__(self, peer: str, book: RelayBook) -> None:
        self._peer = peer
        self._book = book
        self._targets: dict[TurnTarget, int] = {}
        self._endpoints: dict[int, Endpoint] = {}
        self._refused: set[TurnTarget] = set()

    @property
    def routes(self) -> dict[Endpoint, Route]:
        """The loopback endpoints that stand for the peer's addresses."""
        return {
            self._endpoints[channel]: Route(f"turn {target.server}", "turn")
            for target, channel in self._targets.items()
            if channel in self._endpoints
        }

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels that are open, or being opened."""
        return tuple(self._targets.values())

    def update(self, candidates: tuple[Candidate, ...], *, wanted: bool) -> list[PathEffect]:
        """Open what is missing, close what is not needed any more."""
        if not self._book.turn and not self._targets:
            self._refused.clear()
            return []
        targets = self._choose(candidates) if wanted else set()
        effects: list[PathEffect] = []
        for target, channel in list(self._targets.items()):
            if not wanted or target.server not in self._book.turn:
                del self._targets[target]
                self._endpoints.pop(channel, None)
                effects.append(CloseChannel(channel))
        self._refused &= targets
        missing = targets - set(self._targets) - self._refused
        for target in sorted(missing, key=str):
            effects += self._open(target)
        return effects

    def heard(self, server: str, remote: Endpoint) -> list[PathEffect]:
        """Somebody at an address of the peer's sent to our address there, from another port."""
        known = {target.remote.ip for target in self._targets if target.server == server}
        target = TurnTarget(server, remote)
        if remote.ip not in known or target in self._targets:
            return []
        return self._open(target)

    def opened(self, channel: int, endpoint: Endpoint) -> None:
        """A channel's loopback endpoint can be used."""
        if channel in self._targets.values():
            self._endpoints[channel] = endpoint

    def closed(self, channel: int) -> None:
        """A channel ended: not again until the peer is somewhere else."""
        self._endpoints.pop(channel, None)
        for target in [t for t, number in self._targets.items() if number == channel]:
            del self._targets[target]
            self._refused.add(target)

    def _open(self, target: TurnTarget) -> list[PathEffect]:
        if len(self._targets) >= MAX_CHANNELS:
            return []
        channel = self._targets[target] = self._book.next_channel()
        return [OpenChannel(channel, self._peer, target)]

    def _choose(self, candidates: tuple[Candidate, ...]) -> set[TurnTarget]:
        ordered = sorted(candidates, key=lambda candidate: -candidate.priority)
        chosen: set[TurnTarget] = set()
        for server, relayed in self._book.turn.items():
            reachable = [
                candidate.endpoint
                for candidate in ordered
                if candidate.endpoint.ip.version == relayed.ip.version
                and not is_private(candidate.endpoint.ip)
            ]
            chosen |= {TurnTarget(server, endpoint) for endpoint in reachable[:BEST]}
        return chosen
