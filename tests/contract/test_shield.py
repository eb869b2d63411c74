"""What leaves a host in each state of the kill switch: real packets, a cable stands for the tunnel.

``docs/security.md`` names these tests: one for each line of what may leave.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any, TypeVar

import pytest

from nostrvpn.host.shield import Bypass, Shield, ShieldKind
from nostrvpn.host.state import FWMARK, RELAY_MARK
from nostrvpn.io.shield import add_bypassed, apply_shield, read_held
from tests.contract.cable import (
    CABLE,
    EVERYWHERE,
    INSIDE,
    LAN,
    LISTEN_PORT,
    MEMBER,
    NOBODY,
    OTHER,
    OVERLAY,
    OWN,
    PUBLIC,
    SOMEBODY,
    TUNNEL,
    Host,
    addresses,
    parsed,
    talk,
    targets,
)

BLOCKED, TUNNELLED, OPEN = ShieldKind.BLOCKED, ShieldKind.TUNNELLED, ShieldKind.OPEN
BOTH = frozenset({4, 6})
USERS = pytest.mark.parametrize("uid", [0, NOBODY])
MULTICAST = {4: "224.0.0.251", 6: "ff02::fb"}
NONE: set[tuple[str, str, int]] = set()
# Spec: linux/sched.h, linux/mount.h.
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000

T = TypeVar("T")


@pytest.fixture
def host(make_netns: Callable[[], Any]) -> Iterator[Host]:
    made = Host(make_netns)
    everything = talk(*addresses(*EVERYWHERE))
    try:
        assert made.leaves(everything) == (targets(everything), NONE)
        yield made
    finally:
        made.close()


def every_way() -> list[dict[str, Any]]:
    """All that a program can do to get out: by itself, by a device, by a source address."""
    made = talk(*addresses(*EVERYWHERE, MULTICAST), "192.168.50.255", "255.255.255.255")
    made += talk(*addresses(*EVERYWHERE, MULTICAST), device=CABLE)
    for version in (4, 6):
        made += talk(PUBLIC[version], LAN[version], source=(OWN[version], 0))
    return made


@pytest.mark.parametrize("uid", [0, pytest.param(NOBODY, marks=pytest.mark.kernel)])
def test_blocked_nothing_that_a_program_sends_leaves(host: Host, uid: int) -> None:
    host.apply(BLOCKED)
    assert host.leaves(every_way(), uid) == (NONE, NONE)
    # And without routing, as in lockdown.
    host.apply(BLOCKED, routes=False)
    assert host.leaves(every_way(), uid) == (NONE, NONE)
    assert host.netns.call(read_held, TUNNEL)["held"] > 0


def test_a_program_that_is_held_back_is_told_at_once(host: Host) -> None:
    host.apply(BLOCKED, routes=False)
    refused = host.send([{"to": PUBLIC[4], "kind": "udp", "port": 443}])
    assert refused == [(PUBLIC[4], "udp", errno.EPERM)]


@USERS
@pytest.mark.parametrize("kind", [BLOCKED, TUNNELLED])
def test_with_allow_lan_local_networks_are_reached_but_for_dns(
    host: Host, kind: ShieldKind, uid: int
) -> None:
    host.apply(kind, versions=BOTH, allow_lan=True)
    broadcast = ("192.168.50.255", "255.255.255.255")
    sent = talk(*addresses(PUBLIC, LAN)) + talk(*MULTICAST.values(), *broadcast, device=CABLE)
    local = talk(*addresses(LAN), ports=(443,))
    # No program connects to many, and none sends an echo to all by mistake.
    local += [one for one in talk(*MULTICAST.values(), ports=(443,)) if one["kind"] != "tcp"]
    local += [one for one in talk(*broadcast, ports=(443,)) if one["kind"] == "udp"]
    assert host.leaves(sent, uid)[0] == targets(local)


def test_with_allow_lan_dns_goes_to_a_chosen_resolver_there(host: Host) -> None:
    host.apply(TUNNELLED, versions=BOTH, allow_lan=True, resolvers=parsed(LAN[4]))
    cable, _ = host.leaves(talk(*addresses(LAN)))
    assert {one for one in cable if one[2] in (53, 853)} == {
        (LAN[4], kind, port) for kind in ("tcp", "udp") for port in (53, 853)
    }


@pytest.mark.parametrize("kind", [OPEN, BLOCKED, TUNNELLED])
def test_what_carries_the_mark_leaves_in_every_state(host: Host, kind: ShieldKind) -> None:
    host.apply(kind, versions=BOTH)
    sent = talk(*addresses(PUBLIC), mark=FWMARK)
    assert host.leaves(sent) == (targets(sent), NONE)


def test_no_unprivileged_program_can_set_the_mark(host: Host) -> None:
    sent = talk(*addresses(PUBLIC), mark=FWMARK)
    assert {code for _, _, code in host.send(sent, NOBODY)} == {errno.EPERM}
    host.apply(BLOCKED)
    assert host.leaves(sent, NOBODY) == (NONE, NONE)


@pytest.mark.parametrize("kind", [OPEN, BLOCKED, TUNNELLED])
def test_programs_of_this_host_reach_each_other_in_every_state(
    host: Host, kind: ShieldKind
) -> None:
    host.apply(kind, versions=BOTH)
    for address in ("127.0.0.1", "::1", *addresses(OWN, INSIDE)):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with (
            host.netns.call(socket.socket, family, socket.SOCK_DGRAM) as ear,
            host.netns.call(socket.socket, family, socket.SOCK_DGRAM) as mouth,
        ):
            ear.settimeout(5)
            ear.bind((address, 0))
            mouth.sendto(b"x", ear.getsockname())
            assert ear.recv(9) == b"x"


@USERS
@pytest.mark.parametrize("kind", [OPEN, BLOCKED, TUNNELLED])
def test_packets_for_members_go_into_the_tunnel_in_every_state(
    host: Host, kind: ShieldKind, uid: int
) -> None:
    host.apply(kind, versions=BOTH)
    sent = talk(*addresses(MEMBER))
    assert host.leaves(sent, uid) == (NONE, targets(sent))


@pytest.mark.parametrize("allow_lan", [False, True])
def test_packets_for_members_go_nowhere_else_without_the_tunnel(
    host: Host, *, allow_lan: bool
) -> None:
    host.apply(TUNNELLED, versions=BOTH, allow_lan=allow_lan)
    # A local network in which the overlay lies, and no tunnel any more.
    host.netns.ip("link", "del", TUNNEL)
    host.netns.ip("route", "add", "10.0.0.0/8", "dev", CABLE)
    host.netns.ip("route", "add", "fd00::/8", "dev", CABLE)
    host.send(talk(*addresses(MEMBER)))
    host.send(talk(*addresses(MEMBER), device=CABLE))
    host.send([{"to": PUBLIC[4], "kind": "udp", "port": 9001, "mark": FWMARK}])
    assert host.cable.until(lambda packet: packet.port == 9001) == set()


def test_dhcp_requests_leave_in_every_state(host: Host) -> None:
    server = {4: "198.18.0.1", 6: "ff02::1:2"}
    source4 = ("0.0.0.0", 68)
    asks = [
        {"to": "255.255.255.255", "kind": "udp", "port": 67, "source": source4, "device": CABLE},
        {"to": LAN[4], "kind": "udp", "port": 67, "source": source4},
        {"to": server[6], "kind": "udp", "port": 547, "source": ("::", 546), "device": CABLE},
    ]
    others = [
        {"to": "255.255.255.255", "kind": "udp", "port": 67, "device": CABLE},
        {"to": LAN[4], "kind": "udp", "port": 66, "source": source4},
        {"to": LAN[4], "kind": "tcp", "port": 67, "source": source4},
        {"to": PUBLIC[6], "kind": "udp", "port": 547, "source": ("::", 546), "device": CABLE},
    ]
    for kind in (BLOCKED, TUNNELLED):
        host.apply(kind, versions=BOTH)
        assert host.leaves(asks) == (targets(asks), NONE)
        assert host.leaves(others)[0] == NONE


def test_neighbours_are_found_in_every_state_and_nobody_is_redirected(host: Host) -> None:
    solicit, advert, router, redirect, echo = 135, 136, 133, 137, 128

    def send(kind: int, hops: int) -> None:
        with host.netns.call(
            socket.socket, socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6
        ) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, CABLE.encode())
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, hops)
            try:
                sock.sendto(bytes([kind]) + bytes(23), ("ff02::1", 0))
            except PermissionError:
                assert kind in (redirect, echo) or hops != 255

    for kind in (BLOCKED, TUNNELLED):
        host.apply(kind, versions=BOTH)
        host.left()
        for number in (solicit, advert, router, redirect, echo):
            send(number, 255)
        found = {packet.port for packet in host.left()[0]}
        assert found == {solicit, advert, router}
        send(solicit, 64)
        assert host.left() == (set(), set())


@USERS
@pytest.mark.parametrize("versions", [{4}, {6}, {4, 6}])
def test_tunnelled_what_the_exit_carries_goes_into_the_tunnel_but_for_dns(
    host: Host, versions: set[int], uid: int
) -> None:
    host.apply(TUNNELLED, versions=frozenset(versions))
    sent = talk(*addresses(PUBLIC, LAN))
    carried = [PUBLIC[v] for v in versions] + [LAN[v] for v in versions]
    assert host.leaves(sent, uid) == (NONE, targets(talk(*carried, ports=(443,))))
    assert host.leaves([one | {"device": CABLE} for one in sent], uid)[0] == NONE


def test_tunnelled_dns_goes_to_the_chosen_resolvers_only(host: Host) -> None:
    host.apply(TUNNELLED, versions=BOTH, resolvers=parsed(*addresses(OTHER)))
    asked = targets(talk(*addresses(OTHER), ports=(53, 853)))
    dns = [one for one in talk(*addresses(PUBLIC, OTHER, LAN)) if one["port"] in (53, 853)]
    assert host.leaves(dns) == (NONE, {one for one in asked if one[1] != "icmp"})


def test_what_an_exit_does_not_carry_goes_nowhere_with_the_kill_switch_off(host: Host) -> None:
    sent = talk(*addresses(PUBLIC), ports=(443,))
    host.apply(OPEN, versions=frozenset({4}))
    assert host.leaves(sent) == (NONE, targets(talk(PUBLIC[4], ports=(443,))))
    host.apply(OPEN)
    assert host.leaves(sent) == (NONE, NONE)
    # Somebody goes around: then it is the packet filter that says so.
    around = Bypass(uids=frozenset({(SOMEBODY, SOMEBODY)}))
    host.apply(OPEN, versions=frozenset({4}), bypass=around)
    assert host.leaves(sent) == (NONE, targets(talk(PUBLIC[4], ports=(443,))))


@pytest.mark.parametrize("kind", [OPEN, BLOCKED, TUNNELLED])
def test_who_goes_around_leaves_outside_with_the_hosts_own_address(
    host: Host, kind: ShieldKind
) -> None:
    around = Bypass(
        frozenset({ip_network("203.0.113.0/24")}),
        frozenset({(SOMEBODY, SOMEBODY + 9)}),
        domains=True,
    )
    host.apply(kind, versions=frozenset({4}), bypass=around)
    host.netns.call(add_bypassed, TUNNEL, dict.fromkeys(parsed(OTHER[6]), 600))
    assert host.leaves(talk(*addresses(PUBLIC)))[0] == NONE
    for uid, to in ((0, OTHER), (NOBODY, OTHER), (SOMEBODY, PUBLIC), (SOMEBODY + 9, PUBLIC)):
        host.left()
        host.send(talk(*addresses(to)), uid)
        cable, tunnel = host.left()
        assert {packet.target for packet in cable} == targets(talk(*addresses(to)))
        assert {packet.source for packet in cable} == set(OWN.values())
        assert not tunnel
    assert host.leaves(talk(*addresses(PUBLIC)), SOMEBODY + 10)[0] == NONE
    # What is the mesh's stays inside.
    sent = talk(*addresses(MEMBER))
    assert host.leaves(sent, SOMEBODY) == (NONE, targets(sent))


def test_addresses_of_names_outlive_a_change_of_the_table(host: Host) -> None:
    around = Bypass(domains=True)
    host.apply(BLOCKED, bypass=around)
    host.netns.call(add_bypassed, TUNNEL, dict.fromkeys(parsed(*addresses(OTHER)), 600))
    host.apply(TUNNELLED, versions=BOTH, bypass=around)
    sent = talk(*addresses(OTHER))
    assert host.leaves(sent) == (targets(sent), NONE)
    host.apply(TUNNELLED, versions=BOTH)
    assert host.leaves(sent)[0] == NONE


@pytest.mark.kernel
def test_a_cgroup_that_is_not_there_opens_and_breaks_nothing(host: Host) -> None:
    host.apply(BLOCKED, bypass=Bypass(cgroups=frozenset({"no.slice/such.service"})))
    assert host.leaves(talk(*addresses(PUBLIC))) == (NONE, NONE)


def with_cgroups_as_on_most_hosts(function: Callable[..., T], *arguments: Any) -> T:
    """Call it where /sys/fs/cgroup is the hierarchy of version 2, as nft expects; in this thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    for call in (
        lambda: libc.unshare(CLONE_NEWNS),
        lambda: libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None),
        lambda: libc.mount(b"cgroup2", b"/sys/fs/cgroup", b"cgroup2", 0, None),
    ):
        if call() != 0:
            raise OSError(ctypes.get_errno(), "a mount namespace with cgroups")
    return function(*arguments)


@pytest.fixture
def cgroup() -> Iterator[str]:
    """A cgroup of version 2 of this test's own; skips where the kernel has none."""
    name = f"nostrvpn-{os.getpid()}.slice"
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    roots = [Path(mount[1]) for mount in mounts if mount[2] == "cgroup2"]
    if not roots:
        pytest.skip("NOT RUN: no hierarchy of cgroups of version 2")
    place = roots[0] / name / "backup.service"
    place.mkdir(parents=True)
    yield str(place)
    place.rmdir()
    place.parent.rmdir()


def test_what_programs_of_a_cgroup_say_goes_around_and_of_others_not(
    host: Host, cgroup: str
) -> None:
    path = "/".join(Path(cgroup).parts[-2:])
    around = Bypass(cgroups=frozenset({path}))
    shield = Shield(BLOCKED, overlay=OVERLAY, bypass=around)
    host.apply(BLOCKED, bypass=Bypass(domains=True))
    host.netns.call(with_cgroups_as_on_most_hosts, apply_shield, shield, TUNNEL)
    sent = talk(*addresses(PUBLIC))
    host.left()
    host.send(sent, cgroup=cgroup)
    cable, tunnel = host.left()
    assert {packet.target for packet in cable} == targets(sent)
    assert {packet.source for packet in cable} == set(OWN.values())
    assert not tunnel
    assert host.leaves(sent) == (NONE, NONE)


def behind(host: Host, make_netns: Callable[[], Any]) -> Any:
    """A container: another host behind this one, which forwards for it."""
    inner = make_netns()
    host.link(inner, "br0")
    host.netns.ip("addr", "add", "172.20.0.1/24", "dev", "br0")
    host.netns.ip("addr", "add", "fd72::1/64", "dev", "br0", "nodad")
    inner.ip("addr", "add", "172.20.0.2/24", "dev", "e")
    inner.ip("addr", "add", "fd72::2/64", "dev", "e", "nodad")
    inner.ip("route", "add", "default", "via", "172.20.0.1")
    inner.ip("-6", "route", "add", "default", "via", "fd72::1")
    inner.run("sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")
    host.sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    return inner


def test_blocked_nothing_of_containers_and_guests_is_forwarded(
    host: Host, make_netns: Callable[[], Any]
) -> None:
    inner = behind(host, make_netns)
    other = Host.__new__(Host)
    other.netns = inner
    sent = talk(*addresses(PUBLIC, LAN))
    other.send(sent)
    assert {packet.target for packet in host.left()[0]} == targets(sent)
    host.apply(BLOCKED)
    other.send(sent)
    assert host.left() == (set(), set())
    host.apply(BLOCKED, routes=False)
    other.send(sent)
    assert host.left() == (set(), set())
    # Tunnelled, they go the way of everything else.
    host.apply(TUNNELLED, versions=BOTH)
    other.send(sent)
    cable, tunnel = host.left()
    assert not cable
    assert {packet.target for packet in tunnel} == targets(
        talk(*addresses(PUBLIC, LAN), ports=(443,))
    )


def test_what_our_relay_forwards_leaves_in_every_state(
    host: Host, make_netns: Callable[[], Any]
) -> None:
    inner = behind(host, make_netns)
    other = Host.__new__(Host)
    other.netns = inner
    # Stands for the relay's table, which marks what it forwards.
    host.netns.run(
        "nft",
        "table inet relay { chain c { type filter hook prerouting priority -305; "
        f"udp dport 7777 meta mark set {RELAY_MARK:#x} notrack; }} ; }}",
    )
    sent = [{"to": PUBLIC[4], "kind": "udp", "port": 7777}]
    for kind in (BLOCKED, TUNNELLED):
        host.apply(kind, versions=BOTH)
        other.send(sent)
        cable, tunnel = host.left()
        assert ({packet.target for packet in cable}, tunnel) == (targets(sent), set())


def test_members_reach_the_networks_behind_this_host_in_every_state(
    host: Host, make_netns: Callable[[], Any]
) -> None:
    inner = behind(host, make_netns)
    host.exit.ip("addr", "add", f"{MEMBER[4]}/16", "dev", "e")
    host.exit.ip("route", "add", "172.20.0.0/24", "via", INSIDE[4])
    for kind in (BLOCKED, TUNNELLED):
        host.apply(kind, versions=BOTH, behind=frozenset({ip_network("172.20.0.0/24")}))
        with inner.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as ear:
            ear.settimeout(5)
            ear.bind(("172.20.0.2", 0))
            with host.exit.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as mouth:
                mouth.settimeout(5)
                mouth.sendto(b"ask", ear.getsockname())
                data, who = ear.recvfrom(9)
                assert (data, who[0]) == (b"ask", MEMBER[4])
                ear.sendto(b"answer", who)
                assert mouth.recv(9) == b"answer"


@pytest.mark.parametrize("kind", [OPEN, BLOCKED, TUNNELLED])
@pytest.mark.parametrize("version", [4, 6])
def test_a_packet_from_the_cable_for_the_tunnels_address_is_dropped(
    host: Host, kind: ShieldKind, version: int
) -> None:
    """CVE-2019-14899: who can send to an address inside learns from the answers what goes on there."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    length = {4: 32, 6: 128}[version]
    forger = f"{PUBLIC[version]}/{length}"
    host.outside.ip("addr", "add", forger, "dev", "e", *(["nodad"] if version == 6 else []))
    host.outside.ip(
        "route", "add", f"{INSIDE[version]}/{length}", "dev", "e", "src", PUBLIC[version]
    )
    host.outside.ip("route", "add", f"{OWN[version]}/{length}", "dev", "e", "src", PUBLIC[version])
    with (
        host.netns.call(socket.socket, family, socket.SOCK_DGRAM) as ear,
        host.outside.call(socket.socket, family, socket.SOCK_DGRAM) as mouth,
    ):
        ear.settimeout(5)
        ear.bind(("", LISTEN_PORT))
        for address in (INSIDE, OWN):
            mouth.sendto(b"x", (address[version], LISTEN_PORT))
            assert ear.recv(9) == b"x"
        host.apply(kind, versions=BOTH)
        mouth.sendto(b"forged", (INSIDE[version], LISTEN_PORT))
        mouth.sendto(b"true", (OWN[version], LISTEN_PORT))
        assert ear.recv(9) == b"true"
    assert host.netns.call(read_held, TUNNEL)["spoofed"] == 1


def test_the_answers_to_marked_packets_pass_a_strict_reverse_path_filter(host: Host) -> None:
    host.outside.ip("addr", "add", f"{PUBLIC[4]}/32", "dev", "e")
    host.outside.ip("route", "add", f"{OWN[4]}/32", "dev", "e", "src", PUBLIC[4])
    host.sysctl("net.ipv4.conf.all.rp_filter=1", f"net.ipv4.conf.{CABLE}.rp_filter=1")
    host.apply(TUNNELLED, versions=BOTH)
    with (
        host.outside.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as far,
        host.netns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as near,
        host.netns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as wireguard,
    ):
        for sock in (far, near, wireguard):
            sock.settimeout(5)
        far.bind((PUBLIC[4], 0))
        near.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, FWMARK)
        wireguard.bind(("", LISTEN_PORT))

        def ask() -> None:
            near.sendto(b"ask", far.getsockname())
            far.sendto(b"answer", far.recvfrom(9)[1])

        ask()
        assert near.recv(9) == b"answer"
        # And who speaks first to WireGuard's port.
        far.sendto(b"first", (OWN[4], LISTEN_PORT))
        assert wireguard.recv(9) == b"first"
        # It is this setting that does it.
        host.sysctl("net.ipv4.conf.all.src_valid_mark=0")
        near.setblocking(False)
        ask()
        far.sendto(b"more", (OWN[4], LISTEN_PORT))
        host.sysctl("net.ipv4.conf.all.src_valid_mark=1")
        far.sendto(b"last", (OWN[4], LISTEN_PORT))
        assert wireguard.recv(9) == b"last"
        with pytest.raises(BlockingIOError):
            near.recv(9)


@USERS
def test_routes_that_somebody_hands_out_lead_nothing_outside(host: Host, uid: int) -> None:
    """DHCP option 121 (CVE-2024-3661), and a local network that claims public addresses."""
    for route in ("0.0.0.0/1", "128.0.0.0/1", f"{PUBLIC[4]}/32"):
        host.netns.ip("route", "add", route, "via", "192.168.50.1", "dev", CABLE)
    host.netns.ip("-6", "route", "add", "2000::/3", "dev", CABLE)
    host.netns.ip("addr", "add", "203.0.113.2/24", "dev", CABLE)
    sent = talk(*addresses(PUBLIC, OTHER), "203.0.113.255")
    inside = targets(talk(*addresses(PUBLIC, OTHER), ports=(443,)))
    for allow_lan in (False, True):
        host.apply(TUNNELLED, versions=BOTH, allow_lan=allow_lan)
        cable, tunnel = host.leaves(sent, uid)
        assert (cable, inside - tunnel) == (NONE, NONE)
        host.apply(BLOCKED, allow_lan=allow_lan)
        assert host.leaves(sent, uid) == (NONE, NONE)
    # With the kill switch off, routing alone.
    host.apply(OPEN, versions=BOTH)
    assert host.leaves(talk(*addresses(PUBLIC, OTHER)), uid)[0] == NONE


def test_whoever_reroutes_a_packet_gets_it_no_further(host: Host) -> None:
    """Where it begins it seems to go into the tunnel; then its destination is replaced, or its mark."""
    host.netns.run(
        "nft",
        "table ip others { chain c { type nat hook output priority 20; tcp dport 4000 "
        f"dnat to {LAN[4]}:443; }} ; }}",
    )
    host.netns.ip("rule", "add", "priority", "100", "fwmark", "7", "lookup", "main")
    host.netns.run(
        "nft",
        "table ip ways { chain c { type route hook output priority 30; tcp dport 4001 "
        "meta mark set 7; } ; }",
    )
    host.netns.ip("rule", "add", "priority", "90", "to", LAN[4], "lookup", "main")
    host.apply(TUNNELLED, versions=BOTH)
    sent = [{"to": PUBLIC[4], "kind": "tcp", "port": port} for port in (4000, 4001)]
    assert host.leaves(sent)[0] == NONE
    assert host.netns.call(read_held, TUNNEL)["strayed"] >= 2
