"""A host with a cable to everywhere and an interface that stands for the tunnel; what leaves by each.

Nobody looks for neighbours on either, so a packet is on the cable whether or not anybody would take it.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from nostrvpn.endpoint import IPAddress
from nostrvpn.host.exit_routing import ExitRouting
from nostrvpn.host.shield import Shield, ShieldKind
from nostrvpn.host.state import FWMARK, IPNetwork
from nostrvpn.io.exit_routing import apply_exit_routing
from nostrvpn.io.shield import apply_shield
from tests.conftest import run

TUNNEL, CABLE = "nv0", "eth0"
OWN = {4: "192.168.50.2", 6: "2001:db8:50::2"}
ROUTER = {4: "192.168.50.1", 6: "2001:db8:50::1"}
INSIDE = {4: "10.64.0.1", 6: "fd64::1"}
MEMBER = {4: "10.64.0.2", 6: "fd64::2"}
PUBLIC = {4: "198.51.100.7", 6: "2001:db8:7::7"}
OTHER = {4: "203.0.113.9", 6: "2001:db8:9::9"}
LAN = {4: "192.168.50.9", 6: "fd50::9"}
OVERLAY: frozenset[IPNetwork] = frozenset({ip_network("10.64.0.0/16"), ip_network("fd64::/48")})
EVERYWHERE = (PUBLIC, OTHER, LAN)
LISTEN_PORT = 25555
NOBODY, SOMEBODY = 65534, 4321
PORTS = (53, 853, 443)
LIMIT = 10.0
# RFC 3810: what the kernel says of itself when an address is new, before there is a shield.
MLD = 143
# Spec: linux/if_ether.h.
ETH_P_ALL = 3

# One line of JSON a packet to send; prints the errors. Nothing of this package: it runs as anybody.
_TALK = """
import json, os, socket, sys
uid = int(sys.argv[1])
if uid:
    os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
failed = []
for one in json.loads(sys.argv[2]):
    v6 = ":" in one["to"]
    family = socket.AF_INET6 if v6 else socket.AF_INET
    kinds = {
        "tcp": (socket.SOCK_STREAM, 0),
        "udp": (socket.SOCK_DGRAM, 0),
        "icmp": (socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP),
    }
    try:
        with socket.socket(family, *kinds[one["kind"]]) as sock:
            sock.setblocking(False)
            if one.get("mark"):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, one["mark"])
            if one.get("device"):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, one["device"].encode())
            if one.get("source"):
                sock.bind(tuple(one["source"]))
            if one["kind"] == "udp":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            if one["kind"] == "tcp":
                sock.connect((one["to"], one["port"]))
            elif one["kind"] == "udp":
                sock.sendto(b"x", (one["to"], one["port"]))
            else:
                echo = bytes([128 if v6 else 8, 0, 0, 0, 0, 1, 0, 1]) + bytes(8)
                sock.sendto(echo, (one["to"], 0))
    except BlockingIOError:
        pass
    except OSError as exc:
        failed.append([one["to"], one["kind"], exc.errno])
print(json.dumps(failed))
"""


@dataclass(frozen=True, slots=True, order=True)
class Packet:
    """``kind``: tcp, udp, icmp or a number; ``port``: where it goes, or ICMP's type."""

    destination: str
    kind: str
    port: int
    source: str = ""

    @property
    def target(self) -> tuple[str, str, int]:
        return self.destination, self.kind, self.port


class Wire:
    """The far end of a link, and all that came out of it since the last look."""

    def __init__(self, netns: Any, link: str) -> None:
        self.socket: socket.socket = netns.call(
            socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)
        )
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        netns.call(self.socket.bind, (link, ETH_P_ALL))
        self.socket.settimeout(LIMIT)

    def until(self, end: Callable[[Packet], bool]) -> set[Packet]:
        """Return what came before the packet that ``end`` knows."""
        return set(self.seen(end))

    def seen(self, end: Callable[[Packet], bool]) -> list[Packet]:
        """The same, in its order and as often as it came."""
        found: list[Packet] = []
        while True:
            data, where = self.socket.recvfrom(65535)
            if where[2] == socket.PACKET_OUTGOING:
                continue
            packet = parse(data)
            if end(packet):
                return found
            if not (packet.kind == "icmp" and packet.port == MLD):
                found.append(packet)


def parse(frame: bytes) -> Packet:
    kind = struct.unpack_from("!H", frame, 12)[0]
    data = frame[14:]
    if kind == 0x0800:
        protocol, start = data[9], (data[0] & 15) * 4
        source, destination = (ip_address(data[i : i + 4]) for i in (12, 16))
    elif kind == 0x86DD:
        protocol, start = data[6], 40
        if protocol == 0:  # hop-by-hop options
            protocol, start = data[40], 48 + data[41] * 8
        source, destination = (ip_address(data[i : i + 16]) for i in (8, 24))
    else:
        return Packet("", f"ether {kind:#x}", 0)
    if protocol in (6, 17):
        name, port = "tcp" if protocol == 6 else "udp", struct.unpack_from("!H", data, start + 2)[0]
    else:
        name, port = "icmp" if protocol in (1, 58) else str(protocol), data[start]
    return Packet(str(destination), name, port, str(source))


class Host:
    """``netns`` is the host; ``outside`` is at the other end of its cable, ``exit`` of its tunnel."""

    def __init__(self, make_netns: Callable[[], Any]) -> None:
        self.netns, self.outside, self.exit = (make_netns() for _ in range(3))
        self.link(self.outside, CABLE)
        self.link(self.exit, TUNNEL)
        for link, own in ((CABLE, OWN), (TUNNEL, INSIDE)):
            self.netns.ip("addr", "add", f"{own[4]}/{24 if link == CABLE else 16}", "dev", link)
            length = 64 if link == CABLE else 48
            self.netns.ip("addr", "add", f"{own[6]}/{length}", "dev", link, "nodad")
        self.netns.ip("addr", "add", "fd50::2/64", "dev", CABLE, "nodad")
        self.netns.ip("route", "add", "default", "via", ROUTER[4], "dev", CABLE)
        self.netns.ip("-6", "route", "add", "default", "via", ROUTER[6], "dev", CABLE)
        self.sysctl("net.ipv4.ping_group_range=0 2147483647")
        self.cable, self.tunnel = Wire(self.outside, "e"), Wire(self.exit, "e")

    def close(self) -> None:
        for wire in (self.cable, self.tunnel):
            wire.socket.close()

    def link(self, far: Any, name: str) -> None:
        far.ip("link", "add", "e", "type", "veth", "peer", "name", name, "netns", self.netns.name)
        for netns, link in ((far, "e"), (self.netns, name)):
            netns.ip("link", "set", link, "address", "02:00:00:00:00:01", "arp", "off")
            for setting in ("accept_dad", "router_solicitations"):
                netns.run("sysctl", "-qw", f"net.ipv6.conf.{link}.{setting}=0")
            netns.ip("link", "set", link, "up")

    def sysctl(self, *settings: str) -> None:
        self.netns.run("sysctl", "-qw", *settings)

    def apply(self, kind: ShieldKind, **more: Any) -> None:
        """Shield and routing of this kind, as the agent sets them; ``more``: fields of either."""
        routed = {key: more[key] for key in ("versions", "allow_lan", "behind") if key in more}
        routes = bool(more.pop("routes", True))
        shield = Shield(kind, **{"overlay": OVERLAY, "listen_port": LISTEN_PORT, **more})
        if kind is ShieldKind.BLOCKED:
            routed.pop("versions", None)
        diverts = not shield.bypass.is_empty
        routing = (
            ExitRouting(routes, OVERLAY, diverts=diverts, **routed) if routes else ExitRouting()
        )
        self.netns.call(apply_shield, shield, TUNNEL)
        self.netns.call(apply_exit_routing, routing, TUNNEL)

    def send(
        self, packets: list[dict[str, Any]], uid: int = 0, cgroup: str = ""
    ) -> list[tuple[str, str, int]]:
        """Send as a user, in a cgroup (a directory); return (destination, kind, errno) refused."""
        program = (sys.executable, "-c", _TALK, str(uid), json.dumps(packets))
        if cgroup:
            # Before: within, ip mounts another /sys.
            inside = ("ip", "netns", "exec", self.netns.name, *program)
            said = run("sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', cgroup, *inside)
        else:
            said = self.netns.run(*program)
        return [tuple(one) for one in json.loads(said)]

    def left(self) -> tuple[set[Packet], set[Packet]]:
        """Return what left by the cable and by the tunnel since the last time."""
        found = []
        for wire, link, port in ((self.cable, CABLE, 9001), (self.tunnel, TUNNEL, 9002)):
            # What is marked always may; and a cable keeps the order.
            with self.netns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, FWMARK)
                target = PUBLIC[4] if link == CABLE else MEMBER[4]
                self.netns.call(sock.sendto, b"end", (target, port))
            found.append(wire.until(lambda packet, port=port: packet.port == port))  # type: ignore[misc]
        return found[0], found[1]

    def leaves(
        self, packets: list[dict[str, Any]], uid: int = 0
    ) -> tuple[set[tuple[str, str, int]], set[tuple[str, str, int]]]:
        """Send as a user; return what of it left by the cable, and by the tunnel."""
        self.left()
        self.send(packets, uid)
        cable, tunnel = self.left()
        return {p.target for p in cable}, {p.target for p in tunnel}


def talk(*addresses: str, ports: tuple[int, ...] = PORTS, **more: Any) -> list[dict[str, Any]]:
    """TCP and UDP to these ports of each address, and an echo request."""
    made: list[dict[str, Any]] = []
    for address in addresses:
        made += [
            {"to": address, "kind": kind, "port": port, **more}
            for kind in ("tcp", "udp")
            for port in ports
        ]
        made.append({"to": address, "kind": "icmp", "port": 0, **more})
    return made


def targets(packets: list[dict[str, Any]]) -> set[tuple[str, str, int]]:
    """What of these would be seen on a wire."""
    echo = {4: 8, 6: 128}
    return {
        (
            one["to"],
            one["kind"],
            echo[ip_address(one["to"]).version] if one["kind"] == "icmp" else one["port"],
        )
        for one in packets
    }


def addresses(*groups: dict[int, str]) -> tuple[str, ...]:
    return tuple(address for group in groups for address in group.values())


def parsed(*texts: str) -> frozenset[IPAddress]:
    return frozenset(map(ip_address, texts))


@contextmanager
def listening(netns: Any, address: str, port: int) -> Iterator[socket.socket]:
    """A UDP socket there."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with netns.call(socket.socket, family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(LIMIT)
        sock.bind((address, port))
        yield sock
