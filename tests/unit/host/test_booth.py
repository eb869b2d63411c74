"""Booths as values: names, addresses, rules, and what the script lets through."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from nostrvpn.host.booth import (
    BOOTH_NETWORKS,
    MAX_BOOTHS,
    Booth,
    BoothWay,
    booth_alias,
    booth_marks,
    booth_number,
    booth_rules,
    render_booths,
)
from nostrvpn.host.exit_routing import RULE_PRIORITIES
from nostrvpn.host.state import MAX_INTERFACE_NAME, is_interface_name, is_marked

WAY = BoothWay(
    frozenset({Booth(0), Booth(7)}),
    frozenset({4, 6}),
    frozenset({ip_address("10.64.0.2"), ip_address("fd64::2")}),
    frozenset({ip_network("10.64.0.0/16"), ip_network("fd64::/48")}),
)


def test_every_booth_has_a_name_and_addresses_of_its_own() -> None:
    booths = [Booth(number) for number in range(MAX_BOOTHS)]
    assert all(is_interface_name(b.link) and len(b.link) <= MAX_INTERFACE_NAME for b in booths)
    assert [booth_number(b.link) for b in booths] == list(range(MAX_BOOTHS))
    addresses = [a.ip for b in booths for a in (*b.outside, *b.inside)]
    assert len(set(addresses)) == 4 * MAX_BOOTHS
    for booth in booths:
        for outside, inside, network in zip(
            booth.outside, booth.inside, BOOTH_NETWORKS, strict=True
        ):
            assert outside.network == inside.network
            assert outside.network.num_addresses == 2
            assert outside.ip in network
    with pytest.raises(ValueError, match="no booth"):
        Booth(MAX_BOOTHS)


@pytest.mark.parametrize(
    "name",
    ["", "eth0", "nvxec", "nvxec32", "nvxec01", "nvxec-1", "nvxec1x", "nvxec\u00b2", "nvpn0"],
)
def test_other_links_are_no_booths(name: str) -> None:
    assert booth_number(name) is None


def test_the_alias_says_that_it_is_ours_and_where_it_leads() -> None:
    assert is_marked(booth_alias("nvpn0"))
    assert booth_alias("nvpn0") != booth_alias("nvpn1")


def test_every_link_has_its_rule_in_both_versions_whatever_the_exit_carries() -> None:
    rules = booth_rules(BoothWay(WAY.booths, frozenset({6})))
    assert {(rule.version, rule.link) for rule in rules if rule.link} == {
        (version, link) for version in (4, 6) for link in ("nvxec0", "nvxec7")
    }
    assert len({rule for rule in rules if not rule.link}) == 4
    # Before the host's own rules of an exit, which lead elsewhere.
    assert max(rule.priority for rule in rules) < min(RULE_PRIORITIES)
    assert booth_rules(BoothWay()) == frozenset()


def test_the_script_names_each_rule_and_changes_with_each_value() -> None:
    script = render_booths(WAY, "nvpn0")
    mark = booth_marks(WAY, "nvpn0")[0]
    assert script.count(mark) == len(booth_marks(WAY, "nvpn0"))
    for other in (
        BoothWay(WAY.booths, frozenset({4}), WAY.resolvers, WAY.overlay),
        BoothWay(WAY.booths, WAY.versions, frozenset(), WAY.overlay),
        BoothWay(WAY.booths, WAY.versions, WAY.resolvers),
        BoothWay(frozenset({Booth(1)}), WAY.versions, WAY.resolvers, WAY.overlay),
    ):
        assert booth_marks(other, "nvpn0")[0] != mark
