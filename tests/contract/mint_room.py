"""What the tests of mint and wallet share: wallets on disk, and clients that fail on demand."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nostrvpn.cashu.answers import ProofState
from nostrvpn.cashu.proof import MintKeys, Proof
from nostrvpn.daemon.wallet import Wallet
from nostrvpn.io.mint import MintClient
from nostrvpn.io.store import Store
from nostrvpn.lab.mint import Mint, MintSettings

_refs = itertools.count()


@contextmanager
def two_mints(place: Path) -> Iterator[tuple[Mint, Mint]]:
    """Run a mint that is ours, and one whose invoices we pay."""
    made = []
    for name in ("ours", "theirs"):
        (place / name).mkdir()
        made.append(Mint(place / name, settings=MintSettings(seed=name)))
    ours, theirs = made
    with ours, theirs:
        yield ours, theirs


class Crash(BaseException):
    """The process ends here: nothing of ours handles it."""


class Faults:
    """Counts the moments at which a wallet could end, and ends it at one of them.

    Each request and each write to disk is two moments: just before it, and just after it was done.
    """

    def __init__(self, crash_at: int | None = None) -> None:
        self.crash_at = crash_at
        self.moments: list[str] = []

    def pass_by(self, what: str) -> None:
        self.moments.append(what)
        if len(self.moments) - 1 == self.crash_at:
            raise Crash(what)


class FaultyClient(MintClient):
    """A client of a real mint that passes by faults; ``after`` is called when an answer has come."""

    faults: Faults | None = None
    after: Callable[[str], None] | None = None

    async def _ask(self, method: str, path: str, body: object, timeout_s: float) -> Any:
        if self.faults is not None:
            self.faults.pass_by(f"before {method} {path}")
        answer = await super()._ask(method, path, body, timeout_s)
        if self.faults is not None:
            self.faults.pass_by(f"after {method} {path}")
        if self.after is not None:
            self.after(path)
        return answer


class FaultyStore(Store):
    """A store that passes by faults."""

    faults: Faults | None = None

    def put(self, records: Any) -> None:
        if self.faults is None:
            return super().put(records)
        self.faults.pass_by("before a write")
        super().put(records)
        return self.faults.pass_by("after a write")


class Room:
    """Wallets with their databases in one directory, by name; each name has words of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.open_wallets: dict[str, tuple[Wallet, Store]] = {}
        self.keys: dict[str, bytes] = {}
        self._left: list[Wallet] = []
        self._known: dict[str, MintKeys] = {}

    def wallet(self, name: str, faults: Faults | None = None, *, words_of: str = "") -> Wallet:
        """Open the wallet of this name on its database, as a new process would."""
        self.leave(name)
        path = self.directory / name / "market.db"
        store = FaultyStore.open(str(path), backup_spaces=("counter", "mint"))
        assert isinstance(store, FaultyStore)
        entropy = hashlib.sha256(
            str(self.directory).encode() + (words_of or name).encode()
        ).digest()
        store.faults = None

        def connect(url: str) -> MintClient:
            client = FaultyClient(url)
            client.faults = faults
            return client

        wallet = Wallet(store, entropy[:16], connect=connect, key_of=self.keys.get)
        store.faults = faults
        self.open_wallets[name] = (wallet, store)
        return wallet

    async def funded(self, name: str, mint: str, amount: int) -> Wallet:
        """Open a wallet and mint so much for it."""
        wallet = self.wallet(name)
        if mint in self._known:  # new words own nothing there: spare the search
            wallet.mints._keep(mint, self._known[mint])
        else:
            await wallet.trust(mint)
            self._known[mint] = wallet.mints.known(mint)
        ref = new_ref("fund")
        await wallet.fund(ref, mint, amount)
        assert await wallet.funded(ref)
        return wallet

    def leave(self, name: str) -> None:
        """Close a database, as the end of its process does; nothing is told to the wallet."""
        if name in self.open_wallets:
            wallet, store = self.open_wallets.pop(name)
            store.close()
            self._left.append(wallet)

    async def close(self) -> None:
        for name in list(self.open_wallets):
            self.leave(name)
        for wallet in self._left:
            await wallet.stop()


def new_ref(what: str) -> str:
    return f"{what}-{next(_refs)}"


async def unspent(wallet: Wallet, mint: str, proofs: tuple[Proof, ...]) -> int:
    """Return what of these proofs the mint says is unspent, in sat."""
    states = await wallet._errands.states(mint, proofs)
    return sum(p.amount for p, s in zip(proofs, states, strict=True) if s is ProofState.UNSPENT)


async def worth(wallet: Wallet, mint: str) -> int:
    """Return what the wallet has, when the mint agrees that all of it is there."""
    reports = [report for report in await wallet.recovery.check() if report.mint == mint]
    [report] = reports
    assert not report.error
    assert not report.spent, "the wallet thought that it had what it had not"
    assert not report.pending
    free, taken = wallet.balance()[mint]
    assert (free, taken) == (report.good, 0)
    return free
