"""The difference between a found and a desired device; the device here is one in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.endpoint import Endpoint
from nostrvpn.wireguard.device import (
    Device,
    IPNetwork,
    ObservedDevice,
    ObservedPeer,
    Peer,
    SecretKey,
)
from nostrvpn.wireguard.diff import (
    Op,
    PresharedKey,
    RemovePeer,
    SetDevice,
    SetPeer,
    applied_generations,
    diff,
)
from nostrvpn.wireguard.uapi import parse_get, render_set

PRIVATE = SecretKey(bytes(range(32)))
PSK = SecretKey(bytes([9] * 32))
KEYS = [SecretKey(bytes([number] * 32)).public_key for number in range(1, 7)]
A, B = KEYS[0], KEYS[1]
HOME = Endpoint(ip_address("192.0.2.1"), 51820)
AWAY = Endpoint(ip_address("2001:db8::1"), 51821)


class FakeDevice:
    """WireGuard's own rules in memory: a prefix belongs to the peer that was given it last."""

    def __init__(self, observed: ObservedDevice | None = None) -> None:
        self.state = observed or ObservedDevice()
        self.writes: list[Op] = []

    def apply(self, ops: Iterable[Op], device: Device) -> None:
        for op in ops:
            self.writes.append(op)
            match op:
                case SetDevice():
                    self._set_device(op, device)
                case RemovePeer():
                    self._put([p for p in self.state.peers if p.public_key != op.public_key])
                case SetPeer():
                    self._set_peer(op, device)

    def roam(self, public_key: str, endpoint: Endpoint) -> None:
        peers = self.state.peers
        self._put(
            [replace(p, endpoint=endpoint) if p.public_key == public_key else p for p in peers]
        )

    def _put(self, peers: Iterable[ObservedPeer]) -> None:
        self.state = replace(self.state, peers=tuple(peers))

    def _set_device(self, op: SetDevice, device: Device) -> None:
        if op.private_key:
            own = device.private_key.public_key
            self.state = replace(self.state, public_key=own)
            self._put([p for p in self.state.peers if p.public_key != own])
        if op.listen_port is not None:
            self.state = replace(self.state, listen_port=op.listen_port or 40000)
        if op.fwmark is not None:
            self.state = replace(self.state, fwmark=op.fwmark)

    def _set_peer(self, op: SetPeer, device: Device) -> None:
        peers = {peer.public_key: peer for peer in self.state.peers}
        if op.public_key not in peers and not op.new:
            return
        peer = peers.get(op.public_key, ObservedPeer(op.public_key))
        if op.endpoint is not None:
            peer = replace(peer, endpoint=op.endpoint)
        if op.persistent_keepalive is not None:
            peer = replace(peer, persistent_keepalive=op.persistent_keepalive)
        if op.preshared_key is PresharedKey.SET:
            peer = replace(peer, preshared_key=device.preshared_key_of(op.public_key))
        elif op.preshared_key is PresharedKey.CLEAR:
            peer = replace(peer, preshared_key=None)
        if op.allowed_ips is not None:
            kept = frozenset[IPNetwork]() if op.replace_allowed_ips else peer.allowed_ips
            for key, other in peers.items():
                peers[key] = replace(other, allowed_ips=other.allowed_ips - op.allowed_ips)
            peer = replace(peer, allowed_ips=kept | op.allowed_ips)
        peers[op.public_key] = peer
        self._put(peers.values())


def networks(*prefixes: str) -> frozenset[IPNetwork]:
    return frozenset(map(ip_network, prefixes))


def device(*peers: Peer, port: int = 51820, fwmark: int = 0) -> Device:
    return Device(PRIVATE, port, fwmark, peers)


def settle(fake: FakeDevice, desired: Device, applied: dict[str, int] | None = None) -> list[Op]:
    ops = diff(fake.state, desired, applied or {}, interface="wg0")
    fake.apply(ops, desired)
    return ops


def test_a_new_device_is_configured_whole() -> None:
    peer = Peer(A, networks("10.0.0.2/32"), 25, HOME, 1, PSK)
    ops = diff(None, device(peer, fwmark=0x1234), {}, interface="wg0")
    assert [str(op) for op in ops] == [
        "wg set wg0 private-key <redacted> listen-port 51820 fwmark 0x1234",
        f"wg set wg0 peer {A} preshared-key <redacted> endpoint 192.0.2.1:51820 "
        "persistent-keepalive 25 allowed-ips +10.0.0.2/32",
    ]


def test_a_roaming_endpoint_is_left_alone() -> None:
    fake = FakeDevice()
    desired = device(Peer(A, networks("10.0.0.2/32"), endpoint=HOME, endpoint_generation=1))
    settle(fake, desired)
    fake.roam(A, AWAY)
    assert settle(fake, desired, applied_generations(desired)) == []
    assert fake.state.peers[0].endpoint == AWAY


def test_a_new_generation_sets_the_endpoint_again() -> None:
    fake = FakeDevice()
    desired = device(Peer(A, networks("10.0.0.2/32"), endpoint=HOME, endpoint_generation=1))
    settle(fake, desired)
    fake.roam(A, AWAY)
    again = device(replace(desired.peers[0], endpoint_generation=2))
    ops = settle(fake, again, applied_generations(desired))
    assert ops == [SetPeer("wg0", A, endpoint=HOME)]
    assert diff(fake.state, again, applied_generations(again), interface="wg0") == []


def test_a_new_generation_writes_the_same_endpoint_again() -> None:
    """WireGuard then forgets which source address it used, as a change of network needs."""
    fake = FakeDevice()
    desired = device(Peer(A, networks("10.0.0.2/32"), endpoint=HOME, endpoint_generation=1))
    settle(fake, desired)
    again = device(replace(desired.peers[0], endpoint_generation=2))
    assert settle(fake, again, applied_generations(desired)) == [SetPeer("wg0", A, endpoint=HOME)]


def test_an_unset_endpoint_never_touches_the_learned_one() -> None:
    fake = FakeDevice()
    desired = device(Peer(A, networks("10.0.0.2/32"), endpoint=HOME, endpoint_generation=1))
    settle(fake, desired)
    undecided = device(Peer(A, networks("10.0.0.2/32"), endpoint_generation=2))
    assert settle(fake, undecided, applied_generations(desired)) == []
    assert fake.state.peers[0].endpoint == HOME


def test_a_peer_that_somebody_removed_comes_back_with_its_endpoint() -> None:
    fake = FakeDevice()
    desired = device(Peer(A, networks("10.0.0.2/32"), 25, HOME, 1, PSK))
    settle(fake, desired)
    before = fake.state
    fake.apply([RemovePeer("wg0", A)], desired)
    settle(fake, desired, applied_generations(desired))
    assert fake.state == before


def test_unknown_peers_are_removed_and_the_others_stay_untouched() -> None:
    fake = FakeDevice()
    both = device(Peer(A, networks("10.0.0.2/32")), Peer(B, networks("10.0.0.3/32")))
    settle(fake, both)
    ops = settle(fake, device(both.peers[0]), applied_generations(both))
    assert ops == [RemovePeer("wg0", B)]
    assert str(ops[0]) == f"wg set wg0 peer {B} remove"


def test_what_is_no_longer_mentioned_is_cleared() -> None:
    fake = FakeDevice()
    settle(fake, device(Peer(A, networks("10.0.0.2/32"), 25, None, 0, PSK), fwmark=7))
    bare = device(Peer(A, frozenset()))
    ops = settle(fake, bare, {A: 0})
    assert [str(op) for op in ops] == [
        "wg set wg0 fwmark off",
        f'wg set wg0 peer {A} preshared-key /dev/null persistent-keepalive off allowed-ips ""',
    ]
    assert fake.state.peers == (ObservedPeer(A),)


def test_a_changed_preshared_key_is_set() -> None:
    fake = FakeDevice()
    settle(fake, device(Peer(A, frozenset(), preshared_key=PSK)))
    ops = settle(fake, device(Peer(A, frozenset(), preshared_key=PRIVATE)), {A: 0})
    assert ops == [SetPeer("wg0", A, preshared_key=PresharedKey.SET)]


def test_more_addresses_are_added_without_taking_the_old_ones_away() -> None:
    fake = FakeDevice()
    settle(fake, device(Peer(A, networks("10.0.0.2/32"))))
    ops = settle(fake, device(Peer(A, networks("10.0.0.2/32", "fd00::2/128"))), {A: 0})
    assert ops == [SetPeer("wg0", A, allowed_ips=networks("fd00::2/128"))]


def test_two_peers_can_swap_addresses() -> None:
    fake = FakeDevice()
    one, two = networks("10.0.0.2/32"), networks("10.0.0.3/32")
    settle(fake, device(Peer(A, one), Peer(B, two)))
    swapped = device(Peer(A, two), Peer(B, one))
    settle(fake, swapped, {A: 0, B: 0})
    assert diff(fake.state, swapped, {A: 0, B: 0}, interface="wg0") == []
    assert {p.public_key: p.allowed_ips for p in fake.state.peers} == {A: two, B: one}


def test_an_address_moves_to_another_peer_in_one_operation() -> None:
    """No packet finds it with nobody: the old peer's list is not written at all."""
    shared = ip_network("192.168.5.0/24")
    own = {key: ip_network(f"10.64.0.{number}/32") for number, key in ((1, A), (2, B))}
    for order in ((A, B), (B, A)):
        for holder, taker in ((A, B), (B, A)):
            before, after = (
                Device(
                    PRIVATE,
                    peers=tuple(
                        Peer(key, frozenset({own[key]} | ({shared} if key == whose else set())))
                        for key in order
                    ),
                )
                for whose in (holder, taker)
            )
            device = FakeDevice()
            device.apply(diff(None, before, {}, interface="nv0"), before)
            applied = applied_generations(before)
            ops = diff(device.state, after, applied, interface="nv0")
            assert ops == [SetPeer("nv0", taker, allowed_ips=frozenset({shared}))]
            device.apply(ops, after)
            assert diff(device.state, after, applied, interface="nv0") == []


def test_any_port_is_content_with_the_one_it_got() -> None:
    fake = FakeDevice()
    settle(fake, device(port=51820))
    assert settle(fake, device(port=0)) == []


def test_operations_never_show_a_secret() -> None:
    desired = device(Peer(A, networks("10.0.0.2/32"), 25, HOME, 1, PSK))
    for op in diff(None, desired, {}, interface="wg0"):
        for secret in (PRIVATE, PSK):
            assert secret.base64 not in str(op) + repr(op)
            assert secret.raw.hex() not in str(op) + repr(op)


prefixes = st.sampled_from(
    [ip_network(text) for text in ("10.0.0.2/32", "10.0.0.3/32", "10.1.0.0/16", "fd00::/64")]
)
endpoints = st.sampled_from([None, HOME, AWAY])
secrets = st.sampled_from([None, PSK, PRIVATE])


@st.composite
def devices(draw: st.DrawFn) -> Device:
    """A device whose peers share out a few prefixes, so that moves between peers are common."""
    keys = draw(st.lists(st.sampled_from(KEYS), unique=True, max_size=4))
    owners = draw(st.dictionaries(prefixes, st.sampled_from(keys or [A])))
    peers = tuple(
        Peer(
            key,
            frozenset(prefix for prefix, owner in owners.items() if owner == key),
            draw(st.sampled_from([0, 25])),
            draw(endpoints),
            draw(st.integers(0, 3)),
            draw(secrets),
        )
        for key in keys
    )
    private = draw(st.sampled_from([PRIVATE, SecretKey(bytes([6] * 32))]))
    peers = tuple(peer for peer in peers if peer.public_key != private.public_key)
    return Device(
        private, draw(st.sampled_from([0, 51820, 51821])), draw(st.sampled_from([0, 7])), peers
    )


@given(st.lists(devices(), min_size=1, max_size=4))
def test_applying_the_difference_reaches_the_desired_state(history: list[Device]) -> None:
    fake = FakeDevice()
    applied: dict[str, int] = {}
    for desired in history:
        settle(fake, desired, applied)
        applied = applied_generations(desired)
        assert diff(fake.state, desired, applied, interface="wg0") == []
        assert fake.state.public_key == desired.public_key
        found = {peer.public_key: peer for peer in fake.state.peers}
        assert set(found) == {peer.public_key for peer in desired.peers}
        for peer in desired.peers:
            assert found[peer.public_key].allowed_ips == peer.allowed_ips
            assert found[peer.public_key].preshared_key == peer.preshared_key
            assert found[peer.public_key].persistent_keepalive == peer.persistent_keepalive


@given(devices(), devices())
def test_a_peer_in_both_states_is_never_removed(first: Device, second: Device) -> None:
    fake = FakeDevice()
    settle(fake, first)
    ops = diff(fake.state, second, applied_generations(first), interface="wg0")
    wanted = {peer.public_key for peer in second.peers}
    assert not any(isinstance(op, RemovePeer) and op.public_key in wanted for op in ops)


@given(devices())
def test_a_rendered_request_reads_back_as_the_desired_device(desired: Device) -> None:
    ops = diff(None, desired, {}, interface="wg0")
    # A set request and a get response are in the same language but for these instructions.
    lines = render_set(ops, desired).replace("set=1\n", "").splitlines()
    found = parse_get("\n".join(line for line in lines if "replace_" not in line))
    fake = FakeDevice()
    fake.apply(ops, desired)
    assert found.peers == fake.state.peers
    assert found.public_key == fake.state.public_key
    assert found.fwmark == desired.fwmark


def test_an_endpoint_that_is_held_is_put_back_after_roaming() -> None:
    here, there = Endpoint(ip_address("127.78.0.1"), 9), Endpoint(ip_address("192.0.2.1"), 9)
    key = SecretKey(bytes(range(32))).public_key
    for held in (True, False):
        wanted = Peer(key, frozenset(), 0, here, -3, endpoint_held=held)
        device = Device(SecretKey(b"k" * 32), peers=(wanted,))
        found = ObservedDevice(device.public_key, peers=(ObservedPeer(key, endpoint=there),))
        operations = diff(found, device, {key: -3}, interface="wg")
        written = [op.endpoint for op in operations if isinstance(op, SetPeer)]
        assert len(written) == len(operations)
        assert written == ([here] if held else [])
