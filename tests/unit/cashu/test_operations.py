"""From wish to proofs: what a mint must answer, and what a mint that cheats gets for its answers."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from coincurve import PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from nostrvpn.cashu.amounts import split
from nostrvpn.cashu.answers import (
    ProofState,
    QuoteState,
    keyset_id,
    parse_info,
    parse_keys,
    parse_keysets,
    parse_melt_quote,
    parse_mint_quote,
    parse_refusal,
    parse_states,
)
from nostrvpn.cashu.blind import blind, dleq_holds, point, proof_holds, unblind
from nostrvpn.cashu.conditions import Lock, check_money, lock_key, parse_lock
from nostrvpn.cashu.operations import (
    blank_outputs,
    check_body,
    finish_change,
    finish_outputs,
    finish_restored,
    make_output,
    melt_body,
    melt_quote_body,
    mint_body,
    mint_quote_body,
    parse_signatures,
    prepare_outputs,
    restore_body,
    swap_body,
)
from nostrvpn.cashu.proof import BlindSignature, Dleq
from nostrvpn.cashu.secrets import LockedSource, SeedSource
from nostrvpn.errors import PeerMisbehaved
from tests.cashu_mint import MemoryMint, MintDown, blind_sign, prove

SOURCE = SeedSource(bytes(64))
# The point at infinity as some would write it, an uncompressed key, x without a point, no hex.
NO_POINTS = ["00" * 33, "00", "04" + "11" * 64, "02" + "00" * 32, "02" + "zz" * 32, "", 7, None]


def code_of(call: Any, *args: Any, **kwargs: Any) -> str | None:
    try:
        call(*args, **kwargs)
    except PeerMisbehaved as error:
        return error.code
    return None


@settings(max_examples=40, deadline=None)
@given(st.text(min_size=1, max_size=80), st.integers(1, 2**255), st.integers(1, 2**255))
def test_what_was_blinded_and_signed_is_signed_when_unblinded(secret, r, key):
    r_bytes, key_bytes = r.to_bytes(32, "big"), key.to_bytes(32, "big")
    public = blind_sign(
        "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798", key_bytes
    )
    b = blind(secret, r_bytes)
    signed, dleq = blind_sign(b, key_bytes), prove(b, key_bytes)
    assert dleq_holds(b, signed, dleq, public)
    c = unblind(signed, r_bytes, public)
    # k*Y, with the blinding taken away again
    assert c == blind_sign(unblind(b, r_bytes, GENERATOR), key_bytes)
    assert not dleq_holds(b, signed, replace(dleq, s=dleq.e), public)


GENERATOR = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"


def test_a_point_has_one_way_to_be_written():
    whole = PublicKey(bytes.fromhex(GENERATOR)).format(compressed=False).hex()
    hybrid = "06" + whole[2:]
    assert point(GENERATOR).format().hex() == GENERATOR
    for text in (whole, hybrid, GENERATOR[2:], "  " + GENERATOR[2:], "05" + GENERATOR[2:]):
        assert code_of(point, text) == "bad-point"


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("fee_ppk", [0, 100])
def test_a_wallet_buys_money_swaps_it_checks_it_and_restores_it(version, fee_ppk):
    mint = MemoryMint(fee_ppk=fee_ppk, version=version)
    infos = parse_keysets(get(mint, "keysets"))
    [info] = infos
    keyset = parse_keys(get(mint, f"keys/{info.id}"), info)
    assert keyset == mint.keyset
    quote = parse_mint_quote(post(mint, "mint/quote/bolt11", mint_quote_body(13)))
    assert quote.state is QuoteState.PAID
    outputs = prepare_outputs(split(13), keyset, SOURCE, 0)
    answer = post(mint, "mint/bolt11", mint_body(quote.quote, outputs))
    proofs = finish_outputs(outputs, parse_signatures(answer), keyset)
    assert [proof.amount for proof in proofs] == [1, 4, 8]
    check_money(proofs, mint.keys.keysets, 0.0)
    again = prepare_outputs(split(13 - (fee_ppk > 0)), keyset, SOURCE, 3)
    answer = post(mint, "swap", swap_body(proofs, again))
    swapped = finish_outputs(again, parse_signatures(answer), keyset)
    both = (*proofs, *swapped)
    states = parse_states(post(mint, "checkstate", check_body(both)), both)
    assert states == (ProofState.SPENT,) * 3 + (ProofState.UNSPENT,) * len(swapped)
    # After a loss: the same counters make the same outputs, and amounts are as the mint says.
    blanks = tuple(
        make_output(keyset.id, 0, *SOURCE.output(keyset.id, number)) for number in range(20)
    )
    restored = finish_restored(blanks, post(mint, "restore", restore_body(blanks)), keyset)
    assert set(restored) == set(both)


def get(mint: MemoryMint, path: str) -> Any:
    status, answer = mint.handle("GET", f"/v1/{path}")
    assert status == 200, answer
    return answer


def post(mint: MemoryMint, path: str, body: dict[str, Any]) -> Any:
    status, answer = mint.handle("POST", f"/v1/{path}", copy.deepcopy(body))
    assert status == 200, answer
    return answer


def test_what_goes_to_the_mint_tells_nothing_of_the_blinding():
    mint = MemoryMint()
    proofs = mint.issue([1, 2])
    outputs = prepare_outputs([1, 2], mint.keyset, SOURCE, 0)
    for body in (swap_body(proofs, outputs), melt_body("q", proofs, outputs)):
        assert all("dleq" not in each for each in body["inputs"])
        shown = str(body)
        assert all(output.r.hex() not in shown for output in outputs)
        assert all(output.secret not in shown for output in outputs)
    for output in outputs:
        assert output.secret not in repr(output)
        assert output.r.hex() not in repr(output)
        assert repr(output.r) not in repr(output)
    assert "redacted" in repr(SOURCE)


def test_the_change_of_a_payment_comes_back():
    mint = MemoryMint()
    proofs = mint.issue([32])
    quote = parse_melt_quote(post(mint, "melt/quote/bolt11", melt_quote_body("lnbc-20-x")))
    assert (quote.amount, quote.fee_reserve, quote.state) == (20, 2, QuoteState.UNPAID)
    blanks = blank_outputs(32 - quote.amount, mint.keyset, SOURCE, 0)
    assert len(blanks) == 4
    answer = post(mint, "melt/bolt11", melt_body(quote.quote, proofs, blanks))
    paid = parse_melt_quote(answer)
    assert paid.state is QuoteState.PAID
    change = finish_change(blanks, paid.change, mint.keyset)
    assert sum(proof.amount for proof in change) == 32 - 20 - 1
    check_money(change, mint.keys.keysets, 0.0)


def test_a_payment_that_hangs_holds_its_inputs_until_it_is_settled():
    mint = MemoryMint()
    mint.pays = "PENDING"
    proofs = mint.issue([32])
    name = post(mint, "melt/quote/bolt11", melt_quote_body("lnbc-20-x"))["quote"]
    blanks = blank_outputs(12, mint.keyset, SOURCE, 0)
    assert parse_melt_quote(post(mint, "melt/bolt11", melt_body(name, proofs, blanks))).state is (
        QuoteState.PENDING
    )
    assert parse_states(post(mint, "checkstate", check_body(proofs)), proofs) == (
        ProofState.PENDING,
    )
    mint.pay(name)
    paid = parse_melt_quote(get(mint, f"melt/quote/bolt11/{name}"))
    assert paid.state is QuoteState.PAID
    assert sum(p.amount for p in finish_change(blanks, paid.change, mint.keyset)) == 11


@pytest.mark.parametrize(("reserve", "count"), [(0, 0), (1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_there_are_as_many_blank_outputs_as_change_can_need(reserve, count):
    assert len(blank_outputs(reserve, MemoryMint().keyset, SOURCE, 0)) == count


def test_locked_outputs_can_be_made_again():
    mint, lock = MemoryMint(), Lock(lock_key(b"\1" * 32), 99, (lock_key(b"\2" * 32),))
    source = LockedSource(SOURCE, lock)
    one = prepare_outputs([1, 2, 4], mint.keyset, source, 7)
    assert one == prepare_outputs([1, 2, 4], mint.keyset, source, 7)
    assert {parse_lock(output.secret) for output in one} == {lock}
    assert len({output.secret for output in one}) == 3
    assert one == tuple(
        make_output(output.keyset_id, output.amount, output.secret, output.r) for output in one
    )
    assert code_of(prepare_outputs, [3], mint.keyset, SOURCE, 0) == "wrong-amount"


def signed_outputs(mint: MemoryMint) -> tuple[Any, Any]:
    proofs = mint.issue([4, 8])
    outputs = prepare_outputs([4, 8], mint.keyset, SOURCE, 0)
    return outputs, post(mint, "swap", swap_body(proofs, outputs))


def finish(mint: MemoryMint, outputs: Any, answer: Any, **more: bool) -> Any:
    return finish_outputs(outputs, parse_signatures(answer), mint.keyset, **more)


def set_at(answer: Any, field: str, value: Any) -> Any:
    made = copy.deepcopy(answer)
    made["signatures"][0][field] = value
    return made


def test_a_mint_that_cheats_is_named():
    mint = MemoryMint()
    outputs, answer = signed_outputs(mint)
    assert len(finish(mint, outputs, answer)) == 2
    one, two = answer["signatures"]
    cases = [
        ({"signatures": [one]}, "bad-answer"),
        ({"signatures": [one, two, two]}, "bad-answer"),
        ({"signatures": [two, one]}, "wrong-amount"),
        ({"signatures": one}, "bad-answer"),
        ({}, "bad-answer"),
        ([], "bad-answer"),
        (None, "bad-answer"),
        (set_at(answer, "amount", 8), "wrong-amount"),
        (set_at(answer, "amount", 2**64), "bad-answer"),
        (set_at(answer, "amount", -4), "bad-answer"),
        (set_at(answer, "amount", 4.0), "bad-answer"),
        (set_at(answer, "amount", True), "bad-answer"),
        (set_at(answer, "id", "00" * 8), "wrong-keyset"),
        (set_at(answer, "id", "zz"), "bad-answer"),
        (set_at(answer, "C_", two["C_"]), "bad-dleq"),
        (set_at(answer, "dleq", None), "no-dleq"),
        (set_at(answer, "dleq", two["dleq"]), "bad-dleq"),
        (set_at(answer, "dleq", {"e": "00" * 32, "s": "00" * 32}), "bad-dleq"),
        (set_at(answer, "dleq", {"e": "ff" * 32, "s": "ff" * 32}), "bad-dleq"),
        (set_at(answer, "dleq", {}), "bad-answer"),
        (set_at(answer, "dleq", {"e": "11", "s": 5}), "bad-answer"),
    ]
    assert [code_of(finish, mint, outputs, case) for case, _ in cases] == [
        code for _, code in cases
    ]
    for text in NO_POINTS:
        assert code_of(finish, mint, outputs, set_at(answer, "C_", text)) in (
            "bad-answer",
            "bad-point",
        )


def test_a_signature_by_another_key_is_found_out():
    """A mint that tags its users with keys of their own cannot prove them to be the published ones."""
    mint = MemoryMint()
    [output] = prepare_outputs([4], mint.keyset, SOURCE, 0)
    key = b"\7" * 32
    dleq = prove(output.b, key)
    signature = BlindSignature(mint.keyset.id, 4, blind_sign(output.b, key), dleq)
    assert code_of(finish_outputs, (output,), (signature,), mint.keyset) == "bad-dleq"


def test_money_without_dleq_is_taken_only_if_asked_for():
    mint = MemoryMint()
    outputs, answer = signed_outputs(mint)
    for each in answer["signatures"]:
        del each["dleq"]
    assert code_of(finish, mint, outputs, answer) == "no-dleq"
    proofs = finish(mint, outputs, answer, dleq_needed=False)
    assert [proof.dleq for proof in proofs] == [None, None]
    assert swap_works(mint, proofs)
    assert not proof_holds(proofs[0], mint.keyset.keys[4])


def swap_works(mint: MemoryMint, proofs: Any) -> bool:
    outputs = prepare_outputs([proof.amount for proof in proofs], mint.keyset, SOURCE, 100)
    return bool(post(mint, "swap", swap_body(proofs, outputs)))


def test_a_signature_that_cancels_the_blinding_is_no_point():
    mint = MemoryMint()
    [output] = prepare_outputs([4], mint.keyset, SOURCE, 0)
    c = blind_sign(mint.keyset.keys[4], output.r)  # r*K: C = r*K - r*K
    signature = BlindSignature(mint.keyset.id, 4, c)
    assert (
        code_of(finish_outputs, (output,), (signature,), mint.keyset, dleq_needed=False)
        == "bad-point"
    )


def test_too_much_change_and_foreign_restores_are_refused():
    mint = MemoryMint()
    outputs, answer = signed_outputs(mint)
    signatures = parse_signatures(answer)
    assert code_of(finish_change, outputs[:1], signatures, mint.keyset) == "bad-answer"
    known = post(mint, "restore", restore_body(outputs))
    assert len(finish_restored(outputs, known, mint.keyset)) == 2
    assert code_of(finish_restored, outputs[:1], known, mint.keyset) == "bad-answer"
    twice = {name: [*each, *each] for name, each in known.items()}
    assert code_of(finish_restored, outputs, twice, mint.keyset) == "bad-answer"
    for wrong in ({}, {"outputs": 1, "signatures": []}, {"outputs": [7], "signatures": []}):
        assert code_of(finish_restored, outputs, wrong, mint.keyset) == "bad-answer"
    nothing = {"outputs": [None, 7], "signatures": known["signatures"]}
    assert code_of(finish_restored, outputs, nothing, mint.keyset) == "bad-answer"


def test_keys_under_a_name_that_is_not_theirs_are_refused():
    mint = MemoryMint()
    [info] = parse_keysets(get(mint, "keysets"))
    answer = get(mint, f"keys/{info.id}")
    assert parse_keys(answer, info) == mint.keyset
    keys = answer["keysets"][0]["keys"]
    cases = [
        (keys | {"1": keys["2"]}, "bad-keyset"),
        ({"1": keys["1"]}, "bad-keyset"),
        (keys | {"-1": keys["1"]}, "bad-keyset"),
        (keys | {"0": keys["1"]}, "bad-keyset"),
        (keys | {"01": keys["1"]}, "bad-keyset"),
        (keys | {"": keys["1"]}, "bad-keyset"),
        (keys | {"one": keys["1"]}, "bad-keyset"),
        (keys | {"9" * 5000: keys["1"]}, "bad-keyset"),
        (keys | {str(2**64): keys["1"]}, "bad-keyset"),
        (keys | {"1": "02" + "00" * 32}, "bad-point"),
        (keys | {"1": "04" + "00" * 64}, "bad-answer"),
        ({}, "bad-answer"),
        ({str(n): keys["1"] for n in range(1, 80)}, "bad-answer"),
    ]
    for given_keys, code in cases:
        made = {"keysets": [answer["keysets"][0] | {"keys": given_keys}]}
        assert code_of(parse_keys, made, info) == code
    assert code_of(parse_keys, {"keysets": []}, info) == "bad-answer"
    assert code_of(parse_keys, answer, replace(info, unit="usd")) == "bad-keyset"
    assert code_of(parse_keys, answer, replace(info, fee_ppk=1)) == "bad-keyset"
    for amount in (0, 1 << 64):  # under an id that is right
        name = keyset_id(replace(mint.keyset, keys={amount: GENERATOR}), 1)
        form = {"id": name, "unit": "sat", "keys": {str(amount): GENERATOR}}
        renamed = replace(info, id=name)
        assert code_of(parse_keys, {"keysets": [form]}, renamed) == "bad-keyset"
    older = MemoryMint(version=0)  # whose ids say nothing of the unit
    [info] = parse_keysets(get(older, "keysets"))
    answer = get(older, f"keys/{info.id}")
    assert code_of(parse_keys, answer, replace(info, unit="usd")) == "bad-keyset"


def test_states_are_told_of_every_proof():
    mint = MemoryMint()
    proofs = mint.issue([1, 2])
    answer = post(mint, "checkstate", check_body(proofs))
    answer["states"].reverse()
    assert parse_states(answer, proofs) == (ProofState.UNSPENT,) * 2
    assert code_of(parse_states, {"states": answer["states"][:1]}, proofs) == "bad-answer"
    answer["states"][0]["state"] = "MAYBE"
    assert code_of(parse_states, answer, proofs) == "bad-answer"


def test_what_a_mint_says_of_itself():
    info = parse_info(get(MemoryMint(), "info"))
    assert {7, 10, 11, 12} <= info.nuts
    said = {
        "nuts": {"11": {"supported": False}, "12": {"supported": True}, "4": {"disabled": True}}
    }
    assert parse_info(said | {"name": "a\x1b[31mb\n"}).nuts == {12}
    assert "\x1b" not in parse_info(said | {"name": "a\x1b[31mb\n"}).name
    assert parse_refusal({"code": 11001, "detail": "spent"}) == (11001, "spent")
    assert parse_refusal({"code": True, "detail": 7}) == (None, "")
    assert parse_refusal("oops") == (None, "")


FIELDS = (
    *("signatures", "outputs", "keysets", "states", "nuts", "keys", "id", "amount", "C_", "B_"),
    *("dleq", "e", "s", "Y", "state", "unit", "active", "quote", "request", "fee_reserve"),
    *("expiry", "change", "secret", "C", "witness", "input_fee_ppk"),
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([*NO_POINTS, "11" * 32, GENERATOR, 2**70]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(FIELDS),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None)
@given(values)
def test_any_answer_is_read_or_refused_by_name(value):
    mint = MINT
    outputs = OUTPUTS
    [info] = parse_keysets(get(mint, "keysets"))
    for call in (
        lambda: parse_info(value),
        lambda: parse_keysets(value),
        lambda: parse_keys(value, info),
        lambda: parse_mint_quote(value),
        lambda: parse_melt_quote(value),
        lambda: parse_states(value, mint.issue([1])),
        lambda: finish_restored(outputs, value, mint.keyset),
        lambda: finish(mint, outputs, value),
        lambda: finish_outputs(outputs, parse_signatures({"signatures": [value]}), mint.keyset),
    ):
        code_of(call)  # any other exception leaves it
    parse_refusal(value)


MINT = MemoryMint()
OUTPUTS, ANSWER = signed_outputs(MINT)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_an_answer_with_one_thing_changed_is_money_as_before_or_refused(data):
    answer = copy.deepcopy(ANSWER)
    at = answer["signatures"][data.draw(st.integers(0, 1))]
    field = data.draw(st.sampled_from(["id", "amount", "C_", "e", "s"]))
    at = at if field in at else at["dleq"]
    before = at[field]
    at[field] = data.draw(values | st.integers(0, 15).map(lambda bit: _flip(before, bit)))
    same = at[field] == before and type(at[field]) is type(before)
    code = code_of(finish, MINT, OUTPUTS, answer)
    assert (code is None) == same


def _flip(value: Any, position: int) -> Any:
    if isinstance(value, int):
        return value ^ (1 << position)
    digit = format(int(value[position], 16) ^ 1, "x")
    return value[:position] + digit + value[position + 1 :]


def test_the_switches_of_the_mint_in_memory():
    mint = MemoryMint(fee_ppk=1000)
    old = mint.issue([4])
    mint.rotate()
    outputs = prepare_outputs([1, 2], mint.keyset, SOURCE, 0)
    swap = ("POST", "/v1/swap", swap_body(old, outputs))
    mint.rate_limited = True
    assert mint.handle(*swap)[0] == 429
    mint.rate_limited, mint.down = False, True
    with pytest.raises(MintDown):
        mint.handle(*swap)
    mint.down = False
    assert mint.handle(*swap)[0] == 200  # the fee is that of the old keyset
    assert mint.handle(*swap)[1]["code"] == 11001
    stale = prepare_outputs([1, 2], next(iter(mint.keysets.values())), SOURCE, 9)
    proofs = finish_outputs(
        outputs, parse_signatures(post(mint, "restore", restore_body(outputs))), mint.keyset
    )
    assert mint.handle("POST", "/v1/swap", swap_body(proofs, stale))[1]["code"] == 12002
    mint.pending = {each["Y"] for each in post(mint, "checkstate", check_body(proofs))["states"]}
    fresh = prepare_outputs([1, 2], mint.keyset, SOURCE, 9)
    assert mint.handle("POST", "/v1/swap", swap_body(proofs, fresh))[1]["code"] == 11002
    mint.pending = set()
    bad = (replace(proofs[0], c=GENERATOR), *proofs[1:])
    assert mint.handle("POST", "/v1/swap", swap_body(bad, fresh))[1]["code"] == 10001
    assert mint.handle("POST", "/v1/swap", swap_body(proofs, outputs))[1]["code"] == 11003
    assert mint.handle("POST", "/v1/swap", swap_body(proofs, fresh[:1]))[1]["code"] == 11005
    assert mint.handle("POST", "/v1/swap", swap_body(proofs, fresh))[0] == 200
    assert Dleq("", "").r == ""
