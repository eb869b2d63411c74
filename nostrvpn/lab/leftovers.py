"""What a lab may leave behind: found, named and removed.

A lab cleans up after itself, also on Ctrl-C and SIGTERM. SIGKILL allows no cleaning, so every new
lab first sweeps: a namespace or directory with the pid of a process that is gone is nobody's.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from nostrvpn.lab.namespaces import NETNS_DIRECTORY, Namespace, run_command

__all__ = ["PREFIX", "Footprint", "HostSnapshot", "leftovers", "owner_of", "sweep"]

PREFIX = "nvl"
"""Begins the name of everything a lab makes; the pid follows."""

_OWNED = re.compile(rf"{PREFIX}(\d+)-")

WIREGUARD_SOCKETS = (Path("/run/wireguard"), Path("/var/run/wireguard"))
"""Where userspace WireGuard keeps its control sockets, for all network namespaces alike."""

COMMAND_TIMEOUT = 10.0


def owner_of(name: str) -> int | None:
    """Return the pid in a lab name such as ``nvl4711-0-core``, None for a foreign name."""
    match = _OWNED.match(name)
    return int(match[1]) if match else None


def sweep() -> list[str]:
    """Remove what labs whose process is gone have left; return the names of what was removed."""
    removed = []
    for name in _names(NETNS_DIRECTORY):
        if _is_orphan(name):
            Namespace(name).delete()
            removed.append(name)
    temporary = Path(tempfile.gettempdir())
    for name in _names(temporary):
        if _is_orphan(name):
            shutil.rmtree(temporary / name, ignore_errors=True)
            removed.append(str(temporary / name))
    for directory in WIREGUARD_SOCKETS:
        for name in _names(directory):
            if _is_orphan(name):
                with contextlib.suppress(FileNotFoundError):
                    (directory / name).unlink()
                    removed.append(str(directory / name))
    return removed


def _names(directory: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in directory.iterdir())
    except FileNotFoundError:
        return []


def _is_orphan(name: str) -> bool:
    owner = owner_of(name)
    return owner is not None and not Path(f"/proc/{owner}").exists()


@dataclass(frozen=True, slots=True)
class HostSnapshot:
    """The host's own network as it is now: what a lab must not change."""

    links: frozenset[str] = field(default_factory=frozenset)
    rules: frozenset[str] = field(default_factory=frozenset)
    routes: frozenset[str] = field(default_factory=frozenset)
    tables: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def take(cls) -> HostSnapshot:
        """Read the current namespace's links, rules, routes and nftables tables."""
        return cls(
            links=frozenset(os.listdir("/sys/class/net")),
            rules=_lines("ip rule show") | _lines("ip -6 rule show"),
            routes=_lines("ip route show table all") | _lines("ip -6 route show table all"),
            tables=_lines("nft list tables"),
        )

    def added_since(self, before: HostSnapshot) -> list[str]:
        """Describe what is here and was not there before."""
        return [
            *(f"interface {name}" for name in sorted(self.links - before.links)),
            *(f"rule {line}" for line in sorted(self.rules - before.rules)),
            *(f"route {line}" for line in sorted(self.routes - before.routes)),
            *(f"nftables {line}" for line in sorted(self.tables - before.tables)),
        ]


def _lines(command: str) -> frozenset[str]:
    # Lifetimes tick; they are no change of the configuration.
    text = run_command(tuple(command.split()), check=False, timeout=COMMAND_TIMEOUT).stdout
    return frozenset(re.sub(r" expires \S+", "", line).strip() for line in text.splitlines())


@dataclass(frozen=True, slots=True)
class Footprint:
    """How to recognise what belongs to one lab.

    ``identity`` begins its names (``nvl4711-0-``); ``inodes`` are those of its network namespaces,
    by which a process that still lives in a deleted one is found; ``interfaces`` are its nodes'
    WireGuard interfaces; ``host`` is the host's network before the lab.
    """

    identity: str
    inodes: frozenset[int]
    interfaces: frozenset[str]
    host: HostSnapshot


def leftovers(lab: Footprint) -> list[str]:
    """Describe what a closed lab has left behind; empty is what it should be."""
    temporary = Path(tempfile.gettempdir())
    found = [f"namespace {n}" for n in _names(NETNS_DIRECTORY) if n.startswith(lab.identity)]
    found += [f"directory {n}" for n in _names(temporary) if n.startswith(lab.identity)]
    for directory in {path.resolve() for path in WIREGUARD_SOCKETS}:
        names = [n for n in _names(directory) if n.removesuffix(".sock") in lab.interfaces]
        found += [f"socket {directory / name}" for name in names]
    # A number is given to a new namespace once its old one is gone: perhaps to another lab's.
    others = {inode for name in _names(NETNS_DIRECTORY) if (inode := _inode(name)) is not None}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "ns/net").stat().st_ino in lab.inodes - others:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found.append(f"process {entry.name} {command.strip()}")
    return found + HostSnapshot.take().added_since(lab.host)


def _inode(name: str) -> int | None:
    try:
        return (NETNS_DIRECTORY / name).stat().st_ino
    except OSError:
        return None
