"""What ``exec`` asks of the daemon, as whom the command runs, and what is given back when it fails."""

from __future__ import annotations

import json
import os
import pwd
from ipaddress import ip_address, ip_interface
from typing import Any

import pytest

from nostrvpn.cli import exec as exec_module
from nostrvpn.cli.entry import main
from nostrvpn.control.schema import COMMANDS, parse_arguments
from nostrvpn.errors import SystemRefused
from nostrvpn.io import booth, exit_rivals, forward_policy
from nostrvpn.io.booth import BoothPlan, resolver_text
from nostrvpn.io.forward_policy import Obstacle

ANSWER = {
    "link": "nvxec3",
    "outside": ["192.0.0.134/31", "fd9c:27e4:5b1d:ec::6/127"],
    "inside": ["192.0.0.135/31", "fd9c:27e4:5b1d:ec::7/127"],
    "exit": "fra",
    "tunnel": "nvpn0",
    "versions": [4, 6],
    "resolvers": ["10.91.0.2"],
    "applied": True,
}


class World:
    """What the command line asks of the daemon and of the kernel, in order."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.answer: dict[str, Any] = ANSWER
        self.enter_error: SystemRefused | None = None

    def call(self, name: str, **args: object) -> Any:
        self.done.append((name, parse_arguments(COMMANDS[name], json.dumps(args).encode())))
        return self.answer if name == "exec_begin" else {}

    def enter(self, plan: BoothPlan) -> None:
        if self.enter_error is not None:
            raise self.enter_error
        self.done.append(plan)

    def run(self, command: tuple[str, ...], environment: dict[str, str]) -> int:
        self.done.append((command, environment))
        return 127


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(exec_module, "ControlClient", lambda _path: made)
    monkeypatch.setattr(booth, "booths_taken", lambda: [0, 1])
    monkeypatch.setattr(booth, "enter_booth", made.enter)
    monkeypatch.setattr(booth, "become_user", lambda user: made.done.append(user.pw_name))
    monkeypatch.setattr(booth, "run_command", made.run)
    monkeypatch.setattr(exit_rivals, "exit_rivals", lambda _tunnel: [])
    monkeypatch.setattr(forward_policy, "forward_obstacle", lambda _tunnel, _versions: None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for name in ("SUDO_UID", "SUDO_USER"):
        monkeypatch.delenv(name, raising=False)
    return made


def test_the_booth_is_there_before_the_command_is(world: World) -> None:
    # What follows the first word belongs to the command.
    assert main(["exec", "--exit", "fra", "curl", "--user", "x", "--json"]) == 127
    plan = BoothPlan(
        "nvxec3",
        "nvpn0",
        tuple(ip_interface(text) for text in ANSWER["outside"]),  # type: ignore[attr-defined]
        tuple(ip_interface(text) for text in ANSWER["inside"]),  # type: ignore[attr-defined]
        (ip_address("10.91.0.2"),),
    )
    assert world.done[:3] == [
        ("exec_begin", {"peer": "fra", "taken": [0, 1]}),
        plan,
        ("exec_ready", {"link": "nvxec3"}),
    ]
    assert world.done[3][0] == ("curl", "--user", "x", "--json")
    assert len(world.done) == 4


@pytest.mark.parametrize(
    ("options", "caller", "name"),
    [
        ([], "65534", "nobody"),
        (["--user", "nobody"], None, "nobody"),
        (["--user", "root"], "65534", None),
        ([], None, None),
        ([], "0", None),
    ],
)
def test_it_runs_as_whoever_called_sudo_or_was_named(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    caller: str | None,
    name: str | None,
) -> None:
    if caller is not None:
        monkeypatch.setenv("SUDO_UID", caller)
    main(["exec", "--exit", "fra", *options, "--", "true"])
    became = [one for one in world.done if isinstance(one, str)]
    assert became == ([] if name is None else [name])
    if name is not None:
        _, environment = world.done[-1]
        home = pwd.getpwnam(name).pw_dir
        assert (environment["USER"], environment["HOME"]) == (name, home)


@pytest.mark.parametrize(
    ("applied", "error", "rivals"),
    [(False, None, []), (True, SystemRefused("no namespaces"), []), (True, None, ["nvpn1"])],
)
def test_what_was_begun_is_given_back_if_it_comes_to_nothing(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    applied: bool,
    error: SystemRefused | None,
    rivals: list[str],
) -> None:
    world.answer, world.enter_error = ANSWER | {"applied": applied}, error
    monkeypatch.setattr(exit_rivals, "exit_rivals", lambda _tunnel: rivals)
    assert main(["exec", "--exit", "fra", "--", "true"]) == 1
    assert [one[0] for one in world.done] == ["exec_begin", "exec_end"]
    assert "error: " in capsys.readouterr().err


def test_what_stands_in_the_way_is_said_before(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world.answer = ANSWER | {"resolvers": []}
    obstacle = Obstacle("ip filter FORWARD", "sudo ufw route allow in on nvpn0")
    monkeypatch.setattr(forward_policy, "forward_obstacle", lambda _tunnel, _versions: obstacle)
    main(["exec", "--exit", "fra", "--", "true"])
    said = capsys.readouterr().err
    assert "ip filter FORWARD" in said
    assert "sudo ufw route" in said
    assert "fra answers no DNS" in said


@pytest.mark.parametrize(
    ("line", "code", "word"),
    [
        (["exec", "--", "true"], 2, "--exit"),
        (["exec", "--exit", "fra"], 2, "COMMAND"),
        (["exec", "--exit", "fra", "--user", "no-such-user", "--", "true"], 2, "no-such-user"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_begun(
    world: World, capsys: pytest.CaptureFixture[str], line: list[str], code: int, word: str
) -> None:
    assert main(line) == code
    assert word in capsys.readouterr().err
    assert not world.done


def test_it_takes_root(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["exec", "--exit", "fra", "--", "true"]) == 1
    assert "sudo nostrvpn exec --exit fra -- true" in capsys.readouterr().err
    assert not world.done


def test_without_a_resolver_no_other_is_asked() -> None:
    assert "nameserver" not in resolver_text(())
    assert resolver_text((ip_address("fd00::2"),)).splitlines()[-1] == "nameserver fd00::2"
