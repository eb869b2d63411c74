"""What ``market arbitrate`` and ``market dispute`` ask of the daemon, and what they say."""

from __future__ import annotations

from typing import Any

import pytest

from nostrvpn.cli import arbitration
from nostrvpn.cli.entry import main
from tests.unit.cli.asked import Daemon

CLAIM: dict[str, Any] = {
    "sat": 4,
    "used_msat": 1136,
    "due_msat": 7136,
    "paid_msat": 10_000,
    "bytes": 7_662_112,
    "ms": 3138,
    "mint": "https://mint.example",
    "reason": "stopped",
    "text": "it was\x1b[31m served",
    "quote": "00" * 32,
    "receipt": "",
}
CASE: dict[str, Any] = {
    "id": "3f56d122e88d4e9d" + "00" * 24,
    "lease": "f973290defe76a42" + "00" * 8,
    "seller": "npub1seller",
    "buyer": "npub1buyer",
    "state": "open",
    "opened_at": 1,
    "decided_at": None,
    "ends_at": 4_000_000_000,
    "claims": {"seller": CLAIM},
    "error": None,
}
ALL = {"npub": "npub1judge", "state": "closed", "only": ["npub1x"], "cases": [CASE], "error": None}


@pytest.fixture(autouse=True)
def daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arbitration, "ControlClient", Daemon)
    answers = {"market_cases": ALL, "market_arbitrate": ALL}
    answers["market_dispute"] = {"lease": CASE["lease"], "side": "seller"}
    monkeypatch.setattr(Daemon, "answers", answers)


def assert_asked(command: str, args: dict[str, Any]) -> None:
    name, given = Daemon.asked
    assert (name, {key: given[key] for key in args}) == (command, args)


@pytest.mark.parametrize(
    ("line", "command", "args"),
    [
        ("arbitrate list", "market_cases", {}),
        (
            "arbitrate start --only npub1x",
            "market_arbitrate",
            {"action": "start", "only": ["npub1x"]},
        ),
        ("arbitrate stop", "market_arbitrate", {"action": "stop"}),
        ("dispute f97329", "market_dispute", {"lease": "f97329", "text": ""}),
        ("dispute f97329 --text no", "market_dispute", {"lease": "f97329", "text": "no"}),
    ],
)
def test_what_is_asked(line: str, command: str, args: dict[str, object]) -> None:
    assert main(["market", *line.split(), "--json"]) == 0
    assert_asked(command, args)


def test_a_decision_names_its_winner(capsys: pytest.CaptureFixture[str]) -> None:
    Daemon.answers["market_arbitrate"] = CASE | {"state": "buyer"}
    assert main(["market", "arbitrate", "decide", "3f56d1", "--for", "buyer"]) == 0
    asked = {"action": "decide", "case": "3f56d1", "winner": "buyer"}
    assert_asked("market_arbitrate", asked)
    assert "Case 3f56d122e88d4e9d is the buyer's" in capsys.readouterr().out
    assert main(["market", "arbitrate", "decide", "3f56d1", "--for", "me"]) == 2


def test_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["market", "arbitrate", "list"]) == 0
    said = capsys.readouterr().out
    assert "You decide as npub1judge; claims are not heard: nostrvpn market arbitrate start" in said
    assert "3f56d122e88d4e9d" in said
    assert "only of npub1x" in said
    Daemon.answers["market_cases"] = CASE
    assert main(["market", "arbitrate", "show", "3f56d1"]) == 0
    said = capsys.readouterr().out
    assert "1.136 of 4 sat were used, 7.136 sat of the whole lease" in said
    assert "said nothing yet" in said
    assert "\x1b[31m" not in said  # a stranger's words move no terminal
    assert main(["market", "dispute", "f97329"]) == 0
    assert "as the seller of f973290defe76a42" in capsys.readouterr().out
