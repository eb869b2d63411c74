"""The NUTs' own test vectors (tests/vectors/nuts.json; what the prose says of each block is here)."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from coincurve import PublicKey

from nostrvpn.cashu.answers import KeysetInfo, keyset_id, parse_keys
from nostrvpn.cashu.blind import blind, dleq_challenge, dleq_holds, hash_to_curve, proof_holds
from nostrvpn.cashu.conditions import (
    may_spend,
    parse_lock,
    sign_all_message,
    signatures_of,
)
from nostrvpn.cashu.proof import BlindedMessage, Dleq, Keyset
from nostrvpn.cashu.request import parse_request, render_request
from nostrvpn.cashu.secrets import SeedSource, entropy_of, seed_of, words_of
from nostrvpn.cashu.token import expand_ids, parse_token, render_token
from nostrvpn.cashu.wire import parse_proof
from nostrvpn.errors import PeerMisbehaved
from tests.cashu_mint import blind_sign, prove

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "nuts.json").read_text("utf-8"))
NOW = 1_800_000_000.0


def blocks(nut: str, under: str = "") -> list[str]:
    return [block["text"] for block in VECTORS[nut] if under in block["under"]]


def fields(text: str) -> list[dict[str, str]]:
    """``name: value  # remark`` in groups that a comment line or the end closes."""
    groups: list[dict[str, str]] = []
    for part in re.split(r"(?m)^# Test.*$", text):
        pairs = re.findall(r'(?m)^(\w+|mint private key|Message|Point):\s+"?(\w+)', part)
        groups += [dict(pairs)] if pairs else []
    return groups


def as_proof(form: dict[str, Any]) -> Any:
    return parse_proof(form)


def test_hash_to_curve():
    [text] = blocks("00", "Hash-to-curve")
    found = fields(text)
    assert len(found) == 3
    for each in found:
        made = hash_to_curve(bytes.fromhex(each["Message"]))
        assert made.format().hex() == each["Point"]


def test_blinded_messages_are_points_plus_r():
    [text] = blocks("00", "Blinded messages")
    found = fields(text)
    assert len(found) == 2
    for each in found:
        y = hash_to_curve(bytes.fromhex(each["x"]))
        total = PublicKey.combine_keys([y, PublicKey.from_secret(bytes.fromhex(each["r"]))])
        assert total.format().hex() == each["B_"]


def test_blind_takes_the_secret_as_text():
    y = hash_to_curve(b"test_message")
    r = (3).to_bytes(32, "big")
    assert (
        blind("test_message", r)
        == PublicKey.combine_keys([y, PublicKey.from_secret(r)]).format().hex()
    )


def test_the_mint_of_the_tests_signs_as_the_vectors_do():
    [text] = blocks("00", "Blinded signatures")
    found = fields(text)
    assert len(found) == 2
    for each in found:
        assert blind_sign(each["B_"], bytes.fromhex(each["mint private key"])) == each["C_"]


def test_tokens_of_version_3():
    plain, text = blocks("00", "Serialization of TokenV3")
    token, form = parse_token(text), json.loads(plain)
    assert token.mint == form["token"][0]["mint"]
    assert (token.unit, token.memo, token.amount) == ("sat", "Thank you.", 10)
    given = form["token"][0]["proofs"]
    assert [(p.amount, p.keyset_id, p.secret, p.c) for p in token.proofs] == [
        (p["amount"], p["id"], p["secret"], p["C"]) for p in given
    ]


def test_tokens_with_a_wrong_prefix_are_refused_and_padding_is_optional():
    wrong, padded, both = blocks("00", "Deserialization of TokenV3")
    for line in [line for line in wrong.splitlines() if line and not line.startswith("#")]:
        with pytest.raises(PeerMisbehaved) as refused:
            parse_token(line)
        assert refused.value.code == "bad-token"
    assert parse_token(padded).amount == 10
    one, other = [line for line in both.splitlines() if line.startswith("cashuA")]
    assert parse_token(one) == parse_token(other)
    assert one != other


def test_tokens_of_version_4():
    texts = [text for text in blocks("00") if text.startswith("cashuB")]
    one, several = map(parse_token, texts)
    assert one.mint == several.mint == "http://localhost:3338"
    assert (one.memo, one.amount, one.unit) == ("Thank you", 1, "sat")
    [proof] = one.proofs
    assert proof.keyset_id == "00ad268c4d1f5826"
    assert proof.secret == "9a6dbb847bd232ba76db0df197216b29d3b8cc14553cd27827fc1cc942fedb4e"
    assert proof.c == "038618543ffb6b8695df4ad4babcde92a34a96bdcd97dcee0d7ccf98d472126792"
    assert [(p.keyset_id, p.amount) for p in several.proofs] == [
        ("00ffd48b8f5ecf80", 1),
        ("00ad268c4d1f5826", 2),
        ("00ad268c4d1f5826", 1),
    ]
    # What we write is byte for byte what the vectors have.
    assert [render_token(token) for token in (one, several)] == [text.rstrip("=") for text in texts]
    assert expand_ids(several, ("00ffd48b8f5ecf80", "00ad268c4d1f5826")) == several


def keys_answer(text: str, name: str) -> dict[str, Any]:
    return {"keysets": [{"id": name, "unit": "sat", "keys": json.loads(text)}]}


def read_keys(text: str, version: int = 0) -> Keyset:
    """The keyset that a block of keys is, read as an answer under the id that follows from it."""
    keys = {int(amount): key.lower() for amount, key in json.loads(text).items()}
    name = keyset_id(Keyset("", "sat", True, 0, keys), version)
    return parse_keys(keys_answer(text, name), KeysetInfo(name, "sat", True))


def test_keys_that_are_no_compressed_points_are_refused():
    short, uncompressed, valid, large = blocks("01")
    for text in (short, uncompressed):
        with pytest.raises(PeerMisbehaved) as refused:
            parse_keys(keys_answer(text, "00" + "1" * 14), KeysetInfo("00" + "1" * 14, "sat", True))
        assert refused.value.code == "bad-answer"
    assert len(read_keys(valid).keys) == 4
    assert len(read_keys(large).keys) == 64


def test_keyset_ids_of_version_1():
    first, second = blocks("02", "Version 1")
    assert read_keys(first).id == "00456a94ab4e1c46"
    assert read_keys(second).id == "000f01df73ea149a"


@pytest.mark.parametrize(
    ("number", "fee", "expiry", "expected"),
    [
        (1, 100, 2059210353, "015ba18a8adcd02e715a58358eb618da4a4b3791151a4bee5e968bb88406ccf76a"),
        (2, 0, 2059210353, "01ab6aa4ff30390da34986d84be5274b48ad7a74265d791095bfc39f4098d9764f"),
        (3, 0, None, "012fbb01a4e200c76df911eeba3b8fe1831202914b24664f4bccbd25852a6708f8"),
    ],
)
def test_keyset_ids_of_version_2(number, fee, expiry, expected):
    [text] = blocks("02", f"Vector {number}")
    info = KeysetInfo(expected, "sat", True, fee, expiry)
    assert parse_keys(keys_answer(text, expected), info).id == expected
    with pytest.raises(PeerMisbehaved) as refused:  # another fee is another keyset
        parse_keys(keys_answer(text, expected), KeysetInfo(expected, "sat", True, fee + 1, expiry))
    assert refused.value.code == "bad-keyset"


def inputs_of(text: str) -> Any:
    return as_proof(json.loads(text))


def is_spendable(text: str, now: float = NOW) -> bool:
    proof = inputs_of(text)
    lock = parse_lock(proof.secret)
    assert lock is not None
    return may_spend(lock, proof.secret.encode(), signatures_of(proof.witness), now)


def test_signatures_on_inputs():
    valid, other, several, one, refund, early = blocks("11", "SIG_INPUTS")
    assert is_spendable(valid)
    assert not is_spendable(other)
    assert is_spendable(several)
    assert not is_spendable(one)
    assert is_spendable(refund)
    assert not is_spendable(refund, now=20.0)
    assert not is_spendable(early)


def test_several_signers_and_refunds():
    [locked] = blocks("11", "Multisig Test Vectors")
    [main] = blocks("11", "Valid Locktime Multisig")
    [refund] = blocks("11", "Valid Refund Multisig")
    assert parse_lock(inputs_of(locked).secret) == parse_lock(inputs_of(main).secret)
    assert is_spendable(main)
    assert is_spendable(main, now=0.0)
    assert is_spendable(refund)
    assert not is_spendable(refund, now=0.0)


def sign_all_cases() -> list[str]:
    return [text for text in blocks("11", "SIG_ALL") if text.startswith("{")]


def sign_all_holds(text: str) -> bool:
    form = json.loads(text)
    inputs = [as_proof(each) for each in form["inputs"]]
    outputs = [BlindedMessage(each["id"], each["amount"], each["B_"]) for each in form["outputs"]]
    locks = {parse_lock(proof.secret) for proof in inputs}
    lock = locks.pop()
    if locks or lock is None:
        return False
    message = sign_all_message(inputs, outputs, form.get("quote", ""))
    return may_spend(lock, message, signatures_of(inputs[0].witness), NOW)


def test_signatures_on_everything():
    cases = sign_all_cases()
    p2pk = [text for text in cases if "HTLC" not in text]
    # one key; the same; two different secrets; two of two; refund of two; melts: one key, the same, two
    assert [sign_all_holds(text) for text in p2pk] == [
        *(True, True, False, True, True),
        *(True, True, True),
    ]


def test_what_is_signed_for_everything():
    swap, melt = [text for text in blocks("11", "SIG_ALL") if text.startswith("[")]
    for expected in (swap, melt):
        found = [
            text
            for text in sign_all_cases()
            if json.loads(text)["inputs"][0]["C"] in expected and "HTLC" not in text
        ]
        assert found
        for text in found:
            form = json.loads(text)
            outputs = [BlindedMessage(o["id"], o["amount"], o["B_"]) for o in form["outputs"]]
            inputs = [as_proof(each) for each in form["inputs"]]
            assert sign_all_message(inputs, outputs, form.get("quote", "")) == expected.encode()
    digest = "de7f9e3ca0fcc5ed3258fcf83dbf1be7fa78a5ed6da7bf2aa60d61e9dc6eb09a"
    assert hashlib.sha256(swap.encode()).hexdigest() == digest


def test_hash_locks_are_refused():
    found = [text for text in sign_all_cases() if "HTLC" in text]
    assert len(found) == 3
    for text in found:
        with pytest.raises(PeerMisbehaved) as refused:
            parse_lock(json.loads(text)["inputs"][0]["secret"])
        assert refused.value.code == "locked-token"


def test_the_challenge_of_a_dleq():
    given, expected = blocks("12", "hash_e")
    points = [PublicKey(bytes.fromhex(text)) for text in re.findall(r'"(\w{66})"', given)]
    assert len(points) == 4
    assert dleq_challenge(*points).hex() in expected


def test_the_mint_of_the_tests_proves_as_the_vectors_do():
    given, expected = blocks("12", "Deterministic nonce")
    [known] = fields(given)
    [proof] = fields(expected)
    made = prove(known["B_"], bytes.fromhex(known["a"]))
    assert (made.e, made.s) == (proof["e"], proof["s"])
    assert dleq_holds(known["B_"], known["C_"], made, known["A"])


def test_dleq_of_a_signature():
    given, text = blocks("12", "`BlindSignature`")
    [known], form = fields(given), json.loads(text)
    dleq = Dleq(form["dleq"]["e"], form["dleq"]["s"])
    assert dleq_holds(known["B_"], form["C_"], dleq, known["A"])
    assert not dleq_holds(known["B_"], form["C_"], Dleq(dleq.s, dleq.e), known["A"])


def test_dleq_of_a_proof():
    given, text = blocks("12", "`Proof`")
    [known] = fields(given)
    proof = as_proof(json.loads(text))
    assert proof_holds(proof, known["A"])
    other = json.loads(text) | {"secret": "another"}
    assert not proof_holds(as_proof(other), known["A"])


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("Version 1", "009a1f293253e41e"),
        ("Version 2", "015ba18a8adcd02e715a58358eb618da4a4b3791151a4bee5e968bb88406ccf76a"),
    ],
)
def test_secrets_from_words(version, name):
    words, secrets, factors, *_ = map(json.loads, blocks("13", f"{version}: Secret derivation"))
    source = SeedSource(seed_of(words["mnemonic"]))
    for number in range(5):
        secret, r = source.output(name, number)
        assert secret == secrets[f"secret_{number}"]
        assert r.hex() == factors[f"r_{number}"]
    assert words_of(entropy_of(words["mnemonic"])) == words["mnemonic"]


@pytest.mark.parametrize("number", range(6))
def test_payment_requests(number):
    texts = blocks("18")
    form, text = json.loads(texts[2 * number]), texts[2 * number + 1]
    found = parse_request(text)
    assert parse_request(render_request(found)) == found
    if number == 0:  # the two blocks of the first vector do not have the same transport and mint
        assert (found.id, found.amount, found.unit) == (form["i"], form["a"], form["u"])
        return
    assert found.id == form["i"]
    assert found.amount == form.get("a")
    assert found.unit == form["u"]
    assert list(found.mints) == form["m"]
    assert found.single_use == form.get("s", False)
    assert found.description == form.get("d", "")
    assert [(each.kind, each.target) for each in found.transports] == [
        (each["t"], each["a"]) for each in form.get("t", [])
    ]
    assert [[list(tag) for tag in each.tags] for each in found.transports] == [
        each.get("g", []) for each in form.get("t", [])
    ]
    lock = form.get("nut10")
    assert (found.lock is None) == (lock is None)
    if found.lock is not None:
        assert (found.lock.kind, found.lock.data) == (lock["k"], lock["d"])
        assert [list(tag) for tag in found.lock.tags] == lock["t"]
