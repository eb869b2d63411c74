"""The lab measured with plain sockets: does each part do what its name says?"""

import contextlib
import functools
import os
import socket
import time

import pytest
from aioice import stun

from nostrvpn.errors import SystemRefused
from nostrvpn.lab.core import Engine, Internet
from nostrvpn.lab.leftovers import Footprint, leftovers
from nostrvpn.lab.namespaces import Namespace
from nostrvpn.lab.nat import NatKind
from nostrvpn.lab.patience import patient
from nostrvpn.lab.topologies import Mesh, SameLan, TwoNats
from nostrvpn.lab.topology import Host, Lab, Router, Server
from nostrvpn.lab.transfer import transfer

pytestmark = pytest.mark.lab

LAPTOP_PORT = 40_000
FIRST, OTHER = 50_001, 50_002
STEP = 3.0
SO_RCVBUFFORCE = 33  # asm-generic/socket.h; the socket module does not name it


def udp(namespace: Namespace, address: object, port: int = 0) -> socket.socket:
    """A UDP socket that lives in ``namespace``."""
    family = socket.AF_INET6 if ":" in str(address) else socket.AF_INET
    with namespace.enter():
        made = socket.socket(family, socket.SOCK_DGRAM)
    made.bind((str(address), port))
    made.settimeout(patient(STEP))
    return made


def receive_until(receiver: socket.socket, last: bytes) -> list[bytes]:
    """Everything that arrives up to ``last``. The lab's paths keep order, so what was sent before
    ``last`` and is not in the list never arrives."""
    received: list[bytes] = []
    while not received or received[-1] != last:
        received.append(receiver.recv(2048))
    return received


@functools.cache
def has_netem() -> bool:
    try:
        with Lab(Internet(delay=0.001, engine=Engine.NETEM)) as lab:
            lab.host("probe")
    except SystemRefused:
        return False
    return True


class House:
    """One laptop behind one router of a kind, and a server outside."""

    def __init__(self, stack: contextlib.ExitStack, kind: NatKind, internet: Internet) -> None:
        self.lab = stack.enter_context(Lab(internet))
        self.server: Server = self.lab.server_host(relay=False)
        self.router: Router = self.lab.router("nat", kind)
        self.laptop: Host = self.lab.host("laptop", self.router)
        inside = self.laptop.namespace
        self.socket = stack.enter_context(udp(inside, self.laptop.address, LAPTOP_PORT))
        here, there = self.server.plug.addresses
        self.same, self.other_port, self.other_address = (
            stack.enter_context(udp(self.server.namespace, ip, port))
            for ip, port in ((here, FIRST), (here, OTHER), (there, FIRST))
        )

    def mapping_towards(self, target: socket.socket) -> tuple[str, int]:
        self.socket.sendto(b"out", target.getsockname())
        source: tuple[str, int] = target.recvfrom(2048)[1]
        return source


EXPECTED = {
    NatKind.PORT_RESTRICTED: ("independent", {b"same"}),
    NatKind.SYMMETRIC: ("dependent", {b"same"}),
    NatKind.ADDRESS_RESTRICTED: ("independent", {b"same", b"port"}),
    NatKind.FULL_CONE: ("independent", {b"same", b"port", b"address"}),
    NatKind.ACCEPT_INPUT: ("independent", {b"same"}),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_nat_maps_and_filters_as_its_kind_says(kind: NatKind) -> None:
    mapping, passes = EXPECTED[kind]
    with contextlib.ExitStack() as stack:
        house = House(stack, kind, Internet())
        mapped = house.mapping_towards(house.same)
        assert mapped[0] == str(house.router.address)

        house.other_port.sendto(b"port", mapped)
        house.other_address.sendto(b"address", mapped)
        house.same.sendto(b"same", mapped)
        assert set(receive_until(house.socket, b"same")) == passes

        # Fresh targets: an early packet from the others has already spoilt accept-input's mapping.
        fresh = [
            stack.enter_context(udp(house.server.namespace, ip))
            for ip in house.server.plug.addresses
        ]
        seen = {mapped, *(house.mapping_towards(target) for target in fresh)}
        assert len(seen) == (1 if mapping == "independent" else 3)
        if mapping == "independent":
            assert mapped[1] == LAPTOP_PORT


@pytest.mark.parametrize("kind", EXPECTED)
def test_nothing_unasked_comes_in(kind: NatKind) -> None:
    with contextlib.ExitStack() as stack:
        house = House(stack, kind, Internet())
        house.same.sendto(b"unasked", (str(house.router.address), LAPTOP_PORT))
        mapped = house.mapping_towards(house.same)
        house.same.sendto(b"same", mapped)
        assert receive_until(house.socket, b"same") == [b"same"]


@pytest.mark.parametrize(
    ("kind", "remapped"), [(NatKind.ACCEPT_INPUT, True), (NatKind.PORT_RESTRICTED, False)]
)
def test_a_router_that_accepts_input_remaps_after_an_early_packet(
    kind: NatKind, remapped: bool
) -> None:
    with contextlib.ExitStack() as stack:
        house = House(stack, kind, Internet())
        assert house.mapping_towards(house.other_address)[1] == LAPTOP_PORT
        house.same.sendto(b"early", (str(house.router.address), LAPTOP_PORT))
        house.server.run("ping", "-c1", str(house.router.address))  # the early packet is there too

        assert (house.mapping_towards(house.same)[1] != LAPTOP_PORT) is remapped


def test_udp_blocked_lets_tcp_through_and_no_udp() -> None:
    with contextlib.ExitStack() as stack:
        house = House(stack, NatKind.UDP_BLOCKED, Internet())
        house.socket.sendto(b"lost", house.same.getsockname())
        sent = transfer(
            house.laptop.namespace, house.server.namespace, house.server.address, size=1000
        )
        assert sent.intact
        house.same.setblocking(False)
        with pytest.raises(BlockingIOError):
            house.same.recv(2048)


def test_two_routers_in_a_row_translate_twice() -> None:
    with Lab() as lab:
        server = lab.server_host(relay=False)
        carrier = lab.router("carrier")
        home = lab.router("home", behind=carrier)
        laptop = lab.host("laptop", home)
        with (
            udp(server.namespace, server.address) as outside,
            udp(laptop.namespace, laptop.address, LAPTOP_PORT) as inside,
        ):
            inside.sendto(b"out", outside.getsockname())
            source = outside.recvfrom(2048)[1]
            assert source == (str(carrier.address), LAPTOP_PORT)
            outside.sendto(b"back", source)
            assert inside.recv(2048) == b"back"


def test_ipv6_behind_a_router_is_public_and_firewalled() -> None:
    with TwoNats(ipv6=True, relay=False) as lab:
        a, b = lab.laptop_a, lab.laptop_b
        with udp(a.namespace, a.address6) as left, udp(b.namespace, b.address6) as right:
            left.sendto(b"unasked", right.getsockname())
            # An answer of the router says that what went before has been judged.
            a.run("ping", "-c1", "-w10", str(lab.nat_b.wan.addresses6[0]))
            right.sendto(b"opens", left.getsockname())  # in: dropped at nat-a or answered state
            left.sendto(b"reply", right.getsockname())
            assert receive_until(right, b"reply") == [b"reply"]
            assert left.recvfrom(2048) == (b"opens", right.getsockname())


def test_same_lan_laptops_reach_each_other_without_the_router() -> None:
    with SameLan(relay=False) as lab:
        a, b = lab.laptop_a, lab.laptop_b
        with udp(a.namespace, a.address) as left, udp(b.namespace, b.address) as right:
            left.sendto(b"hello", right.getsockname())
            assert right.recvfrom(2048) == (b"hello", left.getsockname())


def test_a_mesh_has_public_hosts_on_both_families() -> None:
    with Mesh(3, relay=False) as lab:
        first, last = lab.hosts[0], lab.hosts[-1]
        first.run("ping", "-c1", str(last.address))
        first.run("ping", "-c1", str(last.address6))


def test_a_blocked_router_drops_what_matches_until_unblocked() -> None:
    with contextlib.ExitStack() as stack:
        house = House(stack, NatKind.PORT_RESTRICTED, Internet())
        mapped = house.mapping_towards(house.same)
        house.router.block(f"meta l4proto udp th sport {FIRST}")
        house.same.sendto(b"blocked", mapped)
        house.router.unblock()
        house.same.sendto(b"same", mapped)
        assert receive_until(house.socket, b"same") == [b"same"]


def test_a_laptop_moves_to_another_network() -> None:
    with TwoNats(relay=False, internet=Internet(delay=0.001)) as lab:
        lab.move(lab.laptop_a, lab.nat_a, lab.nat_b)
        lab.laptop_a.run("ping", "-c1", str(lab.laptop_b.address))
        lab.move(lab.laptop_a, lab.nat_b, None)
        assert lab.laptop_a.address.is_global
        lab.laptop_a.run("ping", "-c1", str(lab.server.address))
        lab.move(lab.laptop_a, None, lab.nat_a)
        lab.laptop_a.run("ping", "-c1", str(lab.server.address))


@pytest.fixture(params=["tun", "netem"])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "netem" and not has_netem():
        pytest.skip("NOT RUN: this kernel has no netem")
    return Engine(request.param)


@pytest.mark.parametrize("delay", [0.0, 0.02])
@pytest.mark.parametrize("family", [4, 6])
def test_delay_is_what_was_asked(engine: Engine, delay: float, family: int) -> None:
    with Lab(Internet(delay=delay, engine=engine)) as lab, contextlib.ExitStack() as stack:
        a, b = lab.host("a"), lab.host("b")
        left, right = (
            stack.enter_context(udp(h.namespace, h.address if family == 4 else h.address6))
            for h in (a, b)
        )
        taken = []
        for _ in range(20):
            started = time.monotonic()
            left.sendto(b"x", right.getsockname())
            right.recv(2048)
            taken.append(time.monotonic() - started)
        assert min(taken) >= delay
        # Other labs keep the CPUs busy; one packet that met none of that tells.
        assert min(taken) < delay + patient(0.002)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("conditions", ["tun", "netem", "none"])
def test_a_crossing_costs_as_many_hops_as_asked(conditions: str, family: int) -> None:
    if conditions == "netem" and not has_netem():
        pytest.skip("NOT RUN: this kernel has no netem")
    engine = Engine.AUTO if conditions == "none" else Engine(conditions)
    with Lab(Internet(hops=5, engine=engine)) as lab, contextlib.ExitStack() as stack:
        a, b = lab.host("a"), lab.host("b")
        left, right = (
            stack.enter_context(udp(h.namespace, h.address if family == 4 else h.address6))
            for h in (a, b)
        )
        level, option = (
            (socket.IPPROTO_IP, socket.IP_TTL)
            if family == 4
            else (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
        )
        for ttl in (*range(1, 10), 64):
            left.setsockopt(level, option, ttl)
            # An expiry may be reported as an error on a later send; that send is then repeated.
            with contextlib.suppress(OSError):
                left.sendto(str(ttl).encode(), right.getsockname())
        assert [int(ttl) for ttl in receive_until(right, b"64")] == [6, 7, 8, 9, 64]


def test_the_tun_router_takes_the_hops_off_the_ttl() -> None:
    with Lab(Internet(hops=5, engine=Engine.TUN)) as lab:
        a, b = lab.host("a"), lab.host("b")
        assert "ttl=59" in a.run("ping", "-c1", str(b.address))
        assert "ttl=59" in a.run("ping", "-c1", str(b.address6))


def test_loss_is_about_what_was_asked() -> None:
    with Lab(Internet(loss=0.3, seed=1, engine=Engine.TUN)) as lab:
        a, b = lab.host("a"), lab.host("b")
        with udp(a.namespace, a.address) as left, udp(b.namespace, b.address) as right:
            right.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 22)
            for _ in range(500):
                left.sendto(b"x", right.getsockname())
            for _ in range(50):
                left.sendto(b"end", right.getsockname())
            assert 300 <= receive_until(right, b"end").count(b"x") <= 400


@pytest.mark.parametrize("delay", [0.0, 0.02])
def test_ten_megabytes_cross_the_tun_router_at_50_mbit(delay: float) -> None:
    with TwoNats(relay=False, internet=Internet(delay=delay, engine=Engine.TUN)) as lab:
        done = transfer(lab.laptop_a.namespace, lab.server.namespace, lab.server.address)
        assert done.intact
        assert done.mbit_per_second >= 50 / patient(1)


def test_stun_tells_the_address_that_the_nat_gave() -> None:
    with TwoNats(relay=False) as lab, udp(lab.laptop_a.namespace, lab.laptop_a.address) as client:
        mapped = (str(lab.nat_a.address), client.getsockname()[1])
        for server in lab.server.stun:
            request = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
            client.sendto(bytes(request), (str(server.ip), server.port))
            response = stun.parse_message(client.recv(2048))
            assert response.transaction_id == request.transaction_id
            assert response.attributes["XOR-MAPPED-ADDRESS"] == mapped


def test_capture_counts_and_finds_packets() -> None:
    with TwoNats(relay=False) as lab:
        capture = lab.capture("nat-a", "wan", "udp")
        with (
            udp(lab.laptop_a.namespace, lab.laptop_a.address) as client,
            udp(lab.server.namespace, lab.server.address, FIRST) as server,
        ):
            client.sendto(b"a needle in the hay", server.getsockname())
            server.recv(2048)
        assert len(capture.wait_for(b"needle")) == 1
        capture.stop()
        assert capture.count() == capture.count(f"udp dst port {FIRST}") == 1
        assert capture.count("tcp") == 0
        assert capture.search(b"no such bytes") == []


def test_a_capture_has_every_packet_of_a_burst() -> None:
    burst = 400
    with TwoNats(relay=False) as lab:
        capture = lab.capture("laptop-a", "eth0", "udp")
        with udp(lab.laptop_a.namespace, lab.laptop_a.address) as client:
            for _ in range(burst):
                client.sendto(b"x", (str(lab.server.address), FIRST))
        capture.stop()
        assert (capture.count(f"udp dst port {FIRST}"), capture.lost) == (burst, 0)


def test_an_exception_leaves_nothing_behind() -> None:
    def fail_inside() -> None:
        with TwoNats(relay=False) as lab:
            footprints.append(lab.footprint())
            lab.capture("nat-a", "wan")
            assert len(leftovers(footprints[0])) > len(lab.namespaces)
            raise RuntimeError("on purpose")

    footprints: list[Footprint] = []
    with pytest.raises(RuntimeError, match="on purpose"):
        fail_inside()
    assert leftovers(footprints[0]) == []


def test_a_topology_that_fails_half_way_leaves_nothing_behind() -> None:
    class Broken(Lab):
        def build(self) -> None:
            self.host("laptop", self.router("nat"))
            raise RuntimeError("on purpose")

    broken = Broken()
    with pytest.raises(RuntimeError, match="on purpose"), broken:
        pass
    assert [name for name in os.listdir("/run/netns") if name.startswith(broken.identity)] == []
    assert not broken.directory.exists()
