"""A process that spends until it is killed: ``python -m … DIRECTORY MINT``."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from pathlib import Path

from tests.contract.mint_room import Room


async def spend(directory: Path, mint: str) -> None:
    wallet = Room(directory).wallet("victim")
    await wallet.keys(mint)
    sys.stdout.write("ready\n")
    sys.stdout.flush()

    async def forever(name: str) -> None:
        for number in itertools.count():
            await wallet.take_out(f"{os.getpid()} {name} {number}", mint, 1 + number % 3)

    await asyncio.gather(*(forever(name) for name in "abc"))


if __name__ == "__main__":
    asyncio.run(spend(Path(sys.argv[1]), sys.argv[2]))
