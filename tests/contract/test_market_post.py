"""Lease messages by a real relay: sealed, heard once, and said to be undelivered where they are."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable

import pytest

from nostrvpn.daemon.market_post import Correspondent, MarketPost
from nostrvpn.io.embedded_relay import EmbeddedRelay
from nostrvpn.io.market_relays import MarketRelays
from nostrvpn.machine import Entropy, Moment
from nostrvpn.market.effects import Heard, Tell
from nostrvpn.market.sealing import seal_message, wrap_message
from nostrvpn.nostr.event import public_key

BUYER, SELLER, OTHER = (bytes([n]) * 32 for n in (3, 5, 7))
DEAD = "ws://127.0.0.1:9"


def moment(wall: float | None = None) -> Moment:
    return Moment(time.monotonic(), wall or time.time(), Entropy(os.urandom(32)))


class Side:
    """One key, its post and what came of it."""

    def __init__(self, secret: bytes, relay: str) -> None:
        self.relays = MarketRelays(moment, mark=0)
        self.post = MarketPost(self.relays, moment)
        self.heard: list[Heard] = []
        self.lost: list[Tell] = []
        self.who = Correspondent(secret, "lane", self.heard.append, self.lost.append)
        self.post.add(self.who)
        self.post.listen(self.who, [relay])

    async def connected(self) -> None:
        await until(lambda: any(link["open"] for link in self.relays.status()))

    async def close(self) -> None:
        await self.post.stop()
        await self.relays.stop()


async def until(condition: Callable[[], object]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come about")


@pytest.fixture
async def relay() -> AsyncIterator[str]:
    made = EmbeddedRelay()
    await made.start()
    yield made.url
    await made.stop()


@pytest.fixture
async def sides(relay: str) -> AsyncIterator[tuple[Side, Side]]:
    made = Side(BUYER, relay), Side(SELLER, relay)
    for side in made:
        await side.connected()
    yield made
    for side in made:
        await side.close()


def tell(text: str, to: bytes, relays: tuple[str, ...], *, stored: bool = False) -> Tell:
    return Tell(public_key(to), text, "lease", None, stored, relays)


@pytest.mark.parametrize("stored", [True, False])
async def test_a_message_arrives_and_its_sender_is_proven(
    sides: tuple[Side, Side], relay: str, stored: bool
) -> None:
    buyer, seller = sides
    buyer.post.tell(buyer.who, tell("hello", SELLER, (relay,), stored=stored))
    await until(lambda: seller.heard)
    assert seller.heard == [Heard(public_key(BUYER), "hello", None)]
    assert not buyer.heard
    seller.post.tell(seller.who, tell("welcome", BUYER, ()))  # by its own relays
    await until(lambda: buyer.heard)
    assert buyer.heard == [Heard(public_key(SELLER), "welcome", None)]


async def test_what_was_stored_is_heard_by_who_comes_later(relay: str) -> None:
    buyer = Side(BUYER, relay)
    await buyer.connected()
    buyer.post.tell(buyer.who, tell("money", SELLER, (relay,), stored=True))
    buyer.post.tell(buyer.who, tell("gone", SELLER, (relay,)))
    await until(lambda: not buyer.post._tasks)
    seller = Side(SELLER, relay)
    await until(lambda: seller.heard)
    assert [one.text for one in seller.heard] == ["money"]
    await buyer.close()
    await seller.close()


async def test_nobody_is_heard_twice_nor_from_another_day(
    sides: tuple[Side, Side], relay: str
) -> None:
    buyer, seller = sides
    to = public_key(SELLER)
    seal = seal_message("once", BUYER, to, moment())
    old = seal_message("old", BUYER, to, moment(time.time() - 7200))
    early = seal_message("early", BUYER, to, moment(time.time() + 7200))
    for sealed in (old, early, seal, seal, seal):  # each in a wrap of its own: another event
        wrap = wrap_message(sealed, to, moment(), stored=False)
        assert await buyer.relays.publish(wrap, [relay], lane="x") == 1
    await until(lambda: seller.post.counters["replayed"] == 2)
    assert [one.text for one in seller.heard] == ["once"]
    assert seller.post.counters["stale"] == 2


async def test_what_no_relay_takes_is_said(sides: tuple[Side, Side]) -> None:
    buyer, _ = sides
    lost = tell("hello", SELLER, (DEAD,))
    buyer.post.tell(buyer.who, lost)
    async with asyncio.timeout(30):
        await until(lambda: buyer.lost)
    assert buyer.lost == [lost]


async def test_who_was_removed_hears_nothing_more(sides: tuple[Side, Side], relay: str) -> None:
    buyer, seller = sides
    await seller.post.remove(seller.who)
    other = Side(OTHER, relay)
    await other.connected()
    for to in (SELLER, OTHER):
        buyer.post.tell(buyer.who, tell("hello", to, (relay,), stored=True))
    await until(lambda: other.heard)
    assert not seller.heard
    await other.close()
