"""The scripts of what is sold and bought: what a change costs, what is never given away by it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from typing import Any

import pytest

from nostrvpn.endpoint import parse_endpoint
from nostrvpn.exits.policy import ExitPolicy
from nostrvpn.host.bought import Bought, bought_interface, bought_marks, render_bought
from nostrvpn.host.links import own_links
from nostrvpn.host.sold import Sold, SoldLease, render_sold, sold_interface, sold_marks, sold_table
from nostrvpn.host.sold_leases import Held, alive_lines, lease_lines
from nostrvpn.host.state import is_interface_name
from nostrvpn.wireguard.device import SecretKey

TABLE = sold_table("nv0")


def lease(number: int = 0, **more: Any) -> SoldLease:
    ipv4, ipv6 = IPv4Address("198.18.0.2") + number, IPv6Address("fd77::2") + number
    key = SecretKey((number + 1 << 64).to_bytes(32, "little")).public_key
    return replace(SoldLease(f"lease {number}", key, None, ipv4, ipv6, True, 10**6), **more)


def sold(*leases: SoldLease, **more: Any) -> Sold:
    addresses = frozenset({ip_interface("198.18.0.1/16"), ip_interface("fd77::1/64")})
    rules = ExitPolicy("web").compile([], [])
    made = Sold("nv0s", 24000, SecretKey(b"\x01" * 32), addresses, 1280, rules, frozenset({4, 6}))
    return replace(made, leases=leases, **more)


class Table:
    """What is held, and the lines of the last change."""

    def __init__(self, *leases: SoldLease, **more: Any) -> None:
        self.held: dict[Any, Held] = {}
        self.now = 1000.0
        self.lines: list[str] = []
        self.sell(*leases, **more)

    def sell(self, *leases: SoldLease, **more: Any) -> list[str]:
        wanted = sold(*leases, **more)
        self.lines, self.held = lease_lines(wanted, self.held, "nv0", self.now)
        return self.lines


def test_what_did_not_change_is_no_line() -> None:
    leases = [lease(number, seconds_left=60.0, mbit=10) for number in range(1000)]
    table = Table(*leases)
    assert len(table.held) == 1000
    table.now += 30.0
    assert table.sell(*leases) == []


def test_a_change_of_one_among_a_thousand_is_a_few_lines_for_that_one() -> None:
    leases = [lease(number) for number in range(1000)]
    table = Table(*leases)
    lines = table.sell(*leases[:-1], replace(leases[-1], quota_bytes=5))
    assert 0 < len(lines) < 10
    assert all(line.split()[0] in ("add", "delete") for line in lines)
    others = {str(ip) for one in leases[:-1] for ip in one.addresses}
    assert not others & {word.strip(",") for line in lines for word in line.split()}


def test_the_same_word_of_time_left_is_no_new_time() -> None:
    table = Table(lease(seconds_left=60.0))
    end = table.held[lease().ipv4].until
    table.now += 50.0
    assert table.sell(lease(seconds_left=60.0)) == []
    # Told anew with each look, it is the same end.
    assert table.sell(lease(seconds_left=10.4)) == []
    assert table.held[lease().ipv4].until == end
    assert f"add element inet {TABLE} paid4 {{ 198.18.0.2 timeout 100000ms }}" in table.sell(
        lease(seconds_left=100.0)
    )
    assert f"add element inet {TABLE} paid4 {{ 198.18.0.2 }}" in table.sell(lease())


def test_a_table_that_is_made_anew_gives_no_time_away() -> None:
    table = Table(lease(seconds_left=60.0))
    lines, held = lease_lines(
        sold(lease(seconds_left=60.0)), {}, "nv0", table.now + 50.0, table.held
    )
    assert held[lease().ipv4].until == table.held[lease().ipv4].until
    assert f"add element inet {TABLE} paid4 {{ 198.18.0.2 timeout 10000ms }}" in lines


@pytest.mark.parametrize(
    "ended", [{"serves": False}, {"quota_bytes": 0}, {"quota_bytes": -5}, {"seconds_left": 0.0}]
)
def test_who_has_nothing_left_is_in_no_set(ended: dict[str, Any]) -> None:
    assert Table(lease(**ended)).lines == []
    table = Table(lease(mbit=5))
    made = {line.split()[4] for line in table.lines if line.split()[1] in ("quota", "limit")}
    lines = table.sell(lease(**ended))
    assert table.held == {}
    assert made == {line.split()[4] for line in lines if line.split()[1] in ("quota", "limit")}
    assert not any(line.startswith("add") and "paid" not in line for line in lines)


def test_an_address_that_changes_hands_has_nothing_of_the_one_before() -> None:
    table = Table(lease(mbit=5, seconds_left=60.0))
    other = replace(lease(1, seconds_left=None), ipv4=lease().ipv4)
    lines = table.sell(other)
    old, new = "q1", f"q{table.held[other.ipv4].quota}"
    assert old != new
    assert lines.index(f"delete quota inet {TABLE} {old}") < lines.index(
        f"add quota inet {TABLE} {new} {{ over 1000000 bytes }}"
    )
    assert f"delete element inet {TABLE} paid6 {{ fd77::2 }}" in lines


def test_a_rate_of_its_own_goes_before_that_of_all() -> None:
    table = Table(lease(mbit=8), lease(1), rate=500)
    assert [held.rate for held in table.held.values()] == [1_000_000, 500]
    lines = table.sell(lease(mbit=8), lease(1), rate=600)
    assert {held.rate for held in table.held.values()} == {1_000_000, 600}
    assert not any("198.18.0.2 " in line for line in lines)


def test_the_kernel_serves_for_a_minute_and_what_it_is_asked_for() -> None:
    assert alive_lines(sold(), "nv0")[-1] == (
        f"add element inet {TABLE} alive {{ ipv4 timeout 60s, ipv6 timeout 60s }}"
    )
    lines = alive_lines(sold(versions=frozenset({4})), "nv0")
    assert lines[-1] == f"add element inet {TABLE} alive {{ ipv4 timeout 60s }}"
    assert f"delete element inet {TABLE} alive {{ ipv4, ipv6 }}" in lines


def test_leases_are_no_part_of_the_table_and_all_else_is() -> None:
    empty = sold()
    assert render_sold(sold(lease()), "nv0") == render_sold(empty, "nv0")
    for more in ({"dns": True}, {"connections": 7}, {"rules": ()}, {"control_port": 7}):
        assert sold_marks(replace(empty, **more), "nv0") != sold_marks(empty, "nv0")


def test_no_guest_is_let_into_a_link_of_ours() -> None:
    text = render_sold(sold(), "nv0")
    (rule,) = [line for line in text.splitlines() if "oifname {" in line and "drop" in line]
    for name in own_links("nv0"):
        assert f'"{name}"' in rule


def test_ports_of_guests_are_never_those_that_wireguard_listens_on() -> None:
    text = render_sold(sold(reserved=frozenset({60000})), "nv0")
    assert "masquerade to :24001-59999 fully-random" in text


def test_two_leases_have_no_address_in_common() -> None:
    with pytest.raises(ValueError, match="one address or key"):
        sold(lease(), replace(lease(1), ipv4=lease().ipv4))
    with pytest.raises(ValueError, match="one address or key"):
        sold(lease(), replace(lease(1), key=lease().key))


@pytest.mark.parametrize("interface", ["nv0", "a" * 14, "a" * 15])
def test_links_have_names_that_differ(interface: str) -> None:
    names = own_links(interface)
    assert len(set(names)) == len(names) == 5
    assert all(map(is_interface_name, names))
    assert sold_interface(interface) in names
    assert bought_interface(interface, 1) in names


def bought(link: str, *addresses: str, used: bool = False) -> Bought:
    key = SecretKey(b"\x02" * 32)
    own = frozenset(map(ip_interface, addresses))
    endpoint = parse_endpoint("192.0.2.1:24000")
    seller = frozenset({ip_address("fd77::1")})
    versions = frozenset({4, 6})
    made = Bought(link, key, key.public_key, None, endpoint, own, 1280, versions, seller)
    return replace(made, used=used)


def test_two_sellers_who_give_the_same_address_do_not_hide_each_other() -> None:
    text = render_bought([bought("b", "198.18.0.2/32"), bought("c", "198.18.0.2/32")], "nv0")
    assert 'iifname != { "b", "c", "lo" } ip daddr 198.18.0.2 drop' in text
    assert 'oifname != { "b", "c", "lo" } ip saddr 198.18.0.2 drop' in text


def test_a_link_without_addresses_of_a_version_takes_and_gives_none_of_it() -> None:
    text = render_bought([bought("b", "198.18.0.2/32", used=True)], "nv0")
    assert 'iifname "b" meta nfproto ipv6 drop' in text
    assert 'oifname "b" meta nfproto ipv6 drop' in text


def test_whether_a_link_is_in_use_is_part_of_the_table() -> None:
    one = bought("b", "198.18.0.2/32")
    assert bought_marks([one]) != bought_marks([replace(one, used=True)])
    with pytest.raises(ValueError, match="no network"):
        bought("b", "198.18.0.2/16")
