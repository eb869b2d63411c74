"""What a relay operator can tell who kept everything: no more than chance, where nobody was busy.

Twenty nodes in two networks live for days: some restart, some move, some talk, one is removed. Behind a
proxy each mailbox and each message has its own connection, and the operator is given all of them with
their times. Without one it is given everything but which connection: that tells too much in any case
(`docs/security.md`), which a test here shows as well. The bound is four standard deviations of blind
guessing, for each strategy.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest

from nostrvpn.node import board as node_board
from nostrvpn.node.events import HostChanged
from nostrvpn.paths.candidates import LocalAddress
from nostrvpn.signaling import lanes, sealing
from nostrvpn.signaling.network_key import NetworkKey
from nostrvpn.signaling.ratchet import DAY_S
from tests.sim.guessing import boards_of_inboxes, next_by_author, posts_of, together
from tests.sim.meshes import DAY, Meshes, RecordingRelay, shared_work
from tests.sim.nodes import WALL, Host

SIZE = 10
DAYS = 2
SIGMAS = 4.0
# A mailbox is read from an hour before its day to an hour after it, and half an hour's spread.
LIFE_S = DAY + 2 * 3600 + 1800


class Days:
    """Two networks for some days, and what the relay cannot know: ``boards``, ``inboxes``, by day."""

    def __init__(
        self,
        seed: int,
        *,
        is_proxied: bool,
        days: int = DAYS,
        busy: bool = True,
        size: int = SIZE,
    ) -> None:
        self.world = Meshes(seed, is_proxied=is_proxied)
        self.relay: RecordingRelay = self.world.relay()
        self.networks = {name: self.world.network(name, size) for name in ("a", "b")}
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
        for number in range(self.days):
            if self.busy:
                self._something_happens()
            if self.busy and number == 1:
                self._remove_one(self.networks["b"])
            for _ in range(2):
                world.run(12 * 3600)
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
        """In each network a node restarts, one moves, and two talk."""
        world, rng = self.world, self.world.rng
        for hosts in self.networks.values():
            one, two, three, four = rng.sample(hosts[1:-1], 4)
            self._busy_days |= {(self.today, host.name) for host in (one, two, three, four)}
            world.stop(one)
            world.run(rng.uniform(10, 900))
            world.start(one)
            moved = LocalAddress(two.address.ip + rng.randrange(3, 200), "wlan0", 24)
            world.step(two, HostChanged((moved,)))
            world.run(rng.uniform(10, 900))
            world.wake(three, four)

    def _remove_one(self, hosts: list[Host]) -> None:
        """All of its network change their mailboxes then, and the relay sees that."""
        self._busy_days |= {(self.today, host.name) for host in hosts}
        self.world.call(hosts[0], "peer_remove", peer=hosts[-1].secret.npub)


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
    assert all(score.guesses > 1000 for score in scores)
    assert max(score.sigmas for score in scores) < SIGMAS, [str(score) for score in scores]


def test_behind_a_proxy_nobody_can_tell_which_mailboxes_share_a_network():
    found = days(is_proxied=True)
    scores = boards_of_inboxes(found.relay, found.boards, found.inboxes, found.quiet)
    assert together(found.relay, found.boards, found.inboxes).right == 0
    assert all(score.guesses > 30 for score in scores)
    assert max(score.sigmas for score in scores) < SIGMAS, [str(score) for score in scores]


def test_without_a_proxy_a_connection_tells_which_mailboxes_share_a_network():
    # The limit that is stated; and a test that these strategies find what is there.
    found = days(is_proxied=False)
    assert together(found.relay, found.boards, found.inboxes).advantage > 0.9


def lives(relay: RecordingRelay) -> dict[str, float]:
    """For each address the seconds between its first and its last mention."""
    seen: dict[str, list[float]] = defaultdict(list)
    for heard in relay.record:
        filters = heard.frame[2:] if heard.frame[0] == "REQ" else []
        for address in (a for wanted in filters for a in wanted.get("#p", ())):
            seen[address].append(WALL + heard.at)
    for post in posts_of(relay.record):
        seen[post.mailbox].append(post.at)
    seen.pop("0" * 64, None)  # asked for by all, to see whether a relay still answers
    return {address: max(times) - min(times) for address, times in seen.items()}


@pytest.mark.parametrize("is_proxied", [False, True])
def test_nothing_that_a_relay_sees_lasts_longer_than_a_day_or_names_anybody(is_proxied):
    found = days(is_proxied=is_proxied)
    assert max(lives(found.relay).values()) < LIFE_S
    events = [heard.frame[1] for heard in found.relay.record if heard.frame[0] == "EVENT"]
    assert len({event["pubkey"] for event in events}) == len({event["id"] for event in events})
    everything = json.dumps([heard.frame for heard in found.relay.record])
    for host in (host for hosts in found.networks.values() for host in hosts):
        roster = found.world.roster(host)
        for secret in (
            host.secret.npub,
            host.secret.public_key,
            host.wireguard_key,
            str(host.address.ip),
            roster.network_id,
            f'"{host.name}"',
        ):
            assert secret not in everything


def test_sizes_are_few():
    sizes = sealed_sizes(days(is_proxied=False))
    assert len(sizes) <= 3
    assert min(sizes) > sealing.BUCKETS[0]


def sealed_sizes(found: Days) -> set[int]:
    """The sizes of what holds something: not of what relays are tested with."""
    return {post.size for post in posts_of(found.relay.record) if post.stands not in (0, 60)}


def test_who_waits_behind_a_proxy_opens_no_more_connections_than_it_has_to_say():
    # Each message has a connection of its own, and a connection that opens is a reason to ask again.
    world = Meshes(1, is_proxied=True)
    relay = world.relay()
    inviter, applicant = world.host("inviter"), world.host("applicant")
    for host in (inviter, applicant):
        world.start(host)
    world.run(5)
    terms = {"npub": applicant.secret.npub, "once": False, "expires_s": 86_400}
    link = world.call(inviter, "invite", **terms)["link"]
    world.stop(inviter)
    before = len(relay.opened)
    world.ask(applicant, "join", link=link)
    world.run(600)
    assert len(relay.opened) - before < 40
    world.start(inviter)
    assert world.holds(60, lambda: world.is_connected(inviter, applicant))


# -- the same guesses find what is there: each of these breaks one thing ----------------------


def test_a_fixed_rhythm_would_be_found():
    with patch.object(node_board, "_memoryless", lambda mean, _: mean):
        found = Days(6, is_proxied=False, days=1, busy=False)
    scores = next_by_author(presence(found), found.world.author_of, SIZE)
    assert max(score.advantage for score in scores) > 0.5


def test_one_mailbox_for_ever_would_be_found():
    with patch.object(NetworkKey, "at", lambda self, day: replace(self, day=max(day, self.day))):
        found = Days(7, is_proxied=False, days=1, busy=False, size=3)
    assert max(lives(found.relay).values()) > LIFE_S


def test_connections_that_change_all_at_once_would_be_found():
    with patch.object(lanes, "SPREAD_S", 0.0):
        found = Days(8, is_proxied=True, days=1, busy=False, size=5)
    scores = boards_of_inboxes(found.relay, found.boards, found.inboxes, lambda *_: True)
    assert max(score.advantage for score in scores) > 0.7


def test_unpadded_messages_would_be_found():
    with patch.object(sealing, "BUCKETS", tuple(range(64, 40_961, 64))):
        found = Days(9, is_proxied=False, days=0)
    assert min(sealed_sizes(found)) < 2_048
