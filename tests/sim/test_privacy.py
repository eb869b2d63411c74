"""What a relay operator can tell who kept everything: no more than chance, where nobody was busy.

Twenty nodes in two networks live for days: some restart, some move, some talk, one is removed. Behind a
proxy each mailbox and each message has its own connection, and the operator is given all of them with
their times. Without one it is given everything but which connection: that tells too much in any case
(`docs/security.md`), which a test here shows as well. The bound is four standard deviations of blind
guessing, for each strategy.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest

from nostrvpn.node import board as node_board
from nostrvpn.node.events import HostChanged
from nostrvpn.paths.candidates import LocalAddress
from nostrvpn.signaling import lanes, network_key, sealing
from nostrvpn.signaling.network_key import NetworkKey
from nostrvpn.signaling.ratchet import DAY_S
from tests.sim.guessing import boards_of_inboxes, next_by_author, posts_of, together
from tests.sim.meshes import DAY, Meshes, RecordingRelay, shared_work
from tests.sim.nodes import WALL, Host

SIZE = 10
DAYS = 6
SIGMAS = 4.0


class Days:
    """Two networks for some days, and what the relay cannot know: ``boards``, ``inboxes``, by day."""

    def __init__(self, seed: int, *, is_proxied: bool, days: int = DAYS, busy: bool = True) -> None:
        self.world = Meshes(seed, is_proxied=is_proxied)
        self.relay: RecordingRelay = self.world.relay()
        self.networks = {name: self.world.network(name, SIZE) for name in ("a", "b")}
        self.days, self.busy = days, busy
        self.boards: dict[int, dict[str, str]] = defaultdict(dict)
        self.inboxes: dict[int, dict[str, str]] = defaultdict(dict)
        self.owners: dict[str, str] = {}
        self._busy_days: set[tuple[int, str]] = set()
        with shared_work():
            self._live()

    def quiet(self, day: int, address: str) -> bool:
        return (day, self.owners[address]) not in self._busy_days

    def _live(self) -> None:
        world = self.world
        for host in (h for hosts in self.networks.values() for h in hosts):
            host.skew = world.rng.uniform(-8, 8)  # clocks are good, not perfect
            world.start(host)
            world.run(world.rng.uniform(30, 120))
        # On to the next hour in which mailboxes stay: all have started on one day.
        world.run(DAY - (WALL + world.now) % DAY + 6 * 3600)
        self._note()
        for _ in range(self.days):
            for _ in range(4):
                if self.busy:
                    self._something_happens()
                world.run(6 * 3600)
                self._note()

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

    def _something_happens(self) -> None:
        """A node restarts, one moves, two talk; on the third day one is removed."""
        world, rng = self.world, self.world.rng
        for hosts in self.networks.values():
            one, two, three, four = rng.sample(hosts[1:-1], 4)
            for host in (one, two, three, four):
                self._busy_days |= {(self.today + shift, host.name) for shift in (-1, 0, 1)}
            world.stop(one)
            world.run(rng.uniform(10, 900))
            world.start(one)
            world.run(rng.uniform(10, 900))
            moved = LocalAddress(two.address.ip + rng.randrange(3, 200), "wlan0", 24)
            world.step(two, HostChanged((moved,)))
            world.run(rng.uniform(10, 900))
            world.wake(three, four)
            world.run(rng.uniform(10, 900))

    def remove(self, network: str, host: Host) -> None:
        self.world.call(self.networks[network][0], "peer_remove", peer=host.secret.npub)


@cache
def days(*, is_proxied: bool) -> Days:
    return Days(5, is_proxied=is_proxied)


def presence(found: Days) -> list[Any]:
    addresses = {address for boards in found.boards.values() for address in boards}
    return [post for post in posts_of(found.relay.record) if post.mailbox in addresses]


@pytest.mark.parametrize("is_proxied", [False, True])
def test_nobody_can_tell_which_messages_have_one_author(is_proxied):
    found = days(is_proxied=is_proxied)
    scores = next_by_author(presence(found), found.world.author_of, SIZE)
    for score in scores:
        print(score)
    assert all(score.guesses > 1000 for score in scores)
    assert max(score.sigmas for score in scores) < SIGMAS


def test_behind_a_proxy_nobody_can_tell_which_mailboxes_share_a_network():
    found = days(is_proxied=True)
    scores = boards_of_inboxes(found.relay, found.boards, found.inboxes, found.quiet)
    scores.append(together(found.relay, found.boards, found.inboxes))
    for score in scores:
        print(score)
    print(*boards_of_inboxes(found.relay, found.boards, found.inboxes, lambda d, a: not found.quiet(d, a)), sep="\n")
    assert all(score.guesses > 30 for score in scores)
    assert max(score.sigmas for score in scores) < SIGMAS


def test_without_a_proxy_a_connection_tells_which_mailboxes_share_a_network():
    # The limit that is stated; and a test that these strategies find what is there.
    found = days(is_proxied=False)
    assert together(found.relay, found.boards, found.inboxes).advantage > 0.9
