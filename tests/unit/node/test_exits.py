"""A node that uses an exit: its commands, which state holds, what the kernel and status are told."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from nostrvpn.exits.choice import LEAVE_LOSSES, LOSSES
from nostrvpn.exits.kill_switch import ExitState
from nostrvpn.exits.offer import ExitOffer, offer_to_json
from nostrvpn.exits.settings import ExitSettings
from nostrvpn.host.exit_routing import ExitRouting
from nostrvpn.host.shield import Bypass, Shield, ShieldKind
from nostrvpn.machine import Tick
from nostrvpn.node.events import ExitProbed, HostChanged, Persist, ReconcileFinished, Refuse
from nostrvpn.node.node import Node
from nostrvpn.paths.candidates import LocalAddress
from tests.sim.nodes import Host
from tests.unit.node.small_mesh import SmallMesh

EVERYWHERE = {ip_network("0.0.0.0/0"), ip_network("::/0")}
HOME = "aa:bb:cc:dd:ee:ff 192.168.1.0/24"
OFFER = ExitOffer(True, True, True, "web", "DE", 10)


class Abroad(SmallMesh):
    """``me`` is a member with two others that offer to be its exit."""

    def __init__(self) -> None:
        super().__init__("me", "fra", "ams")
        self.me, self.fra, self.ams = self.all
        for host in (self.fra, self.ams):
            self.offer(host, OFFER)

    @property
    def node(self) -> Node:
        node = self.me.node
        assert isinstance(node, Node)
        return node

    def offer(self, host: Host, offer: ExitOffer | None) -> None:
        """``host`` says this of itself from now on, and ``me`` has heard it."""
        told = None if offer is None else offer_to_json(offer)
        host.node.outbox.exit_for = lambda _peer: told
        self.node.peers[host.secret.public_key].exit = offer

    def answers(self, host: Host, rtt_ms: float | None = 20.0) -> None:
        self.step(self.me, ExitProbed(host.secret.public_key, rtt_ms))

    def use(self, peer: str, **given: Any) -> Any:
        options = {"kill_switch": None, "allow_lan": None, "resolver": None, "dry_run": False}
        return self.call(self.me, "exit_use", peer=peer, **(options | given))

    def off(self, kill_switch: str | None = None) -> Any:
        return self.call(self.me, "exit_off", kill_switch=kill_switch)

    def connect(self, host: Host, **given: Any) -> Any:
        answer = self.use(host.name, **given)
        self.answers(host)
        return answer

    def refusal(self, command: str, **args: Any) -> Refuse:
        answer = self.ask(self.me, command, **args)
        assert isinstance(answer, Refuse), answer
        return answer

    @property
    def state(self) -> str:
        return self.node.exits.state.value

    def kernel(self) -> tuple[Shield, ExitRouting]:
        desired = self.node.desired(self.now)
        return desired.shield, desired.exit_routing

    def prefixes(self, host: Host) -> frozenset[Any]:
        peers = self.node.desired(self.now).device.peers
        found = [p.allowed_ips for p in peers if p.public_key == host.wireguard_key]
        return frozenset(found[0]) if found else frozenset()

    def problems(self) -> set[str]:
        return {item["code"] for item in self.status(self.me)["problems"]}


@pytest.fixture
def abroad() -> Abroad:
    return Abroad()


# -- what the kernel is told ----------------------------------------------------------------


def test_without_an_exit_nothing_is_asked_of_the_kernel(abroad: Abroad) -> None:
    assert abroad.kernel() == (Shield(), ExitRouting())
    assert not abroad.prefixes(abroad.fra) & EVERYWHERE
    assert abroad.node.exits.probes(abroad.node) == []
    assert abroad.status(abroad.me)["exit"]["state"] == "off"


@pytest.mark.parametrize("kill_switch", ["on", "lockdown"])
def test_while_connecting_all_is_blocked_and_then_it_leaves_through_the_exit(
    abroad: Abroad, kill_switch: str
) -> None:
    answer = abroad.use("fra", kill_switch=kill_switch)
    assert answer["state"] == "connecting"
    shield, routing = abroad.kernel()
    assert (shield.kind, shield.versions) == (ShieldKind.BLOCKED, frozenset())
    assert (routing.active, routing.versions) == (True, frozenset())
    abroad.answers(abroad.fra)
    assert abroad.state == ExitState.CONNECTED.value
    shield, routing = abroad.kernel()
    assert (shield.kind, shield.versions) == (ShieldKind.TUNNELLED, frozenset({4, 6}))
    assert (routing.active, routing.versions) == (True, frozenset({4, 6}))
    assert shield.listen_port == 40_000
    roster = abroad.node.membership.roster
    assert roster is not None
    at = roster.address(abroad.fra.secret.public_key)
    assert shield.resolvers == {at.ipv4, at.ipv6}
    assert all(at.ipv6 in n or at.ipv4 in n for n in shield.overlay)
    for _ in range(LOSSES):
        abroad.answers(abroad.fra, None)
    assert abroad.state == ExitState.CONNECTING.value
    assert abroad.kernel()[0].kind is ShieldKind.BLOCKED


def test_without_kill_switch_only_routes_lead_into_the_tunnel(abroad: Abroad) -> None:
    abroad.use("fra", kill_switch="off")
    shield, routing = abroad.kernel()
    assert (shield.kind, routing.active, routing.versions) == (ShieldKind.OPEN, True, frozenset())
    abroad.answers(abroad.fra)
    shield, routing = abroad.kernel()
    assert (shield.kind, routing.versions) == (ShieldKind.OPEN, frozenset({4, 6}))


def test_lockdown_stays_without_an_exit_until_it_is_ended(abroad: Abroad) -> None:
    abroad.connect(abroad.fra, kill_switch="lockdown")
    assert abroad.off()["state"] == "lockdown"
    shield, routing = abroad.kernel()
    assert (shield.kind, routing) == (ShieldKind.BLOCKED, ExitRouting())
    assert "exit_lockdown" in abroad.problems()
    assert abroad.node.exits.shield_after_down.kind is ShieldKind.BLOCKED
    assert abroad.node.desired(abroad.now).shield_at_boot == Shield(ShieldKind.BLOCKED)
    assert abroad.off("off")["state"] == "off"
    assert abroad.kernel() == (Shield(), ExitRouting())
    assert abroad.node.exits.shield_after_down.is_empty
    assert abroad.node.desired(abroad.now).shield_at_boot.is_empty


def test_the_exit_gets_everything_and_nothing_of_the_mesh_is_led_astray(abroad: Abroad) -> None:
    before = abroad.node.desired(abroad.now).device
    abroad.connect(abroad.fra)
    assert abroad.prefixes(abroad.fra) >= EVERYWHERE
    assert not abroad.prefixes(abroad.ams) & EVERYWHERE
    # A member that WireGuard does not know: its addresses belong to nobody, not to the exit.
    abroad.node.peers[abroad.ams.secret.public_key].wireguard_key = None
    desired = abroad.node.desired(abroad.now)
    held = {prefix: p.public_key for p in desired.device.peers for prefix in p.allowed_ips}
    roster = abroad.node.membership.roster
    assert roster is not None
    at = roster.address(abroad.ams.secret.public_key)
    for ip in (at.ipv4, at.ipv6):
        widths = [n for n in held if n.version == ip.version and ip in n]
        best = max(widths, key=lambda network: network.prefixlen)
        assert best.prefixlen > 0
        assert held[best] not in (abroad.fra.wireguard_key, abroad.ams.wireguard_key)
    abroad.off()
    abroad.node.peers[abroad.ams.secret.public_key].wireguard_key = abroad.ams.wireguard_key
    assert abroad.node.desired(abroad.now).device == before


def test_an_accepted_network_stays_with_its_router(abroad: Abroad) -> None:
    lan = ip_network("192.168.77.0/24")
    abroad.connect(abroad.fra)
    abroad.node.subnets.choice.used[lan] = abroad.ams.secret.public_key
    desired = abroad.node.desired(abroad.now)
    assert lan in abroad.prefixes(abroad.ams)
    assert lan in desired.shield.overlay
    assert lan in desired.exit_routing.overlay


def test_a_wide_path_of_another_member_does_not_widen_what_goes_to_the_exit(abroad: Abroad) -> None:
    abroad.connect(abroad.fra)
    peers = abroad.node.peers
    peers[abroad.fra.secret.public_key].mtu = None
    peers[abroad.ams.secret.public_key].mtu = 9000
    assert abroad.node.desired(abroad.now).host.mtu == 1280
    peers[abroad.fra.secret.public_key].mtu = 1500
    assert abroad.node.desired(abroad.now).host.mtu == 1440


def test_an_exit_without_ipv6_blocks_it(abroad: Abroad) -> None:
    abroad.offer(abroad.fra, replace(OFFER, v6=False))
    abroad.connect(abroad.fra)
    shield, routing = abroad.kernel()
    assert shield.versions == routing.versions == {4}
    assert abroad.prefixes(abroad.fra) >= EVERYWHERE
    assert "exit_no_v6" in abroad.problems()


def test_without_our_ipv4_address_the_exit_carries_ipv6_only(abroad: Abroad) -> None:
    roster = abroad.node.membership.roster
    assert roster is not None
    abroad.connect(abroad.fra)
    mine = roster.address(abroad.node.me).ipv4
    host = ip_network(f"{mine}/16", strict=False)
    address = LocalAddress(abroad.me.address.ip, "eth0", 24)
    abroad.step(abroad.me, HostChanged((address,), routes=frozenset({host})))
    shield, _ = abroad.kernel()
    assert shield.versions == {6}
    assert all(ip.version == 6 for ip in shield.resolvers)
    assert "exit_no_v4" in abroad.problems()


def test_who_goes_around_is_told_and_not_in_lockdown(abroad: Abroad) -> None:
    words = ["203.0.113.0/24", "example.org", "uid:1000-1010", "cgroup:user.slice/a.service"]
    abroad.call(abroad.me, "exit_bypass", action="add", words=words)
    abroad.connect(abroad.fra)
    shield, routing = abroad.kernel()
    assert shield.bypass == Bypass(
        frozenset({ip_network("203.0.113.0/24")}),
        frozenset({(1000, 1010)}),
        frozenset({"user.slice/a.service"}),
        True,
    )
    assert routing.diverts
    assert abroad.node.exits.bypass_domains == {"example.org"}
    abroad.off("lockdown")
    assert abroad.kernel()[0].bypass.is_empty


def test_a_chosen_resolver_is_the_only_one(abroad: Abroad) -> None:
    abroad.connect(abroad.fra, resolver="9.9.9.9")
    assert abroad.kernel()[0].resolvers == {ip_address("9.9.9.9")}
    abroad.use("fra", resolver="exit")
    assert ip_address("9.9.9.9") not in abroad.kernel()[0].resolvers
    abroad.offer(abroad.fra, replace(OFFER, dns=False))
    abroad.run(1)
    assert abroad.kernel()[0].resolvers == set()
    assert "exit_dns" in abroad.problems()


# -- the life of an exit --------------------------------------------------------------------


def test_what_is_withdrawn_or_whose_member_is_removed_blocks(abroad: Abroad) -> None:
    abroad.connect(abroad.fra)
    abroad.offer(abroad.fra, None)
    abroad.answers(abroad.fra)
    assert abroad.state == ExitState.BLOCKED.value
    assert abroad.kernel()[0].kind is ShieldKind.BLOCKED
    assert not abroad.prefixes(abroad.fra) & EVERYWHERE
    assert "exit_not_permitted" in abroad.problems()
    abroad.offer(abroad.fra, OFFER)
    abroad.connect(abroad.fra)
    assert abroad.state == ExitState.CONNECTED.value
    abroad.call(abroad.me, "peer_remove", peer="fra")
    assert abroad.state == ExitState.BLOCKED.value
    assert (
        "no member" in abroad.status(abroad.me)["exit"]["text"]
        or "not a member" in (abroad.status(abroad.me)["exit"]["text"])
    )


def test_connected_is_what_the_kernel_has(abroad: Abroad) -> None:
    abroad.use("fra")
    uses = abroad.node.exits

    def shown() -> Any:
        return abroad.call(abroad.me, "exit_status")["state"]

    abroad.step(abroad.me, ReconcileFinished(exit_changes=uses.changes))
    assert shown() == ExitState.CONNECTING.value
    before = uses.changes
    abroad.answers(abroad.fra)
    assert shown() == ExitState.CONNECTING.value
    assert "kernel" in abroad.call(abroad.me, "exit_status")["text"]
    # A run that had begun before, one that failed, and one that could not hold back what it should.
    abroad.step(abroad.me, ReconcileFinished(exit_changes=before))
    abroad.step(abroad.me, ReconcileFinished("no", exit_changes=uses.changes))
    abroad.step(abroad.me, ReconcileFinished(shield_error="no", exit_changes=uses.changes))
    assert shown() == ExitState.CONNECTING.value
    abroad.step(abroad.me, ReconcileFinished(exit_changes=uses.changes))
    assert shown() == ExitState.CONNECTED.value


def test_auto_takes_the_best_and_fails_over_with_one_exit_at_any_time(abroad: Abroad) -> None:
    abroad.use("auto")
    abroad.answers(abroad.ams, 50.0)
    abroad.answers(abroad.fra, 10.0)
    assert abroad.node.exits.used == abroad.fra.secret.public_key
    for _ in range(LEAVE_LOSSES):
        abroad.answers(abroad.fra, None)
        abroad.run(0.3)
        abroad.answers(abroad.ams, 50.0)
    assert abroad.node.exits.used == abroad.ams.secret.public_key
    assert abroad.state == ExitState.CONNECTED.value
    assert not abroad.prefixes(abroad.fra) & EVERYWHERE
    assert abroad.prefixes(abroad.ams) >= EVERYWHERE
    abroad.off()
    assert abroad.node.exits.probes(abroad.node) == []


def test_nobody_offers_and_auto_blocks(abroad: Abroad) -> None:
    abroad.offer(abroad.fra, None)
    abroad.offer(abroad.ams, None)
    assert abroad.use("auto")["state"] == "blocked"
    assert "exit_blocked" in abroad.problems()


def test_an_exit_that_stays_silent_is_a_problem(abroad: Abroad) -> None:
    abroad.use("fra")
    assert "exit_unreachable" not in abroad.problems()
    abroad.run(7)
    assert "exit_unreachable" in abroad.problems()


def test_only_what_the_kernel_must_know_costs_a_reconciliation(abroad: Abroad) -> None:
    abroad.connect(abroad.fra)
    before = abroad.me.sent["Reconcile"]
    for _ in range(20):
        abroad.answers(abroad.fra, 21.0)
    assert abroad.me.sent["Reconcile"] == before


def test_an_echo_of_a_stranger_is_nothing(abroad: Abroad) -> None:
    abroad.use("fra")
    abroad.step(abroad.me, ExitProbed("f" * 64, 1.0))
    abroad.answers(abroad.ams)
    assert abroad.state == ExitState.CONNECTING.value


# -- what is remembered ---------------------------------------------------------------------


def restart(abroad: Abroad) -> None:
    for key, peer in abroad.node.peers.items():
        abroad.me.records["peer"][key] = peer.to_json()
    abroad.stop(abroad.me)
    abroad.start(abroad.me)
    abroad.step(abroad.me, ReconcileFinished())


def test_decisions_survive_a_restart_and_begin_blocked(abroad: Abroad) -> None:
    abroad.connect(abroad.fra, kill_switch="lockdown", allow_lan=True, resolver="9.9.9.9")
    abroad.call(abroad.me, "exit_bypass", action="add", words=["uid:7"])
    decided = abroad.node.exits.settings
    restart(abroad)
    assert abroad.node.exits.settings == decided
    assert abroad.state == ExitState.CONNECTING.value
    shield, _ = abroad.kernel()
    assert (shield.kind, shield.allow_lan) == (ShieldKind.BLOCKED, True)


def test_a_damaged_record_blocks_until_the_user_decides_anew(abroad: Abroad) -> None:
    abroad.connect(abroad.fra, kill_switch="off")
    abroad.me.records["policy"]["exit"] = {"kill_switch": "of"}
    restart(abroad)
    assert abroad.state == ExitState.BLOCKED.value
    shield, routing = abroad.kernel()
    assert (shield.kind, routing.active, routing.versions) == (
        ShieldKind.BLOCKED,
        True,
        frozenset(),
    )
    assert abroad.node.exits.used is None
    assert "exit_blocked" in abroad.problems()
    assert abroad.node.exits.shield_after_down.kind is ShieldKind.BLOCKED
    assert "damaged" in abroad.refusal("exit_bypass", action="list", words=[]).text
    assert abroad.off()["state"] == "off"
    assert "exit" not in abroad.me.records["policy"]


def test_nothing_is_stored_for_who_decided_nothing(abroad: Abroad) -> None:
    abroad.connect(abroad.fra)
    abroad.off()
    assert "exit" not in abroad.me.records.get("policy", {})


# -- trusted networks -----------------------------------------------------------------------


def here(abroad: Abroad, network: str) -> None:
    address = LocalAddress(abroad.me.address.ip, "eth0", 24)
    abroad.step(abroad.me, HostChanged((address,), network=network))


def test_in_a_trusted_network_no_exit_is_used_and_elsewhere_again(abroad: Abroad) -> None:
    abroad.connect(abroad.fra)
    here(abroad, HOME)
    assert abroad.state == ExitState.CONNECTED.value
    answer = abroad.call(abroad.me, "exit_trust", action="add", words=[])
    assert (answer["state"], answer["is_trusted"], answer["trusted"]) == ("off", True, [HOME])
    assert "trusted" in answer["text"]
    assert abroad.kernel() == (Shield(), ExitRouting())
    assert not abroad.prefixes(abroad.fra) & EVERYWHERE
    # Not known where we are: not at home.
    here(abroad, "")
    assert abroad.kernel()[0].kind is ShieldKind.BLOCKED
    here(abroad, HOME.replace("aa", "ab"))
    assert abroad.state == ExitState.CONNECTING.value
    here(abroad, HOME)
    assert abroad.state == ExitState.OFF.value
    abroad.call(abroad.me, "exit_trust", action="remove", words=[HOME])
    assert abroad.state == ExitState.CONNECTING.value


def test_lockdown_trusts_no_network(abroad: Abroad) -> None:
    here(abroad, HOME)
    abroad.connect(abroad.fra, kill_switch="lockdown")
    abroad.call(abroad.me, "exit_trust", action="add", words=[])
    assert abroad.state == ExitState.LOCKDOWN.value
    assert abroad.kernel()[0].kind is ShieldKind.BLOCKED


def test_a_network_that_is_not_known_cannot_be_trusted(abroad: Abroad) -> None:
    assert "not known" in abroad.refusal("exit_trust", action="add", words=[]).text
    answer = abroad.call(abroad.me, "exit_trust", action="add", words=[HOME.upper()])
    assert answer["trusted"] == [HOME]


# -- commands -------------------------------------------------------------------------------


def test_a_plan_changes_nothing_and_says_what_stays(abroad: Abroad) -> None:
    before = abroad.me.sent["Persist"]
    plan = abroad.use("fra", dry_run=True, allow_lan=True)
    assert abroad.me.sent["Persist"] == before
    assert abroad.state == ExitState.OFF.value
    assert plan["wanted"] == "fra"
    assert "192.168.0.0/16" in plan["kept"]
    assert any("fra" in line for line in plan["lines"])
    assert "from outside the mesh and the local network are cut" in plan["lines"][-1]
    without = abroad.use("fra", dry_run=True, allow_lan=False)
    assert "192.168.0.0/16" not in without["kept"]
    assert "from outside the mesh are cut" in without["lines"][-1]


def test_a_decision_is_stored_before_it_is_answered(abroad: Abroad) -> None:
    from nostrvpn.node.events import Command, Reply

    args: dict[str, object] = {"peer": "fra", "kill_switch": None, "allow_lan": None}
    args |= {"resolver": None, "dry_run": False}
    effects = abroad.node.step(Command(999, "exit_use", args), abroad.moment(abroad.me))
    kinds = [type(effect) for effect in effects]
    assert kinds.index(Persist) < kinds.index(Reply)


@pytest.mark.parametrize(
    ("command", "args", "words"),
    [
        ("exit_use", {"peer": "nobody"}, "no peer"),
        ("exit_use", {"peer": "me"}, "no peer"),
        ("exit_use", {"peer": "ams", "resolver": "127.0.0.1"}, "resolver"),
        ("exit_bypass", {"action": "add", "words": ["0.0.0.0/0"]}, "everything"),
        ("exit_bypass", {"action": "add", "words": ["what?"]}, "no address"),
        ("exit_bypass", {"action": "remove", "words": ["uid:5"]}, "not among them"),
        ("exit_trust", {"action": "add", "words": ["home"]}, "no network"),
    ],
)
def test_commands_refuse_with_a_hint_and_change_nothing(
    abroad: Abroad, command: str, args: dict[str, Any], words: str
) -> None:
    options = {"kill_switch": None, "allow_lan": None, "resolver": None, "dry_run": False}
    refused = abroad.refusal(command, **((options if command == "exit_use" else {}) | args))
    assert words in refused.text
    assert refused.hint
    assert abroad.node.exits.settings == ExitSettings()


def test_who_offers_nothing_cannot_be_used(abroad: Abroad) -> None:
    abroad.offer(abroad.fra, None)
    options = {"kill_switch": None, "allow_lan": None, "resolver": None, "dry_run": False}
    assert "does not offer" in abroad.refusal("exit_use", peer="fra", **options).text


def test_the_mesh_itself_cannot_go_around(abroad: Abroad) -> None:
    roster = abroad.node.membership.roster
    assert roster is not None
    for ip in (roster.address(abroad.node.me).ipv4, roster.address(abroad.node.me).ipv6):
        refused = abroad.refusal("exit_bypass", action="add", words=[str(ip)])
        assert "through the mesh" in refused.text


def test_exits_are_listed_with_what_they_claim_and_what_was_measured(abroad: Abroad) -> None:
    abroad.offer(abroad.ams, None)
    abroad.connect(abroad.fra)
    abroad.node.exits.countries = {abroad.fra.secret.public_key: "NL"}
    (one,) = abroad.call(abroad.me, "exit_list")["exits"]
    assert (one["name"], one["country"], one["country_observed"]) == ("fra", "DE", "NL")
    assert (one["rtt_ms"], one["load"], one["in_use"], one["state"]) == (20.0, 10, True, "answers")
    assert (one["v4"], one["v6"], one["dns"], one["policy"]) == (True, True, True, "web")


def test_status_says_it_in_words_and_json(abroad: Abroad) -> None:
    abroad.connect(abroad.fra)
    abroad.node.exits.countries = {abroad.fra.secret.public_key: "NL"}
    document = abroad.status(abroad.me)["exit"]
    assert json.dumps(document)
    assert "fra" in document["text"]
    assert "NL (it says DE)" in document["text"]
    assert document["exit"]["name"] == "fra"
    abroad.step(abroad.me, ReconcileFinished(shield_error="nft is not there"))
    assert abroad.status(abroad.me)["exit"]["shield_error"] == "nft is not there"
    assert "exit_shield_failed" in abroad.problems()


def test_behind_a_shield_the_hosts_own_networks_are_still_routed(abroad: Abroad) -> None:
    abroad.connect(abroad.fra, kill_switch="on", allow_lan=False)
    shield, routing = abroad.kernel()
    assert not shield.allow_lan
    assert routing.allow_lan
    abroad.connect(abroad.fra, kill_switch="off", allow_lan=False)
    _, routing = abroad.kernel()
    assert not routing.allow_lan


def test_an_offer_is_known_after_a_restart_however_soon(abroad: Abroad) -> None:
    key = abroad.fra.secret.public_key
    abroad.offer(abroad.fra, None)
    # Something else of it was stored a moment ago.
    abroad.node.peers[key].stored_at = abroad.now
    abroad.fra.node.outbox.exit_for = lambda _peer: offer_to_json(OFFER)
    abroad.fra.node.outbox.tell(abroad.me.secret.public_key)
    abroad.step(abroad.fra, Tick())
    assert abroad.run(5, lambda: abroad.node.peers[key].exit == OFFER)
    again = Node(abroad.node.settings, abroad.me.records, "kernel")
    assert again.peers[key].exit == OFFER
