"""What a wallet owns: a proof is free, or one operation's; and all of it goes to disk and back."""

from __future__ import annotations

import json

import pytest

from nostrvpn.cashu.operations import Output
from nostrvpn.cashu.proof import Dleq, Proof
from nostrvpn.cashu.purse import Held, Operation, Purse

MINT = "https://mint.example"
POINT = "02" + "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"


def proof(amount: int, name: str) -> Proof:
    return Proof("00" + "1" * 14, amount, name, POINT, Dleq("1" * 64, "2" * 64, "3" * 64), "{}")


def filled(*amounts: int) -> Purse:
    purse = Purse({})
    purse.apply(purse.adding(MINT, [proof(a, f"secret {n}") for n, a in enumerate(amounts)]))
    return purse


def test_a_change_happens_when_it_is_applied_and_not_before():
    purse = filled(1, 2, 4)
    one, two, _ = purse.proofs(MINT)
    taken = purse.taking([one, two], "ref")
    assert purse.balance(MINT) == (7, 0)
    purse.apply(taken)
    assert purse.balance(MINT) == (4, 3)
    assert purse.proofs(MINT, is_free=False) == (one, two)
    purse.apply(purse.freeing("ref") | purse.removing([two]))
    assert purse.balance(MINT) == (5, 0)
    assert purse.mints() == {MINT}
    assert not purse.has(two)


def test_a_proof_is_never_for_two_operations_and_never_there_twice():
    purse = filled(8)
    [one] = purse.proofs(MINT)
    purse.apply(purse.taking([one], "first"))
    with pytest.raises(AssertionError):
        purse.taking([one], "second")
    assert purse.adding(MINT, [one]) == {}  # nor free again because it came once more
    assert purse.freeing("second") == {}
    assert purse.taking([proof(1, "a stranger's")], "first") == {}
    assert purse.removing([proof(1, "a stranger's")]) == {}


def test_everything_goes_to_disk_and_back():
    held = Held(MINT, proof(64, "a secret"), "ref")
    purse = Purse({"a secret": json.loads(json.dumps(held.to_json()))})
    assert purse.proofs(MINT, is_free=False) == (held.proof,)
    outputs = (Output("00" + "1" * 14, 4, POINT, "next secret", bytes(31) + b"\x05"),)
    operation = Operation(
        "ref",
        "melt",
        MINT,
        1_700_000_000,
        -21,
        fee=2,
        inputs=(held.proof,),
        outputs=outputs,
        leaving=1,
        numbers=(3, 4),
        given=(held.proof,),
        quote="q",
        expires=7,
        note="lnbc1",
    )
    stored = json.loads(json.dumps(operation.to_json()))
    assert Operation.from_json("ref", stored) == operation
    assert "secret" not in repr(held)
    assert "secret" not in repr(operation)
