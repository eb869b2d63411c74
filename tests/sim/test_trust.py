"""Who is removed is out, who was away comes back, and two who act at once agree: on real nodes."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.nostr.event import Event, parse_event
from nostrvpn.nostr.nip44 import conversation_key
from nostrvpn.nostr.nip59 import open_seal, open_wrap
from nostrvpn.signaling.mailboxes import Mailbox
from nostrvpn.signaling.network_key import Keyring, NetworkKey
from nostrvpn.signaling.pair_secret import PairSecrets
from nostrvpn.signaling.rekey import entry_key
from nostrvpn.signaling.sealing import key_of_day
from tests.sim.meshes import DAY, Meshes
from tests.sim.nodes import WALL, Host


def mesh(seed: int, size: int, *, relays: int = 1, sleeps: bool = False) -> tuple[Meshes, Any]:
    """A network of ``size`` that runs, all of them connected."""
    world = Meshes(seed, sleeps=sleeps)
    for number in range(relays):
        world.relay(f"wss://relay{number}")
    hosts = world.network("n", size)
    for host in hosts:
        world.start(host)
    if sleeps:
        world.run(30)
    else:
        pairs = [(one, other) for one in hosts for other in hosts if one is not other]
        assert world.holds(30, lambda: all(world.is_connected(*pair) for pair in pairs))
    return world, hosts


def remove(world: Meshes, by: Host, whom: Host) -> None:
    world.call(by, "peer_remove", peer=whom.secret.npub)


def test_a_removal_gives_all_who_stay_one_new_key():
    world, hosts = mesh(1, 5)
    before = world.key(hosts[0])
    remove(world, hosts[0], hosts[4])
    assert world.holds(20, lambda: world.agree(hosts[:4]))
    assert world.key(hosts[1]) != before
    # It hears of it too, and lets go of what it knew.
    assert world.holds(20, lambda: hosts[4].node.post.keyring.current is None)


@pytest.mark.parametrize("days", [9, 33])
def test_who_was_away_for_weeks_gets_the_operations_and_the_key(days):
    world, hosts = mesh(2, 4)
    away = hosts[3]
    world.stop(away)
    world.cut(away)
    remove(world, hosts[0], hosts[2])
    world.run(20)
    world.call(hosts[0], "peer_name", peer="n1", name="renamed")
    world.run(20)
    # Nothing of the time between is of interest but that it passes, for the relay too.
    for host in hosts[:2]:
        world.stop(host)
    world.run(days * DAY)
    for host in hosts[:2]:
        world.cut(host)
        world.start(host)
    world.run(900)
    world.start(away)
    assert world.holds(120, lambda: world.agree([hosts[0], hosts[1], away]))


def test_who_was_away_gets_them_through_a_tunnel_while_no_relay_is_left():
    world, hosts = mesh(3, 3)
    away = hosts[2]
    world.stop(away)
    world.call(hosts[0], "peer_name", peer="n1", name="renamed")
    world.call(hosts[0], "peer_name", peer="renamed", name="again")
    world.run(10)
    world.kill(world.relays["wss://relay0"])
    world.run(3600)
    world.cut(away)
    world.start(away)
    assert world.holds(1000, lambda: world.agree(hosts))


def test_a_change_reaches_all_while_no_relay_is_left():
    world, hosts = mesh(4, 5)
    world.kill(world.relays["wss://relay0"])
    world.run(60)
    remove(world, hosts[0], hosts[4])
    assert world.holds(60, lambda: world.agree(hosts[:4]))
    assert hosts[4].secret.public_key not in world.roster(hosts[3]).members


def test_two_admins_who_remove_at_once_come_to_one_key_that_nobody_removed_has():
    world, hosts = mesh(5, 6, relays=2)
    world.call(hosts[0], "peer_role", peer="n1", role="admin", lasts_s=None)
    world.run(5)
    held: dict[str, set[str]] = {}
    world.part("n1", "n3", "n5", "wss://relay1")
    world.run(60)
    remove(world, hosts[0], hosts[4])
    remove(world, hosts[1], hosts[5])
    world.run(300)
    stay = hosts[:4]
    for gone in hosts[4:]:
        held[gone.name] = {key.id for key in gone.node.post.keyring.keys}
    world.part("n1", "n3", "n5", "wss://relay1", island=0)
    world.holds(600, lambda: world.agree(stay))
    assert world.agree(stay)
    assert not world.roster(hosts[0]).needs_rekey
    for gone in hosts[4:]:
        assert gone.secret.public_key not in world.roster(hosts[0]).members
        known = {key.id for key in gone.node.post.keyring.keys} | held[gone.name]
        assert world.key(hosts[0]) not in known


def test_a_device_is_replaced_and_the_old_one_is_out():
    world, hosts = mesh(6, 4)
    new = world.host("new")
    world.start(new)
    world.run(5)
    before = world.key(hosts[0])
    link = world.call(hosts[0], "peer_replace", peer="n3", npub=new.secret.npub, expires_s=86_400)[
        "link"
    ]
    world.ask(new, "join", link=link)
    now = [*hosts[:3], new]
    assert world.holds(60, lambda: world.roster(new) is not None and world.agree(now))
    assert hosts[3].secret.public_key not in world.roster(new).members
    assert world.holds(60, lambda: world.key(hosts[0]) != before and world.agree(now))


def token(world: Meshes, host: Host, uses: int, **more: object) -> str:
    terms: dict[str, object] = {"role": "member", "tags": [], "ephemeral": False} | more
    link = world.call(host, "token_create", uses=uses, expires_s=86_400, **terms)["link"]
    world.run(5)
    return str(link)


def members(world: Meshes, host: Host) -> set[str]:
    return {member.name for member in world.roster(host).members.values()}


def test_a_token_lets_in_as_many_as_it_says_while_its_owner_is_away():
    world, hosts = mesh(7, 3)
    link = token(world, hosts[0], 2)
    world.stop(hosts[0])
    new = [world.host(f"new{number}") for number in range(3)]
    for host in new:
        world.start(host)
        world.run(5)
    for host in new[:2]:
        assert world.call(host, "join", link=link)["state"] == "joined"
        assert world.holds(60, partial(world.agree, [*hosts[1:], host]))
    world.ask(new[2], "join", link=link)
    world.run(120)
    assert members(world, hosts[1]) == {"n0", "n1", "n2", "new0", "new1"}
    # It comes back knowing of no use, and finds all three applications on the relay.
    world.start(hosts[0])
    assert world.holds(60, lambda: world.agree([*hosts, *new[:2]]))
    world.run(60)
    assert members(world, hosts[0]) == {"n0", "n1", "n2", "new0", "new1"}


def test_two_at_once_for_one_use_end_with_one():
    for seed in (20,):
        world, hosts = mesh(seed, 4, relays=2)
        link = token(world, hosts[0], 1)
        new = [world.host("new0"), world.host("new1")]
        for host in new:
            world.start(host)
        world.run(5)
        # Each of the two is heard by one half of the members only.
        world.part("n2", "n3", "new1", "wss://relay1")
        world.run(60)
        for host in new:
            world.ask(host, "join", link=link)
        world.run(120)
        world.part("n2", "n3", "new1", "wss://relay1", island=0)
        assert world.holds(600, partial(world.agree, hosts))
        admitted = members(world, hosts[0]) & {"new0", "new1"}
        assert len(admitted) == 1
        for out in (host for host in new if host.name not in admitted):
            for host in hosts:
                device = host.node.desired(world.now).device
                assert out.wireguard_key not in {peer.public_key for peer in device.peers}


def test_an_ephemeral_member_that_vanishes_is_removed_and_one_that_is_there_is_not():
    world, hosts = mesh(8, 2, sleeps=True)
    link = token(world, hosts[0], 2, ephemeral=True)
    new = [world.host("stays"), world.host("vanishes")]
    for host in new:
        world.start(host)
        world.run(5)
        assert world.call(host, "join", link=link)["state"] == "joined"
    world.run(60)
    world.stop(new[1])
    world.cut(new[1])
    world.run(4 * 3600)
    assert members(world, hosts[1]) == {"n0", "n1", "stays"}
    world.run(2 * DAY)
    assert members(world, hosts[1]) == {"n0", "n1", "stays"}
    assert world.agree([*hosts, new[0]])


def test_who_lost_its_keys_is_told_one_problem_and_comes_back():
    world, hosts = mesh(9, 3)
    world.run(60)
    lost = hosts[2]
    world.stop(lost)
    world.cut(lost)
    lost.records["keys"].clear()
    world.start(lost)
    world.run(120)
    assert world.agree(hosts)


class Thief:
    """Who has a node's root secret and all of its records, and every wrap that a relay ever saw."""

    def __init__(
        self, world: Meshes, host: Host, records: dict[str, Any], members: list[Host]
    ) -> None:
        self._root = host.secret.reveal()
        self._me = host.secret.public_key
        keys = records["keys"]
        self.ring = Keyring.from_json(keys["ring"])
        self._pairs = PairSecrets(self._me)
        self._pairs.restore({k[5:]: v for k, v in keys.items() if k.startswith("pair/")})
        everybody = [member.secret.public_key for member in members]
        today = int(WALL + world.now) // int(DAY)
        self.mailboxes: dict[str, Mailbox] = {}
        for key in self.ring.keys:
            for day in range(key.day, today + 3):
                at = key.at(day)
                found = [at.board(), *(at.inbox(member) for member in everybody)]
                self.mailboxes |= {mailbox.public_key: mailbox for mailbox in found}
        self._peers = [key for key in everybody if key != self._me]
        self._shared = {peer: conversation_key(self._root, peer) for peer in self._peers}

    def opens(self, wrap: Event) -> bool:
        """Whether the words inside a wrap can be had, by any key that can be derived."""
        mailbox = self.mailboxes.get(wrap.tag_values("p")[0])
        for secret in [mailbox.secret] if mailbox is not None else [self._root]:
            try:
                seal = open_wrap(wrap, secret)
            except PeerMisbehaved:
                continue
            shared = self._shared.get(seal.pubkey, b"")
            for key in [*self._keys(shared, seal.pubkey), shared]:
                try:
                    open_seal(seal, self._root, key)
                except PeerMisbehaved:
                    continue
                return True
        return False

    def _keys(self, shared: bytes, peer: str) -> list[bytes]:
        found = []
        for mailbox in self.mailboxes.values():
            found.append(mailbox.salt)
            secrets = self._pairs.reading(peer, mailbox.day) if shared else []
            found += [key_of_day(shared, mailbox.salt, secret) for _, secret in secrets]
            found += [entry_key(shared, mailbox.salt, secret) for _, secret in secrets]
        return found


def wraps(world: Meshes, since: float, until: float) -> list[Event]:
    record = world.relays["wss://relay0"].record  # type: ignore[attr-defined]
    said = [h.frame[1] for h in record if since <= h.at < until and h.frame[0] == "EVENT"]
    return [parse_event(event) for event in said]


def week(seed: int, days: int = 7) -> tuple[Meshes, list[Host], float]:
    """A week of three who talk now and then; return also when it was over."""
    world, hosts = mesh(seed, 3, sleeps=True)
    for _ in range(days):
        world.wake(*world.rng.sample(hosts, 2))
        world.run(DAY)
    return world, hosts, world.now


def test_a_thief_of_everything_opens_nothing_of_last_week():
    world, hosts, now = week(10)
    thief = Thief(world, hosts[1], hosts[1].records, hosts)
    # Since the beginning of the day that the stolen key stands at, anything may be read.
    since = thief.ring.keys[0].day * DAY - WALL
    old = wraps(world, 200, since - 3600)
    assert len(old) > 400
    assert not any(thief.opens(wrap) for wrap in old)
    assert any(thief.opens(wrap) for wrap in wraps(world, since, now))


def test_keys_that_do_not_move_on_would_be_found():
    with patch.object(NetworkKey, "at", lambda self, day: replace(self, day=max(day, self.day))):
        world, hosts, now = week(11, days=2)
        thief = Thief(world, hosts[1], hosts[1].records, hosts)
        assert any(thief.opens(wrap) for wrap in wraps(world, 200, now - DAY))


def test_who_was_removed_opens_nothing_that_is_said_afterwards():
    world, hosts = mesh(12, 5, sleeps=True)
    gone = hosts[4]
    world.wake(hosts[1], gone)
    world.run(60)
    kept = json.loads(json.dumps(gone.records))
    remove(world, hosts[0], gone)
    world.run(30)
    since = world.now
    for _ in range(3):
        world.wake(*world.rng.sample(hosts[:4], 2))
        world.run(6 * 3600)
    thief = Thief(world, gone, kept, hosts)
    said = wraps(world, since, world.now)
    assert len(said) > 50
    assert not any(thief.opens(wrap) for wrap in said)
    assert not any(wrap.tag_values("p")[0] in thief.mailboxes for wrap in said)
    assert any(thief.opens(wrap) for wrap in wraps(world, 0, since))
