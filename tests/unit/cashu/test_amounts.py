"""Sums of proofs: split, chosen, and what a mint charges."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from nostrvpn.cashu.amounts import (
    bundle,
    fee,
    select_exact,
    select_inputs,
    split,
    swap_fee,
    tidy,
)
from nostrvpn.cashu.proof import Keyset, Proof


def held(amounts: list[int], keyset: str = "k") -> list[Proof]:
    return [Proof(keyset, amount, str(number), "") for number, amount in enumerate(amounts)]


def keysets(ppk: int) -> dict[str, Keyset]:
    return {"k": Keyset("k", "sat", True, ppk, {})}


powers = st.lists(st.integers(0, 6).map(lambda bit: 1 << bit), max_size=7)


@settings(deadline=None)
@given(st.integers(0, 2**40))
def test_an_amount_is_split_into_different_powers_of_two(amount):
    parts = split(amount)
    assert sum(parts) == amount
    assert list(parts) == sorted(set(parts))
    assert all(part & (part - 1) == 0 for part in parts)


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 4))
def test_a_tidy_amount_is_the_next_of_few_proofs(amount, most):
    made = tidy(amount, most)
    assert len(split(made)) <= most
    assert not any(len(split(less)) <= most for less in range(amount, made))


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(1, 20), st.integers(1, 3))
def test_a_bundle_pays_every_tick_without_change(tick, ticks, most):
    proofs = list(bundle(tick, ticks, most))
    each = len(proofs) // ticks
    assert 1 <= each <= most
    assert all(
        sum(proofs[at : at + each]) == tidy(tick, most) for at in range(0, len(proofs), each)
    )


def test_fees_are_rounded_up_once_for_all_inputs():
    assert [fee(100, count) for count in (0, 1, 10, 11)] == [0, 1, 1, 2]
    both = keysets(100) | {"m": replace(keysets(250)["k"], id="m")}
    assert swap_fee((*held([1] * 4), *held([1] * 3, "m")), both) == 2  # 1150 thousandths


@settings(deadline=None)
@given(powers, st.integers(0, 200))
def test_an_exact_choice_is_found_whenever_there_is_one(amounts, amount):
    found = select_exact(held(amounts), amount)
    sizes = [
        size
        for size in range(len(amounts) + 1)
        if any(sum(each) == amount for each in combinations(amounts, size))
    ]
    assert (found is None) == (not sizes)
    if found is not None:
        assert sum(proof.amount for proof in found) == amount
        assert len(found) == sizes[0]


@settings(deadline=None)
@given(powers, st.integers(1, 150), st.sampled_from([0, 100, 1000, 1500]))
def test_inputs_pay_amount_and_fee_if_any_do(amounts, amount, ppk):
    proofs, known = held(amounts), keysets(ppk)
    found = select_inputs(proofs, amount, known)
    best = max(
        sum(each) - fee(ppk, len(each))
        for size in range(len(amounts) + 1)
        for each in combinations(amounts, size)
    )
    assert (found is not None) == (best >= amount)
    if found is None:
        return
    assert len({proof.secret for proof in found}) == len(found)

    def over(chosen: tuple[Proof, ...]) -> int:
        worth: int = sum(proof.amount for proof in chosen) - amount
        return worth - swap_fee(chosen, known)

    assert over(found) >= 0
    # None of them is there for nothing.
    assert over(found) == 0 or all(
        over(tuple(each for each in found if each is not gone)) < 0 for gone in found
    )


def test_a_swap_without_change_is_preferred():
    known = keysets(1000)
    found = select_inputs(held([64, 8, 4, 1]), 10, known)  # 8 + 4 less a fee of two
    assert found is not None
    assert sorted(proof.amount for proof in found) == [4, 8]
    assert select_inputs(held([1, 1, 1]), 1, known) is None  # each costs what it is worth
