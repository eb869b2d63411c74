"""Every kind of network against every other: which path two nodes find, expected and found.

One mesh with two nodes in each kind of place, and one member with public addresses that relays
for the others, also by WebSocket. Every pair ping each other, and each status tells the path.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

from nostrvpn.lab.core import Internet
from nostrvpn.lab.gathering import gather
from nostrvpn.lab.nat import NatKind
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.topology import Host, Lab, Server

__all__ = ["PLACES", "MatrixLab", "Meeting", "Place", "expected_path", "measure", "render_page"]

INTERNET = Internet(delay=0.01)
WEBSOCKET_PORT = 443
SETTLE_S = 60.0
"""How long the pairs get: the slowest is the search for a port of a symmetric NAT."""
POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Place:
    """A kind of place and what matters of it.

    ``hard``: another port for each destination. ``strict``: lets in only the very endpoints that
    were sent to. ``shared``: its two nodes are behind one outer router, ``lan``: on one LAN too.
    """

    name: str
    summary: str
    versions: frozenset[int] = frozenset({4})
    udp: bool = True
    hard: bool = False
    strict: bool = True
    shared: bool = False
    lan: bool = False


_BOTH = frozenset({4, 6})
PLACES: tuple[Place, ...] = (
    Place("open", "public addresses of both families", versions=_BOTH, strict=False),
    Place("one-to-one", "a public address translated one to one", strict=False),
    Place("port-restricted", "the usual home router"),
    Place("address-restricted", "lets in whom was sent to, from any port", strict=False),
    Place("symmetric", "another random port for each destination", hard=True),
    Place("double NAT", "a home router behind a carrier's router"),
    Place("same LAN", "two on one LAN behind a home router", shared=True, lan=True),
    Place("same NAT", "two home routers behind one carrier's router", shared=True),
    Place("IPv6 only", "public IPv6 behind a stateful firewall", versions=frozenset({6})),
    Place("UDP blocked", "only TCP gets out", udp=False),
)


def expected_path(one: Place, other: Place) -> str:
    """Return the path that two nodes in these places must find: ``direct`` or ``relayed``.

    A random symmetric NAT before a strict one is found by searching, in most of the tries
    (``docs/hard-nats.md``), and starts relayed: it is expected as ``relayed or direct``.
    """
    same = one is other
    if same and one.lan:
        return "direct"
    if not (one.udp and other.udp) or not one.versions & other.versions:
        return "relayed"
    if 6 in one.versions & other.versions:
        return "direct"
    if same and one.shared:
        # Each sees the other only at their common outside address, and hairpins are dropped.
        return "relayed"
    if one.hard and other.hard:
        return "relayed"
    if (one.hard and other.strict) or (other.hard and one.strict):
        return "relayed or direct"
    return "direct"


class MatrixLab(Lab):
    """All places at once; ``at`` gives a place's two nodes, ``relay`` is the member that relays."""

    def __init__(self, places: tuple[Place, ...] = PLACES) -> None:
        super().__init__(INTERNET)
        self._places = places
        self.at: dict[str, tuple[LabNode, LabNode]] = {}

    server: Server
    relay: LabNode

    def build(self) -> None:
        self.server = self.server_host()
        vps = self.host("vps")
        websocket = {
            "listen": f"[::]:{WEBSOCKET_PORT}",
            "url": f"ws://{vps.address}:{WEBSOCKET_PORT}/nostrvpn",
        }
        self.relay = self.node(
            vps, self.server, relay={"offer": "members", "pairs": 500, "websocket": websocket}
        )
        for number, place in enumerate(self._places):
            one, other = self._hosts(place, f"p{number}")
            self.at[place.name] = (self.node(one, self.server), self.node(other, self.server))

    def _hosts(self, place: Place, name: str) -> tuple[Host, Host]:
        one, other = f"{name}a", f"{name}b"
        if place.name == "open":
            return self.host(one), self.host(other)
        if place.lan:
            home = self.router(f"{name}r")
            return self.host(one, home), self.host(other, home)
        if place.name == "same NAT":
            carrier = self.router(f"{name}c")
            return self._double(one, carrier), self._double(other, carrier)
        if place.name == "double NAT":
            return (
                self._double(one, self.router(f"{name}c")),
                self._double(other, self.router(f"{name}d")),
            )
        if place.name == "IPv6 only":
            return self._ipv6_only(one), self._ipv6_only(other)
        kind = NatKind("udp-blocked" if not place.udp else place.name)
        return (
            self.host(one, self.router(f"{one}r", kind)),
            self.host(other, self.router(f"{other}r", kind)),
        )

    def _double(self, name: str, carrier: Any) -> Host:
        return self.host(name, self.router(f"{name}r", behind=carrier))

    def _ipv6_only(self, name: str) -> Host:
        return self.host(name, self.router(f"{name}r", ipv6=True), only=6)


@dataclass(frozen=True, slots=True)
class Meeting:
    """One pair: what was expected, and what both found, ``connected_in_ms`` since they knew."""

    a: str
    b: str
    expected: str
    path: str
    connected_in_ms: float | None

    @property
    def as_expected(self) -> bool:
        """Whether the path is one of the expected."""
        return self.path in self.expected.split(" or ")

    def to_json(self) -> dict[str, object]:
        """Return the row of ``matrix.json``."""
        return {
            "a": self.a,
            "b": self.b,
            "expected": self.expected,
            "path": self.path,
            "connected_in_ms": self.connected_in_ms,
        }


def measure(lab: MatrixLab, tell: Callable[[str], None] = lambda _text: None) -> list[Meeting]:
    """Let all nodes meet and return every pair; a pair that found nothing has path ``none``."""
    nodes = [node for pair in lab.at.values() for node in pair]
    gather(lab.relay, nodes)
    tell(f"{len(nodes) + 1} members")
    pairs = {
        (one.name, other.name): (lab.at[one.name][0], lab.at[other.name][one is other])
        for one, other in combinations_with_replacement(PLACES, 2)
        if one.name in lab.at and other.name in lab.at
    }
    by_name = {place.name: place for place in PLACES}
    deadline = time.monotonic() + SETTLE_S
    while True:
        seen = {node.name: _peers(node) for node in nodes}
        found = [
            _meeting(by_name[a], by_name[b], seen[one.name][other.npub], seen[other.name][one.npub])
            for (a, b), (one, other) in pairs.items()
        ]
        missing = [meeting for meeting in found if not meeting.as_expected]
        tell(f"{len(found) - len(missing)} of {len(found)} pairs as expected")
        if not missing or time.monotonic() > deadline:
            return found
        time.sleep(POLL_S)


def _peers(node: LabNode) -> dict[str, dict[str, Any]]:
    return {peer["npub"]: peer for peer in node.status()["peers"]}


def _meeting(a: Place, b: Place, one: dict[str, Any], other: dict[str, Any]) -> Meeting:
    path = one["path"] if one["path"] == other["path"] else "none"
    times = [seen["connected_in_ms"] for seen in (one, other) if seen["connected_in_ms"]]
    return Meeting(a.name, b.name, expected_path(a, b), path, max(times, default=None))


def render_page(found: list[Meeting]) -> str:
    """Return the page ``docs/matrix.md``: the places, and a table of what each pair found."""
    names = [place.name for place in PLACES]
    paths = {(meeting.a, meeting.b): meeting for meeting in found}
    lines = [
        "# Which path two nodes find",
        "",
        "Generated by `make matrix` from the lab: one mesh with two nodes in every kind of place, and",
        "one member with public addresses that relays for the others. What was expected and not found",
        "would be in bold.",
        "",
        "| place | what it is |",
        "|---|---|",
        *(f"| {place.name} | {place.summary} |" for place in PLACES),
        "",
        "| | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for a in names:
        cells = []
        for b in names:
            meeting = paths.get((a, b)) or paths.get((b, a))
            cells.append(_cell(meeting))
        lines.append(f"| {a} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(meeting: Meeting | None) -> str:
    if meeting is None:
        return "not measured"
    if meeting.as_expected:
        return meeting.path
    return f"**{meeting.path}**, expected {meeting.expected}"
