"""What a node's knowledge of its peers' paths becomes on the host: limits, guards, pins."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

from nostrvpn.endpoint import Endpoint
from nostrvpn.host.diff import diff
from nostrvpn.host.firewall import Firewall, Guard, Pin
from nostrvpn.host.state import HostState, OuterLimit, RouteLimit
from nostrvpn.identity.keys import RootSecret
from nostrvpn.node.desired import Desired, TunnelSettings, desired_state
from nostrvpn.node.peers import Peer
from nostrvpn.wireguard.device import SecretKey
from tests.networks import admit, network_of

ME, BOB, CAROL = (RootSecret(bytes([n]) * 32) for n in (1, 2, 3))
ROSTER = network_of(ME)
for _person in (BOB, CAROL):
    ROSTER = admit(ROSTER, ME, _person.public_key, "p")
KEY = SecretKey(b"k" * 32)
V4 = Endpoint(ip_address("192.0.2.1"), 5000)
V6 = Endpoint(ip_address("2001:db8::1"), 5000)
CHANNEL = Endpoint(ip_address("127.0.0.9"), 5000)


def peer(person: RootSecret = BOB, endpoint: Endpoint | None = V4, **fields: Any) -> Peer:
    key = SecretKey(person.public_key.encode()[:32]).public_key
    return Peer(person.public_key, key, endpoint=endpoint, endpoint_generation=1, **fields)


def desired(*peers: Peer, mtu: int = 1280, ipv4: bool = True) -> Desired:
    settings = TunnelSettings("nvpn0", "nostrvpn x", mtu, KEY, KEY.public_key, 51820, 25)
    return desired_state(settings, ME.public_key, ROSTER, peers, ipv4=ipv4, now=0.0)


def limits(state: HostState, person: RootSecret = BOB) -> tuple[RouteLimit | None, ...]:
    """The limits of one peer's routes, IPv4 and IPv6."""
    inside = ROSTER.address(person.public_key)
    found = {limit.network: limit for limit in state.route_limits}
    return tuple(found.get(ip_network(ip)) for ip in (inside.ipv4, inside.ipv6))


def test_without_knowledge_nothing_is_limited() -> None:
    state = desired(peer(), peer(CAROL, None, mtu=1500))
    assert state.host.mtu == 1280
    assert not state.host.route_limits
    assert not state.host.outer_limits
    assert state.firewall == Firewall()
    assert desired(peer(mtu=1340)).host == state.host
    assert desired(peer(endpoint=V6, mtu=1360)).host == state.host


def test_a_narrow_path_is_fragmented_outside_and_avoided_inside() -> None:
    state = desired(peer(mtu=1116)).host
    four, six = limits(state)
    assert four is not None
    assert six is not None
    assert (four.mtu, four.mss) == (1056, None)
    assert (six.mtu, six.mss) == (1280, 996)
    assert state.outer_limits == {OuterLimit(V4.ip, 1116)}
    assert state.mtu == 1280
    assert diff(None, state)


def test_the_least_path_of_ipv4_still_gives_a_link_that_can_be() -> None:
    state = desired(peer(mtu=588)).host
    four, six = limits(state)
    assert four is not None
    assert six is not None
    assert (four.mtu, six.mtu, six.mss) == (576, 1280, 468)
    assert diff(None, state)


def test_a_wide_path_widens_the_link_for_this_peer_only() -> None:
    state = desired(peer(mtu=1500), peer(CAROL, V6)).host
    assert state.mtu == 1440
    assert [limit and limit.mtu for limit in limits(state)] == [1440, 1440]
    assert limits(state, CAROL) == (None, None)
    others = {limit.mtu for limit in state.route_limits if limit.network.prefixlen in (16, 48)}
    assert others == {1280}
    assert not state.outer_limits
    assert diff(None, state)


def test_a_link_configured_larger_than_what_is_probed_is_left_alone() -> None:
    assert not desired(peer(mtu=1500), mtu=8920).host.route_limits
    assert not desired(peer(endpoint=V6, mtu=1488), mtu=1420).host.route_limits
    four, _ = limits(desired(peer(mtu=1404), mtu=1420).host)
    assert four is not None
    assert four.mtu == 1344


def test_where_ipv4_is_left_out_so_are_its_limits() -> None:
    four, six = limits(desired(peer(mtu=1116), ipv4=False).host)
    assert four is None
    assert six is not None


def test_two_peers_behind_one_address_share_the_smaller_limit() -> None:
    other = Endpoint(V4.ip, 6000)
    state = desired(peer(mtu=1116), peer(CAROL, other, mtu=700)).host
    assert state.outer_limits == {OuterLimit(V4.ip, 700)}


def test_a_channel_has_no_outer_limit() -> None:
    assert not desired(peer(endpoint=CHANNEL, mtu=1116)).host.outer_limits


def test_what_is_left_of_another_path_is_no_state_that_cannot_be() -> None:
    for mtu in (0, 588, 1279):
        for endpoint in (V4, V6, CHANNEL):
            assert diff(None, desired(peer(endpoint=endpoint, mtu=mtu)).host)


def test_a_removed_node_limits_nothing() -> None:
    roster = ROSTER.sign(
        ME.reveal(), "remove", {"who": CAROL.public_key, "key": None}, wall=1002, aux=b"\1" * 32
    )
    settings = TunnelSettings("nvpn0", "nostrvpn x", 1280, KEY, KEY.public_key, 51820, 25)
    known = [peer(mtu=700, guard=(V4, V6))]
    state = desired_state(settings, CAROL.public_key, roster, known, ipv4=True, now=0.0)
    assert not state.host.routes
    assert not state.host.outer_limits
    assert state.firewall == Firewall()
    assert not state.device.peers


def test_strangers_change_nothing() -> None:
    stranger = peer(RootSecret(b"\x66" * 32), mtu=700, guard=(V4, V6), pin=(1, V4))
    assert desired(stranger) == desired()


def test_guards_and_pins_are_collected() -> None:
    state = desired(peer(guard=(V4, V6)), peer(CAROL, pin=(40000, V4)))
    assert state.firewall == Firewall(
        51820, frozenset({Guard(V4, V6)}), frozenset({Pin(40000, V4)})
    )


def test_contradicting_peers_do_not_raise() -> None:
    both = desired(peer(guard=(V4, V6), pin=(1, V4)), peer(CAROL, guard=(V4, CHANNEL), pin=(2, V4)))
    assert len(both.firewall.guards) == len(both.firewall.pins) == 1


def test_a_sleeping_peer_rings_and_stays_there_until_it_is_awake() -> None:
    bell = Endpoint(ip_address("127.78.0.1"), 7)
    asleep = desired(peer(endpoint=None, doorbell=bell))
    [found] = asleep.device.peers
    assert (found.endpoint, found.persistent_keepalive, found.endpoint_held) == (bell, 0, True)
    assert asleep.awake == {}
    # A path was found, but the other side is to start the handshake.
    [held] = desired(peer(doorbell=bell, held_until=1.0)).device.peers
    assert (held.endpoint, held.persistent_keepalive, held.endpoint_held) == (bell, 0, False)
    awake = desired(peer())
    [now] = awake.device.peers
    assert (now.endpoint, now.persistent_keepalive) == (V4, 25)
    assert len({found.endpoint_generation, now.endpoint_generation}) == 2
    assert held.endpoint_generation != now.endpoint_generation
    assert awake.awake == {BOB.public_key: V4}


def test_a_sleeping_peer_of_unknown_key_rings_under_a_key_of_nobody() -> None:
    bell = Endpoint(ip_address("127.78.0.1"), 7)
    unknown = [Peer(person.public_key, doorbell=bell) for person in (BOB, CAROL)]
    found = desired(*unknown).device.peers
    assert len({item.public_key for item in found}) == 2
    assert {item.endpoint for item in found} == {bell}
    assert desired(Peer(BOB.public_key)).device.peers == ()
