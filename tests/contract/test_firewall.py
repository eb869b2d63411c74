"""The packet filter: table kept as desired by a real nft, and guards and pins under two wireguard-go.

The topology of the tunnel tests, with a relay that holds each packet back for a while, so that there
always are late ones::

    a (10.1.0.2) --- r (10.1.0.1, 10.2.0.1; relay at 10.1.0.1:RELAY_PORT) --- b (10.2.0.2)
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from typing import Any

import pytest

from nostrvpn.daemon.reconcile import Reconciler
from nostrvpn.endpoint import Endpoint
from nostrvpn.host.firewall import Firewall, Guard, Pin, table_name
from nostrvpn.host.state import FWMARK, HostState
from nostrvpn.io import nftables
from nostrvpn.io.cleanup import remove_marked
from nostrvpn.io.nftables import apply_firewall, own_tables
from nostrvpn.io.wireguard_userspace import UserspaceBackend
from nostrvpn.node.desired import Desired
from nostrvpn.wireguard.device import Device, Peer, SecretKey

V4 = Endpoint(IPv4Address("192.0.2.1"), 7000)
GUARD = Guard(V4, Endpoint(IPv4Address("198.51.100.1"), 51820))
WHOLE = Firewall(51820, frozenset({GUARD}), frozenset({Pin(40000, V4)}), clamp_forwarded=True)

RELAY = Endpoint(IPv4Address("10.1.0.1"), 7000)
PORT = 5000
DIRECT = {
    "a": Endpoint(IPv4Address("10.1.0.2"), PORT),
    "b": Endpoint(IPv4Address("10.2.0.2"), PORT),
}
OVERLAY = {"a": "10.9.0.1", "b": "10.9.0.2"}
OTHER = {"a": "b", "b": "a"}
GUARDED = Firewall(guards=frozenset({Guard(RELAY, DIRECT["b"])}))
# The same over IPv6.
RELAY6 = Endpoint(IPv6Address("fd01::1"), 7000)
DIRECT6 = {
    "a": Endpoint(IPv6Address("fd01::2"), PORT),
    "b": Endpoint(IPv6Address("fd02::2"), PORT),
}
RELAY_DELAY = 0.03
APART = 0.04
INTERVAL = 0.02


# -- the table ----------------------------------------------------------------------------------


def test_the_table_is_made_once_and_removed(netns: Any) -> None:
    assert netns.call(apply_firewall, WHOLE, "nv0")
    assert netns.call(own_tables) == ("nostrvpn_nv0",)
    assert not netns.call(apply_firewall, WHOLE, "nv0")
    other = Firewall(guards=frozenset({GUARD}))
    assert netns.call(apply_firewall, other, "nv0")
    listed = netns.run("nft", "list", "table", "inet", "nostrvpn_nv0")
    assert listed.count("saddr set") == 1
    assert "maxseg" not in listed
    assert netns.call(apply_firewall, Firewall(), "nv0")
    assert netns.call(own_tables) == ()
    assert not netns.call(apply_firewall, Firewall(), "nv0")


@pytest.mark.parametrize(
    "foreign",
    [
        ("flush", "ruleset"),
        ("flush", "table", "inet", "nostrvpn_nv0"),
        ("flush", "chain", "inet", "nostrvpn_nv0", "leaving"),
        ("add", "rule", "inet", "nostrvpn_nv0", "arriving", "drop"),
    ],
    ids=" ".join,
)
def test_what_others_change_is_repaired(netns: Any, foreign: tuple[str, ...]) -> None:
    netns.call(apply_firewall, WHOLE, "nv0")
    before = netns.run("nft", "-s", "list", "table", "inet", "nostrvpn_nv0")
    netns.run("nft", *foreign)
    assert netns.call(apply_firewall, WHOLE, "nv0")
    assert netns.run("nft", "-s", "list", "table", "inet", "nostrvpn_nv0") == before


def test_other_tables_are_left_alone(netns: Any) -> None:
    netns.run("nft", "add", "table", "inet", "filter")
    netns.run("nft", "add", "table", "ip", "nostrvpn_mine")
    netns.call(apply_firewall, WHOLE, "nv0")
    netns.call(apply_firewall, Firewall(), "nv0")
    assert netns.run("nft", "list", "tables").split("\n")[:2] == [
        "table inet filter",
        "table ip nostrvpn_mine",
    ]


def test_cleanup_finds_tables_without_a_record(netns: Any) -> None:
    for name in ("nostrvpn_nv0", "nostrvpn_nv0_relay", "nostrvpn_nv1", "filter"):
        netns.run("nft", "add", "table", "inet", name)
    netns.call(remove_marked, interface="nv0")
    assert netns.call(own_tables) == ("nostrvpn_nv1",)
    netns.call(remove_marked)
    assert netns.run("nft", "list", "tables").strip() == "table inet filter"


def test_a_host_without_nft_is_asked_only_when_something_is_wanted(netns: Any) -> None:
    code = (
        "import os; os.environ['PATH'] = '/nonexistent'\n"
        "from nostrvpn.errors import SystemRefused\n"
        "from nostrvpn.host.firewall import Firewall\n"
        "from nostrvpn.io.nftables import apply_firewall, own_tables\n"
        "assert own_tables() == () and not apply_firewall(Firewall(), 'nv0')\n"
        "try: apply_firewall(Firewall(clamp_forwarded=True), 'nv0')\n"
        "except SystemRefused as exc: print(exc, '|', exc.hint)\n"
    )
    assert "not installed | install" in netns.run(sys.executable, "-c", code)


STUN = bytes.fromhex("000100002112a442") + bytes(12)
DATA = bytes.fromhex("0400000001020304") + bytes(24)


@pytest.mark.parametrize(
    ("old", "new", "arrived"),
    [
        ("10.7.0.1", "10.7.0.3", "10.7.0.3"),
        ("fd07::1", "fd07::3", "fd07::3"),
        ("10.7.0.1", "fd07::3", None),
        ("127.0.0.9", "10.7.0.3", None),
        ("10.7.0.1", "127.0.0.9", None),
    ],
)
def test_a_guard_changes_or_drops_all_but_stun(
    netns: Any, old: str, new: str, arrived: str | None
) -> None:
    for address in ("10.7.0.1/32", "10.7.0.2/32", "fd07::1/128", "fd07::2/128"):
        netns.ip("addr", "add", address, "dev", "lo")
    guard = Guard(Endpoint(ip_address(old), 7000), Endpoint(ip_address(new), 5000))
    netns.call(apply_firewall, Firewall(guards=frozenset({guard})), "nv0")
    family = socket.AF_INET6 if ":" in old else socket.AF_INET
    target = "fd07::2" if ":" in old else "127.0.0.1" if old.startswith("127") else "10.7.0.2"

    def exchange() -> list[tuple[bytes, str, int]]:
        with (
            socket.socket(family, socket.SOCK_DGRAM) as out,
            socket.socket(family, socket.SOCK_DGRAM) as arriving,
        ):
            out.bind((old, 7000))
            arriving.bind((target, 6000))
            arriving.settimeout(5)
            # The third is to show that the second was dropped, and not only late.
            for data in (STUN, DATA, STUN):
                out.sendto(data, (target, 6000))
            got = [arriving.recvfrom(100) for _ in range(2 if arrived is None else 3)]
            return [(data, *source[:2]) for data, source in got]

    seen = [(STUN, old, 7000), (DATA, arrived or "", 5000), (STUN, old, 7000)]
    assert netns.call(exchange) == [item for item in seen if item[1]]


def test_many_guards_cost_one_process(netns: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []

    def counted(*arguments: str, **keywords: Any) -> str:
        calls.append(arguments)
        return original(*arguments, **keywords)

    original = nftables._run
    monkeypatch.setattr(nftables, "_run", counted)
    ends = [Endpoint(IPv4Address(f"192.0.2.{n}"), 7000) for n in range(1, 51)]
    guards = frozenset(Guard(old, GUARD.new) for old in ends)
    for wanted in (guards, frozenset(list(guards)[:20])):
        calls.clear()
        assert netns.call(apply_firewall, Firewall(guards=wanted), "nv0")
        assert len(calls) == 1
        assert not netns.call(apply_firewall, Firewall(guards=wanted), "nv0")
        assert len(calls) == 1


def udp_segment(source: IPv4Address, target: IPv4Address, data: bytes, *, summed: bool) -> bytes:
    """Return a datagram from port 7000 to 6000, with its checksum or with none (RFC 768)."""
    segment = struct.pack("!HHHH", 7000, 6000, 8 + len(data), 0) + data
    if not summed:
        return segment
    counted = source.packed + target.packed + struct.pack("!HH", 17, len(segment)) + segment
    total = sum(struct.unpack(f"!{len(counted) // 2}H", counted))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return segment[:6] + struct.pack("!H", ~total & 0xFFFF) + segment[8:]


def test_what_has_no_checksum_is_not_rewritten(make_netns: Callable[[], Any]) -> None:
    """The kernel would mend a checksum of 0, and so spoil the packet; it is late, so it is dropped."""
    far, near = make_netns(), make_netns()
    far.ip("link", "add", "e", "type", "veth", "peer", "name", "e", "netns", near.name)
    for host, number in ((far, 1), (near, 2)):
        host.ip("addr", "add", f"10.7.0.{number}/24", "dev", "e")
        host.ip("link", "set", "e", "up")
    source, target = IPv4Address("10.7.0.1"), IPv4Address("10.7.0.2")
    guard = Guard(Endpoint(source, 7000), Endpoint(IPv4Address("10.7.0.3"), 5000))
    pin = Pin(6000, guard.old)
    arriving = near.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    raw = far.call(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)

    def arrived(firewall: Firewall) -> list[tuple[bytes, str, int]]:
        near.call(apply_firewall, firewall, "nv0")
        # Raw, in order: without a checksum, then with one, which shows that the first was dropped.
        for number, summed in ((1, False), (2, True)):
            data = DATA[:-1] + bytes([number])
            raw.sendto(udp_segment(source, target, data, summed=summed), (str(target), 0))
        got: list[tuple[bytes, str, int]] = []
        while not got or got[-1][0][-1] != 2:
            data, address = arriving.recvfrom(100)
            got.append((data, *address))
        return [(data[-1:], ip, at) for data, ip, at in got]

    with arriving, raw:
        arriving.settimeout(5)
        arriving.bind((str(target), 6000))
        assert [item[0] for item in arrived(Firewall())] == [b"\1", b"\2"]
        guarded = arrived(Firewall(guards=frozenset({guard})))
        assert guarded == [(b"\2", "10.7.0.3", 5000)]
    listening = near.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    with listening, far.call(socket.socket, socket.AF_INET, socket.SOCK_RAW, 17) as raw:
        arriving = listening
        arriving.settimeout(5)
        arriving.bind((str(target), 6001))
        assert [item[0] for item in arrived(Firewall(6001, pins=frozenset({pin})))] == [b"\2"]
    errors = near.run("cat", "/proc/net/snmp").splitlines()
    names, values = (line.split() for line in errors if line.startswith("Udp:"))
    assert values[names.index("InCsumErrors")] == "0"


@pytest.mark.parametrize("clamped", [True, False])
def test_forwarded_tcp_learns_the_tunnels_mtu(make_netns: Callable[[], Any], clamped: bool) -> None:
    """A router whose way out is narrower than both ends think; the far end is told by the SYN."""
    near, router, far = (make_netns() for _ in range(3))
    for host, number, link in ((near, 1, "lan"), (far, 2, "nv0")):
        host.ip("link", "add", "e", "type", "veth", "peer", "name", link, "netns", router.name)
        host.ip("addr", "add", f"10.{number}.0.2/24", "dev", "e")
        router.ip("addr", "add", f"10.{number}.0.1/24", "dev", link)
        host.ip("link", "set", "e", "up")
        router.ip("link", "set", link, "up")
        host.ip("route", "add", "default", "via", f"10.{number}.0.1")
    router.ip("link", "set", "nv0", "mtu", "1300")
    router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    router.call(apply_firewall, Firewall(clamp_forwarded=clamped), "nv0")
    listener = far.call(socket.create_server, ("10.2.0.2", 6000))
    with listener, near.call(socket.create_connection, ("10.2.0.2", 6000), 10) as client:
        accepted, _ = listener.accept()
        with accepted:
            sizes = [
                end.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) for end in (client, accepted)
            ]
    # 40 bytes of headers, and 12 of the timestamps that Linux adds.
    assert sizes == [1248 if clamped else 1448] * 2


# -- two nodes, and a relay between them -----------------------------------------------------------


@dataclass
class Side:
    """One node: a Reconciler in its namespace, as the daemon has it."""

    netns: Any
    name: str
    interface: str
    keys: dict[str, SecretKey]
    generation: int = 0
    reconciler: Reconciler = field(init=False)

    def __post_init__(self) -> None:
        self.reconciler = Reconciler(UserspaceBackend(), self.interface, 1280)

    def set(
        self, endpoint: Endpoint, firewall: Firewall | None = None, *, expect_error: str = ""
    ) -> None:
        self.generation += 1
        peer = Peer(
            self.keys[OTHER[self.name]].public_key,
            frozenset({ip_network(f"{OVERLAY[OTHER[self.name]]}/32")}),
            0,
            endpoint,
            self.generation,
        )
        host = HostState(
            self.interface,
            1280,
            frozenset({ip_interface(f"{OVERLAY[self.name]}/32")}),
            frozenset({ip_network("10.9.0.0/24")}),
        )
        device = Device(self.keys[self.name], PORT, FWMARK, (peer,))
        desired = Desired(device, host, firewall or Firewall())
        self.netns.call(self.reconciler.reconcile_now, desired)
        told = self.reconciler.finished(None).firewall_error
        assert (told is None) == (not expect_error)
        assert expect_error in (told or "")

    def endpoint(self) -> Endpoint | None:
        observed = self.netns.call(UserspaceBackend().observe, self.interface)
        endpoint: Endpoint | None = observed.peers[0].endpoint
        return endpoint


@contextmanager
def relay(netns: Any, at: Endpoint, direct: dict[str, Endpoint]) -> Iterator[None]:
    """Forward between the two sides from one port, each packet ``RELAY_DELAY`` later."""
    stopped = threading.Event()

    def serve() -> None:
        family = socket.AF_INET if at.ip.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((str(at.ip), at.port))
            sock.settimeout(0.005)
            held: list[tuple[float, bytes, tuple[str, int]]] = []
            ends = {str(end.ip): direct[OTHER[name]] for name, end in direct.items()}
            while not stopped.is_set():
                try:
                    data, source = sock.recvfrom(2048)
                    to = ends[source[0]]
                    held.append((time.monotonic() + RELAY_DELAY, data, (str(to.ip), to.port)))
                except TimeoutError:
                    pass
                while held and held[0][0] <= time.monotonic():
                    _, data, target = held.pop(0)
                    sock.sendto(data, target)

    thread = threading.Thread(target=lambda: netns.call(serve), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(5)


@contextmanager
def flow(source: Side, target: Side) -> Iterator[dict[str, int]]:
    """Send 50 packets a second through the tunnel; the yielded counts are complete at the end."""
    counts = {"sent": 0, "received": 0}
    stopped = threading.Event()

    def open_socket() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def receive(sock: socket.socket) -> None:
        seen = set()
        while not stopped.is_set():
            try:
                seen.add(sock.recv(64))
            except TimeoutError:
                continue
            counts["received"] = len(seen)

    with source.netns.call(open_socket) as out, target.netns.call(open_socket) as arriving:
        arriving.bind((OVERLAY[target.name], 6000))
        arriving.settimeout(0.1)
        ended = threading.Event()

        def send() -> None:
            while not ended.wait(INTERVAL):
                counts["sent"] += 1
                out.sendto(counts["sent"].to_bytes(8, "big"), (OVERLAY[target.name], 6000))

        threads = [
            threading.Thread(target=send, daemon=True),
            threading.Thread(target=receive, args=(arriving,), daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            yield counts
        finally:
            ended.set()
            threads[0].join(5)
            time.sleep(RELAY_DELAY + 0.1)
            stopped.set()
            threads[1].join(5)


def cross(
    sides: dict[str, Side], old: dict[str, Endpoint], new: dict[str, Endpoint], guarded: bool
) -> bool:
    """Move both sides to ``new``, one a little later; return whether both stay there."""
    for name in ("a", "b"):
        guard = Guard(old[name], new[name])
        sides[name].set(new[name], Firewall(guards=frozenset({guard}) if guarded else frozenset()))
        time.sleep(APART)
    time.sleep(0.15)
    stayed = all(side.endpoint() == new[name] for name, side in sides.items())
    for name, side in sides.items():  # the old path is quiet by now, the guard can go
        side.set(new[name]) if guarded else None
    return stayed


@pytest.fixture
def sides(make_netns: Callable[[], Any]) -> Iterator[dict[str, Side]]:
    """Two nodes whose tunnel is up over the relay."""
    a, r, b = (make_netns() for _ in range(3))
    for host, number, label in ((a, 1, "ra"), (b, 2, "rb")):
        host.ip("link", "add", "e", "type", "veth", "peer", "name", label, "netns", r.name)
        host.ip("addr", "add", f"10.{number}.0.2/24", "dev", "e")
        r.ip("addr", "add", f"10.{number}.0.1/24", "dev", label)
        host.ip("addr", "add", f"fd0{number}::2/64", "dev", "e", "nodad")
        r.ip("addr", "add", f"fd0{number}::1/64", "dev", label, "nodad")
        host.ip("link", "set", "e", "up")
        r.ip("link", "set", label, "up")
        host.ip("route", "add", "default", "via", f"10.{number}.0.1")
        host.ip("route", "add", "default", "via", f"fd0{number}::1")
    r.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    keys = {name: SecretKey(os.urandom(32)) for name in DIRECT}
    made = {
        name: Side(netns, name, f"nv{os.getpid()}{name}", keys)
        for name, netns in (("a", a), ("b", b))
    }
    with relay(r, RELAY, DIRECT), relay(r, RELAY6, DIRECT6), ExitStack() as stack:
        for side in made.values():
            stack.callback(side.netns.call, UserspaceBackend().delete, side.interface)
            side.set(RELAY)
        ping(made["a"])
        yield made


def ping(side: Side) -> None:
    side.netns.run("ping", "-c1", "-w10", OVERLAY[OTHER[side.name]])


TO_RELAY = {"a": RELAY, "b": RELAY}
TO_DIRECT = {"a": DIRECT["b"], "b": DIRECT["a"]}
TO_RELAY6 = {"a": RELAY6, "b": RELAY6}
TO_DIRECT6 = {"a": DIRECT6["b"], "b": DIRECT6["a"]}


@pytest.mark.parametrize("version", [4, 6])
def test_a_guarded_switch_holds_and_loses_nothing(sides: dict[str, Side], version: int) -> None:
    by_relay, direct = (TO_RELAY, TO_DIRECT) if version == 4 else (TO_RELAY6, TO_DIRECT6)
    for name, side in sides.items():
        side.set(by_relay[name])
    ping(sides["a"])
    with flow(sides["a"], sides["b"]) as there, flow(sides["b"], sides["a"]) as back:
        for _ in range(5):
            assert cross(sides, by_relay, direct, guarded=True)
            assert cross(sides, direct, by_relay, guarded=True)
    for counts in (there, back):
        assert counts["sent"] > 100
        assert counts["received"] >= 0.97 * counts["sent"], counts


def test_an_unguarded_switch_is_undone(sides: dict[str, Side]) -> None:
    with flow(sides["a"], sides["b"]), flow(sides["b"], sides["a"]):
        stayed = []
        for _ in range(10):
            stayed.append(cross(sides, TO_RELAY, TO_DIRECT, guarded=False))
            if not stayed[-1]:
                break
            cross(sides, TO_DIRECT, TO_RELAY, guarded=True)
    assert not all(stayed)


def test_the_guard_is_there_before_the_endpoint_changes(
    sides: dict[str, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, ...]] = []

    def apply(backend: UserspaceBackend, *arguments: Any) -> None:
        seen.append(own_tables())
        original(backend, *arguments)

    original = UserspaceBackend.apply
    monkeypatch.setattr(UserspaceBackend, "apply", apply)
    a = sides["a"]
    a.set(DIRECT["b"], Firewall(guards=frozenset({Guard(RELAY, DIRECT["b"])})))
    assert seen == [(table_name(a.interface),)]


def test_without_nft_the_tunnel_is_configured_all_the_same(
    sides: dict[str, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise FileNotFoundError

    a = sides["a"]
    with monkeypatch.context() as patch:
        patch.setattr("nostrvpn.io.nftables.subprocess.run", missing)
        a.set(DIRECT["b"], GUARDED, expect_error="not installed")
        assert a.endpoint() == DIRECT["b"]
    a.set(DIRECT["b"], GUARDED)
    a.netns.call(asyncio.run, a.reconciler.delete())
    assert a.netns.call(own_tables) == ()


def test_a_guard_left_in_place_keeps_the_relay_from_being_used(sides: dict[str, Side]) -> None:
    """Why a guard is removed on the way back: it makes the relay's packets look direct."""
    assert cross(sides, TO_RELAY, TO_DIRECT, guarded=True)
    for name, side in sides.items():
        side.set(RELAY, Firewall(guards=frozenset({Guard(RELAY, TO_DIRECT[name])})))
    ping(sides["a"])
    assert sides["a"].endpoint() == DIRECT["b"]
    for side in sides.values():
        side.set(RELAY)
    ping(sides["a"])
    time.sleep(2 * RELAY_DELAY)
    assert all(side.endpoint() == RELAY for side in sides.values())


def test_a_pinned_peer_is_reached_from_another_port(sides: dict[str, Side]) -> None:
    pinned = Endpoint(DIRECT["a"].ip, 41000)
    # As many hosts have it: what comes in is an answer, or is dropped.
    sides["a"].netns.run(
        "nft",
        "add table inet host;"
        "add chain inet host input { type filter hook input priority 0; policy drop; };"
        f"add rule inet host input iifname {sides['a'].interface} accept;"
        "add rule inet host input meta l4proto ipv6-icmp accept;"
        "add rule inet host input ct state established accept",
    )
    assert cross(sides, TO_RELAY, TO_DIRECT, guarded=True)
    sides["a"].set(DIRECT["b"], Firewall(PORT, pins=frozenset({Pin(pinned.port, DIRECT["b"])})))
    sides["b"].set(pinned)
    # Who is behind the firewall speaks first: what b sent before would be no answer.
    ping(sides["a"])
    with flow(sides["a"], sides["b"]) as there, flow(sides["b"], sides["a"]) as back:
        time.sleep(0.5)
    assert there["received"] == there["sent"] > 10
    assert back["received"] == back["sent"] > 10
    assert sides["b"].endpoint() == pinned
    assert sides["a"].endpoint() == DIRECT["b"]
