"""The routed core of a lab: the "internet" between its routers, with delay, hops and loss.

Each cable to the core has its own public networks, ``11.0.N.0/24`` and ``2d00:0:0:N::/64``: the
first is never announced on the real internet, the second not even assigned, and both count as
global unicast, which the documentation ranges do not.

A packet costs ``hops`` of its TTL to cross the core. This makes low-TTL openers meaningful: on a
bridge they would arrive.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path

from nostrvpn.errors import SystemRefused
from nostrvpn.lab.links import connect, interface_name
from nostrvpn.lab.namespaces import Namespace
from nostrvpn.lab.processes import Process, python_module

__all__ = ["Core", "Engine", "Internet", "Plug"]

LINK_LIMIT = 254
"""Cables to one core: the third byte of their IPv4 network."""

DELAY_INTERFACE = "delay0"
DELAY_TABLE = 100
DELAY_RULE = 1000
TUN_QUEUE = 10_000
NETEM_QUEUE = 50_000
"""Packets. The kernel's defaults (500, 1000) would drop bursts and look like loss."""

KERNEL_HOPS_WITH_TUN = 2
"""The kernel forwards twice around the TUN router: in from the cable, and out to the next one."""


class Engine(StrEnum):
    """What holds packets back: AUTO takes netem where the kernel has it, else the TUN router."""

    AUTO = "auto"
    NETEM = "netem"
    TUN = "tun"


@dataclass(frozen=True, slots=True)
class Internet:
    """Conditions between any two cables of the core.

    ``delay`` is one way, in seconds; ``hops`` is what a crossing takes off the TTL (at least 1);
    ``loss`` is the share of packets lost, 0 to 1.
    """

    delay: float = 0.0
    hops: int = 8
    loss: float = 0.0
    seed: int = 0
    engine: Engine = Engine.AUTO


@dataclass(frozen=True, slots=True)
class Plug:
    """One end of a cable: the interface inside, its addresses and how to get out."""

    interface: str
    addresses: tuple[IPv4Address, ...]
    gateway: IPv4Address
    addresses6: tuple[IPv6Address, ...] = ()


class Core:
    """The core router; ``plug`` lays a cable from it to another namespace."""

    def __init__(self, namespace: Namespace, internet: Internet, log_directory: Path) -> None:
        self.namespace = namespace
        self.internet = internet
        self._log_directory = log_directory
        self._links = 0
        self._engine: Engine | None = None

    def start(self, stack: contextlib.ExitStack) -> None:
        """Turn the namespace into a router, and start what makes the conditions true."""
        self.namespace.sysctl(
            {"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1, "ipv4/conf/all/rp_filter": 0}
        )
        internet = self.internet
        if internet.engine is Engine.AUTO and internet.delay == 0 and internet.loss == 0:
            self._block_expiring()
            return
        self._engine = internet.engine
        if self._engine is Engine.AUTO:
            self._engine = Engine.NETEM if self._has_netem() else Engine.TUN
        if self._engine is Engine.NETEM:
            self._block_expiring()
        else:
            self._start_tun(stack)

    def plug(self, namespace: Namespace, interface: str, *, addresses: int = 1) -> Plug:
        """Lay a cable to ``namespace`` and give its end that many public addresses, and routes."""
        self._links += 1
        number = self._links
        if number > LINK_LIMIT:
            raise SystemRefused(f"a lab core takes at most {LINK_LIMIT} cables")
        mine = interface_name(f"to-{namespace.label}")
        connect((self.namespace, mine), (namespace, interface))
        v4 = [IPv4Address(f"11.0.{number}.{host}") for host in range(1, addresses + 2)]
        v6 = [IPv6Address(f"2d00:0:0:{number:x}::{host:x}") for host in range(1, addresses + 2)]
        self.namespace.ip(
            f"addr add {v4[0]}/24 dev {mine}",
            f"addr add {v6[0]}/64 dev {mine} nodad",
        )
        namespace.ip(
            *(f"addr add {address}/24 dev {interface}" for address in v4[1:]),
            *(f"addr add {address}/64 dev {interface} nodad" for address in v6[1:]),
            f"route add default via {v4[0]}",
            f"route add default via {v6[0]}",
        )
        self._apply_conditions(mine)
        return Plug(interface, tuple(v4[1:]), v4[0], tuple(v6[1:]))

    def unplug(self, namespace: Namespace) -> None:
        """Pull the cable of ``namespace``; its addresses and routes go with it."""
        mine = interface_name(f"to-{namespace.label}")
        if self._engine is Engine.TUN:
            for family in (4, 6):
                self.namespace.ip(f"rule del {self._delay_rule(mine)}", family=family)
        self.namespace.ip(f"link del {mine}")

    def route(self, network: IPv6Network, via: IPv6Address) -> None:
        """Route a LAN's IPv6 network to its router."""
        self.namespace.ip(f"route replace {network} via {via}")

    def _apply_conditions(self, interface: str) -> None:
        if self._engine is Engine.TUN:
            for family in (4, 6):
                self.namespace.ip(f"rule add {self._delay_rule(interface)}", family=family)
        elif self._engine is Engine.NETEM:
            delay = f"{self.internet.delay * 1e6:.0f}us"
            loss = f"{self.internet.loss * 100:.4f}%"
            netem = f"netem limit {NETEM_QUEUE} delay {delay} loss {loss}"
            self.namespace.run(*f"tc qdisc add dev {interface} root {netem}".split())

    @staticmethod
    def _delay_rule(interface: str) -> str:
        return f"iif {interface} lookup {DELAY_TABLE} priority {DELAY_RULE}"

    def _has_netem(self) -> bool:
        tried = self.namespace.run(
            "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "0ms", check=False
        )
        if tried.returncode == 0:
            self.namespace.run("tc", "qdisc", "del", "dev", "lo", "root")
        return tried.returncode == 0

    def _block_expiring(self) -> None:
        """Drop what would expire within ``hops`` routers: nftables cannot subtract from a TTL."""
        self.namespace.nft(
            "table inet lab_core {\nchain prerouting {\n"
            "type filter hook prerouting priority raw;\n"
            'iifname "lo" accept\n'
            "fib daddr type local accept\n"
            f"ip ttl <= {self.internet.hops} drop\n"
            f"meta l4proto != icmpv6 ip6 hoplimit <= {self.internet.hops} drop\n"
            "}\n}\n"
        )

    def _start_tun(self, stack: contextlib.ExitStack) -> None:
        internet = self.internet
        process = Process(
            self.namespace,
            python_module(
                "nostrvpn.lab.delay",
                f"--interface={DELAY_INTERFACE}",
                f"--delay={internet.delay}",
                f"--hops={max(0, internet.hops - KERNEL_HOPS_WITH_TUN)}",
                f"--loss={internet.loss}",
                f"--seed={internet.seed}",
            ),
            log=self._log_directory / "delay.log",
        )
        stack.callback(process.kill)
        process.wait_for_text("ready")
        self.namespace.sysctl({f"ipv4/conf/{DELAY_INTERFACE}/rp_filter": 0})
        self.namespace.ip(
            f"link set {DELAY_INTERFACE} txqueuelen {TUN_QUEUE} mtu 1500 up",
            f"route add default dev {DELAY_INTERFACE} table {DELAY_TABLE}",
            f"route add ::/0 dev {DELAY_INTERFACE} table {DELAY_TABLE}",
        )
