"""One payment that came in, as a record: proofs until they are swapped, Ys until they are void."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nostrvpn.cashu.conditions import parse_lock
from nostrvpn.cashu.proof import Keyset, Proof
from nostrvpn.cashu.wire import parse_proof, proof_dict
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.market.effects import Keep
from nostrvpn.market.terms import PayMode

__all__ = ["MONEY", "Money", "redeem_by"]

MONEY = "sold_money"
# A mint's clock may be so much ahead of ours, and a swap may need some tries (seconds).
REDEEM_MARGIN_S = 600
LONGEST_S = 12 * 3600


@dataclass(frozen=True, slots=True)
class Money:
    """``state``: pending (plain, being swapped), escrow (another has to sign yet), held (ours alone to
    spend, not redeemed yet), done, or lost.

    ``id`` is the payment's id, ``ys`` what the mint knows its proofs by; ``msat``: what is credited for
    it; ``due``: when it is redeemed at the latest, ``void``: when a copy of it is no longer taken by the
    check of its lock, so that its Ys need not be known (Unix time, 0 for plain). ``used``: of what is
    lost, how much was served for; None: all.
    """

    id: str
    lease_id: str
    seq: int
    mint: str
    mode: PayMode
    proofs: tuple[Proof, ...] = field(repr=False)
    ys: tuple[str, ...]
    msat: int
    due: int = 0
    void: int = 0
    state: str = "pending"
    used: int | None = None

    @property
    def face_sat(self) -> int:
        """The sum of the proofs."""
        return sum(proof.amount for proof in self.proofs)

    @property
    def ref(self) -> str:
        """The ref of the swap of a plain token."""
        return f"in:{self.lease_id}:{self.seq}:{self.id[:16]}"

    def keep(self) -> Keep:
        """Return the record, written."""
        return Keep(
            MONEY,
            self.id,
            {
                "lease": self.lease_id,
                "seq": self.seq,
                "mint": self.mint,
                "mode": self.mode.value,
                "proofs": [proof_dict(proof, dleq=False) for proof in self.proofs],
                "ys": list(self.ys),
                "msat": self.msat,
                "due": self.due,
                "void": self.void,
                "state": self.state,
                "used": self.used,
            },
        )

    @classmethod
    def from_json(cls, key: str, stored: object) -> Money:
        """Rebuild from :meth:`keep`; PeerMisbehaved if the record is damaged."""
        try:
            if not isinstance(stored, Mapping):
                raise TypeError("no record")
            values: Mapping[str, Any] = stored
            return cls(
                key,
                values["lease"],
                values["seq"],
                values["mint"],
                PayMode(values["mode"]),
                tuple(parse_proof(proof) for proof in values["proofs"]),
                tuple(values["ys"]),
                values["msat"],
                values["due"],
                values["void"],
                values["state"],
                values.get("used"),
            )
        except (TypeError, ValueError, KeyError, PeerMisbehaved) as exc:
            raise PeerMisbehaved("bad_record", f"not a payment: {exc}") from exc


def redeem_by(
    proofs: tuple[Proof, ...], keysets: Mapping[str, Keyset], wall: float
) -> tuple[int, int]:
    """Return when locked proofs are redeemed at the latest, and when the last lock is over (Unix).

    Half of the time that is left, 12 hours at most, and ten minutes before anything ends: the refund of
    the first lock, or a keyset.
    """
    locks = [lock for proof in proofs if (lock := parse_lock(proof.secret)) is not None]
    times = [lock.locktime for lock in locks if lock.locktime is not None]
    ends = [keysets[p.keyset_id].final_expiry for p in proofs]
    first = min([*times, *(end for end in ends if end is not None)], default=None)
    latest = wall + LONGEST_S
    if first is not None:
        latest = min(latest, wall + (first - wall) / 2, first - REDEEM_MARGIN_S)
    endless = len(times) < len(locks)
    return int(latest), 0 if endless else max(times, default=0)
