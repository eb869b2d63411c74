"""A node as an exit for others: whom it is offered to, what the kernel is asked, what is kept."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from nostrvpn.endpoint import IPAddress
from nostrvpn.exits.limits import Volume
from nostrvpn.exits.offer import ExitOffer
from nostrvpn.host.state import ALIAS_MARK, home_of
from nostrvpn.node.events import ExitUsed, HostChanged, ReconcileFinished
from nostrvpn.node.exit_offer import ExitOffering
from nostrvpn.paths.candidates import LocalAddress
from tests.sim.nodes import Host
from tests.unit.node.small_mesh import SmallMesh

OFFER: dict[str, Any] = {
    "to": [],
    "policy": "web",
    "allow": [],
    "deny": [],
    "allow_lan": False,
    "client_rate": 8.0,
    "bandwidth": 0.0,
    "connections": None,
    "budget": 0.0,
    "country": "de",
    "ipv6": True,
}


USE = {"kill_switch": None, "allow_lan": None, "resolver": None, "dry_run": False}


class Cafe:
    """Alice is the exit; Bob and Carol are members."""

    def __init__(self) -> None:
        self.mesh = SmallMesh("alice", "bob", "carol")
        self.alice, self.bob, self.carol = self.mesh.all
        self.place("198.51.100.7", "2001:db8::7")

    def place(self, *sources: str) -> None:
        """Alice's default routes lead out by these addresses."""
        known = (LocalAddress(self.alice.address.ip, "eth0", 24),)
        routes = frozenset(map(ip_network, ("0.0.0.0/0", "11.0.0.0/16", "203.0.113.0/24")))
        out = frozenset(map(ip_address, sources))
        self.mesh.step(self.alice, HostChanged(known, routes, out))
        self.mesh.run(3)

    def offer(self, *to: str, **more: Any) -> Any:
        answer = self.mesh.call(self.alice, "exit_offer", **OFFER | {"to": list(to)} | more)
        self.mesh.run(5)
        return answer

    def clients(self) -> Any:
        return self.mesh.call(self.alice, "exit_clients")

    def permit(self, who: str, *, allow: bool, undo: bool = False) -> None:
        given = {"who": who, "what": "exit", "at": None, "network": False, "undo": undo}
        self.mesh.call(self.alice, "permit", allow=allow, **given)
        self.mesh.run(3)

    def heard(self, host: Host) -> ExitOffer | None:
        """What a member was told by Alice."""
        told: ExitOffer | None = host.node.peers[self.alice.secret.public_key].exit
        return told

    def desired(self) -> Any:
        return self.alice.node.desired(self.mesh.moment(self.alice).now)

    def addresses(self, *hosts: Host) -> set[IPAddress]:
        found = [self.mesh.roster().address(host.secret.public_key) for host in hosts]
        return {ip for one in found for ip in (one.ipv4, one.ipv6)}

    def use(self, host: Host, up: int, down: int) -> Any:
        ip = self.mesh.roster().address(host.secret.public_key).ipv4
        return self.mesh.step(self.alice, ExitUsed({ip: Volume(up, down)}))


@pytest.fixture
def cafe() -> Cafe:
    return Cafe()


def test_only_whom_exit_is_allowed_is_told_and_let_through(cafe: Cafe) -> None:
    assert cafe.desired().inbound.exit.sources == frozenset()
    assert cafe.offer()["state"] == "no_guests"
    assert cafe.desired().exit_meter.guests == frozenset()
    cafe.offer(cafe.bob.secret.npub)
    assert cafe.heard(cafe.bob) == ExitOffer(True, True, False, "web", "DE", 0)
    assert cafe.heard(cafe.carol) is None
    wanted = cafe.desired()
    assert wanted.inbound.exit.sources == cafe.addresses(cafe.bob)
    assert wanted.exit_meter.guests == cafe.addresses(cafe.bob)
    assert wanted.exit_meter.rate == 1_000_000
    assert wanted.gateway.exit_versions == {4, 6}
    assert wanted.firewall.clamp_forwarded
    cafe.offer("members")
    assert cafe.desired().inbound.exit.sources == cafe.addresses(cafe.bob, cafe.carol)
    assert cafe.heard(cafe.carol) is not None


def test_a_permission_taken_away_ends_the_offer_and_the_way_through(cafe: Cafe) -> None:
    cafe.offer("members")
    cafe.permit(cafe.bob.secret.npub, allow=False)
    assert cafe.desired().inbound.exit.sources == cafe.addresses(cafe.carol)
    assert cafe.heard(cafe.bob) is None
    assert cafe.heard(cafe.carol) is not None
    cafe.mesh.call(cafe.alice, "shields_up", up=True)
    assert cafe.desired().inbound.exit.sources == frozenset()


def test_what_ends_is_told_and_forgotten(cafe: Cafe) -> None:
    cafe.offer("members")
    assert cafe.mesh.call(cafe.alice, "exit_offer_stop")["state"] == "stopped"
    cafe.mesh.run(3)
    assert cafe.heard(cafe.bob) is None
    wanted = cafe.desired()
    assert wanted.inbound.exit.sources == frozenset()
    assert wanted.gateway.is_empty
    assert wanted.exit_meter.guests == frozenset()


def test_what_the_host_cannot_carry_is_not_offered(cafe: Cafe) -> None:
    cafe.offer("members")
    cafe.place("198.51.100.7")
    assert cafe.heard(cafe.bob) == ExitOffer(True, False, False, "web", "DE", 0)
    assert {ip.version for ip in cafe.desired().inbound.exit.sources} == {4}
    cafe.place("198.51.100.7", "fd12::7")
    assert {ip.version for ip in cafe.desired().inbound.exit.sources} == {4}
    cafe.place()
    told = cafe.heard(cafe.bob)
    assert told is not None
    assert (told.versions, told.down) == (frozenset(), "route")
    assert cafe.desired().inbound.exit.sources == frozenset()
    assert cafe.clients()["state"] == "no_way_out"
    assert "exit_offer_down" in {p["code"] for p in cafe.mesh.status(cafe.alice)["problems"]}
    cafe.place("198.51.100.7", "2001:db8::7")
    cafe.offer("members", ipv6=False)
    assert cafe.heard(cafe.bob) == ExitOffer(True, False, False, "web", "DE", 0)


@pytest.mark.parametrize(
    ("event", "state"),
    [
        (ReconcileFinished(meter_error="nft refused"), "failed"),
        (ReconcileFinished(gateway_error="nft refused"), "failed"),
        (ReconcileFinished(forward_obstacle=("ip filter FORWARD", "ufw route allow")), "blocked"),
    ],
)
def test_an_exit_that_cannot_forward_says_so_and_is_not_offered(
    cafe: Cafe, event: ReconcileFinished, state: str
) -> None:
    cafe.offer("members")
    assert cafe.clients()["state"] == "offered"
    cafe.mesh.step(cafe.alice, event)
    assert cafe.clients()["state"] == state
    cafe.mesh.run(3)
    assert cafe.heard(cafe.bob) is None


def test_guests_reach_neither_members_nor_this_host_nor_the_networks_around(cafe: Cafe) -> None:
    cafe.offer("members", policy="open", allow_lan=True)
    never = cafe.desired().inbound.exit.rules[0]
    assert not never.allow
    for ip in (*cafe.addresses(cafe.bob, cafe.alice), cafe.alice.address.ip):
        assert any(ip in network for network in never.networks)
    cafe.offer("members", policy="open")
    closed = [rule.networks for rule in cafe.desired().inbound.exit.rules if not rule.allow]
    assert ip_network("203.0.113.0/24") in closed[-1]
    assert ip_network("0.0.0.0/0") not in closed[-1]


def test_a_budget_that_is_spent_ends_the_offer_also_after_a_restart(cafe: Cafe) -> None:
    cafe.offer("members", budget=0.001)  # a million bytes
    cafe.use(cafe.bob, 400_000, 100_000)
    assert cafe.heard(cafe.bob) is not None
    cafe.use(cafe.bob, 700_000, 300_000)
    stored = cafe.alice.records["policy"]
    cafe.mesh.run(3)
    assert cafe.clients()["state"] == "spent"
    assert cafe.heard(cafe.bob) is None
    assert cafe.desired().inbound.exit.sources == frozenset()
    settings = cafe.alice.node.exit_offer.settings
    assert settings is not None
    again = ExitOffering()
    assert again.restore(stored) is None
    assert again.is_spent
    assert again.settings == settings


def test_what_guests_had_is_shown(cafe: Cafe) -> None:
    cafe.offer("members")
    cafe.use(cafe.bob, 0, 0)
    cafe.mesh.run(10)
    cafe.use(cafe.bob, 50_000, 900_000)
    shown = {one["name"]: one for one in cafe.clients()["clients"]}
    assert (shown["bob"]["up"], shown["bob"]["down"], shown["bob"]["uses"]) == (
        50_000,
        900_000,
        True,
    )
    assert 80_000 < shown["bob"]["rate_down"] < 100_000
    assert not shown["carol"]["uses"]
    assert cafe.clients()["month_bytes"] == 950_000


def test_damaged_settings_offer_nothing() -> None:
    damaged: list[dict[str, object]] = [{"exit_offer": {}}, {"exit_offer": 5}, {"exit_used": []}]
    for records in damaged:
        offering = ExitOffering()
        assert offering.restore(records)
        assert offering.settings is None


def test_the_settings_that_are_stored_are_taken_up_again(cafe: Cafe) -> None:
    cafe.offer("members", allow=["tcp/22"], deny=["192.0.2.0/24"], budget=5.0, bandwidth=100.0)
    settings = cafe.alice.node.exit_offer.settings
    assert settings is not None
    again = ExitOffering()
    assert again.restore({"exit_offer": settings.to_json()}) is None
    assert again.settings == settings
    assert again.rate == cafe.alice.node.exit_offer.rate


@pytest.mark.parametrize(
    "finished",
    [
        ReconcileFinished(meter_error="nft: no such table"),
        ReconcileFinished(gateway_error="nft: no such table"),
    ],
)
def test_guests_that_are_not_let_through_are_a_problem_in_status(
    cafe: Cafe, finished: ReconcileFinished
) -> None:
    cafe.offer("members")
    cafe.mesh.step(cafe.alice, finished)
    found = {item["code"]: item for item in cafe.mesh.status(cafe.alice)["problems"]}
    assert "no such table" in found["exit_offer_failed"]["text"]
    assert "routes_refused" not in found
    cafe.mesh.step(cafe.alice, ReconcileFinished())
    found = {item["code"]: item for item in cafe.mesh.status(cafe.alice)["problems"]}
    assert "exit_offer_failed" not in found


def test_a_firewall_that_drops_what_guests_send_is_said_with_what_helps(cafe: Cafe) -> None:
    cafe.offer("members")
    obstacle = ("ip filter FORWARD", "sudo ufw route allow in on nv0")
    cafe.mesh.step(cafe.alice, ReconcileFinished(forward_obstacle=obstacle))
    found = {item["code"]: item for item in cafe.mesh.status(cafe.alice)["problems"]}
    assert "guests" in found["exit_offer_blocked"]["text"]
    assert obstacle[1] in found["exit_offer_blocked"]["hint"]
    assert "routes_blocked" not in found
    assert cafe.clients()["state"] == "blocked"


PROVIDER = {
    "private_key": b64encode(bytes([7] * 32)).decode(),
    "public_key": b64encode(bytes([9] * 32)).decode(),
    "preshared_key": None,
    "endpoint": ["192.0.2.9", 51820],
    "keepalive": 0,
    "allowed": ["0.0.0.0/0", "::/0"],
    "addresses": ["10.9.0.2/32", "fd99::2/128"],
    "dns": [],
    "mtu": 1420,
}


def test_a_provider_that_does_not_answer_ends_the_offer_until_it_does(cafe: Cafe) -> None:
    cafe.offer("members", upstream=PROVIDER)
    told = cafe.heard(cafe.bob)
    assert told is not None
    assert told.versions == frozenset({4, 6})
    cafe.mesh.call(cafe.bob, "exit_use", **USE | {"peer": "auto"})

    def reads(received: int, sent: int) -> None:
        cafe.mesh.step(cafe.alice, ExitUsed({}, (received, sent)))
        cafe.mesh.run(5)

    reads(5_000, 1_000)
    for second in range(5):
        reads(5_000, 10_000 + second)
    told = cafe.heard(cafe.bob)
    assert told is not None
    assert (told.versions, told.down) == (frozenset(), "provider")
    assert cafe.desired().inbound.exit.sources == frozenset()
    # Guests send nothing any more; WireGuard itself goes on asking.
    assert [p.persistent_keepalive for p in cafe.desired().upstream_device.peers] == [25]
    assert "provider does not answer" in cafe.clients()["text"]
    assert "provider does not answer" in cafe.mesh.call(cafe.bob, "exit_status")["text"]
    [listed] = cafe.mesh.call(cafe.bob, "exit_list")["exits"]
    assert listed["state"] == "down"
    reads(5_100, 10_300)
    assert (told := cafe.heard(cafe.bob)) is not None
    assert (told.versions, told.down) == (frozenset({4, 6}), "")
    assert [p.persistent_keepalive for p in cafe.desired().upstream_device.peers] == [0]
    assert cafe.desired().inbound.exit.sources == cafe.addresses(cafe.bob, cafe.carol)


def test_a_provider_named_anew_begins_anew(cafe: Cafe) -> None:
    cafe.offer("members", upstream=PROVIDER)
    for second in range(6):
        cafe.mesh.step(cafe.alice, ExitUsed({}, (5_000, 1_000 * (1 + second))))
        cafe.mesh.run(5)
    assert cafe.clients()["state"] == "no_way_out"
    cafe.offer("members", upstream=PROVIDER)
    assert cafe.clients()["state"] == "offered"


def test_the_providers_link_is_not_taken_for_that_of_a_network(cafe: Cafe) -> None:
    node = cafe.alice.node
    tunnel = replace(node.settings.tunnel, alias=f"{ALIAS_MARK} /var/lib/nostrvpn")
    node.settings = replace(node.settings, tunnel=tunnel)
    cafe.offer("members", upstream=PROVIDER)
    desired = cafe.desired()
    assert home_of(desired.host.alias) == "/var/lib/nostrvpn"
    # Else it would be left alone as another node's.
    assert home_of(desired.upstream.host.alias) == ""
