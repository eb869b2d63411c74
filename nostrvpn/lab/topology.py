"""A lab: one ``with`` block in which a small internet exists.

::

    with Lab(Internet(delay=0.02)) as lab:
        server = lab.server_host("server")
        home = lab.router("home", NatKind.SYMMETRIC)
        laptop = lab.host("laptop", home)
        laptop.run("ping", "-c1", str(server.address))

Everything a lab makes goes onto one exit stack at once, so it is undone in reverse order: also when
the block raises, on Ctrl-C, and on SIGTERM or SIGHUP. What SIGKILL leaves, the next lab sweeps.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from nostrvpn.endpoint import Endpoint
from nostrvpn.errors import UserError
from nostrvpn.lab.capture import Capture
from nostrvpn.lab.core import Core, Internet, Plug
from nostrvpn.lab.leftovers import PREFIX, Footprint, HostSnapshot, sweep
from nostrvpn.lab.links import connect, interface_name
from nostrvpn.lab.namespaces import Echo, Namespace
from nostrvpn.lab.nat import NatKind, render_ruleset
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.processes import Process, python_module
from nostrvpn.lab.signals import ignore_signals, signals_raise

__all__ = ["Host", "Lab", "Router", "Server"]

STUN_PORTS = (3478, 3479)
RELAY_PORT = 7777
RELAY_START_TIMEOUT = 20.0

DEFAULT_UDP_TIMEOUT = 30
"""Seconds an idle mapping lives: Linux's for a flow without a reply, and the worst in the field."""

_serial = itertools.count()


@dataclass(slots=True)
class Host:
    """A machine with one cable, ``eth0``."""

    name: str
    namespace: Namespace
    plug: Plug

    @property
    def address(self) -> IPv4Address:
        return self.plug.addresses[0]

    @property
    def address6(self) -> IPv6Address | None:
        return self.plug.addresses6[0] if self.plug.addresses6 else None

    def run(self, *argv: str, check: bool = True, timeout: float = 20.0) -> str:
        """Run a program on this machine and return its standard output."""
        return self.namespace.run(*argv, check=check, timeout=timeout).stdout


@dataclass(slots=True)
class Router:
    """A home router: ``wan`` towards the core (or another router), ``lan`` towards its hosts."""

    name: str
    namespace: Namespace
    kind: NatKind
    wan: Plug
    number: int
    lan6: IPv6Network | None = None
    _hosts: Iterator[int] = field(default_factory=lambda: itertools.count(2))

    @property
    def address(self) -> IPv4Address:
        """The address that the outside sees."""
        return self.wan.addresses[0]

    def plug(self, namespace: Namespace, interface: str) -> Plug:
        """Lay a cable from the LAN to ``namespace``, with an address and a default route."""
        number = next(self._hosts)
        mine = interface_name(f"to-{namespace.label}")
        connect((self.namespace, mine), (namespace, interface))
        self.namespace.ip(f"link set {mine} master lan")
        address, gateway = (IPv4Address(f"192.168.{self.number}.{n}") for n in (number, 1))
        namespace.ip(f"addr add {address}/24 dev {interface}", f"route add default via {gateway}")
        if self.lan6 is None:
            return Plug(interface, (address,), gateway)
        address6, gateway6 = self.lan6[number], self.lan6[1]
        namespace.ip(
            f"addr add {address6}/64 dev {interface} nodad", f"route add default via {gateway6}"
        )
        return Plug(interface, (address,), gateway, (address6,))

    def block(self, match: str) -> None:
        """Drop forwarded packets that match an nftables expression, until ``unblock``."""
        self.namespace.nft(
            "table inet lab_block {\nchain forward {\n"
            f"type filter hook forward priority -10;\n{match} drop\n"
            "}\n}\n"
        )

    def unblock(self) -> None:
        """Lift every ``block``."""
        self.namespace.nft("delete table inet lab_block\n")

    def unplug(self, namespace: Namespace) -> None:
        """Pull the cable of ``namespace``."""
        self.namespace.ip(f"link del {interface_name(f'to-{namespace.label}')}")


@dataclass(slots=True)
class Server(Host):
    """A host with STUN on two addresses and, once started, a relay."""

    stun: tuple[Endpoint, ...] = ()
    stun6: tuple[Endpoint, ...] = ()
    relay_url: str = ""
    relay_url6: str = ""
    recording: Path | None = None


class Lab:
    """A network of namespaces that exists as long as its ``with`` block runs. Needs root.

    ``verbose`` echoes every command to standard error (as does ``NOSTRVPN_LAB_VERBOSE=1``).
    """

    living: ClassVar[list[Lab]] = []
    """The labs of this process that are open now: whose logs a failure is in."""

    node_type: type[LabNode] = LabNode
    """What ``node`` makes; a test that drives its nodes in another way overrides it."""

    def __init__(self, internet: Internet | None = None, *, verbose: bool = False) -> None:
        self.internet = internet or Internet()
        self.identity = f"{PREFIX}{os.getpid()}-{next(_serial)}-"
        self.namespaces: dict[str, Namespace] = {}
        self.stack = contextlib.ExitStack()
        verbose = verbose or os.environ.get("NOSTRVPN_LAB_VERBOSE", "0") not in ("", "0")
        self._echo: Echo | None = _echo_to_stderr if verbose else None
        self._numbers = itertools.count(1)
        self.nodes: list[LabNode] = []

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise UserError("the lab needs root", "Run it with sudo: it makes network namespaces.")
        sweep()
        self._before = HostSnapshot.take()
        self.stack.enter_context(signals_raise())
        try:
            self.directory = Path(tempfile.mkdtemp(prefix=self.identity))
            self.stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self.core = Core(self.namespace("core"), self.internet, self.directory)
            self.core.start(self.stack)
            self.build()
        except BaseException:
            self.close()
            raise
        Lab.living.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and not isinstance(error, (KeyboardInterrupt, SystemExit)):
            sys.stderr.write(self.report())
        self.close()

    def report(self) -> str:
        """Keep the logs, as files that outlive the lab; return their directory and last lines."""
        kept = Path(tempfile.gettempdir(), "nostrvpn-lab-logs", self.directory.name)
        for log in self.directory.rglob("*.log"):
            copy = kept / log.relative_to(self.directory)
            copy.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):
                shutil.copyfile(log, copy)
        return "\n".join([f"logs kept in {kept}", *(node.report() for node in self.nodes), ""])

    def close(self) -> None:
        """Undo everything, in reverse order; no signal but SIGKILL interrupts it."""
        ignore_signals()
        if self in Lab.living:
            Lab.living.remove(self)
        if keep := os.environ.get("NOSTRVPN_LAB_LOGS"):
            # Whatever cannot be copied, such as a socket, must not keep the lab from ending.
            with contextlib.suppress(OSError):
                shutil.copytree(self.directory, Path(keep, self.directory.name), dirs_exist_ok=True)
        self.stack.close()

    def build(self) -> None:
        """Lay out the network; a topology overrides this."""

    def namespace(self, label: str) -> Namespace:
        """Create an empty namespace that is deleted with the lab."""
        if label in self.namespaces:
            raise UserError(f"the lab already has a {label!r}")
        namespace = Namespace(self.identity + label, label=label, echo=self._echo)
        self.namespaces[label] = namespace
        self.stack.callback(namespace.delete)
        namespace.create()
        namespace.sysctl({"ipv6/conf/default/accept_dad": 0, "ipv6/conf/default/accept_ra": 0})
        return namespace

    def router(
        self,
        name: str,
        kind: NatKind = NatKind.PORT_RESTRICTED,
        *,
        behind: Router | None = None,
        ipv6: bool = False,
        udp_timeout: int = DEFAULT_UDP_TIMEOUT,
    ) -> Router:
        """Add a NAT router on the core, or ``behind`` another one (carrier-grade NAT).

        ``ipv6`` gives its LAN public IPv6 behind a stateful firewall (only directly on the core).
        ``udp_timeout`` is how many seconds an idle UDP mapping lives.
        """
        if ipv6 and behind:
            raise UserError("a lab router behind another router has no IPv6")
        number = next(self._numbers)
        namespace = self.namespace(name)
        wan = (behind or self.core).plug(namespace, "wan")
        router = Router(name, namespace, NatKind(kind), wan, number)
        namespace.ip(
            "link add lan type bridge",
            f"addr add 192.168.{number}.1/24 dev lan",
            "link set lan up",
        )
        if ipv6:
            router.lan6 = IPv6Network(f"2d00:0:1:{number:x}::/64")
            namespace.ip(f"addr add {router.lan6[1]}/64 dev lan nodad")
            self.core.route(router.lan6, wan.addresses6[0])
        namespace.nft(render_ruleset(router.kind, mapping_timeout=udp_timeout))
        namespace.sysctl(
            {
                "ipv4/ip_forward": 1,
                "ipv6/conf/all/forwarding": 1,
                "netfilter/nf_conntrack_udp_timeout": udp_timeout,
                "netfilter/nf_conntrack_udp_timeout_stream": udp_timeout,
            }
        )
        # A frame from one LAN host to another is the switch's business, not the firewall's.
        namespace.sysctl(
            {"bridge/bridge-nf-call-iptables": 0, "bridge/bridge-nf-call-ip6tables": 0},
            if_present=True,
        )
        return router

    def host(self, name: str, router: Router | None = None, *, only: int | None = None) -> Host:
        """Add a machine behind ``router``, or with a public address directly on the core.

        ``only`` 4 or 6 takes the other family's addresses away again.
        """
        namespace = self.namespace(name)
        plug = (router or self.core).plug(namespace, "eth0")
        if only == 6:
            namespace.run("ip", "-4", "addr", "flush", "dev", "eth0")
            plug = replace(plug, addresses=())
        elif only == 4:
            namespace.run("ip", "-6", "addr", "flush", "dev", "eth0", "scope", "global")
            plug = replace(plug, addresses6=())
        return Host(name, namespace, plug)

    def move(self, host: Host, source: Router | None, target: Router | None) -> None:
        """Pull the host's cable out of one router (None: the core) and plug it into another."""
        (source or self.core).unplug(host.namespace)
        host.plug = (target or self.core).plug(host.namespace, "eth0")

    def server_host(
        self, name: str = "server", *, relay: bool = True, record: bool = False
    ) -> Server:
        """Add a host with STUN on two addresses and two ports, and a Nostr relay.

        ``record`` puts a recorder before the relay: ``Server.recording`` is then its JSONL file.
        """
        namespace = self.namespace(name)
        server = Server(name, namespace, self.core.plug(namespace, "eth0", addresses=2))
        listen = [Endpoint(ip, port) for ip in server.plug.addresses for port in STUN_PORTS]
        listen += [Endpoint(ip, STUN_PORTS[0]) for ip in server.plug.addresses6]
        arguments = [f"--listen={endpoint}" for endpoint in listen]
        self.process(name, "stun", *arguments).wait_for_text("ready")
        first, second = server.plug.addresses
        # The kind of a NAT's mapping shows in three destinations: two addresses, two ports of one.
        server.stun = (listen[0], Endpoint(second, STUN_PORTS[0]), Endpoint(first, STUN_PORTS[1]))
        server.stun6 = tuple(endpoint for endpoint in listen if endpoint.ip.version == 6)
        if relay:
            self.start_relay(server, record=record)
        return server

    def start_relay(self, server: Server, *, record: bool = False) -> Process:
        """Start (or restart) the relay of ``server``; returns its process, to stop or kill it."""
        # The recorder listens in one family; the relay itself in both.
        host = str(server.address) if record else "::"
        arguments = [f"--host={host}", f"--port={RELAY_PORT}"]
        if record:
            server.recording = self.directory / f"{server.name}-relay.jsonl"
            arguments.append(f"--record={server.recording}")
        process = self.process(server.name, "relay", *arguments)
        process.wait_for_text("ready", timeout=RELAY_START_TIMEOUT)
        server.relay_url = f"ws://{server.address}:{RELAY_PORT}"
        if not record:
            server.relay_url6 = f"ws://[{server.address6}]:{RELAY_PORT}"
        return process

    def process(self, label: str, module: str, *arguments: str) -> Process:
        """Start ``nostrvpn.lab.MODULE`` in a namespace; it is stopped with the lab."""
        process = Process(
            self.namespaces[label],
            python_module(f"nostrvpn.lab.{module}", *arguments),
            log=self.directory / f"{label}-{module}.log",
        )
        self.stack.callback(process.kill)
        return process

    def capture(self, label: str, interface: str = "any", expression: str = "") -> Capture:
        """Record what passes an interface of a namespace (``expression``: a pcap filter)."""
        number = len(list(self.directory.glob("*.pcap")))
        file = self.directory / f"{label}-{interface}-{number}.pcap"
        capture = Capture(self.namespaces[label], interface, file=file, expression=expression)
        self.stack.callback(capture.stop)
        return capture

    def node(self, host: Host, server: Server, **settings: object) -> LabNode:
        """Put a nostrvpn node on ``host`` that uses ``server``'s relay and STUN; not yet started.

        ``settings`` are merged into its configuration, e.g.
        ``wireguard={"backend": "kernel"}`` or ``log_level="debug"``.
        """
        has_ipv4, has_ipv6 = bool(host.plug.addresses), host.address6 is not None
        relay = server.relay_url if has_ipv4 or not server.relay_url6 else server.relay_url6
        servers = (server.stun if has_ipv4 else ()) + (server.stun6 if has_ipv6 else ())
        node = self.node_type(
            host.namespace,
            directory=self.directory / f"node-{host.name}",
            # A name that the sweep knows: the sockets of userspace WireGuard are shared.
            interface=f"{PREFIX}{os.getpid()}-{next(_serial)}",
            relays=(relay,),
            stun=tuple(map(str, servers)),
            settings=settings,
        )
        self.nodes.append(node)
        self.stack.callback(node.close)
        return node

    def footprint(self) -> Footprint:
        """Return what to look for once the lab is closed; take it while everything runs."""
        return Footprint(
            identity=self.identity,
            inodes=frozenset(n.path.stat().st_ino for n in self.namespaces.values()),
            interfaces=frozenset(node.interface for node in self.nodes),
            host=self._before,
        )


def _echo_to_stderr(line: str) -> None:
    sys.stderr.write(f"[+] {line}\n")
