"""The port mapper against routers of all kinds, in virtual time."""

import random
from ipaddress import IPv4Address, IPv6Address

import pytest

from nostrvpn.endpoint import Endpoint
from nostrvpn.portmap.events import DatagramReceived, GatewayLost, Stop, UpnpDone
from tests.unit.portmap.routers import EXTERNAL, GATEWAY, LOCAL, PORT, Router, World

MAPPED = Endpoint(EXTERNAL, PORT)
HOUR = 3600.0


def joined(router=None, seconds=1.0, **kinds):
    world = World(router or Router(**kinds))
    world.join()
    world.run(seconds)
    return world


def asked(world, what):
    return [round(at - 1000, 1) for at, name in world.router.requests if name == what]


@pytest.mark.parametrize(
    ("speaks", "used", "within"),
    [
        ({"pcp", "nat_pmp", "upnp"}, "pcp", 0.1),
        ({"pcp"}, "pcp", 0.1),
        ({"nat_pmp", "upnp"}, "nat_pmp", 0.3),
        ({"nat_pmp"}, "nat_pmp", 0.3),
        ({"upnp"}, "upnp", 0.4),
    ],
)
def test_the_best_protocol_that_answers_is_used(speaks, used, within):
    world = joined(speaks=frozenset(speaks))
    assert world.endpoints == (MAPPED,)
    assert world.told[0][0] - 1000 < within
    report = world.report
    assert report.protocol == used
    assert {name for name in ("pcp", "nat_pmp", "upnp") if getattr(report, name)} == speaks
    assert report.error is None
    assert report.public
    assert 7190 < report.expires_in_s <= 7200
    assert report.as_json()["external"] == "11.0.1.2:40000"
    assert world.router.mapped(world.now) == {PORT: used}


@pytest.mark.parametrize("used", ["pcp", "nat_pmp", "upnp"])
def test_the_lease_is_renewed_at_half_life_and_given_back(used):
    world = joined(speaks=frozenset({used}), seconds=6 * HOUR)
    maps = asked(world, f"{used} map")
    assert [round(at / HOUR, 2) for at in maps] == [0, 1, 2, 3, 4, 5, 6][: len(maps)]
    assert len(maps) >= 6
    assert len(world.told) == 1
    world.step(Stop())
    world.run(1)
    assert world.mapper.stopped
    assert world.router.mapped(world.now) == {}
    assert world.endpoints == ()
    assert world.mapper.deadline is None


@pytest.mark.parametrize("used", ["pcp", "nat_pmp", "upnp"])
def test_a_shorter_lease_is_renewed_in_time(used):
    world = joined(speaks=frozenset({used}), max_lease=60, seconds=600)
    assert len(world.told) == 1
    if used != "upnp":  # UPnP answers no lease: what was asked for is what was given
        assert len(asked(world, f"{used} map")) == pytest.approx(20, abs=1)


def test_a_lease_too_short_is_not_used():
    world = joined(speaks=frozenset({"pcp"}), max_lease=1)
    assert world.endpoints == ()
    assert world.report.error == "PCP: the router gives a mapping for 1 s only"


@pytest.mark.parametrize("used", ["pcp", "nat_pmp", "upnp"])
def test_a_router_that_restarted_is_noticed_and_mapped_again(used):
    world = joined(speaks=frozenset({used}), seconds=1000)
    world.router.reboot(world.now)
    world.run(310)
    assert world.router.mapped(world.now) == {PORT: used}
    assert len(world.told) == 1


def test_an_announcement_makes_it_map_again_at_once():
    world = joined(speaks=frozenset({"pcp"}), seconds=1000)
    world.router.reboot(world.now)
    announcement = bytes.fromhex("02800000") + bytes(20)
    stranger = Endpoint(IPv4Address("192.168.1.66"), 5351)
    world.step(DatagramReceived(announcement, stranger, announced=True))
    world.run(0.2)
    assert world.router.mapped(world.now) == {}
    world.step(DatagramReceived(announcement, world.server, announced=True))
    world.run(0.2)
    assert world.router.mapped(world.now) == {PORT: "pcp"}
    before = len(world.router.requests)
    for _ in range(1000):
        world.step(DatagramReceived(announcement, world.server, announced=True))
        world.run(0.01)
    assert len(world.router.requests) - before <= 4


@pytest.mark.parametrize("used", ["pcp", "nat_pmp", "upnp"])
def test_a_router_that_is_away_for_long_is_found_again(used):
    world = joined(speaks=frozenset({used}), seconds=1000)
    world.router.up = False
    world.run(3 * HOUR)
    assert world.endpoints == ()
    away = sum(1 for at, _ in world.router.requests if at > 2000)
    assert away == 0
    world.router.up = True
    world.router.reboot(world.now)
    world.run(910)
    assert world.endpoints == (MAPPED,)


def test_a_router_that_now_speaks_another_protocol_is_mapped_by_it():
    world = joined(speaks=frozenset({"upnp"}))
    world.router.speaks = frozenset({"nat_pmp"})
    world.router.reboot(world.now)
    world.run(400)
    assert world.report.protocol == "nat_pmp"
    assert world.endpoints == (MAPPED,)


@pytest.mark.parametrize("used", ["pcp", "nat_pmp", "upnp"])
def test_a_new_external_address_is_told(used):
    world = joined(speaks=frozenset({used}))
    world.router.ip = IPv4Address("11.0.9.9")
    world.router.reboot(world.now)
    world.run(310)
    assert world.endpoints == (Endpoint(IPv4Address("11.0.9.9"), PORT),)


@pytest.mark.parametrize("used", ["pcp", "nat_pmp", "upnp"])
@pytest.mark.parametrize("ip", ["192.168.7.7", "100.64.0.9", "10.0.0.1"])
def test_an_address_behind_another_nat_is_reported_but_no_endpoint(used, ip):
    world = joined(speaks=frozenset({used}), ip=IPv4Address(ip))
    assert world.endpoints == ()
    assert world.report.external == Endpoint(IPv4Address(ip), PORT)
    assert not world.report.public
    assert world.report.error == f"the router is behind a NAT itself, as {ip}"
    world.step(Stop())
    world.run(1)
    assert world.router.mapped(world.now) == {}


@pytest.mark.parametrize("used", ["pcp", "nat_pmp", "upnp"])
def test_a_router_without_an_address_gives_no_mapping(used):
    world = joined(speaks=frozenset({used}), ip=IPv4Address(0))
    assert world.endpoints == ()
    assert world.report.external is None
    assert "no external address" in world.report.error


def test_a_refusal_falls_back_to_the_next_protocol_and_says_why():
    world = joined(pcp_error=2)
    assert world.report.protocol == "nat_pmp"
    world = joined(pcp_error=8, natpmp_error=4)
    assert world.report.protocol == "upnp"
    world = joined(pcp_error=2, natpmp_error=2, upnp_error=606)
    assert world.endpoints == ()
    no = "the router does not allow port mappings"
    assert world.report.error == f"PCP: {no}; NAT-PMP: {no}; UPnP: {no}"


def test_a_refusal_holds_as_long_as_the_router_says():
    world = joined(speaks=frozenset({"pcp"}), pcp_error=8, hold_s=500, seconds=499)
    assert len(asked(world, "pcp map")) == 1
    world.router.pcp_error = 0
    world.run(2)
    assert world.endpoints == (MAPPED,)


@pytest.mark.parametrize("used", ["pcp", "nat_pmp", "upnp"])
def test_another_external_port_is_taken_where_ours_is_not_free(used):
    world = joined(speaks=frozenset({used}), taken={PORT})
    (endpoint,) = world.endpoints
    assert endpoint.ip == EXTERNAL
    assert endpoint.port != PORT
    world.run(3 * HOUR)
    assert world.endpoints == (endpoint,)  # renewed as it is
    world.step(Stop())
    world.run(1)
    assert world.router.mapped(world.now) == {}


def test_a_upnp_router_that_gives_all_ports_away_is_not_asked_for_ever():
    world = joined(speaks=frozenset({"upnp"}), taken=set(range(65536)))
    assert len(asked(world, "upnp map")) == 5
    assert world.report.error == "UPnP: the router gave the port to another host"


def test_a_upnp_router_with_permanent_mappings_only():
    world = joined(speaks=frozenset({"upnp"}), upnp_error=725)
    assert world.endpoints == (MAPPED,)
    assert world.report.expires_in_s is None
    world.run(5 * HOUR)
    assert world.router.mapped(world.now) == {PORT: "upnp"}
    world.step(Stop())
    world.run(1)
    assert world.router.mapped(world.now) == {}


def test_a_upnp_router_that_fails_whatever_is_asked_is_left_in_peace():
    world = joined(speaks=frozenset({"upnp"}), upnp_error=501)
    assert len(asked(world, "upnp map")) == 2
    assert world.report.error == "UPnP: the router failed to carry out the request"


def test_a_host_with_a_public_address_or_no_gateway_asks_nobody():
    world = World(Router())
    world.join(IPv4Address("11.0.1.1"), IPv4Address("11.0.1.2"))
    assert world.report.error == "this host has a public address itself"
    world.step(GatewayLost())
    assert world.report.error == "there is no default gateway"
    world.run(HOUR)
    assert world.router.requests == []
    assert world.mapper.deadline is None


def test_another_network_forgets_the_mapping_and_maps_anew():
    world = joined()
    world.router = Router(ip=IPv4Address("11.0.2.2"))
    world.join(IPv4Address("10.0.0.1"), IPv4Address("10.0.0.7"))
    assert world.endpoints == ()
    assert world.router.requests == []


def test_late_answers_of_the_old_network_mean_nothing():
    world = World(Router())
    world.join()
    old = world.router
    world.run(0.001)
    world.step(GatewayLost())
    world.run(5)
    assert world.endpoints == ()
    assert "pcp map" not in [name for _, name in old.requests]
    world.step(UpnpDone(1, EXTERNAL))
    assert world.endpoints == ()


def test_the_same_gateway_again_looks_soon_and_not_more():
    world = joined(seconds=100)
    before = len(world.router.requests)
    for _ in range(100):
        world.join()
        world.run(0.01)
    world.run(5)
    assert 1 <= len(world.router.requests) - before <= 2


def test_answers_from_elsewhere_and_noise_are_counted():
    other = Endpoint(IPv4Address("192.168.1.3"), 5351)
    world = joined(speaks=frozenset({"pcp", "nat_pmp"}), answers_from=other, seconds=100)
    assert world.endpoints == ()
    assert world.report.error == "the router does not answer (PCP, NAT-PMP, UPnP)"
    assert world.mapper.counters["not_the_gateway"] > 4
    rng = random.Random(1)
    for _ in range(2000):
        noise = bytes([rng.choice((0, 1, 2, 9))]) + rng.randbytes(rng.randrange(70))
        world.step(DatagramReceived(noise, world.server))
    assert world.endpoints == ()
    assert world.mapper.counters["malformed_pcp"] > 100
    assert world.mapper.counters["malformed_nat_pmp"] > 100


def test_a_mapping_nobody_asked_for_is_not_believed():
    world = joined(speaks=frozenset({"nat_pmp"}))
    forged = bytes.fromhex("0081" + "0000" + "00001388" + "9c40" + "0001" + "00001c20")
    world.step(DatagramReceived(forged, world.server))
    assert world.mapper.counters["unasked"] == 1
    assert world.endpoints == (MAPPED,)


def test_the_mapping_of_another_is_not_taken_for_ours():
    world = joined(speaks=frozenset({"pcp"}))
    right = world.router.datagram(sent_map(world), world.now)
    moved = bytearray(right)
    moved[42:44] = (9).to_bytes(2, "big")  # the external port, and then what says whose it is
    for at in (24, 36, 40):  # nonce, protocol, internal port
        wrong = bytearray(moved)
        wrong[at] ^= 1
        world.step(DatagramReceived(bytes(wrong), world.server))
    assert world.mapper.counters["foreign_mapping"] == 3
    assert world.endpoints == (MAPPED,)
    world.step(DatagramReceived(bytes(moved), world.server))
    assert world.endpoints == (Endpoint(EXTERNAL, 9),)


def sent_map(world):
    """The renewal that the mapper sends next."""
    sent = []
    arrive = world._arrive

    def keep(data):
        sent.append(data)
        arrive(data)

    world._arrive = keep
    world.run(HOUR)
    world._arrive = arrive
    return next(data for data in sent if data[1] == 1)


def test_ipv6_opens_the_firewall_by_pcp():
    gateway, local = IPv6Address("fe80::1"), IPv6Address("2d00::2")
    world = World(Router(ip=local))
    world.join(gateway, local)
    world.run(1)
    assert world.endpoints == (Endpoint(local, PORT),)
    assert {name for _, name in world.router.requests} == {"pcp look", "pcp map"}


def test_a_silent_network_is_asked_ever_more_seldom():
    world = joined(speaks=frozenset(), seconds=24 * HOUR)
    assert world.endpoints == ()
    assert world.steps < 500
    assert world.report.error == "the router does not answer (PCP, NAT-PMP, UPnP)"


def test_stopping_before_the_answer_removes_what_may_have_been_made():
    world = World(Router(speaks=frozenset({"pcp"})))
    world.join()
    while not asked(world, "pcp map"):
        world.run(0.001)
    world.step(Stop())
    world.run(1)
    assert world.mapper.stopped
    assert world.router.mapped(world.now) == {}
    assert world.told == []


def test_stopping_with_a_dead_router_takes_half_a_second():
    world = joined()
    world.router.up = False
    world.step(Stop())
    world.run(0.51)
    assert world.mapper.stopped


@pytest.mark.parametrize("seed", range(300))
def test_whatever_happens_a_router_that_is_well_again_gets_its_mapping(seed):
    """Loss, restarts, errors, changes of address and protocol; then an hour of quiet."""
    rng = random.Random(seed)
    world = World(Router(), seed=seed, loss=rng.choice([0.0, 0.1, 0.4]))
    world.join()
    kinds = ["pcp", "nat_pmp", "upnp"]
    for _ in range(30):
        router = world.router
        match rng.randrange(8):
            case 0:
                router.reboot(world.now)
            case 1:
                router.up = not router.up
            case 2:
                router.ip = IPv4Address(f"11.0.{rng.randrange(250)}.2")
                router.reboot(world.now)
            case 3:
                router.speaks = frozenset(rng.sample(kinds, rng.randrange(4)))
                router.reboot(world.now)
            case 4:
                router.pcp_error = rng.choice([0, 0, 2, 3, 8, 255])
                router.natpmp_error = rng.choice([0, 0, 2, 4])
                router.upnp_error = rng.choice([0, 0, 725, 501])
            case 5:
                router.max_lease = rng.choice([4, 30, 600, 1 << 31])
            case 6:
                world.join()
            case 7:
                world.join(GATEWAY, IPv4Address(f"192.168.1.{rng.choice([2, 3])}"))
                world.join(GATEWAY, LOCAL)
                router.mappings.clear()
        world.run(rng.expovariate(1 / 200))
        assert world.mapper.report(world.now).as_json()
    router = world.router
    router.up, router.max_lease = True, 7200
    router.pcp_error = router.natpmp_error = router.upnp_error = 0
    router.speaks = router.speaks or frozenset({"upnp"})
    router.reboot(world.now)
    world.loss = 0.0
    world.run(HOUR)
    assert world.endpoints == (Endpoint(router.ip, PORT),), world.report
    assert PORT in router.mapped(world.now)
    assert world.steps < 30_000
    world.step(Stop())
    world.run(1)
    assert world.mapper.stopped
    assert world.report.protocol is None
