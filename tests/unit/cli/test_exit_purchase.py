"""What ``exit status`` and ``exit list`` say of an exit that is paid for."""

from __future__ import annotations

from typing import Any

import pytest

from nostrvpn.cli import exits
from nostrvpn.cli.entry import main

LEASE: dict[str, Any] = {
    "offer": "ae32bf11ddde1b9e/exit",
    "seller": "ae" * 32,
    "country": "DE",
    "is_country_seen": False,
    "mode": "locked",
    "mint": "https://mint.example",
    "gib_msat": 20_001,
    "hour_msat": 5_000,
    "bytes": 3 << 20,
    "ms": 1000,
    "due_msat": 58,
    "paid_msat": 4_000,
    "rtt_ms": 40,
    "since": 1,
}
PURCHASE: dict[str, Any] = {
    "state": "connected",
    "text": "traffic goes through a bought exit",
    "reason": "",
    "spent_hour_sat": 16,
    "spent_day_sat": 34,
    "budget_hour_sat": 125,
    "budget_day_sat": 500,
    "coming_home_sat": 0,
    "lease": LEASE,
    "error": None,
}
STATUS: dict[str, Any] = {
    "state": "connected",
    "text": "IPv4 through ae32bf11ddde1b9e/exit",
    "allow_lan": False,
    "resolvers": [],
    "bypass": [],
    "trusted": [],
    "network": None,
    "exit": None,
}


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    answer: dict[str, Any] = {}

    class Daemon:
        def __init__(self, _path: str) -> None: ...

        def call(self, _name: str) -> Any:
            return answer

    monkeypatch.setattr(exits, "ControlClient", Daemon)
    return answer


def test_a_purchase_in_words(answer: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    answer.update(STATUS, purchase=PURCHASE)
    assert main(["exit", "status"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "ae32bf11ddde1b9e/exit, DE (claimed)",
        "20 sat/GiB and 5 sat/h, locked at https://mint.example",
        "3.0 MiB for 0.058 sat, 4 sat paid",
        "34 of 500 sat",
    ):
        assert words in shown
    assert "Coming home" not in shown


def test_money_that_comes_home_and_a_disk_that_is_full(
    answer: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"lease": None, "coming_home_sat": 12, "error": "no space left", "text": "looking"}
    answer.update(STATUS, state="connecting", purchase=PURCHASE | more)
    assert main(["exit", "status"]) == 0
    shown = capsys.readouterr().out
    assert "12 sat, not used and locked yet" in shown
    assert "no space left" in shown


def test_without_a_purchase_nothing_is_said_of_one(
    answer: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    answer.update(STATUS, purchase=PURCHASE | {"state": "off", "text": "no exit is bought"})
    assert main(["exit", "status"]) == 0
    assert "bought" not in capsys.readouterr().out


def test_the_list_names_the_market_to_who_can_pay(
    answer: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    answer.update(exits=[], wallet_sat=90)
    assert main(["exit", "list"]) == 0
    assert "nostrvpn market list" in capsys.readouterr().out
    answer["wallet_sat"] = 0
    assert main(["exit", "list"]) == 0
    assert "market" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value"), [("--bandwidth", "50"), ("--budget", "100"), ("--to", "members")]
)
def test_what_is_not_held_for_strangers_is_refused(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sale = ["exit", "offer", "--public", "--price", "20sat/GiB", "--mint", "https://mint.example"]
    assert main([*sale, option, value]) == 2
    assert f"{option} is for members" in capsys.readouterr().err


def test_an_exit_that_is_paid_by_invoice_has_no_mint(
    answer: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    lease = LEASE | {"mode": "bolt11", "mint": ""}
    answer.update(STATUS, purchase=PURCHASE | {"lease": lease})
    assert main(["exit", "status"]) == 0
    assert "5 sat/h, bolt11\n" in capsys.readouterr().out
