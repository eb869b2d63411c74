"""What ``routes`` and its commands ask of the daemon, and what they say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nostrvpn.cli import routes
from nostrvpn.cli.entry import main
from nostrvpn.control.schema import COMMANDS, parse_arguments

ANSWER: dict[str, Any] = {
    "snat": False,
    "shared": [
        {
            "network": "10.9.0.0/16",
            "approved": False,
            "state": "not_approved",
            "text": "no admin did",
        }
    ],
    "routes": [
        {
            "network": "192.168.5.0/24",
            "router": "npub1x",
            "name": "office",
            "advertised": True,
            "approved": True,
            "accepted": False,
            "in_use": False,
            "via": None,
            "state": "not_accepted",
            "text": "this node does not accept it",
        }
    ],
    "choices": [],
}
NOTHING = {"snat": True, "shared": [], "routes": [], "choices": []}


class Daemon:
    """Notes what it is asked, checked as the real one checks it."""

    answer: Any = ANSWER

    def __init__(self, _path: str) -> None: ...

    asked: tuple[str, dict[str, object]] = ("", {})

    def call(self, name: str, **args: object) -> Any:
        Daemon.asked = (name, parse_arguments(COMMANDS[name], json.dumps(args).encode()))
        return self.answer


@pytest.fixture(autouse=True)
def daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "ControlClient", Daemon)
    monkeypatch.setattr(Daemon, "answer", ANSWER)


@pytest.mark.parametrize(
    ("line", "command", "args"),
    [
        ("routes", "routes", {}),
        (
            "routes advertise 192.168.5.0/24 fd12::/48",
            "routes_advertise",
            {"networks": ["192.168.5.0/24", "fd12::/48"], "withdraw": False, "snat": None},
        ),
        (
            "routes advertise --no-snat",
            "routes_advertise",
            {"networks": [], "withdraw": False, "snat": False},
        ),
        (
            "routes advertise --withdraw --snat fd12::/48",
            "routes_advertise",
            {"networks": ["fd12::/48"], "withdraw": True, "snat": True},
        ),
        (
            "routes approve office",
            "routes_approve",
            {"peer": "office", "networks": [], "withdraw": False},
        ),
        (
            "routes approve me fd12::/48 --withdraw",
            "routes_approve",
            {"peer": "me", "networks": ["fd12::/48"], "withdraw": True},
        ),
        (
            "routes accept all",
            "routes_accept",
            {"who": "all", "networks": [], "accept": True, "force": False},
        ),
        (
            "routes accept office 192.168.5.0/24 --force",
            "routes_accept",
            {"who": "office", "networks": ["192.168.5.0/24"], "accept": True, "force": True},
        ),
        (
            "routes refuse office fd12::/48",
            "routes_accept",
            {"who": "office", "networks": ["fd12::/48"], "accept": False, "force": False},
        ),
    ],
)
def test_what_the_daemon_is_asked(line: str, command: str, args: dict[str, object]) -> None:
    assert main(line.split()) == 0
    assert Daemon.asked == (command, args)
    assert COMMANDS[command].admin == (command != "routes")


def test_the_list_says_how_each_network_stands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["routes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    [own] = [line.split() for line in lines if "10.9.0.0/16" in line]
    assert own[1:6] == ["this", "node", "yes", "no", "-"]
    [office] = [line.split() for line in lines if "192.168.5.0/24" in line]
    assert office[1:5] == ["office", "yes", "yes", "no"]
    assert "need a route back" in lines[-1]


def test_an_empty_list_says_how_to_begin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Daemon, "answer", NOTHING)
    assert main(["routes"]) == 0
    assert "nostrvpn routes advertise" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["routes --json", "routes accept all --json"])
def test_json_is_what_the_daemon_said(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 0
    assert json.loads(capsys.readouterr().out) == ANSWER


def test_sharing_nothing_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["routes", "advertise"]) == 2
    assert "which network?" in capsys.readouterr().err
