"""What a Cashu wallet holds and a mint signs, as values (NUT-00, NUT-02, NUT-12)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["BlindSignature", "BlindedMessage", "Dleq", "Keyset", "MintKeys", "Proof"]


@dataclass(frozen=True, slots=True)
class Dleq:
    """That a signature was made with the mint's published key (NUT-12); each 64 hex digits.

    ``r``, the blinding factor, is there once the signature was unblinded for somebody else to check.
    """

    e: str
    s: str
    r: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Proof:
    """Money: whoever shows it first to the mint has it (NUT-00).

    ``amount`` in the keyset's unit; ``c``: the unblinded signature, 66 hex digits; ``witness``: what a
    spending condition asks for, as JSON, or empty.
    """

    keyset_id: str
    amount: int
    secret: str = field(repr=False)
    c: str = field(repr=False)
    dleq: Dleq | None = None
    witness: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class BlindedMessage:
    """An output that a mint is asked to sign; ``b``: the point B_, 66 hex digits."""

    keyset_id: str
    amount: int
    b: str


@dataclass(frozen=True, slots=True)
class BlindSignature:
    """A mint's answer to a :class:`BlindedMessage`; ``c``: the point C_, 66 hex digits."""

    keyset_id: str
    amount: int
    c: str
    dleq: Dleq | None = None


@dataclass(frozen=True, slots=True)
class Keyset:
    """A mint's keys of one unit, by amount (NUT-01, NUT-02).

    ``fee_ppk``: thousandths of the unit for each input; ``final_expiry``: Unix time, after which its
    proofs are worth nothing, or None.
    """

    id: str
    unit: str
    is_active: bool
    fee_ppk: int
    keys: Mapping[int, str]
    final_expiry: int | None = None


@dataclass(frozen=True, slots=True)
class MintKeys:
    """What is known of a mint: its URL, and its keysets by id."""

    url: str
    keysets: Mapping[str, Keyset]

    def active(self, unit: str = "sat") -> tuple[Keyset, ...]:
        """Return the keysets that still sign, the cheapest first."""
        found = [k for k in self.keysets.values() if k.is_active and k.unit == unit]
        return tuple(sorted(found, key=lambda k: (k.fee_ppk, k.id)))
