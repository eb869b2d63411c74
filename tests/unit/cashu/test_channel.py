"""A payment channel: who can take what, and when, with a mint that only knows locks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nostrvpn.cashu.channel import (
    Channel,
    Update,
    channel_lock,
    channel_outputs,
    check_update,
    close_body,
    finish_close,
    open_channel,
    sign_update,
)
from nostrvpn.cashu.conditions import (
    Lock,
    SigFlag,
    lock_key,
    sign_all,
    sign_inputs,
)
from nostrvpn.cashu.operations import (
    finish_restored,
    parse_signatures,
    prepare_outputs,
    restore_body,
    swap_body,
)
from nostrvpn.cashu.secrets import SeedSource
from nostrvpn.errors import PeerMisbehaved
from tests.cashu_mint import MemoryMint

NOW = 1_800_000_000.0
PAYER, SELLER, REFUND = (bytes([number]) * 32 for number in (1, 2, 3))
A, B, R = map(lock_key, (PAYER, SELLER, REFUND))
LOCKTIME = int(NOW + 7200)
LOCK = channel_lock(A, B, LOCKTIME, R)
SEED = b"\5" * 32


def opened(mint: MemoryMint, amounts: tuple[int, ...] = (1024,)) -> Channel:
    funding = mint.issue(amounts, LOCK)
    return open_channel(funding, SEED, mint.keys.keysets, B, NOW + 3600)


def code_of(call: Any, *args: Any) -> str | None:
    try:
        call(*args)
    except PeerMisbehaved as error:
        return error.code
    return None


def close(mint: MemoryMint, channel: Channel, update: Update) -> tuple[int, Any]:
    return mint.handle("POST", "/v1/swap", close_body(channel, update, SELLER, mint.keyset))


@pytest.mark.parametrize("fee_ppk", [0, 100])
@pytest.mark.parametrize("rotated", [False, True])
def test_the_receiver_closes_at_the_last_balance(fee_ppk, rotated):
    mint = MemoryMint(fee_ppk=fee_ppk, now=NOW)
    channel = opened(mint, (1024, 256))
    assert channel.capacity == 1280 - (fee_ppk > 0)
    last = 0
    for balance in (1, 17, 300, 301):
        update = sign_update(channel, balance, PAYER)
        check_update(channel, update, last)
        last = balance
    if rotated:  # the payer signed for no keyset in particular
        mint.rotate(fee_ppk)
    status, answer = close(mint, channel, update)
    assert status == 200, answer
    ours, theirs = finish_close(channel, 301, parse_signatures(answer), mint.keyset)
    assert sum(proof.amount for proof in ours) == 301
    assert sum(proof.amount for proof in theirs) == channel.capacity - 301
    # The payer finds its part by itself, and each can spend only its own.
    _, outputs = channel_outputs(channel, 301, mint.keyset)
    _, known = mint.handle("POST", "/v1/restore", restore_body(outputs))
    assert set(finish_restored(outputs, known, mint.keyset)) == set(theirs)
    assert spend(mint, ours, REFUND)[0] == 400
    assert spend(mint, theirs, SELLER)[0] == 400
    assert spend(mint, ours, SELLER)[0] == 200
    assert spend(mint, theirs, REFUND)[0] == 200


def spend(mint: MemoryMint, proofs: Any, secret: bytes) -> tuple[int, Any]:
    worth = sum(p.amount for p in proofs) - -(-mint.keyset.fee_ppk * len(proofs) // 1000)
    amounts = [1 << bit for bit in range(worth.bit_length()) if worth >> bit & 1]
    outputs = prepare_outputs(amounts, mint.keyset, SeedSource(secret), len(mint.signed))
    return mint.handle("POST", "/v1/swap", swap_body(sign_inputs(proofs, secret), outputs))


def test_the_payer_alone_gets_nothing_before_the_locktime():
    mint = MemoryMint(now=NOW)
    channel = opened(mint)
    outputs = prepare_outputs([1024], mint.keyset, SeedSource(PAYER), 0)
    messages = [output.message for output in outputs]
    for keys in ((PAYER,), (REFUND,), (PAYER, REFUND), (SELLER,)):
        inputs = channel.funding
        for key in keys:
            inputs = sign_all(inputs, messages, key)
        assert mint.handle("POST", "/v1/swap", swap_body(inputs, outputs))[0] == 400
    mint.now = LOCKTIME + 1
    inputs = sign_all(channel.funding, messages, REFUND)
    assert mint.handle("POST", "/v1/swap", swap_body(inputs, outputs))[0] == 200
    # Too late for the receiver.
    assert close(mint, channel, sign_update(channel, 5, PAYER))[1]["code"] == 11001


def test_an_update_is_worth_its_own_balance_only():
    mint = MemoryMint(now=NOW)
    channel = opened(mint)
    update = sign_update(channel, 100, PAYER)
    check_update(channel, update, 100)
    cases = [
        (update, 101, "balance-fell"),
        (replace(update, balance=101), 0, "bad-signature"),
        (replace(update, balance=0), 0, "balance-fell"),
        (replace(update, balance=-5), -9, "balance-fell"),
        (replace(update, balance=1025), 0, "over-capacity"),
        (replace(update, balance=1 << 200), 0, "over-capacity"),
        (replace(update, signature="00" * 64), 0, "bad-signature"),
        (replace(update, signature="zz"), 0, "bad-signature"),
        (sign_update(channel, 100, SELLER), 0, "bad-signature"),
        (sign_update(replace(channel, seed=b"\6" * 32), 100, PAYER), 0, "bad-signature"),
    ]
    for wrong, last, code in cases:
        assert code_of(check_update, channel, wrong, last) == code
    assert close(mint, channel, replace(update, balance=101))[0] == 400
    with pytest.raises(ValueError, match="capacity"):
        sign_update(channel, 1025, PAYER)
    with pytest.raises(ValueError, match="capacity"):
        sign_update(channel, 0, PAYER)


@pytest.mark.parametrize(
    ("lock", "code"),
    [
        (None, "bad-channel"),
        (Lock(B), "bad-channel"),
        (Lock(A, LOCKTIME, (R,), (B,), 1, 1, SigFlag.ALL), "bad-channel"),
        (replace(LOCK, sigflag=SigFlag.INPUTS), "bad-channel"),
        (replace(LOCK, pubkeys=(R,)), "bad-channel"),
        (replace(LOCK, pubkeys=(B, R)), "bad-channel"),
        (replace(LOCK, refund=()), "bad-channel"),
        (replace(LOCK, refund=(R, A)), "bad-channel"),
        (replace(LOCK, locktime=None, refund=()), "bad-channel"),
        (replace(LOCK, locktime=int(NOW)), "locktime-too-early"),
        (replace(LOCK, key=B, pubkeys=(A,)), "bad-channel"),
    ],
)
def test_a_channel_under_any_other_lock_is_refused(lock, code):
    mint = MemoryMint(now=NOW)
    funding = mint.issue([64], lock)
    assert code_of(open_channel, funding, SEED, mint.keys.keysets, B, NOW + 3600) == code


def test_funding_that_a_mint_would_not_take_together_is_refused():
    mint = MemoryMint(now=NOW)
    one, two = mint.issue([64, 64], LOCK)
    [other] = mint.issue([64], replace(LOCK, locktime=LOCKTIME + 1))
    known = mint.keys.keysets

    def code(*funding: Any, seed: bytes = SEED) -> str | None:
        return code_of(open_channel, funding, seed, known, B, NOW + 3600)

    assert code(one, two) is None
    assert code() == "bad-channel"
    assert code(one, seed=b"short") == "bad-channel"
    assert code(one, other) == "bad-channel"
    assert code(one, one) == "duplicate-proof"
    assert code(*mint.issue([1] * 17, LOCK)) == "bad-channel"
    assert code(replace(one, dleq=None)) == "bad-dleq"
    spaced = replace(two, secret=two.secret.replace(",", ", "))  # the same lock, written otherwise
    assert code(one, spaced) == "bad-channel"
    expensive = MemoryMint(fee_ppk=1000, now=NOW)
    funding = expensive.issue([1], LOCK)
    assert code_of(open_channel, funding, SEED, expensive.keys.keysets, B, NOW) == "bad-channel"
    fresh = mint.rotate()
    both = (one, *mint.issue([64], LOCK))
    keysets = {fresh.id: fresh, one.keyset_id: replace(known[one.keyset_id], is_active=True)}
    assert code_of(open_channel, both, SEED, keysets, B, NOW) == "bad-channel"


def test_an_older_update_closes_where_the_payer_spoilt_the_last():
    mint = MemoryMint(now=NOW)
    channel = opened(mint)
    older, last = (sign_update(channel, balance, PAYER) for balance in (513, 515))
    receiver, _ = channel_outputs(channel, 515, mint.keyset)
    spoilt = replace(receiver[0], amount=1)
    body = swap_body(mint.issue([1]), (spoilt,))
    assert mint.handle("POST", "/v1/swap", body)[0] == 200
    assert close(mint, channel, last)[1]["code"] == 11003
    amounts = [each["amount"] for each in close_body(channel, last, SELLER, mint.keyset)["outputs"]]
    assert amounts == sorted(amounts)  # in an order that does not tell whose is whose
    assert close(mint, channel, older)[0] == 200


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 1024))
@example(512)  # the same amount on both sides
def test_both_sides_make_the_same_outputs_and_nothing_is_lost(balance):
    ours, theirs = channel_outputs(CHANNEL, balance, MINT.keyset)
    assert sum(output.amount for output in ours) == balance
    assert sum(output.amount for output in theirs) == CHANNEL.capacity - balance
    everything = (*ours, *theirs)
    assert len({output.b for output in everything}) == len(everything)
    assert len({output.r for output in everything}) == len(everything)
    assert (ours, theirs) == channel_outputs(CHANNEL, balance, MINT.keyset)


MINT = MemoryMint(now=NOW)
CHANNEL = opened(MINT)


def test_a_channel_shows_nothing_of_its_money():
    shown = repr(CHANNEL)
    assert SEED.hex() not in shown
    assert repr(SEED) not in shown
    assert CHANNEL.funding[0].secret not in shown
    assert len(CHANNEL.id) == 64
    assert CHANNEL.receiver == B
