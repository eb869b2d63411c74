"""Whom ``--escrow`` may name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from nostrvpn.control.market_schema import ExitBuy
from nostrvpn.control.schema import COMMANDS, parse_arguments
from nostrvpn.daemon.escrow_commands import ESCROW_COMMANDS
from nostrvpn.daemon.lightning_commands import LIGHTNING_COMMANDS
from nostrvpn.daemon.market_wishes import parse_wish, third_parties
from nostrvpn.errors import UsageError, UserError
from nostrvpn.identity.keys import RootSecret, npub
from nostrvpn.market.arbiter import Arbiter
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


@pytest.mark.parametrize("typed", ["12", "Lease 7", "ff" * 40])
async def test_a_name_that_is_none_is_refused_in_words(typed: str) -> None:
    nothing: Any = SimpleNamespace(leases=(), leases_in_escrow=())
    lease = parse_arguments(COMMANDS["market_dispute"], msgspec.json.encode({"lease": typed}))
    with pytest.raises(UserError, match="is no lease in escrow here") as refused:
        await ESCROW_COMMANDS["market_dispute"](nothing, nothing, nothing, lease)
    assert "nostrvpn market sessions" in refused.value.hint
    bench: Any = SimpleNamespace(arbiter=Arbiter(JUDGE.arbiter_key()))
    case = parse_arguments(COMMANDS["market_cases"], msgspec.json.encode({"case": typed}))
    with pytest.raises(UserError, match="is no case here"):
        await ESCROW_COMMANDS["market_cases"](bench, nothing, nothing, case)
    node = {"payee": typed, "amount": 5}
    payment = parse_arguments(COMMANDS["wallet_keysend"], msgspec.json.encode(node))
    with pytest.raises(UsageError, match="is no Lightning node's key"):
        await LIGHTNING_COMMANDS["wallet_keysend"](nothing, nothing, payment)


def test_a_slow_exit_is_left_only_if_that_is_wanted() -> None:
    assert parse_wish(asked(max_rtt=300), ROOT).max_rtt_ms == 300
    assert parse_wish(asked(), ROOT).max_rtt_ms == 0


def test_a_budget_of_nothing_is_none() -> None:
    for text in ("0sat/day", "00sat/hour", "5", "-5sat/day"):
        with pytest.raises(UsageError, match="is no budget"):
            parse_wish(asked(budget=text), ROOT)
    assert parse_wish(asked(budget="1sat/day"), ROOT).ceilings.day_sat == 1
