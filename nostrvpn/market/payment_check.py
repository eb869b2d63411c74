"""Whether what a buyer sends is money for this lease: everything that can be known without the mint."""

from __future__ import annotations

from collections.abc import Mapping

from nostrvpn.cashu.amounts import swap_fee
from nostrvpn.cashu.blind import y_of
from nostrvpn.cashu.conditions import check_lock, spendable_by
from nostrvpn.cashu.proof import MintKeys, Proof
from nostrvpn.cashu.token import expand_ids, parse_token
from nostrvpn.errors import PeerMisbehaved
from nostrvpn.market.billing import credit_msat
from nostrvpn.market.escrow import check_escrow
from nostrvpn.market.lease import Lease
from nostrvpn.market.messages import payment_id
from nostrvpn.market.money_in import Money, redeem_by
from nostrvpn.market.terms import PayMode

__all__ = [
    "LOCK_MARGIN_S",
    "LOCK_SLACK_S",
    "LONGEST_LOCK_S",
    "TRANSIENT",
    "examine",
    "notice_code",
    "proofs_in",
]

# Proofs of one payment: a slice is a few powers of two.
MAX_PROOFS = 32
# Locked money must be good for so long when it arrives (seconds).
LOCK_MARGIN_S = 1800
# What a quote asks of a lock beyond what is checked: the way here, and clocks that differ.
LOCK_SLACK_S = 600
LONGEST_LOCK_S = 7 * 86_400

# Refusals that say something of us and not of the money: the same payment may be sent again.
TRANSIENT = frozenset({"unknown-keyset", "mint-down", "grant-failed", "too-busy", "release-needed"})
_NOTICES = {
    "unlocked-token": "locked-token",
    "locked-token": "locked-token",
    "locktime-too-early": "lock-too-short",
    **{code: code for code in ("unknown-keyset", "inactive-keyset", "expiring-keyset")},
    **{code: code for code in ("slice-too-large", "fee-too-low", "mint-down")},
    **{code: code for code in ("channel-closed", "channel-refused", "payment-error-token-spent")},
    "payment-error-mint-not-accepted": "payment-error-mint-not-accepted",
}


def notice_code(code: str) -> str:
    """Return what a buyer is told for the code of a refusal."""
    return _NOTICES.get(code, "payment-error-invalid-token")


def examine(text: str, lease: Lease, seq: int, mints: Mapping[str, MintKeys], wall: float) -> Money:
    """Return the payment in a token; PeerMisbehaved with a code that :func:`notice_code` knows.

    A plain token is only looked at: whether it is money, the swap shows. A locked one is believed as far
    as ``check_lock`` goes; whether it was shown before, the till knows.
    """
    mint, proofs = proofs_in(text, lease, mints)
    face = sum(proof.amount for proof in proofs)
    if face > lease.quote.max_slice_sat:
        raise PeerMisbehaved("slice-too-large", f"{face} sat at once")
    keysets = mints[mint].keysets
    ys = tuple(y_of(proof.secret) for proof in proofs)
    due = void = 0
    state = "pending"
    if lease.mode is PayMode.ESCROW:
        wanted = (lease.quote.receiver[2:], lease.buyer, lease.request.arbiter)
        least = lease.quote.lock_s - LOCK_SLACK_S
        void = check_escrow(proofs, keysets, wanted, wall, least).locktime
        msat, state = credit_msat(proofs, keysets), "escrow"
    elif lease.mode is PayMode.LOCKED:
        check_lock(proofs, keysets, lease.quote.receiver, wall, LOCK_MARGIN_S)
        msat = credit_msat(proofs, keysets)
        due, void = redeem_by(proofs, keysets, wall)
        if not 0 < void <= wall + LONGEST_LOCK_S:
            # Its Ys must be known for as long as somebody could show it again.
            raise PeerMisbehaved("locked-token", "the lock has no end, or a far one")
        state = "held"
    else:
        receiver = lease.quote.receiver
        if not all(spendable_by(proof.secret, (receiver,), wall) for proof in proofs):
            raise PeerMisbehaved("locked-token", "it is locked to somebody else")
        if any(proof.keyset_id not in keysets for proof in proofs):
            raise PeerMisbehaved("unknown-keyset", "a keyset that is not known here")
        msat = 1000 * (face - swap_fee(proofs, keysets))
    if msat <= 0:
        raise PeerMisbehaved("fee-too-low", "the mint's fee takes all of it")
    return Money(
        payment_id(ys),
        lease.id,
        seq,
        mint,
        lease.mode,
        proofs,
        ys,
        msat,
        due,
        void,
        state,
    )


def proofs_in(
    text: str, lease: Lease, mints: Mapping[str, MintKeys]
) -> tuple[str, tuple[Proof, ...]]:
    """Return the mint and the proofs of a token that may be money for this lease; PeerMisbehaved."""
    token = parse_token(text)
    mint = token.mint
    if mint not in lease.quote.mints:
        raise PeerMisbehaved("payment-error-mint-not-accepted", "another mint")
    known = mints.get(mint)
    if known is None:
        raise PeerMisbehaved("mint-down", "the mint's keys are not known yet")
    if token.unit != "sat":
        raise PeerMisbehaved("payment-error-invalid-token", "another unit than sat")
    proofs = expand_ids(token, known.keysets).proofs
    if not 0 < len(proofs) <= MAX_PROOFS or len({p.secret for p in proofs}) != len(proofs):
        raise PeerMisbehaved("payment-error-invalid-token", "no proofs, too many, or one twice")
    return mint, proofs
