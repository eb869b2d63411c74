"""Every kind of network against every other: which path two nodes find, expected and found.

A mesh has nodes in some of the places, and one member with public addresses that relays for the
others, also by WebSocket. Each pair's two statuses tell the path, and an echo has to cross it. All
places at once would be a storm of 21 daemons on one machine, so ``measure_matrix`` takes them in
groups of at most nine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from nostrvpn.errors import NostrvpnError
from nostrvpn.lab.core import Internet
from nostrvpn.lab.gathering import gather
from nostrvpn.lab.nat import NatKind
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.topology import Host, Lab, Server

__all__ = [
    "PLACES",
    "RELAY",
    "MatrixLab",
    "Meeting",
    "Place",
    "expected_path",
    "groups",
    "measure",
    "measure_matrix",
    "render_page",
]

INTERNET = Internet(delay=0.01)
WEBSOCKET_PORT = 443
SETTLE_S = 60.0
"""How long the pairs get: the slowest is the search for a port of a symmetric NAT."""
POLL_S = 1.0
BLOCK = 4
ECHOES = 3
"""How many echoes may be lost before a path counts as silent: a change of path may cost one."""


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


RELAY = Place("relay", "the member that relays, with public addresses", _BOTH, strict=False)
"""The one node of this place is in every mesh; the others are pairs with each other and with it."""


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
    """Some places; ``at`` gives a place's nodes, two if ``twice``; ``relay`` relays for them."""

    def __init__(self, places: tuple[Place, ...] = PLACES, *, twice: bool = True) -> None:
        super().__init__(INTERNET)
        self._places = places
        self._twice = twice
        self.at: dict[str, tuple[LabNode, ...]] = {}

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
            hosts = self._hosts(place, f"p{number}")[: 1 + self._twice]
            self.at[place.name] = tuple(self.node(host, self.server) for host in hosts)
        self.at[RELAY.name] = (self.relay,)

    def pairs(self) -> dict[tuple[str, str], tuple[LabNode, LabNode]]:
        """Return the two nodes of each pair of places that this lab has."""
        found = {(a, b): (self.at[a][0], self.at[b][0]) for a, b in combinations(self.at, 2)}
        for name, nodes in self.at.items():
            if len(nodes) == 2:
                found[name, name] = (nodes[0], nodes[1])
        return found

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


def groups(places: tuple[Place, ...] = PLACES) -> list[tuple[tuple[Place, ...], bool]]:
    """Return small meshes that hold every pair of ``places``: places, and whether each twice.

    Four places twice hold their own pairs and those with themselves; then each two of such blocks
    together, once each, hold the pairs between them. With the relay that is nine nodes at most.
    """
    blocks = [places[start : start + BLOCK] for start in range(0, len(places), BLOCK)]
    alone = [(block, True) for block in blocks]
    return alone + [(one + other, False) for one, other in combinations(blocks, 2)]


def measure_matrix(
    places: tuple[Place, ...] = PLACES, tell: Callable[[str], None] = lambda _text: None
) -> dict[str, list[dict[str, object]]]:
    """Return ``{"pairs": [{a, b, expected, path, connected_in_ms}, …]}``, the relay's included."""
    found: dict[tuple[str, str], Meeting] = {}
    for members, twice in groups(places):
        tell(", ".join(place.name for place in members))
        try:
            meetings = _measure_group(members, twice, tell)
        except NostrvpnError as exc:
            # A daemon that starts too late on a busy machine must not cost minutes of work.
            tell(f"once more: {exc}")
            meetings = _measure_group(members, twice, tell)
        for meeting in meetings:
            found.setdefault((meeting.a, meeting.b), meeting)
    return {"pairs": [meeting.to_json() for meeting in found.values()]}


def _measure_group(
    members: tuple[Place, ...], twice: bool, tell: Callable[[str], None]
) -> list[Meeting]:
    with MatrixLab(members, twice=twice) as lab:
        return measure(lab, tell)


def measure(lab: MatrixLab, tell: Callable[[str], None] = lambda _text: None) -> list[Meeting]:
    """Let all nodes meet and return every pair; a pair that found nothing has path ``none``."""
    guests = [node for name, nodes in lab.at.items() if name != RELAY.name for node in nodes]
    gather(lab.relay, guests)
    by_name = {place.name: place for place in (*PLACES, RELAY)}
    deadline = time.monotonic() + SETTLE_S
    while True:
        seen = {node.npub: _peers(node) for node in (*guests, lab.relay)}
        found = [
            _meeting(by_name[a], by_name[b], seen[one.npub][other.npub], seen[other.npub][one.npub])
            for (a, b), (one, other) in lab.pairs().items()
        ]
        missing = [meeting for meeting in found if not meeting.as_expected]
        tell(f"{len(found) - len(missing)} of {len(found)} pairs as expected")
        if not missing or time.monotonic() > deadline:
            return [_proven(meeting, *lab.pairs()[meeting.a, meeting.b]) for meeting in found]
        time.sleep(POLL_S)


def _proven(meeting: Meeting, one: LabNode, other: LabNode) -> Meeting:
    """Return the meeting, with path ``silent`` if no echo crosses what both call a path."""
    if meeting.path == "none":
        return meeting
    for _ in range(ECHOES):
        try:
            one.query("ping", other.npub, "--count=1", "--timeout=2")
        except NostrvpnError:
            continue
        return meeting
    return replace(meeting, path="silent")


def _peers(node: LabNode) -> dict[str, dict[str, Any]]:
    return {peer["npub"]: peer for peer in node.status()["peers"]}


def _meeting(a: Place, b: Place, one: dict[str, Any], other: dict[str, Any]) -> Meeting:
    path = one["path"] if one["path"] == other["path"] else "none"
    times = [seen["connected_in_ms"] for seen in (one, other) if seen["connected_in_ms"]]
    return Meeting(a.name, b.name, expected_path(a, b), path, max(times, default=None))


def render_page(pairs: list[dict[str, object]]) -> str:
    """Return the page ``docs/matrix.md`` from the rows of ``measure_matrix``."""
    names = [place.name for place in (*PLACES, RELAY)]
    cells = {(row["a"], row["b"]): _cell(row) for row in pairs}
    lines = [
        "# Which path two nodes find",
        "",
        "Generated by `make matrix` from the lab: real daemons in small meshes, each with one member",
        "that has public addresses and relays for the others, also by WebSocket. An echo crossed each",
        "path. What was expected and not found is in bold.",
        "",
        "| place | what it is |",
        "|---|---|",
        *(f"| {place.name} | {place.summary} |" for place in (*PLACES, RELAY)),
        "",
        "| | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for a in names:
        row = [cells.get((a, b)) or cells.get((b, a)) or "" for b in names]
        lines.append(f"| {a} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, object]) -> str:
    path, expected = str(row["path"]), str(row["expected"])
    return path if path in expected.split(" or ") else f"**{path}**, expected {expected}"
