"""The kill switch's table in every state, and what no rule of it may ever accept."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.host.exit_routing import ExitRouting, ExitRule, exit_rules
from nostrvpn.host.firewall import table_name
from nostrvpn.host.routing_tables import RoutingTable
from nostrvpn.host.shield import (
    Bypass,
    Shield,
    ShieldKind,
    render_shield,
    shield_marks,
    shield_table,
)
from nostrvpn.host.state import BYPASS_MARK, FWMARK, MARK_MASK, RELAY_MARK, IPNetwork

OVERLAY: frozenset[IPNetwork] = frozenset({ip_network("10.64.0.0/16"), ip_network("fd64::/48")})
BEHIND: frozenset[IPNetwork] = frozenset({ip_network("192.168.7.0/24"), ip_network("0.0.0.0/0")})
AROUND = Bypass(
    frozenset({ip_network("203.0.113.0/24")}),
    frozenset({(1000, 1005), (1003, 1010), (2000, 2000)}),
    frozenset({"user.slice/backup.service"}),
    domains=True,
)
MARKED = "meta mark & 0x00ff0000 == 0x00a50000"
# All that may be accepted without a mark on another link than the tunnel and loopback: the list of
# docs/security.md, line by line.
LISTED = {
    "icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } "
    "ip6 hoplimit 255 accept",
    "meta nfproto ipv4 udp sport 68 udp dport 67 accept",
    "ip6 saddr fe80::/10 ip6 daddr { fe80::/10, ff02::1:2, ff05::1:3 } "
    "udp sport 546 udp dport 547 accept",
    'iifname "nv0" ip daddr @behind4 accept',
    'iifname "nv0" ip6 daddr @behind6 accept',
}
LISTED_LAN = {
    "ip daddr { 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 169.254.0.0/16, 224.0.0.0/4, "
    "255.255.255.255/32 } accept",
    "ip6 daddr { fc00::/7, fe80::/10, ff00::/8 } accept",
}
LISTED_TOO_LARGE = {
    version: f"{kind} fib saddr type local ct state related ct direction reply accept"
    for version, kind in (
        (4, "icmp type destination-unreachable icmp code 4"),
        (6, "icmpv6 type packet-too-big"),
    )
}
DNS = "meta l4proto { tcp, udp } th dport { 53, 853 }"

ips = st.sampled_from(
    ["10.64.0.2", "8.8.8.8", "192.168.1.1", "fd64::2", "2001:db8::53", "fd00::53"]
)
shields = st.builds(
    Shield,
    st.sampled_from([ShieldKind.BLOCKED, ShieldKind.TUNNELLED]),
    st.sampled_from([frozenset(), OVERLAY]),
    st.frozensets(st.sampled_from([4, 6])),
    st.frozensets(ips.map(ip_address)),
    st.booleans(),
    st.sampled_from([Bypass(), AROUND, Bypass(uids=frozenset({(0, 0)})), Bypass(domains=True)]),
    st.sampled_from([0, 51820]),
    st.sampled_from([frozenset(), BEHIND]),
    link=st.sampled_from(["", "nv0b"]),
)


def chains(shield: Shield) -> dict[str, list[str]]:
    """Rules by chain, the first one of a base chain being its hook."""
    text = render_shield(shield, "nv0")
    found = {}
    for name, body in re.findall(r"\tchain (\w+) \{\n(.*?)\t\}\n", text, re.DOTALL):
        found[name] = [line.strip().partition(" comment ")[0] for line in body.splitlines()]
    return found


def accepted(made: dict[str, list[str]], chain: str, seen: tuple[str, ...] = ()) -> list[str]:
    """What a chain accepts, with the conditions of the jumps that lead there."""
    found = []
    for rule in made[chain]:
        if rule.endswith(" accept"):
            found.append(" ".join([*seen, rule]))
        elif match := re.fullmatch(r"(.*?) ?(?:jump|goto) (\w+)", rule):
            more = (*seen, match[1]) if match[1] else seen
            found += accepted(made, match[2], more)
    return found


@given(shields)
def test_no_rule_of_a_closed_state_accepts_an_unmarked_packet_outside_beyond_the_list(
    shield: Shield,
) -> None:
    made = chains(shield)
    bases = {name: rules[0] for name, rules in made.items() if rules and " hook " in rules[0]}
    for hook in ("output", "forward", "postrouting"):
        ends = [name for name, text in bases.items() if f"hook {hook}" in text and "drop;" in text]
        assert len(ends) == 1
        allowed = LISTED | (LISTED_LAN if shield.allow_lan else set())
        near = [ip for ip in shield.resolvers if ip.is_private]
        allowed |= {
            f"{'ip' if ip.version == 4 else 'ip6'} daddr {ip} {DNS} accept"
            for ip in near
            if shield.allow_lan and not ip.is_global
        }
        if shield.kind is ShieldKind.TUNNELLED:
            answers = (
                f'iifname "{shield.link or "nv0"}" meta nfproto ipv{{}} ct direction reply accept'
            )
            allowed |= {answers.format(version) for version in shield.versions}
            allowed |= {LISTED_TOO_LARGE[version] for version in shield.versions}
        for rule in accepted(made, ends[0]):
            inside = rule.startswith(('oifname "lo" ', 'oifname "nv0" ', 'oifname "nv0b" '))
            assert inside or rule == f"{MARKED} accept" or rule in allowed, rule
        # Nothing follows what is counted and held.
        assert made[ends[0]][-1].endswith(("drop", "admin-prohibited"))


@given(shields)
def test_only_whoever_goes_around_is_given_a_mark_on_his_way_out(shield: Shield) -> None:
    made = chains(shield)
    marking = [name for name, rules in made.items() if any("meta mark set" in r for r in rules)]
    outgoing = [name for name in marking if name not in ("arriving", "answering")]
    assert outgoing == ([] if shield.bypass.is_empty else ["around"])
    jumps = {r for rules in made.values() for r in rules if r.endswith("goto around")}
    assert all(
        re.match(r"(ip6? daddr @(bypass|named)|meta skuid|socket cgroupv2)", r) for r in jumps
    )


@given(shields)
def test_into_the_tunnel_goes_what_is_carried_and_dns_to_the_chosen_only(shield: Shield) -> None:
    made = chains(shield)
    rules, overlay = made["tunnel"], ["ip daddr @overlay4 accept", "ip6 daddr @overlay6 accept"]
    if shield.link:
        # The mesh keeps its tunnel, and what is carried goes into the other link.
        assert rules == overlay
        rules, overlay = made["beyond"], [rule.replace("accept", "return") for rule in overlay]
    assert rules[:2] == overlay
    if shield.kind is ShieldKind.BLOCKED or not shield.versions:
        assert rules == overlay
        return
    stop = rules.index(f"{DNS} return")
    for rule in rules[2:stop]:
        assert any(f"daddr {ip} {DNS} accept" in rule for ip in shield.resolvers)
    carried = [f"meta nfproto ipv{version} accept" for version in sorted(shield.versions)]
    assert rules[stop + 1 :] == carried


@given(shields, shields)
def test_marks_are_equal_exactly_where_the_tables_are(one: Shield, other: Shield) -> None:
    same = render_shield(one, "nv0") == render_shield(other, "nv0")
    assert (set(shield_marks(one, "nv0")) == set(shield_marks(other, "nv0"))) == same
    text = render_shield(one, "nv0", ["all"], {ip_address("192.0.2.1"): 5})
    [mark] = set(shield_marks(one, "nv0"))
    # What is remembered is no part of it.
    assert text.count(mark) == len(shield_marks(one, "nv0"))


def test_open_holds_nothing_back_outside() -> None:
    made = chains(Shield(listen_port=51820, versions=frozenset({4})))
    assert made["output"][1:3] == ['oifname != "nv0" accept', f"{MARKED} accept"]
    assert not {"forward", "routed", "leaving", "lan"} & made.keys()
    assert all("policy drop" not in rule for rules in made.values() for rule in rules)


def test_the_empty_value_is_no_table() -> None:
    assert Shield().is_empty
    assert Shield(behind=BEHIND).is_empty
    for shield in (Shield(listen_port=1), Shield(ShieldKind.BLOCKED), Shield(bypass=AROUND)):
        assert not shield.is_empty
    assert Shield().summary == "removed"


def test_a_table_remembers() -> None:
    text = render_shield(
        Shield(ShieldKind.BLOCKED, bypass=AROUND), "nv0", ["all"], {ip_address("192.0.2.1"): 5}
    )
    assert 'set unmarked { type ifname; elements = { "all" }; }' in text
    assert (
        "set named4 { type ipv4_addr; flags timeout; elements = { 192.0.2.1 timeout 5s }; }" in text
    )
    assert "set named6 { type ipv6_addr; flags timeout; }" in text


def test_ranges_of_users_are_merged_and_everywhere_is_behind_nobody() -> None:
    text = render_shield(Shield(ShieldKind.BLOCKED, bypass=AROUND, behind=BEHIND), "nv0")
    assert "meta skuid { 1000-1010, 2000 } goto around" in text
    assert 'socket cgroupv2 level 2 "user.slice/backup.service" goto around' in text
    assert "elements = { 192.168.7.0/24 }" in text


def test_marks_of_ours_can_be_told_apart() -> None:
    for mark in (FWMARK, BYPASS_MARK, RELAY_MARK):
        assert mark & MARK_MASK == FWMARK
    # io/outer_limits.py: exactly this is WireGuard's own.
    assert len({FWMARK, BYPASS_MARK, RELAY_MARK, FWMARK | 1}) == 4
    assert BYPASS_MARK & 3 != RELAY_MARK & 3


def test_the_table_of_an_interface_has_a_name_of_its_own() -> None:
    assert shield_table("nv0") == f"{table_name('nv0')}_shield"


@pytest.mark.parametrize(("lan", "diverts"), list(product([False, True], repeat=2)))
def test_routing_trusts_main_for_nothing_public(*, lan: bool, diverts: bool) -> None:
    routing = ExitRouting(True, OVERLAY, frozenset({4}), lan, BEHIND, diverts)
    rules = exit_rules(routing)
    main = [rule for rule in rules if not rule.is_exit]
    for rule in main:
        if rule.to and not rule.inside:
            assert not ip_network(rule.to).is_global or ip_network(rule.to).is_multicast
        elif not rule.to:
            assert rule.ports in ((68, 67), (546, 547))
        assert rule.to != "0.0.0.0/0"
    assert {rule.version for rule in rules if rule.is_exit} == {4, 6}
    assert max(rule.priority for rule in main) < min(r.priority for r in rules if r.is_exit)
    assert any(rule.to == "192.168.0.0/16" for rule in main) == lan
    assert ExitRule(4632, 4, "192.168.7.0/24", inside=True) in main
    assert routing.tunnelled == (frozenset({4, 6}) if diverts else frozenset({4}))


def test_without_an_exit_there_is_no_routing() -> None:
    assert exit_rules(ExitRouting(overlay=OVERLAY)) == frozenset()
    assert ExitRouting(versions=frozenset({4})).tunnelled == frozenset()
    assert ExitRouting().summary == "removed"


def test_tables_of_interfaces_differ_and_are_known_as_ours() -> None:
    assert RoutingTable.EXIT.number("nv0") != RoutingTable.EXIT.number("nv1")
    assert RoutingTable.EXIT.includes(RoutingTable.EXIT.number("nv0"))
    assert not RoutingTable.EXIT.includes(254)
    assert not RoutingTable.EXIT.includes(0x9D000000)
