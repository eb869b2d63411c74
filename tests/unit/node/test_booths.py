"""A node that runs commands through an exit: who gets a booth, for how long, what the kernel is told."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from nostrvpn.host.booth import MAX_BOOTHS, BoothWay
from nostrvpn.host.exit_routing import ExitRouting
from nostrvpn.host.shield import Shield
from nostrvpn.machine import Tick
from nostrvpn.node.booths import PATIENCE_S
from nostrvpn.node.desired import Desired
from nostrvpn.node.events import ReconcileFinished, Refuse
from tests.unit.node.test_exits import EVERYWHERE, Abroad

OVERLAP = ip_network("10.0.0.0/8")


@pytest.fixture
def abroad() -> Abroad:
    return Abroad()


def begin(abroad: Abroad, peer: str = "fra", *taken: int) -> Any:
    return abroad.call(abroad.me, "exec_begin", peer=peer, taken=list(taken))


def refusal(abroad: Abroad, peer: str) -> Refuse:
    return abroad.refusal("exec_begin", peer=peer, taken=[])


def desired(abroad: Abroad) -> Desired:
    return abroad.node.desired(abroad.now)


def looked(abroad: Abroad, *links: str) -> None:
    """The reconciler has seen these links."""
    abroad.step(abroad.me, ReconcileFinished(booths=frozenset(links)))


def made(abroad: Abroad, link: str) -> None:
    abroad.call(abroad.me, "exec_ready", link=link)
    looked(abroad, link)


def test_a_command_is_led_to_the_exit_while_the_host_keeps_its_own_way(abroad: Abroad) -> None:
    assert desired(abroad).booths == BoothWay()
    assert desired(abroad).gateway.is_empty
    answer = begin(abroad)
    assert (answer["link"], answer["exit"], answer["versions"]) == ("nvxec0", "fra", [4, 6])
    now = desired(abroad)
    assert now.booths.links == {"nvxec0"}
    assert now.booths.versions == {4, 6}
    roster = abroad.node.membership.roster
    assert roster is not None
    at = roster.address(abroad.fra.secret.public_key)
    assert now.booths.resolvers == {at.ipv4, at.ipv6}
    assert sorted(answer["resolvers"]) == sorted(map(str, now.booths.resolvers))
    assert all(any(ip in network for network in now.booths.overlay) for ip in (at.ipv4, at.ipv6))
    assert abroad.prefixes(abroad.fra) >= EVERYWHERE
    assert not abroad.prefixes(abroad.ams) & EVERYWHERE
    # The host itself: as before.
    assert abroad.kernel() == (Shield(), ExitRouting())
    assert abroad.state == "off"
    # It forwards, for these links only.
    assert now.gateway.versions == {4, 6}
    assert not now.gateway.networks
    assert now.inbound is not None
    assert now.inbound.booths == {"nvxec0"}
    assert now.firewall.clamp_forwarded
    abroad.call(abroad.me, "exec_end", link="nvxec0")
    assert desired(abroad).booths == BoothWay()
    assert desired(abroad).gateway.is_empty
    assert not abroad.prefixes(abroad.fra) & EVERYWHERE


def test_a_booth_ends_with_its_link(abroad: Abroad) -> None:
    begin(abroad)
    looked(abroad)  # before the link is there
    assert desired(abroad).booths.links == {"nvxec0"}
    made(abroad, "nvxec0")
    assert desired(abroad).booths.links == {"nvxec0"}
    looked(abroad)
    assert desired(abroad).booths.is_empty


def test_a_look_that_began_before_the_link_was_there_ends_nothing(abroad: Abroad) -> None:
    begin(abroad)
    abroad.call(abroad.me, "exec_ready", link="nvxec0")
    looked(abroad)
    assert desired(abroad).booths.links == {"nvxec0"}
    looked(abroad)
    assert desired(abroad).booths.is_empty


def test_what_is_not_known_of_the_links_ends_nothing(abroad: Abroad) -> None:
    begin(abroad)
    made(abroad, "nvxec0")
    for _ in range(3):
        abroad.step(abroad.me, ReconcileFinished(booths=None))
    assert desired(abroad).booths.links == {"nvxec0"}


def test_a_link_that_never_comes_is_not_waited_for(abroad: Abroad) -> None:
    begin(abroad)
    assert abroad.node.booths.deadline is not None
    abroad.now += PATIENCE_S
    abroad.step(abroad.me, Tick())
    assert desired(abroad).booths.is_empty
    assert abroad.node.booths.deadline is None


def test_each_command_has_a_number_that_nobody_else_has(abroad: Abroad) -> None:
    links = [begin(abroad, "fra", 1, 2)["link"] for _ in range(3)]
    assert links == ["nvxec0", "nvxec3", "nvxec4"]
    abroad.call(abroad.me, "exec_end", link="nvxec3")
    assert begin(abroad)["link"] == "nvxec1"
    for _ in range(MAX_BOOTHS - 3):
        begin(abroad)
    assert f"{MAX_BOOTHS} commands" in refusal(abroad, "fra").text


def test_there_is_one_exit_at_a_time(abroad: Abroad) -> None:
    begin(abroad)
    assert "a command runs through fra" in refusal(abroad, "ams").text
    refused = abroad.refusal(
        "exit_use", peer="ams", kill_switch=None, allow_lan=None, resolver=None, dry_run=False
    )
    assert "a command runs through fra" in refused.text
    abroad.connect(abroad.fra)
    assert desired(abroad).booths.links == {"nvxec0"}
    assert begin(abroad, "auto")["exit"] == "fra"
    abroad.call(abroad.me, "exec_end", link="nvxec0")
    abroad.call(abroad.me, "exec_end", link="nvxec1")
    assert "this host uses fra" in refusal(abroad, "ams").text
    assert begin(abroad)["exit"] == "fra"


def test_auto_says_nothing_while_the_host_uses_no_exit(abroad: Abroad) -> None:
    assert "uses no exit" in refusal(abroad, "auto").text


def test_when_the_host_chooses_another_exit_a_command_does_not_follow(abroad: Abroad) -> None:
    begin(abroad)
    made(abroad, "nvxec0")
    abroad.use("auto")
    for _ in range(4):
        abroad.answers(abroad.fra, None)
        abroad.answers(abroad.ams)
        abroad.now += 1.0
    assert abroad.node.exits.used == abroad.ams.secret.public_key
    assert desired(abroad).booths.is_empty
    assert not abroad.prefixes(abroad.fra) & EVERYWHERE


def test_a_command_ends_with_the_permission_to_use_the_exit(abroad: Abroad) -> None:
    begin(abroad)
    made(abroad, "nvxec0")
    abroad.offer(abroad.fra, None)
    abroad.step(abroad.me, Tick())
    assert desired(abroad).booths.is_empty
    assert "does not offer" in refusal(abroad, "fra").text


def test_in_lockdown_there_is_no_command(abroad: Abroad) -> None:
    begin(abroad)
    abroad.off("lockdown")
    assert desired(abroad).booths.is_empty
    assert "lockdown" in refusal(abroad, "fra").text


def test_damaged_settings_let_no_command_out(abroad: Abroad) -> None:
    abroad.node.exits.damage = "not JSON"
    assert "damaged" in refusal(abroad, "fra").text


def test_the_resolver_that_was_chosen_is_asked(abroad: Abroad) -> None:
    abroad.connect(abroad.fra, resolver="9.9.9.9")
    abroad.off("on")
    assert begin(abroad)["resolvers"] == ["9.9.9.9"]
