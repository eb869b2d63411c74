"""The kernel tests never pass for having not run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel import boot


def test_what_cannot_run_says_so_loudly_and_fails() -> None:
    done = subprocess.run(
        [sys.executable, boot.__file__],
        env={**os.environ, "NOSTRVPN_TEST_KERNEL": "/nonexistent/vmlinuz"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == boot.CANNOT_RUN
    assert "THE KERNEL TESTS DID NOT RUN: NOSTRVPN_TEST_KERNEL names no file" in done.stdout


@pytest.mark.parametrize(
    ("is_ready", "was_ended", "status", "said"),
    [
        (False, False, None, "did not come up"),
        (False, True, None, "still booting"),
        (True, True, "0", "still running tests"),
        (True, False, None, "died while running"),
        (True, False, "", "died while running"),
    ],
)
def test_only_a_guest_that_came_to_its_end_has_a_result(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    is_ready: bool,
    was_ended: bool,
    status: str | None,
    said: str,
) -> None:
    monkeypatch.setattr(boot, "BUILD", tmp_path)
    if status is not None:
        (tmp_path / "status").write_text(status)
    with pytest.raises(boot.CannotRunError, match=said):
        boot.read_status(is_ready, was_ended)


def test_the_result_is_what_pytest_returned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(boot, "BUILD", tmp_path)
    (tmp_path / "status").write_text("1\n")
    assert boot.read_status(True, False) == 1


def test_a_path_that_qemu_would_misread_is_refused() -> None:
    with pytest.raises(boot.CannotRunError, match="move the repository"):
        boot.share("tag", Path("/tmp/with space, and comma"), readonly=True)
    assert "path=/tmp/x,security" in boot.share("tag", Path("/tmp/x"), readonly=False)
