"""What a buyer makes of a receipt: whether the seller gave back what was not used."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from nostrvpn.machine import Entropy, Moment
from nostrvpn.market.receipts import take_receipt
from nostrvpn.market.terms import PayMode
from nostrvpn.market.trust import Outcome

MOMENT = Moment(0.0, 1_790_000_000.0, Entropy(b""))


def outcome_of(
    mode: PayMode, paid: int, due: int, *, fee_ppk: int = 0, **fields: object
) -> Outcome:
    """What such a lease counts for in the seller's history; ``fields``: of the receipt."""
    given: dict[str, Any] = {"refund_sat": 0, "owed_sat": 0, "token": ""} | fields
    receipt = SimpleNamespace(paid_msat=paid, due_msat=due, **given)
    parcels: list[Any] = []
    lease = SimpleNamespace(
        mode=mode, parcels=parcels, receipt=None, outcome=Outcome.SERVED, label="", mint=""
    )
    count = SimpleNamespace(lease=lease, refuse=lambda *_: None)
    pocket = SimpleNamespace(fee_ppk=lambda _mint: fee_ppk)
    take_receipt(cast("Any", count), cast("Any", pocket), cast("Any", receipt), MOMENT)
    return Outcome(lease.outcome)


@pytest.mark.parametrize(
    ("mode", "paid", "due", "owed", "fee_ppk", "expected"),
    [
        (PayMode.LOCKED, 0, 0, 0, 0, Outcome.SERVED),  # only tried
        (PayMode.PLAIN, 16_000, 2_500, 12, 0, Outcome.SERVED),  # the mint does not answer
        (PayMode.PLAIN, 16_000, 2_500, 0, 0, Outcome.BROKE_OFF),
        (PayMode.LOCKED, 16_000, 2_500, 0, 0, Outcome.BROKE_OFF),
        (PayMode.LOCKED, 16_000, 2_500, 10, 0, Outcome.BROKE_OFF),
        (PayMode.LOCKED, 16_000, 2_500, 3, 1000, Outcome.SERVED),  # a dear mint's fee
        (PayMode.LOCKED, 16_000, 14_500, 0, 100, Outcome.SERVED),
        (PayMode.BOLT11, 16_000, 2_500, 0, 0, Outcome.SERVED),
        (PayMode.CHANNEL, 16_000, 2_500, 0, 0, Outcome.SERVED),
    ],
)
def test_a_word_is_broken_by_keeping_money(
    mode: PayMode, paid: int, due: int, owed: int, fee_ppk: int, expected: Outcome
) -> None:
    assert outcome_of(mode, paid, due, owed_sat=owed, fee_ppk=fee_ppk) is expected


def test_a_refund_that_is_said_and_not_there_is_kept() -> None:
    assert outcome_of(PayMode.LOCKED, 16_000, 2_500, refund_sat=12) is Outcome.BROKE_OFF
