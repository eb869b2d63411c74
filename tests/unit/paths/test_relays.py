# mypy: allow-untyped-calls
"""One link's relays against hostile and dying ones. That paths come about is tests/sim's matter."""

from ipaddress import IPv4Address, IPv6Address

import pytest

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.machine import Entropy, Moment
from nostrvpn.paths.budgets import Budget
from nostrvpn.paths.events import CloseChannel, OpenChannel, SendDatagram, WebSocketTarget
from nostrvpn.paths.relay_book import RelayBook
from nostrvpn.paths.relay_offers import RelayOffer, RelayTicket
from nostrvpn.paths.relays import LinkRelays
from nostrvpn.stun.binding import StunMethod, parse_stun, render_response
from nostrvpn.stun.relaying import (
    RelayUser,
    Side,
    render_allocated,
    render_relay_error,
)

PEER = "ab" * 32
USER = RelayUser("0" * 16, "1" * 32)
V4, V6 = frozenset({4}), frozenset({4, 6})


def at(number, port=24001):
    return Endpoint(IPv4Address(f"11.0.9.{number}"), port)


def offer(number, websocket=None, relay=None):
    return RelayOffer(relay or f"relay{number}", (at(number),), USER, websocket)


class Driver:
    def __init__(self, *offers, controlling=True):
        self.now = 1000.0
        self.book = RelayBook(Budget(1.0, 60))
        self.book.use_offers(offers)
        self.relays = LinkRelays(PEER, self.book, controlling=controlling)
        self.relays.demand.want(self.now, wanted=True)
        self.now += 0.5  # so that both relays are asked at once
        self.versions = V4

    @property
    def moment(self):
        return Moment(self.now, 0.0, Entropy(str(self.now).encode()))

    def tick(self):
        self.relays.fill(self.moment, live=False, direct=False)
        return self.relays.tick(self.versions, self.moment)

    def wait(self, duration):
        end, effects = self.now + duration, self.tick()
        while self.relays.deadline is not None and self.relays.deadline <= end:
            self.now = max(self.now, self.relays.deadline)
            effects += self.tick()
        self.now = end
        return effects

    def answer(self, data, source):
        message = parse_stun(data)
        return self.relays.answered(message, source, self.versions, self.moment)

    def allocate(self, number=1, port=33000):
        [sent] = self.tick()
        self.now += 0.04
        relayed = Endpoint(IPv4Address(0), port)
        return self.answer(
            render_allocated(sent.data[8:20], relayed, 300, USER.key), sent.destination
        )

    def states(self):
        return {result.relay: result.state for result in self.relays.results()}


def test_a_port_is_allocated_bound_after_the_challenge_and_offered_to_the_peer():
    driver = Driver(offer(1))
    [bind] = driver.allocate()
    assert bind.destination == at(1, 33000)
    [ticket] = driver.relays.tickets
    assert (ticket.endpoints, ticket.side) == ((at(1, 33000),), Side.OTHER)
    assert driver.relays.routes == {}
    end = driver.relays._ends[0]
    challenge = render_relay_error(StunMethod.BINDING, bind.data[8:20], 401, end.key, b"n" * 8)
    [again] = driver.answer(challenge, bind.destination)
    assert parse_stun(again.data).nonce == b"n" * 8
    assert list(driver.relays.routes) == [at(1, 33000)]
    driver.answer(render_response(again.data[8:20], at(77), end.key), again.destination)
    assert driver.states() == {"relay1": "bound"}
    assert driver.relays.deadline is None


@pytest.mark.parametrize("code", [401, 486, 508])
def test_a_relay_that_refuses_is_replaced_by_the_next(code):
    driver = Driver(offer(1), offer(2), offer(3))
    sent = driver.tick()
    assert [effect.destination for effect in sent] == [at(1), at(2)]
    refusal = render_relay_error(StunMethod.ALLOCATE, sent[0].data[8:20], code, USER.key)
    driver.answer(refusal, at(1))
    assert [effect.destination for effect in driver.tick()] == [at(3)]
    assert driver.states()["relay1"] == "refused"
    assert driver.relays.results()[0].reason


def test_a_silent_relay_is_given_up_and_asked_again_later():
    driver = Driver(offer(1))
    assert len(driver.wait(4)) == 5
    assert driver.states() == {"relay1": "silent"}
    assert driver.wait(25) == []
    assert len(driver.wait(10)) == 5


def test_the_peer_itself_and_relays_of_its_tickets_are_not_asked():
    driver = Driver(offer(1, relay=PEER), offer(2), offer(3), offer(4))
    tickets = tuple(RelayTicket(f"{n:016x}", (at(n, 33001),), Side.OTHER, "2" * 32) for n in (2, 3))
    driver.relays.take_tickets(tickets, driver.now)
    assert {effect.destination for effect in driver.tick()} == {at(2, 33001), at(3, 33001)}


def test_two_tickets_end_what_we_still_ask_for():
    driver = Driver(offer(1), offer(2))
    driver.tick()
    tickets = tuple(RelayTicket(f"{n:016x}", (at(n, 33001),), Side.OTHER, "2" * 32) for n in (7, 8))
    driver.relays.take_tickets(tickets, driver.now)
    assert {result.relay for result in driver.relays.results()} == {"11.0.9.7", "11.0.9.8"}


def test_of_two_pairs_on_one_relay_the_controlling_sides_stays():
    for controlling in (True, False):
        driver = Driver(offer(1), controlling=controlling)
        driver.allocate()
        ticket = RelayTicket("f" * 16, (at(1, 44000),), Side.OTHER, "2" * 32)
        driver.relays.take_tickets((ticket,), driver.now)
        [end] = driver.relays._ends
        assert end.is_ours is controlling


@pytest.mark.parametrize(
    ("key", "source", "code"),
    [("9" * 32, at(1), "forged_answer"), (USER.key, at(2), "wrong_source")],
)
def test_answers_that_are_not_the_relays_change_nothing(key, source, code):
    driver = Driver(offer(1))
    [sent] = driver.tick()
    forged = render_allocated(sent.data[8:20], at(1, 666), 300, key)
    with pytest.raises(PeerMisbehaved) as caught:
        driver.answer(forged, source)
    assert caught.value.code == code
    assert driver.relays.tickets == ()
    assert driver.relays.knows(sent.data[8:20])


def test_a_pair_that_the_relay_forgot_is_allocated_anew_once():
    driver = Driver(offer(1))
    [bind] = driver.allocate()
    for expected in ("allocating", "refused"):
        gone = render_relay_error(StunMethod.BINDING, bind.data[8:20], 437, None)
        effects = driver.answer(gone, bind.destination)
        assert driver.states() == {"relay1": expected}
        if effects:
            [again] = effects
            granted = render_allocated(again.data[8:20], at(1, 33005), 300, USER.key)
            [bind] = driver.answer(granted, again.destination)
            assert bind.destination == at(1, 33005)


def test_where_udp_is_silent_the_websocket_is_opened_and_a_late_frame_is_harmless():
    driver = Driver(offer(1, websocket="wss://relay.example/x"))
    effects = driver.wait(1.2)
    [opened] = [e for e in effects if isinstance(e, OpenChannel)]
    assert isinstance(opened.target, WebSocketTarget)
    hello = parse_stun(opened.target.hello)
    answer = render_allocated(hello.transaction, at(1, 33000), 300, USER.key)
    done = driver.relays.channel_answered(opened.channel, answer, driver.now)
    assert done == [CloseChannel(opened.channel)]
    [again] = [e for e in driver.tick() if isinstance(e, OpenChannel)]
    assert isinstance(again.target, WebSocketTarget)
    bind = parse_stun(again.target.hello)
    assert (bind.method, bind.nonce) == (StunMethod.BINDING, None)
    loopback = Endpoint(IPv4Address("127.9.9.9"), 5)
    driver.relays.channel_opened(again.channel, loopback)
    assert driver.relays.routes[loopback].carrier == "websocket"
    driver.relays.channel_closed(again.channel, "reset", driver.now)
    assert driver.relays.routes == {}
    assert driver.relays.channel_answered(again.channel, answer, driver.now) == []


def test_ipv6_is_used_where_there_is_no_ipv4():
    six = Endpoint(IPv6Address("2d00::5"), 24001)
    driver = Driver(RelayOffer("relay", (at(1), six), USER))
    driver.versions = frozenset({6})
    assert [e.destination for e in driver.tick() if isinstance(e, SendDatagram)] == [six]


def test_nothing_is_asked_for_a_link_that_needs_no_relay():
    driver = Driver(offer(1))
    driver.relays.demand.want(driver.now, wanted=False)
    assert driver.wait(100) == []
    assert driver.relays.deadline is None
