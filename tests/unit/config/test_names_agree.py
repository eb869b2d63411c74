"""Everybody who asks whether a text is a name asks the same."""

from __future__ import annotations

import msgspec
import pytest

from nostrvpn.cli.entry import _check_interface
from nostrvpn.config.model import Config, WireGuard
from nostrvpn.control.schema import COMMANDS, parse_arguments
from nostrvpn.errors import NostrvpnError
from nostrvpn.host.state import is_interface_name


@pytest.mark.parametrize(
    "name",
    [
        "nvpn0",
        "a",
        "a.b-c_d",
        "A" * 15,
        "A" * 16,
        "",
        "_x",
        "-x",
        ".",
        "nvpn0\n",
        "a b",
        "a/b",
        "é",
    ],
)
def test_a_name_of_an_interface_is_one_everywhere(name: str) -> None:
    wanted = is_interface_name(name)
    try:
        msgspec.convert({"interface": name}, WireGuard)
    except msgspec.ValidationError:
        assert not wanted
    else:
        assert wanted
    try:
        _check_interface(name)
    except NostrvpnError:
        assert not wanted
    else:
        assert wanted


def test_a_line_break_belongs_to_no_name() -> None:
    with pytest.raises(NostrvpnError):
        parse_arguments(COMMANDS["network_create"], b'{"name": "abc\\n"}')
    for name in ("abc\n", "\n"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"name": name}, Config)
    assert msgspec.convert({"name": ""}, Config).name == ""
