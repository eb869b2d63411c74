"""What mints sign with is asked of all at once: of healthy ones, silent ones, and ones that lie."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nostrvpn.cashu.proof import Keyset, MintKeys
from nostrvpn.daemon import market_keysets
from nostrvpn.daemon.market_keysets import AT_ONCE, Keysets
from nostrvpn.errors import PeerMisbehaved, UserError

NEW = {"00ab": Keyset("00ab", "sat", True, 0, {1: "02" + "ab" * 32})}


class Mints:
    """``slow``: mints that answer once ``go_on`` is set; ``lying``: their answers are refused."""

    def __init__(self, *urls: str) -> None:
        self.kept = {url: MintKeys(url, {}) for url in urls}
        self.slow: set[str] = set()
        self.lying: set[str] = set()
        self.go_on = asyncio.Event()
        self.asked: list[tuple[str, bool]] = []
        self.running = self.most = 0

    def known(self, url: str) -> MintKeys:
        if url not in self.kept:
            raise UserError("not one of yours")
        return self.kept[url]

    async def keys(self, url: str, *, fresh: bool = False) -> MintKeys:
        self.asked.append((url, fresh))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if url in self.slow:
                await self.go_on.wait()
        finally:
            self.running -= 1
        if url in self.lying:
            raise PeerMisbehaved("bad-keyset", "it lies")
        self.kept[url] = MintKeys(url, NEW)
        return self.kept[url]


def made(mints: Mints) -> tuple[Keysets, asyncio.Event]:
    late = asyncio.Event()
    return Keysets(cast("Any", SimpleNamespace(mints=mints)), late.set), late


async def test_a_mint_that_hangs_keeps_nobody_waiting_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(market_keysets, "PATIENCE_S", 0.2)
    mints = Mints("good", "hangs", "lies", "good2")
    mints.slow, mints.lying = {"hangs"}, {"lies"}
    keysets, late = made(mints)
    began = time.monotonic()
    async with asyncio.timeout(5):
        found = await keysets.of(["good", "hangs", "lies", "good2", "nobody's"])
    assert time.monotonic() - began < 3
    assert {url: bool(keys.keysets) for url, keys in found.items()} == {
        "good": True,
        "good2": True,
        "hangs": False,  # what was known before
        "lies": False,
    }
    await keysets.of(["hangs", "good"], stale=["good"])
    assert mints.asked.count(("hangs", False)) == 1  # one question at a time
    assert ("good", True) in mints.asked
    assert not late.is_set()
    mints.go_on.set()
    async with asyncio.timeout(5):
        await late.wait()
    late.clear()
    assert (await keysets.of(["hangs"]))["hangs"].keysets
    assert not late.is_set()


async def test_all_that_answer_are_not_waited_for_longer() -> None:
    mints = Mints(*"abc")
    keysets, late = made(mints)
    began = time.monotonic()
    assert set(await keysets.of(["a", "b", "c"])) == {"a", "b", "c"}
    assert time.monotonic() - began < market_keysets.PATIENCE_S / 2
    assert await keysets.of([]) == {}
    assert not late.is_set()


async def test_not_all_of_many_are_asked_at_once_and_the_end_waits_for_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(market_keysets, "PATIENCE_S", 0.05)
    urls = [f"mint{number}" for number in range(3 * AT_ONCE)]
    mints = Mints(*urls)
    mints.slow = set(urls)
    keysets, _ = made(mints)
    await keysets.of(urls)
    assert mints.most == AT_ONCE
    before = asyncio.all_tasks()
    async with asyncio.timeout(5):
        await keysets.stop()
    assert mints.running == 0
    assert len(asyncio.all_tasks()) == len(before) - len(urls)
