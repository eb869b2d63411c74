"""How a seller ended a lease by itself: in order, or with what was not its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from nostrvpn.market.receipts import parting
from nostrvpn.market.terms import PayMode
from nostrvpn.market.trust import Outcome


@pytest.mark.parametrize(
    ("mode", "paid", "due", "refund", "owed", "expected"),
    [
        (PayMode.LOCKED, 0, 0, 0, 0, Outcome.SERVED),  # only tried
        (PayMode.LOCKED, 16_000, 2_500, 12, 0, Outcome.SERVED),
        (PayMode.PLAIN, 16_000, 2_500, 0, 12, Outcome.SERVED),  # the mint does not answer
        (PayMode.PLAIN, 16_000, 2_500, 0, 0, Outcome.BROKE_OFF),
        (PayMode.LOCKED, 900_000, 500_000, 330, 0, Outcome.SERVED),  # a dear mint's fee
        (PayMode.LOCKED, 900_000, 500_000, 300, 0, Outcome.BROKE_OFF),
        (PayMode.BOLT11, 16_000, 2_500, 0, 0, Outcome.SERVED),
    ],
)
def test_a_word_is_broken_by_keeping_money(
    mode: PayMode, paid: int, due: int, refund: int, owed: int, expected: Outcome
) -> None:
    receipt = SimpleNamespace(
        paid_msat=paid, due_msat=due, refund_sat=refund, owed_sat=owed, reason="stopped"
    )
    lease = SimpleNamespace(mode=mode)
    assert parting(cast("Any", lease), cast("Any", receipt)) == (
        "it ended the lease: stopped",
        expected,
    )
