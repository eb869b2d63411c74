"""What an exit lets its guests do, with real packets. A cable stands for the tunnel."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from nostrvpn.exits.policy import POLICIES, ExitPolicy, parse_word
from nostrvpn.host.exit_filter import ExitFilter
from nostrvpn.host.exit_meter import ExitMeter, meter_table
from nostrvpn.host.inbound import EVERYTHING, Inbound, inbound_table
from nostrvpn.host.subnet_gateway import Gateway, gateway_table
from nostrvpn.io.exit_meter import apply_meter, read_usage
from nostrvpn.io.nftables import apply_inbound, apply_ruleset, delete_table
from nostrvpn.io.relay_routing import RoutingMemory
from nostrvpn.io.subnet_gateway import apply_gateway

OWN4, OWN6 = "10.64.0.1", "fd64::1"
GUEST4, GUEST6 = "10.64.0.2", "fd64::2"
OTHER4, OTHER6 = "10.64.0.7", "fd64::7"
PUBLIC4, PUBLIC6 = "203.0.113.5", "2001:db8:9::5"
OUT4, OUT6 = "198.51.100.1", "2001:db8:1::1"
NEXT4, NEXT6 = "198.51.100.9", "2001:db8:1::9"
PRIVATE = (
    *("10.9.9.9", "172.20.1.1", "192.168.77.7", "100.100.100.200", "169.254.169.254"),
    *("fd77::7", "fd00:ec2::254", NEXT4, NEXT6),
)
LISTEN_PORT = 23000
OWN = frozenset(map(ip_address, (OWN4, OWN6)))
OVERLAY = frozenset({ip_network("10.64.0.0/16"), ip_network("fd64::/48")})
AROUND = (ip_network("198.51.100.0/24"), ip_network("2001:db8:1::/64"))
GUESTS = frozenset(map(ip_address, (GUEST4, GUEST6)))
# Spec: RFC 8200 section 4.2: next header, length, and a PadN option of four bytes.
PADDED = bytes([0, 0, 1, 4, 0, 0, 0, 0])
LIMIT = 10.0
# Nothing is far here, and what is refused is refused at once.
PATIENCE = 1.0


class Hosts:
    """``guest`` and ``near`` share ``nv0``, the tunnel; ``near`` leaves by ``wan`` to ``world``, which
    has every address that is tried."""

    def __init__(self, make_netns: Callable[[], Any]) -> None:
        self.guest, self.near, self.world = (make_netns() for _ in range(3))
        for host, link in ((self.guest, "nv0"), (self.world, "wan")):
            ends = ("type", "veth", "peer", "name", link, "netns", self.near.name)
            host.ip("link", "add", "e", *ends)
        for host, link in ((self.guest, "e"), (self.near, "nv0")):
            # As in a tunnel, nobody looks for neighbours: both ends have the same address.
            host.ip("link", "set", link, "address", "02:00:00:00:00:01", "arp", "off")
        for host, link, addresses in (
            (self.guest, "e", (f"{GUEST4}/32", f"{GUEST6}/128")),
            (self.near, "nv0", (f"{OWN4}/16", f"{OWN6}/48")),
            (self.near, "wan", (f"{OUT4}/24", f"{OUT6}/64")),
            (self.world, "e", (f"{NEXT4}/24", f"{NEXT6}/64")),
            (self.world, "lo", (PUBLIC4, PUBLIC6, *PRIVATE[:-2])),
        ):
            for address in addresses:
                more = ("nodad",) if ":" in address else ()
                host.ip("addr", "add", address, "dev", link, *more)
            host.ip("link", "set", link, "up")
        self.guest.ip("route", "add", "default", "dev", "e")
        self.guest.ip("-6", "route", "add", "default", "dev", "e")
        self.near.ip("route", "add", "default", "via", NEXT4)
        self.near.ip("-6", "route", "add", "default", "via", NEXT6)
        self.routing = RoutingMemory(gateway_table("nv0"))

    def offer(
        self,
        policy: ExitPolicy | None = None,
        guests: frozenset[Any] = GUESTS,
        *,
        through: bool = False,
    ) -> None:
        """Be an exit by ``policy`` (None: without a filter, which shows that a test can fail)."""
        way_out = Gateway(frozenset(), OVERLAY, True, frozenset({4, 6}), OWN, LISTEN_PORT)
        self.near.call(apply_gateway, way_out, "nv0", self.routing)
        if policy is None:
            self.near.call(delete_table, inbound_table("nv0"))
            return
        rules = policy.compile(OVERLAY, AROUND)
        wanted = Inbound(OWN, {}, exit=ExitFilter(guests, rules, through=through))
        self.near.call(apply_inbound, wanted, "nv0")

    def measure(self, meter: ExitMeter, *, anew: bool = True) -> bool:
        changed: bool = self.near.call(apply_meter, meter, "nv0", anew=anew)
        return changed

    def listen(self, stack: ExitStack, host: Any, *ports: int) -> list[socket.socket]:
        found = []
        for port in ports:
            ear = host.call(socket.socket, socket.AF_INET6, socket.SOCK_STREAM)
            ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            ear.bind(("::", port))
            ear.listen(64)
            ear.settimeout(LIMIT)
            found.append(stack.enter_context(ear))
        return found

    def reaches(self, address: str, port: int) -> bool:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.guest.call(socket.socket, family, socket.SOCK_STREAM) as sender:
            sender.settimeout(PATIENCE)
            try:
                sender.connect((address, port))
            except OSError:
                return False
            return True

    def udp(self, host: Any, address: str, port: int = 0) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made: socket.socket = host.call(socket.socket, family, socket.SOCK_DGRAM)
        made.settimeout(LIMIT)
        made.bind((address, port))
        return made


@pytest.fixture
def hosts(make_netns: Callable[[], Any]) -> Hosts:
    made = Hosts(make_netns)
    for near, far in (("guest", OWN4), ("guest", OWN6), ("near", PUBLIC4), ("near", PUBLIC6)):
        getattr(made, near).run("ping", "-c1", "-w10", far)
    return made


@pytest.mark.parametrize(("public", "own"), [(PUBLIC4, OUT4), (PUBLIC6, OUT6)])
def test_a_guest_reaches_the_internet_with_the_exits_address(
    hosts: Hosts, public: str, own: str
) -> None:
    with ExitStack() as stack:
        (ear,) = hosts.listen(stack, hosts.world, 80)
        assert not hosts.reaches(public, 80)
        hosts.offer(ExitPolicy("web"))
        ports = set()
        for _ in range(8):
            assert hosts.reaches(public, 80)
            connection, seen = ear.accept()
            connection.close()
            assert ip_address(seen[0].removeprefix("::ffff:")) == ip_address(own)
            ports.add(seen[1])
        # Drawn at random, and never the port that WireGuard listens on, nor below.
        assert min(ports) > LISTEN_PORT
        assert ports != set(range(min(ports), min(ports) + 8))


def test_a_guest_reaches_no_private_range_no_metadata_and_no_network_around(hosts: Hosts) -> None:
    with ExitStack() as stack:
        hosts.listen(stack, hosts.world, 80)
        hosts.offer(None)
        assert {address for address in PRIVATE if hosts.reaches(address, 80)} == set(PRIVATE)
        hosts.offer(ExitPolicy("open"))
        assert hosts.reaches(PUBLIC4, 80)
        assert hosts.reaches(PUBLIC6, 80)
        assert not {address for address in PRIVATE if hosts.reaches(address, 80)}


def test_what_the_provider_opens_is_reached_and_nothing_beside(hosts: Hosts) -> None:
    with ExitStack() as stack:
        hosts.listen(stack, hosts.world, 80, 81)
        hosts.offer(ExitPolicy("open", (parse_word("192.168.77.7/32,tcp/80"),)))
        assert hosts.reaches("192.168.77.7", 80)
        assert not hosts.reaches("192.168.77.7", 81)
        assert not hosts.reaches("10.9.9.9", 80)
        hosts.offer(ExitPolicy("open", lan=True))
        found = {address for address in PRIVATE if hosts.reaches(address, 80)}
        assert found == {"10.9.9.9", "172.20.1.1", "192.168.77.7", "fd77::7", NEXT4, NEXT6}


@pytest.mark.parametrize("own", [OUT4, OUT6, OWN4, OWN6])
def test_a_guest_reaches_no_service_of_the_exit_itself(hosts: Hosts, own: str) -> None:
    with ExitStack() as stack:
        hosts.listen(stack, hosts.near, 80)
        hosts.offer(None)
        assert hosts.reaches(own, 80)
        hosts.offer(ExitPolicy("open", (parse_word("80"),), lan=True))
        assert not hosts.reaches(own, 80)


@pytest.mark.parametrize("through", [False, True])
def test_a_guest_reaches_no_other_guest(hosts: Hosts, through: bool) -> None:
    count = (
        "table inet seen { chain c { type filter hook prerouting priority 0; "
        f"ip daddr {OTHER4} counter\nip6 daddr {OTHER6} counter\n }}\n}}\n"
    )
    hosts.guest.call(apply_ruleset, count)

    def came_back() -> list[int]:
        for address in (OTHER4, OTHER6):
            hosts.reaches(address, 80)
        text = hosts.guest.run("nft", "list", "table", "inet", "seen")
        return [int(number) for number in re.findall(r"packets (\d+)", text)]

    members = parse_word("10.64.0.0/16"), parse_word("fd64::/48")
    # The exit may leave through another one itself: then the tunnel is a way out.
    hosts.offer(ExitPolicy("open", members, lan=True), through=through)
    assert came_back() == [0, 0]
    hosts.offer(None)
    assert min(came_back()) > 0


@pytest.mark.parametrize(
    ("name", "opened", "closed"),
    [
        ("web", {53, 80, 443}, {22, 25, 8080}),
        ("reduced", {22, 443, 5222, 64738}, {25, 445, 6881, 12345}),
        ("tor-default", {22, 443, 12345}, {25, 119, 445, 6881, 6999}),
        ("open", {22, 25, 445, 12345}, set()),
    ],
)
@pytest.mark.parametrize("public", [PUBLIC4, PUBLIC6])
def test_each_policy_opens_its_ports_and_no_others(
    hosts: Hosts, public: str, name: str, opened: set[int], closed: set[int]
) -> None:
    assert name in POLICIES
    with ExitStack() as stack:
        hosts.listen(stack, hosts.world, *opened, *closed)
        hosts.offer(ExitPolicy(name))
        assert {port for port in opened | closed if hosts.reaches(public, port)} == opened


@pytest.mark.parametrize(
    ("public", "own"),
    [(PUBLIC4, GUEST4), pytest.param(PUBLIC6, GUEST6, marks=pytest.mark.kernel)],
)
def test_a_permission_taken_away_cuts_both_ways_within_a_second(
    hosts: Hosts, public: str, own: str
) -> None:
    hosts.offer(ExitPolicy("open"))
    with hosts.udp(hosts.world, public, 5300) as far, hosts.udp(hosts.guest, own) as near:
        near.sendto(b"1", (public, 5300))
        _, answer_to = far.recvfrom(100)
        far.sendto(b"2", answer_to)
        assert near.recv(100) == b"2"
        began = time.monotonic()
        hosts.offer(ExitPolicy("open"), guests=frozenset({ip_address(OTHER4)}))
        assert time.monotonic() - began < 1.0
        near.sendto(b"3", (public, 5300))
        far.sendto(b"4", answer_to)
        far.settimeout(PATIENCE / 2)
        near.settimeout(PATIENCE / 2)
        for one in (far, near):
            with pytest.raises(
                (TimeoutError, ConnectionError, OSError), match=r"timed out|host|refused"
            ):
                one.recv(100)


@pytest.mark.parametrize("option", [socket.IPV6_DSTOPTS, socket.IPV6_HOPOPTS])
@pytest.mark.parametrize("size", [100, pytest.param(4000, marks=pytest.mark.kernel)])
def test_extension_headers_and_fragments_hide_no_port(hosts: Hosts, option: int, size: int) -> None:
    with (
        hosts.udp(hosts.world, PUBLIC6, 53) as opened,
        hosts.udp(hosts.world, PUBLIC6, 25) as closed,
        hosts.udp(hosts.guest, GUEST6) as near,
    ):
        near.setsockopt(socket.IPPROTO_IPV6, option, PADDED)
        hosts.offer(None)
        near.sendto(bytes(size), (PUBLIC6, 25))
        assert len(closed.recv(65536)) == size
        hosts.offer(ExitPolicy("tor-default"))
        near.sendto(bytes(size), (PUBLIC6, 25))
        near.sendto(bytes(size), (PUBLIC6, 53))
        assert len(opened.recv(65536)) == size
        closed.settimeout(0.2)
        with pytest.raises(TimeoutError):
            closed.recv(65536)


METER = ExitMeter(GUESTS, frozenset(), month="2026-11")


def flood(hosts: Hosts, seconds: float) -> int:
    """Send 1 MB a second from the guest; return the bytes that arrived."""
    size, arrived = 1000, 0
    with hosts.udp(hosts.world, PUBLIC4, 5300) as far, hosts.udp(hosts.guest, GUEST4) as near:
        far.setblocking(False)
        began = time.monotonic()
        sent = 0
        while (now := time.monotonic() - began) < seconds:
            while sent < now * 1_000_000:
                near.sendto(bytes(size), (PUBLIC4, 5300))
                sent += size
            time.sleep(0.002)
            arrived += drained(far)
    return arrived


def drained(ear: socket.socket) -> int:
    total = 0
    try:
        while True:
            total += len(ear.recv(65536))
    except BlockingIOError:
        return total


def test_a_guest_has_its_rate_and_no_more(hosts: Hosts) -> None:
    hosts.offer(ExitPolicy("open"))
    hosts.measure(METER)
    assert flood(hosts, 1.0) > 800_000
    rate, seconds = 100_000, 3.0
    hosts.measure(replace(METER, rate=rate))
    got = flood(hosts, seconds)
    # nftables lets a second's worth gather, and the burst.
    assert rate * seconds * 0.7 < got < rate * (seconds + 1) + 65_536 + 20_000
    hosts.measure(replace(METER, bandwidth=rate))
    assert flood(hosts, 2.0) < rate * 3 + 65_536 + 20_000


def test_the_months_budget_holds_and_survives_a_change_of_guests(hosts: Hosts) -> None:
    hosts.offer(ExitPolicy("open"))
    budget = 300_000
    meter = replace(METER, budget=budget, used=100_000)
    hosts.measure(meter)
    assert 150_000 < flood(hosts, 0.5) <= 200_000
    more = GUESTS | {ip_address(OTHER4)}
    assert hosts.measure(replace(meter, guests=more, used=0), anew=False)
    assert flood(hosts, 0.2) == 0
    # Of the next month there is all of it.
    hosts.measure(replace(meter, guests=more, month="2026-12", used=0), anew=False)
    assert flood(hosts, 0.2) > 100_000


def test_what_each_guest_had_is_counted_both_ways_and_kept(hosts: Hosts) -> None:
    hosts.offer(ExitPolicy("open"))
    hosts.measure(METER)
    for public, own in ((PUBLIC4, GUEST4), (PUBLIC6, GUEST6)):
        with hosts.udp(hosts.world, public, 5300) as far, hosts.udp(hosts.guest, own) as near:
            near.sendto(bytes(900), (public, 5300))
            far.sendto(bytes(500), far.recvfrom(1000)[1])
            assert len(near.recv(1000)) == 500
    found = hosts.near.call(read_usage, "nv0")
    assert {str(ip): (one.up, one.down) for ip, one in found.items()} == {
        GUEST4: (928, 528),
        GUEST6: (948, 548),
    }
    hosts.measure(replace(METER, rate=10_000_000), anew=False)
    assert hosts.near.call(read_usage, "nv0") == found
    assert not hosts.measure(replace(METER, rate=10_000_000), anew=False)
    hosts.measure(ExitMeter())
    assert meter_table("nv0") not in hosts.near.run("nft", "list", "tables")


def counted(ear: socket.socket) -> int:
    """Return how many datagrams came, until none has come for a while."""
    ear.settimeout(0.3)
    count = 0
    while True:
        try:
            ear.recv(10)
        except TimeoutError:
            return count
        count += 1


def test_a_guest_opens_so_many_connections_a_second_and_no_more(hosts: Hosts) -> None:
    hosts.offer(ExitPolicy("open"))
    hosts.measure(replace(METER, connections=10))
    with hosts.udp(hosts.world, PUBLIC4, 5300) as far:
        for _ in range(60):
            with hosts.udp(hosts.guest, GUEST4) as near:
                near.sendto(b"x", (PUBLIC4, 5300))
        arrived = counted(far)
    assert 10 <= arrived <= 25


def test_a_connection_that_nobody_answers_is_one_all_the_same(hosts: Hosts) -> None:
    """Else whoever sends and is sent nothing has no more packets than others have connections."""
    hosts.offer(ExitPolicy("open"))
    hosts.measure(replace(METER, connections=10))
    with hosts.udp(hosts.world, PUBLIC4, 5300) as far:
        with hosts.udp(hosts.guest, GUEST4) as near:
            for _ in range(60):
                near.sendto(b"x", (PUBLIC4, 5300))
        assert counted(far) == 60
        with hosts.udp(hosts.guest, GUEST4) as other:
            other.sendto(b"x", (PUBLIC4, 5300))
        assert counted(far) == 1


def test_who_is_no_guest_goes_nowhere(hosts: Hosts) -> None:
    member = Inbound(OWN, dict.fromkeys(GUESTS, EVERYTHING))
    with ExitStack() as stack:
        hosts.listen(stack, hosts.world, 80)
        hosts.offer(None)
        assert hosts.reaches(PUBLIC4, 80)
        hosts.near.call(apply_inbound, member, "nv0")
        assert not hosts.reaches(PUBLIC4, 80)
        assert not hosts.reaches(PUBLIC6, 80)
    with hosts.udp(hosts.world, PUBLIC4, 5300) as far, hosts.udp(hosts.guest, GUEST4) as near:
        # Nor does anything arrive that is not answered.
        near.sendto(b"x", (PUBLIC4, 5300))
        assert counted(far) == 0
        hosts.offer(None)
        near.sendto(b"x", (PUBLIC4, 5300))
        assert counted(far) == 1
