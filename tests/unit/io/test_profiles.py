"""The networks of a node on disk: which there are, which one is spoken to."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from nostrvpn.config.options import FIRST, Options
from nostrvpn.errors import SystemRefused, UserError
from nostrvpn.io.config_file import load_config
from nostrvpn.io.durable_file import AlreadyExists
from nostrvpn.io.lock import StateLock
from nostrvpn.io.profiles import (
    create_profile,
    profiles,
    remove_profile,
    select_profile,
    selected_profile,
    used_profiles,
)


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(
        state_dir=str(tmp_path / "state"),
        runtime_dir=str(tmp_path / "run"),
        config=str(tmp_path / "config.yaml"),
        interface="nvtest0",
    )


def test_a_node_begins_with_one(options: Options) -> None:
    assert profiles(options) == used_profiles(options) == (FIRST,)
    assert selected_profile(options) == FIRST
    assert not Path(options.state_dir).exists()


def test_each_has_its_place_and_interface(options: Options) -> None:
    work, play = create_profile(options, "work"), create_profile(options, "play")
    assert profiles(options) == (FIRST, "play", "work")
    for made, interface in ((work, "nvtest1"), (play, "nvtest2")):
        assert made.interface_name(load_config(made.config, made.overlay)) == interface
        assert Path(made.home).stat().st_mode & 0o777 == 0o700
    for name, error in (("work", AlreadyExists), (FIRST, UserError), ("a/b", ValueError)):
        with pytest.raises(error):
            create_profile(options, name)
    # What else lies there is no network.
    (Path(options.state_dir) / "networks/Not A Network").mkdir()
    (Path(options.state_dir) / "networks/file").write_text("")
    assert profiles(options) == (FIRST, "play", "work")


def test_a_first_one_without_state_is_not_used_beside_others(options: Options) -> None:
    create_profile(options, "work")
    assert used_profiles(options) == ("work",)
    assert selected_profile(options) == "work"
    Path(options.store_path).write_text("")
    assert used_profiles(options) == (FIRST, "work")
    assert selected_profile(options) == FIRST


def test_the_selected_one_is_remembered_while_it_is_there(options: Options) -> None:
    work = create_profile(options, "work")
    Path(options.store_path).write_text("")
    select_profile(options, "work")
    assert selected_profile(options) == "work"
    remove_profile(work)
    assert selected_profile(options) == FIRST
    selected = Path(options.state_dir) / "networks/.selected"
    for damaged in (b"\xff\xfe", b"", b"../../etc\n", b"work\n"):
        selected.write_bytes(damaged)
        assert selected_profile(options) == FIRST


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_a_user_who_may_not_look_is_told_what_runs(options: Options) -> None:
    with tempfile.TemporaryDirectory(prefix="nvt") as directory:
        Path(directory).chmod(0o755)
        _look_as_nobody(replace(options, state_dir=f"{directory}/s", runtime_dir=f"{directory}/r"))


def _look_as_nobody(options: Options) -> None:
    create_profile(options, "work")
    select_profile(options, "work")
    for running in ("work", "play"):
        (Path(options.runtime_dir) / "networks" / running).mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setuid(65534)
        said = f"{profiles(options)} {used_profiles(options)} {selected_profile(options)}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    every = "('default', 'play', 'work')"
    assert os.read(reading, 200).decode() == f"{every} {every} work"
    os.close(reading)


def test_removing_one_leaves_identity_and_others(options: Options) -> None:
    work = create_profile(options, "work")
    Path(options.state_dir, "identity").write_text("nsec1")
    for place in (options, work):
        for name in ("state.db", "state.db-wal", "state.db.backup", "state.db.damaged-1-2"):
            Path(place.home, name).write_text("")
    lock = StateLock(work.lock_path)
    lock.acquire()
    with pytest.raises(SystemRefused, match="still runs"):
        remove_profile(work)
    lock.release()
    remove_profile(work)
    assert not Path(work.home).exists()
    remove_profile(options)
    assert sorted(path.name for path in Path(options.state_dir).iterdir()) == [
        "identity",
        "networks",
    ]
    remove_profile(work)  # again: nothing to do
