"""Where strangers come to, on hosts whose other firewalls drop what is forwarded."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest

from nostrvpn.daemon import market_premises
from nostrvpn.daemon.market_premises import Premises
from nostrvpn.identity.keys import RootSecret
from nostrvpn.io.forward_policy import Obstacle
from nostrvpn.market.sale import Sale
from nostrvpn.market.terms import PayMode, Price, Terms

IPV4, IPV6 = ip_address("8.8.4.4"), ip_address("2a00:1450::1")
SALE = Sale(Terms(Price(1 << 20, 1000), ("https://mint.example",), (PayMode.LOCKED,)))


class Place:
    """A host with public addresses, whose firewalls drop what is forwarded of these ``versions``."""

    def __init__(self, patch: pytest.MonkeyPatch, *versions: int) -> None:
        self.dropped, self.now, self.looks = set(versions), 1000.0, 0
        patch.setattr(market_premises, "outward_sources", lambda: frozenset({IPV4, IPV6}))
        patch.setattr(market_premises, "uplink_speed", lambda: 1000)
        patch.setattr(market_premises, "forward_obstacle", self.obstacle)
        host = SimpleNamespace(
            root=RootSecret(bytes(31) + b"\x07"),
            interface="nvpn0",
            node=SimpleNamespace(exits=SimpleNamespace(is_wanted=False)),
            moment=lambda: SimpleNamespace(now=self.now),
        )
        self.premises = Premises(cast("Any", host), 24000, "ab" * 32)

    def obstacle(self, _link: str, versions: Collection[int]) -> Obstacle | None:
        self.looks += 1
        found = self.dropped & set(versions)
        return Obstacle(f"chain {min(found)}", "a command") if found else None

    async def found(self, sale: Sale = SALE) -> tuple[set[Literal[4, 6]], str | None, str | None]:
        """The versions that are sold, why nothing is, and why IPv6 is not."""
        place = await self.premises.find(sale, is_wanted=True)
        assert place is not None
        sold = {i.version for i in (place.ipv4, place.ipv6) if i is not None}
        return sold, self.premises.error, self.premises.only_ipv4


@pytest.mark.parametrize(
    ("dropped", "expected"),
    [
        ((), ({4, 6}, None, None)),
        ((6,), ({4}, None, "chain 6 drops what buyers send: a command")),
        ((4,), ({4, 6}, "chain 4 drops what buyers send: a command", None)),
    ],
)
async def test_what_is_dropped_is_told_and_ipv6_is_not_sold_where_it_is(
    monkeypatch: pytest.MonkeyPatch, dropped: tuple[int, ...], expected: object
) -> None:
    assert await Place(monkeypatch, *dropped).found() == expected


async def test_who_sells_no_ipv6_hears_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(monkeypatch, 6)
    assert await place.found(replace(SALE, ipv6=False)) == ({4}, None, None)


async def test_what_is_in_the_way_is_looked_for_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(monkeypatch, 6)
    await place.found()
    place.dropped.clear()
    place.now += 5
    assert (await place.found())[0] == {4}
    place.now += 15
    assert await place.found() == ({4, 6}, None, None)
    looks = place.looks
    place.now += 100
    await place.found()
    assert place.looks == looks
