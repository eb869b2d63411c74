"""A room for programs that manage name resolution: its own network, /run, /etc and /usr.

Debian's packages are unpacked over this machine's files, in mounts that nobody else sees: to install
them would take over how this machine itself resolves names. Where that cannot be, a test is skipped
and says so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Room"]

ROOT = Path(__file__).parents[2]
PACKAGES = Path(sys.prefix) / "debian"
LIMIT = 30.0
_UNSHARE = ("unshare", "-m", "-n", "--propagation", "private")

# Arguments: a scratch directory, then the unpacked packages.
_SETUP = """
set -eu
scratch=$1; shift
mount -t tmpfs tmpfs "$scratch"
mount -t tmpfs tmpfs /run
mount -t sysfs sysfs /sys
for part in etc usr; do
    lower=/$part
    for package in "$@"; do lower=$package/$part:$lower; done
    mkdir -p "$scratch/$part" "$scratch/work-$part"
    layers=lowerdir=$lower,upperdir=$scratch/$part,workdir=$scratch/work-$part
    mount -t overlay overlay -o "$layers" /$part
done
ip link set lo up
ip link add nvpn0 type veth peer name nvpn0-end
ip addr add 10.64.0.5/32 dev nvpn0
ip link add eth0 type veth peer name eth0-end
ip addr add 192.0.2.1/24 dev eth0
for link in nvpn0 nvpn0-end eth0 eth0-end; do ip link set "$link" up; done
echo ready
exec sleep 600
"""

# Our own server with one member, and every question that it was asked.
_SERVER = """
import asyncio, sys
from ipaddress import ip_address, ip_network
import dns.message
from nostrvpn.io.dns_server import DnsServer
from nostrvpn.mesh.zone import Resident, make_zone
from nostrvpn.mesh.zone_answers import answer

addresses = (ip_address("fd00::7"), ip_address("10.64.0.7"))
zone = make_zone("home", [Resident("a" * 64, "nas", "", addresses)], [ip_network("10.64.0.0/16")])

def answered(query, tcp):
    print("asked", dns.message.from_wire(query).question[0].name, flush=True)
    return answer(query, zone, tcp=tcp)

async def serve():
    server = DnsServer(answered)
    endpoint = await server.start(port=int(sys.argv[1]))
    await server.offer_at([ip_address("10.64.0.5")], "nvpn0")
    print("serving", endpoint, flush=True)
    await asyncio.Event().wait()

asyncio.run(serve())
"""


class Room:
    """As a context manager; ``packages`` are Debian's. ``run`` and ``python`` act inside."""

    def __init__(self, *packages: str) -> None:
        self._packages = packages
        self._stack = ExitStack()
        self._pid = 0

    def __enter__(self) -> Room:
        with ExitStack() as stack:
            self._open(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self, stack: ExitStack) -> None:
        if os.geteuid() != 0:
            pytest.skip("NOT RUN: mounts need root")
        unpacking = (str(ROOT / "packaging/unpack-packages"), str(PACKAGES), *self._packages)
        try:
            subprocess.run(unpacking, check=True, capture_output=True, timeout=120)
        except (OSError, subprocess.SubprocessError) as exc:
            pytest.skip(f"NOT RUN: {' '.join(self._packages)} cannot be unpacked: {exc}")
        scratch = tempfile.mkdtemp(prefix="nostrvpn-room-")
        stack.callback(os.rmdir, scratch)
        roots = [str(PACKAGES / package) for package in self._packages]
        room = subprocess.Popen(
            (*_UNSHARE, "sh", "-c", _SETUP, "room", scratch, *roots),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        stack.callback(self._end, room)
        self._pid = room.pid
        assert room.stdout is not None
        said = room.stdout.readline()
        if said != "ready\n":
            pytest.skip(f"NOT RUN: this kernel allows no such mounts: {said}")

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait(LIMIT)
        if process.stdout is not None:
            process.stdout.close()

    def _inside(self, argv: tuple[str, ...]) -> tuple[str, ...]:
        # By its mounts a process comes to the root directory, and finds another nostrvpn from there.
        room = ("nsenter", "-t", str(self._pid), "-m", "-n", "--")
        return (*room, "env", f"PYTHONPATH={ROOT}", *argv)

    def run(self, *argv: str, check: bool = True, stdin: str = "") -> str:
        """Run a program to its end; return what it printed."""
        done = subprocess.run(
            self._inside(argv), input=stdin, capture_output=True, text=True, timeout=LIMIT
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def python(self, code: str) -> Any:
        """Run Python that leaves its result in ``result``; return that, by way of JSON."""
        text = f"import json\n{code}\nprint(json.dumps(result))"
        return json.loads(self.run(sys.executable, "-c", text))

    def start(self, *argv: str, until: str, environment: dict[str, str] | None = None) -> Log:
        """Start a program, and return when a line of what it says contains ``until``."""
        process = subprocess.Popen(
            self._inside(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self._stack.callback(self._end, process)
        log = Log(process)
        log.until(until)
        return log

    def read(self, path: str) -> str:
        """Return a file's text as it is inside."""
        return self.run("cat", path)

    def write(self, path: str, text: str) -> None:
        """Write a file inside; a symbolic link is replaced."""
        self.run("sh", "-c", f"rm -f {path}; mkdir -p $(dirname {path}); cat > {path}", stdin=text)

    def serve_names(self, port: int = 53) -> Log:
        """Start our server: 127.118.112.1 (or at a port of its choice) and 10.64.0.5."""
        return self.start(sys.executable, "-c", _SERVER, str(port), until="serving")

    def serve_lan(self) -> Log:
        """Start another one for ``lan`` at 192.0.2.1, which notes what it is asked."""
        if shutil.which("dnsmasq") is None:
            pytest.skip("NOT RUN: dnsmasq-base is not installed")
        told: tuple[str, ...] = (
            "no-daemon",
            "no-hosts",
            "no-resolv",
            "conf-file=/dev/null",
            "user=root",
        )
        told += ("pid-file=", "bind-interfaces", "listen-address=192.0.2.1", "log-queries")
        told += ("local=/lan/", "local=/nvpn/", "address=/printer.lan/192.0.2.7")
        argv = ("dnsmasq", *(f"--{word}" for word in told), "--log-facility=-")
        return self.start(*argv, until="started")


class Log:
    """What a program says, line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), True)
        self.lines: list[str] = []

    def until(self, text: str) -> str:
        """Return the first line from now on that contains ``text``."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError(f"it ended without {text!r}: {''.join(self.lines)}")
