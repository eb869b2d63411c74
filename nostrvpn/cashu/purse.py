"""What a wallet owns and what it is about, as values: proofs, and operations with a mint.

An operation is written down whole before its request leaves: what goes in, and every secret of what is
to come out. So whatever was lost on the way (the answer, this process) can be asked for again, and an
operation is either undone or done, never half.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from nostrvpn.cashu.operations import Output, Outputs
from nostrvpn.cashu.proof import Proof
from nostrvpn.cashu.wire import parse_proof, proof_dict
from nostrvpn.errors import UserError

__all__ = ["DONE", "FAILED", "OPEN", "Held", "NotEnough", "Operation", "Purse"]

OPEN: Final = "open"
DONE: Final = "done"
FAILED: Final = "failed"

Changes = dict[str, "Held | None"]


class NotEnough(UserError):
    """The wallet has too little at this mint."""

    code = "not_enough"


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing a wallet does, under a name (``ref``) by which it is done once.

    ``kind``: what it is for (``send``, ``redeem``, ``melt`` …); ``at``: Unix time; ``amount`` and
    ``fee`` in the unit of the mint. The first ``leaving`` of ``outputs`` are for somebody else, and are
    in ``given`` when it is done; ``numbers`` are those that the wallet's seed made outputs from, first
    and first unused. ``quote``: the mint's name of an invoice, good until ``expires``;
    ``note``: the invoice, a preimage, or why it failed.
    """

    ref: str
    kind: str
    mint: str
    at: int
    amount: int
    state: str = OPEN
    fee: int = 0
    inputs: tuple[Proof, ...] = ()
    outputs: Outputs = ()
    leaving: int = 0
    numbers: tuple[int, int] = (0, 0)
    given: tuple[Proof, ...] = ()
    quote: str = ""
    expires: int = 0
    note: str = field(default="", repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return it for the database; ``Operation.from_json`` reads it."""
        return {
            "kind": self.kind,
            "mint": self.mint,
            "at": self.at,
            "amount": self.amount,
            "state": self.state,
            "fee": self.fee,
            "inputs": [proof_dict(proof, dleq=True) for proof in self.inputs],
            "outputs": [[o.keyset_id, o.amount, o.b, o.secret, o.r.hex()] for o in self.outputs],
            "leaving": self.leaving,
            "numbers": list(self.numbers),
            "given": [proof_dict(proof, dleq=True) for proof in self.given],
            "quote": self.quote,
            "expires": self.expires,
            "note": self.note,
        }

    @classmethod
    def from_json(cls, ref: str, value: Any) -> Operation:
        """Read what ``to_json`` gave."""
        given = dict(value)
        for name in ("inputs", "given"):
            given[name] = tuple(map(parse_proof, given[name]))
        given["outputs"] = tuple(
            Output(keyset_id, amount, b, secret, bytes.fromhex(r))
            for keyset_id, amount, b, secret, r in given["outputs"]
        )
        given["numbers"] = tuple(given["numbers"])
        return cls(ref=ref, **given)


@dataclass(frozen=True, slots=True)
class Held:
    """A proof of ours; ``taken_by``: the operation that is about to spend it, or empty."""

    mint: str
    proof: Proof
    taken_by: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it for the database; ``from_json`` reads it."""
        return {
            "mint": self.mint,
            "proof": proof_dict(self.proof, dleq=True),
            "taken_by": self.taken_by,
        }

    @classmethod
    def from_json(cls, value: Any) -> Held:
        """Read what ``to_json`` gave."""
        return cls(value["mint"], parse_proof(value["proof"]), value["taken_by"])


class Purse:
    """The proofs of a wallet, by their secrets; each is free, or taken by one operation.

    What changes is computed first (``adding``, ``taking`` …: by secret, what is held then or None), so
    that it can be stored, and happens with ``apply``.
    """

    def __init__(self, stored: Mapping[str, object]) -> None:
        self._held = {secret: Held.from_json(value) for secret, value in stored.items()}

    def proofs(self, mint: str, *, is_free: bool = True) -> tuple[Proof, ...]:
        """Return the proofs at a mint that are free, or those that are taken."""
        return tuple(
            held.proof
            for held in self._held.values()
            if held.mint == mint and (not held.taken_by) == is_free
        )

    def balance(self, mint: str) -> tuple[int, int]:
        """Return what is free and what is taken, in the mint's unit."""
        free, taken = self.proofs(mint), self.proofs(mint, is_free=False)
        return sum(p.amount for p in free), sum(p.amount for p in taken)

    def mints(self) -> set[str]:
        """Return the mints that any proof is from."""
        return {held.mint for held in self._held.values()}

    def has(self, proof: Proof) -> bool:
        """Whether the proof is one of ours, free or taken."""
        return proof.secret in self._held

    def is_taken(self, proof: Proof) -> bool:
        """Whether an operation is about to spend this proof of ours."""
        held = self._held.get(proof.secret)
        return held is not None and bool(held.taken_by)

    def adding(self, mint: str, proofs: Iterable[Proof]) -> Changes:
        """Return the change that takes in proofs; those that are there already stay as they are."""
        return {
            proof.secret: Held(mint, proof) for proof in proofs if proof.secret not in self._held
        }

    def taking(self, proofs: Iterable[Proof], ref: str) -> Changes:
        """Return the change that reserves free proofs for an operation; others are left alone."""
        found = [self._held[proof.secret] for proof in proofs if proof.secret in self._held]
        assert not any(held.taken_by for held in found), "a proof for two operations"
        return {held.proof.secret: Held(held.mint, held.proof, ref) for held in found}

    def freeing(self, ref: str) -> Changes:
        """Return the change that gives back what an operation reserved and did not spend."""
        return {
            secret: Held(held.mint, held.proof)
            for secret, held in self._held.items()
            if held.taken_by == ref
        }

    def removing(self, proofs: Iterable[Proof]) -> Changes:
        """Return the change that forgets spent proofs; nothing for those that are not ours."""
        return {proof.secret: None for proof in proofs if proof.secret in self._held}

    def apply(self, changes: Changes) -> None:
        """Make a change."""
        for secret, held in changes.items():
            if held is None:
                self._held.pop(secret, None)
            else:
                self._held[secret] = held
