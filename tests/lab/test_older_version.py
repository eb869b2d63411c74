"""An older agent and this one in one mesh: whoever invites, they meet and stay direct.

The older one is the first whose networks are graphs of operations: those before it had other ones, and
share no network with it. Its code comes from this repository's history; a clone without it cannot run
this.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nostrvpn.lab.core import Internet
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient
from nostrvpn.lab.topology import Lab, Server
from tests.lab.homes import admit, launch, ping, wait_direct, watched

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(120))]

ROOT = Path(__file__).parents[2]
OLDER = "365c7c227748671e8fcd93a1316b8fc0a526db09"
OLD = ("old-a", "old-b")


class TwoVersions(Lab):
    """Nodes behind NATs, some of an older version, and a member of this one that relays."""

    def __init__(self, older: Path) -> None:
        super().__init__(Internet(delay=0.005))
        self._older = older

    server: Server

    def build(self) -> None:
        older = self._older

        class OlderNode(LabNode):
            @property
            def command(self) -> tuple[str, ...]:
                # -P: the current directory, which may hold this version, is not looked in.
                python, *rest = super().command
                return ("env", f"PYTHONPATH={older}", python, "-P", *rest)

        self.server = self.server_host()
        self.at: dict[str, LabNode] = {}
        for name in (*OLD, "new"):
            self.node_type = OlderNode if name in OLD else LabNode
            self.at[name] = self.node(self.host(name, self.router(f"nat-{name}")), self.server)
        self.at["vps"] = self.node(self.host("vps"), self.server, relay={"offer": "members"})


@pytest.fixture
def older(tmp_path: Path, needs: Callable[[bool, str], None]) -> Path:
    """A directory with the older version's package."""
    argv = ("git", "-C", str(ROOT), "archive", OLDER, "nostrvpn")
    archived = subprocess.run(argv, capture_output=True, timeout=30, check=False)
    needs(archived.returncode == 0, f"the repository's history (commit {OLDER[:7]})")
    with tarfile.open(fileobj=io.BytesIO(archived.stdout)) as files:
        files.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def lab(older: Path) -> Iterator[TwoVersions]:
    with watched(TwoVersions(older)) as lab:
        yield lab


@pytest.mark.parametrize("owner", ["old-a", "new"])
def test_an_older_node_and_this_version_meet_whoever_invites(lab: TwoVersions, owner: str) -> None:
    old_a, old_b, new, vps = (lab.at[name] for name in (*OLD, "new", "vps"))
    launch(*lab.at.values())
    loaded = old_a.namespace.run(
        *old_a.command[:4], "-c", "import nostrvpn.paths as p; print(p.__file__)"
    ).stdout
    assert not loaded.startswith(str(ROOT)), loaded
    for name in {*lab.at} - {owner}:
        admit(lab.at[owner], lab.at[name])
    wait_direct(old_a, old_b, new, vps)
    for one, other in ((new, old_a), (old_b, new), (vps, old_a), (old_a, old_b)):
        ping(one, other)
    # What this version says more, the older ones take all the same.
    dropped = old_a.status()["dropped_messages"]
    sys.stdout.write(f"an older node dropped {dropped}\n")
    assert not dropped.get("bad_message")
    assert not dropped.get("bad_description")
    # A restart leads the newer one back to the older, by what both remember and by signaling.
    new.restart()
    wait_direct(old_a, old_b, new)
    ping(old_a, new)
