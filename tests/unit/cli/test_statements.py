"""``market selling``, ``sessions`` and ``earnings``: tables, CSV, bars, and what goes into a picture."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nostrvpn.cli import statements
from nostrvpn.cli.entry import main
from nostrvpn.cli.plot import charts
from nostrvpn.cli.statements import earnings_plot
from nostrvpn.market.ledger import Entry
from nostrvpn.market.statements import Earnings, Statement, csv_text, days_in_order, earnings
from tests.unit.cli.asked import Daemon

SOLD: dict[str, Any] = {
    "lease": "aa" * 16,
    "buyer": "bb" * 8,
    "offer": "=home",
    "state": "closed",
    "mode": "locked",
    "granted_at": 1_790_000_000,
    "started_at": 1_790_000_001,
    "ended_at": 1_790_000_100,
    "rx": 1 << 20,
    "tx": 2 << 20,
    "billable": 3 << 20,
    "ms": 99_000,
    "due_msat": 2_500,
    "paid_msat": 8_000,
    "refund_sat": 5,
    "refund": "given",
    "reason": "done[/]",
}
BOUGHT: dict[str, Any] = {
    "lease_id": "cc" * 16,
    "seller": "dd" * 32,
    "offer": "31900:dd:exit",
    "state": "served",
    "mode": "plain",
    "at": 1_790_000_200,
    "bytes": 5 << 20,
    "due_msat": 4_000,
    "credited_msat": 6_000,
    "paid_msat": 6_000,
    "refund_sat": 0,
    "label": "",
}
NOTHING = Earnings("2026-11-19", 0, 0, 0, 0, 0, 0, 0)
DAYS = [
    NOTHING,
    Earnings("2026-11-20", 2, 9_000, 4_000, 500, 4_000, 500, 0, 8 << 20),
    Earnings("2026-11-21", 1, 3_000, 2_000, 0, 1_000, 0, 0, 4 << 20),
]
EARNED: dict[str, Any] = {
    "days": [{name: getattr(day, name) for name in Earnings.__slots__} for day in DAYS],
    "accounts": {"sold": {"lease:x": -7_000, "earned": -6_000}, "bought": {"spent": 4_250}},
    "problems": ["lease x has 1 msat too much"],
}
SELLING = {"state": "on", "text": "this exit is for sale", "lines": ["20 sat/GiB"], "leases": 0}


@pytest.fixture(autouse=True)
def daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements, "ControlClient", Daemon)
    answers: dict[str, Any] = {"market_sessions": {"sold": [SOLD], "bought": [BOUGHT]}}
    answers |= {"market_earnings": EARNED, "market_selling": SELLING}
    monkeypatch.setattr(Daemon, "answers", answers)


@pytest.mark.parametrize(
    ("line", "command", "args"),
    [
        ("market selling", "market_selling", {}),
        ("market sessions", "market_sessions", {"days": 30}),
        ("market earnings --days 7", "market_earnings", {"days": 7}),
    ],
)
def test_what_is_asked(
    line: str, command: str, args: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 0
    assert Daemon.asked == (command, args)
    capsys.readouterr()
    assert main([*line.split(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == Daemon.answers[command]


@pytest.mark.parametrize(
    "line",
    [
        "market sessions --csv --json",
        "market earnings --csv --plot",
        "market earnings --plot x.png --json",
        "market earnings --plot x.pdf",
        "market earnings --days 0",
    ],
)
def test_what_is_refused(line: str) -> None:
    assert main(line.split()) == 2


def test_both_sides_in_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["market", "sessions"]) == 0
    bought, sold = [
        line.split()
        for line in capsys.readouterr().out.splitlines()
        if line.strip().startswith(("aa", "cc"))
    ]
    assert bought[1:5] == ["bought", "dd" * 8, "served", "plain"]
    assert bought[5:] == ["-", "5.0", "MiB", "4", "6", "0"]
    assert sold[1:5] == ["sold", "bb" * 8, "closed", "locked"]
    # The stranger's word stays a word.
    assert sold[-6:] == ["3.0", "MiB", "2.5", "8", "5", "done[/]"]
    Daemon.answers["market_sessions"] = {"sold": [], "bought": []}
    assert main(["market", "sessions", "--days", "3"]) == 0
    assert "Nothing was sold or bought in 3 days." in capsys.readouterr().out


def test_sessions_as_csv(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["market", "sessions", "--csv"]) == 0
    bought, sold = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (sold["side"], sold["lease"], sold["other"]) == ("sold", "aa" * 16, "bb" * 8)
    assert (sold["at"], sold["bytes"], sold["due_msat"]) == ("1790000100", str(3 << 20), "2500")
    assert sold["offer"] == "'=home"  # no formula for who opens it in a spreadsheet
    assert (bought["side"], bought["other"], bought["paid_msat"]) == ("bought", "dd" * 32, "6000")
    Daemon.answers["market_sessions"] = {"sold": [], "bought": []}
    assert main(["market", "sessions", "--csv"]) == 0
    [names] = csv.reader(io.StringIO(capsys.readouterr().out))  # without leases too
    assert names == list(sold)


def test_earnings_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["market", "earnings"]) == 0
    said = capsys.readouterr()
    assert "2026-11-19" not in said.out  # nothing happened
    assert "6.5 sat earned in 3 days." in said.out
    assert "7 sat are paid ahead" in said.out
    assert "4.25 sat spent on exits" in said.out
    assert "the books are wrong: lease x has 1 msat too much" in said.err


def test_earnings_as_csv(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["market", "earnings", "--csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0] == "day,sessions,received,earned,unused,refunds,fees,lost,bytes"
    assert lines[2] == f"2026-11-20,2,9000,4000,500,4000,500,0,{8 << 20}"


def test_bars_are_as_long_as_what_they_stand_for() -> None:
    out = io.StringIO()
    Console(file=out, width=200).print(earnings_plot(DAYS))
    days = [line for line in out.getvalue().splitlines() if "2026" in line]
    assert [line.split()[0] for line in days] == ["2026-11-20", "2026-11-21"]
    bars = [[word for word in line.split() if set(word) <= set("█▌▍▎▏▋▊▉")] for line in days]
    (most, most_used), (less, less_used) = [[len(bar) for bar in line] for line in bars]
    assert (most, most_used) == (30, 30)
    assert less == pytest.approx(30 * 2000 / 4500, abs=1)
    assert less_used == 15


def test_bars_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Daemon.answers["market_earnings"] = EARNED | {"days": EARNED["days"][:1]}
    assert main(["market", "earnings", "--plot"]) == 0
    assert "2026-11-19" in capsys.readouterr().out


def test_what_a_picture_shows() -> None:
    earned, used = charts(DAYS)
    assert earned.days == used.days == ("2026-11-19", "2026-11-20", "2026-11-21")
    assert (earned.unit, earned.bars) == ("sat earned", (0, 4.5, 2))
    assert (used.unit, used.bars) == ("MiB used", (0, 8, 4))


def test_a_picture_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from matplotlib.image import imread

    path = tmp_path / "earned.png"
    assert main(["market", "earnings", "--plot", str(path)]) == 0
    assert path.name in capsys.readouterr().out
    picture = imread(path)  # rows, columns, and red, green, blue, alpha from 0 to 1
    assert picture.shape == (600, 1000, 4)
    for half, channel in ((picture[:300], 1), (picture[300:], 2)):  # green bars above blue ones
        others = [half[..., other] for other in (0, 1, 2) if other != channel]
        assert all((half[..., channel] > other + 0.1).any() for other in others)
    assert main(["market", "earnings", "--plot", str(tmp_path / "none" / "x.png")]) == 1
    assert "cannot be written: No such file or directory" in capsys.readouterr().err


def test_a_picture_without_matplotlib_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("matplotlib", "matplotlib.backends", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["market", "earnings", "--plot", "x.png"]) == 1
    assert "pip install 'nostrvpn[plot]'" in capsys.readouterr().err


def test_selling(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["market", "selling"]) == 0
    assert capsys.readouterr().out == "This exit is for sale.\n  20 sat/GiB\n"
    Daemon.answers["market_selling"] = {"state": "off", "text": "nothing is sold", "lines": []}
    assert main(["market", "selling"]) == 0
    assert "nostrvpn exit offer --public" in capsys.readouterr().out


def test_days_without_anything_are_days_too() -> None:
    day = 86_400
    [row] = earnings([Entry("earned:x", 5 * day, "lease:x", "earned", 1500)])
    days = days_in_order([row], 6 * day + 5, 3)
    assert [(one.day, one.earned) for one in days] == [
        ("1970-01-05", 0),
        ("1970-01-06", 1500),
        ("1970-01-07", 0),
    ]


def test_csv_takes_no_line_break_for_a_row() -> None:
    row = Statement("sold", "a", "b", 'c"\n', "closed", "plain", 1, 2, 3, 4, 5, "x,y")
    [_, read] = csv.reader(io.StringIO(csv_text(Statement, [row])))
    assert (read[3], read[-1]) == ('c"\n', "x,y")
