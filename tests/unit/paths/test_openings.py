"""WebSockets that members make us open: the honest ones at once, the others ever more seldom."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from nostrvpn.endpoint import Endpoint
from nostrvpn.machine import Entropy, Moment
from nostrvpn.paths.budgets import Budget
from nostrvpn.paths.events import OpenChannel, WebSocketTarget
from nostrvpn.paths.openings import FORGIVEN, FREE, MAX_NAMERS, PAUSES, Openings
from nostrvpn.paths.relay_book import RelayBook
from nostrvpn.paths.relay_offers import RelayOffer, RelayTicket
from nostrvpn.paths.relays import LinkRelays
from nostrvpn.stun.binding import parse_stun
from nostrvpn.stun.relaying import RelayUser, Side, render_allocated

USER = RelayUser("0" * 16, "1" * 32)
RELAY = Endpoint(IPv4Address("11.0.9.1"), 24001)
HOUR = 3600.0


class Blocked:
    """A node to which nothing answers by UDP, and its links."""

    def __init__(self, links: int = 1, *offers: RelayOffer) -> None:
        self.now = 1000.0
        self.book = RelayBook(Budget(1.0, 60))
        self.book.use_offers(offers)
        self.book.asked(self.now - 60)
        self.links = [LinkRelays(f"{n:064x}", self.book, controlling=True) for n in range(links)]
        for link in self.links:
            link.demand.want(self.now, wanted=True)

    @property
    def moment(self) -> Moment:
        return Moment(self.now, 0.0, Entropy(str(self.now).encode()))

    def step(self) -> list[tuple[LinkRelays, OpenChannel]]:
        """Let half a second go by; return what is opened."""
        self.now += 0.5
        opened = []
        for link in self.links:
            link.fill(self.moment, live=False, direct=False)
            effects = link.tick(frozenset({4}), self.moment)
            opened += [(link, e) for e in effects if isinstance(e, OpenChannel)]
        return opened


@pytest.mark.parametrize("urls", ["one", "always another"])
@pytest.mark.parametrize("answer", ["refused", "silent"])
def test_a_liars_tickets_open_three_websockets_and_then_one_an_hour(urls, answer):
    node = Blocked()
    [link] = node.links
    times = []
    for number in range(12 * 360):
        url = "wss://victim.example/" + (str(number) if urls != "one" else "")
        ticket = RelayTicket(f"{number:016x}", (RELAY,), Side.OTHER, "2" * 32, url)
        link.take_tickets((ticket,), node.now)
        for _ in range(20):
            for _, opened in node.step():
                times.append(node.now - 1000.0)
                if answer == "refused":
                    link.channel_closed(opened.channel, "no WebSocket there", node.now)
    assert len([t for t in times if t <= 60]) == FREE
    assert 6 <= len([t for t in times if t <= HOUR]) <= FREE + len(PAUSES)
    assert 8 <= len([t for t in times if t > 4 * HOUR]) <= 8


def test_an_offer_that_lies_costs_three_for_all_links_together():
    node = Blocked(20, RelayOffer("f" * 64, (RELAY,), USER, "wss://victim.example/"))
    opened = [one for _ in range(120) for one in node.step()]
    assert len(opened) == FREE


def test_all_links_reach_an_honest_relay_though_it_is_slow_to_answer_the_first():
    node = Blocked(20, RelayOffer("f" * 64, (RELAY,), USER, "wss://relay.example/"))
    pending: list[tuple[float, LinkRelays, OpenChannel]] = []
    reached = set()
    for _ in range(2 * 20):
        pending += [(node.now + 4.0, *one) for one in node.step()]
        for due, link, opened in [one for one in pending if one[0] <= node.now]:
            pending.remove((due, link, opened))
            assert isinstance(opened.target, WebSocketTarget)
            hello = parse_stun(opened.target.hello)
            if link in reached:
                continue  # the bind that follows
            answer = render_allocated(hello.transaction, RELAY, 300, USER.key)
            link.channel_answered(opened.channel, answer, node.now)
            reached.add(link)
    assert len(reached) == 20


def test_a_relay_that_stops_answering_is_no_longer_free():
    openings = Openings()
    for _ in range(100):
        assert openings.may_open("a", "wss://a", 0.0)
        openings.answered("a", "wss://a")
    openings.failed("wss://a")
    assert [openings.may_open("a", "wss://a", 1.0) for _ in range(5)] == [True] * 3 + [False] * 2
    assert openings.may_open("b", "wss://b", 1.0)
    openings.answered("a", "wss://a")
    assert openings.may_open("a", "wss://other", 1.0)


def test_what_failed_is_forgiven_after_hours_or_in_another_network():
    openings = Openings()
    for _ in range(2):
        assert [openings.may_open("a", "x", 0.0) for _ in range(4)] == [True] * 3 + [False]
        openings.clear()
    assert [openings.may_open("a", "x", 0.0) for _ in range(4)] == [True] * 3 + [False]
    assert [openings.may_open("a", "x", FORGIVEN) for _ in range(4)] == [True] * 3 + [False]


def test_what_is_remembered_of_liars_is_bounded():
    openings = Openings()
    for number in range(1000):
        openings.may_open(f"liar {number}", "x", 0.0)
        openings.may_open("liar", f"x{number}", number * HOUR)
        openings.answered("liar", f"answers {number}")
    assert len(openings._vain) <= MAX_NAMERS
    assert len(openings._vain["liar"].tries) <= 9
    assert len(openings._proven) <= 64
