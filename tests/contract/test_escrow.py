"""Money in escrow at a real mint (Nutshell): who can spend it with whose word, in each ending."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from nostrvpn.daemon.wallet_answers import Redeemed, WalletFailed
from nostrvpn.lab.mint import Mint
from nostrvpn.market.escrow import (
    Parties,
    check_escrow,
    parties_of,
    sign_secrets,
    signed,
    signed_all,
)
from nostrvpn.nostr.event import public_key
from tests.contract.mint_room import Room, new_ref, worth


def key_of(name: str, *, odd: bool) -> bytes:
    """A secret whose public key has this y: both kinds must sign as their x alone."""
    from coincurve import PrivateKey

    for number in range(100):
        secret = hashlib.sha256(f"{name}{number}".encode()).digest()
        if (PrivateKey(secret).public_key.format()[0] == 3) is odd:
            return secret
    raise AssertionError(name)


pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def mint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mint]:
    with Mint(tmp_path_factory.mktemp("mint")) as mint:
        yield mint


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    room = Room(tmp_path)
    yield room
    await room.close()


@pytest.mark.parametrize("odd", [False, True])
async def test_two_of_three_spend_and_nobody_alone(room, mint, odd):
    seller, buyer, judge = (key_of(name, odd=odd) for name in ("seller", "buyer", "judge"))
    payer = await room.funded("buyer", mint.url, 200)
    shop, third = room.wallet("seller"), room.wallet("judge")
    for wallet in (shop, third):
        await wallet.trust(mint.url)
    ends = int(time.time()) + 86_400
    parties = Parties(public_key(seller), public_key(buyer), public_key(judge), ends)

    async def payment(*amounts):
        proofs = await payer.lock_under(new_ref("pay"), mint.url, amounts, parties.lock)
        keys = (await payer.keys(mint.url)).keysets
        wanted = parties.seller, parties.buyer, parties.arbiter
        assert check_escrow(proofs, keys, wanted, time.time(), 3600) == parties
        return proofs

    proofs = await payment(1, 2, 4)
    for wallet, key in ((shop, seller), (payer, buyer), (third, judge)):
        with pytest.raises(WalletFailed):
            await wallet.redeem(new_ref("alone"), mint.url, proofs, key)

    def by(key, money):
        sigs = sign_secrets((proof.secret for proof in money), key)
        made = signed(money, sigs, public_key(key))
        assert made is not None
        return made

    # Released: the buyer's word, and the seller's own, both in before the wallet is asked.
    both = signed_all(by(buyer, proofs), seller)
    assert await shop.redeem("released", mint.url, both, bytes(31) + b"\x05") == Redeemed(7, 0)
    with pytest.raises(WalletFailed) as spent:
        await payer.redeem("twice", mint.url, signed_all(by(judge, proofs), buyer))
    assert spent.value.number == 11001
    # Decided for the seller, and for the buyer, who signs as a wallet does.
    proofs = await payment(8)
    with pytest.raises(WalletFailed):
        await shop.redeem("early", mint.url, by(judge, proofs), bytes(31) + b"\x05")
    both = signed_all(by(judge, proofs), seller)
    assert await shop.redeem("won", mint.url, both, bytes(31) + b"\x05") == Redeemed(8, 0)
    proofs = await payment(16, 1)
    assert await payer.redeem("back", mint.url, by(judge, proofs), buyer) == Redeemed(17, 0)
    assert [await worth(w, mint.url) for w in (payer, shop, third)] == [185, 15, 0]


async def test_without_any_word_it_is_the_buyers_again_after_the_locktime(room, mint):
    seller, buyer, judge = (key_of(name, odd=True) for name in ("seller", "buyer", "judge"))
    payer, shop = await room.funded("buyer", mint.url, 50), room.wallet("seller")
    await shop.trust(mint.url)
    ends = int(time.time()) + 3
    parties = Parties(public_key(seller), public_key(buyer), public_key(judge), ends)
    proofs = await payer.lock_under("pay", mint.url, (4, 8), parties.lock)
    assert parties_of(proof.secret for proof in proofs) == parties
    with pytest.raises(WalletFailed):
        await payer.reclaim("soon", mint.url, proofs, ends - 60, buyer)
    await asyncio.sleep(ends + 1 - time.time())  # the mint's clock counts whole seconds
    with pytest.raises(WalletFailed):
        await shop.redeem("mine", mint.url, proofs, seller)
    assert await payer.reclaim("back", mint.url, proofs, ends, buyer) == Redeemed(12, 0)
    # Who is told so late gets nothing, and the next look says so too.
    assert await payer.reclaim("again", mint.url, proofs, ends, buyer) == Redeemed(0, 0)
    assert [await worth(w, mint.url) for w in (payer, shop)] == [50, 0]
