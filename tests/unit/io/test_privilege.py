"""Root in a directory of the service's account: it acts as that account, for a moment or for good."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from nostrvpn.errors import NostrvpnError
from nostrvpn.io.durable_file import make_private_directory, write_durably
from nostrvpn.io.identity_file import create_identity, generate_root, load_identity
from nostrvpn.io.privilege import Account, account_of, as_owner

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT RUN: needs root")
UID = 64_157


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory of the account, below directories that it may pass through."""
    entry = pwd.struct_passwd(("nostrvpn", "x", UID, UID, "", "/", "/bin/false"))
    monkeypatch.setattr(pwd, "getpwnam", lambda name: entry)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == 0 and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    made = tmp_path / "state"
    made.mkdir(mode=0o700)
    os.chown(made, UID, UID)
    return made


def test_what_root_makes_there_belongs_to_the_account(state: Path):
    make_private_directory(state / "networks/work")
    write_durably(state / "file", b"x", mode=0o600, replace=False)
    root = generate_root()
    create_identity(str(state), root, {})
    assert load_identity(str(state), {}).npub == root.npub
    assert {path.lstat().st_uid for path in state.rglob("*")} == {UID}
    assert os.geteuid() == os.getegid() == 0


def test_a_link_that_the_account_made_leads_root_nowhere(state: Path, tmp_path: Path):
    treasure = tmp_path / "treasure"
    treasure.mkdir(mode=0o700)
    (state / "networks").symlink_to(treasure)
    with pytest.raises(NostrvpnError):
        make_private_directory(state / "networks/work")
    assert list(treasure.iterdir()) == []


def test_elsewhere_root_stays_root(state: Path, tmp_path: Path):
    assert account_of(tmp_path) is None
    assert account_of(state / "not/there/yet") == Account(UID, UID)
    with as_owner(tmp_path):
        assert os.geteuid() == 0


def test_becoming_the_account_is_for_good_and_leaves_three_capabilities(tmp_path: Path):
    program = (
        "import os\n"
        "from nostrvpn.io import privilege as p\n"
        "os.getgrouplist = lambda name, group: [group]\n"
        f"p.become(p.Account({UID}, {UID}))\n"
        "print(os.getresuid(), os.getgroups())\n"
        "print(open('/proc/self/status').read())\n"
        "os.setuid(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert f"({UID}, {UID}, {UID}) [{UID}]" in done.stdout
    for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
        assert f"Cap{kind}:\t0000000000003400" in done.stdout
    assert "NoNewPrivs:\t1" in done.stdout
    assert "PermissionError" in done.stderr
