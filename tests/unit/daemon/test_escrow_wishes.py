"""Whom ``--escrow`` may name."""

from __future__ import annotations

from typing import Any

import pytest

from nostrvpn.control.market_schema import ExitBuy
from nostrvpn.daemon.market_wishes import parse_wish, third_parties
from nostrvpn.errors import UsageError
from nostrvpn.identity.keys import RootSecret, npub
from nostrvpn.market.terms import PayMode
from nostrvpn.nostr.event import public_key

ROOT, JUDGE = RootSecret(bytes(31) + b"\x05"), RootSecret(bytes(31) + b"\x06")
ARBITER = public_key(JUDGE.arbiter_key())


def asked(**given: Any) -> dict[str, Any]:
    form = ExitBuy(**given)
    return {name: getattr(form, name) for name in form.__struct_fields__}


def test_escrow_is_a_way_to_pay_with_whom_was_named() -> None:
    wish = parse_wish(asked(escrow=[npub(ARBITER), npub(ARBITER)]), ROOT)
    assert (wish.modes, wish.arbiters) == ((PayMode.ESCROW,), (ARBITER,))
    assert parse_wish(asked(), ROOT).arbiters == ()
    with pytest.raises(UsageError, match="way to pay of its own"):
        parse_wish(asked(escrow=[npub(ARBITER)], pay="locked"), ROOT)


@pytest.mark.parametrize("own", ["node", "market", "payment", "arbiter", "rating"])
def test_no_key_of_this_node_is_a_third(own: str) -> None:
    keys = {
        "node": ROOT.public_key,
        "market": public_key(ROOT.market_key()),
        "payment": public_key(ROOT.payment_key()),
        "arbiter": public_key(ROOT.arbiter_key()),
        "rating": public_key(ROOT.rating_key()),
    }
    with pytest.raises(UsageError, match="a key of this node"):
        third_parties(ROOT, [npub(ARBITER), npub(keys[own])])
    assert len({*keys.values(), ARBITER}) == 6
