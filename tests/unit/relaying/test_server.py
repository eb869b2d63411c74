"""The relay's machine in virtual time: who gets a port, who is bound to it, when it is taken back."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from nostrvpn.endpoint import Endpoint, parse_endpoint
from nostrvpn.machine import Entropy, Moment, Tick
from nostrvpn.node.relaying import RelayRole
from nostrvpn.relaying.events import (
    AllocateReceived,
    Channel,
    ChannelClosed,
    ChannelOpened,
    ChannelReceived,
    CloseChannel,
    ClosePort,
    CountersRead,
    End,
    Forward,
    OpenPort,
    PortOpened,
    PortReceived,
    PortRefused,
    SendControl,
    SendFrom,
    Unforward,
    Users,
)
from nostrvpn.relaying.server import RelayServer
from nostrvpn.relaying.settings import RelaySettings
from nostrvpn.stun.binding import StunKind, StunMethod, parse_stun
from nostrvpn.stun.relaying import (
    RelayUser,
    Side,
    relay_user,
    render_allocate,
    render_bind,
    side_key,
    user_key,
)

SECRET = bytes(range(32))
ALICE = relay_user(SECRET, "alice")
BOB = relay_user(SECRET, "bob")
STRANGER = relay_user(bytes(32), "alice")
RELAY_IP = IPv4Address("203.0.113.5")
A = parse_endpoint("192.0.2.1:1001")
A2 = parse_endpoint("192.0.2.1:1002")
B = parse_endpoint("198.51.100.1:2001")
PAIR = "00112233aabbccdd"
# 2026-11-21; ten days before the month ends.
WALL = 1795262400.0


class Relay:
    """A server, a clock, and the ports it has open."""

    def __init__(self, *, seed: int = 0, users=(ALICE, BOB), month_bytes=0, **settings) -> None:
        self.settings = RelaySettings(**settings)
        self.server = RelayServer(SECRET, self.settings, "2026-11", month_bytes)
        self.entropy = Entropy(seed.to_bytes(4, "big"))
        self.now = 100.0
        self.open: set[int] = set()
        self.foreign: set[int] = set()
        self.closed: set[int] = set()
        self.forwards: dict[int, Forward] = {}
        self.transactions = 0
        self.step(Users(frozenset(user.name for user in users)))

    @property
    def moment(self) -> Moment:
        return Moment(self.now, WALL + self.now, self.entropy)

    def step(self, event):
        """Step, keep the ports as a host would, and return all effects."""
        effects = self.server.step(event, self.moment)
        for effect in tuple(effects):
            match effect:
                case OpenPort(port):
                    assert port not in self.open
                    assert port in self.settings.ports
                    if port in self.foreign:
                        effects += self.step(PortRefused(port))
                    else:
                        self.open.add(port)
                        effects += self.step(PortOpened(port))
                case ClosePort(port):
                    assert port not in self.forwards
                    self.open.remove(port)
                case Forward(port):
                    assert port in self.open
                    self.forwards[port] = effect
                case Unforward(port):
                    del self.forwards[port]
                case CloseChannel(number):
                    self.closed.add(number)
                case SendControl(_, Channel(number)):
                    assert number not in self.closed
        return effects

    def transaction(self) -> bytes:
        self.transactions += 1
        return self.transactions.to_bytes(12, "big")

    def allocate(self, user: RelayUser = ALICE, pair: str = PAIR, source: Endpoint = A):
        """Ask for a port; return the answer, or None."""
        data = render_allocate(self.transaction(), user, pair)
        return only_answer(self.step(AllocateReceived(data, source)), data, source)

    def bind_once(self, port, side, source, *, nonce=None, key=None, pair=PAIR, ip=RELAY_IP):
        key = key or side_key(ALICE.key, pair, side)
        data = render_bind(self.transaction(), pair, side, key, nonce)
        return only_answer(self.step(PortReceived(port, data, source, ip)), data, source)

    def bind(self, port, side, source, **keywords):
        """Ask, take the challenge, ask again; return the last answer."""
        answer = self.bind_once(port, side, source, **keywords)
        assert answer.error_code == 401
        return self.bind_once(port, side, source, nonce=answer.nonce, **keywords)

    def pair(self) -> int:
        """Allocate and bind both sides; return the port."""
        port: int = self.allocate().relayed.port
        self.bind(port, Side.ALLOCATOR, A)
        self.bind(port, Side.OTHER, B)
        return port


def only_answer(effects, data, source):
    answers = [effect for effect in effects if isinstance(effect, SendFrom | SendControl)]
    assert all(effect.destination == source for effect in answers)
    assert all(len(effect.data) <= len(data) for effect in answers)
    assert len(answers) <= 1
    if not answers:
        return None
    answer = parse_stun(answers[0].data)
    assert answer.transaction == parse_stun(data).transaction
    return answer


def test_two_peers_are_bound_and_forwarded():
    relay = Relay()
    answer = relay.allocate()
    assert answer.kind is StunKind.RESPONSE
    assert answer.method is StunMethod.ALLOCATE
    assert answer.lifetime == 300
    assert answer.is_authentic(ALICE.key)
    port = answer.relayed.port
    first = relay.bind(port, Side.ALLOCATOR, A)
    assert first.mapped == A
    assert first.is_authentic(side_key(ALICE.key, PAIR, Side.ALLOCATOR))
    assert relay.forwards == {}
    assert relay.bind(port, Side.OTHER, B).mapped == B
    assert relay.forwards == {port: Forward(port, End(A, RELAY_IP), End(B, RELAY_IP))}
    [shown] = relay.server.snapshot(relay.moment).pairs
    assert (shown.a, shown.b, shown.port, shown.user) == ("udp4", "udp4", port, ALICE.name)


def test_asking_again_for_a_pair_gives_the_same_port():
    relay = Relay()
    port = relay.allocate().relayed.port
    assert relay.allocate(source=A2).relayed.port == port
    assert relay.open == {port}
    assert relay.allocate(pair="ff" * 8).relayed.port != port


def test_only_users_we_were_told_of_get_a_port():
    relay = Relay(users=[ALICE])
    for user in (BOB, STRANGER, RelayUser(ALICE.name, BOB.key)):
        answer = relay.allocate(user)
        assert answer.error_code == 401
        assert answer.kind is StunKind.ERROR
    assert relay.open == set()


def test_a_pair_of_somebody_else_cannot_be_taken_or_learned():
    relay = Relay()
    port = relay.allocate(ALICE).relayed.port
    answer = relay.allocate(BOB, source=B)
    assert answer.error_code == 437
    assert answer.is_authentic(BOB.key)
    for key in (side_key(BOB.key, PAIR, Side.ALLOCATOR), side_key(ALICE.key, PAIR, Side.OTHER)):
        assert relay.bind_once(port, Side.ALLOCATOR, B, key=key) is None
    assert relay.server.counters["bad_integrity"] == 2


def test_users_that_are_gone_lose_their_pairs_at_once():
    relay = Relay()
    port = relay.pair()
    assert relay.step(Users(frozenset([ALICE.name]))) == []
    effects = relay.step(Users(frozenset([BOB.name])))
    assert effects == [Unforward(port), ClosePort(port)]
    assert relay.bind_once(port, Side.ALLOCATOR, A).error_code == 437


def test_with_for_anyone_a_stranger_to_us_gets_few_ports_per_address():
    relay = Relay(users=[], for_anyone=True)
    answers = [relay.allocate(BOB, f"{n:016x}", source=A) for n in range(6)]
    assert [answer.error_code for answer in answers] == [None] * 4 + [486] * 2
    six = [Endpoint(IPv6Address(f"2001:db8::{n}"), 9) for n in range(1, 7)]
    answers = [relay.allocate(BOB, f"{n + 16:016x}", source=s) for n, s in enumerate(six)]
    assert [answer.error_code for answer in answers] == [None] * 4 + [486] * 2
    assert relay.allocate(STRANGER, "ff" * 8, source=B).error_code == 401


def test_caps_on_pairs():
    relay = Relay(pairs_per_user=3, max_pairs=5)
    codes = [relay.allocate(ALICE, f"{n:016x}").error_code for n in range(4)]
    codes += [relay.allocate(BOB, f"{n + 16:016x}").error_code for n in range(3)]
    assert codes == [None] * 3 + [486] + [None] * 2 + [508]
    relay = Relay(ports=range(40000, 40002))
    assert [relay.allocate(pair=f"{n:016x}").error_code for n in range(3)] == [None, None, 508]


def test_a_port_that_somebody_else_has_is_replaced_before_the_answer():
    relay = Relay(ports=range(40000, 40003))
    relay.foreign = {40000, 40002}
    assert relay.allocate().relayed.port == 40001
    assert relay.open == {40001}
    # Nothing is left: an honest refusal, and no pair that stays behind.
    assert relay.allocate(pair="ff" * 8).error_code == 508
    relay.foreign.clear()
    assert relay.allocate(pair="ff" * 8).relayed.port in (40000, 40002)


def test_a_new_address_replaces_the_old_one():
    relay = Relay()
    port = relay.pair()
    assert relay.bind(port, Side.ALLOCATOR, A2).mapped == A2
    assert relay.forwards[port] == Forward(port, End(A2, RELAY_IP), End(B, RELAY_IP))


def test_a_recorded_bind_is_worthless_elsewhere_and_after_the_side_moved_on():
    relay = Relay()
    port = relay.allocate().relayed.port
    challenge = relay.bind_once(port, Side.ALLOCATOR, A)
    recorded = challenge.nonce
    # From another address: a challenge of its own, nothing bound.
    answer = relay.bind_once(port, Side.ALLOCATOR, B, nonce=recorded)
    assert answer.error_code == 438
    assert relay.server.snapshot(relay.moment).pairs[0].a is None
    # From its own address: bound, and again if our answer was lost.
    for _ in range(2):
        assert relay.bind_once(port, Side.ALLOCATOR, A, nonce=recorded).mapped == A
    # With a forged source, after the side has moved.
    relay.bind(port, Side.ALLOCATOR, A2)
    assert relay.bind_once(port, Side.ALLOCATOR, A, nonce=recorded).error_code == 438
    relay.bind(port, Side.OTHER, B)
    assert relay.forwards[port].a.source == A2


@pytest.mark.parametrize(("age", "code"), [(119, None), (239, None), (241, 438), (100000, 438)])
def test_a_challenge_ages(age, code):
    relay = Relay(unbound_s=1e6, idle_s=1e6)
    port = relay.allocate().relayed.port
    nonce = relay.bind_once(port, Side.ALLOCATOR, A).nonce
    assert len(nonce) <= 12
    relay.now += age
    assert relay.bind_once(port, Side.ALLOCATOR, A, nonce=nonce).error_code == code


def test_both_sides_cannot_be_at_one_address():
    relay = Relay()
    port = relay.allocate().relayed.port
    relay.bind(port, Side.ALLOCATOR, A)
    nonce = relay.bind_once(port, Side.OTHER, A).nonce
    assert relay.bind_once(port, Side.OTHER, A, nonce=nonce) is None
    assert relay.server.counters["both_sides_at_one_address"] == 1


def test_a_restarted_relay_says_at_once_that_it_knows_no_such_pair():
    port = Relay().pair()
    fresh = Relay(seed=1)
    answer = fresh.bind_once(port, Side.ALLOCATOR, A)
    assert answer.error_code == 437
    assert fresh.allocate().error_code is None


def test_a_pair_is_not_found_at_another_port():
    relay = Relay()
    port = relay.pair()
    other = relay.allocate(pair="ff" * 8).relayed.port
    assert relay.bind_once(other, Side.ALLOCATOR, A).error_code == 437
    assert relay.bind_once(port, Side.ALLOCATOR, A, pair="ff" * 8).error_code == 437


def test_unbound_pairs_go_after_half_a_minute_and_half_bound_ones_after_five():
    relay = Relay()
    port = relay.allocate().relayed.port
    assert relay.server.deadline == relay.now + 30
    relay.now += 29.9
    assert relay.step(Tick()) == []
    relay.bind(port, Side.ALLOCATOR, A)
    relay.now += 299.9
    assert relay.step(Tick()) == []
    relay.now += 0.2
    assert relay.server.deadline is not None
    assert relay.step(Tick()) == [ClosePort(port)]
    assert not relay.server.snapshot(relay.moment).pairs
    port = relay.allocate(pair="ff" * 8).relayed.port
    relay.now += 30
    assert relay.step(Tick()) == [ClosePort(port)]
    assert relay.server.counters["expired_unbound"] == relay.server.counters["expired"] == 1


def test_traffic_keeps_a_pair():
    relay = Relay()
    port = relay.pair()
    for n in range(1, 5):
        relay.now += 290
        relay.step(CountersRead({port: n * 1000}))
    relay.now += 290
    assert relay.step(CountersRead({port: 4000})) == []
    relay.now += 10
    assert relay.step(CountersRead({port: 4000})) == [Unforward(port), ClosePort(port)]


def test_a_month_has_a_limit_and_ends():
    relay = Relay(monthly_bytes=10_000, month_bytes=6_000, idle_s=1e9)
    port = relay.pair()
    assert relay.step(CountersRead({port: 3_999})) == []
    shown = relay.server.snapshot(relay.moment)
    assert (shown.month, shown.month_bytes, shown.is_exhausted) == ("2026-11", 9_999, False)
    assert relay.step(CountersRead({port: 4_000})) == [Unforward(port), ClosePort(port)]
    assert relay.allocate().error_code == 486
    assert relay.server.snapshot(relay.moment).is_exhausted
    relay.now += 11 * 86400
    assert relay.allocate().relayed is not None
    assert relay.server.snapshot(relay.moment).month_bytes == 0


def channel(relay, number, ip="192.0.2.77"):
    relay.step(ChannelOpened(number, IPv4Address(ip)))


def bind_channel(relay, number, side):
    data = render_bind(relay.transaction(), PAIR, side, side_key(ALICE.key, PAIR, side), None)
    effects = relay.step(ChannelReceived(number, data))
    return effects, only_answer(effects, data, Channel(number))


def test_a_websocket_allocates_and_binds_without_a_challenge():
    relay = Relay()
    for number in (1, 2):
        channel(relay, number)
    data = render_allocate(relay.transaction(), ALICE, PAIR)
    answer = only_answer(relay.step(ChannelReceived(1, data)), data, Channel(1))
    port = answer.relayed.port
    relay.bind(port, Side.OTHER, B)
    effects, answer = bind_channel(relay, 2, Side.ALLOCATOR)
    assert answer.mapped.ip == IPv4Address("192.0.2.77")
    assert effects[-1] == Forward(port, End(Channel(2), None), End(B, RELAY_IP))
    # Another one of the same side replaces it; the old one's end changes nothing then.
    channel(relay, 3)
    effects, _ = bind_channel(relay, 3, Side.ALLOCATOR)
    assert CloseChannel(2) in effects
    assert relay.step(ChannelClosed(2)) == []
    assert relay.forwards[port].a.source == Channel(3)
    assert relay.step(ChannelClosed(3)) == [Unforward(port)]
    assert relay.bind(port, Side.ALLOCATOR, A).mapped == A
    assert relay.forwards[port].a.source == A


def test_a_websocket_ends_with_its_pair():
    relay = Relay()
    relay.pair()
    channel(relay, 1)
    bind_channel(relay, 1, Side.ALLOCATOR)
    relay.now += 301
    assert CloseChannel(1) in relay.step(Tick())


def test_websockets_are_bounded_and_unknown_ones_are_ignored():
    relay = Relay(max_channels=2)
    assert relay.step(ChannelReceived(9, b"")) == []
    for number in (1, 2):
        channel(relay, number)
    assert relay.step(ChannelOpened(3, IPv4Address("192.0.2.9"))) == [CloseChannel(3)]


def test_an_offer_holds_the_credentials_that_the_server_accepts():
    relay = Relay()
    role = RelayRole(SECRET, 51820, addresses=(RELAY_IP,), websocket_url="wss://relay.example/x")
    offer = role.offer_for("alice", ())
    assert offer is not None
    assert offer.user == ALICE
    assert user_key(SECRET, ALICE.name) == ALICE.key
    assert relay.allocate(offer.user).relayed is not None
