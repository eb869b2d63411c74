"""What the kernel lets this process do, and giving up the rest of what root may.

Where the directory with a node's state belongs to the service's account, whoever works there as root
does so as that account: a daemon for good (``become``), a command for the moment (``as_owner``). So
files have one owner, and nobody can lead root astray by a link that he put there.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from nostrvpn.errors import SystemRefused

__all__ = ["ACCOUNT", "Account", "account_of", "as_owner", "become", "has_net_admin", "has_net_raw"]

# The service's user, made by packaging/systemd/sysusers.d.
ACCOUNT = "nostrvpn"

# Spec: linux/capability.h.
_CAP_NET_BIND_SERVICE = 10
_CAP_NET_ADMIN = 12
_CAP_NET_RAW = 13
_CAPABILITY_VERSION_3 = 0x20080522
_KEPT = (_CAP_NET_BIND_SERVICE, _CAP_NET_ADMIN, _CAP_NET_RAW)
# Spec: linux/prctl.h.
_SET_KEEPCAPS, _CAPBSET_DROP, _SET_NO_NEW_PRIVS, _CAP_AMBIENT = 8, 24, 38, 47
_CAP_AMBIENT_RAISE = 2


@dataclass(frozen=True, slots=True)
class Account:
    """The service's user and its group, by number."""

    uid: int
    gid: int


def has_net_admin() -> bool:
    """Whether this process may change interfaces, routes and WireGuard devices."""
    return _has(_CAP_NET_ADMIN)


def has_net_raw() -> bool:
    """Whether this process may open raw sockets."""
    return _has(_CAP_NET_RAW)


def account_of(directory: str | Path) -> Account | None:
    """Return the service's account if the directory, or any above it, belongs to it.

    Of links it is the link's own owner that counts: below what the account can change, every way may
    be one of its making.
    """
    try:
        entry = pwd.getpwnam(ACCOUNT)
    except KeyError:
        return None
    path = Path(directory)
    for place in (path, *path.parents):
        with suppress(OSError):
            if place.lstat().st_uid == entry.pw_uid:
                return Account(entry.pw_uid, entry.pw_gid)
    return None


@contextmanager
def as_owner(directory: str | Path) -> Iterator[None]:
    """Let root work as the service's account in a directory of its; nothing changes for others.

    For a program with one thread: the whole process acts so meanwhile.
    """
    account = account_of(directory) if os.geteuid() == 0 else None
    if account is None:
        yield
        return
    group = os.getegid()
    os.setegid(account.gid)
    os.seteuid(account.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)


def become(account: Account) -> None:
    """Turn this process of root's into one of the account's, for good; it keeps three capabilities.

    They are those of the service's unit, and programs that it starts have them too. Call it before
    there is a second thread. SystemRefused if the kernel will not.
    """
    import ctypes  # commands that only look need none

    libc = ctypes.CDLL(None, use_errno=True)

    def prctl(option: int, *arguments: int) -> None:
        padded = (*arguments, 0, 0, 0, 0)[:4]
        check(libc.prctl(option, *(ctypes.c_ulong(value) for value in padded)))

    def check(code: int) -> None:
        if code != 0:
            reason = os.strerror(ctypes.get_errno())
            raise SystemRefused(f"cannot give up root's rights: {reason}", "start it as root")

    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text(encoding="ascii"))
    for capability in set(range(last + 1)) - set(_KEPT):
        prctl(_CAPBSET_DROP, capability)
    prctl(_SET_KEEPCAPS, 1)
    os.setgroups(os.getgrouplist(ACCOUNT, account.gid))
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    mask = sum(1 << capability for capability in _KEPT)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # Effective, permitted, inheritable: of the first 32 capabilities, then of the rest.
    sets = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
    check(libc.capset(header, sets))
    for capability in _KEPT:
        prctl(_CAP_AMBIENT, _CAP_AMBIENT_RAISE, capability)
    prctl(_SET_NO_NEW_PRIVS, 1)


def _has(capability: int) -> bool:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return False
