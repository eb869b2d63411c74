"""Twenty nodes in two networks for some days, and a Nostr relay that keeps everything it hears."""

from __future__ import annotations

import math
from collections import defaultdict

from nostrvpn.node.events import HostChanged
from nostrvpn.paths.candidates import LocalAddress
from nostrvpn.signaling.ratchet import DAY_S
from tests.sim.meshes import DAY, Meshes, RecordingRelay, shared_work
from tests.sim.nodes import WALL, Host

__all__ = ["DAYS", "SIZE", "Days"]

SIZE = 10
DAYS = 2


class Days:
    """Two networks for some days, and what the relay cannot know.

    ``boards`` and ``inboxes``: day -> address -> network. ``npub_of``: address of an inbox -> public
    key, ``day_of`` it, from the first day on. ``online``: public key -> when its node ran, in the
    relay's time.
    """

    def __init__(
        self,
        seed: int,
        *,
        is_proxied: bool,
        days: int = DAYS,
        busy: bool = True,
        size: int = SIZE,
        demands_auth: bool = False,
        in_order: bool = False,
    ) -> None:
        """``in_order``: at first the nodes start in the order of their npubs."""
        self.world = Meshes(seed, is_proxied=is_proxied)
        self.relay: RecordingRelay = self.world.relay(demands_auth=demands_auth)
        self.networks = {name: self.world.network(name, size) for name in ("a", "b")}
        self.days, self.busy = days, busy
        self.boards: dict[int, dict[str, str]] = defaultdict(dict)
        self.inboxes: dict[int, dict[str, str]] = defaultdict(dict)
        self.owners: dict[str, str] = {}
        self.npub_of: dict[str, str] = {}
        self.day_of: dict[str, int] = {}
        self.online: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.restarted: set[tuple[int, str]] = set()  # day, public key
        self._busy_days: set[tuple[int, str]] = set()
        self._in_order = in_order
        with shared_work():
            self._live()

    @property
    def hosts(self) -> list[Host]:
        return [host for hosts in self.networks.values() for host in hosts]

    @property
    def npubs(self) -> list[str]:
        """The public keys of all, in an order that says nothing."""
        return sorted(host.secret.public_key for host in self.hosts)

    def quiet(self, day: int, address: str) -> bool:
        return (day, self.owners[address]) not in self._busy_days

    def _live(self) -> None:
        world = self.world
        hosts = self.hosts
        if self._in_order:
            hosts.sort(key=lambda host: host.secret.public_key)
        for host in hosts:
            host.skew = world.rng.uniform(-8, 8)  # clocks are good, not perfect
            self._start(host)
            world.run(world.rng.uniform(30, 120))
        self._note_owners()
        # On to the next hour in which mailboxes stay: all have started on one day.
        world.run(DAY - (WALL + world.now) % DAY + 6 * 3600)
        self._note()
        for number in range(self.days):
            if self.busy:
                self._something_happens()
            if self.busy and number == 1:
                self._remove_one(self.networks["b"])
            for _ in range(2):
                world.run(12 * 3600)
                self._note()
        for spans in self.online.values():
            spans[-1] = (spans[-1][0], min(spans[-1][1], world.now))

    def _start(self, host: Host) -> None:
        self.restarted.add((self.today, host.secret.public_key))
        self.online[host.secret.public_key].append((self.world.now, math.inf))
        self.world.start(host)

    def _stop(self, host: Host) -> None:
        spans = self.online[host.secret.public_key]
        spans[-1] = (spans[-1][0], self.world.now)
        self.world.stop(host)

    @property
    def today(self) -> int:
        return int(WALL + self.world.now) // DAY_S

    def _note(self) -> None:
        for name, hosts in self.networks.items():
            for host in hosts:
                key = host.node.post.keyring.current
                if key is None or host.secret.public_key not in self.world.roster(host).members:
                    continue
                key = key.at(self.today)
                self.boards[self.today][key.board().public_key] = name
                address = key.inbox(host.secret.public_key).public_key
                self.inboxes[self.today][address] = name
                self.owners[address] = host.name
        self._note_owners()

    def _note_owners(self) -> None:
        for host in self.hosts:
            for key in host.node.post.keyring.reading(WALL + self.world.now):
                address = key.inbox(host.secret.public_key).public_key
                self.npub_of[address] = host.secret.public_key
                self.day_of[address] = key.day

    def _something_happens(self) -> None:
        """In each network a node restarts, one moves, and two talk."""
        world, rng = self.world, self.world.rng
        for hosts in self.networks.values():
            one, two, three, four = rng.sample(hosts[1:-1], 4)
            self._busy_days |= {(self.today, host.name) for host in (one, two, three, four)}
            self._stop(one)
            world.run(rng.uniform(10, 900))
            self._start(one)
            moved = LocalAddress(two.address.ip + rng.randrange(3, 200), "wlan0", 24)
            world.step(two, HostChanged((moved,)))
            world.run(rng.uniform(10, 900))
            world.wake(three, four)

    def _remove_one(self, hosts: list[Host]) -> None:
        """All of its network change their mailboxes then, and the relay sees that."""
        self._busy_days |= {(self.today, host.name) for host in hosts}
        self.world.call(hosts[0], "peer_remove", peer=hosts[-1].secret.npub)
