"""One laptop in two networks, of which one uses an exit: the other goes on, and never both use one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from tests.lab.abroad import NOBODY, Abroad, strays
from tests.lab.homes import join, launch, watched

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(240))]

Json = dict[str, Any]
LIMIT = 30.0


@pytest.fixture
def lab() -> Iterator[Abroad]:
    with watched(Abroad()) as lab:
        yield lab
        lab.laptop.cli("exit", "off", "--kill-switch", "on")
        lab.laptop.cli("down")


def ask(node: LabNode, profile: str, *words: str) -> Json:
    """Ask one of a node's networks."""
    answer: Json = json.loads(node.cli("--network", profile, *words, "--json"))
    return answer


def reaches(source: LabNode, address: str) -> bool:
    argv = ("ping", "-n", "-c", "1", "-W", "2", address)
    return source.namespace.run(*argv, check=False).returncode == 0


def seen_as(lab: Abroad) -> set[str]:
    answers, sites = lab.talk(uid=NOBODY), {str(lab.site.address), str(lab.site.address6)}
    said = [one.split() for what in ("tcp/80", "udp/443") for one in answers.get(what, [])]
    return {words[1] for words in said if words[0] in sites}


def outside(lab: Abroad, number: int) -> set[str]:
    host = lab.hosts_abroad[number]
    return {str(host.address), str(host.address6)}


def exits_in_rules(lab: Abroad) -> set[str]:
    """The tables that rules lead everything to."""
    found = lab.host_laptop.run("ip", "-4", "rule", "show")
    return set(re.findall(r"4650:.* lookup (\d+)", found))


def has_problem(node: LabNode, profile: str, code: str) -> bool:
    return any(one["code"] == code for one in ask(node, profile, "status")["problems"])


def is_in(node: LabNode, profile: str, state: str) -> bool:
    return bool(ask(node, profile, "exit", "status")["state"] == state)


def two_networks(lab: Abroad) -> str:
    """The laptop owns one network with the first exit, and is in the second exit's: its profile."""
    laptop, (first, second) = lab.laptop, lab.exits
    join(laptop, first)
    launch(second)
    second.query("network", "create", "work")
    link = second.query("invite", laptop.npub)["link"]
    profile = str(laptop.query("join", link)["profile"])
    for exit_node in (first, second):
        exit_node.cli("exit", "offer", "--to", "members")
    for name in ("default", profile):
        wait_until(
            lambda name=name: ask(laptop, name, "exit", "list")["exits"],  # type: ignore[misc]
            f"an offer in {name}",
            timeout=LIMIT,
        )
    return profile


def test_while_one_network_uses_an_exit_the_others_go_on(lab: Abroad) -> None:
    laptop, (first, second) = lab.laptop, lab.exits
    profile = two_networks(lab)
    lab.own_port()
    port = ask(laptop, profile, "status")["listen_port"]
    there, here = second.status()["addresses"], ask(laptop, profile, "status")["addresses"]
    capture = lab.watch()
    ask(laptop, "default", "exit", "use", first.name, "--yes")
    wait_until(partial(is_in, laptop, "default", "connected"), "the exit", timeout=LIMIT)
    for address in there:
        assert reaches(laptop, address)
    for address in here:
        assert reaches(second, address)
    wait_until(lambda: seen_as(lab) == outside(lab, 0), "the exit's addresses", timeout=LIMIT)
    # And while the exit is dead, and from the beginning.
    lab.cut(0)
    wait_until(partial(is_in, laptop, "default", "connecting"), "the loss", timeout=LIMIT)
    assert all(reaches(laptop, address) for address in there)
    ask(laptop, profile, "down")
    assert not any(reaches(laptop, address) for address in there)
    lab.talk(more=[])
    ask(laptop, profile, "up")
    for address in there:
        wait_until(partial(reaches, laptop, address), "the other network again", timeout=LIMIT)
    lab.mend(0)
    # Where only routes lead into the exit, too.
    ask(laptop, "default", "exit", "use", first.name, "--yes", "--kill-switch", "off")
    wait_until(partial(is_in, laptop, "default", "connected"), "the exit again", timeout=LIMIT)
    assert all(reaches(laptop, address) for address in there)
    ask(laptop, "default", "exit", "use", first.name, "--yes", "--kill-switch", "on")
    capture.stop()
    # The other network's own packets are WireGuard's too.
    found = [one for one in strays(lab, capture) if f":{port} > " not in one]
    assert not found, sorted(set(found))[:20]


def test_of_two_networks_that_want_an_exit_one_is_refused(lab: Abroad) -> None:
    laptop, (first, second) = lab.laptop, lab.exits
    profile = two_networks(lab)
    ask(laptop, "default", "exit", "use", first.name, "--yes")
    wait_until(partial(is_in, laptop, "default", "connected"), "the exit", timeout=LIMIT)
    refused = laptop.attempt("--network", profile, "exit", "use", second.name, "--yes")
    assert refused.returncode != 0
    assert laptop.interface in refused.stderr

    # What is stored is another way in.
    ask(laptop, "default", "down")
    ask(laptop, profile, "exit", "use", second.name, "--yes")
    wait_until(partial(is_in, laptop, profile, "connected"), "the other exit", timeout=LIMIT)
    ask(laptop, "default", "up")
    wait_until(partial(has_problem, laptop, "default", "exit_rival"), "a refusal", timeout=LIMIT)
    assert len(exits_in_rules(lab)) == 1
    wait_until(lambda: seen_as(lab) == outside(lab, 1), "the other exit's address", timeout=LIMIT)

    # Both at the same time: one is refused, whichever.
    laptop.query("down")
    assert not exits_in_rules(lab)
    laptop.query("up")
    names = ("default", profile)
    wait_until(
        lambda: (
            sorted(ask(laptop, name, "exit", "status")["state"] for name in names)
            == ["connected", "off"]
        ),
        "one exit",
        timeout=LIMIT,
        evidence=lambda: str([ask(laptop, name, "exit", "status") for name in names]),
    )
    assert len(exits_in_rules(lab)) == 1
    used, other = sorted(names, key=lambda name: not is_in(laptop, name, "connected"))
    assert has_problem(laptop, other, "exit_rival")
    # It waits for its turn.
    ask(laptop, used, "exit", "off")
    wait_until(
        partial(is_in, laptop, other, "connected"),
        "the next one",
        timeout=LIMIT,
        evidence=lambda: str([ask(laptop, name, "exit", "status") for name in names]),
    )
    there = outside(lab, names.index(other))
    wait_until(lambda: seen_as(lab) == there, "the next one's address", timeout=LIMIT)
    ask(laptop, other, "exit", "off")
