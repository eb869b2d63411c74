"""Programs that manage the host's resolver: those that hang, and those that say strange bytes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from nostrvpn.errors import SystemRefused
from nostrvpn.host.resolver import LinkNames, Set
from nostrvpn.io.resolvconf import add_record
from nostrvpn.io.resolved import all_within, apply_link, is_running, observe_link, revert_link


@pytest.fixture
def program(tmp_path, monkeypatch):
    def put(name: str, script: str) -> None:
        path = Path(tmp_path) / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return put


def test_a_bus_that_hangs_is_waited_for_once_and_not_for_each_question(program):
    program("busctl", "exec sleep 60")
    began = time.monotonic()
    with all_within(0.3):
        assert is_running() is False
        for ask in (lambda: observe_link(7), lambda: revert_link(7)):
            with pytest.raises(SystemRefused, match="does not answer"):
                ask()
        with pytest.raises(SystemRefused, match="does not answer"):
            apply_link(7, [Set("nvpn0", "dns", LinkNames())] * 5)
    assert time.monotonic() - began < 4  # the limit, and a second for the program to end itself


def test_words_in_no_encoding_are_only_words(program):
    program("busctl", "printf 'kein \\337\\377 Dienst' >&2; exit 1")
    program("resolvconf", "printf 'nicht m\\366glich' >&2; exit 3")
    with pytest.raises(SystemRefused, match="kein"):
        revert_link(7)
    with pytest.raises(SystemRefused, match="nicht m"):
        add_record("nvpn0", "nameserver 192.0.2.1\n")
    program("busctl", "printf '\\377'")
    with pytest.raises(SystemRefused, match="not understood"):
        observe_link(7)


@pytest.mark.parametrize(("version", "words"), [("openresolv 3.12.0", "-x -a"), ("1.91", "-a")])
def test_only_openresolv_is_told_that_ours_is_alone(program, tmp_path, version, words):
    said = tmp_path / "said"
    script = f'if [ "$1" = --version ]; then echo "{version}"; else echo "$@" > {said}; fi'
    program("resolvconf", script)
    add_record("nvpn0", "", alone=True)
    assert said.read_text() == f"{words} tun0.nvpn0.nostrvpn\n"
    add_record("nvpn0", "")
    assert said.read_text() == "-a tun0.nvpn0.nostrvpn\n"
