"""Other firewalls beside a node: ufw and firewalld as Debian has them, and the chains of Docker.

Each runs in its node's network, with an /etc, a /run and logs of its own: nothing of this machine's is
changed. Docker's daemon does not run: its chains are made by the same calls of iptables that it makes.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from nostrvpn.lab.links import connect
from nostrvpn.lab.namespaces import Namespace
from nostrvpn.lab.patience import wait_until
from nostrvpn.lab.processes import Process
from nostrvpn.lab.topology import Lab

__all__ = ["FIREWALLS", "Docker", "Firewall", "Firewalld", "Ufw", "beside"]

_ROOM = """
set -eu
mount -t tmpfs tmpfs /run
mkdir -p /run/dbus /run/etc /run/work
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/work /etc
mount -t tmpfs tmpfs /var/log
echo ready
exec sleep 600
"""
START_S = 30.0


class Firewall:
    """One beside a node. ``start`` and ``stop`` it, ``again`` has it set all its rules anew."""

    program = ""

    def __init__(self, namespace: Namespace, room: Process, directory: Path) -> None:
        self._namespace = namespace
        self._room = room
        self._directory = directory

    def _inside(self, *argv: str) -> tuple[str, ...]:
        return ("nsenter", "-t", str(self._room.pid), "-m", "--", *argv)

    def run(self, *argv: str) -> str:
        """Run one of its programs to its end; return what it printed."""
        return self._namespace.run(*self._inside(*argv)).stdout

    def obey(self, remedy: str) -> None:
        """Run the commands of a hint, as a user would copy them."""
        for command in remedy.split(" && "):
            self.run(*shlex.split(command.replace("sudo ", "", 1)))

    def start(self) -> None:
        """Have it filter; it has done so when this returns."""
        raise NotImplementedError

    def again(self) -> None:
        """Have it set its rules anew, as after a change of its configuration."""
        raise NotImplementedError

    def stop(self) -> None:
        """End it, and all that it set."""
        raise NotImplementedError

    def _remove_tables(self) -> None:
        """Remove what iptables and ip6tables made: their tables stay, empty, until somebody does."""
        for family in ("ip", "ip6"):
            for table in ("filter", "nat"):
                self._namespace.run("nft", "delete", "table", family, table, check=False)


class Ufw(Firewall):
    """Ubuntu's; it drops what comes in and what is forwarded."""

    program = "ufw"

    def start(self) -> None:
        self.run("ufw", "--force", "enable")

    def again(self) -> None:
        self.run("ufw", "reload")

    def stop(self) -> None:
        self.run("ufw", "--force", "disable")
        self._remove_tables()


class Firewalld(Firewall):
    """Fedora's; it rejects the same, and IPv6 whose source another way leads to (its rpfilter)."""

    program = "firewalld"
    _bus: Process | None = None
    _daemon: Process | None = None

    def start(self) -> None:
        bus = self._inside("dbus-daemon", "--system", "--nofork", "--nopidfile")
        self._bus = Process(self._namespace, bus, log=self._directory / "dbus.log")
        daemon = self._inside("firewalld", "--nofork", "--nopid")
        wait_until(lambda: self._says("test", "-S", "/run/dbus/system_bus_socket"), "a bus")
        self._daemon = Process(self._namespace, daemon, log=self._directory / "firewalld.log")
        wait_until(
            lambda: self._says("firewall-cmd", "--state"),
            "firewalld",
            timeout=START_S,
            evidence=self._daemon.tail,
        )

    def _says(self, *argv: str) -> bool:
        return self._namespace.run(*self._inside(*argv), check=False).returncode == 0

    def again(self) -> None:
        self.run("firewall-cmd", "--reload")

    def stop(self) -> None:
        for process in (self._daemon, self._bus):
            if process is not None:
                process.stop()


# As dockerd 28 leaves them (moby, integration/network/bridge/iptablesdoc), having turned forwarding on.
_DOCKER_FILTER = """
-P FORWARD DROP
-N DOCKER
-N DOCKER-BRIDGE
-N DOCKER-CT
-N DOCKER-FORWARD
-N DOCKER-ISOLATION-STAGE-1
-N DOCKER-ISOLATION-STAGE-2
-N DOCKER-USER
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
"""
_DOCKER_NAT = """
-N DOCKER
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d {loopback} -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s {containers} ! -o docker0 -j MASQUERADE
"""
_FAMILIES = {
    "iptables": ("127.0.0.0/8", "172.17.0.0/16"),
    "ip6tables": ("::1/128", "fd17::/64"),
}


class Docker(Firewall):
    """Docker's chains, its bridge, and the container that ``contain`` puts there."""

    program = "iptables"

    def start(self) -> None:
        self._namespace.ip("link add docker0 type bridge", "link set docker0 up")
        self._namespace.ip(
            "addr add 172.17.0.1/16 dev docker0", "addr add fd17::1/64 dev docker0 nodad"
        )
        self._namespace.sysctl({"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1})
        self.again()

    def again(self) -> None:
        """As dockerd when it starts: all chains are made anew, but what the user put into his stays."""
        for program, (loopback, containers) in _FAMILIES.items():
            rules = _DOCKER_NAT.format(loopback=loopback, containers=containers)
            self._make(program, "nat", rules)
            self._make(program, "filter", _DOCKER_FILTER)

    def contain(self, container: Namespace) -> None:
        """Connect a container to the bridge."""
        connect((container, "eth0"), (self._namespace, "veth0"))
        self._namespace.ip("link set veth0 master docker0")
        container.ip("addr add 172.17.0.2/16 dev eth0", "addr add fd17::2/64 dev eth0 nodad")
        container.ip("route add default via 172.17.0.1", "route add default via fd17::1")

    def stop(self) -> None:
        self._remove_tables()
        self._namespace.run("ip", "link", "del", "docker0", check=False)

    def _make(self, program: str, table: str, rules: str) -> None:
        do = f"{program} -w -t {table}"
        made = [line.removeprefix("-N ") for line in rules.splitlines() if line.startswith("-N")]
        lines = [line for line in rules.strip().splitlines() if not line.startswith("-N")]
        calls = [f"{do} -N {chain} 2>/dev/null || true" for chain in made]
        calls += [f"{do} -F {chain}" for chain in made if chain != "DOCKER-USER"]
        for line in lines:
            # What stands in a chain of the kernel's is still there.
            gone = f"{do} {line.replace('-A', '-D', 1)} 2>/dev/null || true; "
            calls.append(gone * line.startswith("-A") + f"{do} {line}")
        self.run("sh", "-ec", "\n".join(calls))


FIREWALLS = (Ufw, Firewalld, Docker)
Kind = TypeVar("Kind", bound=Firewall)


@contextmanager
def beside(lab: Lab, namespace: Namespace, kind: type[Kind]) -> Iterator[Kind]:
    """Give a host a firewall of a kind, which is not started; it is gone afterwards."""
    if not shutil.which(kind.program):
        pytest.skip(f"NOT RUN: {kind.program} is not installed")
    directory = lab.directory / f"{namespace.label}-{kind.program}"
    directory.mkdir(exist_ok=True)
    argv = ("unshare", "-m", "--propagation", "private", "sh", "-c", _ROOM)
    room = Process(namespace, argv, log=directory / "room.log")
    try:
        room.wait_for_text("ready")
        made = kind(namespace, room, directory)
        try:
            yield made
        finally:
            made.stop()
    finally:
        room.kill()
