"""Which router holds a network, in virtual time; and what a node makes of networks behind members."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_address, ip_network
from itertools import pairwise
from typing import Any

import pytest

from nostrvpn.endpoint import Endpoint
from nostrvpn.mesh.subnets import IPNetwork
from nostrvpn.node.events import HostChanged, Refuse
from nostrvpn.node.node import Node
from nostrvpn.node.path_effects import take_path
from nostrvpn.node.subnets import LOST_S, STABLE_S, RouterChoice
from nostrvpn.paths.candidates import LocalAddress
from nostrvpn.paths.events import SendDatagram
from tests.sim.nodes import Host, World

LAN = ip_network("192.168.5.0/24")
LAN6 = ip_network("fd55::/64")
ROUTERS = ["a", "b", "c"]


# -- the choice -----------------------------------------------------------------------------


def test_the_best_router_is_taken_and_kept() -> None:
    choice = RouterChoice()
    assert choice.review({LAN: ROUTERS}, {"a", "b"}, 100.0)
    assert choice.used == {LAN: "a"}
    assert choice.deadline is None
    assert not choice.review({LAN: ROUTERS}, {"a", "b", "c"}, 101.0)


def test_a_lost_router_is_left_for_the_next_one_soon_and_gets_back_what_is_stable() -> None:
    choice = RouterChoice()
    choice.review({LAN: ROUTERS}, {"a", "b"}, 100.0)
    assert not choice.review({LAN: ROUTERS}, {"b"}, 200.0)
    assert choice.deadline == 200.0 + LOST_S
    assert choice.review({LAN: ROUTERS}, {"b"}, 200.0 + LOST_S)
    assert choice.used == {LAN: "b"}
    assert not choice.review({LAN: ROUTERS}, {"a", "b"}, 300.0)
    assert choice.deadline == 300.0 + STABLE_S
    assert not choice.review({LAN: ROUTERS}, {"a", "b"}, 300.0 + STABLE_S - 0.1)
    assert choice.review({LAN: ROUTERS}, {"a", "b"}, 300.0 + STABLE_S)
    assert choice.used == {LAN: "a"}
    assert choice.deadline is None


def test_a_router_that_comes_and_goes_does_not_get_it_back() -> None:
    choice = RouterChoice()
    choice.review({LAN: ROUTERS}, {"a", "b"}, 0.0)
    now = 1.0
    for _ in range(20):
        for healthy in ({"b"}, {"a", "b"}):
            choice.review({LAN: ROUTERS}, healthy, now)
            if choice.deadline is not None and choice.deadline < now + STABLE_S / 2:
                choice.review({LAN: ROUTERS}, healthy, choice.deadline)
            now += STABLE_S / 2
    assert choice.used == {LAN: "b"}


def test_without_any_path_the_network_stays_in_the_tunnel() -> None:
    choice = RouterChoice()
    choice.review({LAN: ROUTERS}, set(), 0.0)
    assert choice.used == {LAN: "a"}
    assert choice.deadline is None
    # It was never there: the first one that is takes it at once.
    assert choice.review({LAN: ROUTERS}, {"c"}, 0.1)
    assert choice.used == {LAN: "c"}
    choice.review({LAN: ROUTERS}, set(), 50.0)
    choice.review({LAN: ROUTERS}, set(), 90.0)
    assert choice.used == {LAN: "c"}


def test_a_router_that_may_no_longer_is_left_at_once() -> None:
    choice = RouterChoice()
    choice.review({LAN: ROUTERS}, {"a", "b"}, 0.0)
    assert choice.review({LAN: ["b"]}, {"a", "b"}, 0.0)
    assert choice.used == {LAN: "b"}
    assert choice.review({}, {"b"}, 0.0)
    assert choice.used == {}


def trace(seed: int) -> Iterator[tuple[float, dict[IPNetwork, list[str]], set[str]]]:
    rng = random.Random(seed)
    now, wanted, healthy = 0.0, {LAN: ROUTERS, LAN6: ["b", "c"]}, set[str]()
    for _ in range(200):
        now += rng.choice((0.01, 0.5, 3.0, 20.0, 70.0)) * rng.random()
        if rng.random() < 0.1:
            wanted = {
                network: sorted(rng.sample(ROUTERS, rng.randint(1, 3)))
                for network in (LAN, LAN6)
                if rng.random() < 0.8
            }
        healthy ^= {rng.choice(ROUTERS)}
        yield now, wanted, set(healthy)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_paths_do_every_wanted_network_has_one_router_that_has_a_path(seed: int) -> None:
    """Stepped at events and deadlines only: nothing is left without a router for longer than a grace."""
    choice, twin = RouterChoice(), RouterChoice()
    bad_since: dict[IPNetwork, float] = {}
    before = 0.0
    wanted: dict[IPNetwork, list[str]] = {}
    healthy: set[str] = set()
    for now, next_wanted, next_healthy in trace(seed):
        while choice.deadline is not None and choice.deadline < now:
            at = choice.deadline
            assert at >= before, "a deadline in the past would never let anybody rest"
            choice.review(wanted, healthy, at)
            assert choice.deadline is None or choice.deadline > at
            check(choice, wanted, healthy, bad_since, at)
            before = at
        wanted, healthy, before = next_wanted, next_healthy, now
        choice.review(wanted, healthy, now)
        check(choice, wanted, healthy, bad_since, now)
        # More looks change nothing: what is decided depends on events and time alone.
        twin.review(wanted, healthy, now)
        twin.review(wanted, healthy, now)


def check(
    choice: RouterChoice,
    wanted: dict[IPNetwork, list[str]],
    healthy: set[str],
    bad_since: dict[IPNetwork, float],
    now: float,
) -> None:
    assert choice.used.keys() == wanted.keys()
    for network, routers in wanted.items():
        assert choice.used[network] in routers
        bad = choice.used[network] not in healthy and healthy.intersection(routers)
        if not bad:
            bad_since.pop(network, None)
        else:
            assert now - bad_since.setdefault(network, now) < LOST_S + 1e-6


# -- the node -------------------------------------------------------------------------------


class Office:
    """Alice founded the network; Bob and Carol have paths to her."""

    def __init__(self) -> None:
        self.world = world = World()
        world.relay()
        self.alice, self.bob, self.carol = (world.host(n) for n in ("alice", "bob", "carol"))
        for host in (self.alice, self.bob, self.carol):
            world.start(host)
            self.at(host)
        world.run(5)
        for host in (self.bob, self.carol):
            npub = host.secret.npub
            link = world.call(self.alice, "invite", npub=npub, once=False, expires_s=86_400)["link"]
            world.ask(host, "join", link=link)
            assert world.run(60, partial(world.is_connected, self.alice, host))

    def at(self, host: Host, *routes: str, address: str = "") -> None:
        """Tell a host's node where it is."""
        known = [LocalAddress(host.address.ip, "eth0", 24)]
        known += [LocalAddress(ip_address(address), "lan", 24)] if address else []
        found = frozenset(map(ip_network, ("0.0.0.0/0", "11.0.0.0/16", *routes)))
        self.world.step(host, HostChanged(tuple(known), found))

    def share(self, host: Host, *networks: str, **more: Any) -> Any:
        given = {"networks": list(networks), "withdraw": False, "snat": None}
        return self.world.call(host, "routes_advertise", **given | more)

    def approve(self, host: Host, *networks: str, withdraw: bool = False) -> Any:
        return self.world.call(
            self.alice,
            "routes_approve",
            peer=host.secret.npub,
            networks=list(networks),
            withdraw=withdraw,
        )

    def accept(self, who: str, *networks: str, accept: bool = True, force: bool = False) -> Any:
        given = {"who": who, "networks": list(networks), "accept": accept, "force": force}
        return self.world.call(self.alice, "routes_accept", **given)

    def desired(self, host: Host) -> Any:
        return host.node.desired(self.world.moment(host).now)

    def behind(self, router: Host) -> set[IPNetwork]:
        """What Alice's WireGuard sends to a router, beside its own addresses."""
        peers = self.desired(self.alice).device.peers
        [peer] = [p for p in peers if p.public_key == router.wireguard_key]
        return {n for n in peer.allowed_ips if n.prefixlen < n.max_prefixlen}

    def states(self) -> dict[tuple[str, str], str]:
        told = self.world.call(self.alice, "routes")["routes"]
        return {(one["name"], one["network"]): one["state"] for one in told}


@pytest.fixture
def office() -> Office:
    return Office()


def test_a_member_cannot_steal_a_route(office: Office) -> None:
    """Saying that a network is behind it gives a member nothing, whatever the user accepts."""
    office.accept("all")
    office.share(office.bob, str(LAN), str(LAN6))
    assert office.world.run(10, lambda: ("bob", str(LAN)) in office.states())
    assert set(office.states().values()) == {"not_approved"}
    assert office.behind(office.bob) == set()
    assert LAN not in office.desired(office.alice).host.routes
    # What is approved for another member is not approved for this one.
    office.share(office.carol, str(LAN))
    office.approve(office.carol, str(LAN))
    assert office.world.run(10, lambda: office.behind(office.carol) == {LAN})
    assert office.behind(office.bob) == set()
    # Nor does approval of one network let it have a part of it, or a wider one.
    office.share(office.bob, "192.168.5.0/25", "192.168.0.0/16")
    office.world.run(10)
    assert office.behind(office.bob) == set()
    assert office.behind(office.carol) == {LAN}


def test_nothing_is_taken_that_the_user_did_not_accept(office: Office) -> None:
    office.share(office.bob, str(LAN), str(LAN6))
    office.approve(office.bob, str(LAN), str(LAN6))
    assert office.world.run(10, lambda: office.states().get(("bob", str(LAN))) == "not_accepted")
    assert office.behind(office.bob) == set()
    office.accept("bob", str(LAN6))
    assert office.behind(office.bob) == {LAN6}
    office.accept("all")
    assert office.behind(office.bob) == {LAN, LAN6}
    assert {LAN, LAN6} <= office.desired(office.alice).host.routes
    office.accept("bob", accept=False)
    assert office.behind(office.bob) == set()
    assert office.desired(office.alice).host.routes.isdisjoint({LAN, LAN6})


def test_what_is_withdrawn_by_any_side_ends(office: Office) -> None:
    office.share(office.bob, str(LAN))
    office.approve(office.bob, str(LAN))
    office.accept("all")
    assert office.world.run(10, lambda: office.behind(office.bob) == {LAN})
    office.share(office.bob, str(LAN), withdraw=True)
    assert office.world.run(10, lambda: office.behind(office.bob) == set())
    assert office.states() == {("bob", str(LAN)): "not_advertised"}
    office.share(office.bob, str(LAN))
    assert office.world.run(10, lambda: office.behind(office.bob) == {LAN})
    office.approve(office.bob, str(LAN), withdraw=True)
    assert office.behind(office.bob) == set()
    office.approve(office.bob)  # what it shares now
    assert office.behind(office.bob) == {LAN}
    office.world.call(office.alice, "peer_remove", peer="bob")
    assert LAN not in office.desired(office.alice).host.routes


def test_one_router_at_a_time_holds_a_network(office: Office) -> None:
    for host in (office.bob, office.carol):
        office.share(host, str(LAN))
        office.approve(host, str(LAN))
    office.accept("all")

    def held() -> list[Host]:
        return [host for host in (office.bob, office.carol) if office.behind(host)]

    first, second = sorted((office.bob, office.carol), key=lambda host: host.secret.public_key)
    assert office.world.run(60, lambda: held() == [first])
    assert office.states()[(second.name, str(LAN))] == "standby"
    office.world.stop(first)
    assert office.world.run(120, lambda: held() == [second])


def test_a_local_network_is_not_hidden(office: Office) -> None:
    office.share(office.bob, str(LAN))
    office.approve(office.bob, str(LAN))
    office.accept("all")
    assert office.world.run(10, lambda: office.behind(office.bob) == {LAN})
    office.at(office.alice, str(LAN), address="192.168.5.7")
    assert office.states() == {("bob", str(LAN)): "here"}
    assert LAN not in office.desired(office.alice).host.routes
    office.accept("bob", str(LAN), force=True)
    assert office.states() == {("bob", str(LAN)): "here"}
    office.accept("bob", str(LAN))
    office.at(office.alice, "192.168.0.0/16", address="192.168.1.7")
    assert office.states() == {("bob", str(LAN)): "hides"}
    assert office.behind(office.bob) == set()
    office.accept("bob", str(LAN), force=True)
    assert office.behind(office.bob) == {LAN}
    office.at(office.alice, "192.168.0.0/16", address="192.168.5.7")
    assert office.states() == {("bob", str(LAN)): "here"}
    # More specific than ours: it stays local, and the rest goes.
    office.at(office.alice, "192.168.5.128/25", address="192.168.5.200")
    assert office.behind(office.bob) == {LAN}


def test_a_network_through_which_the_tunnel_itself_runs_is_not_taken(office: Office) -> None:
    around = f"{office.bob.address.ip}/24".replace(".2/24", ".0/24")
    office.at(office.alice)
    office.share(office.carol, around)
    office.approve(office.carol, around)
    office.accept("all")
    # Alice's host has a route to all of it; without that the endpoint itself is in the way.
    assert office.world.run(10, lambda: office.states().get(("carol", around)) == "hides")
    known = LocalAddress(office.alice.address.ip, "eth0", 24)
    routes = frozenset({ip_network("0.0.0.0/0")})
    office.world.step(office.alice, HostChanged((known,), routes))
    assert office.states() == {("carol", around): "outside"}
    assert office.behind(office.carol) == set()


def test_no_probe_goes_into_the_tunnel(office: Office) -> None:
    """A path through the tunnel would die with it, or lead into itself."""
    office.share(office.bob, str(LAN))
    office.approve(office.bob, str(LAN))
    office.accept("all")
    assert office.world.run(10, lambda: office.behind(office.bob) == {LAN})
    node, moment = office.alice.node, office.world.moment(office.alice)
    inside = SendDatagram(b"x", Endpoint(ip_address("192.168.5.9"), 4000))
    outside = SendDatagram(b"x", Endpoint(ip_address("192.168.6.9"), 4000))
    assert take_path(node, inside, moment) == []
    assert take_path(node, outside, moment) == [outside]
    assert node.dropped["into_tunnel"] == 1


def test_a_router_that_is_in_its_own_network_is_still_heard(office: Office) -> None:
    """Its address there is one of its candidates: not tried, but no reason to drop all it says."""
    office.share(office.bob, str(LAN))
    office.approve(office.bob, str(LAN))
    office.accept("all")
    assert office.world.run(10, lambda: office.behind(office.bob) == {LAN})
    office.at(office.bob, str(LAN), address="192.168.5.9")
    node, key = office.alice.node, office.bob.secret.public_key

    def is_described() -> bool:
        heard = node.peers[key].heard
        addresses = {str(candidate.endpoint.ip) for candidate in heard.candidates}
        return "192.168.5.9" in addresses

    assert office.world.run(30, is_described)
    assert node.dropped["bad_description"] == 0


def test_a_router_forwards_what_is_shared_and_approved_to_whom_lan_is_allowed(
    office: Office,
) -> None:
    bob, alice = office.bob, office.alice
    assert office.desired(bob).gateway.networks == frozenset()
    office.share(bob, str(LAN), str(LAN6))
    assert office.desired(bob).gateway.networks == frozenset()
    assert not office.desired(bob).firewall.clamp_forwarded
    office.approve(bob, str(LAN))
    assert office.world.run(10, lambda: office.desired(bob).gateway.networks == {LAN})
    desired = office.desired(bob)
    assert desired.firewall.clamp_forwarded
    assert desired.gateway.snat
    assert desired.inbound.lan_networks == {LAN}
    assert desired.inbound.lan_sources == frozenset()
    permit = {"allow": True, "at": None, "network": False, "undo": False, "what": "lan"}
    office.world.call(bob, "permit", who=alice.secret.npub, **permit)
    own = alice.node.membership.roster.address(alice.secret.public_key)
    assert office.desired(bob).inbound.lan_sources == {own.ipv4, own.ipv6}
    office.share(bob, snat=False)
    assert not office.desired(bob).gateway.snat
    office.share(bob, str(LAN), withdraw=True)
    assert office.desired(bob).gateway.networks == frozenset()
    assert office.desired(bob).inbound.lan_networks == frozenset()


def test_a_wide_path_limits_its_networks_as_its_addresses(office: Office) -> None:
    office.share(office.bob, str(LAN), str(LAN6))
    assert office.world.run(10, lambda: len(office.states()) == 2)
    office.approve(office.bob)
    office.accept("all")
    assert office.world.run(30, lambda: office.behind(office.bob) == {LAN, LAN6})
    key = office.bob.secret.public_key
    peer, address = office.alice.node.peers[key], office.alice.node.membership.roster.address(key)
    own4, own6 = ip_network(address.ipv4), ip_network(address.ipv6)
    # A wide path, and one that is too narrow for the least packet of IPv6.
    for mtu in (1500, 1200):
        peer.mtu = mtu
        limits = {limit.network: limit for limit in office.desired(office.alice).host.route_limits}
        for network, own in ((LAN, own4), (LAN6, own6)):
            assert (limits[network].mtu, limits[network].mss) == (limits[own].mtu, limits[own].mss)
    assert limits[LAN].mtu < 1200
    assert limits[LAN6].mtu == 1280
    assert limits[LAN6].mss is not None


def test_choices_survive_a_restart_and_a_damaged_record_begins_anew(office: Office) -> None:
    office.share(office.bob, str(LAN))
    office.approve(office.bob, str(LAN))
    office.accept("all")
    assert office.world.run(10, lambda: office.behind(office.bob) == {LAN})
    again = Node(office.alice.node.settings, office.alice.records, "kernel")
    assert again.subnets.settings == office.alice.node.subnets.settings
    assert again.peers[office.bob.secret.public_key].advertised == (LAN,)
    router = Node(office.bob.node.settings, office.bob.records, "kernel")
    assert router.outbox.advertised == (str(LAN),)
    records = office.alice.records | {"policy": {"subnets": {"advertised": 5}}}
    damaged = Node(office.alice.node.settings, records, "kernel")
    assert damaged.subnets.settings.choices == ()
    assert any("of subnets is lost" in text for _, text in damaged.notes)


def test_the_last_of_a_few_changes_is_stored_and_many_are_not(office: Office) -> None:
    alice, key = office.alice, office.bob.secret.public_key

    def stored() -> Any:
        return Node(alice.node.settings, alice.records, "kernel").peers[key].advertised

    def is_stored(network: IPNetwork) -> bool:
        return network in stored()

    for number in range(3):
        network = f"192.168.{number}.0/24"
        office.share(office.bob, network)
        assert office.world.run(5, partial(is_stored, ip_network(network)))
    writes = []
    for number in range(60):
        office.share(office.bob, str(LAN), withdraw=number % 2 == 1)
        office.world.run(0.2)
        writes.append(stored())
    assert sum(one != other for one, other in pairwise(writes)) < 30


@pytest.mark.parametrize(
    ("command", "args", "words"),
    [
        ("routes_advertise", {"networks": ["0.0.0.0/0"]}, "exits"),
        ("routes_advertise", {"networks": ["10.64.0.0/10"]}, "members' own"),
        ("routes_approve", {"peer": "bob", "networks": ["fe80::/64"]}, "link-local"),
        ("routes_approve", {"peer": "bob", "networks": []}, "no network to approve"),
        ("routes_accept", {"who": "alice", "networks": []}, "no routes to it"),
        ("routes_accept", {"who": "nobody", "networks": []}, "no peer"),
        ("routes_accept", {"who": "all", "networks": ["x"]}, "not a network"),
    ],
)
def test_commands_refuse_with_a_hint(
    office: Office, command: str, args: dict[str, Any], words: str
) -> None:
    given = {"withdraw": False, "snat": None, "accept": True, "force": False}
    refused = office.world.ask(office.alice, command, **given | args)
    assert isinstance(refused, Refuse)
    assert words in refused.text
    assert refused.hint


def test_only_admins_approve(office: Office) -> None:
    given = {"peer": "me", "networks": [str(LAN)], "withdraw": False}
    refused = office.world.ask(office.bob, "routes_approve", **given)
    assert isinstance(refused, Refuse)
    assert "owner and admins" in refused.text


def test_a_peers_bad_list_changes_nothing(office: Office) -> None:
    office.bob.node.outbox.advertised = ("192.168.5.1/24",)
    office.bob.node.outbox.tell(office.alice.secret.public_key)
    office.at(office.bob, "172.16.0.0/16")
    office.world.run(5)
    assert office.alice.node.dropped["bad_message"] >= 1
    assert office.alice.node.peers[office.bob.secret.public_key].advertised == ()
