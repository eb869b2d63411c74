"""A member that relays, and everybody who would use it up: the mesh goes on.

One network, one story: another firewall of the relay's host, strangers that flood it and forge
addresses, a member that wants all its ports, the end of the month's bytes, and a killed daemon.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest

from nostrvpn.io.identity_file import load_identity
from nostrvpn.io.store import Record, Store
from nostrvpn.lab.core import Internet
from nostrvpn.lab.gathering import gather
from nostrvpn.lab.nat import NatKind
from nostrvpn.lab.patience import wait_until
from nostrvpn.lab.processes import python_module
from nostrvpn.lab.topology import Host, Lab, Server
from nostrvpn.lab.transfer import transfer
from nostrvpn.stun.binding import StunMessage, parse_stun
from nostrvpn.stun.relaying import RelayUser, Side, relay_user, render_allocate, render_bind
from tests.lab.homes import Pinging, machine, peer_of, problems, watched

GIGABYTE = 10**9
# What is left of the month when it begins: enough for the abuse, and less than the transfer at its end.
LEFT = 3_000_000
# Packets of a stranger: far more than a relay looks at.
ENOUGH = 10_000
# A member may have this many ports.
SHARE = 32
DROPPING = (
    "add table ip filter;"
    "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }"
)


class Abused(Lab):
    """A relay outside, two laptops that need it, and a stranger."""

    server: Server
    before: Any

    def build(self) -> None:
        self.server = self.server_host()
        self.vps, self.stranger = self.host("vps"), self.host("stranger")
        relay = {"offer": "members", "pairs": 40, "gigabytes": 1}
        self.relay = self.node(self.vps, self.server, relay=relay)
        self.a, self.b = (
            self.node(
                self.host(f"laptop-{end}", self.router(f"nat-{end}", NatKind.SYMMETRIC)),
                self.server,
                paths={"hard_nat_search": False},
            )
            for end in "ab"
        )

    def shown(self) -> Any:
        """Return what the relay says of itself."""
        return self.relay.query("netcheck")["relay_service"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Abused]:
    with watched(Abused(Internet(delay=0.005))) as made:
        made.before = machine(made.relay)
        yield made


def test_with_a_dropping_firewall_the_relay_says_so_and_works(lab: Abused) -> None:
    store = Store.open(str(lab.relay.directory / "state/state.db"))
    month = datetime.now(UTC).strftime("%Y-%m")
    store.put([Record("meta", "relay_month", [month, GIGABYTE - LEFT])])
    store.close()
    lab.vps.run("nft", DROPPING)
    gather(lab.relay, [lab.a, lab.b])
    assert "ip filter FORWARD" in problems(lab.relay.status())["relay_slow"]
    for node, other in ((lab.a, lab.b), (lab.b, lab.a)):
        node.wait_for_peer(other.npub, path="relayed")
    with Pinging(lab.a, lab.b) as pinging:
        pinging.wait_more(3)
        lab.vps.run("nft", "delete table ip filter")
        lab.relay.wait_for(lambda status: "relay_slow" not in problems(status), "the kernel")
        pinging.wait_more(3)


def test_strangers_do_no_harm(lab: Abused) -> None:
    lent = int(peer_of(lab.a, lab.b)["endpoint"].rpartition(":")[2])
    port = lab.relay.status()["listen_port"]
    before = lab.shown()
    with Pinging(lab.a, lab.b) as pinging:
        pinging.wait_more(3)
        sent = flood(lab.stranger, port, lent, str(lab.vps.address))
        pinging.wait_more(3)
        lost = pinging.lost()
        answered = pinging.answered()
    assert sent > ENOUGH
    assert lost <= 0.05 * (lost + answered)
    after = lab.shown()
    counters = {
        name: after["counters"][name] - before["counters"].get(name, 0)
        for name in after["counters"]
    }
    assert after["pairs"] == before["pairs"]
    # Of thousands of forged requests, it looked at as many as it had set itself.
    assert 0 < counters["refused_401"] <= 1000
    assert counters["limited_source"] + counters["limited_refusals"] > 100


def flood(stranger: Host, port: int, lent: int, relay: str) -> int:
    """Send what a stranger can, to WireGuard's port and a lent one, for two seconds at least."""
    user = RelayUser("ab" * 8, "cd" * 16)
    sent = 0
    rng = random.Random(1)
    deadline = time.monotonic() + 2.0
    with stranger.namespace.enter():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with sock, raw:
        while time.monotonic() < deadline or sent <= ENOUGH:
            pair = f"{rng.getrandbits(64):016x}"
            allocate = render_allocate(os.urandom(12), user, pair)
            bind = render_bind(os.urandom(12), pair, Side.OTHER, user.key, os.urandom(8))
            initiation = b"\1\0\0\0" + os.urandom(144)
            for data, to in (
                (allocate, port),
                (initiation, port),
                (bind, lent),
                (initiation, lent),
                (os.urandom(200), lent),
            ):
                sock.sendto(data, (relay, to))
                # The same, as if somebody else had sent it.
                forged = IPv4Address(0x0B000000 | rng.getrandbits(24))
                raw.sendto(forged_packet(forged, relay, to, data), (relay, 0))
                sent += 2
    return sent


def forged_packet(source: IPv4Address, target: str, port: int, data: bytes) -> bytes:
    """Return an IPv4 packet with a UDP datagram without checksum."""
    segment = struct.pack("!HHHH", 51820, port, 8 + len(data), 0) + data
    fixed = (0x45, 0, 20 + len(segment), 1, 0, 64, 17, 0)
    return struct.pack("!BBHHHBBH4s4s", *fixed, source.packed, ip_address(target).packed) + segment


def test_a_member_gets_its_share_and_no_more(lab: Abused) -> None:
    root = load_identity(str(lab.relay.directory / "state"), {})
    member = load_identity(str(lab.a.directory / "state"), {}).public_key
    user = relay_user(root.relay_secret(), member)
    to = (str(lab.vps.address), lab.relay.status()["listen_port"])

    with lab.stranger.namespace.enter():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    codes = []
    with sock:
        for number in range(SHARE + 3):
            request = render_allocate(os.urandom(12), user, f"{number:016x}")
            codes.append(asked(sock, request, to).error_code or 0)
    assert codes.count(0) <= SHARE
    assert codes[-3:] == [486] * 3
    with Pinging(lab.a, lab.b) as pinging:
        pinging.wait_more(3)
    assert lab.shown()["pairs"] <= SHARE + 1


def asked(sock: socket.socket, request: bytes, to: tuple[str, int]) -> StunMessage:
    """Return the answer to ``request``, sent again while none comes: the flood may still count."""
    sock.settimeout(0.5)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        sock.sendto(request, to)
        with contextlib.suppress(TimeoutError):
            while (answer := parse_stun(sock.recv(2048))).transaction != request[8:20]:
                pass
            return answer
    raise AssertionError("the relay does not answer a member")


def test_the_months_end_is_the_end_of_relaying_and_why_says_so(lab: Abused) -> None:
    address = ip_address(lab.b.status()["addresses"][0])
    assert transfer(lab.a.namespace, lab.b.namespace, address, size=2 * LEFT).intact
    wait_until(lambda: lab.shown()["exhausted"], "the cap")
    assert lab.shown()["pairs"] == 0

    def is_full() -> bool:
        return any(
            "is full" in reason["text"] for reason in lab.a.query("why", lab.b.npub)["blocks"]
        )

    wait_until(is_full, "a full relay", timeout=20)
    assert peer_of(lab.a, lab.b)["path"] == "none"
    carried = lab.shown()["bytes"]
    lab.a.namespace.run("ping", "-c3", "-i0.2", "-w1", str(address), check=False)
    assert lab.shown()["bytes"] == carried


def test_a_killed_relay_does_not_begin_its_month_anew(lab: Abused) -> None:
    carried = lab.shown()["bytes"]
    lab.relay.kill()
    lab.relay.start()
    lab.relay.wait_for_relay()
    shown = lab.shown()
    assert shown["bytes"] == carried >= GIGABYTE
    assert shown["exhausted"]
    assert shown["pairs"] == 0


def test_a_killed_relay_leaves_nothing_after_cleanup(lab: Abused) -> None:
    lab.relay.kill()
    assert machine(lab.relay) != lab.before
    table = f"nostrvpn_{lab.relay.interface}_relay"
    assert table in lab.vps.run("nft", "list", "tables")
    said = lab.vps.run(*python_module("nostrvpn", "cleanup"))
    assert f"Removed {lab.relay.interface}." in said
    assert f"Removed table inet {table}." in said
    assert machine(lab.relay) == lab.before
    assert "Nothing here carries our mark." in lab.vps.run(*python_module("nostrvpn", "cleanup"))
