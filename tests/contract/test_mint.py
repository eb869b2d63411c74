"""The client of mints against a real one (Nutshell), and against servers that are none."""

from __future__ import annotations

import asyncio
import gzip
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from nostrvpn.cashu.answers import parse_info, parse_keys, parse_keysets
from nostrvpn.errors import SystemRefused
from nostrvpn.host.state import FWMARK
from nostrvpn.io import mint as mint_module
from nostrvpn.io.mint import MintBusy, MintClient, MintRefused, MintUnreachable
from nostrvpn.io.proxy import SocksProxy
from nostrvpn.lab.mint import Mint, MintSettings
from nostrvpn.lab.namespaces import Namespace

POINT = "02" + "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
QUOTE = {"amount": 8, "unit": "sat"}


@pytest.fixture(scope="module")
def mint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mint]:
    with Mint(tmp_path_factory.mktemp("mint"), settings=MintSettings(fee_ppk=100)) as mint:
        yield mint


@asynccontextmanager
async def client(url: str, proxy: SocksProxy | None = None) -> AsyncIterator[MintClient]:
    made = MintClient(url, proxy=proxy)
    try:
        yield made
    finally:
        await made.close()


async def test_a_real_mint_says_what_it_is_and_its_keys_hash_to_their_name(mint):
    async with client(mint.url) as asked:
        info = parse_info(await asked.get("/v1/info"))
        assert info.version == "Nutshell/0.21.0"
        assert info.nuts >= {4, 5, 7, 8, 9, 10, 11, 12}
        [keyset] = parse_keysets(await asked.get("/v1/keysets"))
        keys = parse_keys(await asked.get(f"/v1/keys/{keyset.id}"), keyset)
        assert (keyset.id[:2], keys.fee_ppk, len(keys.keys)) == ("01", 100, 64)


async def test_a_refusal_carries_the_mints_code(mint):
    async with client(mint.url) as asked:
        quote = await asked.post("/v1/mint/quote/bolt11", QUOTE)
        body = {"quote": quote["quote"], "outputs": [{"id": "00" * 8, "amount": 8, "B_": POINT}]}
        with pytest.raises(MintRefused) as refused:
            await asked.post("/v1/mint/bolt11", body)
        assert refused.value.number is not None
        with pytest.raises(MintRefused) as malformed:
            await asked.post("/v1/swap", {"inputs": 7})
        assert malformed.value.number is None


async def test_a_mint_that_counts_calls_says_when_it_is_enough(tmp_path):
    settings = MintSettings(per_minute=3)
    with Mint(tmp_path, host="::1", settings=settings) as mint:  # 127.0.0.1 is not counted
        async with client(mint.url) as asked:
            for _ in range(3):
                await asked.post("/v1/mint/quote/bolt11", QUOTE)
            with pytest.raises(MintBusy) as busy:
                await asked.post("/v1/mint/quote/bolt11", QUOTE)
            assert 0 < busy.value.retry_after_s <= 600


async def test_a_request_that_never_left_is_told_from_one_that_may_have_arrived(monkeypatch):
    monkeypatch.setattr(mint_module, "TIMEOUT_S", 0.3)
    with closing(socket.socket()) as dead:
        dead.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{dead.getsockname()[1]}"
        async with client(url) as asked:
            with pytest.raises(MintUnreachable) as nobody:
                await asked.post("/v1/swap", {})
        assert not nobody.value.may_have_arrived
        dead.listen(1)
        async with client(url) as asked:
            with pytest.raises(MintUnreachable, match="in time") as silent:
                await asked.post("/v1/swap", {})
        assert silent.value.may_have_arrived


Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A web server that says the same to everybody, and what it was asked."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        writer.close()

    made = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{made.sockets[0].getsockname()[1]}", asked
    finally:
        made.close()


def http(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        ("200 OK", b"<html>", MintUnreachable, "no JSON"),
        ("502 Bad Gateway", b"{}", MintUnreachable, "502"),
        ("500 Oops", b'{"detail": "Internal\\u001b[31m"}', MintUnreachable, r"500: Internal \[31m"),
        (
            "400 Bad Request",
            b'{"detail": "spent", "code": 11001}',
            MintRefused,
            "spent .code 11001",
        ),
        ("503 Busy", b"", MintUnreachable, "no JSON"),
        ("200 OK", b" " * (2 * 1024 * 1024 + 1), MintUnreachable, "more than"),
        ("200 OK", b"[" * 100_000, MintUnreachable, "no JSON"),
    ],
)
async def test_answers_of_what_is_no_mint(status, body, kind, words):
    async with server(http(status, body)) as (url, _), client(url) as asked:
        with pytest.raises(kind, match=words):
            await asked.get("/v1/info")


async def test_nothing_compressed_is_asked_for_or_taken():
    """Of a small answer nobody knows how large it is."""
    packed = gzip.compress(b'{"name": "a mint"}')
    async with server(http("200 OK", packed, "Content-Encoding: gzip")) as (url, heard):
        async with client(url) as asked:
            with pytest.raises(MintUnreachable, match="no JSON"):
                await asked.get("/v1/info")
        assert b"Accept-Encoding: identity\r\n" in heard[0]


async def test_a_busy_mint_is_believed_up_to_a_limit():
    for text, seconds in (("7", 7.0), ("99999", 600.0), ("soon", 20.0)):
        answer = http("429 Too Many", b"{}", f"Retry-After: {text}")
        async with server(answer) as (url, _), client(url) as asked:
            with pytest.raises(MintBusy) as busy:
                await asked.get("/v1/info")
            assert busy.value.retry_after_s == seconds


async def test_nobody_is_led_to_another_host():
    async with server(http("200 OK", b"{}")) as (elsewhere, asked_there):
        answer = http("307 Moved", b"{}", f"Location: {elsewhere}/v1/swap")
        async with server(answer) as (url, _), client(url) as asked:
            with pytest.raises(MintUnreachable, match="307"):
                await asked.post("/v1/swap", {"inputs": ["money"]})
        assert not asked_there


async def test_packets_carry_our_mark_so_that_paying_does_not_depend_on_the_exit(mint, monkeypatch):
    made: list[socket.socket] = []

    class Watched(socket.socket):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr("nostrvpn.io.http_way.socket.socket", Watched)
    async with client(mint.url) as asked:
        await asked.get("/v1/info")
        assert [one.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) for one in made] == [FWMARK]


@pytest.mark.skipif(shutil.which("microsocks") is None, reason="needs the package microsocks")
async def test_through_a_proxy_and_only_through_it(mint):
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with client(mint.url, SocksProxy("127.0.0.1", port)) as asked:
        with pytest.raises(MintUnreachable, match="proxy") as down:
            await asked.get("/v1/info")
        assert not down.value.may_have_arrived
        process = await asyncio.create_subprocess_exec(
            "microsocks", "-i", "127.0.0.1", "-p", str(port), stderr=asyncio.subprocess.DEVNULL
        )
        try:
            async with asyncio.timeout(10):
                while True:
                    try:
                        assert parse_info(await asked.get("/v1/info")).version
                        break
                    except MintUnreachable:
                        await asyncio.sleep(0.05)
        finally:
            process.kill()
            await process.wait()


def test_a_mint_in_a_namespace_keeps_its_money_over_a_crash(make_netns, tmp_path):
    netns = make_netns()
    namespace = Namespace(netns.name)
    with Mint(tmp_path, namespace=namespace) as mint:
        before = mint.info()["pubkey"]
        mint.kill()
        assert mint.info() is None
        mint.start()
        assert mint.info()["pubkey"] == before
        assert (tmp_path / "db").exists()


def test_a_mint_that_cannot_start_says_why(tmp_path, monkeypatch):
    with pytest.raises(SystemRefused, match="ended early"):
        Mint(tmp_path, settings=MintSettings(seed="")).start()
    monkeypatch.setenv("NOSTRVPN_MINT", str(Path(tmp_path, "none")))
    with pytest.raises(SystemRefused, match="no mint"):
        Mint(tmp_path).start()
