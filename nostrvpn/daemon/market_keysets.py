"""What mints sign with, asked of all at once: a mint that hangs keeps nobody waiting for another's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from nostrvpn.cashu.proof import MintKeys
from nostrvpn.errors import NostrvpnError

if TYPE_CHECKING:
    from nostrvpn.daemon.wallet import Wallet

__all__ = ["Keysets"]

# For how long mints are waited for (seconds): one that hangs costs its client's 20.
PATIENCE_S: Final = 2.0
# So many are asked at a time.
AT_ONCE: Final = 8

_log = logging.getLogger("nostrvpn.market")


class Keysets:
    """``came_late`` is called when a mint answered that was not waited for."""

    def __init__(self, wallet: Wallet, came_late: Callable[[], None]) -> None:
        self._wallet, self._came_late = wallet, came_late
        self._room = asyncio.Semaphore(AT_ONCE)
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._late: set[str] = set()

    async def of(self, mints: Collection[str], stale: Collection[str] = ()) -> dict[str, MintKeys]:
        """Return the keysets of trusted mints, of the last hour where they answer in time.

        What was known before does for a mint that does not. ``stale`` are asked in any case.
        """
        for mint in set(mints) - self._asking.keys():
            task = asyncio.create_task(self._ask(mint, mint in stale), name=f"keysets of {mint}")
            self._asking[mint] = task
        asked = {self._asking[mint]: mint for mint in set(mints)}
        if asked:
            _, late = await asyncio.wait(asked, timeout=PATIENCE_S)
            self._late |= {asked[task] for task in late}
        found = {}
        for mint in asked.values():
            with suppress(NostrvpnError):  # trusted no more
                found[mint] = self._wallet.mints.known(mint)
        return found

    async def stop(self) -> None:
        """Ask no more."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, mint: str, is_stale: bool) -> None:
        try:
            async with self._room:
                before = self._wallet.mints.known(mint)
                after = await self._wallet.mints.keys(mint, fresh=is_stale)
        except NostrvpnError as exc:
            _log.info("the keysets of %s: %s", mint, exc)
        else:
            if mint in self._late and after != before:
                self._came_late()
        finally:
            self._late.discard(mint)
            self._asking.pop(mint, None)
