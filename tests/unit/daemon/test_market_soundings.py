"""What is measured of sellers: the way of a quote, of connections, and in which country they are."""

from __future__ import annotations

from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nostrvpn.config.model import Config
from nostrvpn.daemon import market_soundings
from nostrvpn.daemon.market_soundings import Soundings
from nostrvpn.endpoint import Endpoint
from nostrvpn.io.link_probe import ProbeResult
from nostrvpn.market.bought_lease import Phase
from nostrvpn.market.trust import Probe

ENTRANCE = ip_address("203.0.113.9")
SELLER = "ab" * 32


class Room:
    """A buyer whose clock and tunnels are made up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[tuple[str, Probe]] = []
        self.now = 100.0
        self.found = ProbeResult(True, 40)
        self.targets = [Endpoint(ip_address("198.51.100.1"), 443)]
        host = SimpleNamespace(config=Config(), moment=lambda: SimpleNamespace(now=self.now))
        board = SimpleNamespace(probed=lambda seller, probe: self.told.append((seller, probe)))
        wallet = SimpleNamespace(balance=dict)
        parts = SimpleNamespace(host=host, board=board, wallet=wallet, relays=())
        monkeypatch.setattr(market_soundings, "probe", self._probe)
        monkeypatch.setattr(market_soundings, "public_places", self._places)
        self.soundings = Soundings(cast("Any", parts))
        self.lease = cast("Any", lease("key", Phase.SERVED, quote=True))

    async def _probe(self, *_: object) -> ProbeResult:
        return self.found

    async def _places(self, *_: object) -> list[Endpoint]:
        return self.targets

    async def tried(self, *, blamed: bool = True) -> Any:
        link = cast("Any", SimpleNamespace(key="key", addresses=(), dns=()))
        who = self.lease if blamed else None
        return await self.soundings.try_out(link, "nvpn0b", ENTRANCE, who)


def lease(key: str, phase: str, *, quote: bool = False) -> Any:
    return SimpleNamespace(key=key, phase=phase, seller=SELLER, quote=object() if quote else None)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    return Room(monkeypatch)


def test_a_quote_is_timed_once_and_only_if_it_comes(room: Room) -> None:
    room.soundings.look([lease("a", Phase.ASKING), lease("b", Phase.ASKING)])
    room.now += 0.35
    room.soundings.look([lease("a", Phase.QUOTED, quote=True), lease("b", Phase.OVER)])
    room.now += 5
    room.soundings.look([lease("a", Phase.TRYING, quote=True)])
    assert room.told == [(SELLER, Probe(quote_ms=350))]


async def test_a_try_is_told_with_where_the_seller_is(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    countries = SimpleNamespace(country=lambda ip: "US" if ip == ENTRANCE else None)
    monkeypatch.setattr(room.soundings, "_countries", countries)
    probed = await room.tried()
    assert (probed.ok, probed.rtt_ms, probed.country) == (True, 40, "US")
    assert room.told == [(SELLER, Probe(True, 40, "US", place="203.0.113.0/24"))]


async def test_nobody_is_blamed_for_what_is_not_its_fault(room: Room) -> None:
    room.found = ProbeResult(False, reason="nothing was reached through the link")
    await room.tried(blamed=False)  # paused for want of our money
    room.targets = []  # our own resolver knows no names
    await room.tried()
    assert room.told == []
    room.targets = [Endpoint(ip_address("198.51.100.1"), 443)]
    assert not (await room.tried()).ok
    assert [probe.ok for _, probe in room.told] == [False]


def test_a_database_that_cannot_be_read_is_left_out(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    assert market_soundings._database("/nowhere/countries.mmdb") is None
    assert "/nowhere/countries.mmdb" in caplog.text
