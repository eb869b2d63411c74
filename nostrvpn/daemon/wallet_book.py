"""What the wallet has written down: proofs, operations, counters and history, changed together.

Every change is one transaction and on disk when the call returns; only then is it so in memory. If the
disk refuses, nothing has changed and the caller hears of it (SystemRefused).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import EllipsisType
from typing import Any, Final

from nostrvpn.cashu.proof import Proof
from nostrvpn.cashu.purse import DONE, FAILED, OPEN, Changes, Operation, Purse
from nostrvpn.io.store import Record, Store

__all__ = ["Book"]

# An operation is known by its name for so long, seconds; then its result may be asked for no more.
KEEP_OPERATIONS_S: Final = 60 * 86_400
MAX_HISTORY: Final = 10_000
# Numbers from here on make locked outputs; an old keyset's are below 2**31.
FIRST_LOCK: Final = 1 << 30
_LOCKS: Final = "+locks"


class Book:
    """The wallet's records in ``store``; ``now`` gives Unix time."""

    def __init__(self, store: Store, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._now = now
        self.purse = Purse(store.all("proof"))
        self.open: dict[str, Operation] = {}
        self._counters: dict[str, int] = {}
        for keyset_id, value in store.all("counter").items():
            assert isinstance(value, int)
            self._counters[keyset_id] = value
        self._load_operations()

    @property
    def unix(self) -> int:
        """Unix time."""
        return int(self._now())

    def counter(self, keyset_id: str) -> int:
        """Return the first number that no output of ours under this keyset was derived from."""
        return self._counters.get(keyset_id, 0)

    def lock_counter(self, keyset_id: str) -> int:
        """Return the same for locked outputs: apart, or they would be holes for who restores."""
        return self._counters.get(keyset_id + _LOCKS, FIRST_LOCK)

    def given(self) -> set[str]:
        """Return the secrets of all that was handed to others."""
        found = self._store.all("operation").values()
        return {p["secret"] for value in found if isinstance(value, dict) for p in value["given"]}

    def operation(self, ref: str) -> Operation | None:
        """Return an operation by its name, None if there is none."""
        value = self._store.get("operation", ref)
        return None if value is None else Operation.from_json(ref, value)

    def failed(self) -> list[Operation]:
        """Return the operations that were given up after their request may have left."""
        return [
            Operation.from_json(ref, value)
            for ref, value in self._store.all("operation").items()
            if isinstance(value, dict) and value["state"] == FAILED and value["outputs"]
        ]

    def begin(self, operation: Operation, locks: int = 0) -> None:
        """Write down an operation before its request leaves: inputs are taken, numbers are used.

        ``locks``: the first number for locked outputs that is unused then.
        """
        assert operation.state == OPEN
        taken = self.purse.taking(operation.inputs, operation.ref)
        counters = {}
        if operation.outputs:
            keyset_id = operation.outputs[-1].keyset_id
            counters[keyset_id] = max(operation.numbers[1], self.counter(keyset_id))
            if locks:
                counters[keyset_id + _LOCKS] = locks
        self._write(operation, taken, counters)

    def finish(self, operation: Operation, ours: Iterable[Proof] = ()) -> Operation:
        """Write down that it is done: inputs are gone, ``ours`` came in."""
        done = replace(operation, state=DONE, inputs=(), outputs=())
        changes = self.purse.removing(operation.inputs) | self.purse.adding(operation.mint, ours)
        self._write(done, changes, history=True)
        return done

    def give_up(self, operation: Operation, reason: str, spent: Iterable[Proof] = ()) -> None:
        """Write down that it did not happen: its inputs are free again, but for those that are gone.

        Its outputs are kept under another name: a request that was late may still be carried out.
        """
        changes = self.purse.freeing(operation.ref) | self.purse.removing(spent)
        failed = replace(
            operation, ref=f"{operation.ref}~{time.time_ns()}", state=FAILED, note=reason
        )
        self._write(operation, changes, instead=failed)

    def recover(self, failed: Operation, ours: Iterable[Proof]) -> None:
        """Write down that an operation that was given up has happened after all."""
        self._write(failed, self.purse.adding(failed.mint, ours), instead=None)

    def drop(self, operation: Operation) -> None:
        """Forget an operation that the mint did not carry out, for certain.

        Its numbers are used again: a restore from words ends where too many in a row are unused.
        """
        first, end = operation.numbers
        back = {}
        if operation.outputs and self.counter(operation.outputs[-1].keyset_id) == end:
            back[operation.outputs[-1].keyset_id] = first
        self._write(operation, self.purse.freeing(operation.ref), back, instead=None)

    def adopt(self, mint: str, proofs: Iterable[Proof], counters: Mapping[str, int]) -> None:
        """Take in proofs that a mint still knows, and the numbers they were derived from."""
        self._write(None, self.purse.adding(mint, proofs), counters)

    def lose(self, proofs: Iterable[Proof]) -> None:
        """Forget proofs that a mint says are spent."""
        self._write(None, self.purse.removing(proofs))

    def history(self, limit: int) -> list[dict[str, Any]]:
        """Return what was done, newest first."""
        found = [value for _, value in sorted(self._store.all("history").items(), reverse=True)]
        return [value for value in found[:limit] if isinstance(value, dict)]

    def _write(
        self,
        operation: Operation | None,
        changes: Changes,
        counters: Mapping[str, int] | None = None,
        *,
        history: bool = False,
        instead: Operation | EllipsisType | None = ...,
    ) -> None:
        records = [
            Record("proof", secret, None if held is None else held.to_json())
            for secret, held in changes.items()
        ]
        records += [Record("counter", name, number) for name, number in (counters or {}).items()]
        if instead is ...:
            instead = operation
        if operation is not None:
            records.append(Record("operation", operation.ref, None))
        if instead is not None:
            records.append(Record("operation", instead.ref, instead.to_json()))
        if history and operation is not None:
            records.append(_entry(operation, self.unix))
        self._store.put(records)
        self.purse.apply(changes)
        self._counters |= counters or {}
        if operation is not None:
            self.open.pop(operation.ref, None)
        if instead is not None and instead.state == OPEN:
            self.open[instead.ref] = instead

    def _load_operations(self) -> None:
        old = []
        for ref, value in self._store.all("operation").items():
            assert isinstance(value, dict)
            if value["state"] == OPEN:
                self.open[ref] = Operation.from_json(ref, value)
            elif value["at"] < self.unix - KEEP_OPERATIONS_S:
                old.append(ref)
        if old:
            self._store.delete("operation", *old)
        entries = sorted(self._store.all("history"))
        if len(entries) > MAX_HISTORY:
            self._store.delete("history", *entries[:-MAX_HISTORY])


def _entry(operation: Operation, at: int) -> Record:
    value = {
        "at": at,
        "kind": operation.kind,
        "mint": operation.mint,
        "amount": operation.amount,
        "fee": operation.fee,
        "ref": operation.ref,
    }
    return Record("history", f"{at:012d}.{operation.ref}", value)
