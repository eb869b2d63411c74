"""The disk is full while the wallet works: one clear error, nothing lost, and it goes on with room."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nostrvpn.cashu.conditions import lock_key
from nostrvpn.daemon.wallet import Wallet
from nostrvpn.daemon.wallet_answers import WalletFailed
from nostrvpn.errors import SystemRefused
from tests.conftest import require_root
from tests.contract.mint_room import Faults, Room, new_ref, worth
from tests.contract.mint_server import MintServer, mint_server
from tests.invoices import make_invoice

INVOICE = make_invoice(20_000, "ab" * 32, 1_700_000_000, 3600)
KEY = bytes(31) + b"\x07"
pytestmark = pytest.mark.timeout(60)


class Full(Faults):
    """No write is possible from the ``first`` on, as long as it is not None."""

    def __init__(self, first: int | None) -> None:
        super().__init__()
        self.first, self.writes = first, 0

    def pass_by(self, what: str) -> None:
        if what != "before a write":
            return
        self.writes += 1
        if self.first is not None and self.writes > self.first:
            raise SystemRefused("the disk is full")


@pytest.fixture
async def server() -> AsyncIterator[MintServer]:
    async with mint_server() as made:
        yield made


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    made = Room(tmp_path)
    yield made
    await made.close()


async def _swap(wallet: Wallet, mint: str) -> int:
    return sum(p.amount for p in await wallet.take_out("op", mint, 21))


async def _hand_out(wallet: Wallet, mint: str) -> int:
    return sum(p.amount for p in await wallet.take_out("op", mint, 64))


async def _lock(wallet: Wallet, mint: str) -> int:
    key = lock_key(KEY)
    proofs = await wallet.lock("op", mint, [4, 1], key, 2_000_000_000, key)
    return sum(p.amount for p in proofs)


async def _redeem(wallet: Wallet, mint: str) -> int:
    proofs = await wallet.take_out("before", mint, 33)
    await wallet.redeem("op", mint, proofs)
    return 0


async def _fund(wallet: Wallet, mint: str) -> int:
    await wallet.fund("op", mint, 10)
    if not await wallet.funded("op"):
        raise WalletFailed("not yet", may_retry=True)
    return -10


async def _melt(wallet: Wallet, mint: str) -> int:
    paid = await wallet.melt("op", mint, INVOICE)
    return paid.amount + paid.fee


OPERATIONS: dict[str, Callable[[Wallet, str], Awaitable[int]]] = {
    "swap": _swap,
    "hand out": _hand_out,
    "lock": _lock,
    "redeem": _redeem,
    "fund": _fund,
    "melt": _melt,
}


@pytest.mark.parametrize("kind", OPERATIONS)
async def test_a_disk_that_is_full_from_any_write_on_loses_nothing(
    room: Room, server: MintServer, kind: str
) -> None:
    operation = OPERATIONS[kind]
    await room.funded("counted", server.url, 64)
    counting = Full(None)
    wallet = room.wallet("counted", counting)
    spent = await operation(wallet, server.url)
    writes = counting.writes
    assert writes > 0
    assert await worth(wallet, server.url) == 64 - spent
    for first in range(writes):
        name = f"full from {first}"
        await room.funded(name, server.url, 64)
        disk = Full(first)
        wallet = room.wallet(name, disk)
        for _ in range(2):
            with pytest.raises(SystemRefused, match="full"):
                await operation(wallet, server.url)
            await wallet.resume()
        assert sum(wallet.balance()[server.url]) <= 64 + 10
        disk.first = None  # there is room again
        await wallet.resume()
        assert await operation(wallet, server.url) == spent, name
        assert await worth(wallet, server.url) == 64 - spent, name
        assert not wallet.book.open
        room.leave(name)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Half a megabyte, on which the wallet of alice is."""
    require_root()
    place = tmp_path / "alice"
    place.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k,mode=0700", "tmpfs", str(place)]
    subprocess.run(mount, check=True, timeout=10)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True, timeout=10)


async def test_a_real_full_disk(small_disk: Path, room: Room, server: MintServer) -> None:
    wallet = await room.funded("alice", server.url, 4096)
    filler = small_disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    given, refused = 0, ""
    for number in range(500):  # the database has some room of its own
        try:
            given += sum(p.amount for p in await wallet.take_out(f"op {number}", server.url, 3))
        except SystemRefused as error:
            refused = f"{error} {error.hint}"
            break
    assert "make room on that disk" in refused
    assert "\n" not in refused
    with pytest.raises(SystemRefused):
        await wallet.fund(new_ref("fund"), server.url, 10)
    assert len(wallet.history()) == number + 1  # looking still works
    filler.unlink()
    await wallet.resume()
    given += sum(p.amount for p in await wallet.take_out(f"op {number}", server.url, 3))
    assert given == 3 * (number + 1)
    assert await worth(wallet, server.url) == 4096 - given
    room.leave("alice")
    assert await worth(room.wallet("alice"), server.url) == 4096 - given
