"""What a relay operator can tell who kept everything: no more than chance, where nobody was busy.

Twenty nodes in two networks live for days: some restart, some move, some talk, one is removed. Behind a
proxy each mailbox and each message has its own connection, and the operator is given all of them with
their times. Without one it is given everything but which connection: that tells too much in any case
(`docs/security.md`), which a test here shows as well. The bound is four standard deviations of blind
guessing, for each strategy; where npubs are named, it is how often npubs dealt anew do as well.

All of it once more with a relay that demands AUTH (NIP-42), whose answers it has seen too.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from functools import cache
from hashlib import sha256
from typing import Any
from unittest.mock import patch

import pytest

from nostrvpn.node import board as node_board
from nostrvpn.nostr import relay as relay_connection
from nostrvpn.nostr.event import public_key
from nostrvpn.signaling import lanes, network_key, sealing, subscription
from nostrvpn.signaling.mailboxes import Mailbox, node_inbox
from nostrvpn.signaling.network_key import NetworkKey
from tests.sim.guessing import (
    boards_by_clock,
    boards_of_inboxes,
    next_by_author,
    posts_of,
    together,
)
from tests.sim.meshes import DAY, Meshes, RecordingRelay
from tests.sim.nodes import WALL
from tests.sim.privacy_days import DAYS, SIZE, Days
from tests.sim.privacy_names import (
    LUCKY,
    Naming,
    connections_by_online,
    derivations,
    inboxes_by_clock,
    inboxes_by_number,
    inboxes_by_online,
    inboxes_by_order,
    messages_by_number,
    messages_by_online,
)

SIGMAS = 4.0
# The first test of a world lives through its days.
pytestmark = pytest.mark.timeout(240)
# A mailbox is read from an hour before its day to an hour after it, and half an hour's spread.
LIFE_S = DAY + 2 * 3600 + 1800


@cache
def days(*, is_proxied: bool, demands_auth: bool = False) -> Days:
    # Every frame twice, and a signature for each connection: one day of that will do.
    number = 1 if demands_auth else DAYS
    return Days(5, is_proxied=is_proxied, demands_auth=demands_auth, days=number)


def presence(found: Days) -> list[Any]:
    addresses = {address for boards in found.boards.values() for address in boards}
    return [post for post in posts_of(found.relay.record) if post.mailbox in addresses]


every_world = pytest.mark.parametrize(
    ("is_proxied", "demands_auth"), [(False, False), (False, True), (True, False), (True, True)]
)


@every_world
def test_nobody_can_tell_which_messages_have_one_author(is_proxied, demands_auth):
    found = days(is_proxied=is_proxied, demands_auth=demands_auth)
    scores = next_by_author(presence(found), found.world.author_of, SIZE)
    assert all(score.guesses > 500 for score in scores)
    assert max(score.sigmas for score in scores) < SIGMAS, [str(score) for score in scores]


@pytest.mark.parametrize("demands_auth", [False, True])
def test_behind_a_proxy_nobody_can_tell_which_mailboxes_share_a_network(demands_auth):
    found = days(is_proxied=True, demands_auth=demands_auth)
    scores = boards_of_inboxes(found.relay, found.boards, found.inboxes, found.quiet)
    scores += boards_by_clock(found.relay, found.boards, found.inboxes, found.quiet)
    assert together(found.relay, found.boards, found.inboxes).right == 0
    assert all(score.guesses > 20 for score in scores)
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


@every_world
def test_nothing_that_a_relay_sees_lasts_longer_than_a_day_or_names_anybody(
    is_proxied, demands_auth
):
    found = days(is_proxied=is_proxied, demands_auth=demands_auth)
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


def not_chance(namings: list[Naming]) -> list[str]:
    """The strategies that do better than nearly all npubs dealt anew."""
    assert all(naming.guesses > 0 for naming in namings)
    return [str(naming) for naming in namings if naming.luck < LUCKY]


@every_world
def test_who_knows_all_npubs_cannot_tell_which_message_concerns_whom(is_proxied, demands_auth):
    found = days(is_proxied=is_proxied, demands_auth=demands_auth)
    assert not any(derivations(found).values())
    assert not not_chance(inboxes_by_number(found) + messages_by_number(found))
    assert not not_chance(inboxes_by_order(found))


@pytest.mark.parametrize("demands_auth", [False, True])
def test_behind_a_proxy_no_clock_leads_from_one_days_inbox_to_the_next_days(demands_auth):
    found = days(is_proxied=True, demands_auth=demands_auth)
    assert not not_chance([n for n in inboxes_by_clock(found) if n.guesses])


@pytest.mark.parametrize("demands_auth", [False, True])
def test_behind_a_proxy_who_knows_when_each_is_online_names_only_who_starts(demands_auth):
    found = days(is_proxied=True, demands_auth=demands_auth)
    quiet, started = inboxes_by_online(found)
    assert not not_chance([quiet])
    assert quiet.guesses > 20
    # The limit that is stated: the inbox of the day on which its node was seen to start.
    assert started.share > 0.9
    later, _ = messages_by_online(found)
    assert later.guesses > 500
    assert not not_chance([later])


def test_without_a_proxy_who_knows_when_each_started_names_every_connection():
    # The limit that is stated: from its start on, all that is said and read on it.
    naming = connections_by_online(days(is_proxied=False))
    assert naming.guesses >= 2 * SIZE
    assert naming.share > 0.9


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


def test_a_mailbox_that_follows_from_the_npub_would_be_found():
    def of_npub(key: bytes, key_id: str, day: int, node: str) -> Mailbox:
        secret = sha256(bytes.fromhex(node) + str(day).encode()).digest()
        true = node_inbox(key, key_id, day, node)
        return replace(true, public_key=public_key(secret), secret=secret)

    with patch.object(network_key, "node_inbox", of_npub):
        found = Days(10, is_proxied=False, days=0, size=3)
    hits = derivations(found)
    assert all(found.npub_of[address] == npub for npub in hits for address in hits[npub])
    assert all(len(addresses) >= 1 for addresses in hits.values())


def test_a_start_in_the_order_of_npubs_would_be_found():
    found = Days(11, is_proxied=False, days=0, in_order=True)
    [naming] = (
        naming
        for naming in inboxes_by_order(found)
        if naming.strategy == "inbox, first sight in the order of their numbers"
    )
    assert not_chance([naming])


def test_clocks_in_what_readers_write_would_be_found():
    with (
        patch.object(subscription, "DAY_SECONDS", 1),
        patch.object(relay_connection, "blurred", lambda wall, _: int(wall)),
    ):
        found = Days(12, is_proxied=True, days=1, busy=False, demands_auth=True)
    scores = boards_by_clock(found.relay, found.boards, found.inboxes, lambda *_: True)
    assert len(not_chance(inboxes_by_clock(found))) == len(scores) == 2


def test_unpadded_messages_would_be_found():
    with patch.object(sealing, "BUCKETS", tuple(range(64, 40_961, 64))):
        found = Days(9, is_proxied=False, days=0)
    assert min(sealed_sizes(found)) < 2_048
