"""Who may spend: what a seller takes as locked to it, what it signs, and what it refuses by name."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from coincurve import PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from nostrvpn.cashu.conditions import (
    Lock,
    SigFlag,
    check_lock,
    lock_key,
    lock_secret,
    may_spend,
    parse_lock,
    sign_inputs,
    signatures_of,
    signed_by,
    spendable_by,
)
from nostrvpn.cashu.operations import prepare_outputs, swap_body
from nostrvpn.cashu.proof import Dleq, Proof
from nostrvpn.cashu.secrets import SeedSource
from nostrvpn.errors import PeerMisbehaved
from tests.cashu_mint import MemoryMint

NOW, MARGIN = 1_800_000_000.0, 1800.0
SELLER, BUYER, OTHER = (bytes([number]) * 32 for number in (1, 2, 3))
US, BACK, THIRD = map(lock_key, (SELLER, BUYER, OTHER))
LOCK = Lock(US, int(NOW + MARGIN), (BACK,))
NONCE = "ab" * 32


def refusal(proofs, mint, now=NOW, margin=MARGIN, keysets=None):
    """The code word of check_lock, or None if it takes the proofs."""
    known = mint.keys.keysets if keysets is None else keysets
    try:
        check_lock(proofs, known, US, now, margin)
    except PeerMisbehaved as error:
        return error.code
    return None


def test_money_locked_to_the_seller_is_taken():
    mint = MemoryMint()
    proofs = mint.issue([1, 2, 64], LOCK)
    assert refusal(proofs, mint) is None
    assert refusal(mint.issue([4], replace(LOCK, refund=())), mint) is None
    assert refusal(mint.issue([4], Lock(US)), mint) is None  # for ever is long enough
    # Keys are compared by x alone.
    assert refusal(mint.issue([8], replace(LOCK, key="03" + US[2:])), mint) is None


@pytest.mark.parametrize(
    ("lock", "code"),
    [
        (None, "unlocked-token"),
        (replace(LOCK, key=BACK), "locked-token"),
        (replace(LOCK, pubkeys=(THIRD,)), "locked-token"),
        (replace(LOCK, pubkeys=(THIRD,), n_sigs=2), "locked-token"),
        (replace(LOCK, sigflag=SigFlag.ALL), "locked-token"),
        (replace(LOCK, locktime=int(NOW + MARGIN) - 1), "locktime-too-early"),
        (replace(LOCK, locktime=1), "locktime-too-early"),
    ],
)
def test_any_other_lock_is_refused(lock, code):
    mint = MemoryMint()
    assert refusal((*mint.issue([1], LOCK), *mint.issue([2], lock)), mint) == code


def test_each_lock_may_end_when_it_likes_after_the_margin():
    mint = MemoryMint()
    late, early = (
        mint.issue([1], replace(LOCK, locktime=int(NOW + more))) for more in (9000, 1800)
    )
    assert refusal((*late, *early), mint) is None
    assert refusal((*early, *late), mint) is None


@pytest.mark.parametrize(
    "change",
    [
        {"dleq": None},
        {"dleq": Dleq("11" * 32, "22" * 32, "33" * 32)},
        {"dleq": Dleq("00" * 32, "22" * 32, "33" * 32)},
        {"dleq": Dleq("11" * 32, "22" * 32)},
        {"c": US},
        {"secret": lock_secret(LOCK, "another")},
    ],
)
def test_what_the_mint_did_not_sign_is_refused(change):
    mint = MemoryMint()
    [proof] = mint.issue([1], LOCK)
    assert refusal([replace(proof, **change)], mint) == "bad-dleq"


def test_a_larger_amount_than_was_signed_is_refused():
    mint = MemoryMint()
    [proof] = mint.issue([1], LOCK)
    assert refusal([replace(proof, amount=2)], mint) == "bad-dleq"
    assert refusal([replace(proof, amount=3)], mint) == "bad-amount"
    assert refusal([replace(proof, c="02" + "00" * 32)], mint) == "bad-point"


def test_keysets_are_known_active_of_sat_and_outlive_the_lock():
    mint, locktime = MemoryMint(), int(NOW + 2 * MARGIN)
    [proof] = mint.issue([1], replace(LOCK, locktime=locktime))
    keyset = mint.keyset

    def with_keyset(**change: Any) -> Any:
        return refusal([proof], mint, keysets={keyset.id: replace(keyset, **change)})

    assert refusal([proof], mint, keysets={}) == "unknown-keyset"
    assert with_keyset(unit="msat") == "wrong-unit"
    assert with_keyset(is_active=False) == "inactive-keyset"
    assert with_keyset(final_expiry=locktime) == "expiring-keyset"
    assert with_keyset(final_expiry=locktime + 1) is None
    assert refusal([proof, proof], mint) == "duplicate-proof"
    assert refusal([], mint) == "bad-proof"


def test_a_secret_that_a_mint_may_find_too_long_is_refused():
    mint = MemoryMint()
    refund = tuple(lock_key(bytes([number]) * 32) for number in range(10, 20))
    assert refusal(mint.issue([1], replace(LOCK, refund=refund)), mint) == "locked-token"


def test_nothing_of_a_proof_shows():
    [proof] = MemoryMint().issue([1], LOCK)
    assert proof.dleq is not None
    for secret in (proof.secret, proof.c, proof.dleq.r):
        assert secret not in repr(proof)


def written(fields: dict[str, Any], kind: str = "P2PK") -> str:
    return json.dumps([kind, fields])


GOOD: dict[str, Any] = {"nonce": NONCE, "data": US, "tags": []}


MALFORMED: list[Any] = [
    [["locktime"]],
    [["locktime", 5]],
    [["locktime", "5", "6"]],
    [["locktime", "-5"]],
    [["locktime", "05"]],
    [["locktime", "0"]],
    [["locktime", "\u0665"]],
    [["locktime", "9" * 400]],
    [["locktime", str(1 << 53)]],
    [["locktime", "5"], ["locktime", "6"]],
    [["refund", BACK], ["refund", US]],
    [["refund", BACK, "03" + BACK[2:]]],
    [["pubkeys", "03" + US[2:]]],
    [["pubkeys", BACK, BACK]],
    [["pubkeys", BACK], ["n_sigs", "3"]],
    [["n_sigs", "2"]],
    [["n_sigs", "0"]],
    [["refund", BACK], ["n_sigs_refund", "2"]],
    [["n_sigs_refund", "1"]],
    [["sigflag", "SIG_NONE"]],
    [["sigflag", "SIG_ALL", "SIG_INPUTS"]],
    [["unknown", "x"]],
    [[]],
    ["locktime"],
]


@pytest.mark.parametrize(
    "secret",
    [
        "[",
        "[" * 1000,
        "[]",
        '["P2PK"]',
        '["P2PK",{}]',
        " " + written(GOOD, "HTLC"),
        written(GOOD, "P2BK"),
        written(GOOD)[:-1] + ",1]",
        written({**GOOD, "nonce": ""}),
        written({**GOOD, "nonce": 1}),
        written({**GOOD, "data": BACK[2:]}),
        written({**GOOD, "data": "04" + "11" * 64}),
        written({**GOOD, "data": "02" + "00" * 32}),
        written({**GOOD, "more": 1}),
        written({**GOOD, "tags": None}),
        written({**GOOD, "tags": {}}),
        written(GOOD)[:-2] + ', "data": "' + BACK + '"}]',
        *(written({**GOOD, "tags": tags}) for tags in MALFORMED),
    ],
)
def test_a_condition_that_is_malformed_or_unknown_is_refused(secret):
    with pytest.raises(PeerMisbehaved) as refused:
        parse_lock(secret)
    assert refused.value.code == "locked-token"


def test_the_same_lock_is_read_whatever_the_order_of_its_tags():
    tags = [["refund", BACK], ["locktime", str(LOCK.locktime)], ["n_sigs", "1"]]
    secret = written({"tags": tags, "data": US.upper(), "nonce": "x"})
    assert parse_lock(secret) == LOCK
    assert parse_lock(lock_secret(LOCK, NONCE)) == LOCK


keys = st.integers(1, 50).map(lambda number: lock_key(number.to_bytes(32, "big")))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(keys, min_size=1, max_size=5, unique=True),
    st.lists(keys, max_size=4, unique=True),
    st.none() | st.integers(1, 2**53 - 1),
    st.sampled_from(SigFlag),
    st.data(),
)
def test_a_lock_is_read_as_it_was_written(main, refund, locktime, flag, data):
    refund = refund if locktime else []
    n_sigs = data.draw(st.integers(1, len(main)))
    n_refund = data.draw(st.integers(1, len(refund))) if refund else 1
    lock = Lock(main[0], locktime, tuple(refund), tuple(main[1:]), n_sigs, n_refund, flag)
    assert parse_lock(lock_secret(lock, NONCE)) == lock


@settings(deadline=None)
@given(st.text(max_size=200) | st.text('[]{}",:P2KHTLC0123456789', max_size=60).map("[".__add__))
def test_any_text_as_secret_is_a_lock_plain_or_one_refusal(text):
    try:
        found = parse_lock(text)
    except PeerMisbehaved:
        assert not spendable_by(text, [US], NOW)
    else:
        assert found is None or isinstance(found, Lock)


def test_either_parity_of_a_key_signs_for_its_lock():
    secrets = [number.to_bytes(32, "big") for number in range(1, 9)]
    assert {PrivateKey(secret).public_key.format()[0] for secret in secrets} == {2, 3}
    assert {lock_key(secret)[:2] for secret in secrets} == {"02"}
    for secret in secrets:
        mint = MemoryMint(now=NOW)
        proofs = mint.issue([4], Lock(lock_key(secret), int(NOW + 10), (BACK,)))
        [signed] = sign_inputs(proofs, secret)
        [signature] = signatures_of(signed.witness)
        assert signed_by("03" + lock_key(secret)[2:], signed.secret.encode(), signature)
        assert swap(mint, [signed])[0] == 200


def swap(mint: MemoryMint, inputs: list[Proof]) -> tuple[int, dict[str, object]]:
    amounts = [proof.amount for proof in inputs]
    outputs = prepare_outputs(amounts, mint.keyset, SeedSource(b"swap"), len(mint.signed))
    return mint.handle("POST", "/v1/swap", swap_body(inputs, outputs))


def test_the_buyer_has_no_way_back_before_the_locktime_and_the_seller_has_one_after():
    mint = MemoryMint(now=NOW)
    one, other = ([proof] for proof in mint.issue([4, 8], LOCK))
    mine = list(sign_inputs(one, BUYER))
    assert not spendable_by(one[0].secret, [BACK], NOW)
    assert swap(mint, mine)[0] == 400
    mint.now = (LOCK.locktime or 0) + 1
    assert spendable_by(one[0].secret, [BACK], mint.now)
    assert swap(mint, mine)[0] == 200
    assert swap(mint, list(sign_inputs(other, SELLER)))[0] == 200


def test_a_witness_of_somebody_elses_does_not_spoil_ours():
    mint = MemoryMint(now=NOW)
    [proof] = mint.issue([4], LOCK)
    spoiled = replace(proof, witness='{"signatures":["zz"]}')
    [signed] = sign_inputs([spoiled], SELLER)
    assert len(signatures_of(signed.witness)) == 1
    assert "zz" not in signed.witness
    false = replace(proof, witness='{"signatures":["' + "11" * 64 + '"]}')
    for each in (spoiled, false):
        assert sign_inputs([each], SELLER) == sign_inputs([proof], SELLER)


def test_two_of_two_needs_both():
    lock = Lock(US, None, (), (BACK,), 2)
    mint = MemoryMint(now=NOW)
    proofs = mint.issue([4], lock)
    alone = sign_inputs(proofs, SELLER)
    assert sign_inputs(alone, SELLER) == alone  # twice the same key is one signature
    assert swap(mint, list(alone))[0] == 400
    assert not spendable_by(proofs[0].secret, [US], NOW)
    assert not spendable_by(lock_secret(Lock(US, sigflag=SigFlag.ALL), NONCE), [US], NOW)
    assert spendable_by(lock_secret(Lock(US), NONCE), [BACK, US], NOW)
    assert swap(mint, list(sign_inputs(alone, BUYER)))[0] == 200


def test_without_a_refund_key_it_is_anybodys_after_the_locktime():
    lock = replace(LOCK, refund=())
    locktime = lock.locktime or 0
    assert not may_spend(lock, b"", (), locktime)
    assert may_spend(lock, b"", (), locktime + 1)
    secret = lock_secret(lock, NONCE)
    assert not spendable_by(secret, [THIRD], locktime)
    assert spendable_by(secret, [THIRD], locktime + 1)


@settings(deadline=None)
@given(st.text(max_size=200) | st.just('{"signatures":[1,null,"' + "zz" * 64 + '"]}'))
def test_any_text_as_witness_gives_signatures_only(text):
    for signature in signatures_of(text):
        assert len(bytes.fromhex(signature)) == 64
    assert not signed_by(US, b"message", text)
