"""Floods, forgeries and noise at the relay, from seeds, in virtual time."""

from __future__ import annotations

import random
from collections import Counter
from ipaddress import IPv4Address, IPv6Address

import pytest

from nostrvpn.endpoint import Endpoint
from nostrvpn.machine import Tick
from nostrvpn.relaying.events import (
    AllocateReceived,
    Channel,
    ChannelClosed,
    ChannelOpened,
    ChannelReceived,
    CountersRead,
    Forward,
    PortReceived,
    PortRefused,
    SendControl,
    SendFrom,
    Users,
)
from nostrvpn.relaying.nonces import Nonces
from nostrvpn.stun.binding import parse_stun
from nostrvpn.stun.relaying import Side, render_allocate, render_bind, side_key
from tests.unit.relaying.test_server import ALICE, BOB, PAIR, RELAY_IP, STRANGER, A, B, Relay


def some_source(rng: random.Random) -> Endpoint:
    if rng.random() < 0.3:
        return Endpoint(
            IPv6Address((0x20010DB8 << 96) + rng.getrandbits(72)), rng.randint(1, 65535)
        )
    return Endpoint(IPv4Address(0xC6120000 + rng.getrandbits(6)), rng.randint(1, 65535))


def some_message(rng: random.Random, relay: Relay, pairs: list[str]) -> bytes:
    """A request, right or wrong in one of many ways, or noise."""
    pair = rng.choice([*pairs, rng.randbytes(8).hex()])
    user = rng.choice([ALICE, BOB, STRANGER])
    side = rng.choice(list(Side))
    if rng.random() < 0.3:
        data = render_allocate(relay.transaction(), user, pair)
    else:
        key = rng.choice([side_key(user.key, pair, side), user.key])
        nonce = rng.choice([None, rng.randbytes(rng.choice([1, 8, 12, 40]))])
        data = render_bind(relay.transaction(), pair, side, key, nonce)
    match rng.randrange(5):
        case 0:
            data = data[: rng.randrange(len(data))]
        case 1:
            spoiled = bytearray(data)
            for _ in range(rng.randint(1, 6)):
                spoiled[rng.randrange(len(data))] = rng.randrange(256)
            data = bytes(spoiled)
        case 2 if rng.random() < 0.3:
            data = rng.randbytes(rng.randrange(600))
    return data


@pytest.mark.parametrize("seed", range(20))
def test_nobody_is_sent_more_than_he_sent_and_nothing_is_forwarded(seed):
    rng = random.Random(seed)
    relay = Relay(seed=seed, max_pairs=8)
    pairs = [f"{n:016x}" for n in range(3)]
    for pair in pairs:
        relay.allocate(rng.choice([ALICE, BOB]), pair)
    received: Counter[object] = Counter()
    sent: Counter[object] = Counter()
    for _ in range(1000):
        source = some_source(rng)
        data = some_message(rng, relay, pairs)
        received[source] += len(data)
        port = rng.choice([*relay.open, 33000]) if relay.open else 33000
        if rng.random() < 0.3:
            effects = relay.step(AllocateReceived(data, source))
        else:
            effects = relay.step(PortReceived(port, data, source, RELAY_IP))
        for effect in effects:
            assert not isinstance(effect, Forward)
            if isinstance(effect, SendFrom | SendControl):
                sent[effect.destination] += len(effect.data)
                parse_stun(effect.data)
        relay.now += rng.choice([0.0, 0.001, 0.3])
    assert sum(sent.values()) > 1000  # else this shows nothing
    assert not [source for source in sent if sent[source] > received[source]]
    assert len(relay.open) <= 8


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_events_leaves_a_sound_relay(seed):
    """``Relay.step`` checks that ports and forwarding are opened and closed in order."""
    rng = random.Random(seed)
    relay = Relay(seed=seed, max_pairs=6, ports=range(40000, 40008), max_channels=4)
    pairs = [f"{n:016x}" for n in range(5)]
    number = 0
    bound = 0
    for _ in range(600):
        relay.now += rng.choice([0.0, 0.1, 1.0, 20.0])
        relay.foreign = {port for port in relay.foreign if rng.random() < 0.7}
        pair, side = rng.choice(pairs), rng.choice(list(Side))
        source = rng.choice([A, B, some_source(rng)])
        match rng.randrange(12):
            case 0 | 1:
                relay.allocate(ALICE, pair, source)
            case 2 | 3 | 4 | 5 if relay.open:
                port = rng.choice(sorted(relay.open))
                answer = relay.bind_once(port, side, source, pair=pair)
                if answer is not None and answer.nonce:
                    again = relay.bind_once(port, side, source, pair=pair, nonce=answer.nonce)
                    bound += again is not None and again.mapped == source
            case 6:
                number += 1
                relay.step(ChannelOpened(number, IPv4Address("1.2.3.4")))
            case 7 if number:
                which = rng.randint(1, number)
                data = render_bind(
                    relay.transaction(), pair, side, side_key(ALICE.key, pair, side), None
                )
                relay.step(ChannelReceived(which, data))
            case 8 if number:
                which = rng.randint(1, number)
                relay.step(ChannelClosed(which))
                relay.closed.add(which)
            case 9:
                relay.step(CountersRead({port: rng.getrandbits(30) for port in relay.open}))
            case 10:
                relay.foreign = {rng.choice(relay.settings.ports)} - relay.open
                relay.step(PortRefused(39999))
            case _:
                relay.step(rng.choice([Tick(), Users(frozenset([ALICE.name, BOB.name]))]))
        shown = relay.server.snapshot(relay.moment).pairs
        assert {pair.port for pair in shown} == relay.open
        assert {pair.port for pair in shown if pair.a and pair.b} == set(relay.forwards)
        for forward in relay.forwards.values():
            assert forward.a.source != forward.b.source
            for end in (forward.a, forward.b):
                assert not (isinstance(end.source, Channel) and end.source.number in relay.closed)
    assert bound
    relay.now += 301
    relay.step(Tick())
    assert relay.open == set()
    assert relay.forwards == {}


def test_a_flood_from_one_address_leaves_others_alone():
    relay = Relay()
    port = relay.allocate(source=B).relayed.port
    data = render_bind(relay.transaction(), "ee" * 8, Side.ALLOCATOR, ALICE.key, None)
    for _ in range(5000):
        relay.now += 0.0005
        relay.step(PortReceived(port, data, A, RELAY_IP))
    assert relay.server.counters["refused_437"] <= 240 + 40 * 2.5 + 1
    assert relay.server.counters["limited_source"] > 4600
    assert relay.bind(port, Side.OTHER, B).mapped == B


def test_refusals_to_forged_addresses_are_few():
    """Each from another address: who reflects us at somebody gets 100 small packets a second."""
    relay = Relay()
    port = relay.allocate(source=B).relayed.port
    sent = 0
    data = render_bind(relay.transaction(), "ee" * 8, Side.ALLOCATOR, ALICE.key, None)
    for n in range(20000):
        relay.now += 0.0001
        source = Endpoint(IPv4Address(0x0A000000 + n), 5)
        effects = relay.step(PortReceived(port, data, source, RELAY_IP))
        sent += sum(len(effect.data) for effect in effects)
    assert 0 < sent <= 28 * 301
    assert relay.server.counters["limited_total"] > 15000


def test_replayed_allocates_hold_no_more_than_their_users_share():
    """Who records Allocates and plays them again, from anywhere, opens ports for half a minute."""
    relay = Relay(pairs_per_user=3)
    recorded = [render_allocate(relay.transaction(), ALICE, f"{n:016x}") for n in range(10)]
    for n in range(500):
        relay.now += 0.01
        source = Endpoint(IPv4Address(0x0A000000 + n), 5)
        relay.step(AllocateReceived(recorded[n % 10], source))
        assert len(relay.open) <= 3
    assert relay.allocate(BOB, "ff" * 8, B).relayed is not None
    relay.now += 31
    relay.step(Tick())
    assert len(relay.open) == 0


def test_nonces_differ_by_address_pair_side_and_number_of_binds():
    relay = Relay()
    nonces = Nonces()
    moment = relay.moment
    subjects = [f"u {PAIR} {side} {n}" for side in "ab" for n in range(3)]
    made = {nonces.make(source, subject, moment) for source in (A, B) for subject in subjects}
    assert len(made) == 12
    assert all(len(nonce) <= 12 for nonce in made)
    assert not nonces.accepts(b"", A, subjects[0], moment)


def test_a_request_that_is_shorter_than_its_answer_gets_none():
    """Without FINGERPRINT a bind is shorter than its challenge, though it is authentic."""
    relay = Relay()
    port = relay.allocate().relayed.port
    key = side_key(ALICE.key, PAIR, Side.ALLOCATOR)
    whole = render_bind(relay.transaction(), PAIR, Side.ALLOCATOR, key, None)
    data = whole[:2] + (len(whole) - 28).to_bytes(2, "big") + whole[4:-8]
    assert parse_stun(data).is_authentic(key)
    assert relay.step(PortReceived(port, data, A, RELAY_IP)) == []
    assert relay.server.counters["answer_longer_than_request"] == 1
