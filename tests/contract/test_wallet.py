"""The wallet against a real mint (Nutshell): what is paid arrives once, whatever breaks in between."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from nostrvpn.cashu.conditions import lock_key
from nostrvpn.cashu.purse import NotEnough
from nostrvpn.cashu.token import Token, render_token
from nostrvpn.daemon.wallet import Wallet
from nostrvpn.daemon.wallet_answers import Redeemed, WalletFailed
from nostrvpn.daemon.wallet_mints import UnknownMint
from nostrvpn.errors import PeerMisbehaved, UserError
from nostrvpn.io.mint import MintClient, MintUnreachable
from nostrvpn.lab.mint import Mint, MintSettings
from tests.contract.mint_room import Crash, Faults, FaultyClient, Room, new_ref, unspent, worth

ALICE, BOB = bytes(31) + b"\x07", bytes(31) + b"\x09"
A_DAY = 86_400
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def mint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mint]:
    with Mint(tmp_path_factory.mktemp("mint")) as mint:
        yield mint


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mint]:
    """A second mint: with a fee, and whose invoices the first one pays."""
    settings = MintSettings(seed="another", fee_ppk=100)
    with Mint(tmp_path_factory.mktemp("other"), settings=settings) as mint:
        yield mint


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    room = Room(tmp_path)
    yield room
    await room.close()


async def test_what_one_sends_another_receives_once(room, mint):
    alice, bob = await room.funded("alice", mint.url, 1000), room.wallet("bob")
    proofs = await alice.take_out("to bob", mint.url, 21)
    token = render_token(Token(mint.url, proofs))
    with pytest.raises(UnknownMint):
        await bob.receive(token)
    assert await bob.receive(token, mint_ok=True) == Redeemed(21, 0)
    assert await bob.receive(token) == Redeemed(21, 0)  # the same again, and not twice
    assert await alice.take_out("to bob", mint.url, 21) == proofs
    carol = room.wallet("carol")
    with pytest.raises(WalletFailed) as refused:
        await carol.receive(token, mint_ok=True)
    assert (refused.value.number, refused.value.may_retry) == (11001, False)
    assert [await worth(w, mint.url) for w in (alice, bob, carol)] == [979, 21, 0]
    assert [entry["amount"] for entry in alice.history()] == [-21, 1000]


async def test_ten_redeem_the_same_token_and_one_has_it(room, mint):
    alice, bob = await room.funded("alice", mint.url, 64), room.wallet("bob")
    await bob.trust(mint.url)
    proofs = await alice.take_out("to whom", mint.url, 64)
    attempts = [bob.redeem(new_ref("race"), mint.url, proofs) for _ in range(10)]
    results = await asyncio.gather(*attempts, return_exceptions=True)
    won = [one for one in results if isinstance(one, Redeemed)]
    lost = [one for one in results if isinstance(one, WalletFailed)]
    assert won == [Redeemed(64, 0)]
    assert len(lost) == 9
    assert {one.number for one in lost} <= {11001, 11002}
    assert all(one.may_retry for one in lost if one.number == 11002)
    assert await worth(bob, mint.url) == 64


async def test_what_is_locked_is_the_receivers_until_the_locktime_and_then_ours_too(room, mint):
    alice, bob, carol = (
        await room.funded("alice", mint.url, 500),
        *map(room.wallet, ("bob", "carol")),
    )
    for wallet in (bob, carol):
        await wallet.trust(mint.url)
    until = int(time.time()) + 4
    amounts = [1, 2, 4, 8, 16, 1]
    proofs = await alice.lock("lease", mint.url, amounts, lock_key(BOB), until, lock_key(ALICE))
    assert [proof.amount for proof in proofs] == amounts
    for wallet, key in ((carol, None), (carol, ALICE), (alice, ALICE)):
        with pytest.raises(WalletFailed):
            await wallet.redeem(new_ref("steal"), mint.url, proofs[:3], key)
    room.keys[lock_key(BOB)] = BOB
    assert await bob.redeem("mine", mint.url, proofs[:3]) == Redeemed(7, 0)
    with pytest.raises(WalletFailed) as early:
        await alice.reclaim("back", mint.url, proofs, until, ALICE)
    assert early.value.may_retry
    with pytest.raises(WalletFailed):
        await alice.reclaim("too soon", mint.url, proofs, until - 60, ALICE)
    await asyncio.sleep(until + 1 - time.time())  # the mint's clock counts whole seconds
    assert await alice.reclaim("back", mint.url, proofs, until, ALICE) == Redeemed(25, 0)
    assert await alice.reclaim("nothing", mint.url, proofs, until, ALICE) == Redeemed(0, 0)
    assert [await worth(w, mint.url) for w in (alice, bob, carol)] == [493, 7, 0]


async def test_what_is_given_back_is_the_receivers_alone(room, mint):
    alice, bob = await room.funded("alice", mint.url, 100), room.wallet("bob")
    await bob.trust(mint.url)
    proofs = await alice.give_back("rest", mint.url, 37, lock_key(BOB))
    with pytest.raises(WalletFailed):
        await alice.redeem("mine after all", mint.url, proofs, ALICE)
    assert await bob.redeem("rest", mint.url, proofs, BOB) == Redeemed(37, 0)


async def test_fees_are_the_mints_and_counted(room, other):
    alice, bob = await room.funded("alice", other.url, 1000), room.wallet("bob")
    await bob.trust(other.url)
    until = int(time.time()) + A_DAY
    proofs = await alice.lock("m2", other.url, [1] * 64, lock_key(BOB), until, lock_key(ALICE))
    assert await bob.redeem("batch", other.url, proofs, BOB) == Redeemed(57, 7)
    fees = sum(entry["fee"] for entry in alice.history())
    assert fees > 0
    assert await worth(alice, other.url) == 1000 - 64 - fees
    with pytest.raises(NotEnough):
        await alice.take_out("all", other.url, 1000 - 64)
    with pytest.raises(UserError, match="fee"):
        await bob.redeem("crumb", other.url, (await alice.take_out("crumb", other.url, 1)))


async def test_ten_sends_at_once_wait_for_each_others_change(room, mint):
    alice = await room.funded("alice", mint.url, 512)  # one proof
    sends = [alice.take_out(f"send {number}", mint.url, 11) for number in range(10)]
    given = await asyncio.gather(*sends)
    assert [sum(p.amount for p in proofs) for proofs in given] == [11] * 10
    assert len({p.secret for proofs in given for p in proofs}) == sum(map(len, given))
    assert await worth(alice, mint.url) == 512 - 110
    alice = room.wallet("alice")  # asks for the keys first, so all five meet there
    key = lock_key(BOB)
    twice = await asyncio.gather(
        *(alice.lock("one name", mint.url, [64, 32, 4], key, 2_000_000_000, key) for _ in "12345")
    )
    assert all(proofs == twice[0] for proofs in twice)
    assert await worth(alice, mint.url) == 302


async def test_forged_money_and_foreign_mints_are_refused(room, mint, other):
    alice, bob = await room.funded("alice", mint.url, 100), room.wallet("bob")
    await bob.trust(mint.url)
    [*proofs] = await alice.take_out("to bob", mint.url, 12)
    small, large = sorted(proofs, key=lambda proof: proof.amount)
    lie = type(small)(small.keyset_id, 2 * small.amount, small.secret, small.c, small.dleq)
    with pytest.raises(PeerMisbehaved, match="never made"):
        await bob.receive(render_token(Token(mint.url, (lie, large))))
    with pytest.raises(UnknownMint):
        await bob.redeem("elsewhere", other.url, (small,))
    for url in ("http://example.com", f"{mint.url}@evil.example", "ftp://x", "https://"):
        with pytest.raises(UserError, match="URL"):
            await bob.trust(url)
    with pytest.raises(UserError, match="money of yours"):
        alice.distrust(mint.url)
    bob.distrust(mint.url)
    with pytest.raises(UnknownMint):
        await bob.take_out("x", mint.url, 1)


async def test_keys_that_are_not_those_of_their_name_are_refused(room, mint):
    class Swapped(MintClient):
        async def get(self, path):
            answer = await super().get(path)
            if path.startswith("/v1/keys/"):
                keys = answer["keysets"][0]["keys"]
                keys["1"], keys["2"] = keys["2"], keys["1"]
            return answer

    alice = room.wallet("alice")
    alice.mints._connect = Swapped
    with pytest.raises(PeerMisbehaved) as refused:
        await alice.trust(mint.url)
    assert refused.value.code == "bad-keyset"
    assert alice.mints.urls() == ()


# -- Lightning


async def test_an_invoice_is_paid_once_and_the_change_comes_back(room, mint, other):
    alice, bob = await room.funded("alice", mint.url, 100), room.wallet("bob")
    await bob.trust(other.url)
    invoice = (await bob.fund("in", other.url, 20)).invoice
    with pytest.raises(UserError, match="fee"):
        await alice.melt("dear", mint.url, invoice, max_fee=0)
    paid = await alice.melt("pay", mint.url, invoice)
    assert (paid.amount, paid.fee <= 2) == (20, True)
    assert await alice.melt("pay", mint.url, invoice) == paid
    assert await worth(alice, mint.url) == 100 - 20 - paid.fee


async def test_a_payment_on_its_way_is_waited_for_and_a_failed_one_is_free_again(
    room, other, tmp_path
):
    settings = MintSettings(seed="slow", payment="PENDING")
    bob = room.wallet("bob")
    await bob.trust(other.url)
    invoices = [(await bob.fund(f"in {n}", other.url, 20)).invoice for n in range(2)]
    with Mint(tmp_path, settings=settings) as slow:
        alice = await room.funded("alice", slow.url, 100)
        for _ in range(2):
            with pytest.raises(WalletFailed) as on_its_way:
                await alice.melt("pay", slow.url, invoices[0])
            assert on_its_way.value.may_retry
            assert sum(alice.balance()[slow.url]) == 100
        slow.restart(MintSettings(seed="slow", payment="SETTLED", pays_itself=False))
        alice = room.wallet("alice")
        await alice.resume()
        left = await worth(alice, slow.url)
        assert 78 <= left <= 80
        await alice.fund("never paid", slow.url, 500)
        assert not await alice.funded("never paid")
        slow.restart(MintSettings(seed="slow", payment="FAILED"))
        alice = room.wallet("alice")
        with pytest.raises(WalletFailed) as failed:
            await alice.melt("pay more", slow.url, invoices[1])
        assert not failed.value.may_retry
        assert await worth(alice, slow.url) == left


# -- what breaks in between


async def _swap(wallet: Wallet, mint: str, invoice: str) -> int:
    return sum(p.amount for p in await wallet.take_out("op", mint, 21))


async def _lock(wallet: Wallet, mint: str, invoice: str) -> int:
    until = 2_000_000_000
    proofs = await wallet.lock("op", mint, [4, 4, 1], lock_key(BOB), until, lock_key(ALICE))
    assert await unspent(wallet, mint, proofs) == 9
    return 9


async def _redeem(wallet: Wallet, mint: str, invoice: str) -> int:
    proofs = await wallet.take_out("before", mint, 33)
    assert await wallet.redeem("op", mint, proofs) == Redeemed(33, 0)
    return 0


async def _fund(wallet: Wallet, mint: str, invoice: str) -> int:
    await wallet.fund("op", mint, 10)
    if not await wallet.funded("op"):
        raise WalletFailed("not yet", may_retry=True)
    return -10


async def _melt(wallet: Wallet, mint: str, invoice: str) -> int:
    paid = await wallet.melt("op", mint, invoice)
    return paid.amount + paid.fee


OPERATIONS = {"swap": _swap, "lock": _lock, "redeem": _redeem, "fund": _fund, "melt": _melt}


async def _prepared(room: Room, name: str, mint: Mint, other: Mint) -> str:
    """A wallet with 64 sat in one proof; return an invoice of the other mint's to pay."""
    await room.funded(name, mint.url, 64)
    client = MintClient(other.url)
    quote = await client.post("/v1/mint/quote/bolt11", {"amount": 5, "unit": "sat"})
    await client.close()
    return str(quote["request"])


@pytest.mark.parametrize("kind", OPERATIONS)
async def test_a_crash_at_any_moment_loses_nothing(room, mint, other, kind):
    operation = OPERATIONS[kind]
    counting = Faults()
    invoice = await _prepared(room, "counted", mint, other)
    wallet = room.wallet("counted", counting)
    spent = await operation(wallet, mint.url, invoice)
    moments = len(counting.moments)
    assert moments >= 6
    assert await worth(wallet, mint.url) == 64 - spent
    for moment in range(moments):
        name = f"crash {moment}"
        invoice = await _prepared(room, name, mint, other)
        with pytest.raises(Crash) as crash:
            await operation(room.wallet(name, Faults(moment)), mint.url, invoice)
        where = f"{moment}, {crash.value}"
        wallet = room.wallet(name)
        await wallet.resume()
        spent = await operation(wallet, mint.url, invoice)
        assert await worth(wallet, mint.url) == 64 - spent, where
        assert not wallet.book.open, where
        room.leave(name)


@pytest.mark.parametrize("kind", ["swap", "fund", "melt"])
async def test_the_mint_dies_when_it_has_done_it_and_before_it_said_so(room, mint, other, kind):
    invoice = await _prepared(room, "alice", mint, other)
    wallet = room.wallet("alice")
    deadly = {"swap": "/v1/swap", "fund": "/v1/mint/bolt11", "melt": "/v1/melt/bolt11"}[kind]

    def die(path: str) -> None:
        if path == deadly and client.after is not None:
            client.after = None
            mint.kill()
            raise MintUnreachable("killed")

    client = wallet.mints.client(mint.url)
    assert isinstance(client, FaultyClient)
    client.after = die
    try:
        with pytest.raises(WalletFailed) as unknown:
            await OPERATIONS[kind](wallet, mint.url, invoice)
        assert unknown.value.may_retry
        for _ in range(2):
            with pytest.raises(WalletFailed) as down:
                await wallet.take_out("meanwhile", mint.url, 3)
            assert down.value.may_retry
        assert sum(wallet.balance()[mint.url]) == 64
    finally:
        mint.kill()
        mint.start()
    await wallet.resume()
    spent = await OPERATIONS[kind](wallet, mint.url, invoice)
    # Whether that one left before the connection broke, nobody knew; it went on, or never was.
    meanwhile = wallet.book.operation("meanwhile")
    spent += 0 if meanwhile is None else sum(p.amount for p in meanwhile.given)
    assert await worth(wallet, mint.url) == 64 - spent


async def test_sigkill_in_the_middle_of_much_work_loses_nothing(room, mint, tmp_path):
    wallet = await room.funded("victim", mint.url, 4096)
    room.leave("victim")
    for patience in (0.05, 0.2, 0.35):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.contract.wallet_spender",
            str(tmp_path),
            mint.url,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        async with asyncio.timeout(30):
            await process.stdout.readline()
        await asyncio.sleep(patience)
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        wallet = room.wallet("victim")
        async with asyncio.timeout(30):
            # The mint may still be at what it was asked by the process that died.
            while wallet.book.open:
                await wallet.resume()
                await asyncio.sleep(0.1)
        given = 0
        for value in wallet.book._store.all("operation").values():
            assert isinstance(value, dict)
            given += sum(proof["amount"] for proof in value["given"])
        assert given > 0
        assert await worth(wallet, mint.url) == 4096 - given
        room.leave("victim")


async def test_a_mint_that_takes_no_more_calls_costs_nothing_but_time(room, tmp_path):
    limited = MintSettings(seed="limited", per_minute=3)
    with Mint(tmp_path / "mint", host="::1", settings=limited) as mint:  # 127.0.0.1 is not counted
        alice = await room.funded("alice", mint.url, 1 << 12)
        amounts = [3, 5, 7, 9, 11]
        sends = [alice.take_out(f"send {a}", mint.url, a) for a in amounts]
        results = await asyncio.gather(*sends, return_exceptions=True)
        busy = [one for one in results if isinstance(one, WalletFailed)]
        assert busy
        assert all(one.may_retry for one in busy)
        assert not alice.book.open
        [keyset] = alice.mints.known(mint.url).active()
        used = alice.book.counter(keyset.id)
        with pytest.raises(WalletFailed):
            await alice.take_out("and again", mint.url, 1000)
        assert alice.book.counter(keyset.id) == used  # or a restore would end at a hole
        mint.restart(MintSettings(seed="limited"))
        alice = room.wallet("alice")
        for amount in amounts:
            proofs = await alice.take_out(f"send {amount}", mint.url, amount)
            assert sum(p.amount for p in proofs) == amount
        assert await worth(alice, mint.url) == (1 << 12) - sum(amounts)


# -- keysets, words


async def test_many_small_proofs_become_few_and_meanwhile_none_is_spent_twice(
    room, mint, monkeypatch
):
    monkeypatch.setattr("nostrvpn.daemon.wallet.MANY_PROOFS", 15)
    alice = await room.funded("alice", mint.url, 600)
    key, until = lock_key(ALICE), int(time.time()) + A_DAY
    proofs = await alice.lock("lease", mint.url, [1] * 32, key, until, key)
    for number, proof in enumerate(proofs):  # what a seller earns, tick by tick
        await alice.redeem(f"tick {number}", mint.url, [proof], ALICE)
    assert len(alice.book.purse.proofs(mint.url)) > 30
    results = await asyncio.gather(
        *(alice.take_out(f"t{number}", mint.url, 3) for number in range(5)),
        alice.renew(mint.url),
        return_exceptions=True,
    )
    assert not [one for one in results if isinstance(one, BaseException)]
    assert results[-1] > 0  # type: ignore[operator]
    assert len(alice.book.purse.proofs(mint.url)) < 15
    assert await worth(alice, mint.url) == 600 - 15


async def test_rotated_keys_are_followed_and_old_money_is_still_money(room, tmp_path):
    with Mint(tmp_path / "mint", settings=MintSettings(seed="turning")) as mint:
        alice, bob = await room.funded("alice", mint.url, 100), room.wallet("bob")
        await bob.trust(mint.url)
        soon = int(time.time()) + 2 * A_DAY
        mint.rotate(fee_ppk=0, final_expiry=soon)
        proofs = await alice.take_out("to bob", mint.url, 21)  # refused once: 12002
        [active] = (await alice.keys(mint.url)).active()
        assert {proof.keyset_id for proof in proofs} == {active.id}
        assert await bob.receive(render_token(Token(mint.url, proofs))) == Redeemed(21, 0)
        assert await alice.renew(mint.url) == 0  # no lasting keys yet
        mint.rotate(fee_ppk=100)
        await alice.mints.keys(mint.url, fresh=True)
        renewed = await alice.renew(mint.url)
        assert renewed > 0
        [lasting] = (await alice.keys(mint.url)).active()
        kept = {proof.keyset_id for proof in alice.book.purse.proofs(mint.url)}
        assert lasting.id in kept
        assert active.id not in kept
        # And from the words alone, keysets of all ages.
        total = await worth(alice, mint.url)
        again = room.wallet("lost", words_of="alice")
        await again.trust(mint.url)
        assert await worth(again, mint.url) == total


async def test_words_bring_everything_back_and_are_then_good_for_more(room, mint):
    alice = await room.funded("alice", mint.url, 777)
    until = int(time.time()) + A_DAY
    for number in range(6):  # locks are no holes in what the words count
        await alice.lock(f"l{number}", mint.url, [1] * 64, lock_key(BOB), until, lock_key(ALICE))
    sent = await alice.take_out("gone", mint.url, 50)
    bob = room.wallet("bob")
    await bob.trust(mint.url)
    await bob.redeem("gone", mint.url, sent)
    left = await worth(alice, mint.url)
    assert left == 777 - 6 * 64 - 50
    again = room.wallet("alice again", words_of="alice")
    await again.trust(mint.url)
    assert await worth(again, mint.url) == left
    assert sum(p.amount for p in await again.take_out("goes on", mint.url, 13)) == 13
    [report] = await again.restore()
    assert (report.found, report.error) == (0, "")
    stranger = room.wallet("stranger")
    await stranger.trust(mint.url)
    [report] = await stranger.restore(again.words())
    assert report.found == left  # what was taken out and is not spent yet, too
    with pytest.raises(UserError, match="words"):
        await stranger.restore("abandon " * 12)


async def test_an_old_copy_of_the_database_is_noticed_and_mended(room, mint, tmp_path):
    alice = await room.funded("alice", mint.url, 256)
    room.leave("alice")
    old = (tmp_path / "alice" / "market.db").read_bytes()
    alice = room.wallet("alice")
    await alice.take_out("one", mint.url, 3)
    await alice.take_out("two", mint.url, 100)
    total = await worth(alice, mint.url)
    room.leave("alice")
    for path in (tmp_path / "alice").iterdir():
        path.unlink()
    (tmp_path / "alice" / "market.db").write_bytes(old)
    alice = room.wallet("alice")
    assert alice.balance()[mint.url] == (256, 0)  # it believes so
    with pytest.raises(WalletFailed) as spent:
        await alice.take_out("three", mint.url, 5)
    assert spent.value.number == 11001
    [report] = await alice.restore()
    assert report.found == total + 103  # what was sent, nobody has taken yet
    proofs = await alice.take_out("three", mint.url, 5)
    assert await unspent(alice, mint.url, proofs) == 5
