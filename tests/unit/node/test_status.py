"""What status, peers and netcheck say of paths, relays and the services beside the node."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from nostrvpn.endpoint import Endpoint, parse_endpoint
from nostrvpn.node.problems import CATALOGUE
from nostrvpn.node.services import relay_document
from nostrvpn.paths.relay_offers import RelayOffer
from nostrvpn.paths.snapshot import NatReport, RelayResult, ServerReport
from nostrvpn.relaying.settings import RelaySettings
from nostrvpn.relaying.snapshot import PairSnapshot, RelaySnapshot
from nostrvpn.stun.relaying import RelayUser
from tests.sim.nodes import Host, World

SERVER = Endpoint(ip_address("192.0.2.1"), 3478)
OUTSIDE = parse_endpoint("203.0.113.9:30000")
VPS = "ab" * 32
EASY = NatReport("independent", OUTSIDE, None, (ServerReport(SERVER, OUTSIDE, 20.04),), udp_v4=True)
SILENT = NatReport("unknown", None, None, (ServerReport(SERVER, None, None),), udp_v4=False)


class Pair:
    """Two nodes that met; what the path engine says can be replaced."""

    def __init__(self) -> None:
        self.world = World()
        self.world.relay()
        self.alice, self.bob = self.world.host("alice"), self.world.host("bob")
        for host in (self.alice, self.bob):
            self.world.start(host)
        self.world.run(5)
        link = self.call("invite", npub=self.bob.secret.npub, once=False, expires_s=86_400)["link"]
        self.world.ask(self.bob, "join", link=link)
        assert self.world.run(60, lambda: self.world.is_connected(self.alice, self.bob))

    @property
    def node(self) -> Any:
        return self.alice.node

    def call(self, name: str, **arguments: object) -> Any:
        return self.world.call(self.alice, name, **arguments)

    def say(self, *, nat: NatReport = EASY, **changes: Any) -> None:
        """The path engine says this from now on."""
        link = replace(self.node.paths.snapshot(self.bob.secret.public_key), **changes)
        self.node.paths.snapshot = lambda _peer: link
        self.node.paths.nat = lambda: nat

    def problems(self) -> dict[str, dict[str, str]]:
        return {item["code"]: item for item in self.call("status")["problems"]}

    def peer(self) -> Any:
        [peer] = self.call("peers")["peers"]
        return peer


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_a_direct_peer(pair: Pair) -> None:
    peer = pair.peer()
    assert (peer["path"], peer["via"], peer["carrier"]) == ("direct", None, "udp")
    assert (peer["asleep"], peer["mtu"]) == (False, None)
    told = pair.call("why", peer="bob")
    assert told["peer"] == pair.bob.secret.npub
    assert told["summary"].startswith(f"direct to {pair.bob.address}")
    assert (told["blocks"], told["helps"]) == ([], [])
    assert set(told) == {
        *("peer", "name", "path", "via", "summary", "tried", "blocks", "helps", "next_try_in_s"),
        "search",
    }


@pytest.mark.parametrize(
    ("via", "shown"),
    [
        ("turn a.example", "turn a.example"),
        ("203.0.113.80:33001", "203.0.113.80:33001"),
        (VPS, "npub14w46h2a"),
    ],
)
def test_a_relayed_peer_is_via_somebody(pair: Pair, via: str, shown: str) -> None:
    pair.say(path="relayed", via=via, carrier="websocket", mtu=1400)
    peer = pair.peer()
    assert (peer["path"], peer["via"], peer["carrier"]) == ("relayed", shown, "websocket")
    assert peer["mtu"] == 1400
    assert pair.call("why", peer="bob")["via"] == shown
    assert pair.call("netcheck")["mtu"] == {
        "interface": 1280,
        "largest": 1400,
        "peers": {"bob": 1400},
    }


def test_a_peer_that_relays_is_called_by_its_name(pair: Pair) -> None:
    pair.say(path="relayed", via=pair.bob.secret.public_key)
    assert pair.peer()["via"] == "bob"


def test_an_unreachable_peer_says_the_first_reason_of_why(pair: Pair) -> None:
    pair.say(
        state="failed",
        path="none",
        direct_rounds=1,
        stages={"remote_described": 1.0},
        peer_nat="independent",
        next_try_in_s=34.6,
    )
    problem = pair.problems()["peer_unreachable"]
    told = pair.call("why", peer="bob")
    assert problem["text"] == f"no path to bob: {told['blocks'][0]['text']}"
    assert "`nostrvpn why bob`" in problem["hint"]
    assert told["blocks"][0]["code"] == "firewall"
    assert told["next_try_in_s"] == 34.6


@pytest.mark.parametrize("changes", [{"path": "relayed", "via": VPS}, {"asleep": True}])
def test_a_peer_that_is_relayed_or_asleep_is_no_problem(
    pair: Pair, changes: dict[str, Any]
) -> None:
    pair.say(**({"state": "failed", "path": "none"} | changes))
    assert "peer_unreachable" not in pair.problems()


def test_last_heard_is_known_from_the_peers_last_message(pair: Pair) -> None:
    pair.say(state="failed", path="none", stages={}, direct_rounds=1)
    pair.world.stop(pair.bob)
    pair.world.run(7200)
    [block] = [b for b in pair.call("why", peer="bob")["blocks"] if b["code"] == "not_heard"]
    assert block["text"].endswith("it was last heard 2 hours ago")


@pytest.mark.parametrize(
    ("mapping", "hard"),
    [
        ("independent", False),
        ("unknown", False),
        ("predictable", True),
        ("random", True),
        ("dependent", True),
    ],
)
def test_a_hard_nat_is_said(pair: Pair, mapping: str, hard: bool) -> None:
    pair.say(nat=replace(EASY, mapping=mapping))
    problems = pair.problems()
    assert ("hard_nat" in problems) == hard
    if hard:
        assert "forward UDP port 40000" in problems["hard_nat"]["hint"]


def test_silent_stun_is_blocked_udp_only_if_no_udp_works(pair: Pair) -> None:
    pair.say(nat=SILENT)
    assert {"stun_silent", "udp_blocked"} & set(pair.problems()) == {"stun_silent"}
    pair.say(nat=SILENT, path="relayed", via=VPS, carrier="websocket")
    assert {"stun_silent", "udp_blocked"} & set(pair.problems()) == {"udp_blocked"}
    told = pair.call("why", peer="bob")
    assert [block["code"] for block in told["blocks"]] == ["udp_blocked"]
    for relay in pair.world.relays.values():
        pair.world.kill(relay)
    pair.world.run(1)
    assert {"stun_silent", "udp_blocked"} & set(pair.problems()) == {"stun_silent"}


def test_services_that_fail_are_problems(pair: Pair) -> None:
    codes = {"relay_refused", "turn_failed", "port_mapping_failed", "guard_missing"}
    node = pair.node
    assert codes & set(pair.problems()) == set()
    node.relay_error = "port 33000 is taken"
    node.firewall_error = "nftables is not installed"
    node.turn_states = {"a.example": "failed: error 401", "b.example": "allocated"}
    node.port_mapping = {"error": "nobody answered"}
    problems = pair.problems()
    assert codes & set(problems) == codes - {"port_mapping_failed"}
    assert "port 33000 is taken" in problems["relay_refused"]["text"]
    assert "a.example" in problems["turn_failed"]["text"]
    assert "error 401" in problems["turn_failed"]["text"]
    node.port_mapping = {"error": "nobody answered", "required": True}
    problem = pair.problems()["port_mapping_failed"]
    assert problem["severity"] == "info"
    assert "nobody answered" in problem["text"]
    node.port_mapping |= {"external": "203.0.113.9:40000"}
    assert "port_mapping_failed" not in pair.problems()


def test_what_ails_our_own_relay_is_said_and_a_full_disk_once(pair: Pair) -> None:
    node = pair.node
    node.relay_snapshot = {"slow": None, "unsaved": None, "failures": 0, "forward_dropped": 3}
    assert not {"relay_slow", "relay_not_saved", "relay_failed"} & set(pair.problems())
    node.relay_snapshot |= {"slow": "ip filter FORWARD drops", "unsaved": "no space"}
    node.relay_snapshot |= {"failures": 7, "failure": "KeyError: 1"}
    found = pair.problems()
    assert "ip filter FORWARD drops (3 pairs so far)" in found["relay_slow"]["text"]
    assert "no space" in found["relay_not_saved"]["text"]
    assert "7 unexpected errors, the last: KeyError: 1" in found["relay_failed"]["text"]
    node.storage_error = "no space"
    assert "relay_not_saved" not in pair.problems()


def test_netcheck_invents_nothing(pair: Pair) -> None:
    told = pair.call("netcheck")
    assert told["port_mapping"] is None
    assert told["mesh_relays"] == []
    assert told["relay_service"] is None
    assert told["turn"] == []
    assert (told["udp_v4"], told["udp_v6"]) == (None, None)
    assert told["mtu"] == {"interface": 1280, "largest": None, "peers": {}}
    assert [told["nat"][name] for name in ("step", "filtering", "hairpin")] == [None] * 3


def test_netcheck_is_complete(pair: Pair) -> None:
    user = RelayUser("0" * 16, "5" * 32)
    bob = pair.node.peers[pair.bob.secret.public_key]
    bob.relay_offer = RelayOffer(bob.public_key, (OUTSIDE,), user, "wss://bob.example")
    pair.node.turn_states = {"a.example": "allocated"}
    pair.node.port_mapping = {"pcp": True, "protocol": "pcp", "external": OUTSIDE, "public": True}
    pair.node.relay_snapshot = {"pairs": 2, "bytes": 4096}
    results = (RelayResult(bob.public_key, "bound", 35.04, ""),)
    pair.say(
        nat=replace(EASY, mapping="predictable", step=2, hairpin=True, filtering="independent"),
        path="relayed",
        via=bob.public_key,
        relays=results,
    )
    told = pair.call("netcheck")
    assert (told["udp_v4"], told["udp_v6"]) == (True, None)
    assert told["nat"] | {"reflexive_v4": None} == {
        "mapping": "predictable",
        "step": 2,
        "filtering": "independent",
        "hairpin": True,
        "reflexive_v4": None,
        "reflexive_v6": None,
    }
    assert told["stun"] == [{"server": str(SERVER), "mapped": str(OUTSIDE), "rtt_ms": 20.0}]
    assert told["turn"] == [{"server": "a.example", "state": "allocated"}]
    assert told["relay_service"] == {"pairs": 2, "bytes": 4096}
    assert told["port_mapping"] == {
        "pcp": True,
        "nat_pmp": None,
        "upnp": None,
        "protocol": "pcp",
        "external": str(OUTSIDE),
        "public": True,
        "expires_in_s": None,
        "error": None,
    }
    [relay] = told["mesh_relays"]
    assert (relay["name"], relay["rtt_ms"], relay["websocket"]) == ("bob", 35.0, True)
    assert (relay["carries"], relay["endpoints"]) == (["bob"], [str(OUTSIDE)])
    assert "5" * 32 not in repr(told)
    pair.say(nat=SILENT)
    assert pair.call("netcheck")["udp_v4"] is False


def test_our_own_relay_shows_sums_and_nobody() -> None:
    pair = PairSnapshot("f" * 16, 33000, "udp4", None, 4096, 1.0)
    settings = RelaySettings(max_pairs=64, mbit_per_s=20, monthly_bytes=10**9)
    told = relay_document(RelaySnapshot((pair,), 1, "2026-11", 4096, False, settings, {"full": 2}))
    assert told == {
        "pairs": 1,
        "websockets": 1,
        "bytes": 4096,
        "month": "2026-11",
        "exhausted": False,
        "for": "members",
        "limits": {"pairs": 64, "mbit": 20, "bytes": 10**9},
        "counters": {"full": 2},
    }
    assert "f" * 16 not in repr(told)


def test_the_catalogue_is_well_formed() -> None:
    for _severity, text, hint in CATALOGUE.values():
        assert text.count("{") == text.count("}")
        assert hint.count("{") == hint.count("}")


def test_why_of_somebody_who_has_not_admitted_us_yet() -> None:
    world = World()
    world.relay()
    alice, bob = world.host("alice"), world.host("bob")
    for host in (alice, bob):
        world.start(host)
    world.run(5)
    link = world.call(alice, "invite", npub=bob.secret.npub, once=False, expires_s=86_400)["link"]
    world.stop(alice)
    assert world.call(bob, "join", link=link)["state"] == "waiting"
    told = _why(world, bob, alice)
    assert told["blocks"][0]["code"] == "joining"
    assert told["path"] == "none"
    [peer] = world.status(bob)["peers"]
    assert peer["state"] == "joining"


def test_why_of_a_member_that_is_gone() -> None:
    pair = Pair()
    pair.world.stop(pair.bob)
    pair.world.stop(pair.alice)
    pair.alice.handshakes.clear()
    pair.world.start(pair.alice)
    bob = pair.bob.secret.public_key
    assert pair.world.run(300, lambda: pair.node.paths.snapshot(bob).state == "failed")
    told = _why(pair.world, pair.alice, pair.bob)
    assert [block["code"] for block in told["blocks"]] == ["not_heard"]
    assert [item["text"] for item in told["tried"]] == [
        "its own address: no answer, bob may be off"
    ]
    assert "bob does not answer" in pair.problems()["peer_unreachable"]["text"]


def _why(world: World, host: Host, peer: Host) -> Any:
    return world.call(host, "why", peer=peer.secret.npub)
