"""What ``exit`` and its commands ask of the daemon, what they say, and when they ask before."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nostrvpn.cli import exit_offer, exits
from nostrvpn.cli.entry import main
from nostrvpn.control.schema import COMMANDS, parse_arguments
from nostrvpn.io import ssh_session

STATUS: dict[str, Any] = {
    "state": "connected",
    "text": "IPv4 and IPv6 through fra in DE, as it says (kill switch on)",
    "since_s": 3.0,
    "wanted": "npub1x",
    "exit": {
        "npub": "npub1x",
        "name": "fra",
        "in_use": True,
        "since_s": 3.0,
        "state": "answers",
        "country": "DE",
        "country_observed": "NL",
        "rtt_ms": 20.5,
        "load": 10,
        "v4": True,
        "v6": False,
        "dns": True,
        "policy": "web",
        "path": "direct",
    },
    "kill_switch": "on",
    "allow_lan": False,
    "resolver": None,
    "resolvers": ["10.91.0.2"],
    "bypass": ["uid:1000"],
    "trusted": ["aa:bb:cc:dd:ee:ff 192.168.1.0/24"],
    "network": "aa:bb:cc:dd:ee:ff 192.168.1.0/24",
    "is_trusted": False,
    "damage": None,
    "shield_error": None,
    "dns_error": None,
}
PLAN = {
    "wanted": "fra",
    "lines": ["everything goes through fra, or nowhere"],
    "kept": ["fd00:1::/48", "10.91.0.0/16"],
    "allow_lan": False,
}
USE = {"kill_switch": None, "allow_lan": None, "resolver": None}


class Daemon:
    """Notes what it is asked, checked as the real one checks it."""

    asked: list[tuple[str, dict[str, object]]] = []  # noqa: RUF012 (of one test)

    def __init__(self, _path: str) -> None: ...

    def call(self, name: str, **args: object) -> Any:
        parsed = parse_arguments(COMMANDS[name], json.dumps(args).encode())
        Daemon.asked.append((name, parsed))
        if name == "exit_list":
            return {"exits": [STATUS["exit"]]}
        return PLAN if parsed.get("dry_run") else STATUS


@pytest.fixture(autouse=True)
def daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (exits, exit_offer):
        monkeypatch.setattr(module, "ControlClient", Daemon)
    monkeypatch.setattr(Daemon, "asked", [])
    from_afar(monkeypatch, None)


def from_afar(monkeypatch: pytest.MonkeyPatch, client: str | None) -> None:
    from ipaddress import ip_address

    found = None if client is None else ip_address(client)
    monkeypatch.setattr(ssh_session, "ssh_client", lambda: found)


@pytest.mark.parametrize(
    ("line", "command", "args"),
    [
        ("exit list", "exit_list", {}),
        ("exit status", "exit_status", {}),
        ("exit off", "exit_off", {"kill_switch": None}),
        ("exit off --kill-switch off", "exit_off", {"kill_switch": "off"}),
        ("exit use auto", "exit_use", {"peer": "auto", "dry_run": False} | USE),
        (
            "exit use fra --allow-lan --kill-switch lockdown --resolver 9.9.9.9",
            "exit_use",
            {
                "peer": "fra",
                "dry_run": False,
                "allow_lan": True,
                "kill_switch": "lockdown",
                "resolver": "9.9.9.9",
            },
        ),
        ("exit bypass list", "exit_bypass", {"action": "list", "words": []}),
        (
            "exit bypass add 203.0.113.0/24 uid:7",
            "exit_bypass",
            {"action": "add", "words": ["203.0.113.0/24", "uid:7"]},
        ),
        ("exit bypass remove a.org", "exit_bypass", {"action": "remove", "words": ["a.org"]}),
        ("exit trust add", "exit_trust", {"action": "add", "words": []}),
        ("exit trust list", "exit_trust", {"action": "list", "words": []}),
    ],
)
def test_what_is_typed_is_what_is_asked(line: str, command: str, args: dict[str, Any]) -> None:
    assert main(line.split()) == 0
    assert Daemon.asked[-1] == (command, args)
    assert COMMANDS[command].admin == (command not in ("exit_list", "exit_status"))


@pytest.mark.parametrize(
    "line",
    [
        "exit use",
        "exit use fra --kill-switch perhaps",
        "exit bypass add",
        "exit bypass list uid:7",
        "exit trust remove",
        "exit bypass forget uid:7",
        "exit offer --client-rate -3",
        "exit offer --bandwidth inf",
        "exit offer --budget nan",
        "exit offer --connections -1",
        "exit offer --country Germany",
        "exit offer --policy some",
    ],
)
def test_a_wrong_line_is_refused_before_anything_is_asked(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    assert Daemon.asked == []
    said = capsys.readouterr().err
    assert "hint" in said
    assert "exit_offer" not in said


@pytest.mark.parametrize(
    ("client", "kept", "is_cut"),
    [
        ("198.51.100.7", [], True),
        ("192.168.1.7", [], True),
        ("192.168.1.7", ["192.168.0.0/16"], False),
        ("10.91.0.9", [], False),
        ("127.0.0.1", [], False),
        ("2001:db8::1", [], True),
        (None, [], False),
    ],
)
def test_no_exit_is_used_unasked_if_that_cuts_the_operators_session(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    client: str | None,
    kept: list[str],
    is_cut: bool,
) -> None:
    from_afar(monkeypatch, client)
    monkeypatch.setitem(PLAN, "kept", ["fd00:1::/48", "10.91.0.0/16", *kept])
    assert main(["exit", "use", "fra"]) == (1 if is_cut else 0)
    asked = [args["dry_run"] for name, args in Daemon.asked]
    assert asked == ([True] if is_cut else [True, False])
    said = capsys.readouterr().err
    assert ("cuts the SSH session" in said) == is_cut
    assert "everything goes through fra" in said
    assert main(["exit", "use", "fra", "--json"]) == (1 if is_cut else 0)
    assert main(["exit", "use", "fra", "--yes", "--json"]) == 0
    assert Daemon.asked[-1][1]["dry_run"] is False


def test_the_hint_says_how_the_session_would_stay(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from_afar(monkeypatch, "192.168.1.7")
    main(["exit", "use", "fra"])
    assert "--allow-lan" in capsys.readouterr().err
    from_afar(monkeypatch, "52.0.2.7")
    main(["exit", "use", "fra"])
    said = capsys.readouterr().err
    assert "--allow-lan" not in said
    assert "exit bypass add 52.0.2.7" in said


def test_exits_are_shown_as_a_table_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exit", "list"]) == 0
    shown = capsys.readouterr().out
    for word in ("fra", "NL (claims DE)", "20.5 ms", "10 %", "IPv4, DNS", "web", "in use for"):
        assert word in shown
    assert main(["exit", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exits"][0]["name"] == "fra"


def test_status_is_shown_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exit", "status"]) == 0
    shown = capsys.readouterr().out
    for word in ("through fra", "cut off", "10.91.0.2", "uid:1000", "aa:bb:cc:dd:ee:ff"):
        assert word in shown


def test_the_client_of_an_ssh_session_is_found_although_sudo_forgets_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    shell = 4242
    for pid, parent in ((os.getpid(), shell), (shell, 1)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "status").write_text(f"Name:\tx\nPPid:\t{parent}\nUid:\t0\n")
    (tmp_path / str(shell) / "environ").write_bytes(b"HOME=/root\0")
    assert ssh_session.ssh_client(str(tmp_path)) is None
    environment = b"HOME=/root\0SSH_CONNECTION=::ffff:198.51.100.7 5000 192.0.2.1 22\0"
    (tmp_path / str(shell) / "environ").write_bytes(environment)
    assert str(ssh_session.ssh_client(str(tmp_path))) == "198.51.100.7"
    monkeypatch.setenv("SSH_CONNECTION", "fe80::1%eth0 5000 fe80::2 22")
    assert str(ssh_session.ssh_client(str(tmp_path))) == "fe80::1"
    monkeypatch.setenv("SSH_CONNECTION", "nonsense")
    assert str(ssh_session.ssh_client(str(tmp_path))) == "198.51.100.7"


def test_the_guard_is_not_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exit", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "bypass" in shown
    assert "guard" not in shown
