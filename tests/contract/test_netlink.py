"""Links, addresses and routes over netlink; ``ip`` is the independent witness."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from nostrvpn.errors import SystemRefused
from nostrvpn.host.diff import AddRoute, HostOp, RemoveAddress, RemoveRoute, SetLink, diff
from nostrvpn.host.state import HostState, OuterLimit, RouteLimit
from nostrvpn.io.netlink import (
    apply_host,
    delete_link,
    find_link,
    local_addresses,
    main_routes,
    marked_interfaces,
    observe_host,
    remove_limits,
)
from nostrvpn.io.netlink_monitor import NetlinkMonitor
from nostrvpn.io.rtnetlink import rtnetlink

DESIRED = HostState(
    "e0",
    1300,
    frozenset(map(ip_interface, ("10.64.1.2/16", "fd00::2/128"))),
    frozenset(map(ip_network, ("10.64.0.0/16", "fd00::/64", "192.168.77.0/24"))),
    "nostrvpn home",
)


@pytest.fixture
def pair(netns: Any) -> Any:
    """A namespace with a veth pair e0, e1; e1 is up, so that e0 has a carrier once it is up."""
    netns.ip("link", "add", "e0", "type", "veth", "peer", "name", "e1")
    netns.ip("link", "set", "e1", "up")
    return netns


def settle(netns: Any, desired: HostState) -> list[HostOp]:
    ops = diff(netns.call(observe_host, desired.interface), desired)
    netns.call(apply_host, ops)
    return ops


def ip_json(netns: Any, *arguments: str) -> Any:
    return json.loads(netns.ip("-j", *arguments) or "[]")


def test_the_desired_state_is_reached_once(pair: Any) -> None:
    settle(pair, DESIRED)
    (link,) = ip_json(pair, "-d", "addr", "show", "dev", "e0")
    assert (link["mtu"], link["ifalias"]) == (1300, "nostrvpn home")
    assert "UP" in link["flags"]
    found = {
        f"{info['local']}/{info['prefixlen']}"
        for info in link["addr_info"]
        if info["scope"] == "global"
    }
    assert found == {"10.64.1.2/16", "fd00::2/128"}
    routes = ip_json(pair, "-4", "route") + ip_json(pair, "-6", "route")
    ours = {route["dst"] for route in routes if route.get("protocol") == "157"}
    assert ours == {"10.64.0.0/16", "fd00::/64", "192.168.77.0/24"}
    assert not [route for route in routes if route["dst"].startswith("10.64") and "metric" in route]
    assert settle(pair, DESIRED) == []


def test_a_change_takes_only_what_changed(pair: Any) -> None:
    settle(pair, DESIRED)
    pair.ip("route", "add", "10.99.0.0/16", "dev", "e0")
    smaller = HostState(
        "e0", 1400, frozenset([ip_interface("10.64.1.2/16")]), frozenset(), "nostrvpn home"
    )
    ops = settle(pair, smaller)
    assert len(ops) == 5
    assert settle(pair, smaller) == []
    assert [r["dst"] for r in ip_json(pair, "-4", "route")] == ["10.99.0.0/16"]


def test_default_routes_of_ours_are_seen(pair: Any) -> None:
    everything = HostState(
        "e0",
        1300,
        DESIRED.addresses,
        frozenset(map(ip_network, ("0.0.0.0/0", "::/0"))),
    )
    settle(pair, everything)
    assert settle(pair, everything) == []
    settle(pair, HostState("e0", 1300, DESIRED.addresses))
    assert ip_json(pair, "-4", "route") == []


def test_down_and_up_again(pair: Any) -> None:
    settle(pair, DESIRED)
    down = HostState("e0", 1300, DESIRED.addresses, frozenset(), "nostrvpn home", up=False)
    settle(pair, down)
    assert settle(pair, down) == []
    settle(pair, DESIRED)
    assert settle(pair, DESIRED) == []


LIMITED = replace(
    DESIRED,
    route_limits=frozenset(
        [
            RouteLimit(ip_network("192.168.77.0/24"), 1056),
            RouteLimit(ip_network("fd00::/64"), 1280, 996),
        ]
    ),
)


def test_metrics_of_routes_come_and_go(pair: Any) -> None:
    settle(pair, DESIRED)
    assert len(settle(pair, LIMITED)) == 2
    assert settle(pair, LIMITED) == []
    metrics = {
        route["dst"]: route["metrics"]
        for route in ip_json(pair, "-4", "route") + ip_json(pair, "-6", "route")
        if "metrics" in route
    }
    assert metrics == {
        "192.168.77.0/24": [{"mtu": 1056}],
        "fd00::/64": [{"mtu": 1280, "advmss": 996}],
    }
    assert len(settle(pair, replace(LIMITED, mtu=1500))) == 1
    assert settle(pair, replace(LIMITED, mtu=1500)) == []
    assert len(settle(pair, DESIRED)) == 3
    assert settle(pair, DESIRED) == []


@pytest.fixture
def uplinked(pair: Any) -> Any:
    """The same, with default routes over e1."""
    settle(pair, DESIRED)
    pair.ip("addr", "add", "192.0.2.7/24", "dev", "e1")
    pair.ip("addr", "add", "2001:db8::7/64", "dev", "e1", "nodad")
    pair.ip("route", "add", "default", "via", "192.0.2.1")
    pair.ip("-6", "route", "add", "default", "via", "2001:db8::1")
    return pair


NARROW = replace(
    DESIRED,
    outer_limits=frozenset(
        OuterLimit(ip_address(ip), mtu)
        for ip, mtu in (("198.51.100.1", 1116), ("192.0.2.9", 700), ("2001:db8:9::1", 1280))
    ),
)


# Ours: the table of e0, by its name.
LIMITS_TABLE = str(0x9D000000 | zlib.crc32(b"e0") & 0xFFFFFF)


def marked_route(netns: Any, target: str, mark: str = "0xa50000") -> str:
    return str(netns.ip("route", "get", target, "mark", mark)).replace("\n", " ")


def test_outer_limits_are_for_marked_packets_only(uplinked: Any) -> None:
    assert len(settle(uplinked, NARROW)) == 3
    assert settle(uplinked, NARROW) == []
    assert "via 192.0.2.1 dev e1" in marked_route(uplinked, "198.51.100.1")
    assert "mtu lock 1116" in marked_route(uplinked, "198.51.100.1")
    assert "via" not in marked_route(uplinked, "192.0.2.9")
    assert "mtu lock 700" in marked_route(uplinked, "192.0.2.9")
    assert "mtu lock 1280" in marked_route(uplinked, "2001:db8:9::1")
    assert "mtu" not in marked_route(uplinked, "198.51.100.1", "0")
    assert "mtu" not in marked_route(uplinked, "198.51.100.2")
    fewer = replace(NARROW, outer_limits=frozenset([OuterLimit(ip_address("192.0.2.9"), 800)]))
    assert len(settle(uplinked, fewer)) == 3
    assert settle(uplinked, fewer) == []
    assert "a50000" not in uplinked.ip("-6", "rule")
    settle(uplinked, DESIRED)
    assert "a50000" not in uplinked.ip("rule")
    assert not uplinked.ip("route", "show", "table", "all", "proto", "157", "dev", "e1")


def test_outer_limits_follow_the_hosts_routes(uplinked: Any) -> None:
    settle(uplinked, NARROW)
    uplinked.ip("route", "replace", "default", "via", "192.0.2.2")
    assert len(settle(uplinked, NARROW)) == 1
    assert "via 192.0.2.2 dev e1" in marked_route(uplinked, "198.51.100.1")
    uplinked.ip("rule", "del", "pref", "4600")
    assert len(settle(uplinked, NARROW)) == 2
    assert settle(uplinked, NARROW) == []
    # No way to it at all is no error: there is nothing to limit.
    uplinked.ip("route", "del", "default")
    settle(uplinked, NARROW)


def test_outer_limits_are_removed_with_and_without_their_interface(uplinked: Any) -> None:
    settle(uplinked, NARROW)
    uplinked.call(remove_limits, "other0")
    assert "a50000" in uplinked.ip("rule")
    uplinked.call(remove_limits, "e0")
    assert "a50000" not in uplinked.ip("rule")
    settle(uplinked, NARROW)
    uplinked.ip("link", "del", "e0")
    uplinked.call(remove_limits)
    assert "a50000" not in uplinked.ip("rule") + uplinked.ip("-6", "rule")
    assert not uplinked.ip("route", "show", "table", "all", "proto", "157")


def test_outer_limits_are_found_without_their_rules(uplinked: Any) -> None:
    """Who is killed between a route and its rule leaves one of them."""
    settle(uplinked, NARROW)
    for family in ("-4", "-6"):
        uplinked.ip(family, "rule", "del", "pref", "4600")
    uplinked.ip("link", "del", "e0")
    uplinked.ip("link", "add", "e2", "type", "veth", "peer", "name", "e3")
    for link in ("e2", "e3"):
        uplinked.ip("link", "set", link, "up")
    uplinked.ip("route", "add", "203.0.113.0/24", "dev", "e2", "table", "77", "proto", "157")
    # With its pair e1 went too, and with that the routes over it.
    uplinked.ip("route", "add", "198.51.100.1", "dev", "e2", "table", LIMITS_TABLE, "proto", "157")
    assert uplinked.call(remove_limits, "other0") == 0
    assert uplinked.call(remove_limits) == 1
    left = uplinked.ip("route", "show", "table", "all", "proto", "157")
    assert left.split()[0] == "203.0.113.0/24"
    assert len(left.splitlines()) == 1


def test_a_route_of_somebody_else_is_not_taken(pair: Any) -> None:
    pair.ip("addr", "add", "10.64.9.9/16", "dev", "e1")
    with pytest.raises(SystemRefused, match="another route to") as caught:
        settle(pair, DESIRED)
    assert caught.value.hint


def test_applying_twice_is_fine(pair: Any) -> None:
    ops = diff(pair.call(observe_host, "e0"), DESIRED)
    pair.call(apply_host, ops)
    pair.call(apply_host, ops)
    gone: list[HostOp] = [RemoveRoute("e0", net) for net in DESIRED.routes]
    gone += [RemoveAddress("e0", address) for address in DESIRED.addresses]
    pair.call(apply_host, gone)
    pair.call(apply_host, gone)


def test_a_link_that_is_not_there(netns: Any) -> None:
    assert netns.call(observe_host, "e0") is None
    assert netns.call(find_link, "e0") is None
    netns.call(delete_link, "e0")
    netns.call(apply_host, [RemoveRoute("e0", ip_network("10.0.0.0/8"))])
    with pytest.raises(SystemRefused, match="no link e0"):
        netns.call(apply_host, [SetLink("e0", up=True)])


def test_a_refusal_names_the_operation(pair: Any) -> None:
    route = AddRoute("e0", ip_network("10.64.0.0/16"))  # the link is down
    with pytest.raises(SystemRefused, match=r"ip route add 10.64.0.0/16 dev e0 proto 157: Network"):
        pair.call(apply_host, [route])


def test_without_the_privilege_the_hint_says_so(pair: Any) -> None:
    code = (
        "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "from nostrvpn.errors import SystemRefused\n"
        "try: apply_host([SetLink('e0', mtu=1300)])\n"
        "except SystemRefused as exc: print(exc, exc.hint)\n"
    )
    # Imported while still root: nobody else may be able to read where the package is.
    imports = (
        "from nostrvpn.io.pyroute import IPRoute; IPRoute().close()\n"
        "from nostrvpn.io.netlink import apply_host\nfrom nostrvpn.host.diff import SetLink\n"
    )
    said = pair.run(sys.executable, "-c", imports + code)
    assert "Operation not permitted" in said
    assert "as root" in said


def test_local_addresses(pair: Any) -> None:
    settle(pair, DESIRED)
    pair.ip("addr", "add", "192.0.2.7/24", "dev", "e1")
    pair.ip("addr", "add", "2001:db8::7/64", "dev", "e1", "nodad")
    pair.ip("addr", "add", "2001:db8::8/64", "dev", "e1", "nodad", "preferred_lft", "0")
    found = {local.name: local for local in pair.call(local_addresses)}
    assert set(found) == {"e0", "e1"}
    assert found["e0"].is_ours
    assert not found["e1"].is_ours
    assert (found["e1"].kind, found["e1"].mtu, found["e1"].up) == ("veth", 1500, True)
    usable = {str(a) for a in found["e1"].addresses if not a.is_link_local}
    assert usable == {"192.0.2.7/24", "2001:db8::7/64"}


def test_addresses_of_other_protocols_are_nobodys(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dump of all addresses has MCTP's too, which no IP address can be made of."""
    settle(pair, DESIRED)
    (link,) = ip_json(pair, "link", "show", "e0")
    open_really = rtnetlink

    @contextmanager
    def with_mctp(action: str) -> Iterator[Any]:
        with open_really(action) as route:
            found = list(route.get_addr())
            other = type(found[0])()
            other.update({"family": 45, "index": link["ifindex"], "prefixlen": 0, "flags": 0})
            other["attrs"] = [("IFA_LOCAL", "08")]
            route.get_addr = lambda: [*found, other]
            yield route

    monkeypatch.setattr("nostrvpn.io.netlink.rtnetlink", with_mctp)
    (found, *_) = [one for one in pair.call(local_addresses) if one.name == "e0"]
    assert set(found.addresses) >= DESIRED.addresses
    assert pair.call(observe_host, "e0").addresses >= DESIRED.addresses


def test_marked_interfaces(pair: Any) -> None:
    assert pair.call(marked_interfaces) == ()
    pair.ip("link", "set", "e0", "alias", "nostrvpn home")
    pair.ip("link", "set", "e1", "alias", "somebody else's nostrvpn")
    (link,) = pair.call(marked_interfaces)
    assert (link.name, link.kind, link.alias, link.is_ours) == (
        "e0",
        "veth",
        "nostrvpn home",
        True,
    )


def watch(
    during: Callable[[], None], awaited: Collection[str], tables: Collection[str] = ()
) -> list[frozenset[str]]:
    """Run a monitor in this thread's namespace until all awaited kinds came; return its reports."""

    async def run() -> list[frozenset[str]]:
        reports: list[frozenset[str]] = []
        reported = asyncio.Event()

        def changed(kinds: frozenset[str]) -> None:
            reports.append(kinds)
            if frozenset(awaited) <= frozenset().union(*reports):
                reported.set()

        monitor = NetlinkMonitor(changed, tables)
        monitor.start()
        await asyncio.to_thread(during)
        await asyncio.wait_for(reported.wait(), 20)
        monitor.stop()
        monitor.stop()
        return reports

    return asyncio.run(run())


def test_monitor_reports_addresses_and_routes(pair: Any) -> None:
    pair.ip("link", "set", "e0", "up")
    pair.call(
        watch, lambda: pair.ip("addr", "add", "192.0.2.1/24", "dev", "e0"), {"address", "route"}
    )


def test_monitor_reports_links(pair: Any) -> None:
    pair.call(watch, lambda: pair.ip("link", "set", "e0", "mtu", "1400"), {"link"})


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_monitor_reports_rules_that_were_removed(pair: Any, family: str) -> None:
    pair.ip(family, "rule", "add", "priority", "4650", "lookup", "main")
    pair.call(watch, lambda: pair.ip(family, "rule", "del", "priority", "4650"), {"rule"})


def test_monitor_makes_one_report_of_a_burst(pair: Any) -> None:
    pair.ip("link", "set", "e0", "up")
    batch = "".join(f"addr add 192.0.2.{i}/32 dev e0\n" for i in range(1, 200))

    def burst() -> None:
        command = ["ip", "-n", pair.name, "-batch", "-"]
        subprocess.run(command, input=batch, text=True, check=True, timeout=20)

    assert len(pair.call(watch, burst, {"address"})) < 20


OURS = "table inet nostrvpn_e0 { chain c { type filter hook input priority 0; accept; }; }"


@pytest.mark.parametrize(
    "command",
    [
        ("flush", "ruleset"),
        ("delete", "table", "inet", "nostrvpn_e0"),
        ("flush", "chain", "inet", "nostrvpn_e0", "c"),
    ],
)
def test_monitor_reports_what_others_remove_of_our_tables(
    netns: Any, command: tuple[str, ...]
) -> None:
    netns.run("nft", OURS)
    reports = netns.call(watch, lambda: netns.run("nft", *command), {"table"}, {"nostrvpn_e0"})
    assert reports == [frozenset({"table"})]


def test_monitor_reports_no_table_that_is_replaced_or_another_ones(netns: Any) -> None:
    netns.run("nft", OURS + "; table ip nostrvpn_e0 { chain c { accept; }; }; table inet other {}")

    def work() -> None:
        # Told in many datagrams, but well below what the socket holds while this thread does not run.
        many = "".join(
            f"add rule inet nostrvpn_e0 c tcp dport {port} drop\n" for port in range(9, 99)
        )
        netns.run(
            "nft", f"table inet nostrvpn_e0 {{}}; delete table inet nostrvpn_e0; {OURS}; {many}"
        )
        netns.run("nft", f"table inet nostrvpn_e0 {{}}; delete table inet nostrvpn_e0; {OURS}")
        netns.run("nft", "delete table ip nostrvpn_e0; delete table inet other")
        netns.ip("addr", "add", "192.0.2.1/32", "dev", "lo")

    reports = netns.call(watch, work, {"address"}, {"nostrvpn_e0"})
    assert "table" not in frozenset().union(*reports)


def test_what_pyroute2_has_beside_the_parts_in_use_is_imported_when_asked_for() -> None:
    code = (
        "import sys; from nostrvpn.io import pyroute\n"
        "with pyroute.IPRoute() as route: assert list(route.get_links())\n"
        "assert 'pyroute2.ndb.main' not in sys.modules\n"
        "from pyroute2 import NDB, IPRoute, config\n"
        "assert IPRoute is pyroute.IPRoute and NDB.__module__ == 'pyroute2.ndb.main'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30, env=dict(os.environ))


def test_importing_netlink_does_not_import_pyroute2() -> None:
    code = (
        "import sys, nostrvpn.io.wireguard, nostrvpn.io.wireguard_userspace,"
        "nostrvpn.io.wireguard_kernel, nostrvpn.io.netlink_monitor, nostrvpn.io.cleanup;"
        "sys.exit('pyroute2' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30, env=dict(os.environ))


def test_of_two_networks_with_the_same_addresses_one_sees_the_other(pair: Any) -> None:
    wanted = ip_network("10.64.0.0/16")
    pair.ip("link", "add", "e10", "type", "veth", "peer", "name", "e11")
    pair.ip("link", "set", "e11", "up")
    settle(pair, replace(DESIRED, interface="e10", routes=frozenset([wanted])))
    assert wanted not in pair.call(main_routes, "e10")
    assert wanted in pair.call(main_routes, "e0")
    with pytest.raises(SystemRefused, match="another route to"):
        settle(pair, replace(DESIRED, routes=frozenset([wanted])))
    # What is not ours is respected on every interface.
    pair.ip("route", "add", "192.0.2.0/24", "dev", "e0")
    for interface in ("e0", "e10", "e99"):
        assert ip_network("192.0.2.0/24") in pair.call(main_routes, interface)
