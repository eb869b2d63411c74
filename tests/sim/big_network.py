"""A mesh of hundreds of nodes in virtual time: ``tests/sim/network.py`` with look-ups that do not grow.

``python -m tests.sim.big_network --seeds 300 --nodes 50`` lives many days and tells what went wrong.
The nodes are made here, ``big_day.py`` says what happens to them and judges it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address

from nostrvpn.endpoint import Endpoint, IPAddress
from nostrvpn.paths.agent import Paths
from nostrvpn.paths.description import Description, parse_description
from nostrvpn.paths.events import (
    AddPeer,
    Describe,
    LinkChanged,
    NetworkChanged,
    PathEffect,
    RemoteDescription,
    UseEndpoint,
    WebSocketTarget,
)
from nostrvpn.paths.settings import PathSettings
from tests.sim.big_nats import forget, nat_of
from tests.sim.nats import Firewall
from tests.sim.network import CORE_HOPS, Conditions, Host, Simulation, Tunnel
from tests.sim.relays import Carriers, Relay

SLEEP_AFTER = 900.0
OBSERVE_EVERY = 10.0


class BigRelay(Relay):
    """A relay that does not lose what a conversation counts."""

    sim: BigNetwork

    def _send(self, data: bytes, port: int, to: Endpoint) -> None:
        source = Endpoint((self.v4 if to.ip.version == 4 else self.v6).ip, port)
        if not self.sim.is_lost(data):
            delay = self.delay + self.sim.conditions.delay
            self.sim.at(delay, partial(self.sim.deliver, None, data, source, to))


class BigCarriers(Carriers):
    def __init__(self, sim: Simulation) -> None:
        super().__init__(sim)
        self.owners: dict[int, Relay] = {}

    def relay(self, *, websocket: bool = False, delay: float = 0.0) -> Relay:
        relay = BigRelay(self.sim, len(self.relays) + 1, websocket=websocket, delay=delay)
        self.relays.append(relay)
        self.owners |= {int(relay.v4.ip): relay, int(relay.v6.ip): relay}
        return relay

    def behind(self, host: Host, endpoint: Endpoint | None) -> Relay | None:
        """Return the relay that an endpoint of a host leads to, by UDP or by a channel."""
        if endpoint is None:
            return None
        for channel in host.channels.values():
            if channel.endpoint == endpoint and isinstance(channel.target, WebSocketTarget):
                url = channel.target.url
                return next(relay for relay in self.relays if relay.url == url)
        return self.owners.get(int(endpoint.ip))


@dataclass
class Ledger:
    """What one node said by signaling, by reason, and how often each peer's endpoint was set."""

    said: Counter[str] = field(default_factory=Counter)
    said_at: list[float] = field(default_factory=list)
    endpoints: dict[str, list[tuple[float, Endpoint | None]]] = field(default_factory=dict)
    last: dict[str, Description] = field(default_factory=dict)


class BigNetwork(Simulation):
    def __init__(self, seed: int, conditions: Conditions | None = None) -> None:
        super().__init__(seed, conditions)
        self.carriers: BigCarriers = BigCarriers(self)
        self.kinds: dict[str, str] = {}
        self.keys: dict[str, Host] = {}
        self.ledgers: dict[str, Ledger] = {}
        self.settings = PathSettings(sleep_after=SLEEP_AFTER)
        self.heard: dict[tuple[str, str], list[float]] = {}
        self.unlucky: dict[str, list[float]] = {}
        """When a packet of a WireGuard handshake was lost, by its sender."""
        self.shown: dict[tuple[str, str], str] = {}
        self._inside: dict[tuple[int, IPAddress], Host] = {}
        self._public: dict[Endpoint, Host] = {}
        self._walls: dict[str, Firewall] = {}
        self._watched: set[tuple[str, str]] = set()
        self._kept: set[tuple[str, str]] = set()
        self._numbers = iter(range(1, 1 << 16))

    # --- building ---------------------------------------------------------------------------

    def node(self, kind: str) -> Host:
        number = len(self.hosts) + 1
        host = Host(
            name=f"n{number}",
            key=f"{number:064x}",
            address=Endpoint(IPv4Address(0), 0),
            nat=None,
            lan=None,
            paths=Paths(stun_servers=self.servers, settings=self.settings),
            skew=self.rng.uniform(0, 5000),
        )
        self.hosts[host.name] = self.keys[host.key] = host
        self.ledgers[host.key] = Ledger()
        self.settle(host, kind)
        return host

    def settle(self, host: Host, kind: str) -> None:
        """Put a host into a network of its own, of some kind; the old one forgets it."""
        number, port = next(self._numbers), self.rng.randrange(20000, 60000)
        for table in (self._inside, self._public):
            for key in [key for key, value in table.items() if value is host]:
                del table[key]  # type: ignore[arg-type]
        outside = IPv4Address(f"20.{number >> 8}.{number & 255}.2")
        host.nat = nat_of(kind, outside, self.rng)
        if host.nat is not None:
            self.nats[outside] = host.nat
        mapped = host.nat is not None and host.nat.maps
        # Homes use the same few addresses, so a stranger may sit at a described one.
        inside = ip_address(f"192.168.{self.rng.randrange(2)}.{self.rng.randrange(2, 250)}")
        host.lan = f"lan{number}" if mapped else None
        host.address = Endpoint(inside if mapped else outside, port)
        host.has_v4, host.udp = kind != "v6-only", kind != "no-udp"
        has_v6 = kind == "v6-only" or (kind != "no-udp" and self.rng.random() < 0.2)
        host.v6 = Endpoint(IPv6Address(f"2d00:{number:x}::1:1"), port) if has_v6 else None
        self.kinds[host.name] = kind
        if host.has_v4 and mapped:
            self._inside[(id(host.nat), host.address.ip)] = host
        elif host.has_v4:
            self._public[host.address] = host
        if host.v6 is not None:
            self._public[host.v6] = host
            self._walls[host.name] = Firewall(host.v6.ip, self.rng)

    def rebind(self, host: Host) -> None:
        """The router forgets its mappings, as after a restart."""
        if host.nat is not None:
            forget(host.nat, self.rng)

    def roam(self, host: Host, kind: str) -> None:
        """The host comes up in another network."""
        self.settle(host, kind)
        self.boot(host)
        self.step(host, NetworkChanged())

    # --- links ------------------------------------------------------------------------------

    def add(self, host: Host, peer: Host, *, cached: object = None) -> None:
        """Add ``peer``, whose link sleeps."""
        host.tunnels.setdefault(peer.key, Tunnel())
        host.added_at[peer.key] = self.now
        self.step(host, AddPeer(peer.key, host.key < peer.key, asleep=True))

    def _perform(self, host: Host, effects: list[PathEffect]) -> None:
        ledger = self.ledgers[host.key]
        for effect in effects:
            if isinstance(effect, UseEndpoint):
                ledger.endpoints.setdefault(effect.peer, []).append((self.now, effect.endpoint))
                if effect.endpoint is None:
                    host.tunnels[effect.peer].handshake_at = None
                self._observe(host, effect.peer)
            elif isinstance(effect, LinkChanged):
                self.shown[(host.key, effect.peer)] = effect.snapshot.state
            elif isinstance(effect, Describe):
                ledger.said[self._reason(ledger, effect)] += 1
                ledger.said_at.append(self.now)
                ledger.last[effect.peer] = effect.description
        super()._perform(host, effects)

    @staticmethod
    def _reason(ledger: Ledger, effect: Describe) -> str:
        new, old = effect.description, ledger.last.get(effect.peer)
        if old == new:
            return "repeated offer" if new.answers is None else "repeated answer"
        if old is None or old.session != new.session:
            return "offer" if new.answers is None else "answer"
        if old.answers != new.answers:
            return "answer"
        return "tickets" if old.relays != new.relays else "update"

    def _signal(self, host: Host, peer: str, text: str) -> None:
        c, receiver = self.conditions, self.keys[peer]
        if self.rng.random() < c.signal_loss or not host.signaling:
            return
        description = parse_description(json.loads(text))

        def deliver() -> None:
            if receiver.signaling and receiver.online:
                if host.key not in receiver.tunnels:
                    self.add(receiver, host)
                self.step(receiver, RemoteDescription(host.key, description))

        self.at(c.signal_delay + self.rng.random() * c.signal_jitter, deliver)

    # --- packets ----------------------------------------------------------------------------

    def is_lost(self, data: bytes) -> bool:
        """Chance takes handshakes and checks; conversations are to show what the engine does."""
        lost = data[:7] != b"WG flow" and self.rng.random() < self.conditions.loss
        if lost and data[3:7] in (b"init", b"resp"):
            self.unlucky.setdefault(data[8:72].decode(), []).append(self.now)
        return lost

    def _send(
        self,
        host: Host,
        data: bytes,
        to: Endpoint,
        ttl: int | None = None,
        port: int | None = None,
    ) -> None:
        wide = to.ip.version == 6
        if not wide and int(to.ip) >> 24 == 127:
            self.carriers.send(host, data, to)
            return
        source = host.v6 if wide else host.address
        if source is None or not host.online or not host.udp or not (wide or host.has_v4):
            return
        if port or host.pins:
            pinned = [pin.local_port for pin in host.pins.values() if pin.remote == to]
            if port or pinned:
                source = replace(source, port=port or pinned[0])
        outer: Endpoint | None = source
        wall = self._walls[host.name] if wide else host.nat
        if not wide and int(to.ip) >> 16 == 0xC0A8:
            return  # 192.168.0.0/16: nobody shares a home here
        if wall is not None:
            outer = wall.outbound(source, to, self.now)
        if outer is None or (ttl is not None and ttl < CORE_HOPS) or self.is_lost(data):
            return
        if wall is not None and to.ip == wall.ip:
            return
        delay = self.conditions.delay + self.rng.random() * self.conditions.jitter
        self.at(delay, partial(self._cross, host, data, outer, to))

    def _cross(self, host: Host, data: bytes, source: Endpoint, to: Endpoint) -> None:
        if to in self.servers:
            self._stun_answer(data, source, to)
            return
        relay = self.carriers.owners.get(int(to.ip))
        if relay is not None:
            self.at(relay.delay, partial(relay.take, data, source, to))
            return
        self.deliver(host, data, source, to)

    def deliver(self, host: Host | None, data: bytes, source: Endpoint, to: Endpoint) -> None:
        nat, port = self.nats.get(to.ip), None
        if nat is not None and nat.maps:
            inner = nat.inbound(to.port, source, self.now)
            receiver = None if inner is None else self._inside.get((id(nat), inner.ip))
            if inner is not None and receiver is not None and inner.port != receiver.address.port:
                port = inner.port
        else:
            receiver = self._public.get(to)
            wall = nat if receiver is None or to.ip.version == 4 else self._walls[receiver.name]
            if isinstance(wall, Firewall) and not wall.admits(to, source, self.now):
                return
        if receiver is not None and receiver.udp:
            self.arrive(receiver, data, source, port)

    def _stun_answer(self, data: bytes, source: Endpoint, server: Endpoint) -> None:
        if self.is_lost(data):
            return
        # XOR-MAPPED-ADDRESS (RFC 8489 section 14.2) and nothing else.
        mask = (int(source.ip) ^ 0x2112A442).to_bytes(4, "big")
        port = (source.port ^ 0x2112).to_bytes(2, "big")
        answer = b"\x01\x01\x00\x0c" + data[4:20] + b"\x00\x20\x00\x08\x00\x01" + port + mask
        self.at(self.conditions.delay, partial(self.deliver, None, answer, server, source))

    def arrive(self, host: Host, data: bytes, source: Endpoint, port: int | None = None) -> None:
        if data[:7] == b"WG flow" and host.online:
            key = (host.key, data[8:72].decode())
            if key in self.heard:
                self.heard[key].append(self.now)
        super().arrive(host, data, source, port)

    def stands_by(self, host: Host, peer: Host, relay: Relay) -> bool:
        """Say whether a host sends through this relay, and knows of another one that works."""
        behind = partial(self.carriers.behind, host)
        link = host.paths.snapshot(peer.key)
        if link is None or behind(host.tunnels[peer.key].endpoint) is not relay:
            return False
        working = [behind(pair.endpoint) for pair in link.tried if pair.state == "succeeded"]
        return any(found.alive and found is not relay for found in working if found is not None)

    # --- WireGuard --------------------------------------------------------------------------

    def is_up(self, host: Host, peer: Host) -> bool:
        """Whether WireGuard has an endpoint and a session."""
        tunnel = host.tunnels.get(peer.key)
        return tunnel is not None and None not in (tunnel.endpoint, tunnel.handshake_at)

    def _wireguard(self, host: Host, data: bytes, source: Endpoint) -> None:
        """What comes late must not lead our packets past the doorbell."""
        tunnel = host.tunnels.get(data[data.index(b" ", 3) + 1 :][:64].decode())
        if tunnel is not None and tunnel.endpoint is not None:
            super()._wireguard(host, data, source)

    def _handshake(self, host: Host, peer: str) -> None:
        if host.tunnels[peer].endpoint is not None and host.online:
            super()._handshake(host, peer)

    def _keepalive(self, host: Host, peer: str) -> None:
        """Once each 25 s while there is an endpoint, however often the tunnel came up."""
        if host.tunnels[peer].endpoint is None or (host.key, peer) in self._kept:
            return
        self._kept.add((host.key, peer))
        self._wg_send(host, peer, "data", 32)

        def again() -> None:
            self._kept.discard((host.key, peer))
            self._keepalive(host, peer)

        self.at(25.0, again)

    def _observe(self, host: Host, peer: str) -> None:
        """Read the counters while the link is awake, as nodes do."""
        if (host.key, peer) in self._watched:
            return
        self._watched.add((host.key, peer))

        def again() -> None:
            self._watched.discard((host.key, peer))
            if host.tunnels[peer].endpoint is not None:
                super(BigNetwork, self)._observe_once(host, peer)
                self._observe(host, peer)

        told = self.ledgers[host.key].endpoints.get(peer, [])
        young = bool(told) and self.now - told[-1][0] < 5.0
        self.at(1.0 if young else OBSERVE_EVERY, again)

    def _observe_once(self, host: Host, peer: str) -> None:
        if self.shown.get((host.key, peer)) != "connected":
            super()._observe_once(host, peer)


def main(arguments: list[str] | None = None) -> int:
    """Live many days; say what each cost and what was violated."""
    from tests.sim.big_day import Day, DaySettings

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--talks", type=int, default=0, help="conversations (as many as nodes)")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args(arguments)
    bad = 0
    totals: Counter[str] = Counter()
    for seed in range(options.first, options.first + options.seeds):
        began = time.process_time()
        settings = DaySettings.drawn(seed, options.nodes, options.hours, options.talks)
        day = Day(seed, settings)
        day.live()
        violations = day.violations()
        bad += bool(violations)
        totals.update(day.totals())
        if violations or options.verbose:
            sys.stdout.write(f"seed {seed}: {time.process_time() - began:.1f} s, {day.summary()}\n")
        for violation in violations:
            sys.stdout.write(f"  {violation}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{options.seeds} seeds, {bad} with violations; {dict(totals)}\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
