"""Counting the reconciler's rounds, so that an answer can wait until what it tells of is in force."""

from __future__ import annotations

import asyncio

__all__ = ["Rounds"]

# A round takes some 50 ms; with a thousand members, and nft at work, a second. The client waits 30 s.
APPLY_WAIT_S = 5.0


class Rounds:
    """``ask`` for a round, ``begin`` and ``end`` it, wait until all that was asked is ``applied``."""

    def __init__(self) -> None:
        self._asked = self._done = 0
        self._is_applied = True
        self._over = asyncio.Event()

    def ask(self) -> None:
        """Count a wish for a round; one that begins later has it."""
        self._asked += 1

    def begin(self) -> int:
        """Return what the round that begins now will have done, for ``end``."""
        return self._asked

    def end(self, number: int, *, is_applied: bool) -> None:
        """Note how a round ended: whether the kernel is as was desired when it began."""
        self._done, self._is_applied = number, is_applied
        over, self._over = self._over, asyncio.Event()
        over.set()

    async def applied(self) -> bool:
        """Wait, for some seconds at most, until what was asked so far is done; say whether it is."""
        wanted = self._asked
        try:
            async with asyncio.timeout(APPLY_WAIT_S):
                while self._done < wanted:
                    await self._over.wait()
        except TimeoutError:
            return False
        return self._is_applied
