"""``nostrvpn service`` into a directory: what is written is what is taken away."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from nostrvpn.errors import UserError
from nostrvpn.io.service_files import install_service, installed_files, uninstall_service

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("systemctl") is None,
    reason="NOT RUN: needs root and systemctl",
)
COMMAND = "/opt/pipx/bin/nostrvpn"


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


def test_it_writes_units_for_its_own_path_enables_them_and_leaves_nothing(tmp_path: Path):
    (tmp_path / "etc").mkdir()
    written = install_service(tmp_path, COMMAND)
    assert len(written) == len(installed_files(tmp_path)) == 7
    units = tmp_path / "etc/systemd/system"
    assert f"ExecStart={COMMAND} daemon" in (units / "nostrvpn.service").read_text()
    assert f"ExecStart={COMMAND} --network %i daemon" in (units / "nostrvpn@.service").read_text()
    assert (units / "multi-user.target.wants/nostrvpn.service").is_symlink()
    assert (units / "sysinit.target.wants/nostrvpn-lockdown.service").is_symlink()
    assert install_service(tmp_path, COMMAND) == []
    assert sorted(uninstall_service(tmp_path)) == sorted(written)
    assert everything(tmp_path) == set()
    assert uninstall_service(tmp_path) == []


def test_where_the_package_is_it_does_nothing(tmp_path: Path):
    packaged = tmp_path / "usr/lib/systemd/system/nostrvpn.service"
    packaged.parent.mkdir(parents=True)
    packaged.touch()
    with pytest.raises(UserError, match="package"):
        install_service(tmp_path, COMMAND)
    assert everything(tmp_path) == {"usr/lib/systemd/system/nostrvpn.service"}
