"""An exit, and who uses one, on hosts with another firewall: ufw, firewalld, Docker's chains."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from nostrvpn.lab.namespaces import Namespace
from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from tests.lab.abroad import Abroad
from tests.lab.firewalls import FIREWALLS, Docker, Firewall, Firewalld, Ufw, beside
from tests.lab.homes import join, watched
from tests.lab.test_exit_provider import asked
from tests.lab.test_leaks import nothing_strays, offers, outside, state, use

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(120))]

LIMIT = 20.0
BLOCKED = "exit_offer_blocked"
# The chains of IPv4 and of IPv6 are found one after the other.
MOST_HINTS = 2


@pytest.fixture(scope="module")
def lab() -> Iterator[Abroad]:
    """The laptop leaves through the exit abroad."""
    with watched(Abroad(exits=1)) as made:
        join(made.laptop, *made.exits)
        made.exits[0].cli("exit", "offer", "--to", "members")
        wait_until(lambda: offers(made.laptop), "an offer", timeout=LIMIT)
        use(made)
        yield made
        made.laptop.cli("exit", "off")


def served(lab: Abroad, guest: Namespace) -> bool:
    """Whether the site answers somebody by IPv4 and IPv6, and sees the exit."""
    sites = (lab.site.address, lab.site.address6)
    return {asked(guest, str(site)) for site in sites} == outside(lab, 0)


def wait_served(lab: Abroad, guest: Namespace) -> None:
    wait_until(lambda: served(lab, guest), "the site, through the exit", timeout=LIMIT)


def hint_of(provider: LabNode) -> str:
    """Return the commands that the exit's status gives for a firewall that drops what guests send."""
    said = [one["hint"] for one in provider.status()["problems"] if one["code"] == BLOCKED]
    return str(said[0]).removeprefix("let it through: ") if said else ""


def offer_anew(provider: LabNode) -> None:
    """Be an exit again, which has the firewalls around looked at."""
    provider.cli("exit", "offer", "--stop")
    provider.cli("exit", "offer", "--to", "members")


@pytest.mark.parametrize("kind", FIREWALLS)
def test_an_exit_beside_another_firewall_says_what_to_do_and_then_serves(
    lab: Abroad, kind: type[Firewall]
) -> None:
    provider, guest = lab.exits[0], lab.laptop.namespace
    wait_served(lab, guest)
    with beside(lab, provider.namespace, kind) as firewall:
        firewall.start()
        hints: list[str] = []
        while len(hints) <= MOST_HINTS:
            offer_anew(provider)
            wait_until(
                lambda: hint_of(provider) or served(lab, guest),
                "guests that are served, or the name of what drops what they send",
                timeout=LIMIT,
            )
            if not (hint := hint_of(provider)):
                break
            assert hint not in hints
            assert not served(lab, guest)
            doctor = json.loads(provider.attempt("doctor", "--json").stdout)
            assert BLOCKED in {one["code"] for one in doctor["findings"]}
            firewall.obey(hint)
            hints.append(hint)
        assert hints
        wait_served(lab, guest)
        firewall.again()
        wait_served(lab, guest)
    offer_anew(provider)


@pytest.mark.parametrize("kind", [Ufw, Firewalld])
def test_beside_another_firewall_nothing_leaves_but_by_the_exit(
    lab: Abroad, kind: type[Firewall]
) -> None:
    guest = lab.laptop.namespace
    wait_served(lab, guest)
    with beside(lab, guest, kind) as firewall, nothing_strays(lab) as talk:
        firewall.start()
        talk()
        # With firewalld's rpfilter, too, IPv6 comes back by the exit.
        wait_served(lab, guest)
        firewall.again()
        talk()
        wait_served(lab, guest)
        firewall.stop()
        talk()


def test_behind_firewalld_neighbours_with_public_addresses_are_found(lab: Abroad) -> None:
    guest = lab.laptop.namespace
    assert lab.home.lan6 is not None
    router = str(lab.home.lan6[1])
    with beside(lab, guest, Firewalld) as firewall:
        firewall.start()
        guest.run("ip", "-6", "neigh", "flush", "dev", "eth0")
        wait_until(
            lambda: "lladdr" in guest.run("ip", "-6", "neigh", "show", router).stdout,
            "the router's hardware address",
            timeout=LIMIT,
        )


def test_what_docker_forwards_for_a_container_leaves_by_the_exit_or_not_at_all(
    lab: Abroad,
) -> None:
    container = lab.namespace("container")
    with beside(lab, lab.laptop.namespace, Docker) as docker, nothing_strays(lab) as talk:
        docker.start()
        docker.contain(container)
        wait_served(lab, container)
        docker.again()
        talk()
        lab.cut(0)
        try:
            wait_until(lambda: state(lab.laptop) == "connecting", "the loss", timeout=LIMIT)
            docker.again()
            talk()
            assert not asked(container, str(lab.site.address))
        finally:
            lab.mend(0)
        wait_served(lab, container)
