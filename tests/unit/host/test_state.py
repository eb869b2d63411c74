"""Marks, and what a link may be called."""

from __future__ import annotations

import pytest

from nostrvpn.host.state import HostState, is_interface_name, is_marked


@pytest.mark.parametrize("name", ["nvpn0", "a", "wg-home.1_x", "x" * 15])
def test_interface_names(name: str) -> None:
    assert is_interface_name(name)


@pytest.mark.parametrize(
    "name", ["", "x" * 16, "a/b", "..", ".", "-f", "a b", "a\n", "é", "a%d", "a:1"]
)
def test_names_no_interface_of_ours_has(name: str) -> None:
    assert not is_interface_name(name)
    with pytest.raises(ValueError, match="not an interface name"):
        HostState(name, mtu=1280)


def test_marks() -> None:
    assert is_marked("nostrvpn")
    assert is_marked("nostrvpn home")
    assert not is_marked("")
    assert not is_marked("my nostrvpn")


def test_an_alias_has_a_bound() -> None:
    with pytest.raises(ValueError, match="255"):
        HostState("nvpn0", 1280, alias="nostrvpn" + "é" * 124)
