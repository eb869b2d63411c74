"""Tokens and payment requests: what is written is read again, and nothing else gets through."""

from __future__ import annotations

import base64
import copy
import json
from dataclasses import replace
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nostrvpn.cashu.conditions import Lock, lock_key, sign_inputs
from nostrvpn.cashu.request import (
    LockWish,
    PaymentRequest,
    Transport,
    parse_request,
    render_request,
)
from nostrvpn.cashu.token import MAX_TOKEN, Token, expand_ids, parse_token, render_token
from nostrvpn.cashu.wire import parse_proofs, proof_dict
from nostrvpn.errors import PeerMisbehaved
from tests.cashu_mint import MemoryMint

MINT = MemoryMint()
SECRET = b"\1" * 32
PROOFS = sign_inputs(
    (*MINT.issue([1, 2]), *MINT.issue([4], Lock(lock_key(SECRET), 1_800_000_000))), SECRET
)
TOKEN = Token(MINT.url, PROOFS, memo="for you")


def code_of(call: Any, *args: Any) -> str | None:
    try:
        call(*args)
    except PeerMisbehaved as error:
        return error.code
    return None


def v4(form: Any) -> str:
    return "cashuB" + base64.urlsafe_b64encode(cbor2.dumps(form)).decode()


def v3(form: Any) -> str:
    return "cashuA" + base64.urlsafe_b64encode(json.dumps(form).encode()).decode()


def form_of(token: Token) -> Any:
    return cbor2.loads(base64.urlsafe_b64decode(render_token(token)[6:] + "==="))


def test_a_token_is_read_as_it_was_written():
    text = render_token(TOKEN)
    found = parse_token(f" cashu:{text}\n")
    assert {proof.keyset_id for proof in found.proofs} == {MINT.keyset.id[:16]}
    assert expand_ids(found, MINT.keysets) == TOKEN
    assert found.amount == 7
    assert "for you" not in repr(found)
    assert PROOFS[0].secret not in repr(found)


def test_a_token_of_version_3_is_read():
    proofs = [proof_dict(proof, dleq=True) for proof in PROOFS]
    entries = [
        {"mint": MINT.url, "proofs": proofs[:1]},
        {"mint": f"{MINT.url}/", "proofs": proofs[1:]},
    ]
    assert parse_token(v3({"token": entries, "memo": "for you"})) == TOKEN
    other = [entries[0], entries[1] | {"mint": "https://other.example"}]
    assert code_of(parse_token, v3({"token": other})) == "bad-mint"
    cases: list[Any] = [
        {},
        [],
        {"token": []},
        {"token": [1]},
        {"token": [{"mint": MINT.url}]},
        None,
    ]
    for wrong in cases:
        assert code_of(parse_token, v3(wrong)) == "bad-token"


def test_short_names_of_keysets_are_expanded_or_refused():
    found = parse_token(render_token(TOKEN))
    full, other = MINT.keyset.id, MINT.keyset.id[:16] + "0" * 50
    assert code_of(expand_ids, found, [other[:15] + "0" * 51]) == "unknown-keyset"
    assert code_of(expand_ids, found, []) == "unknown-keyset"
    assert code_of(expand_ids, found, [full, other]) == "ambiguous-keyset"
    assert expand_ids(TOKEN, [full, other]) == TOKEN


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"m": "http://mint.example"}, "bad-mint"),
        ({"m": "file:///etc/passwd"}, "bad-mint"),
        ({"m": 1}, "bad-token"),
        ({"u": ""}, "bad-token"),
        ({"u": None}, "bad-token"),
        ({"d": "x" * 2000}, "bad-token"),
        ({"d": 5}, "bad-token"),
        ({"t": []}, "bad-proof"),
        ({"t": [{"i": b"12345678"}]}, "bad-token"),
        ({"t": [{"i": "00ad268c4d1f5826", "p": []}]}, "bad-token"),
        ({"t": 7}, "bad-token"),
        ({"x": 1 << 200}, "bad-token"),
    ],
)
def test_a_token_with_something_wrong_is_refused_by_name(change, code):
    assert code_of(parse_token, v4(form_of(TOKEN) | change)) == code


@pytest.mark.parametrize(
    "change",
    [
        {"a": 0},
        {"a": -1},
        {"a": 1.0},
        {"a": True},
        {"a": 1 << 62},
        {"s": ""},
        {"s": b"bytes"},
        {"s": "x" * 1025},
        {"s": "\u2028"},
        {"c": b"\x04" + bytes(64)},
        {"c": bytes(33)},
        {"c": b""},
        {"c": "02" + "11" * 32},
        {"d": {"e": b"1", "s": b"2"}},
        {"d": {"e": bytes(32), "s": bytes(32), "r": "00" * 32}},
        {"w": 5},
        {"w": "x" * 5000},
    ],
)
def test_a_proof_with_something_wrong_is_refused(change):
    form = form_of(TOKEN)
    form["t"][0]["p"][0] |= change
    allowed = change.get("d", {}).get("r") is not None  # a DLEQ without r proves nothing, no more
    assert code_of(parse_token, v4(form)) == (None if allowed else "bad-proof")


def test_the_same_proof_twice_is_refused():
    assert (
        code_of(parse_token, render_token(replace(TOKEN, proofs=PROOFS * 2))) == "duplicate-proof"
    )
    assert code_of(parse_proofs, [proof_dict(PROOFS[0], dleq=True)] * 2) == "duplicate-proof"
    assert code_of(parse_proofs, []) == "bad-proof"
    assert code_of(parse_proofs, None) == "bad-proof"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"\x81" * 5000,
        b"\x9f\xff",
        b"\x9b" + b"\xff" * 8,
        b"\x5b\x7f" + b"\xff" * 7,
        b"\xc2\x59\xff\xff" + bytes(0xFFFF),  # a number of 65,535 bytes
        b"\xd8\x23\x61(",  # a pattern to compile
        b"\xd8\x1c\x81\xd8\x1d\x00",  # a list that contains itself
        b"\xa2\x61m\x01\x61m\x02",
        b"\xa1\xf6\x01",
        b"\x61\xff",
    ],
)
def test_cbor_that_is_not_plain_is_refused(data):
    text = base64.urlsafe_b64encode(data).decode()
    assert code_of(parse_token, "cashuB" + text) == "bad-token"
    assert code_of(parse_request, ("creqA" + text)[:8000]) == "bad-request"


def test_a_token_has_no_second_reading():
    data = cbor2.dumps(form_of(TOKEN))
    fields = data[0] & 0x1F
    twice = bytes([data[0] + 1]) + data[1:] + b"\x61u\x63usd"
    endless = b"\xbf" + data[1:] + b"\xff"
    deep = bytes([data[0] + 1]) + data[1:] + b"\x61x" + b"\x81" * 20 + b"\x00"
    plain = bytes([0xA0 + fields]) + data[1:]
    cases = ((plain, None), (twice, "bad-token"), (endless, "bad-token"), (deep, "bad-token"))
    for made, code in cases:
        assert code_of(parse_token, "cashuB" + base64.urlsafe_b64encode(made).decode()) == code


def test_a_token_that_is_too_long_or_deep_is_refused():
    entry = {"mint": MINT.url, "proofs": [proof_dict(PROOFS[0], dleq=True)]}
    for more, code in ((0, None), (MAX_TOKEN, "bad-token")):
        assert code_of(parse_token, v3({"token": [entry], "more": "x" * more})) == code
    assert code_of(parse_token, v3({"token": 0})[:-4] + "é") == "bad-token"
    deep = base64.urlsafe_b64encode(b"[" * 100_000).decode()
    assert code_of(parse_token, "cashuA" + deep) == "bad-token"


@settings(deadline=None)
@given(st.binary(max_size=60), st.sampled_from(["cashuA", "cashuB", "creqA", "cashu:", ""]))
def test_any_text_is_a_token_or_refused_by_name(data, prefix):
    for text in (prefix + base64.b64encode(data).decode(), prefix + data.decode("latin-1")):
        code_of(parse_token, text)  # any other exception leaves it
        code_of(parse_request, text)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4)
    | st.binary(max_size=34),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@settings(deadline=None)
@given(st.data())
def test_a_token_with_one_thing_replaced_is_read_or_refused_by_name(data):
    form = copy.deepcopy(form_of(TOKEN))
    at: Any = form
    for _ in range(data.draw(st.integers(0, 5))):
        keys = range(len(at)) if isinstance(at, list) else list(at)
        inner = at[data.draw(st.sampled_from(keys))]
        if not isinstance(inner, dict | list):
            break
        at = inner
    keys = range(len(at)) if isinstance(at, list) else list(at)
    at[data.draw(st.sampled_from(keys))] = data.draw(anything)
    code_of(parse_token, v4(form))


words = st.text(st.characters(codec="utf-8"), max_size=20)
tags = st.lists(st.lists(words, min_size=1, max_size=3).map(tuple), max_size=3).map(tuple)


@settings(deadline=None)
@given(
    st.builds(
        PaymentRequest,
        id=words,
        amount=st.none() | st.integers(0, 2**53),
        unit=st.just("sat"),
        mints=st.lists(words, max_size=3).map(tuple),
        lock=st.none() | st.builds(LockWish, st.just("P2PK"), words, tags),
        transports=st.lists(st.builds(Transport, words, words, tags), max_size=2).map(tuple),
        description=words,
        single_use=st.booleans(),
    )
)
def test_a_request_is_read_as_it_was_written(request_):
    assert parse_request(render_request(request_)) == request_


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["i", "a", "u", "s", "m", "d", "t", "nut10"]), anything))
def test_any_request_is_read_or_refused_by_name(form):
    text = "creqA" + base64.urlsafe_b64encode(cbor2.dumps(form)).decode()
    assert code_of(parse_request, text) in (None, "bad-request")


def test_a_request_for_an_amount_of_nothing_is_refused():
    assert code_of(parse_request, render_request(PaymentRequest(amount=5))) == "bad-request"
    assert code_of(parse_request, "creqB" + "A" * 20) == "bad-request"
    for more, code in ((0, None), (9000, "bad-request")):
        data = cbor2.dumps({"u": "sat", "more": "x" * more})
        assert code_of(parse_request, "creqA" + base64.b64encode(data).decode()) == code
