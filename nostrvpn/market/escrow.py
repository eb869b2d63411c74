"""Money in escrow, as seller, buyer and arbiter know it: two of the three have to sign (NUT-11).

The three keys are their Nostr keys: the seller's that signs its offers, the buyer's of this lease, the
arbiter's that both named. So whoever opens a sealed message knows which of the three its sender is, and
nobody has to be told another key. After the locktime the buyer may have it back alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from nostrvpn.cashu.blind import y_of
from nostrvpn.cashu.conditions import (
    Lock,
    SigFlag,
    check_money,
    parse_lock,
    sign_secret,
    signed_by,
    with_signature,
)
from nostrvpn.cashu.proof import Keyset, Proof
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.market.messages import payment_id

__all__ = [
    "BUYER",
    "ESCROW_LOCK_S",
    "LONGEST_ESCROW_S",
    "MAX_ESCROW_PROOFS",
    "OPEN",
    "SELLER",
    "Parties",
    "case_id",
    "check_escrow",
    "parties_of",
    "sign_secrets",
    "signed",
    "signed_all",
]

# The sides, and what is not decided: the words of a verdict.
SELLER, BUYER, OPEN = "seller", "buyer", "open"

ESCROW_LOCK_S = 3 * 86_400
"""For how long money must be in escrow when it arrives (seconds): an arbiter is a person."""

LONGEST_ESCROW_S = 8 * 86_400
"""Nothing is locked, decided or remembered for longer (seconds)."""

MAX_ESCROW_PROOFS = 16
MAX_SECRET = 700


@dataclass(frozen=True, slots=True)
class Parties:
    """Whose two signatures spend it: x-only keys (64 hex). ``locktime``: Unix time; then ``buyer``'s
    alone does."""

    seller: str
    buyer: str
    arbiter: str
    locktime: int

    @property
    def lock(self) -> Lock:
        """The lock, the only one that is taken."""
        buyer = f"02{self.buyer}"
        others = (buyer, f"02{self.arbiter}")
        return Lock(f"02{self.seller}", self.locktime, (buyer,), others, n_sigs=2)

    def side_of(self, key: str) -> str | None:
        """Return "seller" or "buyer", None for anybody else."""
        return {self.seller: SELLER, self.buyer: BUYER}.get(key)

    def of_side(self, side: str) -> str:
        """Return the key of a side."""
        return self.seller if side == SELLER else self.buyer


def parties_of(secrets: Iterable[str]) -> Parties:
    """Return who may spend proofs with these secrets; PeerMisbehaved("locked-token") unless all are in
    escrow between the same three."""
    found = {_parties(secret) for secret in secrets}
    if len(found) != 1:
        raise PeerMisbehaved("locked-token", "no money, or of several locks")
    return found.pop()


def _parties(secret: str) -> Parties:
    lock = parse_lock(secret) if len(secret) <= MAX_SECRET else None
    if lock is None or lock.locktime is None or len(lock.pubkeys) != 2:
        raise PeerMisbehaved("locked-token", "it is not in escrow")
    seller, buyer, arbiter = (key[2:] for key in lock.keys)
    parties = Parties(seller, buyer, arbiter, lock.locktime)
    # Nothing else: one signature, another flag, other keys to pay back to.
    if lock != parties.lock or lock.sigflag is not SigFlag.INPUTS:
        raise PeerMisbehaved("locked-token", "it is in escrow by another template")
    return parties


def check_escrow(
    proofs: Sequence[Proof],
    keysets: Mapping[str, Keyset],
    wanted: tuple[str, str, str],
    now: float,
    least_s: float,
) -> Parties:
    """Check that proofs are in escrow between seller, buyer and arbiter (``wanted``) for long enough.

    ``least_s``: seconds from ``now`` (Unix time). PeerMisbehaved: ``unlocked-token``, ``locked-token``,
    ``locktime-too-early``, and those of ``check_money``.
    """
    if len(proofs) > MAX_ESCROW_PROOFS:
        raise PeerMisbehaved("bad-proof", "too many proofs for one payment")
    if any(parse_lock(proof.secret) is None for proof in proofs):
        raise PeerMisbehaved("unlocked-token", "it is not in escrow")
    parties = parties_of(proof.secret for proof in proofs)
    if (parties.seller, parties.buyer, parties.arbiter) != wanted:
        raise PeerMisbehaved("locked-token", "it is in escrow between others")
    if parties.locktime < now + least_s:
        raise PeerMisbehaved("locktime-too-early", "the escrow ends too early")
    if parties.locktime > now + LONGEST_ESCROW_S:
        raise PeerMisbehaved("locked-token", "the escrow has a far end")
    check_money(proofs, keysets, parties.locktime)
    return parties


def case_id(secrets: Iterable[str]) -> str:
    """Return the id of the payment that has these secrets."""
    return payment_id(y_of(secret) for secret in secrets)


def sign_secrets(secrets: Iterable[str], secret_key: bytes) -> tuple[str, ...]:
    """Return our signature of each, in their order."""
    return tuple(sign_secret(secret, secret_key) for secret in secrets)


def signed(
    proofs: Sequence[Proof], signatures: Sequence[str], key: str
) -> tuple[Proof, ...] | None:
    """Return proofs with the signatures of ``key`` (64 hex) in their witness; None if one is no such."""
    good = len(proofs) == len(signatures) and all(
        signed_by(f"02{key}", proof.secret.encode(), one)
        for proof, one in zip(proofs, signatures, strict=True)
    )
    if not good:
        return None
    clean = (replace(proof, witness="") for proof in proofs)
    return tuple(with_signature(p, one) for p, one in zip(clean, signatures, strict=True))


def signed_all(proofs: Iterable[Proof], secret_key: bytes) -> tuple[Proof, ...]:
    """Return proofs with ours beside the signatures that are there."""
    return tuple(with_signature(p, sign_secret(p.secret, secret_key)) for p in proofs)
