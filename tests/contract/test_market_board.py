"""The board on a real relay: an offer from beginning to end, and what is said of its seller."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nostrvpn.control.schema import COMMANDS, parse_arguments
from nostrvpn.daemon import market_board
from nostrvpn.daemon.market_board import MarketBoard
from nostrvpn.daemon.market_commands import BOARD_COMMANDS
from nostrvpn.daemon.market_opinions import BoardSettings
from nostrvpn.daemon.market_wishes import named_offer
from nostrvpn.errors import UserError
from nostrvpn.identity.keys import RootSecret, npub
from nostrvpn.io.embedded_relay import EmbeddedRelay
from nostrvpn.io.market_relays import MarketRelays
from nostrvpn.io.store import Store
from nostrvpn.machine import Entropy, Moment
from nostrvpn.market.ceilings import Ceilings
from nostrvpn.market.foreign import CLASSIFIED_KIND
from nostrvpn.market.offer import Offer
from nostrvpn.market.ratings import Rating, rating_event, report_event
from nostrvpn.market.terms import Price, Terms
from nostrvpn.market.trust import History, Outcome, Probe
from nostrvpn.market.wish import Wish
from nostrvpn.nostr.event import Tags, public_key, sign_event
from nostrvpn.nostr.filters import Filter
from tests.contract.test_market_relays import free_port, moment, until

MINT = "https://mint.example"
MAIN, FRIEND, STRANGER, SERVICE, LISTER = (bytes(31) + bytes([n]) for n in range(40, 45))


class Host:
    """One host: its relays, its memory, its board."""

    def __init__(self, number: int, path: Path, settings: BoardSettings) -> None:
        self.root = RootSecret(bytes([number]) * 32)
        self.relays = MarketRelays(moment)
        self.store = Store.open(str(path / f"{number}.db"))
        self.settings = settings
        self.forget()
        self.key = public_key(self.root.market_key())

    def forget(self) -> None:
        """Begin anew with what is on disk."""
        self.board = MarketBoard(self.relays, self.store, self.root, self.settings, moment)

    async def call(self, name: str, **args: object) -> dict[str, Any]:
        body = json.dumps(args).encode()
        return await BOARD_COMMANDS[name](self.board, parse_arguments(COMMANDS[name], body))

    async def listed(self, **args: object) -> list[dict[str, Any]]:
        offers: list[dict[str, Any]] = (await self.call("market_list", refresh=True, **args))[
            "offers"
        ]
        return offers

    async def stop(self) -> None:
        await self.relays.stop()
        self.store.close()

    def offer(self, price: str = "20sat/GiB", **more: Any) -> Offer:
        terms = Terms(Price.parse(price), (MINT,))
        return Offer(self.key, "exit", terms, "02" + self.key, country="DE", **more)


@pytest.fixture
async def url() -> AsyncIterator[str]:
    relay = EmbeddedRelay()
    await relay.start()
    yield relay.url
    await relay.stop()


@contextlib.asynccontextmanager
async def selling(host: Host) -> AsyncIterator[None]:
    task = asyncio.create_task(host.board.run())
    try:
        yield
    finally:
        task.cancel()
        await host.board.withdraw()
        await host.stop()


async def publish(host: Host, secret: bytes, kind: int, *tags: tuple[str, ...]) -> None:
    made: Tags = tags
    event = sign_event(
        secret, kind=kind, tags=made, content="", created_at=int(time.time()), aux=bytes(32)
    )
    assert await host.relays.publish(event, host.board.opinions._settings.relays, lane="test") == 1


async def test_an_offer_appears_changes_and_goes(url: str, tmp_path: Path) -> None:
    settings = BoardSettings((url,))
    seller, buyer = Host(1, tmp_path, settings), Host(2, tmp_path, settings)
    ads: Filter = {"kinds": [CLASSIFIED_KIND], "authors": [seller.key]}
    async with selling(seller):
        assert await buyer.listed() == []
        seller.board.offer(seller.offer())
        await until(lambda: seller.board.accepted)
        (one,) = await buyer.listed()
        assert one["seller"] == npub(seller.key)
        assert one["usable"]
        assert one["gib_msat"] == Price.parse("20sat/GiB").per_gib_msat
        assert await seller.listed() == []  # nobody buys of himself
        assert [c.offer.address for c in buyer.board.candidates()] == [one["address"]]

        seller.board.accepted = 0
        seller.board.offer(seller.offer("30sat/GiB"), mirror=True)
        await until(lambda: seller.board.accepted)
        (one,) = await buyer.listed()
        assert one["gib_msat"] == Price.parse("30sat/GiB").per_gib_msat
        # A classified listing (NIP-99) that leads to the offer; here it is no second row.
        (listing,) = await buyer.relays.fetch([ads], (url,), 5.0, lane="test")
        for tag in (("t", "vpn-marketplace"), ("status", "active"), ("a", one["address"])):
            assert tag in listing.event.tags
        assert ("price", "30", "sat", "GiB") in listing.event.tags

        seller.board.offer(None)
        await until(lambda: not seller.board.accepted)
        again = seller.offer("40sat/GiB")
        seller.board.offer(again)
        await until(lambda: seller.board.accepted)
        (one,) = await buyer.listed()
        assert one["gib_msat"] == again.terms.price.per_gib_msat
    # Taken back: a host that begins now sees nothing of it.
    late = Host(3, tmp_path, settings)
    assert await late.listed() == []
    assert not await late.relays.fetch([ads], (url,), 5.0, lane="test")
    await late.stop()
    await buyer.stop()


async def test_an_offer_is_bought_by_any_name_of_it_and_one_that_is_none_is_refused(
    url: str, tmp_path: Path
) -> None:
    settings = BoardSettings((url,))
    seller, buyer = Host(1, tmp_path, settings), Host(2, tmp_path, settings)
    assert await buyer.listed() == []
    async with selling(seller):
        seller.board.offer(offer := seller.offer())
        await until(lambda: seller.board.accepted)
        # The list of a moment ago lacks it: it is fetched anew before anything is refused.
        for name in (npub(seller.key), seller.key[:8], offer.address, offer.ref):
            wish = await named_offer(Wish(name), buyer.board, None)
            assert wish == Wish(offer.ref)
            assert wish.refuse(offer) is None
        auto = Wish(country="FR")
        assert await named_offer(auto, buyer.board, None) == auto
        for wish, why in (
            (Wish("nobodys/exit"), "no offer is called"),
            (Wish(offer.ref, country="FR"), "it is in DE"),
            (Wish(offer.ref, Ceilings(gib_msat=10_000)), "20 sat/GiB is above 10 sat/GiB"),
        ):
            with pytest.raises(UserError, match=why):
                await named_offer(wish, buyer.board, None)
        await seller.listed()
        with pytest.raises(UserError, match="this host's own"):
            await named_offer(Wish(offer.ref), seller.board, None)
        await buyer.call("market_deny", seller=offer.ref)
        with pytest.raises(UserError, match="denied on this host"):
            await named_offer(Wish(offer.ref), buyer.board, None)
        await buyer.call("market_deny", seller=offer.ref, remove=True)
        with pytest.raises(UserError, match="no country's code"):
            await buyer.listed(country=["d"])
        with pytest.raises(UserError, match="no mint's URL"):
            await buyer.listed(mint=["mint"])
    # What is wanted already is wanted still, with another budget, while its seller is away.
    late = Host(3, tmp_path, settings)
    assert await late.listed() == []
    more = Wish(offer.ref, Ceilings(day_sat=5000))
    assert await named_offer(more, late.board, Wish(offer.ref)) == more
    with pytest.raises(UserError, match="no offer is called"):
        await named_offer(more, late.board, Wish("another/exit"))
    await late.stop()
    await buyer.stop()


async def test_an_offer_that_was_taken_back_leaves_the_list(url: str, tmp_path: Path) -> None:
    settings = BoardSettings((url,))
    goes, stays, buyer = (Host(number, tmp_path, settings) for number in (1, 2, 3))
    async with selling(stays):
        async with selling(goes):
            for host in (goes, stays):
                host.board.offer(host.offer())
            await until(lambda: goes.board.accepted and stays.board.accepted)
            assert len(await buyer.listed()) == 2
        (left,) = await buyer.listed()
        assert left["seller"] == npub(stays.key)
    await buyer.stop()


async def test_why_an_offer_is_trusted(url: str, tmp_path: Path) -> None:
    """Follows, ratings, ranks, mutes and lists, as others publish them."""
    follows = BoardSettings((url,), public_key(MAIN), (public_key(LISTER),))
    seller, buyer = Host(1, tmp_path, BoardSettings((url,))), Host(2, tmp_path, follows)
    async with selling(seller):
        seller.board.offer(seller.offer())
        await until(lambda: seller.board.accepted)
        ref = seller.offer().ref
        await publish(seller, MAIN, 3, *(("p", public_key(one)) for one in (FRIEND, LISTER)))
        await publish(seller, MAIN, 10040, ("30382:rank", public_key(SERVICE), url))
        await publish(seller, SERVICE, 30382, ("d", seller.key), ("rank", "90"))
        for author, score in ((FRIEND, 60), (STRANGER, -100)):
            rating = Rating("", seller.key, seller.offer().address, score)
            await seller.relays.publish(rating_event(rating, author, moment()), [url], lane="test")
        why = await buyer.call("market_why", offer=ref)
        parts = {part["name"]: part for part in why["parts"]}
        assert parts["ratings"]["text"] == "rated +60 by 1 person of your circle"
        assert parts["rank"]["value"] == 0.9
        assert why["trust"] > 0.5

        # What this host itself saw counts more than all of that.
        buyer.board.record(
            History(
                "lease1234", seller.key, 1, 1, 1, Outcome.OVERCHARGED, why["address"], "ab" * 32
            )
        )
        buyer.board.probed(seller.key, Probe(quote_ms=300.0))
        buyer.board.probed(seller.key, Probe(True, 25.0, "DE", place="203.0.113.0/24"))
        buyer.board.probed(seller.key, Probe(False))  # what is known of before stays
        buyer.forget()
        (one,) = await buyer.listed()
        assert one["trust"] < 0.5
        assert (one["rtt_ms"], one["quote_ms"], one["country_seen"]) == (25.0, 300.0, "DE")
        lines = (await buyer.call("market_why", offer=ref))["lines"]
        assert any("the last try through it failed; it is in DE" in line for line in lines)

        rated = await buyer.call("market_rate", target="lease1", score=-80, labels=["overcharge"])
        assert rated["accepted"] == 1
        assert rated["receipt"] == "ab" * 32
        with pytest.raises(UserError, match="less than an hour"):
            await buyer.call("market_rate", target=ref, score=100)
        assert (await buyer.call("market_report", target=ref, type="spam"))["accepted"] == 1

        assert (await buyer.call("market_deny", seller=ref))["denied"] == [npub(seller.key)]
        (one,) = await buyer.listed()
        assert [reason["code"] for reason in one["why_not"]] == ["denied"]
        assert buyer.board.candidates() == ()
        await buyer.call("market_deny", seller=npub(seller.key), remove=True)
        await publish(seller, LISTER, 30000, ("d", "exit-deny"), ("p", seller.key))
        (one,) = await buyer.listed()
        assert [reason["code"] for reason in one["why_not"]] == ["listed"]
        await buyer.call("market_allow", seller=ref)
        (one,) = await buyer.listed()
        assert one["usable"]
    # All of it is remembered, also where no relay answers.
    await buyer.stop()
    nowhere = BoardSettings(("ws://127.0.0.1:1",), follows.main, follows.lists)
    again = Host(2, tmp_path, nowhere)
    again.board.opinions._people["at"] = 5
    await again.board.refresh(force=True)
    assert again.board.opinions._people["at"] == 5  # and asked for again the next time
    assert again.board.opinions.circle.follows == {public_key(FRIEND), public_key(LISTER)}
    assert again.board.opinions.lists.lists == {public_key(LISTER): {seller.key}}
    assert again.board.opinions.allowed == {seller.key}
    given = again.board.opinions.given(seller.key)
    assert given is not None
    assert given.score == -80
    assert again.board.lease("lease1234") is not None
    await again.stop()


async def test_what_is_rated_by_the_rating_key_is_not_signed_by_the_node(
    url: str, tmp_path: Path
) -> None:
    settings = BoardSettings((url,))
    seller, buyer = Host(1, tmp_path, settings), Host(2, tmp_path, settings)
    async with selling(seller):
        seller.board.offer(seller.offer())
        await until(lambda: seller.board.accepted)
        for number, as_me in ((0, False), (1, True)):
            await buyer.call("market_report", target=seller.offer().ref, as_me=as_me)
            found = await seller.relays.fetch([{"kinds": [1984]}], [url], 3.0, lane="test")
            authors = {one.event.pubkey for one in found}
            assert public_key(buyer.root.rating_key()) in authors
            assert (buyer.root.public_key in authors) == bool(number)
    await buyer.stop()


async def test_three_reports_of_follows_grey_an_offer(url: str, tmp_path: Path) -> None:
    friends = [bytes(31) + bytes([n]) for n in (60, 61, 62)]
    seller = Host(1, tmp_path, BoardSettings((url,)))
    buyer = Host(2, tmp_path, BoardSettings((url,), public_key(MAIN)))
    async with selling(seller):
        seller.board.offer(seller.offer())
        await until(lambda: seller.board.accepted)
        await publish(seller, MAIN, 3, *(("p", public_key(one)) for one in friends))
        for count, friend in enumerate([*friends[:2], STRANGER, friends[2]], 1):
            report = report_event(seller.key, "malware", friend, moment())
            await seller.relays.publish(report, [url], lane="test")
            (one,) = await buyer.listed()
            assert [r["code"] for r in one["why_not"]] == (["reported"] if count == 4 else [])
    await buyer.stop()


async def test_an_offer_is_published_again_where_no_relay_took_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(market_board, "RETRY_S", 0.2)
    relay = EmbeddedRelay(port=free_port())
    host = Host(1, tmp_path, BoardSettings((f"ws://127.0.0.1:{relay._port}",)))
    async with selling(host):
        host.board.offer(host.offer())
        await until(lambda: any(one["reason"] for one in host.relays.status()))
        assert host.board.accepted == 0
        await relay.start()
        await until(lambda: host.board.accepted == 1)
    await relay.stop()


def test_the_salt_is_drawn_once(tmp_path: Path) -> None:
    settings = BoardSettings(())

    def salt() -> object:
        store = Store.open(str(tmp_path / "x.db"))
        root = RootSecret(bytes([1]) * 32)
        relays: Any = None
        MarketBoard(relays, store, root, settings, lambda: Moment(0.0, 0.0, Entropy(b"")))
        kept = store.get("board", "salt")
        store.close()
        return kept

    first = salt()
    assert isinstance(first, str)
    assert len(first) == 32
    assert salt() == first
