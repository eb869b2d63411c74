"""A mint that does what it is asked and answers falsely: one clear error, and no money is lost by it."""

from __future__ import annotations

import asyncio
import gzip
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from nostrvpn.cashu.conditions import lock_key
from nostrvpn.cashu.purse import Operation
from nostrvpn.cashu.token import Token, render_token
from nostrvpn.daemon import wallet_errands, wallet_mints
from nostrvpn.daemon.wallet import Wallet
from nostrvpn.daemon.wallet_answers import WalletFailed
from nostrvpn.errors import NostrvpnError
from nostrvpn.io import mint as mint_module
from tests.contract.mint_room import Room, worth
from tests.contract.mint_server import MintServer, Twist, json_of, mint_server
from tests.invoices import make_invoice

NO_POINT = "02" + "ff" * 32
OTHER_POINT = "02" + "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
# In all, of which the client's patience is a second and a half a call.
SOON_S = 10.0
# Of both ends: this process is the mint too.
MOST_BYTES = 40 * 1024 * 1024
pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time enough for an honest answer on a busy machine."""
    monkeypatch.setattr(mint_module, "TIMEOUT_S", 1.5)
    monkeypatch.setattr(mint_module, "MELT_TIMEOUT_S", 1.5)


@pytest.fixture
async def server() -> AsyncIterator[MintServer]:
    async with mint_server() as made:
        yield made


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    made = Room(tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def wallet(room: Room, server: MintServer) -> Wallet:
    """64 sat in one proof."""
    return await room.funded("alice", server.url, 64)


def invoice(sat: int) -> str:
    return make_invoice(sat * 1000, f"{sat:064x}", 1_700_000_000, 3600)


# -- answers of no use


async def drip(request: web.Request, _answer: Any) -> web.StreamResponse:
    """Byte by byte, each of which could be JSON's."""
    response = web.StreamResponse()
    await response.prepare(request)
    with suppress(ConnectionError):
        for _ in range(100_000):
            await response.write(b" ")
            await asyncio.sleep(0.01)
    return response


async def drip_headers(request: web.Request, _answer: Any) -> web.StreamResponse:
    transport = request.transport
    assert isinstance(transport, asyncio.WriteTransport)
    transport.write(b"HTTP/1.1 200 OK\r\n")
    while not transport.is_closing():
        transport.write(b"X-More: " + b"x" * 4000 + b"\r\n")
        await asyncio.sleep(0.001)
    raise ConnectionResetError


async def endless(request: web.Request, _answer: Any) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    with suppress(ConnectionError):
        while True:
            await response.write(b"[" * 65_536)
    return response


BOMB = gzip.compress(b"[" * 25_000_000, 9) * 16


async def bomb(_request: web.Request, _answer: Any) -> web.StreamResponse:
    """400 MB in 400 kB."""
    return web.Response(body=BOMB, headers={"Content-Encoding": "gzip"})


async def cut(request: web.Request, _answer: Any) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"signatures": [')
    assert request.transport is not None
    request.transport.close()
    return response


def said(text: str, status: int = 200, **headers: str) -> Twist:
    async def twist(_request: web.Request, _answer: Any) -> web.StreamResponse:
        return web.Response(
            text=text, status=status, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )

    return twist


USELESS: dict[str, Twist] = {
    "drip": drip,
    "headers": drip_headers,
    "endless": endless,
    "bomb": bomb,
    "cut": cut,
    "deep": said("[" * 1_000_000),
    "deep objects": said('{"a":' * 300_000),
    "a long number": said('{"signatures": ' + "9" * 100_000 + "}"),
    "no UTF-8": said("\udcff".encode("utf-8", "surrogatepass").decode("latin-1")),
    "redirect": said("", 307, Location="http://127.0.0.1:9/v1/swap"),
    "busy for ever": said("{}", 503, Retry_After="9" * 4000),
    "a fault": said('{"detail": "oops"}', 500),
    **{text: said(text) for text in ("null", "7", '"text"', "[]", "{}", "NaN", "true")},
}


def signatures(change: Callable[[list[Any]], Any]) -> Twist:
    return json_of(lambda answer: {"signatures": change(answer.get("signatures", []))})


def each(**fields: Any) -> Twist:
    return signatures(lambda found: [one | fields for one in found])


FALSE: dict[str, Twist] = {
    "one too few": signatures(lambda found: found[:-1]),
    "one too many": signatures(lambda found: [*found, found[0]]),
    "none": signatures(lambda found: []),
    "a thousand and one": signatures(lambda found: [found[0]] * 1001),
    "no list": signatures(lambda found: {"0": found[0]}),
    "numbers": signatures(lambda found: [7] * len(found)),
    "other amounts": each(amount=1 << 20),
    "no amount": each(amount=0),
    "below nothing": each(amount=-1),
    "half": each(amount=0.5),
    "beyond all money": each(amount=1 << 70),
    "in words": each(amount="1"),
    "another keyset": each(id="00" + "ab" * 7),
    "no point": each(C_=NO_POINT),
    "another point": each(C_=OTHER_POINT),
    "no hex": each(C_="zz"),
    "no proof": each(dleq=None),
    "a false proof": each(dleq={"e": "00" * 32, "s": "11" * 32}),
    "swapped": signatures(lambda found: found[::-1]),
}


@pytest.mark.parametrize("name", [*USELESS, *FALSE])
async def test_a_false_answer_to_a_swap_costs_nothing(
    wallet: Wallet, server: MintServer, name: str
) -> None:
    server.twists["/v1/swap"] = (USELESS | FALSE)[name]
    tracemalloc.start()
    try:
        async with asyncio.timeout(SOON_S):
            with pytest.raises(WalletFailed) as refused:
                await wallet.take_out("op", server.url, 21)
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < MOST_BYTES
    assert refused.value.may_retry
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500
    assert sum(wallet.balance()[server.url]) == 64
    server.twists.clear()
    proofs = await wallet.take_out("op", server.url, 21)
    assert sum(proof.amount for proof in proofs) == 21
    assert await worth(wallet, server.url) == 64 - 21


@pytest.mark.parametrize("name", ["endless", "one too few", "no point", "other amounts"])
async def test_a_mint_that_lies_of_what_it_did_is_asked_again(
    wallet: Wallet, server: MintServer, name: str
) -> None:
    """The answer is lost, and so are the answers to all that would tell."""
    for path in ("/v1/swap", "/v1/restore", "/v1/checkstate"):
        server.twists[path] = (USELESS | FALSE)[name]
    for _ in range(3):
        with pytest.raises(WalletFailed) as refused:
            await wallet.take_out("op", server.url, 21)
        assert refused.value.may_retry
        assert wallet.balance()[server.url] == (0, 64)
    server.twists.clear()
    await wallet.resume()
    assert sum(p.amount for p in await wallet.take_out("op", server.url, 21)) == 21
    assert await worth(wallet, server.url) == 64 - 21


@pytest.mark.parametrize("name", ["drip", "one too many", "no point", "other amounts", "{}"])
async def test_new_money_that_is_none_comes_when_it_is(
    wallet: Wallet, server: MintServer, name: str
) -> None:
    for path in ("/v1/mint/bolt11", "/v1/restore"):
        server.twists[path] = (USELESS | FALSE)[name]
    await wallet.fund("in", server.url, 10)
    for _ in range(2):
        assert not await wallet.funded("in")
    server.twists.clear()
    assert await wallet.funded("in")
    assert await worth(wallet, server.url) == 74


@pytest.mark.parametrize("name", ["drip", "cut", "7"])
async def test_a_payment_without_an_answer_is_paid_once(
    wallet: Wallet, server: MintServer, name: str
) -> None:
    server.twists["/v1/melt/bolt11"] = USELESS[name]
    with pytest.raises(WalletFailed):
        await wallet.melt("pay", server.url, invoice(20))
    assert sum(wallet.balance()[server.url]) == 64
    server.twists.clear()
    assert (await wallet.melt("pay", server.url, invoice(20))).amount == 20
    assert await worth(wallet, server.url) == 64 - 20 - 1
    assert server.mint.calls.count("POST /v1/melt/bolt11") == 1


async def test_change_that_nobody_asked_for_is_nobodys(wallet: Wallet, server: MintServer) -> None:
    server.mint.reserve = server.mint.paid_fee = 0
    change = [{"id": server.mint.keyset.id, "amount": 1, "C_": OTHER_POINT}]
    server.twists["/v1/melt/bolt11"] = json_of(lambda answer: answer | {"change": change})
    paid = await wallet.melt("pay", server.url, invoice(64))
    assert (paid.amount, paid.fee) == (64, 0)
    assert await worth(wallet, server.url) == 0


async def test_a_mint_is_taken_at_its_word_that_it_was_too_busy_and_words_mend_a_lie(
    wallet: Wallet, server: MintServer
) -> None:
    server.twists["/v1/swap"] = said("{}", 429, Retry_After="1000000000")
    with pytest.raises(WalletFailed, match="about 600 s") as busy:
        await wallet.take_out("op", server.url, 21)
    assert busy.value.may_retry
    assert wallet.balance()[server.url] == (64, 0)
    server.twists.clear()
    with pytest.raises(WalletFailed, match="spent"):
        await wallet.take_out("op", server.url, 21)
    [report] = await wallet.restore()
    assert (report.found, report.good) == (64, 64)


@pytest.mark.parametrize(
    "lie",
    [
        {"amount": 60, "fee_reserve": 2},
        {"amount": 21},
        {"fee_reserve": 3},
        {"fee_reserve": -1},
        {"amount": -20},
        {"state": "PERHAPS"},
        {"quote": ""},
        {"quote": "x" * 1000},
    ],
)
async def test_a_payment_that_would_cost_more_than_it_may_is_not_made(
    wallet: Wallet, server: MintServer, lie: dict[str, Any]
) -> None:
    server.twists["/v1/melt/quote/bolt11"] = json_of(lambda answer: answer | lie)
    with pytest.raises(NostrvpnError):
        await wallet.melt("pay", server.url, invoice(20), max_fee=2)
    assert "POST /v1/melt/bolt11" not in server.mint.calls
    assert wallet.balance()[server.url] == (64, 0)


# -- what it says of itself


def keysets(**fields: Any) -> Twist:
    return json_of(lambda answer: {"keysets": [one | fields for one in answer["keysets"]]})


def keys(change: Callable[[dict[str, str]], dict[str, str]]) -> Twist:
    return json_of(
        lambda answer: {
            "keysets": [one | {"keys": change(one["keys"])} for one in answer["keysets"]]
        }
    )


def others(count: int) -> Twist:
    """So many keysets more, each of which must be asked for."""
    more = [{"id": "00" + f"{n:014x}", "unit": "sat", "active": True} for n in range(count)]
    return json_of(lambda answer: {"keysets": [*answer["keysets"], *more]})


async def slowly(_request: web.Request, answer: Any) -> web.StreamResponse:
    await asyncio.sleep(0.3)
    return web.json_response(answer)


LIES: dict[str, tuple[str, Twist]] = {
    **{f"info: {name}": ("/v1/info", twist) for name, twist in USELESS.items()},
    **{f"keysets: {name}": ("/v1/keysets", twist) for name, twist in USELESS.items()},
    "a fee below nothing": ("/v1/keysets", keysets(input_fee_ppk=-1)),
    "a fee beyond all": ("/v1/keysets", keysets(input_fee_ppk=1 << 60)),
    "a fee that is not that of the name": ("/v1/keysets", keysets(input_fee_ppk=7)),
    "another name": ("/v1/keysets", keysets(id="01" + "ab" * 32)),
    "too many keysets": ("/v1/keysets", others(1001)),
    "keysets that are not there": ("/v1/keysets", others(3)),
    "100,000 keys": ("/v1/keys/", keys(lambda k: {str(n + 1): k["1"] for n in range(100_000)})),
    "15,000 keys": ("/v1/keys/", keys(lambda k: {str(n + 1): k["1"] for n in range(15_000)})),
    "65 keys": ("/v1/keys/", keys(lambda k: {str(n + 1): k["1"] for n in range(65)})),
    "no keys": ("/v1/keys/", keys(lambda k: {})),
    "keys of another name": ("/v1/keys/", keys(lambda k: k | {"1": k["2"]})),
    "no points": ("/v1/keys/", keys(lambda k: dict.fromkeys(k, NO_POINT))),
    "a key for less than nothing": ("/v1/keys/", keys(lambda k: k | {"-1": k["1"]})),
}


@pytest.mark.parametrize("name", LIES)
async def test_a_mint_that_lies_of_itself_is_not_trusted(
    room: Room, server: MintServer, name: str
) -> None:
    path, twist = LIES[name]
    server.twists[path] = twist
    alice = room.wallet("alice")
    tracemalloc.start()
    try:
        async with asyncio.timeout(SOON_S):
            with pytest.raises(NostrvpnError) as refused:
                await alice.trust(server.url)
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < MOST_BYTES
    assert len(str(refused.value)) < 500
    assert alice.mints.urls() == ()


async def test_a_mint_that_only_others_named_is_asked_nothing(wallet: Wallet) -> None:
    """Quotes, offers and tokens name mints; whoever asks one of those shows itself, and to whom?"""
    async with mint_server() as other:
        url, money = other.url, other.mint.issue([4, 8])
        key = lock_key(bytes(31) + b"\x07")
        asked: list[Callable[[], Awaitable[object]]] = [
            lambda: wallet.redeem("1", url, money),
            lambda: wallet.reclaim("2", url, money, 0),
            lambda: wallet.receive(render_token(Token(url, money))),
            lambda: wallet.take_out("3", url, 1),
            lambda: wallet.lock("4", url, [1], key, 2_000_000_000, key),
            lambda: wallet.give_back("5", url, 1, key),
            lambda: wallet.fund("6", url, 1),
            lambda: wallet.melt("7", url, invoice(1)),
            lambda: wallet.keys(url),
        ]
        for ask in asked:
            with pytest.raises(wallet_mints.UnknownMint):
                await ask()
        assert other.mint.calls == []


async def test_keys_that_come_one_after_another_for_ever_are_not_waited_for(
    room: Room, server: MintServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wallet_mints, "KEYS_S", 1.0)
    for _ in range(9):
        server.mint.rotate()
    server.twists["/v1/keys/"] = slowly
    begun = time.monotonic()
    with pytest.raises(NostrvpnError, match="in time"):
        await room.wallet("alice").trust(server.url)
    assert time.monotonic() - begun < 2.5


async def test_a_mint_that_makes_ever_new_keys_fills_no_disk(
    wallet: Wallet, server: MintServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wallet_mints, "MAX_KNOWN", 5)
    for _ in range(9):
        server.mint.rotate()
    await wallet.mints.keys(server.url, fresh=True)
    assert len(wallet.mints.known(server.url).keysets) == 5
    assert await worth(wallet, server.url) == 64


async def test_a_mint_that_says_to_have_signed_everything_ends_the_search(
    room: Room, server: MintServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wallet_errands, "MAX_FOUND", 250)

    async def signs_all(request: web.Request, _answer: Any) -> web.StreamResponse:
        outputs = (await request.json())["outputs"]
        signed = {"C_": OTHER_POINT, "amount": 1}
        found = [{"id": one["id"]} | signed for one in outputs]
        return web.json_response({"outputs": outputs, "signatures": found})

    server.twists["/v1/restore"] = signs_all
    alice = room.wallet("alice")
    with pytest.raises(NostrvpnError, match="all there could be"):
        await alice.trust(server.url)
    monkeypatch.setattr(wallet_errands, "MAX_FOUND", 10_000)
    monkeypatch.setattr(wallet_errands, "MAX_NUMBERS", 250)
    server.twists["/v1/checkstate"] = json_of(
        lambda answer: {"states": [one | {"state": "SPENT"} for one in answer["states"]]}
    )
    [report] = await alice.restore()
    assert "all there could be" in report.error
    assert sum(alice.balance()[server.url]) == 0


async def test_keys_for_few_amounts_end_no_upkeep(
    room: Room, wallet: Wallet, server: MintServer
) -> None:
    """What the mint has no keys for cannot be asked for: that operation waits, and no other."""
    async with mint_server() as other:
        await wallet.trust(other.url)
        await wallet.fund("in", other.url, 10)
        few = {amount: key for amount, key in other.mint.keyset.keys.items() if amount < 8}
        known = wallet.mints._known[other.url]
        object.__setattr__(known.keysets[other.mint.keyset.id], "keys", few)
        wallet.start()
        with pytest.raises(NostrvpnError, match="no key for 8"):
            await wallet.redeem("mine", other.url, other.mint.issue([4, 4]))
        assert not await wallet.funded("in")
        # And at the other mint everything goes on.
        await wallet.fund("more", server.url, 6)
        async with asyncio.timeout(10):
            while sum(wallet.balance()[server.url]) < 70:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await wallet.stop()


async def test_what_nobody_foresaw_of_one_operation_keeps_no_other_open(
    wallet: Wallet, server: MintServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = wallet._spending.resume

    async def resume(operation: Operation) -> Operation:
        if operation.ref == "a":
            raise KeyError("unforeseen")
        return await honest(operation)

    monkeypatch.setattr(wallet._spending, "resume", resume)
    for ref in "ab":
        await wallet.fund(ref, server.url, 10)
    await wallet.resume()
    assert list(wallet.book.open) == ["a"]
    monkeypatch.undo()
    await wallet.resume()
    assert await worth(wallet, server.url) == 84


# -- a mint that says nothing


async def test_one_that_hangs_keeps_nobody_waiting_for_another(
    room: Room, wallet: Wallet, server: MintServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mint_module, "TIMEOUT_S", 30.0)
    async with mint_server() as other:
        await wallet.trust(other.url)
        await wallet.fund("a", other.url, 10)
        await wallet.fund("b", server.url, 10)
        other.twists["/v1/"] = other.hang
        wallet.start()
        async with asyncio.timeout(10):
            await other.hung.wait()
            while sum(wallet.balance()[server.url]) < 74:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await wallet.stop()


async def test_one_that_hangs_does_not_delay_the_end_and_loses_nothing(
    room: Room, wallet: Wallet, server: MintServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mint_module, "TIMEOUT_S", 30.0)
    await wallet.fund("in", server.url, 10)
    server.twists["/v1/"] = server.hang
    wallet.start()
    asked = [
        asyncio.create_task(wallet.take_out("out", server.url, 21)),
        asyncio.create_task(wallet.melt("pay", server.url, invoice(5))),
    ]
    async with asyncio.timeout(10):
        while server.mint.calls.count("POST /v1/swap") < 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    begun = time.monotonic()
    await wallet.stop()
    assert not [task for task in asyncio.all_tasks() if "wallet's" in task.get_name()]
    # Nobody waits on: who asked is told.
    done, waiting = await asyncio.wait(asked, timeout=2.0)
    assert time.monotonic() - begun < 2.0
    assert not waiting
    assert all(isinstance(one.exception(), WalletFailed) for one in done)
    server.twists.clear()
    again = room.wallet("alice")
    again.start()
    async with asyncio.timeout(10):
        while again.book.open:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert sum(p.amount for p in await again.take_out("out", server.url, 21)) == 21
    assert await worth(again, server.url) == 64 + 10 - 21
    await again.stop()
