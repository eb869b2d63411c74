"""What ``exit status`` and ``exit list`` say of an exit that is paid for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nostrvpn.cli import exit_sale, exits
from nostrvpn.cli.entry import main
from nostrvpn.control.schema import COMMANDS, parse_arguments

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
UNSOLD = {"state": "off", "text": "nothing is sold"}
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
    answer.update(STATUS, sale=UNSOLD, purchase=PURCHASE)
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
    answer.update(STATUS, sale=UNSOLD, state="connecting", purchase=PURCHASE | more)
    assert main(["exit", "status"]) == 0
    shown = capsys.readouterr().out
    assert "12 sat, not used and locked yet" in shown
    assert "no space left" in shown


def test_after_exit_off_it_says_what_is_not_home_yet_and_how_a_sale_stands(
    answer: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    over = PURCHASE | {"state": "off", "text": "no exit is bought", "coming_home_sat": 15}
    sale = {"state": "failed", "text": "ip filter FORWARD drops what buyers send"}
    answer.update(STATUS | {"state": "off", "text": "no exit"}, purchase=over, sale=sale)
    assert main(["exit", "status"]) == 0
    shown = capsys.readouterr().out
    assert "15 sat, not used and locked yet" in shown
    assert "ip filter FORWARD drops" in shown
    assert "no exit is bought" not in shown


def test_without_a_purchase_nothing_is_said_of_one(
    answer: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    answer.update(
        STATUS, sale=UNSOLD, purchase=PURCHASE | {"state": "off", "text": "no exit is bought"}
    )
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


SALE = ["exit", "offer", "--public", "--price", "20sat/GiB", "--mint", "https://mint.example"]


def test_what_strangers_never_get_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SALE, "--to", "members"]) == 2
    assert "--to is for members" in capsys.readouterr().err


def test_what_all_together_get_and_when_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Daemon:
        def __init__(self, _path: str) -> None: ...

        def call(self, name: str, **args: object) -> Any:
            asked.append(parse_arguments(COMMANDS[name], json.dumps(args).encode()))
            return {"state": "on", "text": "this exit is for sale", "lines": []}

    monkeypatch.setattr(exit_sale, "ControlClient", Daemon)
    assert main([*SALE, "--bandwidth", "50", "--budget", "500", "--quiet", "01:00-07:00"]) == 0
    (said,) = asked
    assert (said["bandwidth"], said["budget"], said["quiet"]) == (50.0, 500.0, "01:00-07:00")


def test_an_exit_that_is_paid_by_invoice_has_no_mint(
    answer: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    lease = LEASE | {"mode": "bolt11", "mint": ""}
    answer.update(STATUS, sale=UNSOLD, purchase=PURCHASE | {"lease": lease})
    assert main(["exit", "status"]) == 0
    assert "5 sat/h, bolt11\n" in capsys.readouterr().out
