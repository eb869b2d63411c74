"""What the market adds to the node's answers."""

from __future__ import annotations

from typing import Any

import pytest

from nostrvpn.daemon.market_told import added, with_versions

QUIET: dict[str, Any] = {"state": "off", "reason": ""}
UNSOLD: dict[str, Any] = {"state": "off", "text": "nothing is sold"}
NODE: dict[str, Any] = {"problems": [{"code": "hard_nat"}], "exits": []}


def codes(purchase: dict[str, Any], sale: dict[str, Any]) -> list[str]:
    told = added("status", NODE, purchase, sale, 0)
    return [one["code"] for one in told["problems"]]


def test_nothing_is_bought_or_sold() -> None:
    assert codes(QUIET, UNSOLD) == ["hard_nat"]
    assert NODE["problems"] == [{"code": "hard_nat"}]  # the node's own answer stays


@pytest.mark.parametrize(
    ("state", "code"),
    [("short", "purchase_short"), ("paused", "purchase_paused"), ("looking", "purchase_waits")],
)
def test_a_purchase_that_does_not_go_on(state: str, code: str) -> None:
    purchase = {"state": state, "reason": "40 of 40 sat for a day are spent"}
    told = added("status", NODE, purchase, UNSOLD, 0)["problems"][-1]
    assert told["code"] == code
    assert "40 of 40 sat" in told["text"]
    assert "nostrvpn" in told["hint"]


@pytest.mark.parametrize("state", ["connected", "leaving", "asking", "trying", "paying"])
def test_a_purchase_that_goes_on_is_no_problem(state: str) -> None:
    assert codes({"state": state, "reason": ""}, UNSOLD) == ["hard_nat"]


def test_who_only_looks_is_not_told_that_somebody_is_silent() -> None:
    node = {"problems": [{"code": "exit_unreachable"}, {"code": "hard_nat"}]}
    for state, expected in (
        ("looking", ["hard_nat", "purchase_waits"]),
        ("trying", ["exit_unreachable", "hard_nat"]),
    ):
        told = added("status", node, {"state": state, "reason": ""}, UNSOLD, 0)["problems"]
        assert [one["code"] for one in told] == expected


def test_a_sale_without_ipv6_is_told_unless_nothing_is_sold_at_all() -> None:
    why = "ip6 filter FORWARD drops what buyers send: sudo nft insert rule"
    sale = with_versions({"state": "on", "text": "for sale", "lines": ["a"]}, why)
    assert sale["lines"] == ["a", f"without IPv6: {why}"]
    told = added("status", NODE, QUIET, sale, 0)["problems"][-1]
    assert (told["code"], told["severity"]) == ("sale_without_ipv6", "warning")
    assert why in told["text"]
    assert codes(QUIET, sale | {"state": "failed"}) == ["hard_nat", "sale_failed"]
    assert codes(QUIET, with_versions(sale, None)) == ["hard_nat"]


def test_a_seller_whom_nobody_reaches() -> None:
    why = "this host has no public address that buyers could reach"
    told = added("status", NODE, QUIET, {"state": "failed", "text": why}, 0)["problems"][-1]
    assert (told["code"], told["severity"]) == ("sale_failed", "error")
    assert why in told["text"]
    assert "--endpoint" in told["hint"]
    waiting = {"state": "waiting", "text": "once a relay has taken it"}
    assert codes(QUIET, waiting) == ["hard_nat", "sale_unlisted"]
    assert codes(QUIET, {"state": "on", "text": "for sale"}) == ["hard_nat"]


def test_other_answers() -> None:
    told = added("exit_status", {"state": "off"}, QUIET, UNSOLD, 5)
    assert (told["purchase"], told["sale"]["state"]) == (QUIET, "off")
    assert added("exit_list", NODE, QUIET, UNSOLD, 5)["wallet_sat"] == 5
    assert added("exit_off", {"state": "off"}, QUIET, UNSOLD, 5) == {"state": "off"}
