"""``nostrvpn wallet`` from the command line, through the control socket, to a real mint."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from nostrvpn.control.server import ControlServer
from nostrvpn.daemon.wallet_commands import WALLET_COMMANDS
from nostrvpn.lab.mint import Mint, MintSettings
from tests.contract.mint_room import Room

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def mint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mint]:
    settings = MintSettings(fee_ppk=100)
    with Mint(tmp_path_factory.mktemp("mint"), settings=settings) as mint:
        yield mint


class Node:
    """A wallet behind a control socket, and the command line that speaks with it."""

    def __init__(self, room: Room, name: str) -> None:
        self.wallet = room.wallet(name)
        self.runtime = room.directory / f"run-{name}"
        self.server = ControlServer(str(self.runtime / "control.sock"), self._call)

    async def _call(self, name: str, args: dict[str, object], admin: bool) -> object:
        return await WALLET_COMMANDS[name](self.wallet, args)

    async def run(self, *words: str, stdin: str = "") -> tuple[int, str, str]:
        environment = os.environ | {"NOSTRVPN_RUNTIME_DIR": str(self.runtime)}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "nostrvpn",
            "wallet",
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate(stdin.encode())
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def json(self, *words: str, stdin: str = "") -> Any:
        code, out, err = await self.run(*words, "--json", stdin=stdin)
        assert code == 0, err
        return json.loads(out)


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[tuple[Node, Node]]:
    room = Room(tmp_path)
    made = Node(room, "alice"), Node(room, "bob")
    for node in made:
        await node.server.start()
    yield made
    for node in made:
        await node.server.stop()
    await room.close()


async def test_money_goes_from_one_command_line_to_another(nodes, mint):
    alice, bob = nodes
    code, out, _ = await alice.run("balance")
    assert (code, "No mint is trusted yet" in out) == (0, True)
    assert (await alice.json("mints", "add", mint.url + "/"))["mint"] == mint.url
    await alice.wallet.fund("fund", mint.url, 300)
    assert await alice.wallet.funded("fund")
    sent = await alice.json("send", "21")
    assert (sent["amount"], sent["mint"]) == (21, mint.url)
    code, out, err = await bob.run("receive", stdin=sent["token"])
    assert (code, out) == (1, "")
    assert f"hint: to trust it: nostrvpn wallet mints add {mint.url}" in err
    received = await bob.json("receive", "--mint-ok", stdin=sent["token"] + "\n")
    assert received["amount"] + received["fee"] == 21
    code, out, _ = await alice.run("send", "--again", sent["ref"])
    assert out.strip() == sent["token"]
    history = (await alice.json("history"))["entries"]
    assert [(e["kind"], e["amount"]) for e in history] == [("send", -21), ("fund", 300)]
    checked = await alice.json("check")
    fee = sum(entry["fee"] for entry in history)
    assert checked["mints"][0]["good"] == 300 - 21 - fee
    for words in (("balance",), ("history",), ("check",), ("mints",)):
        code, out, err = await alice.run(*words)
        assert (code, err) == (0, "")
        assert mint.url in out
    code, _, err = await alice.run("mints", "remove", mint.url)
    assert (code, "money of yours" in err) == (1, True)
    code, _, err = await bob.run("send", "500")
    assert code == 1
    assert "500 sat and the mint's fee are needed" in err
    code, _, err = await bob.run("receive", "--mint-ok", stdin="cashuBnonsense")
    assert (code, err.startswith("error: this is no whole token")) == (1, True)


async def test_words_are_shown_to_a_person_and_bring_the_money_back(nodes, mint):
    alice, bob = nodes
    await alice.json("mints", "add", mint.url)
    await bob.json("mints", "add", mint.url)
    await alice.wallet.fund("fund", mint.url, 100)
    assert await alice.wallet.funded("fund")
    for words in (("backup",), ("backup", "--json")):
        code, out, err = await alice.run(*words)
        assert (code, out) == (1, "")
        assert "--show" in err
    code, out, err = await alice.run("backup", "--show")
    assert (code, len(out.split()), mint.url in err) == (0, 12, True)
    assert out.strip() == alice.wallet.words()
    code, _, err = await bob.run("restore", "--words", stdin="one two three")
    assert code == 1
    assert "three" not in err
    found = await bob.json("restore", "--words", stdin=out)
    assert found["found"] == 99  # the mint's fee for three proofs: 1 sat
    assert (await bob.json("restore"))["found"] == 0


async def test_wrong_words_are_refused_before_anything_is_asked(nodes):
    alice, _ = nodes
    for words in (("send",), ("send", "5", "--again", "x"), ("mints", "add"), ("send", "0")):
        code, out, _ = await alice.run(*words)
        assert (code, out) == (2, "")
    code, _, err = await alice.run("send", "5")
    assert (code, "no mint is trusted" in err) == (1, True)
    code, _, err = await alice.run("receive")
    assert (code, "nothing on standard input" in err) == (2, True)


@pytest.mark.parametrize("url", ["mint", "http://mint.example", "https://"])
async def test_what_is_no_mints_url_is_said_so(nodes, url):
    alice, _ = nodes
    for action in ("add", "remove"):
        code, _, err = await alice.run("mints", action, url)
        assert (code, f"{url!r} is no mint's URL" in err) == (1, True)


async def test_a_mint_that_does_not_answer_is_never_said_to_have_nothing(nodes, tmp_path):
    alice, _ = nodes
    with Mint(tmp_path / "own-mint") as own:
        await alice.json("mints", "add", own.url)
        await alice.wallet.fund("fund", own.url, 100)
        assert await alice.wallet.funded("fund")
    for command in ("check", "restore"):
        code, out, err = await alice.run(command)
        assert (code, "1 mint did not say all" in err) == (1, True)
        [row] = [line for line in out.splitlines() if own.url in line]
        assert row.split()[1:5] == ["-"] * 4
        code, out, _ = await alice.run(command, "--json")
        assert (code, own.url in json.loads(out)["mints"][0]["error"]) == (1, True)
    assert (await alice.json("balance"))["free"] == 100
    other = own.url.rpartition(":")[0] + ":9"
    code, _, err = await alice.run("mints", "add", other)
    assert (code, "it is not one of yours yet" in err) == (1, True)
