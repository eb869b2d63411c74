"""Payment channels of two wallets at a real mint: opened, closed, spoilt, given back, and killed."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nostrvpn.cashu.channel import Channel, Update, channel_outputs, open_channel, sign_update
from nostrvpn.cashu.conditions import lock_key
from nostrvpn.cashu.operations import swap_body
from nostrvpn.daemon.wallet import Wallet
from nostrvpn.daemon.wallet_answers import WalletFailed
from nostrvpn.daemon.wallet_channels import Closed
from nostrvpn.errors import UserError
from nostrvpn.lab.mint import Mint, MintSettings
from nostrvpn.lab.patience import patient
from tests.contract.mint_room import Crash, Faults, Room, new_ref, worth

PAYER, SELLER = bytes(31) + b"\x07", bytes(31) + b"\x09"
A, B = lock_key(PAYER), lock_key(SELLER)

pytestmark = pytest.mark.timeout(patient(120))


@pytest.fixture(scope="module")
def mint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mint]:
    with Mint(tmp_path_factory.mktemp("mint")) as mint:
        yield mint


@pytest.fixture(scope="module")
def dear(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mint]:
    settings = MintSettings(seed="another", fee_ppk=100)
    with Mint(tmp_path_factory.mktemp("dear"), settings=settings) as mint:
        yield mint


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    room = Room(tmp_path)
    yield room
    await room.close()


async def opened(
    room: Room, mint: Mint, amounts: tuple[int, ...] = (64,), lasts_s: int = 3600
) -> tuple[Wallet, Wallet, Channel]:
    """Two wallets, and a channel that the first one, of 200 sat, funded for the second."""
    payer = await room.funded("payer", mint.url, 200)
    seller = room.wallet("seller")
    await seller.trust(mint.url)
    until = int(time.time()) + lasts_s
    funding = await payer.channels.fund(new_ref("c"), mint.url, amounts, (A, B), until)
    keysets = (await seller.keys(mint.url)).keysets
    return (
        payer,
        seller,
        open_channel(funding, os.urandom(32), keysets, B, time.time() + lasts_s - 60),
    )


def updates(channel: Channel, *balances: int) -> tuple[Update, ...]:
    return tuple(sign_update(channel, balance, PAYER) for balance in balances)


async def home(payer: Wallet, mint: Mint, channel: Channel, *balances: int, until: float) -> Closed:
    """Ask for the payer's part until it is there."""
    deadline = time.monotonic() + patient(20)
    while True:
        try:
            return await payer.channels.settle("home", mint.url, channel, balances, until, PAYER)
        except WalletFailed as failed:
            if not failed.may_retry or time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)  # the mint's clock has seconds


FAR = 4e9


async def test_both_have_their_parts_and_the_mint_agrees(room: Room, mint: Mint) -> None:
    payer, seller, channel = await opened(room, mint, (64, 32))
    with pytest.raises(WalletFailed) as early:
        await payer.channels.settle("home", mint.url, channel, (70,), FAR, PAYER)
    assert early.value.may_retry
    signed = updates(channel, 70, 33, 1)
    assert await seller.channels.close("x", mint.url, channel, signed, SELLER) == Closed(70, 70, 0)
    assert await seller.channels.close("x", mint.url, channel, signed, SELLER) == Closed(70, 70, 0)
    came = await home(payer, mint, channel, 70, 33, 1, until=FAR)
    assert came == Closed(70, 26, 0)
    assert await home(payer, mint, channel, 70, until=FAR) == came
    assert await worth(payer, mint.url) == 200 - 70
    assert await worth(seller, mint.url) == 70


async def test_fees_are_told_to_both(room: Room, dear: Mint) -> None:
    payer, seller, channel = await opened(room, dear)
    assert channel.capacity == 63
    left = await worth(payer, dear.url)
    closed = await seller.channels.close("x", dear.url, channel, updates(channel, 23), SELLER)
    assert closed == Closed(23, 22, 1)
    # 40 of the 63 are the payer's; a sat closed the channel and one brings this home.
    assert await home(payer, dear, channel, 23, until=FAR) == Closed(23, 39, 2)
    assert await worth(payer, dear.url) == left + 39
    assert await worth(seller, dear.url) == 22


async def test_a_channel_that_is_used_up_leaves_the_payer_nothing(room: Room, mint: Mint) -> None:
    payer, seller, channel = await opened(room, mint)
    await seller.channels.close("x", mint.url, channel, updates(channel, 64), SELLER)
    assert await home(payer, mint, channel, 64, 8, until=FAR) == Closed(64, 0, 0)


async def test_after_the_locktime_the_payer_has_it_back(room: Room, mint: Mint) -> None:
    payer, seller, channel = await opened(room, mint, lasts_s=4)
    until = (channel.lock.locktime or 0) + 2
    assert await home(payer, mint, channel, 9, until=until) == Closed(0, 64, 0)
    assert time.time() > until
    with pytest.raises(WalletFailed) as late:
        await seller.channels.close("x", mint.url, channel, updates(channel, 9), SELLER)
    assert (late.value.number, late.value.may_retry) == (11001, False)
    assert await home(payer, mint, channel, 9, until=until) == Closed(0, 64, 0)
    assert await worth(payer, mint.url) == 200


async def test_an_older_balance_closes_where_the_payer_spoilt_the_last(
    room: Room, mint: Mint
) -> None:
    payer, seller, channel = await opened(room, mint)
    keyset = await payer.mints.signing(mint.url, time.time())

    async def spoil(balance: int) -> None:
        _, theirs = channel_outputs(channel, balance, keyset)
        small = await payer.take_out(new_ref("spoil"), mint.url, 1)
        body = swap_body(small, (replace(theirs[0], amount=1),))
        await payer.mints.client(mint.url).post("/v1/swap", body)

    await spoil(21)
    await spoil(20)
    with pytest.raises(WalletFailed) as refused:
        await seller.channels.close("x", mint.url, channel, updates(channel, 21, 20), SELLER)
    assert (refused.value.number, refused.value.may_retry) == (11003, False)
    signed = updates(channel, 21, 20, 12)
    assert await seller.channels.close("y", mint.url, channel, signed, SELLER) == Closed(12, 12, 0)
    assert await home(payer, mint, channel, 21, 20, 12, until=FAR) == Closed(12, 52, 0)


async def test_the_mint_rotates_its_keys_meanwhile(room: Room, tmp_path: Path) -> None:
    with Mint(tmp_path, settings=MintSettings(seed="turning")) as mint:
        payer, seller, channel = await opened(room, mint)
        mint.rotate()
        closed = await seller.channels.close("x", mint.url, channel, updates(channel, 5), SELLER)
        assert closed == Closed(5, 5, 0)
        await payer.mints.keys(mint.url, fresh=True)
        assert await home(payer, mint, channel, 5, until=FAR) == Closed(5, 59, 0)


@pytest.mark.parametrize("who", ["seller", "payer", "payer alone"])
async def test_killed_at_any_moment_it_comes_home_once(room: Room, mint: Mint, who: str) -> None:
    _, seller, channel = await opened(room, mint, lasts_s=3600 if who != "payer alone" else 2)
    signed, name = updates(channel, 20, 7), "seller" if who == "seller" else "payer"
    until = FAR if who != "payer alone" else (channel.lock.locktime or 0) + 1.5
    if who == "payer":
        await seller.channels.close("x", mint.url, channel, signed, SELLER)

    async def act(wallet: Wallet) -> Closed:
        if who == "seller":
            return await wallet.channels.close("x", mint.url, channel, signed, SELLER)
        return await home(wallet, mint, channel, 20, 7, until=until)

    expected = {
        "seller": Closed(20, 20, 0),
        "payer": Closed(20, 44, 0),
        "payer alone": Closed(0, 64, 0),
    }[who]
    killed = 0
    for moment in range(200):
        faults = Faults(moment)
        wallet = room.wallet(name, faults)
        try:
            found = await act(wallet)
        except Crash:
            killed += 1
            continue
        assert found == expected
        break
    wallet = room.wallet(name)
    assert await act(wallet) == expected
    assert killed > 5
    assert await worth(wallet, mint.url) == {"seller": 20, "payer": 180, "payer alone": 200}[who]


async def test_a_mint_that_signs_an_older_message_is_not_used(
    room: Room, mint: Mint, monkeypatch: pytest.MonkeyPatch
) -> None:
    payer = await room.funded("payer", mint.url, 64)
    await payer.channels.require(mint.url)
    client = payer.mints.client(mint.url)
    real = client.get

    async def get(path: str) -> object:
        answer = await real(path)
        return {**answer, "version": "Nutshell/0.20.2"} if path == "/v1/info" else answer

    monkeypatch.setattr(client, "get", get)
    with pytest.raises(UserError, match="has no channels"):
        await payer.channels.fund("c", mint.url, (16,), (A, B), int(time.time()) + 3600)
    assert await worth(payer, mint.url) == 64
