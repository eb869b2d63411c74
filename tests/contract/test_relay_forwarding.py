"""A relay in a real network: binds, forwarding in the kernel and in user space, and its ends."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, ip_address, ip_network

import pytest

from nostrvpn.endpoint import Endpoint
from nostrvpn.host.exit_routing import ExitRouting
from nostrvpn.host.shield import Shield, ShieldKind
from nostrvpn.io.exit_routing import apply_exit_routing
from nostrvpn.io.nftables import apply_ruleset
from nostrvpn.io.own_tables import delete_own_tables
from nostrvpn.io.relay_table import RelayTable
from nostrvpn.io.shield import apply_shield
from nostrvpn.io.wireguard_userspace import UserspaceBackend
from nostrvpn.machine import Tick
from nostrvpn.relaying.events import ChannelOpened, End
from nostrvpn.stun.binding import parse_stun, render_query
from nostrvpn.stun.relaying import Side, render_allocate, render_bind, side_key
from nostrvpn.wireguard.device import Device, Peer, SecretKey
from tests.contract.relay_lab import (
    PAIR,
    TABLE,
    USER,
    RelayLab,
    RunningRelay,
    allocate,
    bind,
    exchange,
    packet,
    relay_address,
)

A, B = Side.ALLOCATOR, Side.OTHER
QUIET_S = 0.15


@pytest.fixture
def lab(make_netns: Callable[[], object]) -> RelayLab:
    return RelayLab(make_netns)


class Bound:
    """Two clients bound at one port."""

    def __init__(self, lab: RelayLab, running: RunningRelay, families: tuple[int, int] = (4, 4)):
        self.running = running
        self.asking = lab.socket(1)
        self.port = allocate(self.asking)
        self.a, self.b = lab.socket(1, families[0]), lab.socket(2, families[1])
        self.to_a = relay_address(1, families[0], self.port)
        self.to_b = relay_address(2, families[1], self.port)
        self.bind_a = bind(self.a, A, self.to_a)
        bind(self.b, B, self.to_b)
        running.settled()

    def close(self) -> None:
        for sock in (self.a, self.b, self.asking):
            sock.close()

    def crosses(self, data: bytes) -> None:
        """Both ways, and from the address at the relay that each of them knows."""
        for near, far, to, seen in (
            (self.a, self.b, self.to_a, self.to_b),
            (self.b, self.a, self.to_b, self.to_a),
        ):
            near.sendto(data, to)
            got, source = far.recvfrom(2048)
            assert (got, source[:2]) == (data, seen)


@pytest.fixture
def bound(lab: RelayLab) -> Iterator[Callable[..., Bound]]:
    made: list[Bound] = []

    def make(running: RunningRelay, families: tuple[int, int] = (4, 4)) -> Bound:
        made.append(Bound(lab, running, families))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("families", [(4, 4), (6, 6)])
def test_a_relay_forwards_while_it_uses_an_exit_itself(lab, bound, families):
    with RunningRelay(lab) as running:
        pair = bound(running, families)
        before = running.host.ports.carried[pair.port]
        lab.relay.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1")
        lab.relay.call(apply_shield, Shield(ShieldKind.BLOCKED, listen_port=9), "rl")
        lab.relay.call(apply_exit_routing, ExitRouting(active=True), "rl")
        pair.crosses(packet(1, 1400))
        assert running.host.ports.carried[pair.port] == before
        # Nothing else does.
        with pytest.raises(RuntimeError):
            lab.relay.run("ping", "-c1", "-W1", "10.1.0.2")


def turn_on_conntrack(lab: RelayLab) -> None:
    """As most hosts have it: something asks for the state of connections."""
    lab.relay.run(
        "nft",
        "add table inet other;"
        "add chain inet other c { type filter hook prerouting priority 0; };"
        "add rule inet other c ct state invalid drop",
    )


def tracked(lab: RelayLab) -> int:
    """Return how many connections the relay's host remembers."""
    return int(lab.relay.run("sysctl", "-n", "net.netfilter.nf_conntrack_count"))


def is_quiet(sock: socket.socket) -> bool:
    sock.settimeout(QUIET_S)
    try:
        sock.recv(2048)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(3.0)
    return False


@pytest.mark.parametrize("families", [(4, 4), (6, 6)])
def test_the_kernel_forwards_both_ways_and_counts(lab, bound, families):
    with RunningRelay(lab) as running:
        pair = bound(running, families)
        assert running.host.refusal is None
        before = running.host.ports.carried[pair.port]
        for data in (packet(1), packet(2, 1400), render_query(os.urandom(12)), packet(3, 92, 2)):
            pair.crosses(data)
        # None of it passed through our hands.
        assert running.host.ports.carried[pair.port] == before
        headers = 28 if families[0] == 4 else 48
        sizes = 148 + 1400 + len(render_query(bytes(12))) + 92
        [shown] = running.snapshot().pairs
        assert shown.carried_bytes - before == 2 * (sizes + 4 * headers)
        assert shown.idle_s < 1
        # Nothing of it is in conntrack, though conntrack is on here.
        turn_on_conntrack(lab)
        pair.crosses(packet(4))
        assert tracked(lab) == 0
        # While what is not the relay's is there.
        lab.clients[0].run("ping", "-c1", "-q", "10.1.0.1")
        assert tracked(lab) == 1


@pytest.mark.parametrize("kernel", [True, False])
def test_what_is_neither_wireguard_nor_stun_is_dropped(lab, bound, kernel):
    with RunningRelay(lab, kernel=kernel) as running:
        pair = bound(running)
        junk = [
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x05\0\0\0" + bytes(28),
            b"\x01\0\0",
            b"\x04\0\1\0xxxx",
            b"ab",
        ]
        for data in junk:
            pair.a.sendto(data, pair.to_a)
        pair.crosses(packet(1))
        assert is_quiet(pair.b)
        drops = running.drops()
        assert drops["unshaped"] == len(junk)


@pytest.mark.parametrize("kernel", [True, False])
def test_third_parties_get_nothing_through(lab, bound, kernel):
    with RunningRelay(lab, kernel=kernel) as running:
        pair = bound(running)
        with lab.socket(1) as third, lab.socket(2) as fourth:
            for sock, to in ((third, pair.to_a), (fourth, pair.to_b)):
                sock.sendto(packet(1), to)
                sock.sendto(render_query(os.urandom(12)), to)
                assert is_quiet(sock)
            assert is_quiet(pair.a)
            assert is_quiet(pair.b)
        assert running.host.ports.drops["stranger"] == 2
        assert running.server.counters["unknown_username"] == 2
        pair.crosses(packet(2))


@pytest.mark.parametrize("kernel", [True, False])
def test_a_client_whose_port_changes_binds_anew_while_packets_flow(lab, bound, kernel):
    with RunningRelay(lab, kernel=kernel) as running:
        pair = bound(running)
        pair.crosses(packet(1))
        old = pair.a
        with lab.socket(1) as new:
            bind(new, A, pair.to_a)
            running.settled()
            pair.a = new
            pair.b.sendto(packet(2), pair.to_b)
            assert new.recv(2048) == packet(2)
            pair.crosses(packet(3))
            # The old address is a stranger now, although its flow was alive until a moment ago.
            old.sendto(packet(4), pair.to_a)
            assert is_quiet(pair.b)
            assert is_quiet(old)
            # Its bind, recorded and sent again from there, changes nothing.
            answer = exchange(old, pair.bind_a, pair.to_a)
            assert answer.error_code == 438
            running.settled()
            pair.crosses(packet(5))
            old.close()


def test_a_forged_source_cannot_be_bound(lab, bound):
    """Somebody sends with the address of a client that never asked: the answer goes to the client."""
    with RunningRelay(lab) as running:
        pair = bound(running)
        with lab.socket(1) as victim:
            key = side_key(USER.key, PAIR, B)
            data = render_bind(os.urandom(12), PAIR, B, key, os.urandom(8))

            def forge() -> None:
                victim_port = victim.getsockname()[1]
                segment = struct.pack("!HHHH", victim_port, pair.port, 8 + len(data), 0) + data
                with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
                    header = struct.pack(
                        "!BBHHHBBH4s4s",
                        *(0x45, 0, 20 + len(segment), 1, 0, 64, 17, 0),
                        *(ip_address("10.1.0.2").packed, ip_address("10.2.0.1").packed),
                    )
                    raw.sendto(header + segment, ("10.2.0.1", 0))

            for name in ("all", "c2"):
                lab.relay.run("sysctl", "-q", f"net.ipv4.conf.{name}.rp_filter=0")
            lab.clients[1].call(forge)
            answer, source = victim.recvfrom(2048)
            assert source == pair.to_b
            assert parse_stun(answer).error_code == 438
            pair.crosses(packet(1))
            assert is_quiet(victim)
        assert [p.b for p in running.snapshot().pairs] == ["udp4"]


def test_fragments_are_dropped(lab, bound):
    with RunningRelay(lab) as running:
        turn_on_conntrack(lab)  # it puts fragments together before other rules see them
        pair = bound(running)
        pair.a.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: fragment
        pair.a.sendto(packet(1, 3000), pair.to_a)
        pair.crosses(packet(2))
        assert is_quiet(pair.b)
        assert running.drops()["fragments"] >= 1


def checksum(source: IPv4Address, destination: IPv4Address, segment: bytes) -> int:
    """Return UDP's checksum (RFC 768)."""
    data = source.packed + destination.packed + struct.pack("!HH", 17, len(segment)) + segment
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@pytest.mark.parametrize("has_checksum", [True, False])
def test_checksums_stay_right(lab, bound, has_checksum):
    """Sockets leave checksums to the device; a packet from outside comes with one, or with none."""
    with RunningRelay(lab) as running:
        pair = bound(running)
        own, relay = IPv4Address("10.1.0.2"), IPv4Address("10.1.0.1")
        data = packet(1, 149)
        ports = (pair.a.getsockname()[1], pair.port)
        segment = struct.pack("!HHHH", *ports, 8 + len(data), 0) + data
        if has_checksum:
            segment = segment[:6] + struct.pack("!H", checksum(own, relay, segment)) + segment[8:]

        def send_raw() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
                raw.sendto(segment, (str(relay), 0))

        lab.clients[0].call(send_raw)
        assert pair.b.recv(2048) == data


@pytest.mark.parametrize("kernel", [True, False])
def test_answers_and_packets_come_from_the_address_that_was_asked(lab, bound, kernel):
    lab.relay.ip("addr", "add", "10.2.0.9/24", "dev", "c2")
    with RunningRelay(lab, kernel=kernel) as running:
        pair = bound(running)
        with lab.socket(2) as other:
            pair.to_b = ("10.2.0.9", pair.port)
            bind(other, B, pair.to_b)
            running.settled()
            pair.b.close()
            pair.b = other
            pair.crosses(packet(1))


@pytest.mark.parametrize("kernel", [True, False])
def test_a_pair_has_a_share_and_no_more(lab, bound, kernel):
    with RunningRelay(lab, kernel=kernel, mbit_per_s=1) as running:
        pair = bound(running)
        # The burst is 1 MB; after it 125 kB a second.
        for number in range(3000):
            pair.a.sendto(packet(number, 1400), pair.to_a)
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            [shown] = running.snapshot().pairs
            if shown.carried_bytes > 900_000:
                break
        assert 900_000 < shown.carried_bytes < 1_800_000
        drops = running.drops()
        assert drops["over_rate"] > 1000


@pytest.mark.parametrize("kernel", [True, False])
def test_ipv4_and_ipv6_are_bridged(lab, bound, kernel):
    with RunningRelay(lab, kernel=kernel) as running:
        pair = bound(running, (4, 6))
        for size in (148, 1400):
            pair.crosses(packet(size, size))
        [shown] = running.snapshot().pairs
        assert (shown.a, shown.b) == ("udp4", "udp6")
        assert shown.carried_bytes == 2 * (148 + 1400) + 2 * (28 + 48)
        # More than strangers may send: the kernel knows these two.
        for number in range(2600):
            pair.a.sendto(packet(number), pair.to_a)
            if number % 50 == 49:
                for _ in range(50):
                    pair.b.recv(2048)


@pytest.mark.parametrize("kernel", [True, False])
def test_datagrams_in_batches_stay_whole(lab, bound, kernel):
    """UDP_SEGMENT from a client: in user space one receive and one send carry them all."""
    with RunningRelay(lab, kernel=kernel) as running:
        pair = bound(running)
        sent = [packet(number, 1000) for number in range(40)] + [packet(40, 300)]
        segment = [(17, 103, struct.pack("=H", 1000))]
        pair.a.sendmsg([b"".join(sent)], segment, 0, pair.to_a)
        assert [pair.b.recv(2048) for _ in sent] == sent
        [shown] = running.snapshot().pairs
        if kernel:
            assert shown.carried_bytes >= sum(map(len, sent))
        else:
            assert shown.carried_bytes == sum(map(len, sent)) + 28 * len(sent)
        # One bad one among them: it alone is dropped.
        sent[7] = b"\xff" + sent[7][1:]
        if not kernel:
            pair.a.sendmsg([b"".join(sent)], segment, 0, pair.to_a)
            assert [pair.b.recv(2048) for _ in range(40)] == sent[:7] + sent[8:]


def test_a_websocket_is_the_other_end(lab):
    with RunningRelay(lab) as running, lab.socket(1) as a:
        port = allocate(a)
        to = relay_address(1, 4, port)
        bind(a, A, to)
        running.step(ChannelOpened(7, ip_address("192.0.2.9")))
        request = render_bind(os.urandom(12), PAIR, B, side_key(USER.key, PAIR, B), None)

        async def frame(data: bytes) -> None:
            running.host.channel_frame(7, data)

        running.call(frame(request))
        running.settled()
        assert [number for number, _ in running.channels.sent] == [7]
        running.call(frame(packet(1)))
        assert a.recvfrom(2048) == (packet(1), to)
        running.call(frame(b"no packet of anybody"))
        a.sendto(packet(2), to)
        deadline = time.monotonic() + 3
        while len(running.channels.sent) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert running.channels.sent[1:] == [(7, packet(2))]
        assert running.host.ports.drops["unshaped"] == 1
        running.ahead = 400
        running.step(Tick())
        assert running.channels.closed == [7]


def test_a_relay_without_nftables_forwards_itself(lab, bound, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with RunningRelay(lab) as running:
        assert running.host.refusal == "nftables is not installed"
        bound(running).crosses(packet(1))
        monkeypatch.undo()


@pytest.mark.parametrize(
    "rules",
    [
        "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
        "add chain ip filter FORWARD { type filter hook forward priority 0; };"
        "add rule ip filter FORWARD ct state established accept;"
        "add rule ip filter FORWARD counter reject",
    ],
)
def test_with_another_firewall_that_drops_user_space_forwards(lab, bound, rules):
    with RunningRelay(lab) as running:
        bound(running).crosses(packet(1))
        assert running.host.refusal is None
        lab.relay.run("nft", "add table ip filter;" + rules)
        with lab.socket(1) as new:
            pair = bound(running)
            bind(new, A, pair.to_a)
            running.settled()
            pair.a.close()
            pair.a = new
            pair.crosses(packet(2))
            assert "ip filter FORWARD" in (running.host.refusal or "")


def test_pairs_change_over_when_another_firewall_comes_and_goes(lab, bound):
    with RunningRelay(lab) as running:
        pair = bound(running)
        pair.crosses(packet(1))
        in_user_space = running.host.ports.carried[pair.port]
        lab.relay.run(
            "nft",
            "add table ip filter;"
            "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
        )
        pair.a.sendto(packet(2), pair.to_a)
        assert is_quiet(pair.b)
        running.call(running.host.look_around())
        pair.crosses(packet(3))
        assert "ip filter FORWARD" in (running.host.refusal or "")
        assert running.host.ports.carried[pair.port] > in_user_space
        lab.relay.run("nft", "delete table ip filter")
        running.call(running.host.look_around())
        in_user_space = running.host.ports.carried[pair.port]
        pair.crosses(packet(4))
        assert running.host.refusal is None
        assert running.host.ports.carried[pair.port] == in_user_space
        # What the kernel counted before is not lost.
        assert running.snapshot().pairs[0].carried_bytes >= 6 * 176


def test_a_port_that_is_lent_again_at_once_counts_anew(lab):
    def work() -> list[dict[int, int]]:
        table = RelayTable("rl", 100)
        table.create(())
        try:
            table.open(40000)
            table.apply()
            element = f"element inet {TABLE} counted {{ {40000 << 1}"
            apply_ruleset(f"delete {element} }}\nadd {element} counter packets 5 bytes 500 }}\n")
            found = [table.read_counters()]
            table.close(40000)
            table.open(40000)
            assert table.apply() == {}
            return [*found, table.read_counters()]
        finally:
            table.remove()

    assert lab.relay.call(work) == [{40000: 500}, {40000: 0}]


def test_a_pair_that_nft_refuses_does_not_keep_the_others_out(lab):
    ends = [
        End(Endpoint(IPv4Address(f"10.{n}.0.2"), 5000), IPv4Address(f"10.{n}.0.1")) for n in (1, 2)
    ]

    def work() -> tuple[dict[int, str], dict[int, int], str]:
        table = RelayTable("rl", 100)
        table.create(())
        try:
            apply_ruleset(f"add element inet {TABLE} pairs4 {{ 10.1.0.2 . 5000 . 40001 : 7 }}")
            for port in (40000, 40001, 40002):
                table.open(port)
                table.forward(port, *ends)
            refused = table.apply()
            listed = lab.relay.run("nft", "list", "map", "inet", TABLE, "pairs4")
            table.close(40000)
            table.close(40001)
            assert table.apply() == {}
            return refused, table.read_counters(), listed
        finally:
            table.remove()

    refused, counted, listed = lab.relay.call(work)
    assert list(refused) == [40001]
    assert "nft refused" in refused[40001]
    assert listed.count("10.2.0.2 . 5000") == 2
    assert counted == {40002: 0}


def test_ports_expire_and_are_given_back(lab, bound):
    with RunningRelay(lab) as running:
        pair = bound(running)
        pair.crosses(packet(1))
        running.snapshot()
        running.ahead = 301
        running.step(Tick())
        assert running.snapshot().pairs == ()
        pair.a.sendto(packet(2), pair.to_a)
        assert is_quiet(pair.b)
        listed = lab.relay.run("nft", "list", "table", "inet", TABLE)
        assert str(pair.port) not in listed
        assert lab.relay.run("ss", "-Hlun", f"sport = :{pair.port}") == ""
        # And lent again.
        with lab.socket(1) as again:
            assert allocate(again, pair="ff" * 8)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_port_that_another_program_has_is_passed_over(lab, family):
    def take() -> socket.socket:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("", 40000))
        return sock

    taken = lab.relay.call(take)
    with taken, RunningRelay(lab, ports=range(40000, 40002)), lab.socket(1) as sock:
        assert allocate(sock) == 40001
        data = render_allocate(os.urandom(12), USER, "ff" * 8)
        assert exchange(sock, data, relay_address(1, 4, 24001)).error_code == 508


def test_a_relay_that_was_restarted_says_so(lab, bound):
    only = range(40000, 40001)
    with RunningRelay(lab, ports=only) as running:
        pair = bound(running)
    with RunningRelay(lab, ports=only), lab.socket(1) as other:
        assert allocate(other, pair="ff" * 8) == pair.port
        request = render_bind(os.urandom(12), PAIR, A, side_key(USER.key, PAIR, A), None)
        assert exchange(pair.a, request, pair.to_a).error_code == 437


def settings_of(lab: RelayLab) -> dict[str, str]:
    names = [f"net.ipv4.conf.{name}.forwarding" for name in ("c1", "c2", "all")]
    names += [f"net.ipv6.conf.{name}.forwarding" for name in ("c1", "all")]
    names += [f"net.ipv6.conf.{name}.accept_ra" for name in ("c1", "c2")]
    return {name: lab.relay.run("sysctl", "-n", name).strip() for name in names}


@pytest.mark.parametrize("is_killed", [False, True])
def test_the_host_routes_only_for_the_relay_and_is_left_as_it_was(lab, bound, is_killed):
    for client in ("c1", "c2"):
        lab.relay.run("sysctl", "-q", f"net.ipv6.conf.{client}.accept_ra=1")
    lab.relay.run("sysctl", "-q", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
    before = settings_of(lab)
    assert before["net.ipv4.conf.c1.forwarding"] == "0"
    with RunningRelay(lab) as running:
        during = settings_of(lab)
        assert during["net.ipv4.conf.all.forwarding"] == "0"
        assert during["net.ipv4.conf.c1.forwarding"] == "1"
        assert during["net.ipv6.conf.c1.accept_ra"] == "2"
        bound(running).crosses(packet(1))
        bound(running, (6, 6)).crosses(packet(1)) if not is_killed else None
        # The clients cannot use us as a router to each other.
        for address in ("10.2.0.2", "fd00:2::2"):
            lab.clients[0].run("ping", "-c1", "-W0.3", "-q", address, check=False)
        drops = running.drops()
        assert drops["transit"] == 2
        if is_killed:
            running.forget_table()
    if is_killed:
        assert settings_of(lab) == during
        with RunningRelay(lab):  # the next one takes over what is to be remembered
            assert settings_of(lab) == during
        assert settings_of(lab) == before
        with RunningRelay(lab) as running:
            running.forget_table()
        assert lab.relay.call(delete_own_tables, "rl") == (TABLE,)
    assert settings_of(lab) == before
    assert TABLE not in lab.relay.run("nft", "list", "tables")


@pytest.mark.parametrize("families", [(4, 4), (6, 6)])
def test_an_interface_that_came_later_routes_too(lab, bound, families, monkeypatch):
    monkeypatch.setattr(RunningRelay, "uplinks", ())
    lab.relay.run("sysctl", "-q", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
    before = settings_of(lab)
    with RunningRelay(lab) as running:
        assert settings_of(lab) == before
        bound(running, families).crosses(packet(1))
        assert running.host.counters["kernel"] == 1
        assert settings_of(lab) != before
    assert settings_of(lab) == before


def test_a_flush_of_all_tables_costs_the_relay_nothing_that_stays(lab, bound):
    lab.relay.run("sysctl", "-q", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
    before = settings_of(lab)
    with RunningRelay(lab) as running:
        pair = bound(running)
        pair.crosses(packet(1))
        carried = running.snapshot().pairs[0].carried_bytes
        lab.relay.run("nft", "flush", "ruleset")
        running.call(running.host.look_around())
        in_user_space = running.host.ports.carried[pair.port]
        pair.crosses(packet(2))
        assert running.host.ports.carried[pair.port] == in_user_space
        assert running.snapshot().pairs[0].carried_bytes == carried + 2 * 176
        assert running.host.refusal is None
        bound(running, (6, 6)).crosses(packet(3))
        lab.clients[0].run("ping", "-c1", "-W0.3", "-q", "10.2.0.2", check=False)
        assert running.drops()["transit"] == 1
    assert settings_of(lab) == before


def test_forwarding_that_others_turn_off_is_turned_on_again(lab, bound):
    with RunningRelay(lab) as running:
        pair = bound(running)
        pair.crosses(packet(1))
        for name in ("c1", "c2"):
            lab.relay.run("sysctl", "-q", f"net.ipv4.conf.{name}.forwarding=0")
        pair.a.sendto(packet(2), pair.to_a)
        assert is_quiet(pair.b)
        running.call(running.host.look_around())
        pair.crosses(packet(3))


@pytest.mark.parametrize("kernel", [True, False])
def test_a_real_tunnel_runs_through_a_relay(lab, make_node, interface, kernel):
    """wireguard-go on both sides, each on the port that was bound before."""
    backend = UserspaceBackend()
    keys = [SecretKey(bytes([8 * n] * 32)) for n in (1, 2)]
    with RunningRelay(lab, kernel=kernel) as running:
        ports = []
        with lab.socket(1) as asking:
            port = allocate(asking)
        for client, side in ((1, A), (2, B)):
            with lab.socket(client) as sock:
                bind(sock, side, relay_address(client, 4, port))
                ports.append(sock.getsockname()[1])
        running.settled()
        nodes = [make_node(lab.clients[n], backend, f"{interface}{n}") for n in range(2)]
        for n, node in enumerate(nodes):
            node.create()
            peer = Peer(
                keys[1 - n].public_key,
                frozenset([ip_network(f"fd77::{2 - n}/128")]),
                endpoint=Endpoint(ip_address(f"10.{n + 1}.0.1"), port),
            )
            node.settle(Device(keys[n], ports[n], 0, (peer,)))
            node.up(f"fd77::{n + 1}/128", routes=(f"fd77::{2 - n}/128",))
        before = running.snapshot().pairs[0].carried_bytes
        lab.clients[0].run("ping", "-c3", "-i0.05", "-W3", "-s1100", "fd77::2")
        carried = running.snapshot().pairs[0].carried_bytes - before
        assert 6 * 1100 < carried < 6 * 1400 + 2000
        assert (running.host.ports.carried[port] < before + 200) == kernel
        for node in nodes:
            node.delete()
