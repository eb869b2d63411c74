"""What leaves the laptop's cable in each state of an exit: what docs/security.md lists, no more.

In every test a program sends all it can, as root and as a user without privileges, while the cable is
recorded from before the state begins until after it has ended.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from nostrvpn.lab.node import LabNode
from nostrvpn.lab.patience import patient, wait_until
from tests.lab.abroad import NOBODY, Abroad, strays
from tests.lab.homes import join, watched

pytestmark = [pytest.mark.lab, pytest.mark.timeout(patient(180))]

LIMIT = 20.0


@pytest.fixture(scope="module")
def abroad() -> Iterator[Abroad]:
    """The laptop owns a network; both exits offer themselves to it."""
    with watched(Abroad()) as lab:
        join(lab.laptop, *lab.exits)
        for exit_node in lab.exits:
            exit_node.cli("exit", "offer", "--to", "members")
        wait_until(lambda: len(offers(lab.laptop)) == len(lab.exits), "two offers", timeout=LIMIT)
        yield lab


@pytest.fixture
def lab(abroad: Abroad) -> Iterator[Abroad]:
    """Afterwards no exit is used, the daemons run, and the site is reached directly."""
    abroad.own_port()
    yield abroad
    for number, node in enumerate(abroad.exits):
        abroad.mend(number)
        if not node.process.alive:
            node.start()
    if not abroad.laptop.process.alive:
        abroad.laptop.start()
    abroad.laptop.cli("exit", "off", "--kill-switch", "on")
    wait_until(lambda: state(abroad.laptop) == "off", "the exit to be off", timeout=LIMIT)


def offers(node: LabNode) -> list[str]:
    return [one["npub"] for one in node.query("exit", "list")["exits"]]


def state(node: LabNode) -> str:
    return str(node.query("exit", "status")["state"])


def use(lab: Abroad, *arguments: str, who: str | None = None, wait: bool = True) -> None:
    """Use the first exit, or the one named; wait until it carries."""
    settings = ("--no-allow-lan", "--kill-switch", "on", *arguments)
    lab.laptop.cli("exit", "use", who or lab.exits[0].name, "--yes", *settings)
    if wait:
        wait_until(lambda: state(lab.laptop) == "connected", "an exit that carries", timeout=LIMIT)


@contextmanager
def nothing_strays(lab: Abroad, *, lan: bool = False) -> Iterator[Callable[[], None]]:
    """Record the cable meanwhile; the value sends all a program can, as root and as a user."""
    capture = lab.watch()

    def talk() -> None:
        for uid in (0, NOBODY):
            lab.talk(uid=uid)

    yield talk
    # What was sent last is on the cable before these are.
    talk()
    capture.stop()
    found = strays(lab, capture, lan=lan)
    assert not found, f"{len(found)} packets strayed: {sorted(set(found))[:20]}"


def seen_as(lab: Abroad) -> set[str]:
    """Return the addresses that the site sees this laptop as."""
    answers = lab.talk(uid=NOBODY)
    sites = {str(lab.site.address), str(lab.site.address6)}
    return {
        said.split()[1]
        for what in ("tcp/80", "udp/443")
        for said in answers.get(what, [])
        if said.split()[0] in sites
    }


def outside(lab: Abroad, number: int) -> set[str]:
    host = lab.exits[number].namespace.label
    plug = next(h for h in lab.hosts_abroad if h.name == host)
    return {str(plug.address), str(plug.address6)}


def test_a_program_that_talks_is_recorded_where_nothing_holds_it_back(lab: Abroad) -> None:
    capture = lab.watch()
    lab.talk(uid=NOBODY)
    capture.stop()
    assert len(strays(lab, capture)) > 50


def test_connected_all_goes_through_the_exit(lab: Abroad) -> None:
    with nothing_strays(lab):
        use(lab)
        assert seen_as(lab) == outside(lab, 0)


def test_connecting_to_an_exit_that_is_not_there_nothing_leaves(lab: Abroad) -> None:
    lab.cut(0)
    with nothing_strays(lab) as talk:
        use(lab, wait=False)
        wait_until(lambda: state(lab.laptop) == "connecting", "connecting", timeout=LIMIT)
        talk()


def test_in_lockdown_nothing_leaves_without_an_exit(lab: Abroad) -> None:
    use(lab, "--kill-switch", "lockdown")
    lab.laptop.cli("exit", "off")
    with nothing_strays(lab) as talk:
        assert state(lab.laptop) == "lockdown"
        talk()
        assert seen_as(lab) == set()


def test_an_exit_that_dies_leaves_nothing_open(lab: Abroad) -> None:
    use(lab)
    with nothing_strays(lab) as talk:
        lab.cut(0)
        talk()
        wait_until(lambda: state(lab.laptop) == "connecting", "the loss", timeout=LIMIT)
        talk()


def test_an_exit_is_switched_without_a_packet_outside(lab: Abroad) -> None:
    use(lab)
    with nothing_strays(lab) as talk:
        use(lab, who=lab.exits[1].name)
        talk()
        wait_until(partial(_sees, lab, 1), "the other exit", timeout=LIMIT)


def test_auto_fails_over_without_a_packet_outside(lab: Abroad) -> None:
    use(lab, who="auto")
    first = next(n for n in (0, 1) if seen_as(lab) == outside(lab, n))
    with nothing_strays(lab) as talk:
        lab.cut(first)
        talk()
        wait_until(partial(_sees, lab, 1 - first), "the other exit", timeout=LIMIT)


def test_a_killed_daemon_leaves_the_block(lab: Abroad) -> None:
    use(lab)
    with nothing_strays(lab) as talk:
        lab.laptop.kill()
        talk()
        lab.laptop.start()
        wait_until(partial(_sees, lab, 0), "the exit again", timeout=LIMIT)


def test_a_restarted_daemon_lets_nothing_out_meanwhile(lab: Abroad) -> None:
    use(lab)
    with nothing_strays(lab) as talk:
        lab.laptop.stop()
        talk()
        lab.laptop.start()
        talk()
        wait_until(partial(_sees, lab, 0), "the exit again", timeout=LIMIT)


def test_a_default_route_that_is_put_back_leads_nowhere(lab: Abroad) -> None:
    use(lab)
    cable = lab.host_laptop
    with nothing_strays(lab) as talk:
        cable.namespace.ip("route del default", f"route add default via {cable.plug.gateway}")
        talk()
        cable.namespace.ip(
            f"route add 0.0.0.0/1 via {cable.plug.gateway}",
            f"route add 128.0.0.0/1 via {cable.plug.gateway}",
            f"route add {lab.site.address}/32 via {cable.plug.gateway}",
        )
        talk()
        assert seen_as(lab) == outside(lab, 0)  # nor is it a way to cut the laptop off
        cable.namespace.ip(
            "route del 0.0.0.0/1", "route del 128.0.0.0/1", f"route del {lab.site.address}/32"
        )


def test_a_home_that_claims_public_addresses_gets_nothing(lab: Abroad) -> None:
    use(lab, "--allow-lan")
    cable = lab.host_laptop.namespace
    prefix = f"{lab.site.address}/24"
    with nothing_strays(lab, lan=True) as talk:
        cable.ip(f"addr add {lab.site.address + 7}/24 dev eth0")
        talk()
        assert seen_as(lab) == outside(lab, 0), prefix
        cable.ip(f"addr del {lab.site.address + 7}/24 dev eth0")


def test_a_link_that_goes_down_and_up_lets_nothing_out(lab: Abroad) -> None:
    use(lab)
    cable = lab.host_laptop
    with nothing_strays(lab) as talk:
        cable.namespace.ip("link set eth0 down")
        talk()
        cable.namespace.ip("link set eth0 up")
        cable.namespace.ip(f"route replace default via {cable.plug.gateway}")
        talk()
        wait_until(partial(_sees, lab, 0), "the exit again", timeout=40)


def test_another_name_server_is_not_asked(lab: Abroad) -> None:
    use(lab)
    with nothing_strays(lab):
        answers = lab.talk(uid=NOBODY)
        asked = {said.split()[0] for what in ("udp/53", "tcp/53") for said in answers.get(what, [])}
        assert not asked & {str(lab.site.address), str(lab.site.address6)}


def test_with_allow_lan_the_home_is_reached_and_nothing_else(lab: Abroad) -> None:
    with nothing_strays(lab, lan=True):
        use(lab, "--allow-lan")
        answers = lab.talk(uid=NOBODY)
        reached = {said.split()[0] for said in answers["tcp/80"]}
        assert {str(lab.printer.address), str(lab.printer6)} <= reached
        assert seen_as(lab) == outside(lab, 0)


def test_the_printer_is_out_of_reach_without_allow_lan(lab: Abroad) -> None:
    with nothing_strays(lab):
        use(lab)
        reached = {said.split()[0] for said in lab.talk(uid=NOBODY)["tcp/80"]}
        assert not reached & {str(lab.printer.address), str(lab.printer6)}


def test_down_opens_and_lockdown_outlives_it_until_cleanup(lab: Abroad) -> None:
    use(lab, "--kill-switch", "lockdown")
    with nothing_strays(lab) as talk:
        lab.laptop.cli("down")
        talk()
    lab.laptop.cli("cleanup")
    assert seen_as(lab) & {str(lab.home.address)}


def test_a_tunnel_that_hangs_leaves_nothing_open(lab: Abroad) -> None:
    use(lab)
    pid = lab.laptop.process.pid
    with nothing_strays(lab) as talk:
        os.kill(pid, signal.SIGSTOP)
        try:
            talk()
        finally:
            os.kill(pid, signal.SIGCONT)


def _sees(lab: Abroad, number: int) -> bool:
    return seen_as(lab) == outside(lab, number)
