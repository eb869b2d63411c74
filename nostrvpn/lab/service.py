"""A node whose daemon runs as the service does: an unprivileged user with three capabilities.

``ip netns exec`` lays /etc/netns/NAME/passwd and group over those of the machine, so the account is
there for whatever runs inside, and the machine has none. Commands are root's, as people run them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from nostrvpn.io.privilege import ACCOUNT
from nostrvpn.lab.leftovers import WIREGUARD_SOCKETS
from nostrvpn.lab.node import LabNode

__all__ = ["ServiceNode"]

_NETNS_FILES = Path("/etc/netns")
# Nobody's on Debian, where those of packages begin at 100 and those of people at 1000.
_ID = 64_157
# Those of packaging/systemd/system/nostrvpn.service; a unit test compares.
CAPABILITIES = ("net_admin", "net_raw", "net_bind_service")

# Lays a copy that all may pass through over each directory: what is below keeps its own modes.
_OPEN = """
scratch=$1; shift
mount -t tmpfs -o mode=755 tmpfs "$scratch"
while [ "$1" != -- ]; do
    n=$((n + 1)); mkdir -p -m 755 "$scratch/$n/up" "$scratch/$n/work"
    mount -t overlay -o "lowerdir=$1,upperdir=$scratch/$n/up,workdir=$scratch/$n/work" none "$1"
    shift
done
shift; exec "$@"
"""


class ServiceNode(LabNode):
    """A ``LabNode`` with the user, capabilities and no_new_privs of the service's unit.

    Its directories belong to the account from the start, as where the package made them.
    """

    def prepare(self) -> None:
        """Make the account and its directories."""
        directory = self.directory
        self._files = _NETNS_FILES / self.namespace.name
        self._files.mkdir(parents=True, exist_ok=True)
        for name, line in (
            ("passwd", f"{ACCOUNT}:x:{_ID}:{_ID}::/nonexistent:/usr/sbin/nologin"),
            ("group", f"{ACCOUNT}:x:{_ID}:"),
        ):
            others = Path("/etc", name).read_text(encoding="utf-8").splitlines()
            kept = [other for other in others if not other.startswith(f"{ACCOUNT}:")]
            (self._files / name).write_text("\n".join([*kept, line, ""]), encoding="utf-8")
        # A lab's directory is root's alone: the account may pass through, and see no more.
        directory.parent.chmod(0o711)
        for part in ("state", "run"):
            (directory / part).mkdir(mode=0o755 if part == "run" else 0o700)
            os.chown(directory / part, _ID, _ID)
        self._before = _share_sockets(WIREGUARD_SOCKETS[0])
        self._scratch = directory / "opened"
        self._scratch.mkdir()

    @property
    def command(self) -> tuple[str, ...]:
        """The command line, where the account can reach Python: a daemon may come of any command."""
        return (*self.opening, *super().command)

    @property
    def opening(self) -> tuple[str, ...]:
        """What makes the interpreter readable for the account, in a mount namespace of its own."""
        closed = _closed((sys.base_prefix, sys.prefix, __file__))
        if not closed:
            return ()
        return ("sh", "-euc", f"n=0{_OPEN}", "sh", str(self._scratch), *closed, "--")

    def daemon_command(self) -> tuple[str, ...]:
        """The daemon, as the service manager starts it."""
        kept = ",".join(f"+{name}" for name in CAPABILITIES)
        return (
            *self.opening,
            "setpriv",
            f"--reuid={ACCOUNT}",
            f"--regid={ACCOUNT}",
            "--init-groups",
            *(f"--{which}=-all,{kept}" for which in ("bounding-set", "inh-caps", "ambient-caps")),
            "--no-new-privs",
            "--",
            *super().command,
            "daemon",
        )

    def close(self) -> None:
        """End the daemon, and take back what was laid over the machine's files."""
        super().close()
        shutil.rmtree(self._files, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._files.parent.rmdir()
        group, mode = self._before
        with contextlib.suppress(FileNotFoundError):
            os.chown(WIREGUARD_SOCKETS[0], -1, group)
            WIREGUARD_SOCKETS[0].chmod(mode)


def _closed(paths: Iterable[str]) -> tuple[str, ...]:
    """Return the directories above these paths that others may not pass through, outermost first."""
    above = {parent for path in paths for parent in Path(path).resolve().parents}
    return tuple(sorted(str(one) for one in above if not one.stat().st_mode & stat.S_IXOTH))


def _share_sockets(directory: Path) -> tuple[int, int]:
    """Do what packaging/systemd/tmpfiles.d does; return the group and mode of before."""
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    before = directory.stat()
    os.chown(directory, -1, _ID)
    directory.chmod(0o1775)
    return before.st_gid, stat.S_IMODE(before.st_mode)
