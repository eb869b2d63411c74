"""Lease messages: what comes back is what was sent, and nothing else gets in."""

from __future__ import annotations

import json

import pytest

from nostrvpn.errors import PeerMisbehaved
from nostrvpn.market.attest import canonical_text, is_signed_by, signed
from nostrvpn.market.messages import (
    MAX_MESSAGE,
    NOTICE_CODES,
    Close,
    Fund,
    Grant,
    Low,
    Notice,
    Quote,
    QuoteRequest,
    Receipt,
    TopUp,
    Usage,
    parse_message,
    payment_id,
    render_message,
)
from nostrvpn.market.terms import PayMode
from nostrvpn.market.work import has_work, with_work
from nostrvpn.nostr.event import public_key

LEASE, POINT, KEY = "ab" * 16, "02" + "cd" * 32, "A" * 43 + "="
USAGE = Usage(
    lease_id=LEASE,
    number=3,
    at=1_790_000_000,
    rx=1,
    tx=2,
    billable=3,
    ms=4,
    due_msat=5,
    paid_msat=6,
    state="paid",
)
RECEIPT = Receipt(
    lease_id=LEASE,
    buyer="ef" * 32,
    offer_id="home",
    started_at=1,
    ended_at=2,
    rx=3,
    tx=4,
    billable=5,
    ms=6,
    due_msat=7,
    paid_msat=8,
    refund_sat=9,
    owed_sat=0,
    reason="done",
    token="cashuBabc",
)
REQUEST = QuoteRequest(
    key=LEASE,
    offer_id="home",
    offer_event="12" * 32,
    wg_pub=KEY,
    refund=POINT,
    mode=PayMode.LOCKED,
    relays=("wss://relay.example",),
)
MESSAGES = [
    REQUEST,
    Quote(
        key=LEASE,
        lease_id=LEASE,
        step_bytes=1,
        step_msat=2,
        hour_msat=3,
        mode=PayMode.PLAIN,
        mints=("https://mint.example",),
        free_bytes=4,
        grace_bytes=5,
        max_slice_sat=6,
        receiver=POINT,
        lock_s=2400,
        expires_at=7,
    ),
    Fund(lease_id=LEASE, seq=0, token="cashuB"),
    TopUp(lease_id=LEASE, seq=1, token="cashuB"),
    Grant(
        lease_id=LEASE,
        seq=0,
        payment="",
        paid_msat=0,
        free_bytes=1,
        access={"room": "blue", "volume": 7, "list": ["a"]},
    ),
    USAGE,
    Low(lease_id=LEASE, remaining_msat=1),
    *(Notice(level="error", code=code, lease_id=LEASE, seq=1) for code in sorted(NOTICE_CODES)),
    Close(lease_id=LEASE),
    RECEIPT,
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_comes_back(message):
    text = render_message(message)
    assert parse_message(text) == message
    assert json.loads(text)["v"] == 1
    more = json.dumps({**json.loads(text), "of_a_later_version": 1})
    assert parse_message(more) == message


BAD = [
    ("close", {"lease_id": "AB" * 16}),
    ("close", {"lease_id": LEASE + "\n"}),
    ("close", {}),
    ("fund", {"lease_id": LEASE, "seq": -1}),
    ("fund", {"lease_id": LEASE, "seq": 1.5}),
    ("fund", {"lease_id": LEASE, "seq": True}),
    ("fund", {"lease_id": LEASE, "seq": "0"}),
    ("topup", {"lease_id": LEASE, "seq": 1, "seed": "00"}),
    ("topup", {"lease_id": LEASE, "seq": 1, "balance": -1}),
    ("fund", {"lease_id": LEASE, "seq": 1, "signature": "00"}),
    ("topup", {"lease_id": LEASE, "seq": 1, "token": "x" * 20_001}),
    ("notice", {"level": "error", "code": "x" * 41}),
    ("notice", {"level": "error", "code": "UP"}),
    ("low", {"lease_id": LEASE, "remaining_msat": 10**20}),
    (
        "grant",
        {
            "lease_id": LEASE,
            "seq": 0,
            "payment": "",
            "paid_msat": 0,
            "free_bytes": 0,
            "access": {"a": {"b": 1}},
        },
    ),
    ("nothing", {}),
]


@pytest.mark.parametrize(("kind", "fields"), BAD)
def test_what_is_out_of_bounds_is_refused(kind, fields):
    with pytest.raises(PeerMisbehaved) as caught:
        parse_message(json.dumps({"v": 1, "type": kind, **fields}))
    assert caught.value.code == "malformed_message"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x" * (MAX_MESSAGE + 1), "long_message"),
        ('{"v":2,"type":"close"}', "unknown_version"),
        ('{"type":"close","lease_id":"' + LEASE + '"}', "malformed_message"),
        ("[" * 20_000, "malformed_message"),
        ("\ud800", "malformed_message"),
        ("null", "malformed_message"),
    ],
)
def test_what_is_no_message_has_a_code(text, code):
    with pytest.raises(PeerMisbehaved) as caught:
        parse_message(text)
    assert caught.value.code == code


@pytest.mark.parametrize("statement", [USAGE, RECEIPT])
def test_a_signature_covers_every_figure(statement):
    secret = b"\1" * 32
    seller = public_key(secret)
    word = signed(statement, secret, bytes(32))
    assert is_signed_by(word, seller)
    assert not is_signed_by(word, public_key(b"\2" * 32))
    assert not is_signed_by(statement, seller)
    assert not is_signed_by(word, "zz" * 32)
    for name in statement.__struct_fields__:
        value = getattr(word, name)
        if name in ("sig", "token"):
            continue
        changed = value + 1 if isinstance(value, int) else value[::-1] + "x"
        fields = {field: getattr(word, field) for field in word.__struct_fields__}
        assert not is_signed_by(type(word)(**{**fields, name: changed}), seller), name
    assert "cashu" not in canonical_text(word, seller)


def test_work_is_bound_to_both_sides_and_the_request():
    done = with_work(REQUEST, "buyer", "seller", 10)
    assert done is not None
    assert has_work(done, "buyer", "seller", 10)
    others = [("other", "seller"), ("buyer", "other")]
    assert not all(has_work(done, *who, 10) for who in others)
    assert has_work(REQUEST, "buyer", "seller", 0)
    assert with_work(REQUEST, "buyer", "seller", 28, tries=10) is None


def test_payments_are_known_by_their_proofs_in_any_order():
    assert payment_id(["b", "a"]) == payment_id(["a", "b"]) != payment_id(["a", "c"])
