"""Editing resolv.conf: links, mounts, other writers, and refusals."""

from __future__ import annotations

import os
import shutil
import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest

from nostrvpn.endpoint import parse_endpoint
from nostrvpn.errors import NostrvpnError
from nostrvpn.host.resolver import DesiredNames, with_blocks
from nostrvpn.io import resolv_conf
from nostrvpn.io.resolv_conf import find_resolver, put_blocks, take_blocks

DESIRED = DesiredNames(
    parse_endpoint("127.118.112.1:53"), ip_address("10.64.0.5"), "home.nvpn", ("nvpn",)
)
ORIGINAL = b"# caf\xe9\nnameserver 192.0.2.1"


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    made: Path = tmp_path / "resolv.conf"
    made.write_bytes(ORIGINAL)
    made.chmod(0o640)
    monkeypatch.setattr(resolv_conf, "PATH", made)
    return made


def test_put_and_taken_it_is_as_before(path):
    assert put_blocks(DESIRED, "nvpn0") is True
    assert path.read_text("latin-1") == with_blocks(ORIGINAL.decode("latin-1"), DESIRED, "nvpn0")
    assert put_blocks(DESIRED, "nvpn0") is False
    assert take_blocks("nvpn1") is False
    assert take_blocks("nvpn0") is True
    assert path.read_bytes() == ORIGINAL
    assert path.stat().st_mode & 0o777 == 0o640
    assert take_blocks(None) is False
    assert [item.name for item in path.parent.iterdir()] == ["resolv.conf"]


def test_a_link_stays_a_link(path, tmp_path):
    real = tmp_path / "elsewhere" / "conf"
    real.parent.mkdir()
    path.rename(real)
    path.symlink_to("elsewhere/conf")
    assert find_resolver().real_path == str(real)
    put_blocks(DESIRED, "nvpn0")
    assert b"127.118.112.1" in real.read_bytes()
    take_blocks(None)
    assert path.is_symlink()
    assert real.read_bytes() == ORIGINAL


def test_what_a_killed_writer_left_beside_it_goes_too(path):
    writer = subprocess.Popen(["true"])
    writer.wait()
    left = path.with_name(f".resolv.conf.{writer.pid}.new")
    others = [path.with_name(name) for name in (f".resolv.conf.{os.getpid()}.new", ".x.1.new")]
    for draft in (left, *others):
        draft.write_text("nameserver 127.118.112.1")
    assert take_blocks(None) is False
    assert not left.exists()
    assert all(draft.exists() for draft in others)


def test_what_another_program_writes_is_never_lost(path, monkeypatch):
    put_blocks(DESIRED, "nvpn0")
    path.write_bytes(b"nameserver 198.51.100.1\n")  # ours is gone with the rest
    assert take_blocks("nvpn0") is False
    assert path.read_bytes() == b"nameserver 198.51.100.1\n"

    # It writes between our look and our writing.
    def while_another_writes(*arguments):
        path.write_bytes(b"nameserver 203.0.113.1\n")
        return with_blocks(*arguments)

    monkeypatch.setattr(resolv_conf, "with_blocks", while_another_writes)
    with pytest.raises(NostrvpnError, match="another program"):
        put_blocks(DESIRED, "nvpn0")
    assert path.read_bytes() == b"nameserver 203.0.113.1\n"


@pytest.mark.parametrize("kind", ["missing", "directory", "dangling", "device", "huge"])
def test_what_is_no_file_to_edit_is_refused_and_left(path, kind):
    path.unlink()
    match kind:
        case "directory":
            path.mkdir()
        case "dangling":
            path.symlink_to("nowhere")
        case "device":
            path.symlink_to("/dev/null")
        case "huge":
            path.write_bytes(b"#\n" * 100_000)
    before = os.path.lexists(path) and os.lstat(path)
    with pytest.raises(NostrvpnError):
        put_blocks(DESIRED, "nvpn0")
    assert take_blocks(None) is False
    assert (os.path.lexists(path) and os.lstat(path).st_mode) == (before and before.st_mode)


def test_an_immutable_file_is_refused_in_words(path):
    if os.geteuid() != 0 or shutil.which("chattr") is None:
        pytest.skip("NOT RUN: chattr needs root")
    if subprocess.run(["chattr", "+i", path], check=False, capture_output=True).returncode:
        pytest.skip("NOT RUN: this file system has no immutable files")
    try:
        with pytest.raises(NostrvpnError, match=r"cannot write .*resolv\.conf"):
            put_blocks(DESIRED, "nvpn0")
    finally:
        subprocess.run(["chattr", "-i", path], check=True)
    assert path.read_bytes() == ORIGINAL
    assert [item.name for item in path.parent.iterdir()] == ["resolv.conf"]
