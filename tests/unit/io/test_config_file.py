"""The configuration file: absent, good, bad, unreadable, and written once."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from nostrvpn.config.model import Config
from nostrvpn.config.parse import ConfigError
from nostrvpn.errors import NostrvpnError
from nostrvpn.io.config_file import check_choices, load_config, save_choices


def test_absent_means_defaults(tmp_path: Path) -> None:
    assert load_config(str(tmp_path / "none" / "config.yaml")) == Config()


def test_first_choices_make_a_commented_file(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "config.yaml"
    assert save_choices(str(path), None, ("wss://a.example",), default_name="host")
    assert load_config(str(path)).name == "host"
    assert load_config(str(path)).relays.urls == ("wss://a.example",)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert "#   mtu: 1280" in path.read_text()


def test_choices_are_added_to_a_users_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("# mine\nlog_level: debug\n")
    path.chmod(0o640)
    assert not save_choices(str(path), "bob", (), default_name="host")
    assert path.read_text() == "# mine\nlog_level: debug\nname: bob\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert not save_choices(str(path), None, (), default_name="host")
    with pytest.raises(ConfigError, match="already sets name to bob"):
        check_choices(str(path), "carol", ())


@pytest.mark.parametrize("data", [b"\xff\xfe", b"name: [", b"\x00"])
def test_bad_files_are_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    assert str(path) in str(caught.value)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NostrvpnError, match="Is a directory"):
        load_config(str(tmp_path))
