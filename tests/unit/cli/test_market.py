"""What ``market`` and its commands ask of the daemon, and what they say."""

from __future__ import annotations

from typing import Any

import pytest

from nostrvpn.cli import market
from nostrvpn.cli.entry import main
from tests.unit.cli.asked import Daemon

ROW: dict[str, Any] = {
    "ref": "ae32bf11ddde1b9e/exit",
    "seller": "npub1x",
    "market": "nostrvpn",
    "country": "DE",
    "ip_versions": [4, 6],
    "pay": ["locked"],
    "gib_msat": 20_001,
    "hour_msat": 0,
    "trust": 0.54,
    "rtt_ms": None,
    "quote_ms": 350.0,
    "country_seen": "NL",
    "usable": True,
    "why_not": [],
}
FOREIGN = {key: value for key, value in ROW.items() if key != "pay"} | {
    "ref": "bb/x",
    "market": "vpn-marketplace",
    "price": "5 USD/month",
    "gib_msat": None,
    "hour_msat": None,
    "country": None,
    "usable": False,
    "why_not": [{"code": "foreign", "text": "shown for its price only"}],
}
LISTED: dict[str, Any] = {"offers": [ROW, FOREIGN], "left_out": 3, "follows": 0}
WHY = ROW | {
    "escrow": ["npub1judge"],
    "lines": ["trust 0.54 of 1"],
    "why_not": [{"code": "muted", "text": "on your mute list"}],
}
SAID = {"seller": "npub1x", "score": -60, "accepted": 2, "receipt": None, "type": "spam"}
LISTS = {"seller": "npub1x", "denied": ["npub1x"], "allowed": []}


@pytest.fixture(autouse=True)
def daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(market, "ControlClient", Daemon)
    answers = {"market_list": LISTED, "market_why": WHY, "market_rate": SAID}
    answers |= {"market_report": SAID, "market_deny": LISTS, "market_allow": LISTS}
    monkeypatch.setattr(Daemon, "answers", answers)


ASKED: dict[str, Any] = {"country": [], "mint": [], "max_price": "", "max_price_time": ""}
ASKED |= {"ip_version": None, "sort": "trust", "refresh": False}


@pytest.mark.parametrize(
    ("line", "command", "args"),
    [
        ("market list", "market_list", ASKED),
        (
            "market list --country de --country FR --max-price 50sat/GiB --max-price-time 1sat/h "
            "--mint https://mint.example --ip-version 6 --sort price --refresh",
            "market_list",
            {
                "country": ["de", "FR"],
                "mint": ["https://mint.example"],
                "max_price": "50sat/GiB",
                "max_price_time": "1sat/h",
                "ip_version": 6,
                "sort": "price",
                "refresh": True,
            },
        ),
        ("market why ae32/exit", "market_why", {"offer": "ae32/exit"}),
        (
            "market rate lease12 -60 --label overcharge --label speed",
            "market_rate",
            {"target": "lease12", "score": -60, "labels": ["overcharge", "speed"], "as_me": False},
        ),
        (
            "market rate x 100 --as-me",
            "market_rate",
            {"target": "x", "score": 100, "labels": [], "as_me": True},
        ),
        (
            "market report x --type spam",
            "market_report",
            {"target": "x", "type": "spam", "as_me": False},
        ),
        ("market deny npub1x", "market_deny", {"seller": "npub1x", "remove": False}),
        ("market allow npub1x --remove", "market_allow", {"seller": "npub1x", "remove": True}),
    ],
)
def test_what_is_asked(line: str, command: str, args: dict[str, object]) -> None:
    assert main(line.split()) == 0
    assert Daemon.asked == (command, args)
    assert main([*line.split(), "--json"]) == 0


@pytest.mark.parametrize(
    "line",
    ["market rate x 101", "market rate x", "market list --sort luck", "market report x --type war"],
)
def test_what_is_refused(line: str) -> None:
    assert main(line.split()) == 2


def test_what_the_list_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["market", "list"]) == 0
    shown = capsys.readouterr().out
    for words in ("ae32bf11ddde1b9e/exit", " 20 ", "0.54", "5 USD/month", "price only", "3 more"):
        assert words in shown
    assert ("NL" in shown, "(350 ms)" in shown) == (True, True)
    assert "market.follow" in shown
    Daemon.answers["market_list"] = {"offers": [], "left_out": 0, "follows": 1}
    assert main(["market", "list"]) == 0
    assert "No offers" in capsys.readouterr().out


def test_what_else_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["market", "why", "x"]) == 0
    said = capsys.readouterr().out
    assert "not to be bought: on your mute list" in said
    assert "in escrow with npub1judge" in said
    assert main(["market", "rate", "x", "-60"]) == 0
    assert "Rated npub1x -60; 2 relays took it." in capsys.readouterr().out
    Daemon.answers["market_report"] = SAID | {"accepted": 0}
    assert main(["market", "report", "x"]) == 0
    assert "no relay took it" in capsys.readouterr().err
    assert main(["market", "deny", "x"]) == 0
    assert "denied  npub1x" in capsys.readouterr().out
