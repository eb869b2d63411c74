"""What ``allow``, ``deny``, ``rules``, ``shields-up`` and ``policy test`` ask of the daemon and say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nostrvpn.cli import permissions
from nostrvpn.cli.entry import main
from nostrvpn.control.schema import COMMANDS, parse_arguments

RULE = {
    "allow": True,
    "who": "npub1x",
    "at": "*",
    "what": "inbound",
    "text": "allow laptop inbound",
}
RULES = {
    "shields_up": True,
    "inbound": "ping",
    "same_owner": True,
    "local": [RULE],
    "network": [RULE | {"text": "deny tag:web lan"}],
}
ANSWERS: dict[str, Any] = {
    "permit": RULE | {"undone": False},
    "rules": RULES,
    "shields_up": {"shields_up": True},
    "policy_test": {
        "source": {"npub": "npub1x", "name": "laptop"},
        "target": {"npub": "npub1y", "name": "server"},
        "what": "inbound:tcp/22",
        "allowed": False,
        "layer": "default",
        "rule": None,
        "text": "no rule is about it",
        "note": "the rules of its own user are known there only",
    },
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, object]]]:
    """What the daemon was asked; each question passes the control interface's own checks."""
    calls: list[tuple[str, dict[str, object]]] = []

    class Client:
        def __init__(self, _path: str) -> None:
            pass

        def call(self, name: str, **args: object) -> Any:
            calls.append((name, parse_arguments(COMMANDS[name], json.dumps(args).encode())))
            return ANSWERS[name]

    monkeypatch.setattr(permissions, "ControlClient", Client)
    return calls


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        (("allow", "laptop"), {"allow": True}),
        (("deny", "laptop"), {"allow": False}),
        (("allow", "laptop", "inbound:tcp/22,icmp"), {"what": "inbound:tcp/22,icmp"}),
        (("allow", "laptop", "--undo"), {"undo": True}),
        (
            ("allow", "tag:web", "--network", "--at", "server"),
            {"who": "tag:web", "network": True, "at": "server"},
        ),
    ],
)
def test_rules_are_passed_on(
    asked: list[tuple[str, dict[str, object]]],
    arguments: tuple[str, ...],
    changed: dict[str, object],
) -> None:
    assert main(arguments) == 0
    usual = {
        "allow": True,
        "who": "laptop",
        "what": "inbound",
        "at": None,
        "network": False,
        "undo": False,
    }
    assert asked == [("permit", usual | changed)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("allow", "laptop"), "At this node: allow laptop inbound.\n"),
        (("allow", "laptop", "--network"), "In the whole network: allow laptop inbound.\n"),
        (("shields-up", "on"), "Shields are up: nothing is let in from the network.\n"),
        (
            ("policy", "test", "laptop", "server", "tcp/22"),
            "laptop may not inbound:tcp/22 at server:\n  no rule is about it\n"
            "  (the rules of its own user are known there only)\n",
        ),
    ],
)
def test_answers_are_sentences(
    asked: list[Any], capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out == said
    assert len(asked) == 1


def test_rules_are_listed_in_the_order_in_which_they_count(
    asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rules"]) == 0
    said = capsys.readouterr().out
    order = [
        "Shields are up",
        "allow laptop inbound",
        "deny tag:web lan",
        "same owner",
        "only ping",
    ]
    places = [said.index(words) for words in order]
    assert places == sorted(places)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "arguments",
    [("allow", "x"), ("deny", "x"), ("rules",), ("shields-up", "on"), ("policy", "test", "a", "b")],
)
def test_everything_is_json_on_demand(
    asked: list[tuple[str, dict[str, object]]],
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
) -> None:
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ANSWERS[asked[0][0]]


def test_wrong_usage_is_said_before_anybody_is_asked(asked: list[Any]) -> None:
    for arguments in (["allow"], ["shields-up", "maybe"], ["policy", "test", "me"], ["rules", "x"]):
        assert main(arguments) == 2
    assert asked == []
