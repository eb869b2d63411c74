"""What a tunnel survives: relays that vanish, daemons that are killed, garbage, another network."""

from __future__ import annotations

import itertools
import json
import random
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from nostrvpn.host.inbound import inbound_table
from nostrvpn.lab.capture import Capture
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from nostrvpn.lab.processes import python_module
from nostrvpn.stun.binding import Check, parse_stun, render_check
from tests.lab.homes import (
    Homes,
    Pinging,
    homes,
    join,
    machine,
    peer_of,
    ping,
    problems,
    wait_direct,
)

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(120))]

COOKIE = bytes.fromhex("2112a442")
# Datagrams, where a daemon's inbox holds 4096: what must be counted is not to be lost there.
AT_ONCE = 500
HEADERS = 14 + 20 + 8
"""Ethernet, IPv4 and UDP before a captured datagram."""

ROAMING_TIMEOUT = 15.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Homes]:
    """Two homes whose laptops have met."""
    with homes(2) as lab:
        yield lab


@pytest.fixture(scope="module")
def before(lab: Homes) -> Any:
    """The first laptop's machine before any node ran on it."""
    return machine(lab.nodes[0])


@pytest.fixture
def pair(lab: Homes, before: Any) -> tuple[LabNode, LabNode]:
    """Both nodes, up (again) and in direct contact."""
    a, b = lab.nodes
    if not a.npub:
        join(a, b)
    elif not a.process.alive:
        a.start()
    wait_direct(a, b)
    return a, b


def link_index(node: LabNode) -> int:
    """Return the interface's index: another one means another interface."""
    (link,) = json.loads(node.namespace.run("ip", "-j", "link", "show", node.interface).stdout)
    return int(link["ifindex"])


def test_without_relays_tunnels_live_and_nodes_come_back(
    lab: Homes, pair: tuple[LabNode, LabNode]
) -> None:
    a, b = pair
    with Pinging(a, b) as pinging:
        lab.relay.kill()
        for node in pair:
            node.wait_for(lambda status: "relays_down" in problems(status), "relays_down")
        pinging.wait_more(10)
        assert pinging.lost() == 0
    a.restart()  # nothing but what it remembers leads it back
    wait_direct(a, b)
    ping(a, b)
    ping(b, a)
    assert "relays_down" in problems(a.status())
    lab.relay = lab.start_relay(lab.server)
    for node in pair:
        node.wait_for_relay(timeout=40)  # the pause between two attempts doubles, up to a minute
        node.wait_for(lambda status: status["problems"] == [], "no problems")


def test_a_killed_daemon_leaves_the_tunnel_and_the_next_one_takes_it_over(
    pair: tuple[LabNode, LabNode],
) -> None:
    a, b = pair
    index, moved = link_index(a), peer_of(a, b)["rx_bytes"]
    with Pinging(b, a) as pinging:
        pinging.wait_more()
        a.kill()
        pinging.wait_more(10)
        a.start()
        wait_direct(a, b)
        pinging.wait_more()
        assert pinging.lost() == 0
    assert link_index(a) == index
    assert peer_of(a, b)["rx_bytes"] > moved


def test_a_second_daemon_on_the_same_state_is_refused(pair: tuple[LabNode, LabNode]) -> None:
    a, b = pair
    refused = a.attempt("daemon")
    assert refused.returncode == 1
    error, hint = refused.stderr.splitlines()
    assert error == (
        f"error: a daemon already runs on {a.directory / 'state'} (pid {a.process.pid})"
    )
    assert hint.startswith("hint: ")
    ping(a, b)


@pytest.mark.parametrize("end", ["down", "sigterm", "kill, down", "kill, cleanup"])
def test_however_it_ends_the_machine_is_as_before(
    pair: tuple[LabNode, LabNode], before: Any, end: str
) -> None:
    a, _ = pair
    cleanup = python_module("nostrvpn", "cleanup")  # knows no state, no name
    if end == "sigterm":
        assert a.stop() == 0
    elif end == "down":
        assert a.query("down") == {"was_running": True, "removed": []}
        wait_until(lambda: a.process.exit_code == 0, "exit code 0")
    else:
        refused = a.namespace.run(*cleanup, check=False)
        assert refused.returncode == 1
        assert f"a daemon runs on {a.interface} (pid {a.process.pid})" in refused.stderr
        a.kill()
        assert machine(a) != before
        if end == "kill, down":
            left = [a.interface, f"table inet {inbound_table(a.interface)}"]
            assert a.query("down") == {"was_running": False, "removed": left}
        else:
            assert a.interface in a.namespace.run(*cleanup).stdout
    assert machine(a) == before
    assert a.query("down") == {"was_running": False, "removed": []}
    gone = a.attempt("status")
    assert gone.returncode == 1
    assert gone.stderr.startswith("error: nostrvpn is not running")


def captured_checks(capture: Capture, source: str) -> list[bytes]:
    """Return the authenticated Binding requests (RFC 8489) that came from an address so far."""
    sender = socket.inet_aton(source)
    frames = [packet.data for packet in capture.packets()]
    datagrams = [frame[HEADERS:] for frame in frames if frame[26:30] == sender]
    return [data for data in datagrams if data[:2] == b"\0\x01" and data[4:8] == COOKIE]


def test_garbage_on_the_port_is_counted_and_changes_nothing(
    lab: Homes, pair: tuple[LabNode, LabNode]
) -> None:
    a, b = pair
    port, randoms = a.status()["listen_port"], random.Random(1)
    capture = lab.capture("laptop-a", "eth0", f"udp dst port {port}")
    with Pinging(a, b) as pinging:
        outside = str(lab.routers[1].address)
        check = wait_until(lambda: captured_checks(capture, outside), "a check of the peer")[0]
        noise = (randoms.randbytes(randoms.randrange(1400)) for _ in range(2000))
        handshakes = (struct.pack("<I", 1) + randoms.randbytes(144) for _ in range(200))
        stun = (randoms.randbytes(4) + COOKIE + randoms.randbytes(n % 1000) for n in range(2000))
        answers = (b"\x01\x01\0\0" + COOKIE + randoms.randbytes(12) for _ in range(100))
        truncated = (check[:n] for n in range(8, len(check)))
        damaged = (check[:n] + bytes([check[n] ^ 1]) + check[n + 1 :] for n in range(len(check)))
        replayed = itertools.repeat(check, 20)
        # As the peer would write it, but for the password.
        told = parse_stun(check)
        forged = (
            render_check(Check(randoms.randbytes(12), told.username, "guess", 1, by_a, 1, False))
            for by_a in (True, False)
        )
        with lab.routers[0].namespace.enter():
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sender:
            floods = (noise, handshakes, stun, answers, truncated, damaged, replayed, forged)
            for number, datagram in enumerate(itertools.chain(*floods)):
                if number % AT_ONCE == 0:
                    a.ask("status")  # what waits for the daemon has room for so many more
                sender.sendto(datagram, (str(lab.laptops[0].address), port))
        wanted = {"malformed_stun", "unknown_transaction", "forged_check", "replayed_check"}
        a.wait_for(lambda status: wanted <= set(status["dropped_datagrams"]), f"counts {wanted}")
        assert a.status()["dropped_datagrams"]["malformed_stun"] > 400
        pinging.wait_more(10)
        assert pinging.lost() == 0
    capture.stop()
    peer = peer_of(a, b)
    assert (peer["state"], peer["path"]) == ("connected", "direct")
    assert peer["endpoint"].startswith(f"{outside}:")
    assert a.process.alive


def test_a_laptop_moves_into_another_network_and_back(
    lab: Homes, pair: tuple[LabNode, LabNode]
) -> None:
    a, b = pair
    home, away = lab.routers

    def arrived(endpoint: str) -> None:
        b.wait_for(
            lambda status: status["peers"][0]["endpoint"].startswith(f"{endpoint}:"),
            f"laptop-a at {endpoint}",
            timeout=ROAMING_TIMEOUT,
        )
        wait_direct(a, b, timeout=ROAMING_TIMEOUT)
        ping(a, b)
        ping(b, a)

    lab.move(lab.laptops[0], home, away)
    arrived(str(lab.laptops[0].address))
    lab.move(lab.laptops[0], away, home)
    arrived(str(home.address))
