"""Amounts as sums of proofs: splitting, choosing, and what a mint charges (NUT-00, NUT-02)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nostrvpn.cashu.proof import Keyset, Proof

__all__ = ["bundle", "fee", "select_exact", "select_inputs", "split", "swap_fee", "tidy"]


def split(amount: int) -> tuple[int, ...]:
    """Return an amount as powers of two, the smallest first; nothing for 0."""
    return tuple(1 << bit for bit in range(amount.bit_length()) if amount >> bit & 1)


def fee(fee_ppk: int, count: int) -> int:
    """Return what a mint charges for so many inputs of one keyset: thousandths, rounded up (NUT-02)."""
    return -(-fee_ppk * count // 1000)


def swap_fee(proofs: Iterable[Proof], keysets: Mapping[str, Keyset]) -> int:
    """Return what a mint charges for these inputs; KeyError for a keyset that is not known."""
    return -(-sum(keysets[proof.keyset_id].fee_ppk for proof in proofs) // 1000)


def tidy(amount: int, most: int = 2) -> int:
    """Return the least amount, no less than this, that ``most`` powers of two make: 15 is 16, 100 is 128
    with one and 128 with two, 70 is 72."""
    while amount.bit_count() > most:
        amount += amount & -amount
    return amount


def bundle(tick: int, ticks: int, most: int = 2) -> tuple[int, ...]:
    """Return the amounts to ask a mint for, so that ``ticks`` payments of ``tick`` need no other word
    with it: each payment is the next ``most`` proofs or fewer, and no less than ``tick``."""
    return split(tidy(tick, most)) * ticks


def select_exact(proofs: Iterable[Proof], amount: int) -> tuple[Proof, ...] | None:
    """Return the fewest proofs that are worth exactly this, or None.

    The largest that fits first: that finds a subset of powers of two whenever there is one.
    """
    chosen, left = [], amount
    for proof in sorted(proofs, key=lambda proof: proof.amount, reverse=True):
        if proof.amount <= left:
            chosen.append(proof)
            left -= proof.amount
    return tuple(chosen) if left == 0 else None


def select_inputs(
    proofs: Iterable[Proof], amount: int, keysets: Mapping[str, Keyset]
) -> tuple[Proof, ...] | None:
    """Return inputs of a swap or melt that are worth ``amount`` and their own fee, or None.

    Exactly, if that can be; otherwise few, and with little change. Every proof stands for more than
    it costs; those that do not are left alone.
    """
    useful = sorted(
        (proof for proof in proofs if 1000 * proof.amount > keysets[proof.keyset_id].fee_ppk),
        key=lambda proof: (proof.amount, proof.keyset_id, proof.secret),
    )
    enough = _enough(useful, amount, keysets)
    if enough is None:
        return None
    # The fee depends on how many are chosen: a few tries meet, or there is no exact answer.
    for cost in range(swap_fee(enough, keysets) + 2):
        exact = select_exact(useful, amount + cost)
        if exact and swap_fee(exact, keysets) == cost:
            return exact
    return enough


def _enough(
    useful: list[Proof], amount: int, keysets: Mapping[str, Keyset]
) -> tuple[Proof, ...] | None:
    """The smallest single proof that does, or the largest ones, as many as it takes."""

    def does(chosen: list[Proof]) -> bool:
        return sum(p.amount for p in chosen) - swap_fee(chosen, keysets) >= amount

    for proof in useful:
        if does([proof]):
            return (proof,)
    chosen: list[Proof] = []
    for proof in reversed(useful):
        if does(chosen):
            break
        chosen.append(proof)
    return tuple(chosen) if does(chosen) else None
