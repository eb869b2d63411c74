"""One conversation of a big mesh's day."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.sim.network import Host


@dataclass
class Talk:
    """One conversation, and what happened to those who had it.

    ``ways``: since when a path was possible: "none", "mute" (but nobody could say so) or "open".
    ``doomed``: when the relay in use died and another one stood by, and in which direction;
    ``replaced``: the same, and how long nothing arrived after that.
    """

    number: int
    first: Host
    second: Host
    began: float
    until: float
    ways: list[tuple[float, str]]
    connected: float | None = None
    events: list[tuple[float, str]] = field(default_factory=list)
    gaps: list[tuple[float, float, str]] = field(default_factory=list)
    doomed: list[tuple[float, tuple[str, str]]] = field(default_factory=list)
    replaced: list[tuple[float, float]] = field(default_factory=list)
    kinds: tuple[str, ...] = ()
    states: tuple[object, ...] = ()
    ended: float = 0.0
    over: bool = False
    rang_at: float = 0.0

    @property
    def directions(self) -> tuple[tuple[Host, Host, tuple[str, str]], ...]:
        """Who sends to whom, and where that is noted."""
        first, second = self.hosts
        return ((first, second, self.keys[0]), (second, first, self.keys[1]))

    @property
    def hosts(self) -> tuple[Host, Host]:
        return (self.first, self.second)

    @property
    def keys(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Where each one notes what it hears of the other."""
        return ((self.second.key, self.first.key), (self.first.key, self.second.key))
