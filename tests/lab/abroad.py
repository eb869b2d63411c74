"""A laptop at home, exits abroad, a site on the internet; and what leaves the laptop's cable, judged.

::

    printer --- home (NAT, IPv6) --- core --- exit-1 --- 192.168.77.0/24 --- inside
    laptop ----/  eth0               |  \\---- exit-2
                                     \\------- site (public), server (relay, STUN)

Nothing of nostrvpn ever speaks to the site, the printer or the router: every packet to them on the
laptop's cable was sent by a program, around the tunnel.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from nostrvpn.endpoint import IPAddress
from nostrvpn.lab.capture import Capture, CapturedPacket
from nostrvpn.lab.links import connect
from nostrvpn.lab.namespaces import Namespace
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.processes import Process
from nostrvpn.lab.topology import Host, Lab

__all__ = [
    "HOME_LAN6",
    "NOBODY",
    "PROGRAMS",
    "Abroad",
    "Frame",
    "answer_everybody",
    "frames_of",
    "name_server",
    "strays",
]

NOBODY = 65534
HOME_LAN6 = "fd11:1::"
SITE_PORTS = (53, 80, 443, 853)
PROGRAMS = Path(__file__).parent / "programs"

# Spec: IEEE 802 numbers, IANA protocol numbers, RFC 4861 and RFC 3810 types.
_IPV4, _IPV6, _ARP = 0x0800, 0x86DD, 0x0806
_TCP, _UDP, _ICMP, _ICMP6, _HOP_BY_HOP = 6, 17, 1, 58, 0
_NEIGHBOUR = {133, 135, 136}


def answer_everybody(lab: Lab, host: Host) -> None:
    """Let a host answer whoever asks it with the asker's address, at ``SITE_PORTS`` of TCP and UDP."""
    arguments = (sys.executable, str(PROGRAMS / "answering.py"), *map(str, SITE_PORTS))
    process = Process(host.namespace, arguments, log=lab.directory / f"{host.name}-answering.log")
    lab.stack.callback(process.kill)
    process.wait_for_text("listening everywhere")


def name_server(
    lab: Lab, namespace: Namespace, address: object, site: Host, names: Iterable[str]
) -> None:
    """Let dnsmasq answer at an address there: these names are the site's, others nobody's."""
    quiet = ("-d", "-C", "/dev/null", "--no-resolv", "--no-hosts", "-z", "-a", str(address))
    known = [f"--address=/{name}/{site.address}" for name in names]
    server = Process(namespace, ("dnsmasq", *quiet, *known), log=lab.directory / "dnsmasq.log")
    lab.stack.callback(server.kill)
    server.wait_for_text("started")


class Abroad(Lab):
    """The world above; ``laptop`` is the owner of a network in which ``exits`` are members."""

    def __init__(self, *, exits: int = 2, **settings: object) -> None:
        super().__init__()
        self._exits = exits
        # Routers are asked for ports by marked packets; a program's questions to them look the same.
        self._settings = {"paths": {"port_mapping": False}} | settings
        self._own_port = 0

    def build(self) -> None:
        self.server = self.server_host()
        self.home = self.router("home", ipv6=True)
        self.host_laptop = self.host("laptop", self.home)
        self.printer = self.host("printer", self.home)
        for number, host in enumerate((self.host_laptop, self.printer), 2):
            host.namespace.ip(f"addr add {HOME_LAN6}{number}/64 dev eth0 nodad")
        self.printer6 = ip_address(f"{HOME_LAN6}3")
        self.away = self.router("away")
        self.site = self.host("site")
        for host in (self.site, self.printer):
            answer_everybody(self, host)
        # As on many distributions, so that a program without privileges can send echoes.
        group_range = "net.ipv4.ping_group_range=0 2147483647"
        self.host_laptop.run("sysctl", "-q", "-w", group_range)
        self.laptop = self.node(self.host_laptop, self.server, **self._settings)
        self.exits: list[LabNode] = []
        self.hosts_abroad: list[Host] = []
        for number in range(1, self._exits + 1):
            self.hosts_abroad.append(self.host(f"exit-{number}"))
            self.exits.append(self.node(self.hosts_abroad[-1], self.server))
        self.inside = self.namespace("inside")
        connect((self.inside, "lan"), (self.exits[0].namespace, "lan"))
        self.inside.ip("addr add 192.168.77.10/24 dev lan", "route add default via 192.168.77.1")
        self.inside.ip("addr add fd77::10/64 dev lan nodad")
        self.exits[0].namespace.ip(
            "addr add 192.168.77.1/24 dev lan", "addr add fd77::1/64 dev lan nodad"
        )

    @property
    def strangers(self) -> frozenset[IPAddress]:
        """Addresses that nothing of nostrvpn ever speaks to."""
        found = {self.site.address, self.printer.address, self.printer6}
        if self.site.address6 is not None:
            found.add(self.site.address6)
        return frozenset(found)

    @contextmanager
    def dhcp_server(self, routes: Iterable[str]) -> Iterator[None]:
        """Have the home's router give the laptop its address, and these routes by way of itself."""
        address, gateway = self.host_laptop.address, self.host_laptop.plug.gateway
        option = ",".join(f"{network},{gateway}" for network in routes)
        mac = self.mac().hex(":")
        words = [
            "dnsmasq",
            "-d",
            "-C",
            "/dev/null",
            "--port=0",
            "--interface=lan",
            "--leasefile-ro",
        ]
        words += [f"--dhcp-range={address},static", f"--dhcp-host={mac},{address}"]
        log = self.directory / "dhcp.log"
        server = Process(self.home.namespace, (*words, f"--dhcp-option=121,{option}"), log=log)
        try:
            server.wait_for_text("started")
            yield
        finally:
            server.kill()

    def watch(self, cable: str = "eth0") -> Capture:
        """Record what passes a cable of the laptop."""
        return self.capture("laptop", cable)

    def mac(self, cable: str = "eth0") -> bytes:
        """The hardware address of a cable of the laptop."""
        text = self.host_laptop.run("ip", "-j", "link", "show", "dev", cable)
        return bytes.fromhex(json.loads(text)[0]["address"].replace(":", ""))

    def plug_in_again(self) -> None:
        """Bring the cable up, with the addresses and routes that went with it."""
        plug, namespace = self.host_laptop.plug, self.host_laptop.namespace
        assert self.home.lan6 is not None
        namespace.ip(
            "link set eth0 up",
            f"addr replace {HOME_LAN6}2/64 dev eth0 nodad",
            f"addr replace {plug.addresses6[0]}/64 dev eth0 nodad",
            f"route replace default via {plug.gateway} dev eth0",
            f"route replace default via {self.home.lan6[1]} dev eth0",
        )

    def own_port(self) -> int:
        """The port of the laptop's WireGuard and checks: it stays the same."""
        if not self._own_port:
            self._own_port = int(self.laptop.query("netcheck")["listen_port"])
        return self._own_port

    def cut(self, number: int) -> None:
        """Let nothing in or out of an exit's host, until ``mend``."""
        chains = "".join(
            f"chain {hook} {{ type filter hook {hook} priority -500; policy drop; }}\n"
            for hook in ("input", "output", "forward")
        )
        self.exits[number].namespace.nft(f"table inet lab_cut {{\n{chains}}}\n")

    def mend(self, number: int) -> None:
        """Lift ``cut``."""
        self.exits[number].namespace.nft("table inet lab_cut {}\ndelete table inet lab_cut\n")

    def talk(self, *, uid: int = 0, more: Iterable[IPAddress] = ()) -> dict[str, list[str]]:
        """Have a program on the laptop send all it can, everywhere, and return what answered.

        TCP, UDP, echoes and DNS questions, of both IP versions, each also bound to the cable: to the
        site, the printer, the router, multicast, broadcast, the metadata address, and to ``more``.
        """
        site, printer = self.site, self.printer
        targets: list[object] = [site.address, site.address6, printer.address, self.printer6]
        targets += [self.host_laptop.plug.gateway, "169.254.169.254", "224.0.0.251", *more]
        argv = [sys.executable, str(PROGRAMS / "talking.py"), str(uid), "eth0"]
        argv += [str(target) for target in targets if target is not None]
        done = self.host_laptop.run(*argv, timeout=30)
        found: dict[str, list[str]] = json.loads(done)
        return found


@dataclass(frozen=True, slots=True)
class Frame:
    """One IP packet or ARP frame that left: ``protocol`` as IANA numbers it, 0 for ARP."""

    source: IPAddress | None
    target: IPAddress | None
    protocol: int
    source_port: int = 0
    port: int = 0
    kind: int = 0
    payload: bytes = b""

    def __str__(self) -> str:
        names = {_TCP: "TCP", _UDP: "UDP", _ICMP: "ICMP", _ICMP6: "ICMPv6", 0: "ARP"}
        name = names.get(self.protocol, str(self.protocol))
        return f"{name} {self.source}:{self.source_port} > {self.target}:{self.port} {self.kind}"


def frames_of(packets: Iterable[CapturedPacket], mac: bytes) -> list[Frame]:
    """Return what left from the hardware address ``mac``."""
    found = []
    for packet in packets:
        data = packet.data
        if len(data) < 14 or data[6:12] != mac:
            continue
        kind = struct.unpack_from("!H", data, 12)[0]
        if kind == _ARP:
            found.append(Frame(None, None, 0))
        elif kind == _IPV4:
            found.append(_ipv4(data[14:]))
        elif kind == _IPV6:
            found.append(_ipv6(data[14:]))
    return found


def _ipv4(data: bytes) -> Frame:
    source, target = IPv4Address(data[12:16]), IPv4Address(data[16:20])
    return _inner(source, target, data[9], data[(data[0] & 15) * 4 :])


def _ipv6(data: bytes) -> Frame:
    source, target, protocol = IPv6Address(data[8:24]), IPv6Address(data[24:40]), data[6]
    rest = data[40:]
    if protocol == _HOP_BY_HOP and len(rest) > 8:
        protocol, rest = rest[0], rest[(rest[1] + 1) * 8 :]
    return _inner(source, target, protocol, rest)


def _inner(source: IPAddress, target: IPAddress, protocol: int, rest: bytes) -> Frame:
    if protocol in (_TCP, _UDP) and len(rest) >= 8:
        source_port, port = struct.unpack_from("!HH", rest)
        payload = rest[8:] if protocol == _UDP else b""
        return Frame(source, target, protocol, source_port, port, payload=payload)
    kind = rest[0] if protocol in (_ICMP, _ICMP6) and rest else 0
    return Frame(source, target, protocol, kind=kind)


def strays(lab: Abroad, capture: Capture, *, lan: bool = False, cable: str = "eth0") -> list[str]:
    """Return what left a cable of the laptop beyond what ``docs/security.md`` lists for a blocked state.

    Left out are: ARP, neighbour discovery, DHCP, the agent's own (relay, STUN, and WireGuard or STUN
    datagrams from its own port), and with ``lan`` whatever goes to the home's own networks.
    """
    assert capture.lost == 0, f"{capture.lost} packets are not in the capture"
    server = {*lab.server.plug.addresses, *lab.server.plug.addresses6}
    own_port = lab.own_port()
    found = []
    for frame in frames_of(capture.packets(), lab.mac(cable)):
        if frame.protocol == 0 or (frame.protocol == _ICMP6 and frame.kind in _NEIGHBOUR):
            continue
        if frame.target in server and (frame.protocol, frame.port) in (
            *((_UDP, endpoint.port) for endpoint in (*lab.server.stun, *lab.server.stun6)),
            (_TCP, 7777),
        ):
            continue
        if frame.source_port == own_port and frame.protocol == _UDP and _is_ours(frame.payload):
            continue
        if frame.protocol == _UDP and (frame.source_port, frame.port) in ((68, 67), (546, 547)):
            continue
        if (
            lan
            and frame.target is not None
            and _is_home(frame.target)
            and frame.port not in (53, 853)
        ):
            continue
        found.append(str(frame))
    return found


def _is_ours(payload: bytes) -> bool:
    """Whether a datagram is WireGuard's (a type of 1 to 4 and three zeros) or STUN (RFC 8489)."""
    is_wireguard = payload[:1] in (b"\1", b"\2", b"\3", b"\4") and payload[1:4] == bytes(3)
    return is_wireguard or payload[4:8] == b"\x21\x12\xa4\x42"


def _is_home(target: IPAddress) -> bool:
    return target.is_private or target.is_link_local or target.is_multicast
