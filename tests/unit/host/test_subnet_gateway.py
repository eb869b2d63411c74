"""The table of a host that forwards into networks behind it."""

from __future__ import annotations

from ipaddress import ip_network

from nostrvpn.host.firewall import table_name
from nostrvpn.host.inbound import inbound_table
from nostrvpn.host.subnet_gateway import Gateway, gateway_marks, gateway_table, render_gateway

LAN4, LAN6 = ip_network("192.168.5.0/24"), ip_network("fd55::/64")
OVERLAY = frozenset({ip_network("10.77.0.0/16"), ip_network("fdaa::/48")})
BOTH = Gateway(frozenset({LAN4, LAN6}), OVERLAY)


def masquerades(gateway: Gateway) -> list[str]:
    text = render_gateway(gateway, "nv0", (), (), ())
    return [line.strip().partition(" comment")[0] for line in text.splitlines() if "masq" in line]


def test_only_members_are_hidden_and_only_towards_shared_networks() -> None:
    assert masquerades(BOTH) == [
        'oifname != "nv0" ip saddr { 10.77.0.0/16 } ip daddr { 192.168.5.0/24 } masquerade',
        'oifname != "nv0" ip6 saddr { fdaa::/48 } ip6 daddr { fd55::/64 } masquerade',
    ]
    assert masquerades(Gateway(BOTH.networks, OVERLAY, snat=False)) == []
    assert len(masquerades(Gateway(frozenset({LAN4}), OVERLAY))) == 1


def test_networks_within_each_other_are_one_element() -> None:
    """nft refuses a set with overlapping ranges, and with it the whole table."""
    within = Gateway(frozenset({LAN4, ip_network("192.168.5.0/25"), LAN6}), OVERLAY)
    assert masquerades(within) == masquerades(BOTH)


def test_what_was_off_is_written_into_the_table() -> None:
    text = render_gateway(BOTH, "nv0", ("lan", "nv0"), ("lan",), ("eth0",))
    assert 'set routed4 { type ifname; elements = { "lan", "nv0" }; }' in text
    assert 'set routed6 { type ifname; elements = { "lan" }; }' in text
    assert 'set advertised { type ifname; elements = { "eth0" }; }' in text
    assert "set opened { type nf_proto; elements = { ipv6 }; }" in text
    nothing = render_gateway(BOTH, "nv0", (), (), ())
    assert "elements" not in nothing


def test_marks_tell_rulesets_apart() -> None:
    others = [
        Gateway(frozenset({LAN4}), OVERLAY),
        Gateway(BOTH.networks, OVERLAY, snat=False),
        Gateway(BOTH.networks, frozenset({ip_network("10.78.0.0/16")})),
    ]
    marks = {gateway_marks(gateway, "nv0") for gateway in (BOTH, *others)}
    assert len(marks) == 4
    assert gateway_marks(BOTH, "nv1") not in marks
    [mark] = set(gateway_marks(BOTH, "nv0"))
    assert render_gateway(BOTH, "nv0", (), (), ()).count(mark) == len(gateway_marks(BOTH, "nv0"))


def test_the_tables_of_an_interface_have_names_of_their_own() -> None:
    assert len({kind("nv0") for kind in (table_name, inbound_table, gateway_table)}) == 3


def test_what_is_asked_in_words() -> None:
    assert Gateway().summary == "removed"
    assert "192.168.5.0/24" in BOTH.summary
    assert BOTH.versions == {4, 6}
