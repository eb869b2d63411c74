"""Whole networks of nodes for days of virtual time, and relays that write everything down.

The machines are the real ones. Cheaper than in ``nodes``: WireGuard is not asked for all pairs at each
change, relays find subscribers by address, and what is a pure function of the same bytes is computed
once for all nodes (``shared_work``). Paths that nobody uses sleep, as they do in a daemon.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from ipaddress import IPv4Address
from typing import Any
from unittest.mock import patch

from nostrvpn.endpoint import Endpoint
from nostrvpn.machine import Entropy
from nostrvpn.mesh import ledger
from nostrvpn.mesh.roster import Roster, open_roster
from nostrvpn.node.events import TunnelSeen
from nostrvpn.node.node import Node, NodeSettings
from nostrvpn.nostr import nip44, nip59
from nostrvpn.nostr.event import Event, event_json, public_key, verify_event
from nostrvpn.paths.events import SendDatagram, Wake
from nostrvpn.paths.settings import PathSettings
from nostrvpn.signaling import courier, postings, relays
from nostrvpn.signaling.network_key import make_key
from nostrvpn.signaling.relays import CloseRelay, RelayClosed, RelayOpened, RelayText, SendText
from nostrvpn.wireguard.device import ObservedDevice, ObservedPeer
from tests.networks import admit, network_of
from tests.sim.nodes import WALL, Host, Relay, World

__all__ = ["DAY", "Heard", "Meshes", "RecordingRelay", "shared_work"]

DAY = 86_400.0
SLEEP_AFTER = 900.0
RENEWED_S = 120.0
BELLS = IPv4Address("127.78.0.1")


def _stand_in_for_ecdh(secret: bytes, peer: str) -> bytes:
    """The same 32 bytes for both ends of a pair, for a hundredth of the time."""
    return sha256("".join(sorted((_public(secret), peer))).encode()).digest()


_public = lru_cache(maxsize=100_000)(public_key)


@contextmanager
def shared_work() -> Iterator[None]:
    """Within it, what many nodes would compute from the same bytes is computed once.

    The only place where anything of the machines is replaced: ECDH on secp256k1 by a hash that both
    ends come to as well; checking a signature, opening a wrap and a seal, merging and opening a
    roster are remembered by their arguments. For meshes whose size or days would cost hours.
    """
    verified: set[tuple[str, str]] = set()
    merged: dict[object, Roster] = {}
    opened: dict[object, Roster] = {}
    real_merge: Callable[..., Roster] = Roster.merge

    def verify(event: Event) -> None:
        if (event.id, event.sig) not in verified:
            verify_event(event)
            verified.add((event.id, event.sig))

    def merge(self: Roster, events: Any) -> Roster:
        events = tuple(events)
        place = (id(self), self.digest, tuple(event.id for event in events))
        if place not in merged:
            merged[place] = real_merge(self, events)
            kept.append(self)
        return merged[place]

    kept: list[Roster] = []  # so that no id() is given twice

    def open_once(log: Any) -> Roster:
        events = tuple(log)
        place = tuple(event.id for event in events)
        if place not in opened:
            opened[place] = open_roster(events)
        return opened[place]

    wrap = lru_cache(maxsize=4_096)(nip59.open_wrap)
    seal = lru_cache(maxsize=4_096)(nip59.open_seal)
    with ExitStack() as stack:
        for place, name, value in (
            (courier, "conversation_key", _stand_in_for_ecdh),
            (nip44, "conversation_key", _stand_in_for_ecdh),
            (relays, "verify_event", verify),
            (nip59, "verify_event", verify),
            (postings, "open_wrap", wrap),
            (postings, "open_seal", seal),
            (ledger, "open_roster", open_once),
            (Roster, "merge", merge),
        ):
            stack.enter_context(patch.object(place, name, value))
        yield


@dataclass(frozen=True, slots=True)
class Heard:
    """One frame of a client as its relay saw it: when, over which connection."""

    at: float
    connection: str
    frame: list[Any]


@dataclass
class RecordingRelay(Relay):
    """Keeps what clients said (``record``), and forgets events when they expire (NIP-40).

    With ``demands_auth`` (NIP-42) a mailbox is given only to who proves on that connection to own it,
    and nothing is taken from who has proven nothing.
    """

    demands_auth: bool = False
    proven: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    record: list[Heard] = field(default_factory=list)
    opened: dict[str, float] = field(default_factory=dict)
    closed: dict[str, float] = field(default_factory=dict)
    readers: dict[str, set[tuple[str, str]]] = field(default_factory=lambda: defaultdict(set))


class Meshes(World):
    """Hosts in one or several networks. ``published`` and ``delivered`` count events by host name."""

    def __init__(self, seed: int, *, is_proxied: bool = False, sleeps: bool = True) -> None:
        super().__init__(seed)
        self.is_proxied = is_proxied
        self.sleeps = sleeps
        self.by_wireguard: dict[str, Host] = {}
        self.by_key: dict[str, Host] = {}
        self.published: dict[str, int] = defaultdict(int)
        self.delivered: dict[str, int] = defaultdict(int)
        self.author_of: dict[str, str] = {}  # event id -> host's name: what no relay knows
        self.island: dict[str, int] = {}  # by the name of a host or relay; 0 if not named
        self._looks = False
        self._connections: dict[tuple[str, str], str] = {}
        self._serial = 0
        self._numbered: list[Host] = []

    def relay(self, name: str = "wss://relay", **settings: Any) -> RecordingRelay:
        relay = RecordingRelay(name, **settings)
        self.relays[name] = relay
        return relay

    def host(self, name: str, *, skew: float = 0.0) -> Host:
        host = super().host(name, skew=skew)
        self.by_key[host.secret.public_key] = host
        self._numbered.append(host)
        return host

    def network(self, prefix: str, size: int) -> list[Host]:
        """Return the hosts of a network that has stood before: on each disk its log and its key."""
        hosts = [self.host(f"{prefix}{number}") for number in range(size)]
        owner = hosts[0].secret
        wall = WALL + self.now - 100
        roster = network_of(owner, hosts[0].name, wall=wall)
        for host in hosts[1:]:
            roster = admit(roster, owner, host.secret.public_key, host.name, wall=wall)
        key = make_key(roster.key_id, wall, Entropy(f"{self.seed}/{prefix}".encode()))
        log: dict[str, object] = {event.id: event_json(event) for event in roster.log}
        for host in hosts:
            host.records["network"] = dict(log)
            host.records["keys"] = {"ring": [key.to_json()]}
        return hosts

    def make(self, host: Host, settings: NodeSettings) -> Node:
        self.by_wireguard[host.wireguard_key] = host
        paths = PathSettings(sleep_after=SLEEP_AFTER if self.sleeps else None)
        settings = replace(settings, paths=paths, is_proxied=self.is_proxied, volunteers=False)
        node = Node(settings, host.records, "kernel")
        if self.sleeps:
            numbers = {other.secret.public_key: i for i, other in enumerate(self.hosts.values())}
            node.tunnel.doorbell = lambda key: Endpoint(
                IPv4Address(int(BELLS) + numbers.get(key, 9_999)), 9
            )
        return node

    def wake(self, host: Host, peer: Host) -> None:
        """A packet for ``peer`` rings the doorbell."""
        self.step(host, Wake(peer.secret.public_key))

    def roster(self, host: Host) -> Any:
        return host.node.membership.roster

    def key(self, host: Host) -> str:
        """The id of the network key that a host writes under."""
        current = host.node.post.keyring.current
        return current.id if current is not None else ""

    def agree(self, hosts: list[Host]) -> bool:
        """Whether all hold the same operations and the network key that these name."""
        rosters = [self.roster(host) for host in hosts]
        return len({roster.digest for roster in rosters}) == 1 and all(
            self.key(host) == rosters[0].key_id for host in hosts
        )

    def holds(self, seconds: float, condition: Callable[[], bool]) -> bool:
        """Run until it holds; say whether it did within so many seconds."""
        return condition() or self.run(seconds, condition)

    # -- WireGuard: who was given an endpoint has a session, if the other side wants one too --

    def _watch_tunnels(self) -> None:
        if not self._looks:
            self._looks = True
            self.at(0.005, self._look)

    def _look(self) -> None:
        self._looks = False
        for host in self.hosts.values():
            for peer in host.node.peers.values() if host.node is not None else ():
                if peer.endpoint is None or peer.held_until:
                    continue
                other = self.by_key[peer.public_key]
                key, mine = other.wireguard_key, host.wireguard_key
                if other.node is None or peer.endpoint != other.address or key in host.handshakes:
                    continue
                if self._is_far(host.name, other.name):
                    continue
                theirs = other.node.peers.get(host.secret.public_key)
                if peer.wireguard_key != key or theirs is None or theirs.wireguard_key != mine:
                    continue
                wall = WALL + self.now + 2 * self.delay
                host.handshakes[key] = other.handshakes[mine] = wall
                host.endpoints[key] = other.address
                other.endpoints[mine] = host.address

    def part(self, *names: str, island: int = 1) -> None:
        """Nothing gets from these hosts and relays to the others any more, nor back."""
        for name in names:
            self.island[name] = island
        for name, url in list(self._connections):
            if self._is_far(name, url.partition("#")[0]):
                self._hang_up(name, url)
                self._later(self.hosts[name], RelayClosed(url, "connection reset"))
        for host in self.hosts.values():
            for other in self.hosts.values():
                if self._is_far(host.name, other.name):
                    host.handshakes.pop(other.wireguard_key, None)

    def _is_far(self, one: str, other: str) -> bool:
        return self.island.get(one, 0) != self.island.get(other, 0)

    def _datagram(self, host: Host, effect: SendDatagram) -> None:
        number = int(effect.destination.ip) - (11 << 24) >> 8
        if effect.destination.ip.version == 4 and 0 < number <= len(self.hosts):
            receiver = self._numbered[number - 1]
            if receiver.address == effect.destination and not self._is_far(
                host.name, receiver.name
            ):
                super()._datagram(host, effect)

    def cut(self, host: Host) -> None:
        """WireGuard's sessions with this host are over (it was off, or was removed)."""
        for other in self.hosts.values():
            other.handshakes.pop(host.wireguard_key, None)
            host.handshakes.pop(other.wireguard_key, None)

    def _handshake_wall(self, host: Host, key: str) -> float | None:
        """WireGuard renews a session that is in use every two minutes."""
        wall = super()._handshake_wall(host, key)
        peer = host.node.peers.get(self.by_wireguard[key].secret.public_key)
        if wall is None or peer is None or peer.endpoint is None:
            return wall
        return wall + RENEWED_S * int((WALL + self.now - wall) / RENEWED_S)

    def _observe(self, host: Host) -> TunnelSeen:
        found = tuple(
            ObservedPeer(
                key,
                endpoint=host.endpoints.get(key),
                last_handshake_wall=self._handshake_wall(host, key),
                rx_bytes=self._received(host, key),
                tx_bytes=self._received(host, key),
            )
            for key in host.handshakes
        )
        return TunnelSeen(ObservedDevice(None, host.address.port, 0, found))

    # -- relays -----------------------------------------------------------------------------

    def stop(self, host: Host) -> None:
        host.node = None
        for place in [place for place in self._connections if place[0] == host.name]:
            self._hang_up(*place)

    def _hang_up(self, name: str, url: str) -> None:
        connection = self._connections.pop((name, url), None)
        relay = self.relays.get(url.partition("#")[0])
        if connection is None or not isinstance(relay, RecordingRelay):
            return
        relay.closed[connection] = self.now
        for key in [key for key in relay.subscriptions if key[0] == connection]:
            self._unsubscribe(relay, key)

    def _unsubscribe(self, relay: RecordingRelay, key: tuple[str, str]) -> None:
        for wanted in relay.subscriptions.pop(key, []):
            for address in _addresses(wanted):
                relay.readers[address].discard(key)

    def _perform(self, host: Host, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, SendText):
                host.sent["SendText"] += 1
                self._say(host, effect.url, effect.text)
                continue
            if isinstance(effect, CloseRelay):
                self._hang_up(host.name, effect.url)
            super()._perform(host, [effect])

    def _open(self, host: Host, url: str) -> None:
        relay = self.relays.get(url.partition("#")[0])
        if (
            not isinstance(relay, RecordingRelay)
            or not relay.up
            or self._is_far(host.name, relay.url)
        ):
            return self._later(host, RelayClosed(url, "connection refused"))
        self._serial += 1
        connection = f"c{self._serial}"
        self._connections[host.name, url] = connection
        relay.opened[connection] = self.now
        self._later(host, RelayOpened(url))
        if relay.demands_auth:
            self._tell((host, url), ["AUTH", f"challenge of {connection}"])

    def kill(self, relay: Relay) -> None:
        relay.up = False
        relay.stored.clear()
        for name, url in list(self._connections):
            if url.partition("#")[0] == relay.url:
                self._hang_up(name, url)
                self._later(self.hosts[name], RelayClosed(url, "connection reset"))

    def revive(self, relay: Relay) -> None:
        relay.up = True

    def _say(self, host: Host, url: str, text: str) -> None:
        relay, connection = (
            self.relays[url.partition("#")[0]],
            self._connections.get((host.name, url)),
        )
        if connection is None:
            return
        frame = json.loads(text)
        if frame[0] == "EVENT":
            self.published[host.name] += 1
            self.author_of[frame[1]["id"]] = host.name
            if self.rng.random() < relay.lost:
                return
        self.at(self.delay, lambda: self._takes(host, url, connection, frame))

    def _takes(self, host: Host, url: str, connection: str, frame: list[Any]) -> None:
        relay = self.relays[url.partition("#")[0]]
        assert isinstance(relay, RecordingRelay)
        if not relay.up:
            return
        relay.record.append(Heard(self.now, connection, frame))
        place = (host, url)
        if frame[0] == "AUTH":
            relay.proven[connection].add(frame[1]["pubkey"])
            self._tell(place, ["OK", frame[1]["id"], True, ""])
        elif (refusal := _refusal(relay, connection, frame)) is not None:
            self._tell(place, refusal)
        elif frame[0] == "REQ":
            key = (connection, frame[1])
            self._unsubscribe(relay, key)
            relay.subscriptions[key] = frame[2:]
            for address in (a for wanted in frame[2:] for a in _addresses(wanted)):
                relay.readers[address].add(key)
            self._forget(relay)
            for event in reversed(relay.stored):
                if any(_matches(event, wanted) for wanted in frame[2:]):
                    self._tell(place, ["EVENT", frame[1], event])
            self._tell(place, ["EOSE", frame[1]])
        elif frame[0] == "CLOSE":
            self._unsubscribe(relay, (connection, frame[1]))
        elif frame[0] == "EVENT":
            self._tell(place, ["OK", frame[1]["id"], True, ""])
            self._pass_on(relay, frame[1])

    def _pass_on(self, relay: RecordingRelay, event: dict[str, Any]) -> None:
        if event["kind"] == 1059:
            relay.stored.append(event)
        places = {connection: place for place, connection in self._connections.items()}
        [address] = [tag[1] for tag in event["tags"] if tag[0] == "p"]
        for connection, subscription in sorted(relay.readers[address]):
            wanted = relay.subscriptions[connection, subscription]
            if any(_matches(event, one) for one in wanted) and self.rng.random() >= relay.lost:
                name, url = places[connection]
                self.delivered[name] += 1
                self._tell((self.hosts[name], url), ["EVENT", subscription, event])

    def _forget(self, relay: RecordingRelay) -> None:
        wall = WALL + self.now
        relay.stored = [event for event in relay.stored if _expires(event) > wall]

    def _tell(self, place: tuple[Host, str], frame: list[object]) -> None:
        host, url = place
        self._later(host, RelayText(url, json.dumps(frame)))


def _refusal(relay: RecordingRelay, connection: str, frame: list[Any]) -> list[object] | None:
    """Return the answer to who has not proven enough, None if all is well."""
    proven = relay.proven[connection]
    if not relay.demands_auth or frame[0] not in ("REQ", "EVENT"):
        return None
    if frame[0] == "EVENT":
        why = "auth-required: say who you are"
        return None if proven else ["OK", frame[1]["id"], False, why]
    if proven.issuperset(a for wanted in frame[2:] for a in _addresses(wanted)):
        return None
    return ["CLOSED", frame[1], "auth-required: whose mailbox is it?"]


def _expires(event: dict[str, Any]) -> int:
    return int(dict(event["tags"])["expiration"])


def _addresses(wanted: dict[str, Any]) -> list[str]:
    return list(wanted.get("#p", ()))


def _matches(event: dict[str, Any], wanted: dict[str, Any]) -> bool:
    address = next(tag[1] for tag in event["tags"] if tag[0] == "p")
    return (
        event["kind"] in wanted["kinds"]
        and address in wanted["#p"]
        and event["created_at"] >= wanted.get("since", 0)
    )
