"""What is asked of nftables: its text, and how it is known again."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nostrvpn.endpoint import Endpoint
from nostrvpn.host.firewall import Firewall, Guard, Pin, render_firewall, rule_marks, table_name

OLD = Endpoint(ip_address("192.0.2.1"), 7000)
NEW = Endpoint(ip_address("198.51.100.1"), 51820)
OLD6 = Endpoint(ip_address("2001:db8::1"), 7000)
NEW6 = Endpoint(ip_address("2001:db8::2"), 51820)
CHANNEL = Endpoint(ip_address("127.0.0.9"), 4000)


def lines(firewall: Firewall) -> list[str]:
    return [line.strip() for line in render_firewall(firewall, "nvpn0").splitlines()]


def test_nothing_asked_is_no_table() -> None:
    assert Firewall().is_empty
    assert lines(Firewall()) == ["table inet nostrvpn_nvpn0 {}", "delete table inet nostrvpn_nvpn0"]
    assert rule_marks(Firewall(), "nvpn0") == ()
    assert Firewall(listen_port=51820).is_empty


def test_a_guard_and_a_pin_in_full() -> None:
    firewall = Firewall(51820, frozenset({Guard(OLD, NEW)}), frozenset({Pin(40000, OLD6)}), True)
    mark, *others = set(rule_marks(firewall, "nvpn0"))
    assert not others
    assert len(rule_marks(firewall, "nvpn0")) == 6
    syn = "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu"
    assert lines(firewall) == [
        "table inet nostrvpn_nvpn0 {}",
        "delete table inet nostrvpn_nvpn0",
        "table inet nostrvpn_nvpn0 {",
        "chain arriving {",
        "type filter hook prerouting priority -310; policy accept;",
        "ip6 saddr 2001:db8::1 udp sport 7000 udp dport 40000 udp checksum != 0"
        " udp dport set 51820"
        f' comment "{mark}"',
        "ip saddr 192.0.2.1 udp sport 7000 @th,96,32 != 0x2112a442"
        f' udp checksum 0 drop comment "{mark}"',
        "ip saddr 192.0.2.1 udp sport 7000 @th,96,32 != 0x2112a442"
        f' ip saddr set 198.51.100.1 udp sport set 51820 comment "{mark}"',
        "}",
        "chain leaving {",
        "type filter hook output priority mangle; policy accept;",
        "ip6 daddr 2001:db8::1 udp dport 7000 udp sport 51820 udp sport set 40000"
        f' comment "{mark}"',
        "}",
        "chain forwarded {",
        "type filter hook forward priority mangle; policy accept;",
        f'oifname "nvpn0" {syn} comment "{mark}"',
        f'iifname "nvpn0" {syn} comment "{mark}"',
        "}",
        "}",
    ]


@pytest.mark.parametrize(
    ("old", "new", "is_dropped"),
    [
        (OLD, NEW, False),
        (OLD6, NEW6, False),
        (OLD, NEW6, True),
        (OLD6, NEW, True),
        (CHANNEL, NEW, True),
        (OLD, CHANNEL, True),
    ],
)
def test_what_cannot_be_rewritten_is_dropped(
    old: Endpoint, new: Endpoint, is_dropped: bool
) -> None:
    *_, rule = [x for x in lines(Firewall(guards=frozenset({Guard(old, new)}))) if "@th" in x]
    assert (" drop " in rule) == is_dropped
    assert (" set " in rule) != is_dropped


@pytest.mark.parametrize(
    "arguments",
    [
        {"guards": frozenset({Guard(OLD, NEW), Guard(OLD, NEW6)})},
        {"listen_port": 1, "pins": frozenset({Pin(1, OLD), Pin(2, OLD)})},
        {"pins": frozenset({Pin(1, OLD)})},
    ],
)
def test_contradictions_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"twice|not known"):
        Firewall(**arguments)  # type: ignore[arg-type]


guards = st.sampled_from([(OLD, NEW), (OLD6, NEW6), (CHANNEL, NEW), (NEW, OLD)])
firewalls = st.builds(
    Firewall,
    st.sampled_from([1, 2]),
    st.frozensets(guards.map(lambda pair: Guard(*pair))),
    st.dictionaries(st.sampled_from([OLD, NEW6]), st.sampled_from([5, 6])).map(
        lambda pins: frozenset(Pin(port, remote) for remote, port in pins.items())
    ),
    st.booleans(),
)


@given(firewalls, firewalls)
def test_marks_are_equal_exactly_when_the_rules_are(one: Firewall, other: Firewall) -> None:
    same_marks = rule_marks(one, "nvpn0") == rule_marks(other, "nvpn0")
    assert same_marks == (render_firewall(one, "nvpn0") == render_firewall(other, "nvpn0"))


@given(firewalls)
def test_each_rule_carries_its_mark(firewall: Firewall) -> None:
    comments = [line for line in lines(firewall) if "comment" in line]
    assert len(comments) == len(rule_marks(firewall, "nvpn0"))
    assert firewall.is_empty == (not comments)
    assert bool(firewall.summary)


def test_names_that_an_interface_may_have_are_table_names() -> None:
    assert table_name("wg-home.1_x") == "nostrvpn_wg-home.1_x"
