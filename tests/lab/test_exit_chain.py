"""An exit that leaves by another exit: its guests too, nothing of theirs beside it, and no circles."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import pytest

from nostrvpn.lab.capture import Capture
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from tests.lab.abroad import NOBODY, Abroad
from tests.lab.homes import join, watched

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(180))]

LIMIT = 30.0


@pytest.fixture
def lab() -> Iterator[Abroad]:
    """The laptop, and two members that offer to be exits; the first one leaves by the second."""
    with watched(Abroad()) as lab:
        join(lab.laptop, *lab.exits)
        for exit_node in lab.exits:
            exit_node.cli("exit", "offer", "--to", "members")
        first, second = lab.exits
        wait_until(lambda: second.npub in offers(first), "an offer", timeout=LIMIT)
        first.cli("exit", "use", second.name, "--yes")
        is_on = partial(is_in, first, "connected")
        wait_until(is_on, "the exit's exit", timeout=LIMIT)
        wait_until(
            lambda: offers(lab.laptop).get(first.npub) == [second.name], "the chain", timeout=LIMIT
        )
        yield lab


def offers(node: LabNode) -> dict[str, list[str]]:
    return {one["npub"]: one["through"] for one in node.ask("exit_list")["exits"]}


def states(node: LabNode) -> dict[str, str]:
    return {one["npub"]: one["state"] for one in node.ask("exit_list")["exits"]}


def is_in(node: LabNode, state: str) -> bool:
    return bool(node.ask("exit_status")["state"] == state)


def seen_as(lab: Abroad) -> set[str]:
    answers, sites = lab.talk(uid=NOBODY), {str(lab.site.address), str(lab.site.address6)}
    said = [one.split() for what in ("tcp/80", "udp/443") for one in answers.get(what, [])]
    return {words[1] for words in said if words[0] in sites}


def to_the_site(lab: Abroad) -> Capture:
    """Record what goes between the first exit's own uplink and the site."""
    sites = " or ".join(f"host {ip}" for ip in (lab.site.address, lab.site.address6) if ip)
    return lab.capture("exit-1", "eth0", sites)


def forwarded(lab: Abroad, number: int) -> int:
    """How many packets a host has forwarded."""
    namespace = lab.exits[number].namespace
    text = namespace.run("cat", "/proc/net/snmp").stdout
    [v4] = re.findall(r"^Ip: \d+ \d+ \d+ \d+ \d+ (\d+)", text, re.M)
    text = namespace.run("cat", "/proc/net/snmp6").stdout
    [v6] = re.findall(r"^Ip6OutForwDatagrams\s+(\d+)", text, re.M)
    return int(v4) + int(v6)


def test_guests_leave_by_the_last_exit_and_by_no_other(lab: Abroad) -> None:
    first = lab.exits[0]
    capture = to_the_site(lab)
    lab.laptop.cli("exit", "use", first.name, "--yes")
    wait_until(partial(is_in, lab.laptop, "connected"), "the exit", timeout=LIMIT)
    host = lab.hosts_abroad[1]
    there = {str(host.address), str(host.address6)}
    wait_until(lambda: seen_as(lab) == there, "the last exit's addresses", timeout=LIMIT)
    # Its kill switch holds for its guests too, and what it does not carry it offers to nobody.
    lab.cut(1)
    assert seen_as(lab) == set()
    wait_until(partial(is_in, first, "connecting"), "the loss", timeout=LIMIT)
    wait_until(lambda: states(lab.laptop)[first.npub] == "down", "the offer's end", timeout=LIMIT)
    assert seen_as(lab) == set()
    assert is_in(lab.laptop, "blocked")
    lab.mend(1)
    wait_until(
        lambda: seen_as(lab) == {str(host.address), str(host.address6)}, "the chain", timeout=LIMIT
    )
    capture.stop()
    assert capture.packets() == []

    # Without its own exit it is one like any other.
    first.cli("exit", "off")
    host = lab.hosts_abroad[0]
    wait_until(
        lambda: seen_as(lab) == {str(host.address), str(host.address6)}, "one exit", timeout=LIMIT
    )
    wait_until(lambda: offers(lab.laptop)[first.npub] == [], "its word of it", timeout=LIMIT)


def test_exits_in_a_circle_are_refused_and_no_packet_goes_round(lab: Abroad) -> None:
    first, second = lab.exits
    wait_until(lambda: first.npub in offers(second), "an offer", timeout=LIMIT)
    assert offers(second)[first.npub] == [second.name]
    refused = second.attempt("exit", "use", first.name, "--yes")
    assert refused.returncode != 0
    assert "circle" in refused.stderr
    # What the second one sends to the first by hand is not sent back to it.
    before = forwarded(lab, 0)
    table, interface = "7777", second.interface
    own = second.status()["addresses"]
    for address in own:
        family = 6 if ":" in address else 4
        second.namespace.ip(
            f"route add default dev {interface} src {address} table {table}",
            f"rule add from {address} to {_site(lab, family)} lookup {table} pref 50",
            family=family,
        )
    for address in own:
        argv = ("ping", "-n", "-c", "3", "-i", "0.2", "-W", "1", "-I", address)
        family = 6 if ":" in address else 4
        second.namespace.run(*argv, _site(lab, family), check=False)
    assert forwarded(lab, 0) == before


def _site(lab: Abroad, family: int) -> str:
    return str(lab.site.address6 if family == 6 else lab.site.address)
